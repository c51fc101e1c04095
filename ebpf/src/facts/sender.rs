//! The container that sends a frame, and the checks of that frame.

use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};
use culvert_common::{
    abi::{DropReason, EndpointInfo, NeighKey, NetworkInfo},
    datapath::source,
    wire::{
        EthHdr, Ipv4Hdr, Ipv6Hdr, UdpHdr,
        ethernet::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6},
        ipv4::{PROTO_TCP, PROTO_UDP},
        ipv6::{NEXT_FRAGMENT, extension_len},
    },
};

use super::{
    gso::longest_packet,
    inner::{Inner, ipv4_hash},
};
use crate::{
    globals::{VTEP_IP, VXLAN_PORT},
    kernel::{
        memory::own,
        skb::{ETH_LEN, Packet as _, load},
    },
    maps::{NEIGHBOURS, UNDERLAY, has, read, read_endpoint, read_network, vtep_id},
    verdict::hand_back,
};

/// Extension headers that an IPv6 packet of a container may have.
const MAX_EXTENSIONS: usize = 6;

/// The sender of a frame. It is passed by reference, because a BPF function has five argument
/// registers.
pub(crate) struct Sender<'a> {
    /// The frame.
    pub(crate) ctx: &'a TcContext,
    /// Interface index of the host side.
    pub(crate) ifindex: u32,
    /// The endpoint.
    pub(crate) ep: &'a EndpointInfo,
    /// The endpoint's network.
    pub(crate) net: &'a NetworkInfo,
}

/// Copies of the sender's map values, which may change while the program runs. They are not on the
/// BPF stack, which has only 512 bytes.
struct Identity {
    ep: EndpointInfo,
    net: NetworkInfo,
}

#[map]
static IDENTITY: PerCpuArray<Identity> = PerCpuArray::with_max_entries(1, 0);

impl<'a> Sender<'a> {
    /// The container behind the host-side interface `ifindex`.
    #[inline(always)]
    pub(crate) fn identify(ctx: &'a TcContext, ifindex: u32) -> Result<Self, DropReason> {
        let identity = own(&IDENTITY, 0).ok_or(DropReason::HelperFailed)?;
        if read_endpoint(ifindex, &mut identity.ep) == 0 {
            return Err(DropReason::UnknownEndpoint);
        }
        if read_network(identity.ep.vni, &mut identity.net) == 0 {
            return Err(DropReason::UnknownNetwork);
        }
        Ok(Self { ctx, ifindex, ep: &identity.ep, net: &identity.net })
    }
}

/// Whether the endpoint has this IPv4 address in the neighbour map. Callers ask only for additional
/// addresses: the primary address is in [`EndpointInfo`].
#[inline(always)]
pub(crate) fn has_ipv4(ep: &EndpointInfo, ip: &[u8; 4]) -> bool {
    is_at(ep, &NeighKey::v4(ep.vni, *ip)) != 0
}

/// Whether the endpoint has this IPv6 address in the neighbour map. IPv4-mapped addresses never
/// match: their keys hold IPv4 neighbours.
#[inline(always)]
pub(crate) fn has_ipv6(ep: &EndpointInfo, ip: &[u8; 16]) -> bool {
    let key = NeighKey::v6(ep.vni, *ip);
    key.ip.as_v4().is_none() && is_at(ep, &key) != 0
}

/// Whether the neighbour map has the endpoint's MAC for `neighbour`. Returns 1 if so, else 0. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
fn is_at(ep: &EndpointInfo, neighbour: &NeighKey) -> u32 {
    read(&NEIGHBOURS, neighbour).is_some_and(|neighbour| neighbour.mac == ep.mac).into()
}

/// The checks that a frame still needs before it is forwarded, by its EtherType.
pub(crate) enum Protocol {
    /// None: IPv4, which has been checked, or a protocol that is not checked.
    Checked,
    /// ARP: needs more checks, and may get an answer.
    Arp,
    /// IPv6: needs more checks, and may get an answer.
    Ipv6,
}

/// Checks the Ethernet and IPv4 headers of a frame, and stores their fields in `inner`. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn inspect(
    sender: &Sender<'_>,
    inner: &mut Inner,
    protocol: &mut Protocol,
) -> Result<(), DropReason> {
    hand_back(try_inspect(sender, inner), protocol)
}

#[inline(always)]
fn try_inspect(
    &Sender { ctx, ep, .. }: &Sender<'_>,
    inner: &mut Inner,
) -> Result<Protocol, DropReason> {
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
            let header_len = check_ipv4(ctx, ep, &ip, inner.l3_len)?;
            inner.segment_len = longest_packet(ctx, inner.l3_len, ip.protocol(), header_len)?;
            inner.hash = ipv4_hash(ctx, &ip, ports(ctx, &ip));
            Ok(Protocol::Checked)
        }
        ETH_P_IPV6 => Ok(Protocol::Ipv6),
        ETH_P_ARP => Ok(Protocol::Arp),
        _ => Ok(Protocol::Checked),
    }
}

