//! A host without a kernel, and agents on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use culvert_common::abi::{
    Code, Counter, DEFAULT_FLOWS, Direction, DropReason, EndpointInfo, FdbEntry, FdbKey,
    LearnedEntry, NeighEntry, NeighKey, PublishedEntry, PublishedKey, UnderlayPath,
};
use ipnetwork::IpNetwork;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

pub(super) use super::requests::{name, network, run};
use crate::{
    agent::{
        backend::Agent,
        conntrack::testing::MemoryFlows,
        containers::Containers,
        engine::{Engine, Periods},
        node,
        platform::{Holder, HostEvent, Paths, Platform, PlugError, PortError, PortHold},
        shared::Shared,
    },
    api::{
        Backend as _,
        types::{ApiError, ContainerRow, ErrorKind},
    },
    choice::{Uplink, device::Device},
    cli::{AgentOptions, ConntrackOptions, DatapathMode, DeviceMode, StoreAccess},
    datapath::{DatapathError, FlowTable, Price},
    model::{Driver, Name, Node, Protocol, ROOT, SCHEMA, View},
    reconcile::{Kernel, LocalEndpoint, Op, Tables},
    sandbox::GatewaySpec,
    store::{FileStore, FollowOptions, Follower, StateStore},
};

/// How long anything may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Short ones: nothing here is slow.
const PERIODS: Periods = Periods {
    retry: Duration::from_millis(20),
    anti_entropy: Duration::from_millis(100),
    ageing: Duration::from_millis(20),
};

/// What the paper host holds.
#[derive(Default)]
pub(super) struct State {
    pub(super) tables: Tables,
    /// Steps ever done.
    pub(super) ops: Vec<Op>,
    /// Veths: interface index by endpoint.
    pub(super) veths: BTreeMap<String, u32>,
    pub(super) attached: BTreeSet<u32>,
    /// Namespaces, with the interface names in each.
    pub(super) namespaces: BTreeMap<PathBuf, BTreeSet<String>>,
    pub(super) learned: BTreeMap<FdbKey, LearnedEntry>,
    /// What plugging is refused with.
    pub(super) refuse_plug: Option<PlugError>,
    /// Reads of maps fail.
    pub(super) blind: bool,
    pub(super) purged: bool,
    /// Gateway devices: interface index by VNI.
    pub(super) gateways: BTreeMap<u32, u32>,
    /// The program is on the loopback device.
    pub(super) loopback: bool,
    /// Routes of the host.
    pub(super) routes: Vec<IpNetwork>,
    /// Ports of the host that a process has, and which.
    pub(super) busy: BTreeMap<Port, Holder>,
    /// Ports of the host that the agent holds.
    pub(super) held: Arc<Mutex<BTreeSet<Port>>>,
    pub(super) dropped: BTreeMap<DropReason, u64>,
    next_ifindex: u32,
}

/// Address, port and protocol.
pub(super) type Port = (Ipv4Addr, u16, Protocol);

/// A port that is held until this is dropped.
struct Hold(Arc<Mutex<BTreeSet<Port>>>, Port);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.lock().unwrap().remove(&self.1);
    }
}

/// Where threads wait while it is closed, for a while at most: a test that fails must end.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    moved: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting: usize,
    passed: usize,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        let closed = |state: &mut GateState| state.closed;
        (state, _) = self.moved.wait_timeout_while(state, 3 * DEADLINE, closed).unwrap();
        state.waiting -= 1;
        state.passed += 1;
    }

    pub(super) fn close(&self, closed: bool) {
        self.state.lock().unwrap().closed = closed;
        self.moved.notify_all();
    }

    /// Threads that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }

    /// Threads that have passed.
    pub(super) fn passed(&self) -> usize {
        self.state.lock().unwrap().passed
    }
}

/// See [`State`].
pub(super) struct Paper {
    state: Mutex<State>,
    /// Whoever reads all maps passes it with what was read.
    pub(super) reads: Gate,
    /// Whoever looks for the holder of a port passes it.
    pub(super) lookups: Gate,
    pub(super) flows: MemoryFlows,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<HostEvent>>,
    tell: mpsc::UnboundedSender<HostEvent>,
}

