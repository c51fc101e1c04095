//! An agent of this version that starts after an agent with an earlier map layout.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use bytemuck::{Pod, Zeroable as _};
use culvert::datapath::carry::{FlowV3, FlowV4};
use culvert_common::abi::{ABI_VERSION, Flow, FlowKey, Tuple, names};
use culvert_tests::{
    external::External,
    sock::{self, Behaviour, Server, container},
};
use nix::libc;

use crate::nat::World;

/// Lets aya move any [`bytemuck::Pod`] in and out of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes<T>(T);

// SAFETY: `repr(transparent)` over a type without padding and without invalid bit patterns,
// which is what `bytemuck::Pod` asserts.
unsafe impl<T: Pod> aya::Pod for Bytes<T> {}

type Table<K, V> = HashMap<MapData, Bytes<K>, Bytes<V>>;

/// Makes the flow table of an agent with another ABI, with values of the type `V`.
fn create<V>() -> MapData {
    // SAFETY: a union of structures of integers, for which all bytes 0 is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: these members of the union are those of the command BPF_MAP_CREATE.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
    create.key_size = size_of::<FlowKey>() as u32;
    create.value_size = size_of::<V>() as u32;
    create.max_entries = 8192;
    // BPF_F_NO_PREALLOC
    create.map_flags = 1;
    let command = bpf_cmd::BPF_MAP_CREATE as libc::c_long;
    // SAFETY: the attributes are those of the command, and the length given is that of `attr`.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of_val(&attr)) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else has it.
    let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    MapData::from_fd(fd).unwrap()
}

fn table<K: Pod, V: Pod>(map: MapData) -> Table<K, V> {
    HashMap::try_from(Map::HashMap(map)).unwrap()
}

/// A value of the flow table of an earlier agent.
trait Earlier: Pod {
    /// Its ABI.
    const VERSION: u32;

    /// The value that the earlier agent would have for this one.
    fn of(flow: &Flow) -> Self;
}

impl Earlier for FlowV3 {
    const VERSION: u32 = 3;

    fn of(flow: &Flow) -> Self {
        Self {
            last_seen_ns: flow.last_seen_ns,
            packets: flow.packets,
            bytes: flow.bytes,
            to: flow.to,
            zone: flow.zone,
            ifindex: flow.dest,
            from_generation: flow.from_incarnation,
            to_generation: flow.to_incarnation,
            flags: flow.kind | (flow.seen << 16),
            last_ack: flow.last_ack,
            pad: 0,
        }
    }
}

impl Earlier for FlowV4 {
    const VERSION: u32 = 4;

