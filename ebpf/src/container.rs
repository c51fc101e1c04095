//! `from_container`: tcx ingress on the host side of a container's veth; of a container with
//! a netkit device, that of the container's side, and tcx ingress on the host side besides.

use aya_ebpf::{bindings::TC_ACT_REDIRECT, macros::classifier, programs::TcContext};
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
    fast, flood, learn,
    maps::{ENDPOINTS, FDB, NETWORKS, UNDERLAY, VTEP_IP, VXLAN_PORT, lookup},
    packet::{
        ETH_LEN, PLAIN, Packet as _, ensure, gso_size, ifindex, is_transmitted, is_truthful,
        linearise, load, redirect, redirect_peer, vlan_present,
    },
    reply::{self, Answer, NdAnswer},
    route,
    verdict::{self, hand_back},
    work::work,
};

/// Extension headers that an IPv6 packet of a container may have.
const MAX_EXTENSIONS: usize = 6;

/// Who sends a frame. Handed by reference: a BPF function takes five registers.
pub(crate) struct Sender<'a> {
    /// The frame.
    pub(crate) ctx: &'a TcContext,
    /// Host-side interface index.
    pub(crate) port: u32,
    /// The endpoint.
    pub(crate) ep: &'a EndpointInfo,
    /// Its network.
    pub(crate) net: &'a NetworkInfo,
}

/// A frame that a container sends.
#[classifier]
pub(crate) fn from_container(ctx: TcContext) -> i32 {
    // Taken first: replies and the outer header change both.
    let (port, bytes) = (ifindex(&ctx), ctx.len());
    let known = fast::from_container(&ctx, port, bytes);
    if known != fast::UNKNOWN {
        return known;
    }
    let outcome = handle(&ctx, port);
    let spent = matches!(outcome, Ok(Action::Flood | Action::Absorb | Action::Hold));
    let verdict = verdict::tc(&ctx, Direction::FromContainer, port, bytes, outcome);
    if spent && is_transmitted(&ctx) {
        // A drop is an error to who transmits (ENOBUFS), and this is none. There is no
        // verdict for that, but the kernel drops what goes to an interface that is not there.
        redirect(0);
        return TC_ACT_REDIRECT;
    }
    verdict
}

/// What the headers of a frame call for before it is forwarded.
enum Kind {
    /// Nothing.
    Plain,
    /// ARP: an answer, perhaps.
    Arp,
    /// IPv6: more checks, and an answer, perhaps.
    Ipv6,
}

#[inline(always)]
fn handle(ctx: &TcContext, port: u32) -> Result<Action, DropReason> {
    let ep = lookup!(ENDPOINTS, port).ok_or(DropReason::UnknownEndpoint)?;
    let net = lookup!(NETWORKS, ep.vni).ok_or(DropReason::UnknownNetwork)?;
    if vlan_present(ctx) {
        return Err(DropReason::VlanTagged);
    }
    ensure(ctx, PLAIN);
    let sender = Sender { ctx, port, ep, net };
    let mut inner = Inner::default();
    let (mut kind, mut reason) = (Kind::Plain, DropReason::HelperFailed);
    if parse(&sender, &mut inner, &mut kind, &mut reason) != 0 {
        return Err(reason);
    }
    if is_transmitted(ctx) && !is_truthful(ctx, inner.eth.ethertype()) {
        return Err(DropReason::Malformed);
    }
    match kind {
        Kind::Plain => {}
        Kind::Arp => {
            linearise(ctx);
            let mut answer = None;
            if reply::arp(&sender, &mut answer, &mut reason) != 0 {
                return Err(reason);
            }
            if let Some(action) = answer {
                return Ok(action);
            }
        }
        Kind::Ipv6 => {
            linearise(ctx);
            if let Some(action) = ipv6(&sender, &mut inner)? {
                return Ok(action);
            }
        }
    }
    if net.flags & NetworkInfo::LEARNING != 0 && ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0 {
        // With the usual source check every MAC of a container is known already.
        let key = FdbKey::new(ep.vni, inner.eth.src);
        learn::source(Direction::FromContainer, key, [0; 4], port, ctx.len());
    }
    forward(&sender, &inner)
}

/// Checks the headers of a frame and finds out what they say. A function of its
/// own for the sake of the stack.
#[inline(never)]
fn parse(sender: &Sender<'_>, inner: &mut Inner, kind: &mut Kind, reason: &mut DropReason) -> u32 {
    hand_back(try_parse(sender, inner), kind, reason)
}

