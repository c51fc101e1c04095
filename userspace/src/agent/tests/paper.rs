//! A simulated host, without a kernel.

mod devices;
mod maps;
mod ports;
mod underlay;

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

use crate::datapath::entry::{LearnedEntry, PathMtu};
use async_trait::async_trait;
use culvert_common::abi::{DEFAULT_FLOWS, DropReason, FdbKey, HeardEntry, NeighKey};
use ipnetwork::{IpNetwork, Ipv4Network};
use tokio::sync::mpsc;

pub(super) use self::ports::Port;
use super::gate::Gate;
use crate::{
    agent::{
        conntrack::testing::MemoryFlows,
        containers::Process,
        platform::{
            ClientLinks, Commands, FoundSupervisor, Holder, HostEvent, Launch, NodeFacts,
            OtherLinks, PlugError, Wanted,
        },
    },
    api::types::ApiError,
    datapath::{Changes, DatapathError, Found},
    model::{HostRoute, Name, NetnsId},
    netfilter::Rules,
    netlink::Announcement,
    probe::{Answer, PathProbe},
    reconcile::{Kernel, LocalEndpoint, Op, Tables},
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
    /// Error of every attempt to make a missing sandbox.
    pub(super) refuse_revival: Option<ApiError>,
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
            next_hops: self.next_hop.filter(|_| to.prefix() == 0).into_iter().collect(),
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
    /// Gate before a port is let go.
    pub(super) closes: Arc<Gate>,
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
            closes: Arc::default(),
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
