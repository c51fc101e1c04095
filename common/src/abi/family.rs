//! IP address families.

use core::fmt::Debug;
use core::hash::Hash;

use bytemuck::{Pod, Zeroable};

/// A family of IP addresses. The maps of translated flows are generic over the family. They are
/// read for every packet, so their keys must not be larger than the family needs.
///
/// # Safety
///
/// `Addr` has an alignment of 1 and a size that is a multiple of 4 bytes.
pub unsafe trait Family: Copy + Debug + Default + Eq + Ord + Hash + 'static {
    /// An address, in network order.
    type Addr: Pod + Debug + Default + Eq + Ord + Hash;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

// SAFETY: four bytes, with an alignment of 1.
unsafe impl Family for V4 {
    type Addr = [u8; 4];
}

/// An IPv6 address, or an IPv4 address mapped to IPv6 (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2). It
/// is the key of maps that have both families and are not read for every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct MappedAddr(pub [u8; 16]);

impl MappedAddr {
    /// The unspecified address `::`, which no host has.
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// Bits of an address.
    pub const BITS: u32 = 128;

    /// Bits of the prefix whose addresses are the mapped IPv4 ones.
    pub const V4_PREFIX: u32 = 96;

    /// An IPv4 address.
    #[inline(always)]
    pub const fn v4(ip: [u8; 4]) -> Self {
        // The address is made of words: from bytes, the compiler would make a call of `memset` in a
        // BPF program.
        let words = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(ip)];
        // SAFETY: both types have 16 bytes, and every bit pattern is valid.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }

    /// The last four bytes, which are the IPv4 address if this is a mapped one.
    #[inline(always)]
    pub const fn low(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// The IPv4 address, if this is a mapped one.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }
}

const _: () = assert!(size_of::<MappedAddr>() == 16);
