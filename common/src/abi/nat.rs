//! Keys and values of the maps behind routing, conntrack and NAT.
//!
//! A flow is two entries of [`FLOWS`](super::names::FLOWS), one for each
//! direction: the key is a packet as it comes in, the value says what it
//! becomes and where it goes. Turning a translated packet around gives the key
//! of the other direction, see [`FlowKey::other`].

use bytemuck::{Pod, Zeroable};

use crate::wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

/// Where a packet of a flow comes from or goes to: the VNI of a container's
/// network, or one of the constants.
pub mod zone {
    /// An uplink.
    pub const OUTSIDE: u32 = 0;
    /// Another host of the cluster, through the tunnel.
    pub const TUNNEL: u32 = u32::MAX - 1;
    /// The host itself, over its loopback device.
    pub const LOOPBACK: u32 = u32::MAX;
}

/// Addresses and ports of a packet, as on the wire. ICMP echo has its identifier
/// as the source port of the request and as the destination port of the reply;
/// the other port is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Tuple {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
}

impl Tuple {
    /// The tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port }
    }
}

/// Key of [`names::FLOWS`](super::names::FLOWS): a packet as it comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Where it comes from: a VNI or a constant of [`zone`].
    pub zone: u32,
    /// Addresses and ports.
    pub tuple: Tuple,
    /// IP protocol: TCP, UDP or ICMP.
    pub protocol: u8,
    /// Explicit padding; zero.
    pub pad: [u8; 3],
}

impl FlowKey {
    /// The key of `tuple` of `protocol` as it comes in from `zone`.
    #[inline(always)]
    pub const fn new(zone: u32, protocol: u8, tuple: Tuple) -> Self {
        Self { zone, tuple, protocol, pad: [0; 3] }
    }

    /// The key of the other direction of the flow whose entry under this key is `flow`.
    #[inline(always)]
    pub const fn other(&self, flow: &Flow) -> Self {
        Self::new(flow.zone, self.protocol, flow.to.reversed())
    }
}

/// One direction of a flow.
///
/// `last_seen_ns`, `packets`, `bytes`, `last_ack` and the upper half of `flags` are updated in
/// place by the programs, without atomics: a lost update costs a count, or is
/// made good by the next packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// `bpf_ktime_get_ns` of the last packet; of the flow's beginning if there was none.
    pub last_seen_ns: u64,
    /// Packets; a GSO frame is one.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// What the packet becomes.
    pub to: Tuple,
    /// Where it goes: a VNI or a constant of [`zone`].
    pub zone: u32,
    /// Host-side interface index of the container that it goes to, or the address of
    /// the VTEP where the zone is [`zone::TUNNEL`]; 0 if to neither.
    pub ifindex: u32,
    /// [`EndpointInfo::generation`](super::EndpointInfo::generation) of the container
    /// that it comes from; 0 if from none.
    pub from_generation: u32,
    /// The same of the container that it goes to.
    pub to_generation: u32,
    /// [`Flow::ORIG`] and its siblings.
    pub flags: u32,
    /// TCP: the last acknowledgement number sent in this direction, in host order.
    pub last_ack: u32,
    /// Explicit padding; zero.
    pub pad: u32,
}

impl Flow {
    /// The direction of the packet that began the flow.
    pub const ORIG: u32 = 1;
    /// The flow was begun by a container and its source is masqueraded.
    pub const MASQUERADE: u32 = 2;
    /// The flow goes to a published port.
    pub const PUBLISHED: u32 = 4;
    /// A packet has passed in this direction.
    pub const SEEN: u32 = 1 << 16;
    /// TCP: a SYN has.
    pub const SYN: u32 = 1 << 17;
    /// TCP: a segment with ACK, but neither SYN nor RST, has.
    pub const ACK: u32 = 1 << 18;
    /// TCP: a FIN has, with a sequence number that the other side expects.
    pub const FIN: u32 = 1 << 19;
    /// TCP: an RST was the last segment that has, with a sequence number that the
    /// other side expects.
    pub const RST: u32 = 1 << 20;
}

/// An entry of the queue [`names::EVICTABLE`](super::names::EVICTABLE): a flow that
/// may go when the table is full, the longest idle first. It goes only if neither
/// direction was used since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Evictable {
    /// The later `last_seen_ns` of its two directions when it was put there.
    pub last_seen_ns: u64,
    /// Key of its `ORIG` direction.
    pub key: FlowKey,
    /// Explicit padding; zero.
    pub pad: u32,
}

