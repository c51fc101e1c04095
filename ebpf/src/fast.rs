//! What is done for most packets: IPv4 between a pair of endpoints that was judged before.
//!
//! The judgement of a frame depends on the endpoint and the MAC and IP addresses in it,
//! and on maps that seldom change. It is remembered by these, in full, so that a frame
//! with any other address, or on another port, is judged anew; and with
//! [`GENERATION`](culvert_common::abi::names::GENERATION), which is raised whenever a map
//! changes that it depends on. What depends on more than that (lengths, ECN, fragments,
//! the outer header) is checked for every packet.
//!
//! Each CPU remembers for itself: nothing is shared, nothing is locked. A slot holds the
//! pair that came last.

use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};
use bytemuck::{Pod, Zeroable};
use culvert_common::{
    abi::{Action, Direction, DropReason, EndpointInfo, NetworkInfo},
    datapath::{encap::entropy_port, source},
    wire::{
        EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr,
        ethernet::ETH_P_IP,
        ipv4::{PROTO_TCP, PROTO_UDP},
    },
};

use crate::{
    container::{Sender, headers_len},
    encap,
    maps::{GENERATION, TRACING, UNDERLAY, VXLAN_PORT, lookup, own},
    packet::{ETH_LEN, gso_size, head, is_ipv4, redirect_peer, vlan_id, vlan_present},
    underlay::{self, Outer, OuterHeaders, Tunnelled, classify},
    verdict,
};

/// Pairs that a CPU remembers in each direction.
const SLOTS: u32 = 4096;

/// What is before the headers where they are looked at: two bytes behind an even word the
/// IP header and half of a MAC begin on one, and the programs read word by word. BPF has no
/// unaligned access, the compiler goes byte by byte instead.
const LEAD: usize = 2;

/// The headers of a frame that a container sends, without options.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(8))]
struct Plain {
    /// Zero.
    lead: [u8; LEAD],
    eth: EthHdr,
    ip: Ipv4Hdr,
    /// Of TCP and UDP.
    ports: [u8; 4],
    rest: [u8; 4],
    pad: [u8; 4],
}

/// Of [`Plain`], what is in every TCP and UDP packet.
const PLAIN: usize = ETH_LEN + Ipv4Hdr::LEN + UdpHdr::LEN;

/// The headers of a VXLAN frame around IPv4, without options.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(8))]
struct Wrapped {
    /// Zero.
    lead: [u8; LEAD],
    outer_eth: EthHdr,
    outer_ip: Ipv4Hdr,
    udp: UdpHdr,
    vxlan: VxlanHdr,
    eth: EthHdr,
    ip: Ipv4Hdr,
    pad: [u8; 2],
}

/// Of [`Wrapped`], all but what is around it.
const WRAPPED: usize = underlay::INNER_L3 + Ipv4Hdr::LEN;

impl OuterHeaders for Wrapped {
    #[inline(always)]
    fn eth(&self) -> Option<EthHdr> {
        Some(self.outer_eth)
    }

    #[inline(always)]
    fn ip(&self) -> Option<Ipv4Hdr> {
        Some(self.outer_ip)
    }

    #[inline(always)]
    fn udp(&self) -> Option<UdpHdr> {
        Some(self.udp)
    }

    #[inline(always)]
    fn vxlan(&self) -> Option<VxlanHdr> {
        Some(self.vxlan)
    }
}

/// What is remembered of a frame: both MACs, whence it came, and more that decides.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Key {
    /// Destination and source, and what lies in the same words: it is the same in every
    /// frame that is remembered.
    macs: [u64; 2],
    /// Addresses, or VXLAN header.
    more: u64,
    /// Host-side interface index, or the VTEP that sent the frame.
    from: u64,
}

/// Two words as one, as they lie in memory.
#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    first as u64 | ((second as u64) << 32)
}

impl Plain {
    #[inline(always)]
    fn key(&self, port: u32) -> Key {
        let words: &[u32; size_of::<Self>() / 4] = bytemuck::cast_ref(self);
        let &[w0, w1, w2, w3, _, _, _, src, dst, _, _, _] = words;
        Key { macs: [join(w0, w1), join(w2, w3)], more: join(src, dst), from: port.into() }
    }
}

impl Wrapped {
    #[inline(always)]
    fn key(&self) -> Key {
        let words: &[u32; size_of::<Self>() / 4] = bytemuck::cast_ref(self);
        let &[_, _, _, _, _, _, _, vtep, _, _, _, v0, v1, m0, m1, m2, _, _, _, _, _, _] = words;
        Key { macs: [join(m0, m1), m2.into()], more: join(v0, v1), from: vtep.into() }
    }
}

