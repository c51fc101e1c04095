//! Requests and answers of the agent's API. The JSON rows are those of the
//! CLI's `--format json`.

mod nat;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use self::nat::{ConntrackStatus, FlowProtocol, NatQuery, NatRow};
use crate::{
    choice::Uplink,
    model::{Driver, MacAddr, Name},
};

/// Why a request was refused: `message` is one line that names the thing, what
/// is wrong with it and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Class of the refusal.
    pub kind: ErrorKind,
    /// The line.
    pub message: String,
}

/// Class of a refusal, with its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400: the request makes no sense.
    Invalid,
    /// 404: no such thing.
    NotFound,
    /// 409: the state does not allow it.
    Conflict,
    /// 503: the store or the kernel does not answer.
    Unavailable,
    /// 500: a defect of Culvert or an unexpected refusal of the kernel.
    Internal,
}

impl ApiError {
    /// A refusal of class `kind`. Line breaks and other control characters in
    /// `message`, say from the store or a library, become spaces.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()) }
    }
}

/// `text` as it prints on one line: every control character is a space, and
/// what is much too long loses its middle, for the end says what is right.
pub fn one_line(text: String) -> String {
    const HALF: usize = 300;
    let text = if text.contains(char::is_control) {
        text.trim().replace(char::is_control, " ")
    } else {
        text
    };
    let head = text.char_indices().nth(HALF).map(|(at, _)| at);
    let tail = text.char_indices().nth_back(HALF - 1).map(|(at, _)| at);
    match (head, tail) {
        (Some(head), Some(tail)) if head < tail => format!("{}…{}", &text[..head], &text[tail..]),
        _ => text,
    }
}

/// `POST /v1/networks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCreate {
    /// Name.
    pub name: Name,
    /// Driver.
    pub driver: Driver,
    /// Subnets; empty: Culvert chooses an IPv4 one.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Gateway in one of the subnets; the first host address by default.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// VNI; the lowest free one by default. Unchecked, so that the refusal is the agent's.
    #[serde(default)]
    pub vni: Option<u32>,
    /// MTU; the underlay's less the VXLAN overhead by default.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// Learn source addresses.
    #[serde(default)]
    pub learning: bool,
    /// `--opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `--label`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Answer with the identifier of what was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// 64 hexadecimal digits.
    pub id: String,
}

/// Row of `network ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// `global` or `local`.
    pub scope: String,
    /// Subnets.
    pub subnets: Vec<String>,
    /// VNI.
    pub vni: u32,
    /// MTU.
    pub mtu: u16,
    /// Number of endpoints on all nodes.
    pub endpoints: usize,
}

/// `network inspect`, one element of the array; field names are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInspect {
    /// Name.
    pub name: String,
    /// Identifier.
    pub id: String,
    /// `global` or `local`.
    pub scope: String,
    /// Driver.
    pub driver: String,
    /// An IPv6 subnet is present.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Subnets.
    #[serde(rename = "IPAM")]
    pub ipam: InspectIpam,
    /// No way out.
    pub internal: bool,
    /// Endpoints on all nodes, by container name and node.
    pub containers: BTreeMap<String, InspectContainer>,
    /// Options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// VNI.
    pub vni: u32,
    /// MTU.
    pub mtu: u16,
    /// VTEPs that have endpoints in the network.
    pub peers: Vec<InspectPeer>,
}

/// `IPAM` of [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectIpam {
    /// Always `default`.
    pub driver: String,
    /// Subnets.
    pub config: Vec<InspectSubnet>,
}

/// Subnet of [`InspectIpam`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectSubnet {
    /// CIDR.
    pub subnet: String,
    /// Gateway address.
    pub gateway: String,
}

/// Endpoint of [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectContainer {
    /// Container.
    pub name: String,
    /// Node.
    pub node: String,
    /// Endpoint identifier.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// MAC.
    pub mac_address: String,
    /// IPv4 with prefix length, or empty.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// IPv6 with prefix length, or empty.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// Peer of [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectPeer {
    /// Node, or empty for a foreign VTEP.
    pub name: String,
    /// VTEP address.
    #[serde(rename = "IP")]
    pub ip: String,
}

/// `POST /v1/containers`: makes or adopts a sandbox and attaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCreate {
    /// Name, unique on the node.
    pub name: Name,
    /// Network name, `none`, `host` or `container:NAME`.
    pub network: String,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Published ports, as given to `-p`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Ports that the command will listen on, as given to `--expose`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Interface name in the sandbox; the first free `ethN` by default.
    #[serde(default)]
    pub ifname: Option<String>,
    /// Adopt the namespace at this path instead of making one.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Adopt the namespace of this process instead of making one.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Remove the container when its command ends.
    #[serde(default)]
    pub auto_remove: bool,
    /// Command line, for `ps`.
    #[serde(default)]
    pub command: Vec<String>,
}

/// Row of `ps`, and the answer to [`ContainerCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Name.
    pub name: String,
    /// `none`, `host`, `container`, `bridge`, `overlay` or `attached`.
    pub mode: String,
    /// Process, while one runs.
    pub pid: Option<i32>,
    /// Exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Path of the namespace.
    pub netns: String,
    /// Log file of a detached container.
    pub log: Option<String>,
    /// Networks.
    pub networks: Vec<ContainerNetwork>,
    /// Command line.
    pub command: Vec<String>,
}

/// Network of a [`ContainerRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// Network.
    pub name: String,
    /// Address without prefix length: IPv4 if there is one.
    pub ip: String,
    /// IPv6 address, if there is one.
    pub ip6: Option<String>,
    /// MAC.
    pub mac: String,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// Published ports.
    pub ports: Vec<String>,
}

