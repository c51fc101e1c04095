//! Requests and answers of the agent's API. The JSON rows equal those of the CLI's `--format json`.

mod life;
mod nat;
mod node;
mod path;
mod ports;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

pub use self::{
    life::{ContainerState, Rerun, Supervised},
    nat::{ConntrackShare, ConntrackStatus, FlowProtocol, NatPage, NatQuery, NatRow},
    node::NodeRow,
    path::PathMtuStatus,
    ports::{Allowed, PublishedPorts, PublishedRow, Sources, may_have_clients},
};
use crate::{
    choice::Uplink,
    model::{Driver, Isolation, MacAddr, Name, NameOptions, Privileges, RestartPolicy},
};

/// The error of a request. `message` is one line that names the object, what is wrong with it and
/// what would be valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Class of the refusal.
    pub kind: ErrorKind,
    /// The error message, one line.
    pub message: String,
}

/// Class of a refusal, with its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400: the request is invalid.
    Invalid,
    /// 404: the object does not exist.
    NotFound,
    /// 409: the current state does not allow the request.
    Conflict,
    /// 503: the store or the kernel does not answer.
    Unavailable,
    /// 500: a defect of Culvert or an unexpected refusal of the kernel.
    Internal,
}

impl ApiError {
    /// Makes an error of class `kind`. Line breaks and other control characters in `message`, which
    /// may come from the store or a library, become spaces.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()) }
    }
}

/// Returns `text` on one line: control characters become spaces. A text that is too long is
/// shortened in the middle, because its end contains the advice.
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
    /// Subnets. If empty, Culvert chooses an IPv4 subnet.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Gateway in one of the subnets. Default: the first host address.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// VNI. Default: the lowest free one. It is not validated here, so that the error comes from
    /// the agent.
    #[serde(default)]
    pub vni: Option<u32>,
    /// MTU in bytes. Default: the underlay's, less the VXLAN overhead.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The network has no route to external addresses (`--internal`).
    #[serde(default)]
    pub internal: bool,
    /// The data plane learns source MAC addresses.
    #[serde(default)]
    pub learning: bool,
    /// `--opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `--label`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Answer with the identifier of a new object.
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
    /// MTU in bytes.
    pub mtu: u16,
    /// Number of endpoints on all nodes.
    pub endpoints: usize,
}

/// An element of the array of `network inspect`; field names are Docker's.
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
    /// Whether the network has an IPv6 subnet.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Subnets.
    #[serde(rename = "IPAM")]
    pub ipam: InspectIpam,
    /// Whether the network has no route to external addresses (`--internal`).
    pub internal: bool,
    /// Endpoints on all nodes, by container name and node.
    pub containers: BTreeMap<String, InspectContainer>,
    /// Options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// VNI.
    pub vni: u32,
    /// MTU in bytes.
    pub mtu: u16,
    /// VTEPs with endpoints in the network.
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

/// A subnet in [`InspectIpam`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectSubnet {
    /// CIDR.
    pub subnet: String,
    /// Gateway address.
    pub gateway: String,
}

/// An endpoint in [`NetworkInspect`].
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
    /// Additional addresses with prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_addresses: Vec<String>,
}

/// A peer in [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectPeer {
    /// Node, or empty for a foreign VTEP.
    pub name: String,
    /// VTEP address.
    #[serde(rename = "IP")]
    pub ip: String,
}

/// `POST /v1/containers`: makes or adopts a sandbox and attaches it to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCreate {
    /// Name, unique on the node.
    pub name: Name,
    /// Network name, `none`, `host` or `container:NAME`.
    pub network: String,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// Further fixed addresses: the first of another subnet is the primary one there, the others are
    /// additional addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_ips: Vec<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Values of `-p`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Values of `--from`: clients that may use the ports. Empty: all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<IpNetwork>,
    /// Values of `--expose`: ports on which the command will listen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Interface name in the sandbox. Default: the first free `ethN`.
    #[serde(default)]
    pub ifname: Option<String>,
    /// Path of a namespace to adopt instead of making one.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Pid of a process whose namespace is adopted instead of making one.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Whether the container is removed when its command ends.
    #[serde(default)]
    pub auto_remove: bool,
    /// Command line, shown by `ps`.
    #[serde(default)]
    pub command: Vec<String>,
    /// Names of and for the container.
    #[serde(default, skip_serializing_if = "NameOptions::is_default")]
    pub names: NameOptions,
    /// What the command is to be started again with. `None`: it is not started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Rerun>,
    /// User and capabilities of the commands in the container.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub privileges: Privileges,
    /// What the commands in the container have apart from the host.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
}

