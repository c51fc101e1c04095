//! `from_container`: tcx ingress on the host side of a container's veth.

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_common::{
    abi::{
        Action, Direction, DropReason, EndpointInfo, FdbKey, NetworkInfo, RateKey, UnderlayPath,
    },
    datapath::{pmtu, rate, source},
    wire::{
        EthHdr, Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr,
        ethernet::{self, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6},
        ipv4::{PROTO_TCP, PROTO_UDP},
        ipv6::{NEXT_FRAGMENT, NEXT_ICMPV6, extension_len},
    },
};

use crate::{
    encap::{self, Inner},
    flood, learn,
    maps::{ENDPOINTS, FDB, NETWORKS, UNDERLAY, VTEP_IP, VXLAN_PORT, lookup},
    packet::{
        ETH_LEN, Packet as _, gso_size, ifindex, linearise, load, redirect_peer, vlan_present,
    },
    reply, verdict,
};

/// Extension headers that an IPv6 packet of a container may have.
const MAX_EXTENSIONS: usize = 6;

/// A frame that a container sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    // Taken first: replies and the outer header change both.
    let (port, bytes) = (ifindex(&ctx), ctx.len());
    let outcome = handle(&ctx, port);
    verdict::tc(&ctx, Direction::FromContainer, port, bytes, outcome)
}

#[inline(always)]
fn handle(ctx: &TcContext, port: u32) -> Result<Action, DropReason> {
    let ep = lookup!(ENDPOINTS, port).ok_or(DropReason::UnknownEndpoint)?;
    let net = lookup!(NETWORKS, ep.vni).ok_or(DropReason::UnknownNetwork)?;
    if vlan_present(ctx) {
        return Err(DropReason::VlanTagged);
    }
    linearise(ctx);
    let eth: EthHdr = ctx.read(0).ok_or(DropReason::Malformed)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanTagged);
    }
    source::check_mac(ep, &eth)?;
    let l3_len = ctx.len() - ETH_LEN as u32;
    let (tos, headers_len) = match eth.ethertype() {
        ETH_P_IP => {
            let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
            check_ipv4(ctx, ep, &ip, l3_len)?
        }
        ETH_P_IPV6 => {
            let ip: Ipv6Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
            let l4 = check_ipv6(ctx, ep, &ip, l3_len)?;
            if l4.protocol == NEXT_ICMPV6
                && let Some(action) = reply::icmpv6(ctx, ep, net, port, &eth, &ip, &l4)?
            {
                return Ok(action);
            }
            (Some(ip.tclass()), ipv6_headers_len(ctx, &l4)?)
        }
        ETH_P_ARP => {
            if let Some(action) = reply::arp(ctx, ep, net, port)? {
                return Ok(action);
            }
            (None, 0)
        }
        _ => (None, 0),
    };
    if net.flags & NetworkInfo::LEARNING != 0 && ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0 {
        // With the usual source check every MAC of a container is known already.
        let key = FdbKey::new(ep.vni, eth.src);
        learn::source(Direction::FromContainer, key, [0; 4], port, ctx.len());
    }
    let gso = gso_size(ctx);
    let segment_len = if gso == 0 { l3_len } else { gso + headers_len };
    forward(ctx, ep, net, port, &Inner { eth, tos, l3_len, segment_len })
}

/// Finds out where the frame goes and sends it there.
#[inline(always)]
fn forward(
    ctx: &TcContext,
    ep: &EndpointInfo,
    net: &NetworkInfo,
    port: u32,
    inner: &Inner,
) -> Result<Action, DropReason> {
    if ethernet::is_multicast(&inner.eth.dst) {
        return flood_limited(ctx, ep, net, port, inner);
    }
    let key = FdbKey::new(ep.vni, inner.eth.dst);
    let (ifindex, vtep) = match lookup!(FDB, key) {
        Some(entry) => (entry.ifindex, entry.vtep),
        None if net.flags & NetworkInfo::LEARNING == 0 => {
            return flood_limited(ctx, ep, net, port, inner);
        }
        None => match learn::find(key) {
            Some(entry) => (entry.ifindex, entry.vtep),
            None => return flood_limited(ctx, ep, net, port, inner),
        },
    };
    if ifindex != 0 {
        if ifindex == port {
            return Err(DropReason::SamePort);
        }
        redirect_peer(ctx, ifindex)?;
        return Ok(Action::Deliver);
    }
    let path = lookup!(UNDERLAY, vtep).ok_or(DropReason::NoUnderlayPath)?;
    let mtu = effective_mtu(inner, &vtep, path);
    if inner.segment_len > mtu {
        return Err(reply::too_big(ctx, &inner.eth, port, mtu));
    }
    encap::encapsulate(ctx, ep.vni, net, inner, vtep, path)
}

