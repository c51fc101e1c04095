//! VXLAN (RFC 7348 §5).

use bytemuck::{Pod, Zeroable};

/// The I flag: the VNI is valid.
const FLAG_I: u8 = 0x08;

/// VXLAN header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VxlanHdr {
    flags: u8,
    reserved1: [u8; 3],
    vni: [u8; 3],
    reserved2: u8,
}

wire_header!(VxlanHdr = 8);

impl VxlanHdr {
    /// Header with the I flag and the lower 24 bits of `vni`, all else zero.
    #[inline(always)]
    pub const fn new(vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        Self { flags: FLAG_I, reserved1: [0; 3], vni: [a, b, c], reserved2: 0 }
    }

    /// Whether the I flag is set.
    #[inline(always)]
    pub const fn is_vni_valid(&self) -> bool {
        self.flags & FLAG_I != 0
    }

    /// VNI.
    #[inline(always)]
    pub const fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.vni[0], self.vni[1], self.vni[2]])
    }

    /// Whether any bit is set that must be zero on transmission and ignored on
    /// receipt.
    #[inline(always)]
    pub const fn reserved_bits_set(&self) -> bool {
        (self.flags & !FLAG_I)
            | self.reserved1[0]
            | self.reserved1[1]
            | self.reserved1[2]
            | self.reserved2
            != 0
    }
}
