//! A simulated host, without a kernel.

mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::datapath::entry::{FdbEntry, LearnedEntry, NeighEntry, PathMtu, UnderlayPath};
use async_trait::async_trait;
use culvert_common::abi::{
    Code, Counter, DEFAULT_FLOWS, Direction, DropReason, EndpointInfo, FdbKey, HeardEntry,
    MappedAddr, NeighKey, PublishedEntry, PublishedKey,
};
use ipnetwork::{IpNetwork, Ipv4Network};
use tokio::sync::mpsc;

pub(super) use self::ports::Port;
use super::gate::Gate;
use crate::{
    agent::{
        conntrack::testing::MemoryFlows,
        containers::Process,
        platform::{
            Adopted, Audit, ClientLinks, Commands, Devices, FoundSupervisor, Holder, HostEvent,
            Launch, Made, Maps, NodeFacts, OtherLinks, Paths, PlugError, PluggedPair, Remote,
            Underlay, UplinkCheck, UplinkChoice, UplinkFault, Wanted,
        },
    },
    api::types::{ApiError, ErrorKind},
    choice::{Uplink, device::Device},
    datapath::{Changes, DatapathError, FlowTable, Found, PinCheck, Price, Repaired},
    model::{Driver, HostRoute, Name, NetnsId, SandboxRef, bars_gateway, validate},
    netfilter::Rules,
    netlink::{Announcement, PairKind, subnet_of},
    probe::{Answer, Answers, PathProbe},
    reconcile::{Kernel, LocalEndpoint, Op, Tables},
    sandbox::{GatewaySpec, RESOLV_CONF, Resolver},
};

/// Time that a step of a test may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Identity of every namespace that Culvert makes on a simulated host.
pub(super) const NETNS: NetnsId = NetnsId { dev: 4, ino: 4_026_532_300 };

