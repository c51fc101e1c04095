//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A one's complement sum that is not folded yet.
///
/// 64 bits hold the sum of 2^48 words of 16 bits: no packet overflows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// An empty sum.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds one word.
    #[inline(always)]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0.wrapping_add(word as u64))
    }

    /// Adds two words, the high one first on the wire.
    #[inline(always)]
    pub const fn add_u32(self, words: u32) -> Self {
        Self(self.0.wrapping_add((words >> 16) as u64).wrapping_add((words & 0xffff) as u64))
    }

    /// Adds bytes in network order. They must begin at an even offset of the summed data; an odd
    /// last byte is padded with zero (RFC 1071 §4.1).
    // Not inlined in a BPF program: in an unrolled loop all loads come first, and their
    // values do not fit the stack of 512 bytes.
    #[cfg_attr(target_arch = "bpf", inline(never))]
    #[cfg_attr(not(target_arch = "bpf"), inline(always))]
    pub fn add_bytes<const N: usize>(mut self, bytes: &[u8; N]) -> Self {
        let (pairs, rest) = bytes.as_chunks::<2>();
        for pair in pairs {
            self = self.add_u16(u16::from_be_bytes(*pair));
        }
        if let [last] = rest {
            self = self.add_u16(u16::from_be_bytes([*last, 0]));
        }
        self
    }

    /// Adds a sum over words that were read in host order, such as a sum of the kernel's
    /// `csum_partial` or `bpf_csum_diff`. The byte order of the words changes only the byte order
    /// of the sum (RFC 1071 §2 (B)).
    #[inline(always)]
    pub const fn add_host_order(self, sum: u32) -> Self {
        self.add_u16(Self(sum as u64).fold().to_be())
    }

    /// Adds the pseudo header of an upper layer over IPv4 (RFC 9293 §3.1). `len` are the bytes of
    /// its header and payload.
    #[inline(always)]
    pub const fn add_pseudo_ipv4(self, src: [u8; 4], dst: [u8; 4], protocol: u8, len: u16) -> Self {
        let addresses = self.add_u32(u32::from_be_bytes(src)).add_u32(u32::from_be_bytes(dst));
        addresses.add_u16(protocol as u16).add_u16(len)
    }

    /// Adds the pseudo header of an upper layer over IPv6 (RFC 8200 §8.1).
    #[inline(always)]
    pub fn add_pseudo_ipv6(
        self,
        src: &[u8; 16],
        dst: &[u8; 16],
        next_header: u8,
        len: u32,
    ) -> Self {
        self.add_bytes(src).add_bytes(dst).add_u32(len).add_u16(next_header as u16)
    }

    /// The sum in 16 bits, carries added back in, not complemented.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }

    /// The checksum: the complement of [`fold`](Self::fold).
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Whether `sum` is that of a packet with a right checksum: over all that the checksum covers, and
/// over the checksum itself (RFC 1071 §1).
#[inline(always)]
pub const fn is_whole(sum: Sum) -> bool {
    sum.fold() == 0xffff
}

/// The new value of `checksum` after a word that it covers changed from `old` to `new` (RFC 1624
/// §3, equation 3).
#[inline(always)]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::new().add_u16(!checksum).add_u16(!old).add_u16(new).checksum()
}