/// Key of [`names::PUBLISHED`](super::names::PUBLISHED).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PublishedKey {
    /// Address of the host; all zero: every address.
    pub addr: [u8; 4],
    /// Port of the host, network order.
    pub port: [u8; 2],
    /// IP protocol: TCP or UDP.
    pub protocol: u8,
    /// Explicit padding; zero.
    pub pad: u8,
}

/// A published port's container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PublishedEntry {
    /// VNI of its network.
    pub vni: u32,
    /// Its host-side interface index.
    pub ifindex: u32,
    /// Its address.
    pub addr: [u8; 4],
    /// Its port, network order.
    pub port: [u8; 2],
    /// Explicit padding; zero.
    pub pad: u16,
}

/// Key of [`names::FRAGMENTS`](super::names::FRAGMENTS): a fragmented datagram
/// (RFC 791 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// Where it comes from, as [`FlowKey::zone`].
    pub zone: u32,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Identification, network order.
    pub id: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// In [`names::HELD_FRAGMENTS`](super::names::HELD_FRAGMENTS) the slot, else zero.
    pub slot: u8,
}

/// Ports of a fragmented datagram, as its first fragment had them; before that has
/// come, how many others are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentInfo {
    /// `bpf_ktime_get_ns` after which this is another datagram.
    pub expires_ns: u64,
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// Not zero: the ports are known.
    pub known: u16,
    /// Fragments held, at slots `0..held`.
    pub held: u16,
}

/// A fragment that came before the first one of its datagram.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct HeldFragment {
    /// Bytes of the frame.
    pub len: u32,
    /// Explicit padding; zero.
    pub pad: u32,
    /// The frame.
    pub bytes: [u8; HELD_FRAME_LEN],
}

/// Longest frame that is held.
pub const HELD_FRAME_LEN: usize = 2048;
/// Most fragments of one datagram that are held.
pub const MAX_HELD: u16 = 48;
/// Capacity of [`names::HELD_FRAGMENTS`](super::names::HELD_FRAGMENTS).
pub const MAX_HELD_FRAGMENTS: u32 = 512;
/// Capacity of [`names::FRAGMENTS`](super::names::FRAGMENTS).
pub const MAX_FRAGMENTED: u32 = 8_192;
/// Flows that are tracked unless configured otherwise, as Linux does on a host with
/// 4 GB or more. [`names::FLOWS`](super::names::FLOWS) has two entries for each.
pub const DEFAULT_FLOWS: u32 = 262_144;
/// Capacity of [`names::EVICTABLE`](super::names::EVICTABLE).
pub const MAX_EVICTABLE: u32 = 16_384;
/// Capacity of [`names::PUBLISHED`](super::names::PUBLISHED).
pub const MAX_PUBLISHED: u32 = 131_072;
/// Capacity of [`names::HOST_ADDRS`](super::names::HOST_ADDRS).
pub const MAX_HOST_ADDRS: u32 = 65_536;
/// Capacity of [`names::UPLINKS`](super::names::UPLINKS).
pub const MAX_UPLINKS: u32 = 256;

/// Words of [`names::RESERVED_PORTS`](super::names::RESERVED_PORTS) for one protocol.
pub const RESERVED_WORDS: u32 = 1024;
/// Entries of [`names::RESERVED_PORTS`](super::names::RESERVED_PORTS).
pub const RESERVED_ENTRIES: u32 = 3 * RESERVED_WORDS;

/// Word of [`names::RESERVED_PORTS`](super::names::RESERVED_PORTS) and bit in it for a
/// port of the host (or an ICMP identifier); `None` for other protocols.
#[inline(always)]
pub const fn reserved_bit(protocol: u8, port: u16) -> Option<(u32, u64)> {
    let class = match protocol {
        PROTO_TCP => 0,
        PROTO_UDP => 1,
        PROTO_ICMP => 2,
        _ => return None,
    };
    Some((class * RESERVED_WORDS + (port as u32 >> 6), 1 << (port & 63)))
}

const _: () = assert!(size_of::<Tuple>() == 12);
const _: () = assert!(size_of::<FlowKey>() == 20);
const _: () = assert!(size_of::<Flow>() == 64);
const _: () = assert!(size_of::<Evictable>() == 32);
const _: () = assert!(size_of::<PublishedKey>() == 8);
const _: () = assert!(size_of::<PublishedEntry>() == 16);
const _: () = assert!(size_of::<FragmentKey>() == 16);
const _: () = assert!(size_of::<FragmentInfo>() == 16);
const _: () = assert!(size_of::<HeldFragment>() == 8 + HELD_FRAME_LEN);
