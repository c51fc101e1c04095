//! Keys and values of conntrack.
//!
//! A flow has two entries in [`FLOWS`](super::names::FLOWS), one for each direction. The key is
//! the packet before translation; the value has the packet after translation and its
//! destination. The translated packet with source and destination exchanged is the key of the
//! other direction, see [`FlowKey::other`].

use bytemuck::{Pod, Zeroable};

use super::family::{Family, V4};

/// Zones: where a packet of a flow comes from or goes to. A zone is the VNI of a container's
/// network, or one of the constants.
pub mod zone {
    /// An uplink.
    pub const EXTERNAL: u32 = 0;
    /// Bit that is set in the zones of client links, see [`client`]; a VNI has 24 bits.
    const CLIENT: u32 = 1 << 31;
    /// Least of the constants below, which have the bit `CLIENT` as well.
    const LEAST: u32 = HOST;
    /// The host's own stack, through the gateway device of the container's network.
    pub const HOST: u32 = u32::MAX - 2;
    /// Another host of the cluster, through the tunnel.
    pub const TUNNEL: u32 = u32::MAX - 1;
    /// The host itself, over its loopback device.
    pub const LOOPBACK: u32 = u32::MAX;

    /// The zone of the client link with this interface index, which is a positive `i32`. Each link
    /// is a zone of its own, so that no packet of one link is one of another link's flow.
    #[inline(always)]
    pub const fn client(ifindex: u32) -> u32 {
        CLIENT | ifindex
    }

    /// The interface index of the client link with this zone. `None`: it is another zone.
    #[inline(always)]
    pub const fn client_link(zone: u32) -> Option<u32> {
        if zone & CLIENT != 0 && zone < LEAST { Some(zone & !CLIENT) } else { None }
    }
}

/// Bits of [`Flow::kind`]. All but [`DENIED`](kind::DENIED) do not change while a flow lives.
pub mod kind {
    /// The direction of the packet that began the flow.
    pub const ORIG: u32 = 1;
    /// The flow was begun by a container and its source is masqueraded.
    pub const MASQUERADE: u32 = 2;
    /// The flow goes to a published port.
    pub const PUBLISHED: u32 = 4;
    /// The flow was begun by a container and goes to the host's stack, which may send it on
    /// (netfilter's DNAT).
    pub const HOST: u32 = 8;
    /// The flow goes to a published port, and its client was denied after it began: its packets are
    /// dropped in both directions. The only bit that changes while a flow lives: the agent replaces
    /// the entries.
    pub const DENIED: u32 = 16;
}

/// Bits of [`Flow::seen`]: packets that have passed in this direction. Of TCP, only segments that
/// are believed count, see [`segment`](crate::datapath::segment).
pub mod seen {
    /// Any packet. TCP: [`Flow::first_seq`](super::Flow::first_seq) and
    /// [`Flow::next_seq`](super::Flow::next_seq) are known.
    pub const PACKET: u32 = 1;
    /// TCP: a SYN.
    pub const SYN: u32 = 1 << 1;
    /// TCP: a segment without SYN that acknowledges what the other side has sent.
    pub const ACK: u32 = 1 << 2;
    /// TCP: a FIN at the end of what this side has sent.
    pub const FIN: u32 = 1 << 3;
    /// TCP: the connection was reset. Set in both directions.
    pub const RST: u32 = 1 << 4;
    /// TCP: a SYN that would begin another connection.
    /// [`Flow::first_seq`](super::Flow::first_seq) is the number after it.
    pub const PENDING: u32 = 1 << 5;
    /// TCP: numbers that are too far from the known ones to be believed.
    /// [`Flow::first_seq`](super::Flow::first_seq) has them, see
    /// [`TcpSegment::ahead`](crate::datapath::segment::TcpSegment::ahead).
    pub const AHEAD: u32 = 1 << 6;
    /// TCP: a FIN was seen at the last of the numbers of [`AHEAD`].
    pub const AHEAD_FIN: u32 = 1 << 7;
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
    /// The tuple with source and destination exchanged: the tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// Key of [`names::FLOWS`](super::names::FLOWS): a packet before translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey<F: Family = V4> {
    /// Zone that the packet comes from: a VNI or a constant of [`zone`].
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
    /// The key of a packet with `tuple` and `protocol` that comes from `zone`.
    #[inline(always)]
    pub const fn new(zone: u32, protocol: u8, tuple: Tuple<F>) -> Self {
        Self { zone, tuple, protocol, pad: [0; 3] }
    }

    /// The key of the other direction of the flow whose entry under this key is `flow`.
    #[inline(always)]
    pub const fn other(&self, flow: &Flow<F>) -> Self {
        Self { zone: flow.zone, tuple: flow.to.reversed(), ..*self }
    }
}

