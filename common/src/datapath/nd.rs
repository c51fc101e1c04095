//! Neighbour discovery from a container: checks and suppression (RFC 4861).

use bytemuck::{Pod, Zeroable};

use super::source::{allows_any_source, owns_ipv6};
use crate::abi::{DropReason, EndpointInfo};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ETH_P_IPV6};
use crate::wire::icmp::{
    NA_OVERRIDE, NA_SOLICITED, OPT_SOURCE_LINK_LAYER, OPT_TARGET_LINK_LAYER, V6_NEIGHBOUR_ADVERT,
    V6_NEIGHBOUR_SOLICIT, V6_REDIRECT, V6_ROUTER_ADVERT, V6_ROUTER_SOLICIT,
};
use crate::wire::ipv6::{self, NEXT_ICMPV6};
use crate::wire::{EthHdr, Icmpv6Hdr, Ipv6Hdr, LinkLayerOption, NeighbourHdr};

/// Hop limit of neighbour discovery: a routed packet has a lower one.
const HOP_LIMIT: u8 = 255;

/// Class of an ICMPv6 message of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdKind {
    /// Another ICMPv6 message: forward it like any packet.
    Other,
    /// A solicitation or advertisement of neighbours: see [`nd_query`].
    Neighbour,
    /// A router solicitation: see [`check_router_solicit`].
    RouterSolicit,
}

/// Action for a neighbour message of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdQuery {
    /// Duplicate address detection of the endpoint's own address (RFC 4862
    /// §5.4), or its unsolicited advertisement (RFC 4861 §7.2.6). As with
    /// [`ArpQuery::Absorb`](super::arp::ArpQuery::Absorb), a learning network
    /// floods it.
    Absorb,
    /// A solicitation for the MAC of another address, also for duplicate address detection:
    /// answer with [`nd_reply`] if the neighbour map has the address, else forward.
    Resolve {
        /// The address asked for.
        target: [u8; 16],
    },
    /// An advertisement in answer to a solicitation: forward by its destination MAC.
    Forward,
}

/// Ethernet frame with a neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NdFrame {
    /// Ethernet header.
    pub eth: EthHdr,
    /// IPv6 header.
    pub ip: Ipv6Hdr,
    /// Neighbour advertisement.
    pub advert: NeighbourHdr,
    /// Target link-layer address.
    pub option: LinkLayerOption,
}

impl NdFrame {
    /// Bytes on the wire.
    pub const LEN: usize = 86;
}

const _: () = assert!(size_of::<NdFrame>() == NdFrame::LEN);

/// Classifies an ICMPv6 message that directly follows its IPv6 header.
///
/// [`DropReason::Malformed`] for neighbour discovery with a hop limit other than
/// 255 or a code other than 0 (RFC 4861 §6.1, §7.1, §8.1);
/// [`DropReason::SpoofedNd`] for messages that only a router sends.
#[inline(always)]
pub const fn nd_kind(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    icmp: &Icmpv6Hdr,
) -> Result<NdKind, DropReason> {
    if !icmp.is_neighbour_discovery() {
        return Ok(NdKind::Other);
    }
    if ip.hop_limit() != HOP_LIMIT || icmp.code() != 0 {
        return Err(DropReason::Malformed);
    }
    match icmp.kind() {
        V6_ROUTER_SOLICIT => Ok(NdKind::RouterSolicit),
        V6_ROUTER_ADVERT | V6_REDIRECT if allows_any_source(ep) => Ok(NdKind::Other),
        V6_ROUTER_ADVERT | V6_REDIRECT => Err(DropReason::SpoofedNd),
        _ => Ok(NdKind::Neighbour),
    }
}

