//! UDP (RFC 768).

use bytemuck::{Pod, Zeroable};

/// UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHdr {
    src_port: [u8; 2],
    dst_port: [u8; 2],
    len: [u8; 2],
    checksum: [u8; 2],
}

wire_header!(UdpHdr = 8);

impl UdpHdr {
    /// Header without a checksum (0: none computed, RFC 768).
    #[inline(always)]
    pub const fn new(src_port: u16, dst_port: u16, len: u16) -> Self {
        Self {
            src_port: src_port.to_be_bytes(),
            dst_port: dst_port.to_be_bytes(),
            len: len.to_be_bytes(),
            checksum: [0; 2],
        }
    }

    /// Sets the source port and the length, of a datagram without a checksum.
    #[inline(always)]
    pub const fn set_src_port_and_len(&mut self, src_port: u16, len: u16) {
        self.src_port = src_port.to_be_bytes();
        self.len = len.to_be_bytes();
    }

    /// Source port.
    #[inline(always)]
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes(self.src_port)
    }

    /// Destination port.
    #[inline(always)]
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes(self.dst_port)
    }

    /// Bytes of header and payload.
    #[inline(always)]
    pub const fn len(&self) -> u16 {
        u16::from_be_bytes(self.len)
    }

    /// Whether the length field is less than the length of the header.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        (self.len() as usize) < Self::LEN
    }

    /// Checksum; 0 if the sender computed none.
    #[inline(always)]
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes(self.checksum)
    }
}