impl Paper {
    pub(super) fn new() -> Arc<Self> {
        let (tell, events) = mpsc::unbounded_channel();
        Arc::new(Self {
            state: Mutex::new(State {
                next_ifindex: 100,
                routes: ["0.0.0.0/0", "10.0.0.0/24"].map(|route| route.parse().unwrap()).into(),
                ..State::default()
            }),
            reads: Gate::default(),
            lookups: Gate::default(),
            flows: MemoryFlows::new(DEFAULT_FLOWS),
            events: tokio::sync::Mutex::new(events),
            tell,
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn tell(&self, event: HostEvent) {
        self.tell.send(event).unwrap();
    }

    fn path_of(name: &Name) -> PathBuf {
        Path::new("/paper/netns").join(name.as_str())
    }

    fn read(&self) -> Result<Tables, DatapathError> {
        let state = self.state();
        if state.blind {
            return Err(DatapathError::Io {
                path: "/paper/map".into(),
                what: "read",
                source: std::io::Error::other("blind"),
            });
        }
        Ok(state.tables.clone())
    }

    fn holder(&self, port: Port) -> Holder {
        self.state().busy.get(&port).cloned().unwrap_or(Holder::Unseen)
    }
}

impl Kernel for Paper {
    type Error = DatapathError;

    fn dump(&self) -> Result<Tables, DatapathError> {
        let read = self.read();
        self.reads.pass();
        read
    }

    fn apply(&self, op: &Op) -> Result<(), DatapathError> {
        let mut state = self.state();
        op.apply_to(&mut state.tables);
        state.ops.push(*op);
        Ok(())
    }
}

#[async_trait]
impl Platform for Paper {
    async fn event(&self) -> Option<HostEvent> {
        self.events.lock().await.recv().await
    }

    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError> {
        Ok(self.state().veths.clone())
    }

    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<u32, PlugError> {
        let mut state = self.state();
        if let Some(error) = &state.refuse_plug {
            return Err(error.clone());
        }
        let netns = endpoint.sandbox.netns.clone();
        let Some(names) = state.namespaces.get_mut(&netns) else {
            return Err(PlugError::Absent(format!("{} is not there", netns.display())));
        };
        names.insert(endpoint.ifname.clone());
        state.next_ifindex += 1;
        let next = state.next_ifindex;
        let ifindex = *state.veths.entry(endpoint.id.clone()).or_insert(next);
        state.attached.insert(ifindex);
        Ok(ifindex)
    }

    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError> {
        let mut state = self.state();
        state.veths.remove(endpoint);
        if let Some(ifindex) = ifindex {
            state.attached.remove(&ifindex);
        }
        Ok(())
    }

    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError> {
        self.state().attached.retain(|ifindex| ifindexes.contains(ifindex));
        Ok(())
    }

    async fn gateways(&self) -> Result<BTreeMap<u32, u32>, PlugError> {
        Ok(self.state().gateways.clone())
    }

    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError> {
        let mut state = self.state();
        state.next_ifindex += 1;
        let next = state.next_ifindex;
        Ok(*state.gateways.entry(gateway.vni).or_insert(next))
    }

    async fn open_gateway(&self, _gateway: &GatewaySpec, _ifindex: u32) -> Result<(), PlugError> {
        Ok(())
    }

    async fn keep_gateways(&self, _vnis: &[u32]) -> Result<(), ApiError> {
        Ok(())
    }

    async fn unplug_gateway(&self, vni: u32, _ifindex: u32) -> Result<(), PlugError> {
        self.state().gateways.remove(&vni);
        Ok(())
    }

    async fn take_loopback(&self, take: bool) -> Result<(), PlugError> {
        self.state().loopback = take;
        Ok(())
    }

    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, u16>,
        _used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError> {
        let path = |(vtep, port): (&Ipv4Addr, &u16)| {
            let path = UnderlayPath {
                ifindex: 2,
                next_hop: vtep.octets(),
                port: *port,
                inner_mtu: 1450,
                next_hop_mac: [2; 6],
                uplink_mac: [4; 6],
            };
            (vtep.octets(), path)
        };
        Ok(Paths { paths: vteps.iter().map(path).collect(), problems: BTreeMap::new() })
    }

    async fn check_uplinks(&self) -> Vec<String> {
        Vec::new()
    }

    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>) {
        (Vec::new(), None)
    }

    fn device(&self) -> Device {
        Device { kind: crate::netlink::PairKind::Veth, reason: "there is no kernel".to_owned() }
    }

    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError> {
        Ok(match driver {
            Driver::Overlay => 1450,
            Driver::Bridge => 1500,
        })
    }

    fn hold_port(
        &self,
        ip: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    ) -> Result<PortHold, PortError> {
        if port < 100 {
            return Err(PortError::Denied { from: 100 });
        }
        if !(ip.is_unspecified() || ip.is_loopback()) {
            return Err(PortError::NoSuchAddress);
        }
        if self.holder((ip, port, protocol)) != Holder::Unseen {
            return Err(PortError::InUse);
        }
        let state = self.state();
        // What it holds itself is in its own way, too.
        if !state.held.lock().unwrap().insert((ip, port, protocol)) {
            return Err(PortError::InUse);
        }
        Ok(Box::new(Hold(Arc::clone(&state.held), (ip, port, protocol))))
    }

    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
        self.lookups.pass();
        self.holder((ip, port, protocol))
    }

    async fn port_holder_in(
        &self,
        _netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError> {
        Ok(self.port_holder(Ipv4Addr::UNSPECIFIED, port, protocol))
    }

    async fn routes(&self) -> Result<Vec<IpNetwork>, ApiError> {
        Ok(self.state().routes.clone())
    }

    async fn make_sandbox(&self, name: &Name) -> Result<PathBuf, ApiError> {
        let path = Self::path_of(name);
        let mut state = self.state();
        if state.namespaces.contains_key(&path) {
            return Err(ApiError::new(ErrorKind::Conflict, "sandbox exists already"));
        }
        state.namespaces.insert(path.clone(), BTreeSet::new());
        Ok(path)
    }

    async fn ensure_sandbox(&self, name: &Name, _running: Option<i32>) -> Result<(), ApiError> {
        self.state().namespaces.entry(Self::path_of(name)).or_default();
        Ok(())
    }

    fn sandbox_exists(&self, name: &Name) -> bool {
        self.state().namespaces.contains_key(&Self::path_of(name))
    }

    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        self.state().namespaces.remove(&Self::path_of(name));
        Ok(())
    }

    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<PathBuf, ApiError> {
        let path = netns.map_or_else(
            || PathBuf::from(format!("/proc/{}/ns/net", pid.unwrap_or_default())),
            Path::to_owned,
        );
        if self.state().namespaces.contains_key(&path) {
            Ok(path)
        } else {
            Err(ApiError::new(
                ErrorKind::NotFound,
                format!("{} does not exist: PATH is valid", path.display()),
            ))
        }
    }

    async fn choose_ifname(
        &self,
        netns: &Path,
        asked: Option<&str>,
        reserved: &[String],
    ) -> Result<String, ApiError> {
        let state = self.state();
        let taken = |name: &str| {
            state.namespaces.get(netns).is_some_and(|names| names.contains(name))
                || reserved.iter().any(|other| other == name)
        };
        match asked {
            Some(name) if taken(name) => {
                Err(ApiError::new(ErrorKind::Conflict, format!("interface name {name} is taken")))
            }
            Some(name) => Ok(name.to_owned()),
            None => Ok((0..).map(|n| format!("eth{n}")).find(|name| !taken(name)).unwrap()),
        }
    }

    fn ifname(&self, ifindex: u32) -> String {
        format!("if{ifindex}")
    }

    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError> {
        Ok(self.read()?.fdb)
    }

    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError> {
        Ok(self.state().learned.iter().map(|(key, entry)| (*key, *entry)).collect())
    }

    fn now_ns(&self) -> u64 {
        1_000_000_000_000
    }

    fn ageing(&self) -> Duration {
        Duration::from_secs(300)
    }

    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError> {
        self.state().learned.remove(key);
        Ok(())
    }

    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError> {
        Ok(self.read()?.neighbours)
    }

    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError> {
        Ok(self.read()?.underlay)
    }

    fn flows(&self) -> &dyn FlowTable {
        &self.flows
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError> {
        Ok(self.read()?.endpoints)
    }

    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError> {
        Ok(self.read()?.published)
    }

    fn dropped(&self, reason: DropReason) -> Result<u64, DatapathError> {
        Ok(self.state().dropped.get(&reason).copied().unwrap_or_default())
    }

    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        Ok(Vec::new())
    }

    async fn purge(&self) -> Result<(), ApiError> {
        let mut state = self.state();
        state.tables = Tables::default();
        state.purged = true;
        Ok(())
    }
}

/// An agent that runs.
pub(super) struct Running {
    pub(super) agent: Arc<Agent>,
    pub(super) shared: Arc<Shared>,
    pub(super) paper: Arc<Paper>,
    tasks: Vec<JoinHandle<()>>,
}

/// The store and the state directories of a test.
pub(super) struct World {
    pub(super) store: Arc<dyn StateStore>,
    pub(super) dir: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(&dir.path().join("store")).await.unwrap();
        Self { store: Arc::new(store), dir }
    }