/// State of the simulated host.
#[derive(Default)]
pub(super) struct State {
    pub(super) tables: Tables,
    /// All steps that were carried out.
    pub(super) ops: Vec<Op>,
    /// Veths: interface index by endpoint.
    pub(super) veths: BTreeMap<String, u32>,
    pub(super) attached: BTreeSet<u32>,
    /// Gateway devices that were gone, and from which the program was detached.
    pub(super) left: BTreeSet<u32>,
    /// Namespaces, with the interface names in each.
    pub(super) namespaces: BTreeMap<PathBuf, BTreeSet<String>>,
    /// Those of them that another program has made.
    pub(super) foreign: BTreeSet<PathBuf>,
    pub(super) learned: BTreeMap<FdbKey, LearnedEntry>,
    pub(super) heard: BTreeMap<NeighKey, HeardEntry>,
    /// Announcements to containers fail.
    pub(super) mute: bool,
    /// Announcements that were sent to containers.
    pub(super) announced: Vec<Announcement>,
    /// The last wanted state of each endpoint that was plugged.
    pub(super) wanted: BTreeMap<String, LocalEndpoint>,
    /// Error of every attempt to plug.
    pub(super) refuse_plug: Option<PlugError>,
    /// Error of every removal of a sandbox.
    pub(super) refuse_removal: Option<ApiError>,
    /// Error of every attempt to unplug.
    pub(super) refuse_unplug: Option<PlugError>,
    /// Number of reads of a map for the output of a command.
    pub(super) shown: usize,
    /// Reads of maps fail.
    pub(super) blind: bool,
    /// Writes to maps fail.
    pub(super) full: bool,
    pub(super) purged: bool,
    /// Gateway devices: interface index by VNI.
    pub(super) gateways: BTreeMap<u32, u32>,
    /// The program is on the loopback device.
    pub(super) loopback: bool,
    /// Routes of the host, all by `up0`.
    pub(super) routes: Vec<IpNetwork>,
    /// Next hop of the routes to everything.
    pub(super) next_hop: Option<IpAddr>,
    /// The interface of the default route. Its first address is the VTEP address of the agent.
    pub(super) default_link: Option<String>,
    /// The uplink has lost its address.
    pub(super) vtep_lost: bool,
    /// Subnets to which gateway devices have routes, by VNI.
    pub(super) routed: BTreeMap<u32, IpNetwork>,
    /// Addresses of the host.
    pub(super) facts: NodeFacts,
    pub(super) other_links: OtherLinks,
    pub(super) client_links: ClientLinks,
    /// Number of reads of them.
    pub(super) client_links_read: usize,
    /// Number of looks at containers' devices and at uplinks.
    pub(super) looks: usize,
    /// Error of every look at containers' devices.
    pub(super) refuse_looks: Option<PlugError>,
    /// What differs in a container's device, by interface index; found once.
    pub(super) changed: BTreeMap<u32, String>,
    /// An endpoint that is plugged again loses its entry in `changed`, so that nobody finds it.
    pub(super) plugs_put_right: bool,
    /// What differs in the sandbox, by endpoint, until it is plugged. That tells of a change as well.
    pub(super) inside: BTreeMap<String, String>,
    /// What cannot be put right in a container's device, by interface index.
    pub(super) stuck: BTreeMap<u32, String>,
    /// Programs that another program has detached; found once.
    pub(super) detached: Changes,
    /// Pins of other objects, which are seen only when the pins are opened; found once.
    pub(super) exchanged: Changes,
    /// Entries that another program has changed in the maps that are not in `tables`; found once.
    pub(super) found: Found,
    /// Ports of the host that are in use, with the holder.
    pub(super) busy: BTreeMap<Port, Holder>,
    /// Ports of the host that the agent holds.
    pub(super) held: Arc<Mutex<BTreeSet<Port>>>,
    /// Number of ports for which there are open files. `None`: without limit.
    pub(super) files: Option<usize>,
    /// Ports that the host chooses for its own connections, first and last.
    pub(super) own_ports: Option<(u16, u16)>,
    /// The host's netfilter tracks connections.
    pub(super) netfilter: bool,
    /// Rules of the host's netfilter.
    pub(super) rules: Rules,
    pub(super) dropped: BTreeMap<DropReason, u64>,
    /// Clients that may not use published ports.
    pub(super) denied: BTreeSet<Ipv4Network>,
    /// The map of denied clients takes no entry.
    pub(super) deny_nobody: bool,
    /// The host's resolv.conf.
    pub(super) resolv_conf: String,
    /// Supervisors that the agent has started. They do nothing.
    pub(super) launched: Vec<Launch>,
    /// Error of every start of a supervisor.
    pub(super) refuse_launch: Option<String>,
    /// Processes that are no children of supervisors.
    pub(super) strangers: BTreeSet<i32>,
    /// The containers of each search for supervisors.
    pub(super) searched: Vec<BTreeSet<Name>>,
    /// Error of every search for supervisors.
    pub(super) refuse_search: Option<ApiError>,
    /// Supervisors that run, by container.
    pub(super) supervisors: BTreeMap<Name, FoundSupervisor>,
    /// Hints of path MTUs that the programs have noted.
    pub(super) path_hints: BTreeMap<[u8; 4], u32>,
    pub(super) path_mtus: BTreeMap<[u8; 4], PathMtu>,
    /// Number of writes of path MTUs.
    pub(super) path_mtu_writes: usize,
    /// Probes that were sent.
    pub(super) probes: Vec<PathProbe>,
    /// Answers to the probes to a VTEP. Nobody answers the others.
    pub(super) answers: BTreeMap<[u8; 4], Answer>,
    next_ifindex: u32,
}

impl State {
    /// The host's routes, except those through gateway devices.
    fn host_routes(&self) -> Vec<HostRoute> {
        let route = |to: &IpNetwork| HostRoute {
            destination: *to,
            device: "up0".to_owned(),
            next_hop: self.next_hop.filter(|_| to.prefix() == 0),
        };
        self.routes.iter().map(route).collect()
    }
}

