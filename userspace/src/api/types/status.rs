//! The status of an agent.

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::{nat::ConntrackStatus, path::PathMtuStatus};
use crate::choice::Uplink;

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