    /// Starts agent `number` on a host that may have been used before.
    pub(super) async fn start(&self, number: u8, paper: &Arc<Paper>) -> Running {
        let running = self.prepare(number, paper, &format!("{number:064x}"));
        running.1.await.unwrap().unwrap();
        let mut running = running.0;
        let follower = Follower::spawn(Arc::clone(&self.store), FollowOptions::default());
        running.shared.watch_health(follower.health());
        let engine = Engine::new(Arc::clone(&running.shared), follower, PERIODS);
        running.tasks.push(tokio::spawn(engine.run()));
        running
    }

    /// An agent up to its entry in the store.
    pub(super) fn prepare(
        &self,
        number: u8,
        paper: &Arc<Paper>,
        id: &str,
    ) -> (Running, oneshot::Receiver<Result<(), String>>) {
        let state_dir = self.dir.path().join(format!("state{number}-{id}"));
        let node = Node {
            schema: SCHEMA,
            name: name(&format!("host{number}")),
            id: id.to_owned(),
            vtep: Ipv4Addr::new(192, 0, 2, number),
            port: 4789,
        };
        let options = AgentOptions {
            node: node.name.clone(),
            store: "file:/paper".to_owned(),
            store_access: StoreAccess::default(),
            store_timeout: None,
            uplinks: vec!["up0".to_owned()],
            vtep_ip: None,
            vxlan_port: 4789,
            datapath: DatapathMode::Auto,
            device: DeviceMode::Auto,
            socket: "/paper/socket".into(),
            state_dir: state_dir.clone(),
            bpffs: "/paper/bpf".into(),
            cleanup_on_exit: false,
            log: "info".to_owned(),
            trace: false,
            ageing: Duration::from_secs(300),
            conntrack: ConntrackOptions::default(),
        };
        let shared = Arc::new(Shared::new(
            options,
            node,
            vec!["up0".to_owned()],
            Arc::clone(paper) as Arc<dyn Platform>,
            Containers::load(&state_dir).unwrap(),
        ));
        let (entered, entry) = oneshot::channel();
        let keeper = node::keep(Arc::clone(&shared), Arc::clone(&self.store), entered);
        let tasks = vec![tokio::spawn(keeper)];
        shared.set_store(Arc::clone(&self.store));
        let agent = Arc::new(Agent::new(Arc::clone(&shared)));
        (Running { agent, shared, paper: Arc::clone(paper), tasks }, entry)
    }
}