/// The path MTU, where it can matter.
#[inline(always)]
fn effective_mtu(inner: &Inner, vtep: &[u8; 4], path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    if inner.segment_len <= pmtu::MIN_INNER_MTU.min(route) {
        // No router can have lowered it so far.
        return route;
    }
    encap::path_mtu(vtep, path)
}

/// Floods, within the endpoint's rate limit.
#[inline(always)]
fn flood_limited(
    ctx: &TcContext,
    ep: &EndpointInfo,
    net: &NetworkInfo,
    port: u32,
    inner: &Inner,
) -> Result<Action, DropReason> {
    if ep.bum_rate != 0 {
        let limit = RateKey { kind: RateKey::BUM, id: port };
        if !learn::allow(limit, rate::interval_ns(ep.bum_rate), ep.bum_burst) {
            return Err(DropReason::BumRateLimited);
        }
    }
    flood::from_container(ctx, ep.vni, net, port, inner)
}

/// Checks an IPv4 packet of a container. Returns its TOS and, for a GSO frame,
/// the length of its IP and transport headers.
#[inline(always)]
fn check_ipv4(
    ctx: &TcContext,
    ep: &EndpointInfo,
    ip: &Ipv4Hdr,
    l3_len: u32,
) -> Result<(Option<u8>, u32), DropReason> {
    let header_len = source::check_ipv4_shape(ip, l3_len)?;
    source::check_ipv4_source(ep, ip)?;
    let l4 = ETH_LEN + header_len as usize;
    if ip.protocol() == PROTO_UDP && ip.is_first() {
        let udp: Option<UdpHdr> = if header_len == Ipv4Hdr::LEN as u32 {
            ctx.read(ETH_LEN + Ipv4Hdr::LEN)
        } else {
            load(ctx, l4).ok()
        };
        if udp.is_some_and(|udp| udp.dst_port() == VXLAN_PORT.load()) && is_vtep(&ip.dst) {
            return Err(DropReason::VxlanFromContainer);
        }
    }
    let headers_len = match ip.protocol() {
        _ if gso_size(ctx) == 0 => 0,
        PROTO_TCP => header_len + load::<TcpHdr>(ctx, l4)?.header_len(),
        PROTO_UDP => header_len + UdpHdr::LEN as u32,
        _ => header_len,
    };
    Ok((Some(ip.tos()), headers_len))
}

/// The address is this host's VTEP or one that it sends to.
#[inline(always)]
fn is_vtep(ip: &[u8; 4]) -> bool {
    u32::from_ne_bytes(*ip) == VTEP_IP.load() || lookup!(UNDERLAY, *ip).is_some()
}

/// The upper-layer header of an IPv6 packet.
pub(crate) struct UpperLayer {
    /// Protocol number.
    pub(crate) protocol: u8,
    /// Offset in the frame.
    pub(crate) offset: usize,
}

/// Checks an IPv6 packet of a container and finds its upper-layer header.
#[inline(always)]
fn check_ipv6(
    ctx: &TcContext,
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    l3_len: u32,
) -> Result<UpperLayer, DropReason> {
    source::check_ipv6_shape(ip, l3_len)?;
    source::check_ipv6_source(ep, ip)?;
    let mut l4 = UpperLayer { protocol: ip.next_header(), offset: ETH_LEN + Ipv6Hdr::LEN };
    for _ in 0..MAX_EXTENSIONS {
        let Some(_) = extension_len(l4.protocol, 0) else { return Ok(l4) };
        let head: [u8; 4] = load(ctx, l4.offset)?;
        if l4.protocol == NEXT_FRAGMENT {
            // What follows is no header unless this is the first fragment.
            if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                l4.protocol = head[0];
                return Ok(l4);
            }
        }
        let Some(len) = extension_len(l4.protocol, head[1]) else { return Ok(l4) };
        l4.protocol = head[0];
        l4.offset += len as usize;
    }
    // What stands behind so many headers cannot be judged.
    match extension_len(l4.protocol, 0) {
        None => Ok(l4),
        Some(_) => Err(DropReason::Malformed),
    }
}

/// For a GSO frame, the length of its IPv6 and transport headers.
#[inline(always)]
fn ipv6_headers_len(ctx: &TcContext, l4: &UpperLayer) -> Result<u32, DropReason> {
    let network_len = (l4.offset - ETH_LEN) as u32;
    Ok(match l4.protocol {
        _ if gso_size(ctx) == 0 => 0,
        PROTO_TCP => network_len + load::<TcpHdr>(ctx, l4.offset)?.header_len(),
        PROTO_UDP => network_len + UdpHdr::LEN as u32,
        _ => network_len,
    })
}