/// `POST /v1/containers/NAME/state`: the supervisor tells what its command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    /// Started.
    Running {
        /// Process.
        pid: i32,
        /// Log file.
        log: Option<PathBuf>,
    },
    /// Ended.
    Exited {
        /// Exit code, 128 + signal if killed.
        code: i32,
    },
}

/// `POST /v1/networks/NAME/containers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Container.
    pub container: Name,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// Row of `fdb show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbRow {
    /// Network.
    pub network: String,
    /// VNI.
    pub vni: u32,
    /// MAC.
    pub mac: String,
    /// `local`, `static` or `learned`.
    pub kind: String,
    /// VTEP of a remote MAC, empty for a local one.
    pub dst: String,
    /// Interface: the veth of a local MAC, the uplink of a remote one.
    pub ifname: String,
    /// Seconds since a learned MAC was last seen; `null` for the others.
    pub age_s: Option<u64>,
}

/// Row of `neigh show`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighRow {
    /// Network.
    pub network: String,
    /// VNI.
    pub vni: u32,
    /// Address.
    pub ip: String,
    /// MAC.
    pub mac: String,
}

/// Row of `vtep ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepRow {
    /// VTEP address.
    pub ip: String,
    /// UDP port.
    pub port: u16,
    /// Node, or empty for a foreign VTEP.
    pub node: String,
    /// `self`, `node` or `foreign`.
    pub kind: String,
    /// The agent's lease is alive; `null` for a foreign VTEP.
    pub alive: Option<bool>,
    /// Networks in which it has endpoints, or that it was added to.
    pub networks: Vec<String>,
    /// Uplink and next hop by which it is reached; empty if unreachable.
    pub via: String,
    /// Largest inner packet towards it.
    pub inner_mtu: u16,
}

/// `POST /v1/vteps` and `DELETE /v1/vteps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepChange {
    /// VTEP address.
    pub ip: Ipv4Addr,
    /// Network.
    pub network: Name,
    /// UDP port; the agent's own by default.
    #[serde(default)]
    pub port: Option<u16>,
}

/// Row of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsRow {
    /// Program, named for its hook, or `conntrack`.
    pub direction: String,
    /// `forward`, `drop` or `note`; of `conntrack`: `flows`.
    pub verdict: String,
    /// Name of the action, drop reason or note, or of a flow's state.
    pub reason: String,
    /// Its number, which never changes meaning.
    pub code: u8,
    /// Frames; of `conntrack` the flows that are in the state now.
    pub packets: u64,
    /// Bytes; of `conntrack` those that these flows carried.
    pub bytes: u64,
}

/// `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Node name.
    pub node: String,
    /// Agent.
    pub agent: AgentStatus,
    /// Store.
    pub store: StoreStatus,
    /// Data plane.
    pub datapath: DatapathStatus,
    /// VTEPs known, this one included.
    pub vteps: usize,
    /// Conntrack.
    #[serde(default)]
    pub conntrack: ConntrackStatus,
    /// Counts of things.
    pub counts: Counts,
    /// What the agent skips or cannot do now, a line each.
    pub problems: Vec<String>,
}

/// Agent of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version.
    pub version: String,
    /// Process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// VTEP address.
    pub vtep_ip: String,
    /// VXLAN port.
    pub vxlan_port: u16,
    /// Uplinks.
    pub uplinks: Vec<String>,
    /// State directory; logs of detached containers are in its `logs`.
    pub state_dir: String,
}

/// Store of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `etcd` or `file`.
    pub kind: String,
    /// The last exchange succeeded.
    pub healthy: bool,
    /// Revision up to which the agent has seen the store.
    pub revision: i64,
    /// The last error, while unhealthy.
    pub error: Option<String>,
    /// How far the store's clock is ahead of this host's, in ms; `null` if it
    /// does not tell.
    #[serde(default)]
    pub clock_offset_ms: Option<i64>,
    /// The last time that the whole store was read: at the start, and after a break
    /// that the store's history does not bridge.
    #[serde(default)]
    pub last_read: Option<StoreRead>,
}

/// How the reading of the whole store went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRead {
    /// Keys read.
    pub keys: usize,
    /// From the beginning until the last key was here, in ms.
    pub read_ms: u64,
    /// From the beginning until the maps held what follows from it, in ms.
    pub maps_ms: u64,
}

/// Data plane of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// `tc` or `xdp`.
    pub mode: String,
    /// Why this mode.
    pub reason: String,
    /// What is known of the uplinks.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// What connects new containers with the host: `veth` or `netkit`.
    #[serde(default)]
    pub device: String,
    /// Why these devices.
    #[serde(default)]
    pub device_reason: String,
    /// ABI version of the maps.
    pub abi: u32,
    /// Directory of the pins.
    pub pins: String,
}

/// Counts of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Networks.
    pub networks: usize,
    /// Endpoints on this node.
    pub local_endpoints: usize,
    /// Endpoints on all nodes.
    pub endpoints: usize,
    /// Entries in the FDB maps.
    pub fdb: usize,
    /// Entries in the neighbour map.
    pub neighbours: usize,
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn lines_are_of_one_line_and_not_endless() {
        assert_eq!(one_line("a b".to_owned()), "a b");
        assert_eq!(one_line("a\nb\u{1b}[1m\n".to_owned()), "a b [1m");
        let just = "ü".repeat(600);
        assert_eq!(one_line(just.clone()), just);
        let long = format!("{}{}", "ü".repeat(1000), "is valid");
        let cut = one_line(long);
        assert_eq!(cut.chars().count(), 601);
        assert!(cut.ends_with("is valid"));
    }
}