/// Checks an IPv4 packet of a container. Returns the length of its header in bytes.
#[inline(always)]
fn check_ipv4(
    ctx: &TcContext,
    ep: &EndpointInfo,
    ip: &Ipv4Hdr,
    l3_len: u32,
) -> Result<u32, DropReason> {
    let header_len = source::check_ipv4_shape(ip, l3_len)?;
    source::check_ipv4_source(ep, ip, |ip| has_ipv4(ep, ip))?;
    if ip.protocol() == PROTO_UDP && ip.is_first() {
        let udp: Option<UdpHdr> = if header_len == Ipv4Hdr::LEN as u32 {
            ctx.read(ETH_LEN + Ipv4Hdr::LEN)
        } else {
            load(ctx, ETH_LEN + header_len as usize).ok()
        };
        if udp.is_some_and(|udp| udp.dst_port() == VXLAN_PORT.load()) && is_vtep(ip.dst) {
            return Err(DropReason::VxlanFromContainer);
        }
    }
    Ok(header_len)
}

/// Source and destination port of a TCP or UDP packet that is not a fragment; zero for any other
/// packet.
#[inline(always)]
fn ports(ctx: &TcContext, ip: &Ipv4Hdr) -> [u8; 4] {
    match ip.protocol() {
        PROTO_TCP | PROTO_UDP if !ip.is_fragment() => {
            load(ctx, ETH_LEN + ip.header_len() as usize).unwrap_or_default()
        }
        _ => [0; 4],
    }
}

/// Whether the address is that of this host's VTEP or of another host's VTEP.
#[inline(always)]
fn is_vtep(ip: [u8; 4]) -> bool {
    if u32::from_ne_bytes(ip) == VTEP_IP.load() {
        return true;
    }
    // The number of a removed VTEP stays in `VTEP_IDS`, but its path is removed from `UNDERLAY`.
    let vtep = vtep_id(ip);
    vtep.is_some() && has(&UNDERLAY, &vtep)
}

/// The upper-layer header of an IPv6 packet.
#[derive(Default)]
pub(crate) struct UpperLayer {
    /// Protocol number.
    pub(crate) protocol: u8,
    /// Whether the packet is a fragment other than the first: `offset` is that of its fragment
    /// header then.
    pub(crate) is_later: bool,
    /// Offset in the frame, in bytes.
    pub(crate) offset: usize,
}

impl UpperLayer {
    /// Offset of the upper layer in an IPv6 frame without extension headers.
    pub(crate) const PLAIN: usize = ETH_LEN + Ipv6Hdr::LEN;
}

/// Checks that a packet with extension headers has all of its headers, or is a fragment other than
/// the first. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn check_ipv6_headers(ctx: &TcContext, l4: &UpperLayer) -> Result<(), DropReason> {
    if l4.is_later {
        return Ok(());
    }
    let ip: Ipv6Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    source::check_ipv6_headers(&ip, l4.protocol, (l4.offset - ETH_LEN) as u32)
}

/// Checks an IPv6 packet of a container; the packet has `l3_len` bytes. Stores its upper-layer
/// header in `l4` and its traffic class in `tclass`. A BPF function of its own, for a stack frame
/// of its own.
#[inline(never)]
pub(crate) fn check_ipv6(
    sender: &Sender<'_>,
    l3_len: u32,
    l4: &mut UpperLayer,
    tclass: &mut u8,
) -> Result<(), DropReason> {
    hand_back(try_check_ipv6(sender, l3_len, l4), tclass)
}

#[inline(always)]
fn try_check_ipv6(
    &Sender { ctx, ep, .. }: &Sender<'_>,
    l3_len: u32,
    l4: &mut UpperLayer,
) -> Result<u8, DropReason> {
    let ip: Ipv6Hdr = ctx.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    source::check_ipv6_shape(&ip, l3_len)?;
    source::check_ipv6_source(ep, &ip, |ip| has_ipv6(ep, ip))?;
    let (protocol, offset) = (ip.next_header(), UpperLayer::PLAIN);
    *l4 = UpperLayer { protocol, is_later: false, offset };
    skip_extensions(ctx, l4)?;
    Ok(ip.tclass())
}

/// Moves `l4` from the header after the IPv6 header to the upper-layer header. In a fragment other
/// than the first, it stays at the fragment header, with the protocol of the payload.
#[inline(always)]
pub(crate) fn skip_extensions(ctx: &TcContext, l4: &mut UpperLayer) -> Result<(), DropReason> {
    for _ in 0..MAX_EXTENSIONS {
        if extension_len(l4.protocol, 0).is_none() {
            return Ok(());
        }
        let head: [u8; 4] = load(ctx, l4.offset)?;
        if l4.protocol == NEXT_FRAGMENT && u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
            // Not the first fragment: the bytes after this header are payload.
            l4.protocol = head[0];
            l4.is_later = true;
            return Ok(());
        }
        let Some(len) = extension_len(l4.protocol, head[1]) else { return Ok(()) };
        l4.protocol = head[0];
        l4.offset += len as usize;
    }
    // A packet with more extension headers is refused: its upper layer was not found, and could not
    // be checked.
    match extension_len(l4.protocol, 0) {
        None => Ok(()),
        Some(_) => Err(DropReason::Malformed),
    }
}
