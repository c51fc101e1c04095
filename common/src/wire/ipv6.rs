//! IPv6 (RFC 8200).

use bytemuck::{Pod, Zeroable};

/// Next header: hop-by-hop options.
pub const NEXT_HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const NEXT_ROUTING: u8 = 43;
/// Next header: fragment.
pub const NEXT_FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302).
pub const NEXT_AUTH: u8 = 51;
/// Next header: ICMPv6.
pub const NEXT_ICMPV6: u8 = 58;
/// Next header: destination options.
pub const NEXT_DEST_OPTIONS: u8 = 60;
/// Next header: mobility (RFC 6275).
pub const NEXT_MOBILITY: u8 = 135;

/// All nodes on the link, `ff02::1`.
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// The unspecified address, `::`.
pub const UNSPECIFIED: [u8; 16] = [0; 16];

/// Whether `ip` is a multicast address (`ff00::/8`).
#[inline(always)]
pub const fn is_multicast(ip: &[u8; 16]) -> bool {
    ip[0] == 0xff
}

/// Whether `ip` is `::`.
#[inline(always)]
pub fn is_unspecified(ip: &[u8; 16]) -> bool {
    *ip == UNSPECIFIED
}

/// Whether `ip` is a solicited-node address, `ff02::1:ff00:0/104` (RFC 4291 §2.7.1).
#[inline(always)]
pub fn is_solicited_node(ip: &[u8; 16]) -> bool {
    let [prefix @ .., _, _, _] = *ip;
    prefix == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

/// The link-local address of a MAC address: `fe80::/64` and the modified EUI-64 identifier
/// (RFC 4291 appendix A, RFC 2464 §5).
#[inline(always)]
pub const fn link_local(mac: &[u8; 6]) -> [u8; 16] {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]]
}

/// The MAC address of a link-local address; `None` if its identifier is not a modified EUI-64.
#[inline(always)]
pub fn mac_of_link_local(ip: &[u8; 16]) -> Option<[u8; 6]> {
    let mac = [ip[8] ^ 2, ip[9], ip[10], ip[13], ip[14], ip[15]];
    (*ip == link_local(&mac)).then_some(mac)
}

/// Length in bytes of the extension header of type `next_header`, whose second byte is `length`.
/// `None`: `next_header` is an upper-layer protocol, or unknown.
#[inline(always)]
pub const fn extension_len(next_header: u8, length: u8) -> Option<u32> {
    match next_header {
        NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DEST_OPTIONS | NEXT_MOBILITY => {
            Some((length as u32 + 1) * 8)
        }
        NEXT_FRAGMENT => Some(8),
        // RFC 4302 §2.2: counted in 32-bit words less two.
        NEXT_AUTH => Some((length as u32 + 2) * 4),
        _ => None,
    }
}

/// IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Hdr {
    vcf: [u8; 4],
    payload_len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
}

wire_header!(Ipv6Hdr = 40);

impl Ipv6Hdr {
    /// Header with traffic class and flow label 0.
    #[inline(always)]
    pub const fn new(
        src: [u8; 16],
        dst: [u8; 16],
        next_header: u8,
        payload_len: u16,
        hop_limit: u8,
    ) -> Self {
        Self {
            vcf: [0x60, 0, 0, 0],
            payload_len: payload_len.to_be_bytes(),
            next_header,
            hop_limit,
            src,
            dst,
        }
    }

    /// Version; 6 in a valid header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.vcf[0] >> 4
    }

    /// Traffic class: DSCP (upper six bits) and ECN (lower two).
    #[inline(always)]
    pub const fn tclass(&self) -> u8 {
        (self.vcf[0] << 4) | (self.vcf[1] >> 4)
    }

    /// Sets the traffic class.
    #[inline(always)]
    pub const fn set_tclass(&mut self, tclass: u8) {
        self.vcf[0] = (self.vcf[0] & 0xf0) | (tclass >> 4);
        self.vcf[1] = (tclass << 4) | (self.vcf[1] & 0x0f);
    }

    /// Bytes after this header; 0 in a jumbogram (RFC 2675).
    #[inline(always)]
    pub const fn payload_len(&self) -> u16 {
        u16::from_be_bytes(self.payload_len)
    }

    /// Type of the next header.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        self.next_header
    }

    /// Hop limit.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }
}
