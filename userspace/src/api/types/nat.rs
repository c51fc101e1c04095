//! Rows of the conntrack table.

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

/// Query of `GET /v1/nat` and `GET /v1/nat/page`. A flow must match all given fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatQuery {
    /// Flows with this container at either end.
    #[serde(default)]
    pub container: Option<Name>,
    /// Flows of this protocol.
    #[serde(default)]
    pub protocol: Option<FlowProtocol>,
    /// Flows with this address, translated or not.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// `GET /v1/nat/page`: where the page begins, [`NatPage::next`] of the page before; by default
    /// the beginning of the table. `GET /v1/nat` returns all flows and ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
}

/// A part of the table of flows. A flow that lives from the request of the first page until that of
/// the last one is in one of the pages, and only once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatPage {
    /// Flows that match the query, sorted within the page; there may be none in a page.
    pub rows: Vec<NatRow>,
    /// [`NatQuery::from`] of the next page; `None`: this was the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// Row of `nat ls`: one flow. For ICMP echo the source port is the identifier, and the destination
/// port is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRow {
    /// Protocol.
    pub protocol: FlowProtocol,
    /// State of the flow: one of the states in ARCHITECTURE.md, or `denied` if its client was
    /// denied after the flow began.
    pub state: String,
    /// `masquerade`: a container began the flow, and its source address is translated. `published`:
    /// the flow goes to a published port, or another host itself began it through the tunnel.
    /// `host`: a container began the flow, and it goes to the host's stack, which may forward it.
    pub kind: String,
    /// Network of the container.
    pub network: String,
    /// VNI of that network.
    pub vni: u32,
    /// Container: of a `published` flow the one that it goes to, else the one that began the flow.
    pub container: String,
    /// Sender of the flow's first packet: `external` (also through a client link), `host` (this
    /// host itself), the name of a container, or the node that sent the packet through the tunnel:
    /// its name, or its VTEP address if the store does not have the node.
    pub from: String,
    /// Source address of the flow's first packet, before translation.
    pub src: Ipv4Addr,
    /// Source port of that packet.
    pub src_port: u16,
    /// Destination address of that packet.
    pub dst: Ipv4Addr,
    /// Destination port of that packet.
    pub dst_port: u16,
    /// Source address of the same packet, after translation.
    pub nat_src: Ipv4Addr,
    /// Source port after translation.
    pub nat_src_port: u16,
    /// Destination address after translation.
    pub nat_dst: Ipv4Addr,
    /// Destination port after translation.
    pub nat_dst_port: u16,
    /// Seconds until the flow is removed if it stays idle.
    pub timeout_s: u64,
    /// Packets in the direction of the first packet; a GSO frame counts as one.
    pub orig_packets: u64,
    /// Bytes of the frames of those packets.
    pub orig_bytes: u64,
    /// Packets in the reply direction; a GSO frame counts as one.
    pub reply_packets: u64,
    /// Bytes of the frames of those packets.
    pub reply_bytes: u64,
}

/// Conntrack table in [`Status`](super::Status).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStatus {
    /// Number of flows.
    pub flows: u64,
    /// The agent is walking through the table: `flows` is estimated from the part that it has read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// Capacity of the table, in flows.
    pub max: u32,
    /// Number of new flows that were refused since the counters began, because the table was full,
    /// no source port was free, or their container had its share.
    pub refused: u64,
    /// Number of flows that one container may have.
    #[serde(default)]
    pub share: u32,
    /// About the number of ports that one container may always take towards a destination.
    #[serde(default)]
    pub port_share: u32,
    /// Number of containers with at least half of their share, or with refused flows.
    #[serde(default)]
    pub crowded: u64,
    /// The first of these containers, at most 20, those with refused flows first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ConntrackShare>,
}

/// The flows of a container in [`ConntrackStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackShare {
    /// Name of the container; empty if it is not known.
    pub container: String,
    /// Number of flows that count in its share.
    pub flows: u64,
    /// Number of new flows that were refused because it had its share, or no port was free for it.
    pub refused: u64,
    /// Those of the refused flows for which no port was free.
    #[serde(default)]
    pub without_port: u32,
}
