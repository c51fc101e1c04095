//! TCP (RFC 9293).

use bytemuck::{Pod, Zeroable};

/// FIN, in [`TcpStart::flags`].
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// Whether a segment with these flags opens a connection: a SYN without ACK and RST.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN
}

/// The first 14 bytes of a TCP header, up to its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpStart {
    src_port: [u8; 2],
    dst_port: [u8; 2],
    seq: [u8; 4],
    ack: [u8; 4],
    doff: u8,
    flags: u8,
}

wire_header!(TcpStart = 14);

impl TcpStart {
    /// Sequence number.
    #[inline(always)]
    pub const fn seq(&self) -> u32 {
        u32::from_be_bytes(self.seq)
    }

    /// Acknowledgement number.
    #[inline(always)]
    pub const fn ack(&self) -> u32 {
        u32::from_be_bytes(self.ack)
    }

    /// CWR, ECE, URG, ACK, PSH, RST, SYN, FIN, from the highest bit down.
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Bytes of the header with its options; at least 20 in a valid header.
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        ((self.doff >> 4) as u32) * 4
    }
}

/// TCP header without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TcpHdr {
    start: TcpStart,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

wire_header!(TcpHdr = 20);

impl TcpHdr {
    /// See [`TcpStart::header_len`].
    #[inline(always)]
    pub const fn header_len(&self) -> u32 {
        self.start.header_len()
    }
}

/// Fields that only tests read.
#[cfg(test)]
impl TcpHdr {
    /// The first 14 bytes.
    pub const fn start(&self) -> TcpStart {
        self.start
    }

    /// Source port.
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes(self.start.src_port)
    }

    /// Destination port.
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes(self.start.dst_port)
    }

    /// Window, unscaled.
    pub const fn window(&self) -> u16 {
        u16::from_be_bytes(self.window)
    }

    /// Checksum in the header, not verified.
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes(self.checksum)
    }
}
