//! What the agent asks of the host that it runs on: a seam, so that the engine
//! and the API can be tested without a kernel.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use culvert_common::abi::{
    Code, Counter, Direction, DropReason, EndpointInfo, FdbEntry, FdbKey, LearnedEntry, NeighEntry,
    NeighKey, PublishedEntry, PublishedKey, UnderlayPath,
};
use ipnetwork::IpNetwork;

use crate::{
    api::types::{ApiError, ErrorKind},
    choice::{Uplink, device::Device},
    datapath::{DatapathError, FlowTable, Price},
    model::{Driver, Name, Protocol},
    reconcile::{Kernel, LocalEndpoint},
    sandbox::GatewaySpec,
};

/// Why an endpoint is not plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugError {
    /// Its sandbox is somebody else's and not there now; it is tried again
    /// until it is.
    Absent(String),
    /// Something is in the way.
    Refused(ErrorKind, String),
}

impl PlugError {
    /// The line.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Absent(message) | Self::Refused(_, message) => message,
        }
    }
}

impl From<PlugError> for ApiError {
    fn from(error: PlugError) -> Self {
        match error {
            PlugError::Absent(message) => Self::new(ErrorKind::NotFound, message),
            PlugError::Refused(kind, message) => Self::new(kind, message),
        }
    }
}

impl From<ApiError> for PlugError {
    fn from(error: ApiError) -> Self {
        Self::Refused(error.kind, error.message)
    }
}

/// A port of the host that is taken until this is dropped.
pub(crate) type PortHold = Box<dyn Any + Send>;

/// Why a port of the host is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortError {
    /// Somebody has it.
    InUse,
    /// The agent may only have ports from this one on.
    Denied {
        /// `net.ipv4.ip_unprivileged_port_start`.
        from: u16,
    },
    /// The host does not have the address.
    NoSuchAddress,
    /// Something else.
    Other(String),
}

/// Who has a port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process.
    Process {
        /// Its name, at most 15 bytes (proc(5), `comm`).
        name: String,
        /// Its number.
        pid: i32,
    },
    /// A connection that no process has any more (TIME_WAIT and the like).
    Ending,
    /// Nobody that can be seen from here.
    Unseen,
}

/// How VTEPs are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Path by VTEP address.
    pub(crate) paths: BTreeMap<[u8; 4], UnderlayPath>,
    /// What is wrong with a VTEP's path, if it has one or not.
    pub(crate) problems: BTreeMap<Ipv4Addr, String>,
}

/// What a change on the host concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostEvent {
    /// Routes or neighbours: resolve the underlay again.
    Underlay,
    /// An uplink came, changed or went.
    Uplink,
    /// An interface is gone that may have been a container's.
    LinkGone(u32),
    /// Events were lost: look at everything again.
    Lost,
}

/// The host.
#[async_trait]
pub(crate) trait Platform: Kernel<Error = DatapathError> + Send + Sync + 'static {
    /// The next change, or `None` when none will come any more.
    async fn event(&self) -> Option<HostEvent>;

    /// Endpoints that have a pair of devices here, by identifier, with the index of its host side.
    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError>;

    /// Makes the pair of an endpoint and everything on it, and attaches the
    /// program. Idempotent. Returns the index of the host side.
    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<u32, PlugError>;

    /// Removes an endpoint's pair and the attachment. Idempotent.
    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError>;

    /// Removes attachments to interfaces other than these.
    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError>;

    /// Gateway devices that are here: index by VNI.
    async fn gateways(&self) -> Result<BTreeMap<u32, u32>, PlugError>;

    /// Makes the gateway device of a network. Idempotent. A new one is down. Returns its
    /// index.
    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError>;

    /// Attaches the program to the gateway device of a network, then brings it up, with its
    /// address: once the maps know it. Idempotent.
    async fn open_gateway(&self, gateway: &GatewaySpec, ifindex: u32) -> Result<(), PlugError>;

    /// Sees that packets may be routed from the gateway devices of these networks.
    async fn keep_gateways(&self, vnis: &[u32]) -> Result<(), ApiError>;

    /// Removes the gateway device of a network. Idempotent.
    async fn unplug_gateway(&self, vni: u32, ifindex: u32) -> Result<(), PlugError>;

    /// Attaches the program to the loopback device, or detaches it: it is needed
    /// where there are published ports.
    async fn take_loopback(&self, take: bool) -> Result<(), PlugError>;

    /// Resolves the paths to VTEPs (address → UDP port). The next hops of those
    /// in `used` are kept resolved by the kernel; others that were are not any more.
    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, u16>,
        used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError>;

    /// Makes sure that the uplinks carry their programs, and that the devices are there that
    /// make the programs' work less. Says what is wrong with the uplinks.
    async fn check_uplinks(&self) -> Vec<String>;

    /// What is known of the uplinks, and what the programs on them cost, if that was worth
    /// measuring.
    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>);

    /// What connects new containers with the host.
    fn device(&self) -> Device;

    /// Largest MTU of a network here: that of the uplinks, for an overlay network
    /// less the VXLAN overhead.
    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError>;

    /// Takes a port of the host: no process can have it while what is returned
    /// lives.
    fn hold_port(&self, ip: Ipv4Addr, port: u16, protocol: Protocol)
    -> Result<PortHold, PortError>;

    /// Who has a port of the host, as far as can be seen.
    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder;

    /// Who has a port in a sandbox.
    async fn port_holder_in(
        &self,
        netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError>;

    /// Destinations of the host's routes.
    async fn routes(&self) -> Result<Vec<IpNetwork>, ApiError>;

    /// Makes the sandbox of a container. Refused if it exists.
    async fn make_sandbox(&self, name: &Name) -> Result<PathBuf, ApiError>;

    /// Makes the sandbox of a container unless it exists: of the namespace of its
    /// command, if that runs, else anew.
    async fn ensure_sandbox(&self, name: &Name, running: Option<i32>) -> Result<(), ApiError>;

    /// Whether the sandbox of a container exists.
    fn sandbox_exists(&self, name: &Name) -> bool;

    /// Removes the sandbox of a container. Idempotent.
    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError>;

    /// Path of a namespace that somebody else made, once checked.
    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<PathBuf, ApiError>;

    /// The name for a new interface in a namespace: `asked`, refused if it is
    /// taken, or else the first free one. `reserved` names count as taken.
    async fn choose_ifname(
        &self,
        netns: &Path,
        asked: Option<&str>,
        reserved: &[String],
    ) -> Result<String, ApiError>;

    /// Name of an interface.
    fn ifname(&self, ifindex: u32) -> String;

    /// The FDB.
    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError>;

    /// The learned FDB.
    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError>;

    /// Time on the clock of [`LearnedEntry::last_seen_ns`].
    fn now_ns(&self) -> u64;

    /// How long a learned entry lives unseen.
    fn ageing(&self) -> Duration;

    /// Removes a learned entry.
    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError>;

    /// The neighbours.
    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError>;

    /// Paths to VTEPs, as the programs use them.
    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError>;

    /// Conntrack.
    fn flows(&self) -> &dyn FlowTable;

    /// The endpoints that the programs know, by the index of the host side.
    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError>;

    /// The ports published here.
    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError>;

    /// Frames dropped for `reason` in any direction.
    fn dropped(&self, reason: DropReason) -> Result<u64, DatapathError>;

    /// The counters.
    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError>;

    /// Removes every pin, and with them programs and maps, and the devices that are there
    /// for no network in particular.
    async fn purge(&self) -> Result<(), ApiError>;
}
