//! Values and errors of the platform traits.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnetwork::IpNetwork;

use crate::datapath::entry::UnderlayPath;

use crate::{
    agent::containers::{Origin, Process, Record},
    api::types::{ApiError, ErrorKind},
    model::{Name, NetnsId, Node},
    sandbox::{SuperviseSpec, Surroundings},
};

/// Why a device could not be made, changed or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugError {
    /// The sandbox is not Culvert's, and does not exist now. The engine tries again until it
    /// exists.
    Absent(String),
    /// The host has a route of its own to addresses of the network: the error on one line. The
    /// engine also tries again when routes, addresses or interfaces of the host have changed.
    Covers(String),
    /// The operation failed: class of the error, and the error on one line.
    Refused(ErrorKind, String),
}

impl PlugError {
    /// The error on one line.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Absent(message) | Self::Covers(message) | Self::Refused(_, message) => message,
        }
    }
}

impl From<PlugError> for ApiError {
    fn from(error: PlugError) -> Self {
        match error {
            PlugError::Absent(message) => Self::new(ErrorKind::NotFound, message),
            PlugError::Covers(message) => Self::new(ErrorKind::Conflict, message),
            PlugError::Refused(kind, message) => Self::new(kind, message),
        }
    }
}

impl From<ApiError> for PlugError {
    fn from(error: ApiError) -> Self {
        Self::Refused(error.kind, error.message)
    }
}

/// A device pair that was plugged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluggedPair {
    /// Interface index of the host side.
    pub(crate) ifindex: u32,
    /// The interface in the sandbox, and what others had changed about it, on one line. `None`:
    /// nothing, or the wanted state is a new one.
    pub(crate) found: Option<String>,
}

/// A namespace that another program made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adopted {
    /// Path.
    pub(crate) path: PathBuf,
    /// If the path leads through a process: that process's number, and the namespace that it is in.
    pub(crate) through: Option<(i32, NetnsId)>,
}

/// A supervisor to start.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// What it runs.
    pub(crate) spec: SuperviseSpec,
    /// What it gets in place of the agent's own.
    pub(crate) surroundings: Surroundings,
    /// Socket of the agent that it reports to.
    pub(crate) socket: PathBuf,
}

/// A container whose supervisor is looked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) name: Name,
    /// Its identifier, if it has one.
    pub(crate) id: Option<String>,
    /// Its namespace. `None`: the host's.
    pub(crate) netns: Option<PathBuf>,
}

impl Wanted {
    /// That of a container. `None`: commands in another program's namespace are not Culvert's.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        (record.origin != Origin::Attached).then(|| Self {
            name: record.name.clone(),
            id: record.id.clone(),
            netns: (record.origin != Origin::Host).then(|| record.netns.clone()),
        })
    }
}

/// A supervisor that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundSupervisor {
    /// Its process.
    pub(crate) supervisor: Process,
    /// Its command, if that runs.
    pub(crate) process: Option<Process>,
    /// The command is detached: its output goes to a log.
    pub(crate) detached: bool,
}

/// Notes the identity of a namespace that is being made.
pub(crate) type Made = Box<dyn FnOnce(NetnsId) -> io::Result<()> + Send>;

/// A port of the host, held until this value is dropped.
pub(crate) type PortHold = Box<dyn Any + Send>;

/// Open files of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// Number of files that the agent may open for ports: some are left for its other work.
    pub(crate) spare: usize,
    /// The limit with its value, as text for an error.
    pub(crate) limit: String,
}

/// Why a port of the host cannot be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortError {
    /// A socket has it.
    InUse,
    /// The agent has no privilege for the port.
    Denied {
        /// The first port that needs no privilege: `net.ipv4.ip_unprivileged_port_start`.
        from: u16,
    },
    /// The host does not have the address.
    NoSuchAddress,
    /// No file is left for it: the limit, as text.
    NoFiles(String),
    /// Another error, as text.
    Other(String),
}

/// Holder of a port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process.
    Process {
        /// Its name, at most 15 bytes (`comm` of proc(5)).
        name: String,
        /// Process number.
        pid: i32,
    },
    /// A connection without a process, as in TIME_WAIT.
    Ending,
    /// No holder that the agent can see.
    Unseen,
}

