//! ARP from a container: checks and suppression (RFC 826, RFC 5227).

use bytemuck::{Pod, Zeroable};

use super::source::{allows_any_source, owns_ipv4};
use crate::abi::{DropReason, EndpointInfo};
use crate::wire::ethernet::{BROADCAST, ETH_P_ARP};
use crate::wire::{ARP_REPLY, ARP_REQUEST, ArpIpv4, EthHdr};

/// Action for an ARP packet of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpQuery {
    /// The endpoint announces its own address (gratuitous request or reply, RFC 5227 §3) or probes
    /// it (§2.1.1). If the neighbour map is complete, no host needs the packet and no host may
    /// claim the address: the packet is absorbed. In a learning network the caller floods it:
    /// hosts that are not in the map may have the address, or an old ARP entry for it.
    Absorb,
    /// A request for the MAC of another address, also as a probe (RFC 5227): answer with
    /// [`arp_reply`] if the neighbour map has the address, else forward.
    Resolve {
        /// The address asked for.
        target: [u8; 4],
    },
    /// A reply: forward by its destination MAC.
    Forward,
}

/// Ethernet frame with an ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ArpFrame {
    /// Ethernet header.
    pub eth: EthHdr,
    /// ARP packet.
    pub arp: ArpIpv4,
}

impl ArpFrame {
    /// Bytes on the wire, without padding.
    pub const LEN: usize = 42;
}

const _: () = assert!(size_of::<ArpFrame>() == ArpFrame::LEN);

/// Checks an ARP packet of `ep`. Returns the action for it.
///
/// The sender must be the endpoint: its MAC and an IP of it, or 0.0.0.0 in a request (a probe).
/// `others` is as in [`owns_ipv4`]. Fails with [`DropReason::Malformed`] if the packet is not a
/// request or reply for IPv4 over Ethernet, and with [`DropReason::SpoofedArp`] if the sender is
/// not the endpoint.
#[inline(always)]
pub fn arp_query(
    ep: &EndpointInfo,
    arp: &ArpIpv4,
    others: impl Fn(&[u8; 4]) -> bool,
) -> Result<ArpQuery, DropReason> {
    let request = match (arp.is_ethernet_ipv4(), arp.oper()) {
        (true, ARP_REQUEST) => true,
        (true, ARP_REPLY) => false,
        _ => return Err(DropReason::Malformed),
    };
    let probe = request && arp.sender_ip == [0; 4];
    if !allows_any_source(ep) {
        let own = arp.sender_mac == ep.mac && (probe || owns_ipv4(ep, &arp.sender_ip, &others));
        if !own {
            return Err(DropReason::SpoofedArp);
        }
    }
    let own_target = probe && owns_ipv4(ep, &arp.target_ip, others);
    Ok(if arp.sender_ip == arp.target_ip || own_target {
        ArpQuery::Absorb
    } else if request {
        ArpQuery::Resolve { target: arp.target_ip }
    } else {
        ArpQuery::Forward
    })
}

/// The request of a host with the addresses `mac` and `ip` for the MAC of `target`, to all hosts
/// (RFC 826).
#[inline(always)]
pub const fn arp_request_frame(mac: [u8; 6], ip: [u8; 4], target: [u8; 4]) -> ArpFrame {
    ArpFrame {
        eth: EthHdr::new(BROADCAST, mac, ETH_P_ARP),
        arp: ArpIpv4::new(ARP_REQUEST, mac, ip, [0; 6], target),
    }
}

/// The reply to `request`. `mac` is the MAC of its target address (RFC 826). The reply to a probe
/// has the target 0.0.0.0, as that of a defender in RFC 5227 §2.1.1.
#[inline(always)]
pub const fn arp_reply(request: &ArpIpv4, mac: [u8; 6]) -> ArpIpv4 {
    ArpIpv4::new(ARP_REPLY, mac, request.target_ip, request.sender_mac, request.sender_ip)
}

/// The frame with the reply to `request`.
#[inline(always)]
pub const fn arp_reply_frame(request: &ArpIpv4, mac: [u8; 6]) -> ArpFrame {
    ArpFrame { eth: EthHdr::new(request.sender_mac, mac, ETH_P_ARP), arp: arp_reply(request, mac) }
}
