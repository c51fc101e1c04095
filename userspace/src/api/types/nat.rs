//! Rows of conntrack.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::model::Name;

/// Protocol of a flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

impl FlowProtocol {
    /// `tcp`, `udp` or `icmp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Query of `GET /v1/nat`: which flows; all of what is given has to fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatQuery {
    /// Of this container, which either end may be.
    #[serde(default)]
    pub container: Option<Name>,
    /// Of this protocol.
    #[serde(default)]
    pub protocol: Option<FlowProtocol>,
    /// With this address, translated or not.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

/// Row of `nat ls`: a flow. ICMP echo has its identifier as the source port; the
/// destination port is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRow {
    /// Protocol.
    pub protocol: FlowProtocol,
    /// State, as ARCHITECTURE.md lists them.
    pub state: String,
    /// `masquerade` or `published`.
    pub kind: String,
    /// Network of the container.
    pub network: String,
    /// Its VNI.
    pub vni: u32,
    /// Container: the one that is masqueraded, or the one whose port is published.
    pub container: String,
    /// Who began the flow: `outside`, `host`, or a container.
    pub from: String,
    /// Source address of the packet that began the flow, as it came in.
    pub src: Ipv4Addr,
    /// Its source port.
    pub src_port: u16,
    /// Its destination address.
    pub dst: Ipv4Addr,
    /// Its destination port.
    pub dst_port: u16,
    /// Source address of the same packet, translated.
    pub nat_src: Ipv4Addr,
    /// Its source port.
    pub nat_src_port: u16,
    /// Its destination address.
    pub nat_dst: Ipv4Addr,
    /// Its destination port.
    pub nat_dst_port: u16,
    /// Seconds until the flow is forgotten unless used.
    pub timeout_s: u64,
    /// Packets in the direction of the one that began the flow; a GSO frame is one.
    pub orig_packets: u64,
    /// Bytes of their frames.
    pub orig_bytes: u64,
    /// Packets in the other direction.
    pub reply_packets: u64,
    /// Bytes of their frames.
    pub reply_bytes: u64,
}

/// Conntrack of [`Status`](super::Status).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStatus {
    /// Flows, as of the last time that all were looked at.
    pub flows: u64,
    /// Flows that there is room for.
    pub max: u32,
    /// Flows that may go to make room for new ones; 0 while there is enough.
    pub evictable: u64,
    /// New flows refused for want of room or of a port since the counters began.
    pub refused: u64,
}