    fn of(flow: &Flow) -> Self {
        Self {
            to: flow.to,
            zone: flow.zone,
            dest: flow.dest,
            from_incarnation: flow.from_incarnation,
            to_incarnation: flow.to_incarnation,
            kind: flow.kind,
            seal: flow.seal,
            seen: flow.seen,
            last_ack: flow.last_ack,
            slot: flow.slot,
            last_seen_ns: flow.last_seen_ns,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }
}

/// Moves the flows of a host without an agent into the map that an earlier agent would have left.
/// Returns the number of entries.
fn age_flows<V: Earlier>(bpffs: &Path) -> usize {
    let pin = |version: u32| bpffs.join(format!("v{version}")).join("maps").join(names::FLOWS);
    let mut new: Table<FlowKey, Flow> = table(MapData::from_pin(pin(ABI_VERSION)).unwrap());
    let old = create::<V>();
    fs::create_dir_all(pin(V::VERSION).parent().unwrap()).unwrap();
    old.pin(pin(V::VERSION)).unwrap();
    let mut old: Table<FlowKey, V> = table(MapData::from_pin(pin(V::VERSION)).unwrap());
    let entries: Result<Vec<_>, MapError> = new.iter().collect();
    let entries = entries.unwrap();
    for (Bytes(key), Bytes(flow)) in &entries {
        old.insert(Bytes(*key), Bytes(V::of(flow)), 0).unwrap();
        new.remove(&Bytes(*key)).unwrap();
    }
    entries.len()
}

/// A connection continues under an agent of this version after an agent with map layout 3: its flow
/// is carried over before the old pins are removed.
#[test]
#[ignore = "needs root"]
fn a_connection_outlives_an_upgrade_of_the_map_layout() {
    outlives::<FlowV3>();
}

/// As above, after an agent with map layout 4. The flow is still an established connection: it has
/// the numbers that the other side had acknowledged.
#[test]
#[ignore = "needs root"]
fn a_connection_outlives_an_upgrade_from_map_layout_4() {
    outlives::<FlowV4>();
}

fn outlives<V: Earlier>() {
    let mut world = World::new(1);
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80);
    let _server = Server::tcp(world.external.host.path(), any, Behaviour::Echo);
    let (name, _) = world.run("bridge", &[]);
    let to = SocketAddrV4::new(External::IP, 80);
    let mut stream = sock::within(&container(&name), || sock::open(to, 0)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut talk = || {
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
    };
    talk();
    let bpffs = world.host().bpffs();
    world.cluster.hosts[0].stop_agent(nix::sys::signal::Signal::SIGKILL);
    assert!(age_flows::<V>(&bpffs) >= 2);

    world.cluster.hosts[0].start_agent(&[]);
    world.cluster.hosts[0].wait_ready();
    let log = || world.cluster.hosts[0].agent_log();
    let retired = format!("map layout {} retired", V::VERSION);
    culvert_tests::netns::wait_until(Duration::from_secs(10), &retired, || {
        log().contains(&retired)
    });
    assert!(!bpffs.join(format!("v{}", V::VERSION)).exists(), "the old pins are gone");
    let is_established = || {
        let rows = world.host().json(&["nat", "ls"]).as_array().unwrap().clone();
        let is_there = |row: &serde_json::Value| {
            row["container"] == name && row["dst_port"] == 80 && row["state"] == "tcp_established"
        };
        assert!(rows.iter().any(is_there), "{rows:?}");
    };
    is_established();
    talk();
    is_established();
}

/// Flows for which the new table has no room are lost, and `status` says how many and what to do.
#[test]
#[ignore = "needs root"]
fn flows_that_an_upgrade_loses_are_in_status() {
    const MAX: u32 = 1024;
    let mut world = World::with_agent(&["--conntrack-max", &MAX.to_string()]);
    let bpffs = world.host().bpffs();
    world.cluster.hosts[0].stop_agent(nix::sys::signal::Signal::SIGKILL);
    age_flows::<FlowV3>(&bpffs);
    let pin = bpffs.join("v3").join("maps").join(names::FLOWS);
    let mut old: Table<FlowKey, FlowV3> = table(MapData::from_pin(pin).unwrap());
    let entries = 2 * MAX + 200;
    for number in 0..entries {
        let [_, a, b, c] = number.to_be_bytes();
        let tuple = Tuple { src: [10, a, b, c], dst: [198, 51, 100, 1], ..Tuple::default() };
        let to = Tuple { dst: [192, 0, 2, 1], ..tuple };
        let value = FlowV3 { to, last_seen_ns: u64::MAX / 2, ..FlowV3::zeroed() };
        old.insert(Bytes(FlowKey::new(0, 17, tuple)), Bytes(value), 0).unwrap();
    }
    world.cluster.hosts[0].start_agent(&["--conntrack-max", &MAX.to_string()]);
    world.cluster.hosts[0].wait_ready();
    let problem = || {
        let status = world.cluster.hosts[0].json(&["status"]);
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|line| {
            line.as_str().is_some_and(|line| {
                line.contains("flows of map layout 3 were lost in the upgrade")
                    && line.contains("--conntrack-max")
            })
        })
    };
    culvert_tests::netns::wait_until(Duration::from_secs(10), "the lost flows in status", problem);
}
