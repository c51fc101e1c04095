//! The sender of a frame from the tunnel, and the checks of the addresses in the frame.

use aya_ebpf::{bindings::__sk_buff, macros::map, maps::PerCpuArray, programs::TcContext};
use bytemuck::Pod;
use culvert_common::{
    abi::{DropReason, EndpointInfo, FdbEntry, FdbKey, NetworkInfo, VtepId},
    datapath::{
        learn::valid_source,
        nd::{self, NdKind},
        source,
        tunnel_source::{
            TunnelSource, check_arp, check_host_arp, check_host_ipv4, check_ipv4, identify, learns,
        },
    },
    wire::{
        ArpIpv4, EthHdr, Icmpv6Hdr, Ipv4Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr,
        ethernet::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6},
        ipv6::NEXT_ICMPV6,
    },
};

use super::{
    outer::{INNER, INNER_L3},
    sender::{UpperLayer, has_ipv4, has_ipv6, skip_extensions},
};
use crate::{
    kernel::{
        memory::own,
        skb::{load, load_to},
    },
    maps::{FDB, read_updated},
};

/// Offset of the upper layer in a frame whose inner IPv6 packet has no extension headers.
const V6_UPPER: usize = INNER_L3 + Ipv6Hdr::LEN;

/// Headers of the frame, and the endpoint that it names as its sender. They are not on the BPF
/// stack, which has only 512 bytes.
struct Named {
    /// Only the VNI and the MAC are set. The other fields stay zero: the neighbour map has the
    /// addresses.
    ep: EndpointInfo,
    place: FdbEntry,
    eth: EthHdr,
    ip: Ipv4Hdr,
    arp: ArpIpv4,
    ip6: Ipv6Hdr,
    message: NeighbourHdr,
    option: LinkLayerOption,
}

#[map]
static NAMED: PerCpuArray<Named> = PerCpuArray::with_max_entries(1, 0);

/// Finds the sender of a frame of the network `vni`, which the VTEP `sender` with the address
/// `address` has sent, and checks that the frame has no other source. Fails also if the inner frame
/// has a VLAN tag, or a source MAC that no host can have.
#[inline(always)]
pub(crate) fn check(
    ctx: &TcContext,
    net: &NetworkInfo,
    vni: u32,
    sender: VtepId,
    address: [u8; 4],
) -> Result<TunnelSource, DropReason> {
    let skb = ctx.skb.skb;
    let mut found = check_source(skb, net, vni, sender.0, u32::from_ne_bytes(address));
    if found & IS_ARP != 0 {
        found = check_arp_packet(skb, net, found & !IS_ARP);
    } else if found & IS_IPV6 != 0 {
        found = check_ipv6_packet(skb, found & !IS_IPV6);
    }
    match found {
        HOST => Ok(TunnelSource::Host),
        ENDPOINT => Ok(TunnelSource::Endpoint),
        UNKNOWN => Ok(TunnelSource::Unknown),
        code => Err(DropReason::from_code(code as u8).unwrap_or(DropReason::HelperFailed)),
    }
}

/// [`TunnelSource`] as numbers, which are no codes of drop reasons.
const HOST: u32 = TunnelSource::Host as u32;
const ENDPOINT: u32 = TunnelSource::Endpoint as u32;
const UNKNOWN: u32 = TunnelSource::Unknown as u32;
/// Bit beside a number of [`TunnelSource`]: the frame is an ARP packet, still to be checked.
const IS_ARP: u32 = 1 << 8;
/// Bit beside a number of [`TunnelSource`]: the frame is an IPv6 packet, still to be checked.
const IS_IPV6: u32 = 1 << 9;

/// The number of a result: `found`, or the code of the drop reason.
#[inline(always)]
fn number(result: Result<(), DropReason>, found: u32) -> u32 {
    match result {
        Ok(()) => found,
        Err(reason) => reason.code().into(),
    }
}

/// Makes the checks of [`check`] that concern MACs and IPv4 packets. Returns a number of
/// [`TunnelSource`], with a bit if there is more to check, or the code of a drop reason. A global
/// BPF function: the verifier checks it once. The other checks are functions beside it, not below
/// it: the stack frames of a chain of calls must not exceed 512 bytes.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_source(
    skb: *mut __sk_buff,
    net: *const NetworkInfo,
    vni: u32,
    sender: u32,
    address: u32,
) -> u32 {
    // SAFETY: the pointer is null or points to a `NetworkInfo`: the verifier checks this for every
    // caller.
    let Some(net) = (unsafe { net.as_ref() }) else {
        return DropReason::HelperFailed.code().into();
    };
    let ctx = TcContext::new(skb);
    match try_check(&ctx, net, vni, VtepId(sender), address.to_ne_bytes()) {
        Ok(found) => found,
        Err(reason) => reason.code().into(),
    }
}

