//! IPv4 (RFC 791).

use bytemuck::{Pod, Zeroable};

use super::checksum::{self, Sum};

/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

/// "Don't fragment" in the flags and offset field.
const DF: u16 = 0x4000;
/// "More fragments" in the flags and offset field.
const MF: u16 = 0x2000;
/// The offset in the flags and offset field.
const OFFSET: u16 = 0x1fff;

/// Whether `ip` is a multicast address (224.0.0.0/4, RFC 1112).
#[inline(always)]
pub const fn is_multicast(ip: &[u8; 4]) -> bool {
    ip[0] & 0xf0 == 0xe0
}

/// Whether `ip` can be the address of a single host on a link: not this-network, loopback,
/// multicast, reserved or broadcast (RFC 1122 §3.2.1.3).
#[inline(always)]
pub const fn is_host(ip: &[u8; 4]) -> bool {
    ip[0] != 0 && ip[0] != 127 && ip[0] < 0xe0
}

/// IPv4 header without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Hdr {
    version_ihl: u8,
    tos: u8,
    tot_len: [u8; 2],
    id: [u8; 2],
    frag_off: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
}

wire_header!(Ipv4Hdr = 20);

impl Ipv4Hdr {
    /// Header without options: DF set, identification 0, checksum filled in
    /// (RFC 6864 §4.1: an atomic datagram needs no identification).
    #[inline(always)]
    pub const fn new(
        src: [u8; 4],
        dst: [u8; 4],
        protocol: u8,
        tot_len: u16,
        tos: u8,
        ttl: u8,
    ) -> Self {
        // The sum is over the values, not over the bytes: a few additions, most of them of
        // constants.
        let sum = Sum::new()
            .add_u16(0x4500 | tos as u16)
            .add_u16(tot_len)
            .add_u16(DF)
            .add_u16(((ttl as u16) << 8) | protocol as u16)
            .add_u32(u32::from_be_bytes(src))
            .add_u32(u32::from_be_bytes(dst));
        Self {
            version_ihl: 0x45,
            tos,
            tot_len: tot_len.to_be_bytes(),
            id: [0; 2],
            frag_off: DF.to_be_bytes(),
            ttl,
            protocol,
            checksum: sum.checksum().to_be_bytes(),
            src,
            dst,
        }
    }

    /// Version; 4 in a valid header.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Bytes of the header with its options; at least 20 in a valid header.
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        ((self.version_ihl & 0x0f) as u32) * 4
    }

    /// DSCP (upper six bits) and ECN (lower two).
    #[inline(always)]
    pub const fn tos(&self) -> u8 {
        self.tos
    }

    /// Sets DSCP and ECN and brings the checksum up to date.
    #[inline(always)]
    pub const fn set_tos(&mut self, tos: u8) {
        let old = u16::from_be_bytes([self.version_ihl, self.tos]);
        let new = u16::from_be_bytes([self.version_ihl, tos]);
        self.checksum = checksum::update_u16(self.checksum(), old, new).to_be_bytes();
        self.tos = tos;
    }

    /// Sets DSCP, ECN and the length of the packet, and brings the checksum up to date.
    #[inline(always)]
    pub const fn set_tos_and_len(&mut self, tos: u8, tot_len: u16) {
        // The version and IHL beside the TOS are in both sums and cancel out.
        let sum = Sum::new()
            .add_u16(!self.checksum())
            .add_u16(!(self.tos as u16))
            .add_u16(!self.tot_len())
            .add_u16(tos as u16)
            .add_u16(tot_len);
        self.checksum = sum.checksum().to_be_bytes();
        self.tos = tos;
        self.tot_len = tot_len.to_be_bytes();
    }

    /// Sets both addresses and brings the checksum up to date.
    #[inline(always)]
    pub const fn set_addresses(&mut self, src: [u8; 4], dst: [u8; 4]) {
        let sum = Sum::new()
            .add_u16(!self.checksum())
            .add_u32(!u32::from_be_bytes(self.src))
            .add_u32(!u32::from_be_bytes(self.dst))
            .add_u32(u32::from_be_bytes(src))
            .add_u32(u32::from_be_bytes(dst));
        self.checksum = sum.checksum().to_be_bytes();
        self.src = src;
        self.dst = dst;
    }

    /// Decrements the TTL, which must not be 0, and brings the checksum up to date (RFC 1624).
    #[inline(always)]
    pub const fn decrement_ttl(&mut self) {
        let old = u16::from_be_bytes([self.ttl, self.protocol]);
        self.ttl = self.ttl.wrapping_sub(1);
        let new = u16::from_be_bytes([self.ttl, self.protocol]);
        self.checksum = checksum::update_u16(self.checksum(), old, new).to_be_bytes();
    }

    /// Bytes of the packet, header included.
    #[inline(always)]
    pub const fn tot_len(&self) -> u16 {
        u16::from_be_bytes(self.tot_len)
    }

    /// Identification.
    #[inline(always)]
    pub const fn id(&self) -> u16 {
        u16::from_be_bytes(self.id)
    }

    /// Flags and fragment offset, the whole field of 16 bits.
    #[inline(always)]
    pub const fn frag_off(&self) -> u16 {
        u16::from_be_bytes(self.frag_off)
    }

    /// Whether the packet is a fragment: the first, a middle or the last one.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.frag_off() & (MF | OFFSET) != 0
    }

    /// Whether the payload begins in this packet: it is not a fragment, or the first one.
    #[inline(always)]
    pub const fn is_first(&self) -> bool {
        self.frag_off() & OFFSET == 0
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub const fn more_fragments(&self) -> bool {
        self.frag_off() & MF != 0
    }

    /// Time to live.
    #[inline(always)]
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Protocol of the payload.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Header checksum in the header, not verified.
    #[inline(always)]
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes(self.checksum)
    }
}

/// The reference implementation for the tests.
#[cfg(test)]
impl Ipv4Hdr {
    /// Sets the header checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = checksum.to_be_bytes();
    }

    /// The checksum that this header should have. The value is wrong if the header has options,
    /// which are not part of this structure.
    pub fn header_checksum(&self) -> u16 {
        let mut zeroed = *self;
        zeroed.checksum = [0; 2];
        let bytes: [u8; Self::LEN] = bytemuck::cast(zeroed);
        Sum::new().add_bytes(&bytes).checksum()
    }
}
