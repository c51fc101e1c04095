//! Ethernet II (IEEE 802.3, RFC 894).

use bytemuck::{Pod, Zeroable};

/// EtherType of IPv4 (RFC 894).
pub const ETH_P_IP: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const ETH_P_ARP: u16 = 0x0806;
/// EtherType of a customer VLAN tag (IEEE 802.1Q).
pub const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of IPv6 (RFC 2464).
pub const ETH_P_IPV6: u16 = 0x86dd;
/// EtherType of a service VLAN tag (IEEE 802.1ad).
pub const ETH_P_8021AD: u16 = 0x88a8;
/// EtherType of a service VLAN tag before IEEE 802.1ad (linux/if_ether.h). Linux has no VLAN
/// devices for it, but switches and network cards take it for a tag.
pub const ETH_P_QINQ1: u16 = 0x9100;
/// See [`ETH_P_QINQ1`].
pub const ETH_P_QINQ2: u16 = 0x9200;
/// See [`ETH_P_QINQ1`].
pub const ETH_P_QINQ3: u16 = 0x9300;

/// The broadcast address.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Whether `mac` is a group address (I/G bit), broadcast included.
#[inline(always)]
pub const fn is_multicast(mac: &[u8; 6]) -> bool {
    mac[0] & 1 != 0
}

/// Whether `mac` is the address of a group of IPv4 (RFC 1112 §6.4) or IPv6 (RFC 2464 §7).
#[inline(always)]
pub const fn is_group_of_ip(mac: &[u8; 6]) -> bool {
    matches!(mac, [0x01, 0x00, 0x5e, ..] | [0x33, 0x33, ..])
}

/// Whether `mac` is all zero.
#[inline(always)]
pub const fn is_zero(mac: &[u8; 6]) -> bool {
    mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5] == 0
}

/// The group address to which an IPv6 multicast packet is sent (RFC 2464 §7).
#[inline(always)]
pub const fn ipv6_multicast(ip: &[u8; 16]) -> [u8; 6] {
    [0x33, 0x33, ip[12], ip[13], ip[14], ip[15]]
}

/// Ethernet header without a VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct EthHdr {
    /// Destination address.
    pub dst: [u8; 6],
    /// Source address.
    pub src: [u8; 6],
    ethertype: [u8; 2],
}

wire_header!(EthHdr = 14);

impl EthHdr {
    /// Header of a frame.
    #[inline(always)]
    pub const fn new(dst: [u8; 6], src: [u8; 6], ethertype: u16) -> Self {
        Self { dst, src, ethertype: ethertype.to_be_bytes() }
    }

    /// EtherType, or a length where it is below 1536.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes(self.ethertype)
    }

    /// Whether a VLAN tag follows (IEEE 802.1Q or 802.1ad, or a tag that was in use before
    /// 802.1ad).
    #[inline(always)]
    pub const fn is_vlan(&self) -> bool {
        matches!(
            self.ethertype(),
            ETH_P_8021Q | ETH_P_8021AD | ETH_P_QINQ1 | ETH_P_QINQ2 | ETH_P_QINQ3
        )
    }
}