#[inline(always)]
fn try_check(
    ctx: &TcContext,
    net: &NetworkInfo,
    vni: u32,
    sender: VtepId,
    address: [u8; 4],
) -> Result<u32, DropReason> {
    let Named { ep, place, eth, ip, .. } = own(&NAMED, 0).ok_or(DropReason::HelperFailed)?;
    let eth = fill(ctx, INNER, eth).ok_or(DropReason::OuterMalformed)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanTagged);
    }
    if !valid_source(&eth.src) {
        return Err(DropReason::InvalidSourceMac);
    }
    let is_known = read_updated(&FDB, &FdbKey::new(vni, eth.src), place);
    let source = identify(net, eth, sender, is_known.then_some(&*place))?;
    let is_host = source == TunnelSource::Host;
    (ep.vni, ep.mac) = (vni, eth.src);
    let ep = &*ep;
    let found = source as u32;
    match eth.ethertype() {
        ETH_P_IP => {
            let ip = fill(ctx, INNER_L3, ip).ok_or(DropReason::Malformed)?;
            if is_host {
                check_host_ipv4(net, eth, ip, &address)?;
            } else {
                check_ipv4(net, ep, ip, |ip| has_ipv4(ep, ip))?;
            }
            Ok(found)
        }
        ETH_P_ARP => Ok(found | IS_ARP),
        _ if is_host => Err(DropReason::GatewaySource),
        ETH_P_IPV6 if !learns(net) => Ok(found | IS_IPV6),
        _ => Ok(found),
    }
}

/// Checks the sender of an ARP packet, after [`check_source`] has returned `found` for it. Returns
/// `found`, or the code of a drop reason. A global BPF function.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_arp_packet(skb: *mut __sk_buff, net: *const NetworkInfo, found: u32) -> u32 {
    // SAFETY: the pointer is null or points to a `NetworkInfo`: the verifier checks this for every
    // caller.
    let Some(net) = (unsafe { net.as_ref() }) else {
        return DropReason::HelperFailed.code().into();
    };
    number(try_check_arp(&TcContext::new(skb), net, found), found)
}

#[inline(always)]
fn try_check_arp(ctx: &TcContext, net: &NetworkInfo, found: u32) -> Result<(), DropReason> {
    let Named { ep, eth, arp, .. } = own(&NAMED, 0).ok_or(DropReason::HelperFailed)?;
    let arp = fill(ctx, INNER_L3, arp).ok_or(DropReason::Malformed)?;
    if found == HOST {
        return check_host_arp(net, eth, arp);
    }
    let ep = &*ep;
    check_arp(net, ep, arp, |ip| has_ipv4(ep, ip))
}

/// Checks the source of an IPv6 packet, and the message if it is one of neighbour discovery, after
/// [`check_source`] has returned `found` for it. Returns `found`, or the code of a drop reason. A
/// global BPF function.
// SAFETY: no other symbol of the programs has this name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_ipv6_packet(skb: *mut __sk_buff, found: u32) -> u32 {
    number(try_check_ipv6(&TcContext::new(skb)), found)
}

#[inline(always)]
fn try_check_ipv6(ctx: &TcContext) -> Result<(), DropReason> {
    let Named { ep, ip6, message, option, .. } = own(&NAMED, 0).ok_or(DropReason::HelperFailed)?;
    let ep = &*ep;
    let ip = fill(ctx, INNER_L3, ip6).ok_or(DropReason::Malformed)?;
    source::check_ipv6_source(ep, ip, |ip| has_ipv6(ep, ip))?;
    let mut l4 = UpperLayer { protocol: ip.next_header(), is_later: false, offset: V6_UPPER };
    skip_extensions(ctx, &mut l4)?;
    if l4.protocol != NEXT_ICMPV6 {
        return Ok(());
    }
    if l4.offset != V6_UPPER {
        let disguised = nd::is_disguised(ep, ip, l4.protocol);
        return if disguised { Err(DropReason::SpoofedNd) } else { Ok(()) };
    }
    let icmp: Icmpv6Hdr = load(ctx, V6_UPPER)?;
    match nd::nd_kind(ep, ip, &icmp)? {
        NdKind::Other => Ok(()),
        NdKind::RouterSolicit => {
            let option = fill(ctx, V6_UPPER + Icmpv6Hdr::LEN, option);
            nd::check_router_solicit(ep, ip, option)
        }
        NdKind::Neighbour => {
            let message = fill(ctx, V6_UPPER, message).ok_or(DropReason::Malformed)?;
            let option = fill(ctx, V6_UPPER + NeighbourHdr::LEN, option);
            nd::nd_query(ep, ip, message, option, |ip| has_ipv6(ep, ip)).map(|_| ())
        }
    }
}

/// Copies a header at `offset` of the frame to `to`. Returns the header; `None` if the frame is too
/// short.
#[inline(always)]
fn fill<'a, T: Pod>(ctx: &TcContext, offset: usize, to: &'a mut T) -> Option<&'a T> {
    load_to(ctx.skb.skb, offset as u32, &raw mut *to, size_of::<T>() as u32).then_some(&*to)
}
