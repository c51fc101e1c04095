//! The environment of the cases: two network namespaces, a loaded object of its own, and its maps.
//! A lab serves one case at a time and is used again by the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use bytemuck::Pod;
use culvert::datapath::entry::{FdbEntry, LearnedEntry, PathMtu};
use culvert::datapath::{
    DatapathError, KernelTable, KernelTables, Options, Table, layout::MapLayout, load_object,
    load_other_object,
};
use culvert_common::{
    abi::{
        Counter, FdbKey, Flow, FlowKey, FlowShare, FragmentInfo, FragmentKey, HeldFragment,
        QuerierKey, RESERVED_ENTRIES, RateKey, STATS_ENTRIES, Sealed as _, VtepId, names,
        reserved_bit,
    },
    datapath::conntrack,
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, setns, unshare},
    unistd::{Pid, geteuid, gettid},
};

use crate::{
    interfaces::{CLIENT_LINK, GATEWAY_A, GATEWAY_B, Interface, PacketSocket, Wire},
    world,
};

/// A case: its name, and its function on a lab with [`world::fill`]'s state.
pub(crate) type Case = (&'static str, fn(&mut Lab));

/// Age after which a learned entry is no longer used: short, so that a machine
/// that has just started can show one that has aged.
pub(crate) const AGEING: Duration = Duration::from_secs(30);

/// Flows that conntrack has room for: few, so that a case can fill the table.
pub(crate) const MAX_FLOWS: u32 = 4096;

/// Share of one container in the ports towards a destination, in percent.
pub(crate) const PORT_SHARE: u32 = 50;

/// Unused labs.
static POOL: Mutex<Vec<Lab>> = Mutex::new(Vec::new());

/// Runs a case in a lab of its own.
pub(crate) fn with(case: fn(&mut Lab)) {
    counted_by(case);
}

/// Runs a case with programs that write trace lines (`--trace`).
pub(crate) fn with_trace(case: fn(&mut Lab)) {
    alone_with(|options| options.trace = true, case);
}

/// Runs a case in a lab that no other case uses.
pub(crate) fn alone(case: impl FnOnce(&mut Lab)) {
    alone_with(|_| {}, case);
}

/// As [`alone`], with options that `change` has changed.
pub(crate) fn alone_with(change: impl FnOnce(&mut Options), case: impl FnOnce(&mut Lab)) {
    let _home = Home::remember();
    let mut lab = Lab::new(change);
    lab.begin();
    case(&mut lab);
}

/// Runs a case in a lab of its own. Returns the indices of the counters that the case increased.
pub(crate) fn counted_by(case: fn(&mut Lab)) -> Vec<u32> {
    let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let _home = Home::remember();
    let mut lab = match pooled {
        Some(lab) => {
            setns(&lab.namespace, CloneFlags::CLONE_NEWNET).unwrap();
            lab
        }
        None => Lab::new(|_| {}),
    };
    lab.begin();
    case(&mut lab);
    let counted = lab.counted.clone();
    // A lab whose case failed is dropped.
    POOL.lock().unwrap_or_else(PoisonError::into_inner).push(lab);
    counted
}

/// Takes the thread back to its own namespace.
struct Home(File);

impl Home {
    fn remember() -> Self {
        Self(own_namespace())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = setns(&self.0, CloneFlags::CLONE_NEWNET);
    }
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Lets aya move any [`bytemuck::Pod`] in and out of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bytes<T>(pub(crate) T);

// SAFETY: `repr(transparent)` over a type without padding and without invalid
// bit patterns, which is what `bytemuck::Pod` asserts.
unsafe impl<T: Pod> aya::Pod for Bytes<T> {}

/// A map that the programs write.
pub(crate) struct Written<K, V>(HashMap<MapData, Bytes<K>, Bytes<V>>);

impl<K: Pod, V: Pod> Written<K, V> {
    fn take(ebpf: &mut Ebpf, name: &str) -> Self {
        Self(ebpf.take_map(name).unwrap().try_into().unwrap())
    }

    pub(crate) fn get(&self, key: K) -> Option<V> {
        self.0.get(&Bytes(key), 0).ok().map(|Bytes(value)| value)
    }

    pub(crate) fn set(&mut self, key: K, value: V) {
        self.0.insert(Bytes(key), Bytes(value), 0).unwrap();
    }

    pub(crate) fn keys(&self) -> Vec<K> {
        self.0.keys().map(|key| key.unwrap().0).collect()
    }

    /// Opens a second handle of a map that [`KernelTables`] holds, too.
    fn share(ebpf: &Ebpf, name: &str) -> Self {
        let map = MapData::from_id(map_id(ebpf, name)).unwrap();
        Self(Map::HashMap(map).try_into().unwrap())
    }

    pub(crate) fn remove(&mut self, key: K) {
        self.0.remove(&Bytes(key)).unwrap();
    }

    /// Removes an entry of an LRU map, which may already have evicted it.
    pub(crate) fn remove_if_present(&mut self, key: K) {
        let _ = self.0.remove(&Bytes(key));
    }

    fn clear(&mut self) {
        for key in self.keys() {
            self.0.remove(&Bytes(key)).unwrap();
        }
    }
}

/// Counters by index, summed over the CPUs.
pub(crate) type Counters = Vec<Counter>;

/// Namespaces, interfaces, programs, maps.
pub(crate) struct Lab {
    namespace: File,
    far_namespace: File,
    pub(crate) ebpf: Ebpf,
    pub(crate) tables: KernelTables,
    /// The map of the agent's FDB. A change through `tables` would advance the epoch.
    pub(crate) untold_fdb: Written<FdbKey, culvert_common::abi::FdbEntry>,
    pub(crate) queriers: Written<QuerierKey, u64>,
    pub(crate) rates: Written<RateKey, u64>,
    pub(crate) flows: Written<FlowKey, Flow>,
    flows_id: u32,
    pub(crate) fragments: Written<FragmentKey, FragmentInfo>,
    pub(crate) held: Written<FragmentKey, HeldFragment>,
    slots: Array<MapData, Bytes<FlowKey>>,
    pub(crate) shares: Written<u32, FlowShare>,
    /// What the programs remember of containers that were refused a flow: incarnation, and time in
    /// ns until which the searches for the container are short.
    refusals: PerCpuArray<MapData, Bytes<[u64; 2]>>,
    reserved: Array<MapData, u64>,
    /// Words of `reserved` that are not zero.
    reserved_words: BTreeSet<u32>,
    stats: PerCpuArray<MapData, Bytes<Counter>>,
    /// The counters as the last run left them.
    pub(crate) counters: Counters,
    wires: Vec<(Interface, Wire)>,
    serial: u64,
    /// Codes counted since the case began, as indices.
    pub(crate) counted: Vec<u32>,
}

impl Lab {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        assert!(geteuid().is_root(), "BPF programs: not permitted; run the tests as root");
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (far_namespace, wires) = interfaces();
        let mut options = Options {
            bpffs: std::path::PathBuf::new(),
            vtep_ip: world::OUR_VTEP.into(),
            vxlan_port: world::VXLAN_PORT,
            ageing: AGEING,
            max_flows: MAX_FLOWS,
            flow_share: 50,
            flow_timeouts: conntrack::default_timeouts(),
            nat_ports: (1024, 65535),
            port_share: PORT_SHARE,
            services: vec!["10.96.0.0/16".parse().unwrap()],
            denied: Vec::new(),
            ports_closed: true,
            trace: false,
        };
        change(&mut options);
        // `cargo xtask test --full mutants` looks for this message.
        let mut ebpf = object(&options)
            .unwrap_or_else(|error| panic!("the kernel refuses the programs: {error}"));
        let mut lab = Self {
            namespace: own_namespace(),
            far_namespace,
            flows: Written::share(&ebpf, names::FLOWS),
            flows_id: map_id(&ebpf, names::FLOWS),
            untold_fdb: Written::share(&ebpf, names::FDB),
            tables: KernelTables::take(&mut ebpf, world::OUR_VTEP.into()).unwrap(),
            queriers: Written::take(&mut ebpf, names::QUERIERS),
            rates: Written::take(&mut ebpf, names::RATES),
            fragments: Written::take(&mut ebpf, names::FRAGMENTS),
            held: Written::take(&mut ebpf, names::HELD_FRAGMENTS),
            shares: Written::take(&mut ebpf, names::FLOW_SHARES),
            refusals: ebpf.take_map("REFUSALS").unwrap().try_into().unwrap(),
            slots: ebpf.take_map(names::FLOW_SLOTS).unwrap().try_into().unwrap(),
            reserved: ebpf.take_map(names::RESERVED_PORTS).unwrap().try_into().unwrap(),
            reserved_words: BTreeSet::new(),
            stats: ebpf.take_map(names::STATS).unwrap().try_into().unwrap(),
            counters: Vec::new(),
            wires,
            serial: 0,
            counted: Vec::new(),
            ebpf,
        };
        lab.counters = lab.read_counters();
        lab
    }

    /// Puts every map into its first state.
    pub(crate) fn begin(&mut self) {
        // The kernel queues copies on the CPU that makes them. On one CPU a marker comes last.
        let mut here = CpuSet::new();
        here.set(sched_getcpu().unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &here).unwrap();

        clear(&self.tables.endpoints);
        clear(&self.tables.networks);
        clear(&self.tables.fdb);
        clear(&self.tables.neighbours);
        clear(&self.tables.vteps);
        clear(&self.tables.underlay);
        clear(&self.tables.flood_local);
        clear(&self.tables.flood_remote);
        clear(&self.tables.learned);
        clear(&self.tables.heard);
        clear(&self.tables.path_mtu);
        clear(&self.tables.path_hints);
        self.queriers.clear();
        self.rates.clear();
        clear(&self.tables.gateways);
        clear(&self.tables.published);
        clear(&self.tables.blocked);
        clear(&self.tables.host_addrs);
        clear(&self.tables.uplinks);
        clear(&self.tables.client_links);
        for prefix in self.tables.sources.dump().unwrap().keys() {
            self.tables.sources.remove(prefix).unwrap();
        }
        for prefix in self.tables.denied.dump().unwrap().keys() {
            self.tables.denied.remove(prefix).unwrap();
        }
        self.flows.clear();
        self.shares.clear();
        self.forget_refusals();
        self.fragments.clear();
        self.held.clear();
        for word in std::mem::take(&mut self.reserved_words) {
            self.reserved.set(word, 0, 0).unwrap();
        }
        // The kernel may still have sent frames for the previous case.
        self.drain();
        self.counters = self.read_counters();
        self.counted.clear();
        world::fill(&self.tables);
        world::fill_routing(&self.tables);
    }

    /// The programs forget which containers were refused a flow.
    fn forget_refusals(&mut self) {
        (0..self.refusals.len()).for_each(|index| self.set_refusal_at(index, [0; 2]));
    }

    fn set_refusal_at(&mut self, index: u32, refusal: [u64; 2]) {
        let on_all = PerCpuValues::try_from(vec![Bytes(refusal); nr_cpus().unwrap()]).unwrap();
        self.refusals.set(index, on_all, 0).unwrap();
    }

    /// Makes the searches for the container with the incarnation `owner` short until this time.
    pub(crate) fn set_refusal(&mut self, owner: u32, until_ns: u64) {
        self.set_refusal_at(owner % self.refusals.len(), [owner.into(), until_ns]);
    }

    /// The time in ns until which searches are short for this container, as for those with the same
    /// index, on the CPU of this thread ([`Self::begin`]). The programs run on no other.
    pub(crate) fn refused_until(&self, owner: u32) -> u64 {
        let on_all = self.refusals.get(&(owner % self.refusals.len()), 0).unwrap();
        let Bytes([_, until_ns]) = on_all[sched_getcpu().unwrap()];
        until_ns
    }

    /// A learned entry.
    pub(crate) fn learned(&self, key: FdbKey) -> Option<LearnedEntry> {
        self.tables.learned.dump().unwrap().get(&key).copied()
    }

    /// Writes a learned entry.
    pub(crate) fn set_learned(&self, key: FdbKey, entry: LearnedEntry) {
        self.tables.learned.insert(&key, &entry).unwrap();
    }

    /// Keys of the learned entries.
    pub(crate) fn learned_keys(&self) -> Vec<FdbKey> {
        self.tables.learned.dump().unwrap().into_keys().collect()
    }

    fn vtep_id(&self, vtep: [u8; 4]) -> VtepId {
        self.tables.vtep_ids().give(vtep).unwrap()
    }

    /// Writes a path MTU.
    pub(crate) fn set_path_mtu(&self, vtep: [u8; 4], expires_ns: u64, inner_mtu: u32) {
        self.tables.path_mtu.insert(&vtep, &PathMtu { expires_ns, inner_mtu }).unwrap();
    }

    /// The hints of smaller path MTUs.
    pub(crate) fn path_hints(&self) -> BTreeMap<[u8; 4], u32> {
        self.tables.path_hints.dump().unwrap()
    }

    /// Writes an entry of the agent's FDB without an advance of the epoch.
    pub(crate) fn set_untold(&mut self, key: FdbKey, FdbEntry { ifindex, vtep }: FdbEntry) {
        let vtep = self.vtep_id(vtep);
        let entry = culvert_common::abi::FdbEntry { ifindex, vtep, seal: 0 };
        self.untold_fdb.set(key, entry.sealed(&key));
    }

    /// Opens another handle of the flow table, for another thread.
    pub(crate) fn flows_again(&self) -> Written<FlowKey, Flow> {
        let map = MapData::from_id(self.flows_id).unwrap();
        Written(Map::HashMap(map).try_into().unwrap())
    }

    /// Keeps `port` of `protocol` for the host itself.
    pub(crate) fn reserve(&mut self, protocol: u8, port: u16) {
        let (word, bit) = reserved_bit(protocol, port).unwrap();
        let ports = self.reserved.get(&word, 0).unwrap() | bit;
        self.reserved.set(word, ports, 0).unwrap();
        self.reserved_words.insert(word);
    }

    /// Keeps every port for the host itself.
    pub(crate) fn reserve_all(&mut self) {
        for word in 0..RESERVED_ENTRIES {
            self.reserved.set(word, u64::MAX, 0).unwrap();
            self.reserved_words.insert(word);
        }
    }

    /// Puts a flow into the slot `index`. The programs examine slots to find flows to evict.
    pub(crate) fn set_slot(&mut self, index: u32, orig: FlowKey, flow: Flow) {
        self.flows.set(orig, Flow { slot: index + 1, ..flow });
        self.slots.set(index, Bytes(orig), 0).unwrap();
    }

    /// All counters, including unused indices.
    pub(crate) fn read_counters(&self) -> Counters {
        (0..STATS_ENTRIES)
            .map(|index| {
                let mut sum = Counter::default();
                for Bytes(counter) in self.stats.get(&index, 0).unwrap().iter() {
                    sum.packets += counter.packets;
                    sum.bytes += counter.bytes;
                }
                sum
            })
            .collect()
    }

    /// Frames sent by the interfaces since the last call.
    pub(crate) fn drain(&mut self) -> Vec<(Interface, Vec<u8>)> {
        self.serial += 1;
        let mut frames = Vec::new();
        for (interface, wire) in &self.wires {
            frames.extend(wire.drain(self.serial).into_iter().map(|frame| (*interface, frame)));
        }
        frames
    }

    /// Another socket on the far end of `interface`.
    pub(crate) fn far_socket(&self, interface: Interface) -> PacketSocket {
        self.in_far_namespace(|| PacketSocket::receiving(interface.far_ifindex()))
    }

    /// Does something in the namespace of the far ends.
    pub(crate) fn in_far_namespace<T>(&self, work: impl FnOnce() -> T) -> T {
        setns(&self.far_namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let done = work();
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
        done
    }

    pub(crate) fn wire(&self, interface: Interface) -> &Wire {
        self.wires.iter().find(|(at, _)| *at == interface).map(|(_, wire)| wire).unwrap()
    }
}

/// Loads the programs: those of the `culvert` library, or those in the file that
/// `CULVERT_TEST_OBJECT` names.
fn object(options: &Options) -> Result<Ebpf, DatapathError> {
    match std::env::var_os("CULVERT_TEST_OBJECT") {
        Some(path) => load_other_object(&std::fs::read(path).unwrap(), options),
        None => load_object(options, None),
    }
}

/// Id of a map in the kernel.
fn map_id(ebpf: &Ebpf, name: &str) -> u32 {
    let Some(Map::HashMap(map)) = ebpf.map(name) else { panic!("{name} is no hash map") };
    map.info().unwrap().id()
}

/// Empties a table.
fn clear<L: MapLayout>(table: &KernelTable<L>) {
    for key in table.dump().unwrap().keys() {
        table.remove(key).unwrap();
    }
}

/// Makes the veths between this thread's namespace, which is the host's, and a new one for the
/// containers and the underlay. Opens sockets on both ends. Returns the new namespace.
fn interfaces() -> (File, Vec<(Interface, Wire)>) {
    quiet();
    let (identify, identity) = mpsc::channel();
    let (proceed, go_on) = mpsc::channel::<()>();
    let far_side = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        quiet();
        identify.send(gettid()).unwrap();
        go_on.recv().unwrap();
        let up: String = Interface::ALL
            .iter()
            .map(|interface| format!("link set far-{} up\n", interface.name()))
            .collect();
        ip(&up);
        (
            own_namespace(),
            Interface::ALL.map(|interface| PacketSocket::receiving(interface.far_ifindex())),
        )
    });
    let far_thread = identity.recv().unwrap();
    let mut batch = String::from("link set lo up\n");
    for interface in Interface::ALL {
        let (name, index, far_index) =
            (interface.name(), interface.ifindex(), interface.far_ifindex());
        batch += &format!(
            "link add {name} index {index} mtu 9000 type veth \
             peer name far-{name} index {far_index} mtu 9000 netns {far_thread}\n\
             link set {name} up\n"
        );
    }
    batch += &devices();
    ip(&batch);
    // The agent has the same settings: it routes packets of containers, and accepts answers from
    // the host's own addresses on the loopback device. The kernel forwards nothing else.
    for setting in ["gwa/forwarding", "gwb/forwarding", "lo/accept_local", "lo/route_localnet"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{setting}"), "1").unwrap();
    }
    proceed.send(()).unwrap();
    let (far_namespace, far) = far_side.join().unwrap();
    let near = Interface::ALL.map(|interface| PacketSocket::sending(interface.ifindex()));
    let wires = far.into_iter().zip(near).map(|(far, near)| Wire { far, near });
    (far_namespace, Interface::ALL.into_iter().zip(wires).collect())
}

