//! What a frame says about the members of multicast groups.

use aya_ebpf::programs::TcContext;
use culvert_common::{
    abi::DropReason,
    datapath::membership::Membership,
    wire::{
        EthHdr, Ipv4Hdr, Ipv6Hdr,
        ethernet::{self, ETH_P_IP, ETH_P_IPV6},
        ipv4::{PROTO_IGMP, PROTO_PIM},
        ipv6::{NEXT_HOP_BY_HOP, NEXT_ICMPV6, extension_len},
    },
};

use crate::kernel::skb::{ETH_LEN, load};

/// What the frame says about the members of groups. A frame that ends too early, or that is not to
/// a group of IP, says nothing.
#[inline(always)]
pub(crate) fn membership(ctx: &TcContext) -> Membership {
    try_membership(ctx).unwrap_or(Membership::Other)
}

#[inline(always)]
fn try_membership(ctx: &TcContext) -> Result<Membership, DropReason> {
    let eth: EthHdr = load(ctx, 0)?;
    if !ethernet::is_group_of_ip(&eth.dst) {
        return Ok(Membership::Other);
    }
    match eth.ethertype() {
        ETH_P_IP => of_ipv4(ctx),
        ETH_P_IPV6 => of_ipv6(ctx),
        _ => Ok(Membership::Other),
    }
}

#[inline(always)]
fn of_ipv4(ctx: &TcContext) -> Result<Membership, DropReason> {
    let ip: Ipv4Hdr = load(ctx, ETH_LEN)?;
    match ip.protocol() {
        PROTO_IGMP if ip.is_first() => {
            let kind: u8 = load(ctx, ETH_LEN + ip.header_len() as usize)?;
            Ok(Membership::of_igmp(kind))
        }
        PROTO_PIM => Ok(Membership::Asks),
        _ => Ok(Membership::Other),
    }
}

#[inline(always)]
fn of_ipv6(ctx: &TcContext) -> Result<Membership, DropReason> {
    let [_, _, _, _, _, _, mut next, _]: [u8; 8] = load(ctx, ETH_LEN)?;
    let mut offset = ETH_LEN + Ipv6Hdr::LEN;
    // The router alert is there (RFC 3810 §5).
    if next == NEXT_HOP_BY_HOP {
        let [after, length]: [u8; 2] = load(ctx, offset)?;
        offset += extension_len(next, length).unwrap_or(0) as usize;
        next = after;
    }
    match next {
        NEXT_ICMPV6 => {
            let kind: u8 = load(ctx, offset)?;
            Ok(Membership::of_icmpv6(kind))
        }
        PROTO_PIM => Ok(Membership::Asks),
        _ => Ok(Membership::Other),
    }
}