/// A simulated host, see [`State`].
pub(super) struct Paper {
    state: Mutex<State>,
    /// Gate after a read of all maps, before the result is returned.
    pub(super) reads: Gate,
    /// Gate of the search for the holder of a port.
    pub(super) lookups: Gate,
    /// Gate before a port is held.
    pub(super) holds: Gate,
    /// Gate before a device pair is made.
    pub(super) plugging: Gate,
    /// Gate before the start of a supervisor has ended.
    pub(super) launching: Gate,
    /// Gate of the repair of attachments.
    pub(super) repairing: Gate,
    pub(super) flows: MemoryFlows,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<HostEvent>>,
    tell: mpsc::UnboundedSender<HostEvent>,
    /// Number of events that the engine has taken.
    taken: AtomicUsize,
}

impl Paper {
    pub(super) fn new() -> Arc<Self> {
        let (tell, events) = mpsc::unbounded_channel();
        Arc::new(Self {
            state: Mutex::new(State {
                next_ifindex: 100,
                facts: NodeFacts {
                    ips: (1..=254).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect(),
                    mtu: Some(1500),
                    ..NodeFacts::default()
                },
                resolv_conf: "nameserver 192.0.2.53\n".to_owned(),
                routes: ["0.0.0.0/0", "10.0.0.0/24"].map(|route| route.parse().unwrap()).into(),
                default_link: Some("up0".to_owned()),
                ..State::default()
            }),
            reads: Gate::default(),
            lookups: Gate::default(),
            holds: Gate::default(),
            plugging: Gate::default(),
            launching: Gate::default(),
            repairing: Gate::default(),
            flows: MemoryFlows::new(DEFAULT_FLOWS),
            events: tokio::sync::Mutex::new(events),
            tell,
            taken: AtomicUsize::new(0),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn tell(&self, event: HostEvent) {
        self.tell.send(event).unwrap();
    }

    /// Number of events that the engine has taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
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
}

/// The error of a write to a map that is full.
fn full() -> DatapathError {
    DatapathError::Io {
        path: "/paper/map".into(),
        what: "write",
        source: std::io::Error::other("full"),
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
        if state.full {
            return Err(full());
        }
        op.apply_to(&mut state.tables);
        state.ops.push(*op);
        Ok(())
    }
}

#[async_trait]
impl Commands for Paper {
    async fn supervise(&self, launch: &Launch) -> Result<(), String> {
        self.state().launched.push(launch.clone());
        tokio::task::block_in_place(|| self.launching.pass());
        let state = self.state();
        state.refuse_launch.clone().map_or(Ok(()), Err)
    }

    fn command_of(&self, _supervisor: i32, pid: i32) -> std::io::Result<Option<Process>> {
        if self.state().strangers.contains(&pid) { Ok(None) } else { Process::find(pid) }
    }

    async fn supervised(
        &self,
        wanted: Vec<Wanted>,
        _logs: &Path,
    ) -> Result<BTreeMap<Name, FoundSupervisor>, ApiError> {
        let mut state = self.state();
        state.searched.push(wanted.iter().map(|wanted| wanted.name.clone()).collect());
        if let Some(error) = &state.refuse_search {
            return Err(error.clone());
        }
        let found = wanted.into_iter().filter_map(|wanted| {
            let found = state.supervisors.get(&wanted.name)?.clone();
            Some((wanted.name, found))
        });
        Ok(found.collect())
    }
}

#[async_trait]
impl Devices for Paper {
    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError> {
        Ok(self.state().veths.clone())
    }

    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<PluggedPair, PlugError> {
        tokio::task::block_in_place(|| self.plugging.pass());
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
        if state.plugs_put_right {
            state.changed.remove(&ifindex);
        }
        state.wanted.insert(endpoint.id.clone(), endpoint.clone());
        let found = state.inside.remove(&endpoint.id);
        if found.is_some() {
            self.tell(HostEvent::Sandbox([endpoint.id.clone()].into()));
        }
        Ok(PluggedPair { ifindex, found })
    }

    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError> {
        let mut state = self.state();
        if let Some(error) = &state.refuse_unplug {
            return Err(error.clone());
        }
        state.veths.remove(endpoint);
        if let Some(ifindex) = ifindex {
            state.attached.remove(&ifindex);
        }
        Ok(())
    }

    async fn announce(&self, announcements: Vec<Announcement>) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.mute {
            return Err(PlugError::Refused(ErrorKind::Internal, "mute".to_owned()));
        }
        state.announced.extend(announcements);
        Ok(())
    }

    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError> {
        self.state().attached.retain(|ifindex| ifindexes.contains(ifindex));
        Ok(())
    }

    async fn gateways(&self) -> Result<BTreeMap<u32, u32>, PlugError> {
        Ok(self.state().gateways.clone())
    }

    async fn bare_gateways(&self) -> Result<BTreeSet<u32>, PlugError> {
        let state = self.state();
        let bare = state.gateways.keys().filter(|vni| !state.routed.contains_key(*vni));
        Ok(bare.copied().collect())
    }

    async fn leads_into(&self, endpoint: &str, netns: &Path) -> bool {
        let state = self.state();
        state.veths.contains_key(endpoint)
            && state.namespaces.contains_key(netns)
            && !state.foreign.contains(netns)
    }

    async fn forget_rules(&self, _sandbox: &SandboxRef) -> Result<(), PlugError> {
        Ok(())
    }

    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError> {
        let mut state = self.state();
        state.next_ifindex += 1;
        let next = state.next_ifindex;
        Ok(*state.gateways.entry(gateway.vni).or_insert(next))
    }

    async fn open_gateway(&self, gateway: &GatewaySpec, _ifindex: u32) -> Result<(), PlugError> {
        let mut state = self.state();
        let has_route = state.routed.contains_key(&gateway.vni);
        let excluded = |address: &IpNetwork| {
            let mut routes = state.host_routes();
            routes.retain(|HostRoute { destination, next_hop, .. }| {
                bars_gateway((*destination, *next_hop), *address, has_route)
            });
            routes.first().map(|route| route.destination)
        };
        if let Some(route) = gateway.address.as_ref().and_then(excluded) {
            state.routed.remove(&gateway.vni);
            let line = format!("this host has a route to {route} by up0");
            return Err(PlugError::Refused(ErrorKind::Conflict, line));
        }
        match gateway.address {
            Some(address) => drop(state.routed.insert(gateway.vni, subnet_of(address))),
            None => drop(state.routed.remove(&gateway.vni)),
        }
        Ok(())
    }

    async fn keep_settings(
        &self,
        _vnis: &[u32],
        _endpoints: &[String],
        _loopback: bool,
    ) -> Repaired {
        Repaired::default()
    }

    async fn gateways_differ(
        &self,
        _gateways: &[GatewaySpec],
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        Ok(BTreeMap::new())
    }

    async fn host_sides_differ(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        let mut state = self.state();
        state.looks += 1;
        if let Some(error) = &state.refuse_looks {
            return Err(error.clone());
        }
        let found = mtus.keys().filter_map(|ifindex| state.changed.remove_entry(ifindex));
        Ok(found.collect())
    }

    fn host_side_problem(&self, ifindex: u32) -> Option<String> {
        self.state().stuck.get(&ifindex).cloned()
    }

    fn repair_pins(&self, check: PinCheck) -> Repaired {
        let found = match check {
            PinCheck::Files => Changes::default(),
            PinCheck::Objects => std::mem::take(&mut self.state().exchanged),
        };
        Repaired { found, failed: None }
    }

    fn repair_links(&self, _check: PinCheck) -> Repaired {
        self.repairing.pass();
        Repaired { found: std::mem::take(&mut self.state().detached), failed: None }
    }

    fn detach_gateway(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.state().left.insert(ifindex);
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

    fn sandbox_path(&self, name: &Name) -> PathBuf {
        Self::path_of(name)
    }

    async fn make_sandbox(&self, name: &Name, made: Made) -> Result<PathBuf, ApiError> {
        let path = Self::path_of(name);
        let mut state = self.state();
        if state.namespaces.contains_key(&path) {
            return Err(ApiError::new(ErrorKind::Conflict, "sandbox exists already"));
        }
        made(NETNS).map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        state.namespaces.insert(path.clone(), BTreeSet::new());
        Ok(path)
    }

    async fn ensure_sandbox(&self, name: &Name, _running: Option<i32>) -> Result<(), ApiError> {
        self.state().namespaces.entry(Self::path_of(name)).or_default();
        Ok(())
    }

    fn sandbox_id(&self, name: &Name) -> Option<NetnsId> {
        let (path, state) = (Self::path_of(name), self.state());
        let ino = if state.foreign.contains(&path) { NETNS.ino + 1 } else { NETNS.ino };
        state.namespaces.contains_key(&path).then_some(NetnsId { ino, ..NETNS })
    }

    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        if let Some(error) = &self.state().refuse_removal {
            return Err(error.clone());
        }
        self.state().namespaces.remove(&Self::path_of(name));
        Ok(())
    }

    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<Adopted, ApiError> {
        let path = netns.map_or_else(
            || PathBuf::from(format!("/proc/{}/ns/net", pid.unwrap_or_default())),
            Path::to_owned,
        );
        if self.state().namespaces.contains_key(&path) {
            Ok(Adopted { path, through: None })
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

    fn resolver(&self) -> Resolver {
        let text = self.state().resolv_conf.clone();
        Resolver::choose(|path| (path == RESOLV_CONF).then(|| text.clone()))
    }

    async fn purge(&self) -> Result<(), ApiError> {
        let mut state = self.state();
        state.tables = Tables::default();
        state.purged = true;
        Ok(())
    }
}

impl Maps for Paper {
    fn audit(&self) -> Audit {
        Audit { found: std::mem::take(&mut self.state().found), problems: Vec::new() }
    }

    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError> {
        self.state().shown += 1;
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
        self.state().shown += 1;
        Ok(self.read()?.neighbours)
    }

    fn heard(&self) -> Result<Vec<(NeighKey, HeardEntry)>, DatapathError> {
        Ok(self.state().heard.iter().map(|(key, entry)| (*key, *entry)).collect())
    }

    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError> {
        Ok(self.read()?.underlay)
    }

    fn take_path_hints(&self) -> Result<BTreeMap<[u8; 4], u32>, DatapathError> {
        Ok(std::mem::take(&mut self.state().path_hints))
    }

    fn path_mtus(&self) -> Result<BTreeMap<[u8; 4], PathMtu>, DatapathError> {
        Ok(self.state().path_mtus.clone())
    }

    fn set_path_mtus(&self, entries: &[([u8; 4], PathMtu)]) -> Result<(), DatapathError> {
        let mut state = self.state();
        if state.full {
            return Err(full());
        }
        state.path_mtu_writes += usize::from(!entries.is_empty());
        state.path_mtus.extend(entries.iter().copied());
        Ok(())
    }

    fn forget_path_mtu(&self, vtep: [u8; 4]) -> Result<(), DatapathError> {
        self.state().path_mtus.remove(&vtep);
        Ok(())
    }

    fn flows(&self) -> &dyn FlowTable {
        &self.flows
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError> {
        Ok(self.read()?.endpoints)
    }

    fn host_addresses(&self) -> Result<BTreeSet<MappedAddr>, DatapathError> {
        let v4 = |ip: Ipv4Addr| MappedAddr::v4(ip.octets());
        // The flows of the tests are masqueraded as this one.
        let masquerade = Ipv4Addr::new(198, 51, 100, 1);
        Ok(self.state().facts.ips.iter().copied().chain([masquerade]).map(v4).collect())
    }

    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError> {
        Ok(self.read()?.published)
    }

    fn deny(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        let mut state = self.state();
        if state.deny_nobody {
            return Err(full());
        }
        state.denied.insert(source);
        Ok(())
    }

    fn allow(&self, source: Ipv4Network) -> Result<(), DatapathError> {
        self.state().denied.remove(&source);
        Ok(())
    }

    fn packets(&self, code: Code) -> Result<u64, DatapathError> {
        let Code::Drop(reason) = code else { return Ok(0) };
        Ok(self.state().dropped.get(&reason).copied().unwrap_or_default())
    }

    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Underlay for Paper {
    async fn event(&self) -> Option<HostEvent> {
        let event = self.events.lock().await.recv().await;
        self.taken.fetch_add(1, Ordering::Relaxed);
        event
    }

    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, Remote>,
        _used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError> {
        let path = |(vtep, remote): (&Ipv4Addr, &Remote)| {
            let path = UnderlayPath {
                ifindex: 2,
                next_hop: vtep.octets(),
                port: remote.port,
                inner_mtu: 1450,
                next_hop_mac: [2; 6],
                uplink_mac: [4; 6],
            };
            (vtep.octets(), path)
        };
        Ok(Paths { paths: vteps.iter().map(path).collect(), problems: BTreeMap::new() })
    }

    async fn probe(&self, probes: Vec<PathProbe>, answers: Answers) -> Result<(), ApiError> {
        let mut state = self.state();
        for probe in &probes {
            let answer = state.answers.get(&probe.to.ip().octets()).cloned();
            let _ = answers.send((*probe, answer.unwrap_or(Answer::Silent)));
        }
        state.probes.extend(probes);
        Ok(())
    }

    async fn check_uplinks(&self) -> UplinkCheck {
        self.state().looks += 1;
        UplinkCheck::default()
    }

    async fn keep_client_links(&self, _publishes: bool) -> Vec<String> {
        Vec::new()
    }

    fn client_links(&self) -> ClientLinks {
        let mut state = self.state();
        state.client_links_read += 1;
        state.client_links.clone()
    }

    async fn other_links(&self) -> Result<OtherLinks, ApiError> {
        Ok(self.state().other_links.clone())
    }

    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>) {
        (Vec::new(), None)
    }

    fn shares_port(&self) -> bool {
        false
    }

    fn device(&self) -> Device {
        Device { kind: PairKind::Veth, reason: "there is no kernel".to_owned() }
    }

    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError> {
        Ok(match driver {
            Driver::Overlay => 1450,
            Driver::Bridge => 1500,
        })
    }

    async fn routes(&self) -> Result<Vec<HostRoute>, ApiError> {
        Ok(self.state().host_routes())
    }

    async fn routes_into(&self, subnets: &[IpNetwork]) -> Result<Vec<HostRoute>, ApiError> {
        let mut routes = self.routes().await?;
        let leads_into = |to| subnets.iter().any(|subnet| validate::overlap(*subnet, to));
        let has_hop =
            |route: &HostRoute| subnets.iter().any(|subnet| route.hop_in(*subnet).is_some());
        routes
            .retain(|route| (route.is_taken() && leads_into(route.destination)) || has_hop(route));
        Ok(routes)
    }

    async fn choose_uplinks(
        &self,
        given: &[String],
        vtep_ip: Option<Ipv4Addr>,
    ) -> Result<UplinkChoice, ApiError> {
        let default = self.state().default_link.clone();
        let uplinks: Vec<String> =
            if given.is_empty() { default.iter().cloned().collect() } else { given.to_vec() };
        let vtep = vtep_ip.unwrap_or(Ipv4Addr::new(192, 0, 2, 1));
        let chosen = if uplinks.is_empty() {
            Err(UplinkFault::Absent("no default route tells the uplink".to_owned()))
        } else {
            Ok((uplinks, vtep))
        };
        let lost = self.state().vtep_lost;
        let addresses = if lost { Vec::new() } else { vec![Ipv4Addr::new(192, 0, 2, 1)] };
        Ok(UplinkChoice { addresses, default, chosen })
    }

    async fn facts(&self) -> Result<NodeFacts, ApiError> {
        Ok(self.state().facts.clone())
    }

    fn ifname(&self, ifindex: u32) -> String {
        format!("if{ifindex}")
    }
}