/// Row of `ps`, and the answer to [`ContainerCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Name.
    pub name: String,
    /// Identifier, which no other container has, also not a later one of this name. `None`: the
    /// container was made by an earlier version, or its record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `none`, `host`, `container`, `bridge`, `overlay` or `attached`. `unknown`: the store has not
    /// been read, and the container was made by an earlier version.
    pub mode: String,
    /// `created`, `running`, `restarting`, `exited` or `attached`; `unfinished` if an agent was
    /// killed while it made or removed the container. Empty in the answer of an agent of an earlier
    /// version.
    #[serde(default)]
    pub state: String,
    /// Pid of the command while it runs.
    pub pid: Option<i32>,
    /// Exit code of the command, once it has ended. `None` if that is not known, as after a reboot.
    pub exit_code: Option<i32>,
    /// `--restart`.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How often the command was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Path of the namespace.
    pub netns: String,
    /// Log file of a detached container.
    pub log: Option<String>,
    /// Networks. While the agent has not read the store, they are as last known.
    pub networks: Vec<ContainerNetwork>,
    /// Mode `container`: the container whose interfaces it uses.
    #[serde(default)]
    pub shares: Option<String>,
    /// Command line.
    pub command: Vec<String>,
    /// Host name. `None`: the host's, or that of the program that made the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Directory of the files that commands of the container see in `/etc`. `None`: they see the
    /// host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etc: Option<String>,
    /// User and capabilities of its commands, if they are limited.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub privileges: Privileges,
    /// What its commands have apart from the host, besides the network.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// In the answer to [`ContainerCreate`]: defects of the new container, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A network in [`ContainerRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// Network.
    pub name: String,
    /// Address without prefix length: IPv4 if the endpoint has one.
    pub ip: String,
    /// IPv6 address, if the endpoint has one.
    pub ip6: Option<String>,
    /// Additional addresses without prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<String>,
    /// MAC.
    pub mac: String,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// Published ports.
    pub ports: Vec<String>,
    /// Addresses and prefixes of clients that may use them. Empty: all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// Interfaces of the host through which the published ports are not reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<String>,
}

/// `POST /v1/networks/NAME/containers`: attaches a container to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Container.
    pub container: Name,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// As in [`ContainerCreate`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_ips: Vec<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// `POST /v1/networks/NAME/addresses` and `DELETE /v1/networks/NAME/addresses`: an additional
/// address of a container in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressChange {
    /// Container.
    pub container: Name,
    /// Address.
    pub ip: IpAddr,
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
    /// VTEP address of a remote MAC, empty for a local one.
    pub dst: String,
    /// Interface: the veth of a local MAC, the uplink of a remote one.
    pub ifname: String,
    /// Seconds since the last frame from a learned MAC; `null` for other entries.
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
    /// `static`: from the store. `learned`: from ARP, an address that no endpoint has.
    #[serde(default)]
    pub kind: String,
    /// Seconds since the last ARP packet from a learned address; `null` for other entries.
    #[serde(default)]
    pub age_s: Option<u64>,
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
    /// Whether the lease of the node's agent is alive; `null` for a foreign VTEP.
    pub alive: Option<bool>,
    /// Networks in which the VTEP has endpoints, or to which it was added.
    pub networks: Vec<String>,
    /// Uplink and next hop of the route to the VTEP; empty if it is unreachable.
    pub via: String,
    /// Largest inner packet that fits towards the VTEP, in bytes.
    pub inner_mtu: u16,
}

/// `POST /v1/vteps` and `DELETE /v1/vteps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepChange {
    /// VTEP address.
    pub ip: Ipv4Addr,
    /// Network.
    pub network: Name,
    /// UDP port. Default: the agent's own.
    #[serde(default)]
    pub port: Option<u16>,
}

/// Row of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsRow {
    /// Program, named after its hook, or `conntrack`.
    pub direction: String,
    /// `forward`, `drop` or `note`; `flows` for `conntrack`.
    pub verdict: String,
    /// Name of the action, of the drop reason, of the note or of the flow state.
    pub reason: String,
    /// Number of the name. Its meaning never changes.
    pub code: u8,
    /// Number of frames; for `conntrack` the current number of flows in the state.
    pub packets: u64,
    /// Number of bytes; for `conntrack` the bytes of those flows.
    pub bytes: u64,
}