/// Whether a packet with IPv6 extension headers must be dropped because it is a neighbour
/// discovery message. Linux accepts a solicitation after a hop-by-hop header, so such a message
/// would escape the checks of messages without extension headers. No host sends such messages
/// (RFC 6980 §5 forbids them with fragments). A receiver accepts them only with a hop limit of
/// 255, so that other packets pass.
///
/// `last` is the next header after the last extension header that [`ipv6::extension_len`] knows.
#[inline(always)]
pub const fn is_disguised(ep: &EndpointInfo, ip: &Ipv6Hdr, last: u8) -> bool {
    !allows_any_source(ep)
        && ip.hop_limit() == HOP_LIMIT
        && ip.next_header() != NEXT_ICMPV6
        && last == NEXT_ICMPV6
}

/// Checks a router solicitation (RFC 4861 §6.1.1). `option` is its first option, if it has one: a
/// link-layer address in it must be the endpoint's.
#[inline(always)]
pub fn check_router_solicit(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    option: Option<&LinkLayerOption>,
) -> Result<(), DropReason> {
    check_options(ep, ip, Icmpv6Hdr::LEN as u16, OPT_SOURCE_LINK_LAYER, option)
}

/// Checks a neighbour solicitation or advertisement of `ep`. Returns the action for it. `option`
/// has the bytes after the 24 bytes of `message`, `None` if the frame ends there. The length in
/// the IPv6 header tells whether they belong to the message. `others` is as in
/// [`owns_ipv4`](super::source::owns_ipv4). The caller has called [`nd_kind`] and
/// [`check_ipv6_source`](super::source::check_ipv6_source).
///
/// At most one option of eight bytes is accepted, as hosts send it (a link-layer address, or the
/// nonce of RFC 7527): a second option could hide an address from the check.
/// [`DropReason::Malformed`] by RFC 4861 §7.1.1 and §7.1.2; [`DropReason::SpoofedNd`] if an
/// option or an advertisement has an address that is not the endpoint's.
#[inline(always)]
pub fn nd_query(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    message: &NeighbourHdr,
    option: Option<&LinkLayerOption>,
    others: impl Fn(&[u8; 16]) -> bool,
) -> Result<NdQuery, DropReason> {
    if ipv6::is_multicast(&message.target) || ipv6::is_unspecified(&message.target) {
        return Err(DropReason::Malformed);
    }
    if message.icmp.kind() == V6_NEIGHBOUR_SOLICIT {
        solicit(ep, ip, message, option, others)
    } else {
        advert(ep, ip, message, option, others)
    }
}

#[inline(always)]
fn solicit(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    message: &NeighbourHdr,
    option: Option<&LinkLayerOption>,
    others: impl Fn(&[u8; 16]) -> bool,
) -> Result<NdQuery, DropReason> {
    check_options(ep, ip, NeighbourHdr::LEN as u16, OPT_SOURCE_LINK_LAYER, option)?;
    if ipv6::is_unspecified(&ip.src) && !ipv6::is_solicited_node(&ip.dst) {
        return Err(DropReason::Malformed);
    }
    if owns_ipv6(ep, &message.target, others) {
        return Ok(NdQuery::Absorb);
    }
    Ok(NdQuery::Resolve { target: message.target })
}

#[inline(always)]
fn advert(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    message: &NeighbourHdr,
    option: Option<&LinkLayerOption>,
    others: impl Fn(&[u8; 16]) -> bool,
) -> Result<NdQuery, DropReason> {
    check_options(ep, ip, NeighbourHdr::LEN as u16, OPT_TARGET_LINK_LAYER, option)?;
    let multicast = ipv6::is_multicast(&ip.dst);
    if multicast && message.flags() & NA_SOLICITED != 0 {
        return Err(DropReason::Malformed);
    }
    let own = owns_ipv6(ep, &message.target, others);
    if !own && !allows_any_source(ep) {
        return Err(DropReason::SpoofedNd);
    }
    Ok(if multicast && own { NdQuery::Absorb } else { NdQuery::Forward })
}

