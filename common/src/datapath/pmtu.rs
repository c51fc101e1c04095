//! Packets that are too big for the path, and the ICMP errors about them (RFC 1191, RFC 8201).
//!
//! The errors go directly to the container. Their source is the destination of the packet: an
//! overlay network is one link, so there is no router whose address they could have, and the
//! container's routes accept this source. RFC 1122 §3.2.2.1 and RFC 4443 §2.2 demand the address
//! of the node that found the packet too big; hosts match the errors by the quoted packet.

use bytemuck::{Pod, Zeroable};

use super::encap::LEAST_ENTROPY_PORT;
use crate::abi::VXLAN_OVERHEAD;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ETH_P_IP, ETH_P_IPV6};
use crate::wire::icmp::{
    V4_PARAMETER_PROBLEM, V4_REDIRECT, V4_SOURCE_QUENCH, V4_TIME_EXCEEDED, V4_UNREACHABLE,
    V6_PACKET_TOO_BIG, V6_REDIRECT,
};
use crate::wire::ipv4::{self, PROTO_ICMP, PROTO_UDP};
use crate::wire::ipv6::{self, NEXT_ICMPV6};
use crate::wire::{EthHdr, Icmpv4Hdr, Icmpv6Hdr, Ipv4Hdr, Ipv6Hdr, UdpHdr, VxlanHdr};

/// Bytes of the original packet that [`error`] quotes: its header with up to 36 bytes of options,
/// and at least the eight bytes of payload that RFC 792 demands.
pub const QUOTE_V4_LEN: usize = 64;
/// Bytes that [`error`] quotes of a packet shorter than [`QUOTE_V4_LEN`]: the minimum of RFC 792.
pub const SHORT_QUOTE_V4_LEN: usize = 28;
/// Bytes of the original packet that [`packet_too_big`] quotes: within RFC 4443
/// §3.2's minimum MTU, with the header and ports of any upper layer.
pub const QUOTE_V6_LEN: usize = 128;

/// Smallest path MTU that is accepted from an ICMP error: `min_pmtu` of Linux. A smaller value is
/// refused: only an attacker would send it.
pub const MIN_PATH_MTU: u32 = 552;

/// Smallest inner path MTU that [`path_mtu_from_icmp`] gives.
pub const MIN_INNER_MTU: u32 = MIN_PATH_MTU - VXLAN_OVERHEAD as u32;

/// Bytes of an IPv6 packet that each link must carry (RFC 8200 §5).
const MIN_IPV6_MTU: u32 = 1280;

/// DSCP CS6, "internetwork control", which RFC 1812 §4.3.2.5 demands for errors.
const TOS_CONTROL: u8 = 0xc0;

/// Hop limit of the errors.
const ERROR_TTL: u8 = 64;

/// Headers before the quote in an ICMPv4 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ErrorHeaders {
    /// Ethernet header.
    pub eth: EthHdr,
    /// IPv4 header.
    pub ip: Ipv4Hdr,
    /// ICMP header.
    pub icmp: Icmpv4Hdr,
}

impl ErrorHeaders {
    /// Bytes on the wire.
    pub const LEN: usize = 42;
    /// Bytes of the frame with the quote.
    pub const FRAME_LEN: usize = Self::LEN + QUOTE_V4_LEN;
}

/// Headers before the quote in an ICMPv6 "packet too big".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PacketTooBigHeaders {
    /// Ethernet header.
    pub eth: EthHdr,
    /// IPv6 header.
    pub ip: Ipv6Hdr,
    /// ICMPv6 header.
    pub icmp: Icmpv6Hdr,
}

impl PacketTooBigHeaders {
    /// Bytes on the wire.
    pub const LEN: usize = 62;
    /// Bytes of the frame with the quote.
    pub const FRAME_LEN: usize = Self::LEN + QUOTE_V6_LEN;
}

const _: () = assert!(size_of::<ErrorHeaders>() == ErrorHeaders::LEN);
const _: () = assert!(size_of::<PacketTooBigHeaders>() == PacketTooBigHeaders::LEN);