/// The gateway devices, and the uplink's addresses and routes.
fn devices() -> String {
    let [gateway_a, gateway_b, uplink, client] =
        [world::GATEWAY.mac, world::GATEWAY_OF_B.mac, world::UPLINK_MAC, world::US_TO_CLIENTS.mac]
            .map(mac);
    let [gateway, us, router, us_to_clients] =
        [world::GATEWAY.v4, world::OUR_VTEP, world::ROUTER, world::US_TO_CLIENTS.v4]
            .map(Ipv4Addr::from);
    let router_mac = mac(world::ROUTER_MAC);
    format!(
        "link add gwa index {GATEWAY_A} address {gateway_a} mtu 1450 type bridge\n\
         link set gwa arp off up\n\
         address add {gateway}/24 dev gwa\n\
         link add gwb index {GATEWAY_B} address {gateway_b} mtu 1450 type bridge\n\
         link set gwb arp off up\n\
         route add 10.200.0.0/24 dev gwb\n\
         link add client index {CLIENT_LINK} address {client} mtu 1500 type bridge\n\
         link set client up\n\
         address add {us_to_clients}/24 dev client\n\
         link set uplink address {uplink}\n\
         address add {us}/24 dev uplink\n\
         neigh replace {router} lladdr {router_mac} dev uplink nud permanent\n\
         route add default via {router} dev uplink\n"
    )
}

/// A MAC address as `ip` takes it.
pub(crate) fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Keeps the kernel from sending frames by itself in this namespace.
fn quiet() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
}

/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(batch: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip refused:\n{batch}");
}
