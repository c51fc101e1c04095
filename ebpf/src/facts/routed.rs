//! A packet that is routed or translated.

use culvert_common::{abi::FlowKey, datapath::segment::TcpSegment, wire::Ipv4Hdr};

/// Kind of a routed packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The packet belongs to a flow, or begins a flow.
    Flow,
    /// The packet is an ICMP error. The packet that it quotes may belong to a flow.
    Error,
    /// A fragment of a datagram whose first fragment has not come.
    LateFragment,
    /// The first fragment of a datagram, while other fragments of it are held.
    FirstOfHeld,
    /// A fragment of a datagram that belongs to the host's own traffic.
    HostFragment,
    /// The packet cannot be translated: it is neither TCP, UDP, ICMP echo nor an ICMP error, or it
    /// is too short.
    Unsupported,
}

/// A routed packet.
#[derive(Clone, Copy)]
pub(crate) struct Routed {
    /// IPv4 header of the packet.
    pub(crate) ip: Ipv4Hdr,
    /// Key of the packet's flow.
    pub(crate) key: FlowKey,
    /// Offset of the upper layer in the frame, in bytes.
    pub(crate) l4: u32,
    /// Kind of the packet.
    pub(crate) kind: Kind,
    /// Whether the packet has the upper-layer header: it is not a fragment, or the first one.
    pub(crate) has_header: bool,
    /// The TCP segment; zeroes for other protocols and for a packet without a TCP header.
    pub(crate) tcp: TcpSegment,
}

impl Default for Routed {
    #[inline(always)]
    fn default() -> Self {
        Self {
            ip: Ipv4Hdr::new([0; 4], [0; 4], 0, 0, 0, 0),
            key: FlowKey::default(),
            l4: 0,
            kind: Kind::Unsupported,
            has_header: false,
            tcp: TcpSegment { flags: 0, seq: 0, end: 0, ack: 0 },
        }
    }
}