/// Length in bytes of the longest L3 packet on the wire of a frame whose L3 packet has `l3_len`
/// bytes. A GSO frame is sent in segments of `gso_size` bytes of payload after `headers_len`
/// bytes of IP and transport headers. `gso_size` is 0 if the frame is not a GSO frame.
#[inline(always)]
pub const fn longest_packet(l3_len: u32, gso_size: u32, headers_len: u32) -> u32 {
    let segment = gso_size.saturating_add(headers_len);
    if gso_size == 0 || l3_len < segment { l3_len } else { segment }
}

/// Whether an ICMPv4 error may answer this packet (RFC 1122 §3.2.2): both addresses are those of
/// single hosts, and the packet is neither a fragment other than the first nor an ICMP error.
/// `icmp_type` is the type of an ICMP packet. If it is `None` for an ICMP packet, the type could
/// not be read, and no error may be sent.
///
/// DF does not matter: no node fragments on an overlay link, so the sender must get the error in
/// both cases.
#[inline(always)]
pub fn icmp_allowed(eth: &EthHdr, ip: &Ipv4Hdr, icmp_type: Option<u8>) -> bool {
    if ethernet::is_multicast(&eth.dst) || ethernet::is_multicast(&eth.src) || !ip.is_first() {
        return false;
    }
    if !ipv4::is_host(&ip.src) || !ipv4::is_host(&ip.dst) {
        return false;
    }
    if ip.protocol() != PROTO_ICMP {
        return true;
    }
    match icmp_type {
        None => false,
        Some(kind) => !matches!(
            kind,
            V4_UNREACHABLE
                | V4_SOURCE_QUENCH
                | V4_REDIRECT
                | V4_TIME_EXCEEDED
                | V4_PARAMETER_PROBLEM
        ),
    }
}

/// Whether an ICMPv6 error may answer this packet (RFC 4443 §2.4 (e)). `icmp_type` is as in
/// [`icmp_allowed`]. RFC 4443 allows a "packet too big" in answer to a multicast packet, but it
/// would need a source address of this host in the network, which does not exist.
#[inline(always)]
pub fn icmpv6_allowed(eth: &EthHdr, ip: &Ipv6Hdr, icmp_type: Option<u8>) -> bool {
    if ethernet::is_multicast(&eth.dst)
        || ethernet::is_multicast(&eth.src)
        || ipv6::is_multicast(&ip.dst)
        || ipv6::is_multicast(&ip.src)
        || ipv6::is_unspecified(&ip.src)
        || ipv6::is_unspecified(&ip.dst)
    {
        return false;
    }
    if ip.next_header() != NEXT_ICMPV6 {
        return true;
    }
    match icmp_type {
        None => false,
        // RFC 4443 §2.1: errors have the high bit of the type clear.
        Some(kind) => kind & 0x80 != 0 && kind != V6_REDIRECT,
    }
}

/// An ICMPv4 error to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Source address.
    pub from: [u8; 4],
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Next-hop MTU of a "fragmentation needed", else 0.
    pub mtu: u16,
}

/// The headers of an ICMPv4 error that answers the packet `ip` in the frame `eth`. The first
/// `quote_len` bytes of the packet follow the headers; `quote` is their sum.
#[inline(always)]
pub fn error(
    eth: &EthHdr,
    ip: &Ipv4Hdr,
    error: &Error,
    quote_len: u16,
    quote: Sum,
) -> ErrorHeaders {
    let tot_len = (ErrorHeaders::LEN - EthHdr::LEN) as u16 + quote_len;
    let &Error { from, kind, code, mtu } = error;
    let [high, low] = mtu.to_be_bytes();
    let mut icmp = Icmpv4Hdr::new(kind, code, [0, 0, high, low]);
    let sum = quote.add_u16(u16::from_be_bytes([kind, code])).add_u16(mtu);
    icmp.set_checksum(sum.checksum());
    ErrorHeaders {
        eth: EthHdr::new(eth.src, eth.dst, ETH_P_IP),
        ip: Ipv4Hdr::new(from, ip.src, PROTO_ICMP, tot_len, TOS_CONTROL, ERROR_TTL),
        icmp,
    }
}

