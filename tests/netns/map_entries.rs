//! Map entries that another program removes or changes.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{path::Path, time::Duration};

use culvert_common::abi::{ABI_VERSION, names, programs};
use culvert_tests::{
    bpf::RawMap,
    cluster::{Cluster, SOON, unique_name},
    netns::wait_until,
};

use crate::host_changes::repairs;

/// The agent compares the maps each minute.
const COMPARED: Duration = Duration::from_secs(75);

/// Pinned maps that the agent alone writes, with the exception of `RESERVED_PORTS`, which is an
/// array.
const PINNED: [&str; 16] = [
    names::ENDPOINTS,
    names::NETWORKS,
    names::FDB,
    names::NEIGHBOURS,
    names::VTEPS,
    names::VTEP_IDS,
    names::UNDERLAY,
    names::FLOOD_LOCAL,
    names::FLOOD_REMOTE,
    names::GATEWAYS,
    names::PUBLISHED,
    names::SOURCES,
    names::BLOCKED,
    names::HOST_ADDRS,
    names::UPLINKS,
    names::CLIENT_LINKS,
];

/// Such maps that are not pinned. `from_container` reads them.
const UNPINNED: [&str; 2] = [names::SERVICES, names::DENIED];

/// An entry that is removed, or a word that is cleared.
struct Removed {
    name: &'static str,
    map: RawMap,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Removed {
    /// Chooses an entry.
    fn choose(name: &'static str, map: RawMap) -> Self {
        let used =
            |key: &Vec<u8>| map.value(key).is_some_and(|value| value.iter().any(|b| *b != 0));
        let keys = map.keys();
        let key = match name {
            names::RESERVED_PORTS => keys.into_iter().find(used),
            _ => keys.into_iter().next(),
        };
        assert!(key.is_some(), "{name} is empty");
        let key = key.unwrap();
        let value = map.value(&key).unwrap();
        Self { name, map, key, value }
    }

    fn remove(&self) {
        match self.name {
            names::RESERVED_PORTS => self.map.set(&self.key, &vec![0; self.value.len()]),
            _ => self.map.remove(&self.key),
        }
    }

    fn is_back(&self) -> bool {
        match self.name {
            // The MACs of the path may be others by now.
            names::UNDERLAY => self.map.value(&self.key).is_some(),
            _ => self.map.value(&self.key).as_ref() == Some(&self.value),
        }
    }
}

fn choose(pins: &Path) -> Vec<Removed> {
    let pinned = PINNED.into_iter().chain([names::RESERVED_PORTS]);
    let pinned = pinned.map(|name| (name, RawMap::pinned(&pins.join("maps").join(name))));
    let program = pins.join("programs").join(programs::FROM_CONTAINER);
    let unpinned = UNPINNED.into_iter().map(|name| (name, RawMap::of_program(&program, name)));
    pinned.chain(unpinned).map(|(name, map)| Removed::choose(name, map)).collect()
}

/// An entry of each map that the agent writes is removed. Within a minute each is back, counted
/// once, and named in the log.
#[test]
#[ignore = "needs root"]
fn an_entry_that_is_removed_from_any_map_comes_back_and_is_told() {
    let mut cluster = Cluster::without_agents(2, 1500);
    cluster.hosts[0].start_agent(&["--service-cidr", "10.96.0.0/12"]);
    cluster.hosts[1].start_agent(&[]);
    for host in &mut cluster.hosts {
        host.wait_ready();
    }
    let [host, peer] = &cluster.hosts[..] else { unreachable!() };
    // A client link.
    host.netns.run(
        "ip link add card0 type veth peer name card1; ip link set card0 up; \
         ip link set card1 up; ip addr add 198.51.100.1/24 dev card0",
    );
    host.overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("entry1"), unique_name("entry2"));
    host.run_idle(
        &first,
        "net",
        &["--ip", "10.0.0.2", "-p", "8080:80", "--from", "198.51.100.0/24"],
    );
    peer.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    host.ok(&["ports", "deny", "203.0.113.0/24"]);
    host.wait_ping(&first, "10.0.0.3");
    let pins = host.bpffs().join(format!("v{ABI_VERSION}"));
    let links = RawMap::pinned(&pins.join("maps").join(names::CLIENT_LINKS));
    wait_until(SOON, "the client link", || !links.keys().is_empty());
    // The words of the ports are written each second.
    let ports = RawMap::pinned(&pins.join("maps").join(names::RESERVED_PORTS));
    let is_used = |key: &Vec<u8>| ports.value(key).is_some_and(|value| value != [0; 8]);
    wait_until(SOON, "the reserved ports", || ports.keys().iter().any(is_used));

    let before = repairs(host, "map entry").0;
    let removed = choose(&pins);
    removed.iter().for_each(Removed::remove);
    for entry in &removed {
        wait_until(COMPARED, &format!("the entry of {}", entry.name), || entry.is_back());
    }
    wait_until(SOON, "the count of the repairs", || {
        repairs(host, "map entry").0 == before + removed.len() as u64
    });
    let log = host.agent_log();
    for Removed { name, .. } in &removed {
        assert!(log.contains(&format!("repaired: map {name}: 1 entry: ")), "{name}: {log}");
    }
    host.wait_ping(&first, "10.0.0.3");
}
