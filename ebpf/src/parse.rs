//! What a routed packet says of itself.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{DropReason, FlowKey, Tuple},
    datapath::{
        nat::{self, Upper},
        source,
    },
    wire::{Ipv4Hdr, ipv4::PROTO_TCP},
};

use crate::{
    fragment,
    packet::{ETH_LEN, Packet as _, load},
    verdict::hand_back,
};

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
    /// What it says of its flow.
    pub(crate) key: FlowKey,
    /// Offset of the upper layer in the frame.
    pub(crate) l4: u32,
    /// What can be done with it.
    pub(crate) kind: Kind,
    /// The upper-layer header is in it: it is whole, or a first fragment.
    pub(crate) has_header: bool,
    /// Flags of the TCP header; 0 of other protocols.
    pub(crate) tcp_flags: u8,
    /// Its sequence number.
    pub(crate) tcp_seq: u32,
    /// Its acknowledgement number.
    pub(crate) tcp_ack: u32,
    /// Fragments of its datagram that have been waiting for it.
    pub(crate) held: u16,
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
            held: 0,
        }
    }
}

/// Offset of the upper layer where the IPv4 header has no options.
const PLAIN_L4: usize = ETH_LEN + Ipv4Hdr::LEN;

/// Reads the headers of an IPv4 packet that comes in from `zone`. A function of its
/// own for the sake of the stack.
#[inline(never)]
pub(crate) fn parse(
    ctx: &TcContext,
    zone: u32,
    routed: &mut Routed,
    reason: &mut DropReason,
) -> u32 {
    hand_back(try_parse(ctx, zone), routed, reason)
}

#[inline(always)]
fn try_parse(ctx: &TcContext, zone: u32) -> Result<Routed, DropReason> {
    let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    let header_len = source::check_ipv4_shape(&ip, ctx.len() - ETH_LEN as u32)?;
    let mut routed = Routed { ip, l4: ETH_LEN as u32 + header_len, ..Routed::default() };
    let protocol = ip.protocol();
    let mut tuple = Tuple { src: ip.src, dst: ip.dst, ..Tuple::default() };
    if !ip.is_first() {
        if !nat::has_ports(protocol) {
            // Its first one tells no more of it.
            routed.key = FlowKey::new(zone, protocol, tuple);
            return Ok(routed);
        }
        let (kind, ports) = fragment::later(zone, &ip);
        routed.kind = kind;
        (tuple.src_port, tuple.dst_port) = ports;
        routed.key = FlowKey::new(zone, protocol, tuple);
        return Ok(routed);
    }
    routed.has_header = true;
    let plain = header_len == Ipv4Hdr::LEN as u32;
    let read = if plain { ctx.read(PLAIN_L4) } else { None };
    let upper = match read {
        Some(bytes) => bytes,
        None => match load(ctx, routed.l4 as usize) {
            Ok(bytes) => bytes,
            // Too short for any of the protocols that are translated.
            Err(_) => {
                routed.key = FlowKey::new(zone, protocol, tuple);
                return Ok(routed);
            }
        },
    };
    match nat::upper(protocol, &upper) {
        Upper::Ports(src, dst) => {
            (tuple.src_port, tuple.dst_port) = (src, dst);
            routed.kind = Kind::Flow;
        }
        Upper::Error => routed.kind = Kind::Error,
        Upper::Unsupported => routed.kind = Kind::Unsupported,
    }
    routed.key = FlowKey::new(zone, protocol, tuple);
    if protocol == PROTO_TCP {
        let flags: Option<[u8; 14]> = if plain { ctx.read(PLAIN_L4) } else { None };
        let bytes = match flags {
            Some(bytes) => bytes,
            None => load::<[u8; 14]>(ctx, routed.l4 as usize)?,
        };
        routed.tcp_seq = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        routed.tcp_ack = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        routed.tcp_flags = bytes[13];
    }
    if ip.more_fragments() && routed.kind == Kind::Flow {
        fragment::first(&mut routed);
    }
    Ok(routed)
}