/// The headers of the "packet too big" that answers the packet `ip` in the
/// frame `eth`; `mtu` is the largest inner L3 packet, `quote` as in [`error`], over
/// [`QUOTE_V6_LEN`] bytes.
#[inline(always)]
pub fn packet_too_big(eth: &EthHdr, ip: &Ipv6Hdr, mtu: u32, quote: Sum) -> PacketTooBigHeaders {
    const PAYLOAD_LEN: u16 = (Icmpv6Hdr::LEN + QUOTE_V6_LEN) as u16;
    let mut icmp = Icmpv6Hdr::new(V6_PACKET_TOO_BIG, 0, mtu.to_be_bytes());
    let sum = quote
        .add_pseudo_ipv6(&ip.dst, &ip.src, NEXT_ICMPV6, PAYLOAD_LEN as u32)
        .add_u16((V6_PACKET_TOO_BIG as u16) << 8)
        .add_u32(mtu);
    icmp.set_checksum(sum.checksum());
    PacketTooBigHeaders {
        eth: EthHdr::new(eth.src, eth.dst, ETH_P_IPV6),
        ip: Ipv6Hdr::new(ip.dst, ip.src, NEXT_ICMPV6, PAYLOAD_LEN, ERROR_TTL),
        icmp,
    }
}

/// Whether an ICMP error quotes a UDP datagram without a checksum from `own`, this host's VTEP
/// address, as those of the tunnel are. Other datagrams are those of the host's sockets, also the
/// agent's probes of the path.
#[inline(always)]
pub fn is_of_tunnel(own: &[u8; 4], ip: &Ipv4Hdr, udp: &UdpHdr) -> bool {
    ip.header_len() == Ipv4Hdr::LEN as u32
        && ip.protocol() == PROTO_UDP
        && ip.src == *own
        && udp.checksum() == 0
}

/// Whether the programs may have sent the datagram of the tunnel that an ICMP error with the MTU
/// `next_hop_mtu` quotes. They send no fragments, the source port is of a known range, and no
/// router refuses a datagram that is within its MTU. The length of the IP header is not compared:
/// old systems quote it with another value.
#[inline(always)]
pub fn could_be_sent(ip: &Ipv4Hdr, udp: &UdpHdr, next_hop_mtu: u16) -> bool {
    !ip.is_fragment()
        && udp.src_port() >= LEAST_ENTROPY_PORT
        && udp.len() as u32 + Ipv4Hdr::LEN as u32 > next_hop_mtu as u32
}

/// The VNI in a quoted VXLAN header. `None` if the programs write no such header.
#[inline(always)]
pub fn quoted_vni(vxlan: &VxlanHdr) -> Option<u32> {
    (vxlan.is_vni_valid() && !vxlan.reserved_bits_set()).then(|| vxlan.vni())
}

/// The largest inner L3 packet, in bytes, if a router of the underlay reports `next_hop_mtu`.
/// `inner_mtu` is the present largest one, and `overhead` the number of bytes that the
/// encapsulation adds to the inner L3 packet.
///
/// `None` if the report does not lower the largest inner L3 packet, or if it is no path's MTU: it
/// is 0 (RFC 1191 §5, an old router; the sender must find the loss by its own probing), or below
/// [`MIN_PATH_MTU`].
#[inline(always)]
pub const fn path_mtu_from_icmp(next_hop_mtu: u16, inner_mtu: u32, overhead: u32) -> Option<u32> {
    let mtu = next_hop_mtu as u32;
    if mtu < MIN_PATH_MTU {
        return None;
    }
    let inner = mtu.saturating_sub(overhead);
    if inner < inner_mtu { Some(inner) } else { None }
}

/// The largest L3 packet of the EtherType `ethertype` in bytes, where `inner_mtu` is the largest
/// one on the path and `route` the largest one on the route.
///
/// No path MTU stops IPv6: its senders make no packet smaller than 1280 bytes because of an error
/// (RFC 8200 §5). Such a packet is sent as long as the route takes it. On a path that does not take
/// it, it is lost.
#[inline(always)]
pub const fn for_ethertype(ethertype: u16, inner_mtu: u32, route: u32) -> u32 {
    let least = if route < MIN_IPV6_MTU { route } else { MIN_IPV6_MTU };
    if ethertype == ETH_P_IPV6 && inner_mtu < least { least } else { inner_mtu }
}