/// Answer of `GET /v1/status`.
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
    /// Number of known VTEPs, this node's included.
    pub vteps: usize,
    /// Conntrack table.
    #[serde(default)]
    pub conntrack: ConntrackStatus,
    /// MTUs of the paths to VTEPs.
    #[serde(default)]
    pub path_mtu: PathMtuStatus,
    /// Numbers of objects.
    pub counts: Counts,
    /// Records that the agent skips and tasks that it cannot do now, one line each. Of each kind at
    /// most 20, and a line with the number of the others.
    pub problems: Vec<String>,
    /// What others have changed, and the agent has put right since it started.
    #[serde(default)]
    pub repairs: Vec<RepairRow>,
    /// Connections of the API that were not served.
    #[serde(default)]
    pub connections: ApiConnections,
}

/// Connections of the API that were not served since the agent started, in [`Status`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiConnections {
    /// Connections of other users than the agent's, which were refused because these users had too
    /// many.
    pub refused: u64,
    /// Connections that sent no request in time.
    pub late: u64,
}

/// The repairs of one kind in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRow {
    /// Kind: `gateway device`, `container device`, `container interface`, `assistant device`,
    /// `setting`, `underlay`, `program`, `earlier program`, `pin`, `permission`, `map entry`,
    /// `resolv.conf` or `node record`.
    pub kind: String,
    /// Number of repairs since the agent started.
    pub count: u64,
    /// What the last repair found, on one line.
    pub last: String,
    /// Seconds since the last repair.
    pub last_s: u64,
}

/// The agent in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version.
    pub version: String,
    /// Pid.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// VTEP address.
    pub vtep_ip: String,
    /// VXLAN port.
    pub vxlan_port: u16,
    /// Uplinks.
    pub uplinks: Vec<String>,
    /// State directory. The logs of detached containers are in its directory `logs`.
    pub state_dir: String,
    /// Ranges of service addresses (`--service-cidr`).
    #[serde(default)]
    pub services: Vec<Ipv4Network>,
}

/// The store in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `etcd` or `file`.
    pub kind: String,
    /// Whether the last exchange with the store succeeded.
    pub healthy: bool,
    /// Revision up to which the agent has received the store's changes.
    pub revision: i64,
    /// The last error, while unhealthy.
    pub error: Option<String>,
    /// Whether the store is not the one that the agent knows, and waits for `culvert store accept`.
    #[serde(default)]
    pub replaced: bool,
    /// How far the store's clock is ahead of this host's, in ms; `null` if the store does not
    /// report it.
    #[serde(default)]
    pub clock_offset_ms: Option<i64>,
    /// Alarms of etcd, such as `NOSPACE`: it takes no writes while one is set.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Files of the certificates of the connection.
    #[serde(default)]
    pub certificates: Vec<StoreCertificate>,
    /// Whether the store is an etcd beyond this host without authentication: whoever reaches it
    /// controls all hosts.
    #[serde(default)]
    pub open: bool,
    /// The last full read of the store: at the start, or after an interruption whose changes the
    /// store has compacted.
    #[serde(default)]
    pub last_read: Option<StoreRead>,
}

/// A file of certificates of the connection to the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCertificate {
    /// The option of the agent that names it: `--store-ca` or `--store-cert`.
    pub option: String,
    /// Path.
    pub file: String,
}

/// Duration and size of a full read of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRead {
    /// Keys read.
    pub keys: usize,
    /// Time from the start until the last key was received, in ms.
    pub read_ms: u64,
    /// Time from the start until the maps had the resulting entries, in ms.
    pub maps_ms: u64,
}

/// The data plane in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// `tc` or `xdp`.
    pub mode: String,
    /// The reason for this mode.
    pub reason: String,
    /// Facts about the uplinks.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// Another program has a socket on the VXLAN port: VXLAN that is not Culvert's is passed on.
    #[serde(default)]
    pub shared_port: bool,
    /// Interfaces besides the uplinks that published ports serve.
    #[serde(default)]
    pub client_links: Vec<String>,
    /// Interfaces through which published ports are not reached.
    #[serde(default)]
    pub unserved_links: Vec<String>,
    /// Kind of device pair that new containers get: `veth` or `netkit`.
    #[serde(default)]
    pub device: String,
    /// The reason for this kind.
    #[serde(default)]
    pub device_reason: String,
    /// ABI version of the maps.
    pub abi: u32,
    /// Directory of the pins.
    pub pins: String,
}

/// Numbers of objects in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Number of networks.
    pub networks: usize,
    /// Number of endpoints on this node.
    pub local_endpoints: usize,
    /// Number of endpoints on all nodes.
    pub endpoints: usize,
    /// Number of entries in the FDB maps.
    pub fdb: usize,
    /// Number of entries in the neighbour map.
    pub neighbours: usize,
    /// How often commands of this node's containers were started again (`run --restart`).
    #[serde(default)]
    pub restarts: u64,
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
