//! ARP for IPv4 over Ethernet (RFC 826).

use bytemuck::{Pod, Zeroable};

use super::ethernet::ETH_P_IP;

/// Operation of a request.
pub const ARP_REQUEST: u16 = 1;
/// Operation of a reply.
pub const ARP_REPLY: u16 = 2;

/// Hardware type of Ethernet.
const HTYPE_ETHERNET: u16 = 1;

/// ARP packet with Ethernet and IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ArpIpv4 {
    htype: [u8; 2],
    ptype: [u8; 2],
    hlen: u8,
    plen: u8,
    oper: [u8; 2],
    /// Sender MAC.
    pub sender_mac: [u8; 6],
    /// Sender IP; zero in a probe (RFC 5227 §1.1).
    pub sender_ip: [u8; 4],
    /// Target MAC; without meaning in a request.
    pub target_mac: [u8; 6],
    /// Target IP.
    pub target_ip: [u8; 4],
}

wire_header!(ArpIpv4 = 28);

impl ArpIpv4 {
    /// Packet of operation `oper`.
    #[inline(always)]
    pub const fn new(
        oper: u16,
        sender_mac: [u8; 6],
        sender_ip: [u8; 4],
        target_mac: [u8; 6],
        target_ip: [u8; 4],
    ) -> Self {
        Self {
            htype: HTYPE_ETHERNET.to_be_bytes(),
            ptype: ETH_P_IP.to_be_bytes(),
            hlen: 6,
            plen: 4,
            oper: oper.to_be_bytes(),
            sender_mac,
            sender_ip,
            target_mac,
            target_ip,
        }
    }

    /// Whether the packet is about Ethernet and IPv4, as the layout presumes.
    #[inline(always)]
    pub const fn is_ethernet_ipv4(&self) -> bool {
        u16::from_be_bytes(self.htype) == HTYPE_ETHERNET
            && u16::from_be_bytes(self.ptype) == ETH_P_IP
            && self.hlen == 6
            && self.plen == 4
    }

    /// Operation: [`ARP_REQUEST`], [`ARP_REPLY`] or another.
    #[inline(always)]
    pub const fn oper(&self) -> u16 {
        u16::from_be_bytes(self.oper)
    }
}