/// One direction of a flow. Value of [`names::FLOWS`](super::names::FLOWS).
///
/// The fields up to `seal`, and `slot`, are written once, when the entry is inserted. The programs
/// update the other fields after `seal` in place, without atomics. Two CPUs may lose an update: a
/// count is then too low, and the next packet sets time and flags again. At the time of such a
/// write the memory may be another flow's (see [`seal`](super::Sealed)). That flow then gets a
/// wrong count, time or seen flag, but never another destination.
///
/// The seal does not cover `slot`. A copy may have the slot of another flow; the program then takes
/// the slot of this flow for a free one, and the flow may lose its slot to a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<F: Family = V4> {
    /// Addresses and ports of the packet after translation.
    pub to: Tuple<F>,
    /// Zone that the packet goes to: a VNI or a constant of [`zone`].
    pub zone: u32,
    /// Destination in the zone: the interface index of the host side if it is a container; the
    /// [`VtepId`](super::VtepId) if the zone is [`zone::TUNNEL`]; else 0.
    pub dest: u32,
    /// [`EndpointInfo::incarnation`](super::EndpointInfo::incarnation) of the container that the
    /// packet comes from; 0 if it does not come from a container.
    pub from_incarnation: u32,
    /// [`EndpointInfo::incarnation`](super::EndpointInfo::incarnation) of the container that the
    /// packet goes to; 0 if it does not go to a container.
    pub to_incarnation: u32,
    /// Bits of [`kind`].
    pub kind: u32,
    /// See [`Sealed`](super::Sealed).
    pub seal: u32,
    /// Bits of [`seen`].
    pub seen: u32,
    /// TCP: the last acknowledgement number sent in this direction, in host order.
    pub last_ack: u32,
    /// TCP: the sequence number of this direction after its SYN, or of its first segment that was
    /// seen, in host order. Once the connection has begun, this number is not needed: with
    /// [`seen::PENDING`] the field is of another SYN, with [`seen::AHEAD`] of numbers that the
    /// other side has not acknowledged.
    pub first_seq: u32,
    /// TCP: the sequence number after all that was sent in this direction, in host order.
    pub next_seq: u32,
    /// `ORIG` direction: 1 more than the number of the flow's slot in
    /// [`names::FLOW_SLOTS`](super::names::FLOW_SLOTS). 0 if the flow has no slot.
    pub slot: u32,
    /// Time of `bpf_ktime_get_coarse_ns` of the last packet; of the flow's beginning if no packet
    /// has passed in this direction.
    pub last_seen_ns: u64,
    /// Packets; a GSO frame counts as one.
    pub packets: u64,
    /// Bytes of the frames of these packets.
    pub bytes: u64,
}

impl<F: Family> Flow<F> {
    /// The incarnation of the container in whose share of the table the flow counts: the container
    /// that began it, else the container that it goes to. Both entries of a flow give the same. 0
    /// if no container of this host takes part.
    #[inline(always)]
    pub const fn owner(&self) -> u32 {
        let (from, to) = (self.from_incarnation, self.to_incarnation);
        let (from, to) = if self.kind & kind::ORIG != 0 { (from, to) } else { (to, from) };
        if from != 0 { from } else { to }
    }
}

// SAFETY: integers and a tuple; every bit pattern is valid, zeroes too.
unsafe impl<F: Family> Zeroable for Flow<F> {}
// SAFETY: as above. `layout` asserts for each family that the fields leave no padding.
unsafe impl<F: Family> Pod for Flow<F> {}

/// The flows of a container. Value of [`names::FLOW_SHARES`](super::names::FLOW_SHARES).
///
/// The programs update it in place, without atomics: two CPUs may lose an update. The agent puts
/// `flows` right when no flow of the container has begun during a walk through the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowShare {
    /// Flows of the container in the table.
    pub flows: u32,
    /// Flows refused because no port was free; `refused` counts them, too. Saturates. Zero in an
    /// entry of earlier programs, which did not count them.
    pub without_port: u32,
    /// Flows that have begun since the container was first seen.
    pub begun: u64,
    /// Flows that were refused because the container had its share, or because no port was free.
    pub refused: u64,
}

/// Asserts at compile time that the types of a family have no padding.
const fn layout<F: Family>() {
    let addr = size_of::<F::Addr>();
    assert!(size_of::<Tuple<F>>() == 2 * addr + 4);
    assert!(size_of::<FlowKey<F>>() == size_of::<Tuple<F>>() + 8);
    assert!(size_of::<Flow<F>>() == size_of::<Tuple<F>>() + 11 * 4 + 3 * 8);
}

const _: () = layout::<V4>();
const _: () = {
    assert!(matches!(zone::client_link(zone::client(7)), Some(7)));
    assert!(zone::client_link(zone::EXTERNAL).is_none() && zone::client_link(0xff_ffff).is_none());
    assert!(zone::client_link(zone::HOST).is_none() && zone::client_link(zone::TUNNEL).is_none());
    assert!(zone::client_link(zone::LOOPBACK).is_none());
};
const _: () = assert!(size_of::<FlowKey<V4>>() == 20);
const _: () = assert!(size_of::<Flow<V4>>() == 80);