impl Key {
    /// Slot of the key. Addresses given in a row differ in their last bytes.
    #[inline(always)]
    fn slot(&self) -> u32 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let [dst, src] = self.macs;
        let hash = dst.rotate_left(24) ^ src.wrapping_mul(0xc2b2_ae3d_27d4_eb4f) ^ self.from;
        let hash = hash.wrapping_mul(ODD) ^ (self.more >> 32);
        (hash.wrapping_mul(ODD) >> 52) as u32
    }
}

const _: () = assert!(SLOTS == 1 << (64 - 52));

/// A pair in the direction from a container.
#[repr(C)]
struct Outbound {
    key: Key,
    /// As the map's; 0 is no pair.
    generation: u64,
    /// Host-side interface index of the local endpoint; 0 if it is behind a VTEP.
    local: u32,
    /// Largest L3 packet that reaches the VTEP.
    mtu: u32,
    way: encap::Prepared,
}

/// A pair in the direction from the underlay.
#[repr(C)]
struct Inbound {
    key: Key,
    /// As the map's; 0 is no pair.
    generation: u64,
    /// Host-side interface index of the local endpoint.
    port: u32,
}

/// The frame that is looked at: its headers, and its pair if the judgement can be
/// remembered. Not on the stack, which is short.
#[repr(C)]
struct Frame {
    plain: Plain,
    wrapped: Wrapped,
    key: Key,
    generation: u64,
    can: u32,
}

#[map]
static OUTBOUND: PerCpuArray<Outbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static INBOUND: PerCpuArray<Inbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static FRAME: PerCpuArray<Frame> = PerCpuArray::with_max_entries(1, 0);

/// What the maps are at; 0 before the agent has said so.
#[inline(always)]
pub(crate) fn generation() -> u64 {
    GENERATION.get(0).copied().unwrap_or(0)
}

/// A map has changed that judgements depend on. The time is a number that was never there:
/// the agent counts on from what it finds, and not as fast as nanoseconds pass.
#[inline(always)]
pub(crate) fn forget_all(now_ns: u64) {
    if let Some(generation) = GENERATION.get_ptr_mut(0) {
        // SAFETY: the entry is one aligned word, which a BPF program writes at once.
        unsafe { generation.write_volatile(now_ns) };
    }
}

/// Where the frame is looked at; none while frames are traced, one by one.
#[inline(always)]
fn frame() -> Option<&'static mut Frame> {
    let frame = own(&FRAME, 0)?;
    frame.can = 0;
    (TRACING.load() == 0).then_some(frame)
}

/// No verdict: the frame is to be judged.
pub(crate) const UNKNOWN: i32 = -2;

/// The verdict on a frame that a container sends, or [`UNKNOWN`]. A function of its own for
/// the sake of the stack.
#[inline(never)]
pub(crate) fn from_container(ctx: &TcContext, port: u32, bytes: u32) -> i32 {
    match try_from_container(ctx, port) {
        Some(outcome) => verdict::untraced(Direction::FromContainer, bytes, outcome),
        None => UNKNOWN,
    }
}

#[inline(always)]
fn try_from_container(ctx: &TcContext, port: u32) -> Option<Result<Action, DropReason>> {
    let frame = frame()?;
    // Read before the maps are: a change in between makes it old.
    let now = generation();
    if !head::<Plain, LEAD, PLAIN>(ctx, &mut frame.plain) || !is_plain(ctx, &frame.plain) {
        return None;
    }
    let Plain { ip, ports, .. } = &frame.plain;
    frame.key = frame.plain.key(port);
    (frame.generation, frame.can) = (now, 1);
    let pair = own(&OUTBOUND, frame.key.slot())?;
    if pair.generation != now || now == 0 || pair.key != frame.key {
        return None;
    }
    if pair.local != 0 {
        return Some(redirect_peer(ctx, pair.local).map(|()| Action::Deliver));
    }
    let l3_len = ctx.len() - ETH_LEN as u32;
    let gso = gso_size(ctx);
    let segment_len = match gso {
        0 => l3_len,
        gso => gso + headers_len(ctx, ip.protocol(), Ipv4Hdr::LEN as u32).ok()?,
    };
    if segment_len > pair.mtu {
        // The sender is told, or the path may take more by now.
        return None;
    }
    let src_port = entropy_port(encap::ipv4_hash(ctx, ip, *ports));
    Some(pair.way.send(ctx, Some(ip.tos()), l3_len, src_port).map(|()| Action::Encap))
}

