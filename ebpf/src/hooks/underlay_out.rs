//! `to_underlay`: tcx egress on an uplink.
//!
//! Other hosts know this host by the source address of its VXLAN alone. So no one but Culvert and
//! root may send VXLAN from this host's VTEP address to another host: neither another user with a
//! UDP socket, nor a container of another engine whose packets the host masquerades.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{Action, Direction, DropReason, ENCAPSULATED_MARK, UplinkInfo},
    wire::{Ipv4Hdr, ipv4::PROTO_UDP},
};

use crate::{
    facts::outer::{OuterHeaders as _, VXLAN},
    globals::VTEP_IP,
    kernel::{
        skb::{ensure, is_forwarded, is_ipv4, mark},
        socket,
    },
    maps::{uplink_flags, vtep_id, vxlan_port},
    verdict::{Outcome, Seen, finish},
};

/// The user ID of root.
const ROOT: u32 = 0;

/// A frame that leaves by an uplink.
#[classifier]
pub(crate) fn to_underlay(ctx: TcContext) -> i32 {
    let seen = Seen::of(&ctx, Direction::ToUnderlay);
    let outcome = check(&ctx, seen.ifindex);
    finish(&ctx, &seen, outcome)
}

#[inline(always)]
fn check(ctx: &TcContext, ifindex: u32) -> Outcome {
    if mark(ctx) == ENCAPSULATED_MARK || !is_ipv4(ctx) {
        return Ok(Action::Pass);
    }
    ensure(ctx, VXLAN as u32);
    if is_believed(ctx) && is_of_others(ctx, uplink_flags(ifindex)) {
        return Err(DropReason::VxlanNotOurs);
    }
    Ok(Action::Pass)
}

/// Whether another host would take the frame for VXLAN of this host: it is from our VTEP address to
/// the VXLAN port of another VTEP. Hosts take no outer IP options.
#[inline(always)]
fn is_believed(ctx: &TcContext) -> bool {
    let (Some(ip), Some(udp)) = (ctx.ip(), ctx.udp()) else { return false };
    if ip.protocol() != PROTO_UDP
        || ip.header_len() != Ipv4Hdr::LEN as u32
        || !ip.is_first()
        || u32::from_ne_bytes(ip.src) != VTEP_IP.load()
    {
        return false;
    }
    let vtep = vtep_id(ip.dst);
    vtep.is_some() && vxlan_port(vtep) == Some(udp.dst_port())
}

/// Whether the frame, which is not marked, comes from neither root nor the kernel. `flags` are those
/// of the uplink. Where they do not have `GUARDED`, the frame may be Culvert's: programs of an
/// earlier version do not mark it.
///
/// A vxlan device of another system keeps the socket of whoever sent the inner packet. The frames of
/// such a device cannot be told from those of a user. They are on the uplink only where the port is
/// shared.
#[inline(always)]
fn is_of_others(ctx: &TcContext, flags: u16) -> bool {
    if flags & UplinkInfo::GUARDED == 0 {
        return false;
    }
    if is_forwarded(ctx) {
        return true;
    }
    flags & UplinkInfo::SHARED_PORT == 0 && socket::has_socket(ctx) && socket::user(ctx) != ROOT
}