impl Running {
    /// Waits until the first snapshot is in the kernel.
    pub(super) async fn ready(self) -> Self {
        assert!(tokio::time::timeout(DEADLINE, self.shared.wait_ready()).await.unwrap());
        self
    }

    /// Ends the agent as a signal does; the host stays as it is.
    pub(super) async fn stop(self) {
        self.shared.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    pub(super) async fn network(&self, request: &str) -> Result<String, ApiError> {
        self.agent.network_create(network(request)).await.map(|created| created.id)
    }

    pub(super) async fn run(
        &self,
        container: &str,
        network: &str,
    ) -> Result<ContainerRow, ApiError> {
        self.agent.container_create(run(container, network)).await
    }

    /// Waits for something to be true of the paper host.
    pub(super) async fn eventually(&self, what: &str, condition: impl Fn(&State) -> bool) {
        eventually(what, || async { condition(&self.paper.state()) }).await;
    }
}

/// Waits until `condition` holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not so within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What the store holds.
pub(super) async fn stored(world: &World) -> View {
    View::from_snapshot(&world.store.snapshot(ROOT).await.unwrap())
}

/// Two hosts with one network, which is 10.0.1.0/24: 10.0.0.0/24 is routed already.
pub(super) async fn two_hosts(world: &World) -> (Running, Running) {
    let one = world.start(1, &Paper::new()).await.ready().await;
    let two = world.start(2, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    (one, two)
}
