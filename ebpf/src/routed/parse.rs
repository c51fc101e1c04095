//! Reads the headers of a routed packet.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::{DropReason, FlowKey, Tuple},
    datapath::{
        nat::{self, Upper},
        segment::TcpSegment,
        source,
    },
    wire::{Ipv4Hdr, TcpStart, ipv4::PROTO_TCP},
};

use crate::{
    facts::routed::{Kind, Routed},
    kernel::skb::{ETH_LEN, Packet as _, load},
    state::fragments,
};

/// Offset of the upper layer where the IPv4 header has no options.
const PLAIN_L4: usize = ETH_LEN + Ipv4Hdr::LEN;

/// Reads the headers of an IPv4 packet that comes in from `zone`. After an error the contents of
/// `routed` have no meaning. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn parse(ctx: &TcContext, zone: u32, routed: &mut Routed) -> Result<(), DropReason> {
    let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    let header_len = source::check_ipv4_shape(&ip, ctx.len() - ETH_LEN as u32)?;
    *routed = Routed { ip, l4: ETH_LEN as u32 + header_len, ..Routed::default() };
    let protocol = ip.protocol();
    let mut tuple = Tuple { src: ip.src, dst: ip.dst, ..Tuple::default() };
    if !ip.is_first() {
        if !nat::has_ports(protocol) {
            // The first fragment has no ports either.
            routed.key = FlowKey::new(zone, protocol, tuple);
            return Ok(());
        }
        let (kind, ports) = fragments::later(zone, &ip);
        routed.kind = kind;
        (tuple.src_port, tuple.dst_port) = ports;
        routed.key = FlowKey::new(zone, protocol, tuple);
        return Ok(());
    }
    routed.has_header = true;
    let plain = header_len == Ipv4Hdr::LEN as u32;
    let read = if plain { ctx.read(PLAIN_L4) } else { None };
    let upper = match read {
        Some(bytes) => bytes,
        None => match load(ctx, routed.l4 as usize) {
            Ok(bytes) => bytes,
            // The packet is too short for every protocol that can be translated.
            Err(_) => {
                routed.key = FlowKey::new(zone, protocol, tuple);
                return Ok(());
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
        // The frame may be longer than the packet: a short one is padded. A fragment that ends
        // within these bytes leaves the flags to the next one (RFC 3128), while its sender chooses
        // the padding.
        let upper_len = u32::from(ip.tot_len()) - header_len;
        if upper_len < TcpStart::LEN as u32 {
            return Err(DropReason::Malformed);
        }
        let start: Option<TcpStart> = if plain { ctx.read(PLAIN_L4) } else { None };
        let tcp = match start {
            Some(tcp) => tcp,
            None => load(ctx, routed.l4 as usize)?,
        };
        routed.tcp = TcpSegment::new(&tcp, upper_len);
    }
    if ip.more_fragments() && routed.kind == Kind::Flow {
        fragments::first(routed);
    }
    Ok(())
}
