//! A packet that is routed or translated.

use culvert_common::{abi::FlowKey, wire::Ipv4Hdr};

/// What can be done with a routed packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// It belongs to a flow, or begins one.
    Flow,
    /// It is an ICMP error about a packet of a flow.
    Error,
    /// A fragment whose first one has not come.
    LateFragment,
    /// The first fragment, while others are held.
    FirstOfHeld,
    /// A fragment of a datagram that is the host's own.
    HostFragment,
    /// It can only be handed on as it is.
    Unsupported,
}

/// A routed packet.
#[derive(Clone, Copy)]
pub(crate) struct Routed {
    /// Its header.
    pub(crate) ip: Ipv4Hdr,
    /// Key of its flow.
    pub(crate) key: FlowKey,
    /// Offset of the upper layer in the frame.
    pub(crate) l4: u32,
    /// What can be done with it.
    pub(crate) kind: Kind,
    /// The upper-layer header is in it: it is whole, or a first fragment.
    pub(crate) has_header: bool,
    /// Flags of the TCP header; 0 of other protocols.
    pub(crate) tcp_flags: u8,
    /// TCP: sequence number.
    pub(crate) tcp_seq: u32,
    /// TCP: acknowledgement number.
    pub(crate) tcp_ack: u32,
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
            tcp_flags: 0,
            tcp_seq: 0,
            tcp_ack: 0,
        }
    }
}