#[inline(always)]
fn try_parse(&Sender { ctx, ep, .. }: &Sender<'_>, inner: &mut Inner) -> Result<Kind, DropReason> {
    let eth: EthHdr = ctx.read(0).ok_or(DropReason::Malformed)?;
    if eth.is_vlan() {
        return Err(DropReason::VlanTagged);
    }
    source::check_mac(ep, &eth)?;
    inner.eth = eth;
    inner.l3_len = ctx.len() - ETH_LEN as u32;
    inner.segment_len = inner.l3_len;
    match eth.ethertype() {
        ETH_P_IP => {
            let ip: Ipv4Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
            inner.tos = Some(ip.tos());
            let headers_len = check_ipv4(ctx, ep, &ip, inner.l3_len)?;
            let gso = gso_size(ctx);
            if gso != 0 {
                inner.segment_len = gso + headers_len;
            }
            inner.hash = encap::ipv4_hash(ctx, &ip, ports(ctx, &ip));
            Ok(Kind::Plain)
        }
        ETH_P_IPV6 => Ok(Kind::Ipv6),
        ETH_P_ARP => Ok(Kind::Arp),
        _ => Ok(Kind::Plain),
    }
}

/// Checks an IPv6 packet, and answers it if it is a neighbour solicitation
/// whose answer is known.
#[inline(always)]
fn ipv6(sender: &Sender<'_>, inner: &mut Inner) -> Answer {
    let mut l4 = UpperLayer::default();
    let (mut tclass, mut reason) = (0, DropReason::HelperFailed);
    if check_ipv6(sender, inner.l3_len, &mut l4, &mut tclass, &mut reason) != 0 {
        return Err(reason);
    }
    inner.tos = Some(tclass);
    let gso = gso_size(sender.ctx);
    if gso != 0 {
        let network_len = (l4.offset - ETH_LEN) as u32;
        inner.segment_len = gso + headers_len(sender.ctx, l4.protocol, network_len)?;
    }
    if l4.protocol != NEXT_ICMPV6 {
        return Ok(None);
    }
    let mut mac = [0; 6];
    let mut answer = NdAnswer::Forward;
    if reply::icmpv6(sender, &l4, &mut mac, &mut answer, &mut reason) != 0 {
        return Err(reason);
    }
    match answer {
        NdAnswer::Forward => Ok(None),
        NdAnswer::Absorb => Ok(Some(Action::Absorb)),
        NdAnswer::Reply => reply::nd(sender, mac).map(Some),
    }
}

/// Finds out where the frame goes and sends it there.
#[inline(always)]
fn forward(sender: &Sender<'_>, inner: &Inner) -> Result<Action, DropReason> {
    let &Sender { ctx, port, ep, net } = sender;
    if ethernet::is_multicast(&inner.eth.dst) {
        return flood_limited(sender, inner);
    }
    if inner.eth.dst == net.gateway_mac && net.gateway_ifindex != 0 {
        let work = work().ok_or(DropReason::HelperFailed)?;
        let outcome = route::from_container(sender, inner, work);
        if outcome.is_err()
            && let Some(error) = work.error
        {
            reply::error(sender, &error);
        }
        return outcome;
    }
    let key = FdbKey::new(ep.vni, inner.eth.dst);
    let mut learned = true;
    let (ifindex, vtep) = match lookup!(FDB, key) {
        Some(entry) => {
            learned = false;
            (entry.ifindex, entry.vtep)
        }
        None if net.flags & NetworkInfo::LEARNING == 0 => {
            return flood_limited(sender, inner);
        }
        None => match learn::find(key) {
            Some(entry) => (entry.ifindex, entry.vtep),
            None => return flood_limited(sender, inner),
        },
    };
    if ifindex != 0 {
        if ifindex == port {
            return Err(DropReason::SamePort);
        }
        redirect_peer(ctx, ifindex)?;
        if !learned {
            fast::remember_outbound(sender, ifindex, 0);
        }
        return Ok(Action::Deliver);
    }
    let outcome = tunnel(sender, inner, vtep);
    if !learned && outcome.is_ok() {
        fast::remember_outbound(sender, 0, u32::from_ne_bytes(vtep));
    }
    outcome
}