/// Checks that at most one option, of eight bytes, follows the first `fixed` bytes of the message,
/// and that a link-layer address in it has the right type and is the endpoint's.
#[inline(always)]
fn check_options(
    ep: &EndpointInfo,
    ip: &Ipv6Hdr,
    fixed: u16,
    kind: u8,
    option: Option<&LinkLayerOption>,
) -> Result<(), DropReason> {
    if ip.payload_len() == fixed {
        return Ok(());
    }
    let Some(option) = option else {
        return Err(DropReason::Malformed);
    };
    if option.option_len() == 0 || ip.payload_len() < fixed + LinkLayerOption::LEN as u16 {
        return Err(DropReason::Malformed);
    }
    if allows_any_source(ep) {
        return Ok(());
    }
    if ip.payload_len() != fixed + LinkLayerOption::LEN as u16
        || option.option_len() != LinkLayerOption::LEN as u32
    {
        return Err(DropReason::SpoofedNd);
    }
    if option.is_link_layer() {
        // RFC 4861 §4.3: no link-layer option from the unspecified address.
        if option.kind() != kind || ipv6::is_unspecified(&ip.src) {
            return Err(DropReason::Malformed);
        }
        if option.mac != ep.mac {
            return Err(DropReason::SpoofedNd);
        }
    }
    Ok(())
}

/// The advertisement that answers `solicit` from `asker_mac`. `mac` is the MAC of the target. The
/// flags are solicited and override. The answer to duplicate address detection (source `::`) is
/// not flagged as solicited, and goes to all nodes (RFC 4861 §7.2.4).
#[inline(always)]
pub fn nd_reply(asker_mac: [u8; 6], ip: &Ipv6Hdr, solicit: &NeighbourHdr, mac: [u8; 6]) -> NdFrame {
    let (eth_dst, ip_dst, flags) = if ipv6::is_unspecified(&ip.src) {
        (ethernet::ipv6_multicast(&ipv6::ALL_NODES), ipv6::ALL_NODES, NA_OVERRIDE)
    } else {
        (asker_mac, ip.src, NA_SOLICITED | NA_OVERRIDE)
    };
    advert_frame((eth_dst, ip_dst), flags, solicit.target, mac)
}

/// An unsolicited advertisement to all nodes: `target` is at `mac` (RFC 4861 §7.2.6). The flag is
/// override.
#[inline(always)]
pub fn nd_announcement(target: [u8; 16], mac: [u8; 6]) -> NdFrame {
    let all = ipv6::ALL_NODES;
    advert_frame((ethernet::ipv6_multicast(&all), all), NA_OVERRIDE, target, mac)
}

/// The advertisement of `target` at `mac` to a MAC and IPv6 address.
#[inline(always)]
fn advert_frame(
    (eth_dst, ip_dst): ([u8; 6], [u8; 16]),
    flags: u8,
    target: [u8; 16],
    mac: [u8; 6],
) -> NdFrame {
    const ICMP_LEN: u16 = (NeighbourHdr::LEN + LinkLayerOption::LEN) as u16;
    let mut advert = NeighbourHdr::new(V6_NEIGHBOUR_ADVERT, flags, target);
    let option = LinkLayerOption::new(OPT_TARGET_LINK_LAYER, mac);
    let sum = Sum::new()
        .add_pseudo_ipv6(&target, &ip_dst, NEXT_ICMPV6, ICMP_LEN as u32)
        .add_u16((V6_NEIGHBOUR_ADVERT as u16) << 8)
        .add_u16((flags as u16) << 8)
        .add_bytes(&target)
        .add_bytes(&bytemuck::cast::<LinkLayerOption, [u8; LinkLayerOption::LEN]>(option));
    advert.icmp.set_checksum(sum.checksum());
    NdFrame {
        eth: EthHdr::new(eth_dst, mac, ETH_P_IPV6),
        ip: Ipv6Hdr::new(target, ip_dst, NEXT_ICMPV6, ICMP_LEN, HOP_LIMIT),
        advert,
        option,
    }
}