/// A whole TCP or UDP packet without options, and none of VXLAN: a container must not
/// speak to VTEPs.
#[inline(always)]
fn is_plain(ctx: &TcContext, plain: &Plain) -> bool {
    let Plain { eth, ip, ports, .. } = plain;
    let [_, _, high, low] = *ports;
    let upper = match ip.protocol() {
        PROTO_TCP => true,
        PROTO_UDP => u16::from_be_bytes([high, low]) != VXLAN_PORT.load(),
        _ => false,
    };
    upper
        && eth.ethertype() == ETH_P_IP
        && is_ipv4(ctx)
        && !ip.is_fragment()
        && !vlan_present(ctx)
        && matches!(
            source::check_ipv4_shape(ip, ctx.len() - ETH_LEN as u32),
            Ok(len) if len == Ipv4Hdr::LEN as u32
        )
}

/// Remembers that the frame of `sender` went to `local`, a host-side interface index, or
/// if that is 0, to `vtep`. A function of its own for the sake of the stack.
#[inline(never)]
pub(crate) fn remember_outbound(sender: &Sender<'_>, local: u32, vtep: u32) -> u32 {
    let &Sender { ep, net, .. } = sender;
    let Some(frame) = own(&FRAME, 0) else { return 0 };
    let learns =
        net.flags & NetworkInfo::LEARNING != 0 && ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0;
    if frame.can == 0 || learns {
        return 0;
    }
    let Some(pair) = own(&OUTBOUND, frame.key.slot()) else { return 0 };
    // Not in use until it is complete.
    pair.generation = 0;
    let vtep = vtep.to_ne_bytes();
    if local == 0 {
        let Some(path) = lookup!(UNDERLAY, vtep) else { return 0 };
        pair.way.set((ep.vni, net.flags), &frame.plain.eth, vtep, path);
        pair.mtu = encap::path_mtu(&vtep, path);
    }
    pair.key = frame.key;
    pair.local = local;
    pair.generation = frame.generation;
    1
}

/// The verdict on a frame out of the underlay, or [`UNKNOWN`].
#[inline(never)]
pub(crate) fn from_underlay(ctx: &TcContext, bytes: u32) -> i32 {
    match try_from_underlay(ctx) {
        Some(outcome) => verdict::untraced(Direction::FromUnderlay, bytes, outcome),
        None => UNKNOWN,
    }
}

#[inline(always)]
fn try_from_underlay(ctx: &TcContext) -> Option<Result<Action, DropReason>> {
    let frame = frame()?;
    let now = generation();
    let outer = unwrap(ctx, &mut frame.wrapped)?;
    let Wrapped { eth, ip, .. } = &frame.wrapped;
    frame.key = frame.wrapped.key();
    (frame.generation, frame.can) = (now, 1);
    let pair = own(&INBOUND, frame.key.slot())?;
    if pair.generation != now || now == 0 || pair.key != frame.key {
        return None;
    }
    Some(underlay::deliver(ctx, &outer, ip, eth, pair.port))
}

/// Reads the headers of a frame. None if it is none that is remembered.
#[inline(always)]
fn unwrap(ctx: &TcContext, wrapped: &mut Wrapped) -> Option<Tunnelled> {
    if vlan_id(ctx) != 0 || !head::<Wrapped, LEAD, WRAPPED>(ctx, wrapped) {
        return None;
    }
    match classify(wrapped, ctx.len()) {
        Ok(Outer::Vxlan(outer)) if !outer.reserved_bits && wrapped.eth.ethertype() == ETH_P_IP => {
            Some(outer)
        }
        Ok(Outer::Vxlan(_) | Outer::Other | Outer::Icmp) | Err(_) => None,
    }
}

/// Remembers that the frame out of the underlay went to `port`. A function of its own for
/// the sake of the stack.
#[inline(never)]
pub(crate) fn remember_inbound(port: u32) -> u32 {
    let Some(frame) = own(&FRAME, 0) else { return 0 };
    if frame.can == 0 {
        return 0;
    }
    let Some(pair) = own(&INBOUND, frame.key.slot()) else { return 0 };
    *pair = Inbound { key: frame.key, generation: frame.generation, port };
    1
}
