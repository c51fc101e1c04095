//! Keys and values of conntrack.
//!
//! A flow is two entries of [`FLOWS`](super::names::FLOWS), one for each
//! direction: the key is a packet as it comes in, the value says what it
//! becomes and where it goes. Turning a translated packet around gives the key
//! of the other direction, see [`FlowKey::other`].

use bytemuck::{Pod, Zeroable};

use super::family::{Family, V4};

/// Where a packet of a flow comes from or goes to: the VNI of a container's
/// network, or one of the constants.
pub mod zone {
    /// An uplink.
    pub const EXTERNAL: u32 = 0;
    /// Another host of the cluster, through the tunnel.
    pub const TUNNEL: u32 = u32::MAX - 1;
    /// The host itself, over its loopback device.
    pub const LOOPBACK: u32 = u32::MAX;
}

/// Bits of [`Flow::kind`], which do not change while a flow lives.
pub mod kind {
    /// The direction of the packet that began the flow.
    pub const ORIG: u32 = 1;
    /// The flow was begun by a container and its source is masqueraded.
    pub const MASQUERADE: u32 = 2;
    /// The flow goes to a published port.
    pub const PUBLISHED: u32 = 4;
}

/// Bits of [`Flow::seen`]: what has passed in this direction.
pub mod seen {
    /// A packet.
    pub const PACKET: u32 = 1;
    /// TCP: a SYN.
    pub const SYN: u32 = 1 << 1;
    /// TCP: a segment with ACK, but neither SYN nor RST.
    pub const ACK: u32 = 1 << 2;
    /// TCP: a FIN with a sequence number that the other side expects.
    pub const FIN: u32 = 1 << 3;
    /// TCP: the last segment was an RST with a sequence number that the other side expects.
    pub const RST: u32 = 1 << 4;
}

/// Addresses and ports of a packet, as on the wire. ICMP echo has its identifier
/// as the source port of the request and as the destination port of the reply;
/// the other port is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct Tuple<F: Family = V4> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
}

// SAFETY: bytes only; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for Tuple<F> {}
// SAFETY: as above. The addresses have an alignment of 1 and a size that is a multiple of 4
// (`Family`), the ports add 4 bytes: the alignment of 4 leaves no padding.
unsafe impl<F: Family> Pod for Tuple<F> {}

impl<F: Family> Tuple<F> {
    /// The tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// Key of [`names::FLOWS`](super::names::FLOWS): a packet as it comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey<F: Family = V4> {
    /// Where it comes from: a VNI or a constant of [`zone`].
    pub zone: u32,
    /// Addresses and ports.
    pub tuple: Tuple<F>,
    /// IP protocol: TCP, UDP or ICMP.
    pub protocol: u8,
    /// Explicit padding; zero.
    pub pad: [u8; 3],
}

// SAFETY: integers and a tuple; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for FlowKey<F> {}
// SAFETY: as above; every field begins at a multiple of 4 bytes and `pad` fills the last word.
unsafe impl<F: Family> Pod for FlowKey<F> {}

impl<F: Family> FlowKey<F> {
    /// The key of `tuple` of `protocol` as it comes in from `zone`.
    #[inline(always)]
    pub const fn new(zone: u32, protocol: u8, tuple: Tuple<F>) -> Self {
        Self { zone, tuple, protocol, pad: [0; 3] }
    }

    /// The key of the other direction of the flow whose entry under this key is `flow`.
    #[inline(always)]
    pub const fn other(&self, flow: &Flow<F>) -> Self {
        Self::new(flow.zone, self.protocol, flow.to.reversed())
    }
}

/// One direction of a flow.
///
/// The fields up to `seal` are written once, when the entry is inserted. Those behind it are
/// updated in place by the programs, without atomics: two CPUs may lose an update, which
/// costs a count or is made good by the next packet. The memory can be another flow's by the
/// time of such a write (see [`seal`](super::Sealed)): the worst that it does there is a
/// count, a time or a seen flag too many, never another destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<F: Family = V4> {
    /// What the packet becomes.
    pub to: Tuple<F>,
    /// Where it goes: a VNI or a constant of [`zone`].
    pub zone: u32,
    /// Interface index of the host side of the container that it goes to; the
    /// [`VtepId`](super::VtepId) where the zone is [`zone::TUNNEL`]; 0 if neither.
    pub dest: u32,
    /// [`EndpointInfo::incarnation`](super::EndpointInfo::incarnation) of the container
    /// that it comes from; 0 if from none.
    pub from_incarnation: u32,
    /// The same of the container that it goes to.
    pub to_incarnation: u32,
    /// Bits of [`kind`].
    pub kind: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
    /// Bits of [`seen`].
    pub seen: u32,
    /// TCP: the last acknowledgement number sent in this direction, in host order.
    pub last_ack: u32,
    /// Explicit padding; zero.
    pub pad: u32,
    /// `bpf_ktime_get_coarse_ns` of the last packet; of the flow's beginning if there was none.
    pub last_seen_ns: u64,
    /// Packets; a GSO frame is one.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

// SAFETY: integers and a tuple; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for Flow<F> {}
// SAFETY: as above. `layout` asserts for each family that the fields leave no padding.
unsafe impl<F: Family> Pod for Flow<F> {}

/// An entry of the queue [`names::EVICTABLE`](super::names::EVICTABLE): a flow that
/// may go when the table is full, the longest idle first. It goes only if neither
/// direction was used since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Evictable<F: Family = V4> {
    /// The later `last_seen_ns` of its two directions when it was put there.
    pub last_seen_ns: u64,
    /// Key of its `ORIG` direction.
    pub key: FlowKey<F>,
    /// Explicit padding; zero.
    pub pad: u32,
}

// SAFETY: integers and a key; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for Evictable<F> {}
// SAFETY: as above. `layout` asserts for each family that the fields leave no padding.
unsafe impl<F: Family> Pod for Evictable<F> {}

/// Asserts at compile time that the types of a family have no padding.
const fn layout<F: Family>() {
    let addr = size_of::<F::Addr>();
    assert!(size_of::<Tuple<F>>() == 2 * addr + 4);
    assert!(size_of::<FlowKey<F>>() == size_of::<Tuple<F>>() + 8);
    assert!(size_of::<Flow<F>>() == size_of::<Tuple<F>>() + 9 * 4 + 3 * 8);
    assert!(size_of::<Evictable<F>>() == 8 + size_of::<FlowKey<F>>() + 4);
}

const _: () = layout::<V4>();
const _: () = assert!(size_of::<FlowKey<V4>>() == 20);
const _: () = assert!(size_of::<Flow<V4>>() == 72);