/// What the store says of a VTEP besides its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// VXLAN port.
    pub(crate) port: u16,
    /// Least MTU of its uplinks, in bytes, if it is known.
    pub(crate) mtu: Option<u16>,
}

/// What other hosts must know of this one, and may change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// IPv4 addresses of the first uplink, in the kernel's order.
    pub(crate) uplink_ips: Vec<Ipv4Addr>,
    /// All IPv4 addresses.
    pub(crate) ips: BTreeSet<Ipv4Addr>,
    /// Subnets that the interfaces are connected to, without those of networks.
    pub(crate) prefixes: Vec<IpNetwork>,
    /// Least MTU of the uplinks, in bytes; `None` if an uplink is missing.
    pub(crate) mtu: Option<u16>,
}

impl NodeFacts {
    /// Those of the subnets that the record of the node has room for.
    pub(crate) fn told_prefixes(&self) -> Vec<IpNetwork> {
        self.prefixes.iter().take(Node::MOST_PREFIXES).copied().collect()
    }
}

/// What the host says about the choice of the uplinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UplinkChoice {
    /// Name of the interface of the default route. `None`: there is no default route, or it has
    /// several interfaces.
    pub(crate) default: Option<String>,
    /// IPv4 addresses of the present uplinks that are ports of no other device.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// The names of the uplinks, and the VTEP address, that an agent would choose that starts now.
    pub(crate) chosen: Result<(Vec<String>, Ipv4Addr), UplinkFault>,
}

/// The fault of an uplink or of the VTEP address, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UplinkFault {
    /// Something is missing that may still appear: a device that a driver has not made yet, or an
    /// address that DHCP has not got yet.
    Absent(String),
    /// The fault does not go away by itself.
    Wrong(String),
}

impl UplinkFault {
    /// The fault on one line.
    pub(crate) fn line(&self) -> &str {
        match self {
            Self::Absent(line) | Self::Wrong(line) => line,
        }
    }
}

/// The interfaces of the host that have an IPv4 address, and are neither uplinks nor Culvert's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientLinks {
    /// Names of the interfaces that published ports serve.
    pub(crate) served: Vec<String>,
    /// Names of the interfaces that published ports do not serve, because it is not certain what
    /// their packets begin with (`Link::framing`). Empty while no port is published.
    pub(crate) unserved: Vec<String>,
}

/// Interfaces out of which an IPv4 route of the host leads, and that are neither uplinks nor
/// Culvert's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OtherLinks {
    /// Names of those that can be uplinks.
    pub(crate) ethernet: Vec<String>,
    /// Names of those that cannot, because they have no Ethernet header.
    pub(crate) without_header: Vec<String>,
}

/// Paths to the VTEPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Path by VTEP address.
    pub(crate) paths: BTreeMap<[u8; 4], UnderlayPath>,
    /// Problem of the path to a VTEP, by address, on one line. The VTEP may have a path as well.
    pub(crate) problems: BTreeMap<Ipv4Addr, String>,
}

/// A change on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostEvent {
    /// Routes or neighbours changed: the paths to VTEPs may have changed.
    Underlay,
    /// As [`Self::Underlay`]: a unicast route of the main table was added, changed or removed.
    Route {
        /// Destination.
        destination: IpNetwork,
        /// Next hops. Empty if the destination is on link.
        hops: Vec<IpAddr>,
        /// Interface index; 0 if the route has several.
        ifindex: u32,
    },
    /// As [`Self::Underlay`]: an IPv4 address was added or removed, and routes with it.
    Address,
    /// IPv6 has come up on the interface with this index, or its IPv6 routes changed.
    Ipv6(u32),
    /// An uplink was added, changed or removed.
    Uplink,
    /// The interface with this index, which is no uplink, was changed.
    Device(u32),
    /// The interface with this index was removed. It may have been a container's.
    LinkGone(u32),
    /// In sandboxes: something may have been taken from the interfaces of these endpoints.
    Sandbox(BTreeSet<String>),
    /// Events were lost: everything may have changed.
    Lost,
}
