//! Source address checks: a container may send only from its own addresses.
//!
//! An endpoint with [`EndpointInfo::ALLOW_ANY_SOURCE`] may send from any address that a single
//! host can have.

use super::learn::valid_source;
use crate::abi::{DropReason, EndpointInfo};
use crate::wire::{
    EthHdr, Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr,
    ipv4::{PROTO_TCP, PROTO_UDP},
    ipv6::{self, NEXT_ICMPV6},
};

/// Whether the endpoint is exempt from the checks of its addresses.
#[inline(always)]
pub const fn allows_any_source(ep: &EndpointInfo) -> bool {
    ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0
}

/// Whether `ip` is an IPv4 address of the endpoint. `others` tells whether an address is one of its
/// additional addresses, which [`EndpointInfo`] does not have.
#[inline(always)]
pub fn owns_ipv4(ep: &EndpointInfo, ip: &[u8; 4], others: impl Fn(&[u8; 4]) -> bool) -> bool {
    *ip != [0; 4] && (*ip == ep.ipv4 || others(ip))
}

/// Whether `ip` is an IPv6 address of the endpoint or the link-local address of its MAC. `others`
/// is as in [`owns_ipv4`].
#[inline(always)]
pub fn owns_ipv6(ep: &EndpointInfo, ip: &[u8; 16], others: impl Fn(&[u8; 16]) -> bool) -> bool {
    !ipv6::is_unspecified(ip) && (*ip == ep.ipv6 || *ip == ipv6::link_local(&ep.mac) || others(ip))
}

/// Checks the source MAC.
#[inline(always)]
pub fn check_mac(ep: &EndpointInfo, eth: &EthHdr) -> Result<(), DropReason> {
    if allows_any_source(ep) {
        return if valid_source(&eth.src) { Ok(()) } else { Err(DropReason::InvalidSourceMac) };
    }
    if eth.src == ep.mac { Ok(()) } else { Err(DropReason::SpoofedMac) }
}

/// Checks that an IPv4 header is consistent with `l3_len`, the bytes of the frame from the header
/// on. Returns the length of the header in bytes.
///
/// The frame may be longer than the packet, as Ethernet pads short frames. The packet must not
/// be longer than the frame: its total length would cover bytes that the kernel merges after it.
#[inline(always)]
pub const fn check_ipv4_shape(ip: &Ipv4Hdr, l3_len: u32) -> Result<u32, DropReason> {
    let header_len = ip.header_len();
    let tot_len = ip.tot_len() as u32;
    if ip.version() != 4
        || header_len < Ipv4Hdr::LEN as u32
        || tot_len < header_len
        || tot_len > l3_len
    {
        return Err(DropReason::Malformed);
    }
    Ok(header_len)
}

/// Checks that an IPv6 header is consistent with `l3_len`, as for IPv4. A jumbogram has a payload
/// length of 0 (RFC 2675): the kernel makes jumbograms of GSO frames over 64 KB.
#[inline(always)]
pub const fn check_ipv6_shape(ip: &Ipv6Hdr, l3_len: u32) -> Result<(), DropReason> {
    if ip.version() != 6 || ip.payload_len() as u32 + Ipv6Hdr::LEN as u32 > l3_len {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Checks that an IPv6 packet has all its headers (RFC 7112 §5): a receiver must be able to find
/// the upper-layer header in the first fragment. `protocol` is that of the upper layer, and
/// `offset` the bytes from the IPv6 header to the upper-layer header, as the extension headers say.
/// For packets that are not fragments, and for first fragments.
///
/// The bytes of the frame after the packet are padding. Without this check, padding could look like
/// the end of the headers, while the next fragment has another end: a router advertisement.
///
/// Of ICMPv6, the type, the code and the checksum must be there, as RFC 7112 §3 says. A jumbogram
/// has a payload length of 0 (RFC 2675), and all of its frame belongs to it: the kernel makes
/// jumbograms of GSO frames only, and no receiver takes a fragment without a length.
#[inline(always)]
pub const fn check_ipv6_headers(ip: &Ipv6Hdr, protocol: u8, offset: u32) -> Result<(), DropReason> {
    let upper_len = match protocol {
        PROTO_TCP => TcpHdr::LEN as u32,
        PROTO_UDP => UdpHdr::LEN as u32,
        NEXT_ICMPV6 => 4,
        _ => 0,
    };
    let len = ip.payload_len() as u32;
    if len != 0 && offset.saturating_add(upper_len) > len + Ipv6Hdr::LEN as u32 {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Checks the source of an IPv4 packet; `others` is as in [`owns_ipv4`]. An endpoint without an
/// IPv4 address can send no IPv4 packets, not even from 0.0.0.0: Culvert assigns the addresses, so
/// that no DHCP is needed.
#[inline(always)]
pub fn check_ipv4_source(
    ep: &EndpointInfo,
    ip: &Ipv4Hdr,
    others: impl Fn(&[u8; 4]) -> bool,
) -> Result<(), DropReason> {
    if allows_any_source(ep) || owns_ipv4(ep, &ip.src, others) {
        return Ok(());
    }
    Err(DropReason::SpoofedIp)
}

/// Checks the source of an IPv6 packet: an address of the endpoint, the link-local address of
/// its MAC, or `::` to a multicast address (duplicate address detection, RFC 4862 §5.4.2; MLD,
/// RFC 3590 §4). `others` is as in [`owns_ipv4`].
#[inline(always)]
pub fn check_ipv6_source(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    others: impl Fn(&[u8; 16]) -> bool,
) -> Result<(), DropReason> {
    if allows_any_source(ep)
        || owns_ipv6(ep, &ip.src, others)
        || (ipv6::is_unspecified(&ip.src) && ipv6::is_multicast(&ip.dst))
    {
        return Ok(());
    }
    Err(DropReason::SpoofedIp)
}
