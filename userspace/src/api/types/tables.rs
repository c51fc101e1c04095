//! Rows of the data plane: FDB, neighbours, VTEPs and counters.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::model::Name;

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
