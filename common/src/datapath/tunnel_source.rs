//! Source checks of frames from the tunnel: a host may send only from its own endpoints and from
//! its own address.
//!
//! The outer header says which host has sent a frame. The agent's FDB has the host of each
//! endpoint, and the neighbour map has the endpoint's addresses. So the receiver makes the checks of
//! [`source`](super::source), [`arp`](super::arp) and [`nd`](super::nd) again, which the host of
//! the endpoint has made when the container sent the frame.
//!
//! A network that learns has MACs and addresses that are not in the store. There, a frame may have
//! any source except the gateway and the MACs of endpoints of other hosts. The IPv6 sources of such
//! a network are not checked: no gateway has an IPv6 address.

use super::arp::arp_query;
use super::source::check_ipv4_source;
use crate::abi::{DropReason, EndpointInfo, FdbEntry, NetworkInfo, VtepId};
use crate::wire::ethernet::{self, BROADCAST};
use crate::wire::{ARP_REQUEST, ArpIpv4, EthHdr, Ipv4Hdr};

/// Sender of a frame from the tunnel, by its source MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TunnelSource {
    /// The sending host itself: the MAC is the gateway's, which all hosts have.
    Host = 0,
    /// An endpoint of the sending host.
    Endpoint = 1,
    /// A MAC that is not in the store, in a network that learns.
    Unknown = 2,
}

/// Whether the network has MACs and addresses that the store does not have.
#[inline(always)]
pub const fn learns(net: &NetworkInfo) -> bool {
    net.flags & NetworkInfo::LEARNING != 0
}

/// Whether `mac` is the gateway's.
#[inline(always)]
fn is_gateway_mac(net: &NetworkInfo, mac: &[u8; 6]) -> bool {
    !ethernet::is_zero(mac) && *mac == net.gateway_mac
}

/// Whether `ip` is the gateway's.
#[inline(always)]
fn is_gateway_ip(net: &NetworkInfo, ip: &[u8; 4]) -> bool {
    *ip != [0; 4] && *ip == net.gateway_ip
}

/// Finds the sender of a frame that the VTEP `sender` has sent. `place` is the entry of the source
/// MAC in the agent's FDB. Fails with [`DropReason::LocalSourceMac`] if the MAC is that of an
/// endpoint of this host, and with [`DropReason::ForeignSourceMac`] if it is at another VTEP, or
/// nowhere although the network does not learn.
#[inline(always)]
pub fn identify(
    net: &NetworkInfo,
    eth: &EthHdr,
    sender: VtepId,
    place: Option<&FdbEntry>,
) -> Result<TunnelSource, DropReason> {
    if is_gateway_mac(net, &eth.src) {
        return Ok(TunnelSource::Host);
    }
    match place {
        Some(place) if place.ifindex != 0 => Err(DropReason::LocalSourceMac),
        Some(place) if place.vtep == sender => Ok(TunnelSource::Endpoint),
        None if learns(net) => Ok(TunnelSource::Unknown),
        Some(_) | None => Err(DropReason::ForeignSourceMac),
    }
}

/// Checks an IPv4 packet that the host with the VTEP address `vtep` has sent itself: it is for one
/// container, and its source is that address. Fails with [`DropReason::GatewaySource`] or
/// [`DropReason::SpoofedIp`].
#[inline(always)]
pub fn check_host_ipv4(
    net: &NetworkInfo,
    eth: &EthHdr,
    ip: &Ipv4Hdr,
    vtep: &[u8; 4],
) -> Result<(), DropReason> {
    // Hosts send nothing to groups, and reach each other without the tunnel.
    if ethernet::is_multicast(&eth.dst) || is_gateway_mac(net, &eth.dst) {
        return Err(DropReason::GatewaySource);
    }
    if ip.src == *vtep { Ok(()) } else { Err(DropReason::SpoofedIp) }
}

/// Checks an ARP packet that another host has sent itself. Only in a network that learns does a
/// host use ARP: it sends requests of the gateway to all
/// ([`arp_request_frame`](super::arp::arp_request_frame)). Fails with
/// [`DropReason::GatewaySource`].
#[inline(always)]
pub fn check_host_arp(net: &NetworkInfo, eth: &EthHdr, arp: &ArpIpv4) -> Result<(), DropReason> {
    let asks = learns(net)
        && eth.dst == BROADCAST
        && arp.is_ethernet_ipv4()
        && arp.oper() == ARP_REQUEST
        && is_gateway_mac(net, &arp.sender_mac)
        && is_gateway_ip(net, &arp.sender_ip);
    if asks { Ok(()) } else { Err(DropReason::GatewaySource) }
}

/// Checks the source of an IPv4 packet whose source MAC is not the gateway's. `ep` has this MAC and
/// no addresses: `others` tells whether an address is one of the MAC's in the neighbour map. Fails
/// with [`DropReason::GatewaySource`], and in a network that does not learn, as
/// [`check_ipv4_source`] does.
#[inline(always)]
pub fn check_ipv4(
    net: &NetworkInfo,
    ep: &EndpointInfo,
    ip: &Ipv4Hdr,
    others: impl Fn(&[u8; 4]) -> bool,
) -> Result<(), DropReason> {
    if is_gateway_ip(net, &ip.src) {
        return Err(DropReason::GatewaySource);
    }
    if learns(net) { Ok(()) } else { check_ipv4_source(ep, ip, others) }
}

/// Checks the sender of an ARP packet whose frame does not have the gateway's MAC; `ep` and
/// `others` are as in [`check_ipv4`]. Fails with [`DropReason::GatewaySource`], and in a network
/// that does not learn, as [`arp_query`] does.
#[inline(always)]
pub fn check_arp(
    net: &NetworkInfo,
    ep: &EndpointInfo,
    arp: &ArpIpv4,
    others: impl Fn(&[u8; 4]) -> bool,
) -> Result<(), DropReason> {
    if is_gateway_mac(net, &arp.sender_mac) || is_gateway_ip(net, &arp.sender_ip) {
        return Err(DropReason::GatewaySource);
    }
    if learns(net) { Ok(()) } else { arp_query(ep, arp, others).map(|_| ()) }
}