/// Sends the frame to a VTEP.
#[inline(always)]
pub(crate) fn tunnel(
    sender: &Sender<'_>,
    inner: &Inner,
    vtep: [u8; 4],
) -> Result<Action, DropReason> {
    let path = lookup!(UNDERLAY, vtep).ok_or(DropReason::NoUnderlayPath)?;
    let mtu = effective_mtu(inner, &vtep, path);
    if inner.segment_len > mtu {
        return Err(reply::too_big(sender, &inner.eth, mtu));
    }
    let mut reason = DropReason::HelperFailed;
    match encap::encapsulate(sender, inner, u32::from_ne_bytes(vtep), path, &mut reason) {
        0 => Ok(Action::Encap),
        _ => Err(reason),
    }
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
fn flood_limited(sender: &Sender<'_>, inner: &Inner) -> Result<Action, DropReason> {
    let &Sender { port, ep, .. } = sender;
    if ep.bum_rate != 0 {
        let limit = RateKey { kind: RateKey::BUM, id: port };
        if !learn::allow(limit, rate::interval_ns(ep.bum_rate), ep.bum_burst) {
            return Err(DropReason::BumRateLimited);
        }
    }
    flood::from_container(sender, inner)
}

/// Checks an IPv4 packet of a container. Returns, for a GSO frame, the length of
/// its IP and transport headers.
#[inline(always)]
fn check_ipv4(
    ctx: &TcContext,
    ep: &EndpointInfo,
    ip: &Ipv4Hdr,
    l3_len: u32,
) -> Result<u32, DropReason> {
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
    headers_len(ctx, ip.protocol(), header_len)
}

/// The ports of an IPv4 packet that is whole; zero if it has none.
#[inline(always)]
fn ports(ctx: &TcContext, ip: &Ipv4Hdr) -> [u8; 4] {
    match ip.protocol() {
        PROTO_TCP | PROTO_UDP if !ip.is_fragment() => {
            load(ctx, ETH_LEN + ip.header_len() as usize).unwrap_or_default()
        }
        _ => [0; 4],
    }
}

/// The address is this host's VTEP or one that it sends to.
#[inline(always)]
fn is_vtep(ip: &[u8; 4]) -> bool {
    u32::from_ne_bytes(*ip) == VTEP_IP.load() || lookup!(UNDERLAY, *ip).is_some()
}

/// The upper-layer header of an IPv6 packet.
#[derive(Default)]
pub(crate) struct UpperLayer {
    /// Protocol number.
    pub(crate) protocol: u8,
    /// Offset in the frame.
    pub(crate) offset: usize,
}

/// Checks an IPv6 packet of a container. Gives its upper-layer header and its
/// traffic class. A function of its own for the sake of the stack.
#[inline(never)]
fn check_ipv6(
    sender: &Sender<'_>,
    l3_len: u32,
    l4: &mut UpperLayer,
    tclass: &mut u8,
    reason: &mut DropReason,
) -> u32 {
    hand_back(try_check_ipv6(sender, l3_len, l4), tclass, reason)
}

#[inline(always)]
fn try_check_ipv6(
    &Sender { ctx, ep, .. }: &Sender<'_>,
    l3_len: u32,
    l4: &mut UpperLayer,
) -> Result<u8, DropReason> {
    let ip: Ipv6Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    source::check_ipv6_shape(&ip, l3_len)?;
    source::check_ipv6_source(ep, &ip)?;
    *l4 = UpperLayer { protocol: ip.next_header(), offset: ETH_LEN + Ipv6Hdr::LEN };
    for _ in 0..MAX_EXTENSIONS {
        if extension_len(l4.protocol, 0).is_none() {
            return Ok(ip.tclass());
        }
        let head: [u8; 4] = load(ctx, l4.offset)?;
        if l4.protocol == NEXT_FRAGMENT && u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
            // Not the first fragment: what follows is no header.
            l4.protocol = head[0];
            return Ok(ip.tclass());
        }
        let Some(len) = extension_len(l4.protocol, head[1]) else { return Ok(ip.tclass()) };
        l4.protocol = head[0];
        l4.offset += len as usize;
    }
    // What stands behind so many headers cannot be judged.
    match extension_len(l4.protocol, 0) {
        None => Ok(ip.tclass()),
        Some(_) => Err(DropReason::Malformed),
    }
}

/// For a GSO frame, the length of its IP headers, which is given, and its transport header;
/// 0 for any other.
#[inline(always)]
pub(crate) fn headers_len(
    ctx: &TcContext,
    protocol: u8,
    network_len: u32,
) -> Result<u32, DropReason> {
    Ok(match protocol {
        _ if gso_size(ctx) == 0 => 0,
        PROTO_TCP => {
            network_len + load::<TcpHdr>(ctx, ETH_LEN + network_len as usize)?.header_len()
        }
        PROTO_UDP => network_len + UdpHdr::LEN as u32,
        _ => network_len,
    })
}
