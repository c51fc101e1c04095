//! Keys and values of fragment tracking.

use bytemuck::{Pod, Zeroable};

use super::{
    capacity::HELD_FRAME_LEN,
    family::{Family, V4},
};

/// Key of [`names::FRAGMENTS`](super::names::FRAGMENTS) and
/// [`names::HELD_FRAGMENTS`](super::names::HELD_FRAGMENTS): a fragmented datagram
/// (RFC 791 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey<F: Family = V4> {
    /// Zone that the datagram comes from, as [`FlowKey::zone`](super::FlowKey::zone).
    pub zone: u32,
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Identification, network order; the 16 bits of IPv4 in the last two bytes.
    pub id: [u8; 4],
    /// IP protocol.
    pub protocol: u8,
    /// Slot of the fragment in [`names::HELD_FRAGMENTS`](super::names::HELD_FRAGMENTS); zero in
    /// [`names::FRAGMENTS`](super::names::FRAGMENTS).
    pub slot: u8,
    /// Explicit padding; zero.
    pub pad: [u8; 2],
}

// SAFETY: bytes and an integer; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for FragmentKey<F> {}
// SAFETY: as above; every field begins at a multiple of 4 bytes and `pad` fills the last word.
unsafe impl<F: Family> Pod for FragmentKey<F> {}

/// Ports of a fragmented datagram, from its first fragment. Never changed in place: a program
/// writes a new value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentInfo {
    /// Time of `bpf_ktime_get_coarse_ns` after which the same key is another datagram.
    pub expires_ns: u64,
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// [`FragmentInfo::OF_FLOW`] or [`FragmentInfo::OF_HOST`].
    pub owner: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
    /// Explicit padding; zero.
    pub pad: u32,
}

impl FragmentInfo {
    /// The datagram belongs to a flow, or begins a flow.
    pub const OF_FLOW: u32 = 1;
    /// The datagram belongs to the host's own traffic.
    pub const OF_HOST: u32 = 2;
}

/// A fragment that came before the first one of its datagram.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct HeldFragment {
    /// Bytes of the frame.
    pub len: u32,
    /// Explicit padding; zero.
    pub pad: u32,
    /// Time of `bpf_ktime_get_coarse_ns` after which the same key is another datagram.
    pub expires_ns: u64,
    /// The frame.
    pub bytes: [u8; HELD_FRAME_LEN],
}

const _: () = assert!(size_of::<FragmentKey<V4>>() == 20);
const _: () = assert!(size_of::<FragmentInfo>() == 24);
const _: () = assert!(size_of::<HeldFragment>() == 16 + HELD_FRAME_LEN);
