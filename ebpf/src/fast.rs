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
    abi::{Action, Direction, DropReason, EndpointInfo, NetworkInfo, UnderlayPath},
    datapath::source,
    wire::{
        EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr,
        ethernet::ETH_P_IP,
        ipv4::{PROTO_TCP, PROTO_UDP},
    },
};

use crate::{
    container::{Sender, headers_len},
    encap::{self, Inner},
    maps::{GENERATION, TRACING, UNDERLAY, VXLAN_PORT, lookup, own},
    packet::{ETH_LEN, Packet, gso_size, head, is_ipv4, redirect_peer, vlan_id, vlan_present},
    underlay::{self, Outer, Tunnelled, classify},
    verdict,
};

/// Pairs that a CPU remembers in each direction.
const SLOTS: u32 = 4096;

/// The headers of a frame that a container sends, without options.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(8))]
struct Plain {
    eth: EthHdr,
    ip: Ipv4Hdr,
    /// Of TCP and UDP.
    ports: [u8; 4],
    rest: [u8; 4],
    pad: [u8; 6],
}

/// Of [`Plain`], what is in every TCP and UDP packet.
const PLAIN: usize = ETH_LEN + Ipv4Hdr::LEN + UdpHdr::LEN;

/// The headers of a VXLAN frame around IPv4, without options.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(8))]
struct Wrapped {
    outer_eth: EthHdr,
    outer_ip: Ipv4Hdr,
    udp: UdpHdr,
    vxlan: VxlanHdr,
    eth: EthHdr,
    ip: Ipv4Hdr,
    pad: [u8; 4],
}

/// Of [`Wrapped`], all but the padding.
const WRAPPED: usize = underlay::INNER_L3 + Ipv4Hdr::LEN;

impl Packet for Wrapped {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let start = (&raw const *self) as usize;
        (start, start + WRAPPED)
    }
}

/// The addresses of a frame: both MACs in one and a half words, both IPs in one, or the
/// VXLAN header.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Key {
    macs: [u32; 3],
    /// Host-side interface index, or the VTEP that sent the frame.
    from: u32,
    /// Addresses, or VXLAN header.
    more: u64,
}

impl Key {
    #[inline(always)]
    fn new(eth: &EthHdr, from: u32, more: [[u8; 4]; 2]) -> Self {
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (eth.dst, eth.src);
        let [[a, b, c, d], [e, f, g, h]] = more;
        Self {
            macs: [
                u32::from_ne_bytes([d0, d1, d2, d3]),
                u32::from_ne_bytes([d4, d5, s0, s1]),
                u32::from_ne_bytes([s2, s3, s4, s5]),
            ],
            from,
            more: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        }
    }

    /// Slot of the key. Addresses given in a row differ in their last bytes.
    #[inline(always)]
    fn slot(&self) -> u32 {
        let [dst, mixed, src] = self.macs;
        let hash = (dst ^ self.from).wrapping_mul(0x9e37_79b1) ^ mixed.wrapping_mul(0x85eb_ca6b);
        let hash = hash ^ src.wrapping_mul(0xc2b2_ae35) ^ (self.more >> 32) as u32;
        hash.wrapping_mul(0x9e37_79b1) >> 20
    }
}

const _: () = assert!(SLOTS == 1 << (32 - 20));

/// A pair in the direction from a container.
#[repr(C)]
struct Outbound {
    key: Key,
    /// As the map's; 0 is no pair.
    generation: u64,
    vni: u32,
    /// The network's flags.
    flags: u32,
    /// Host-side interface index of the local endpoint; 0 if it is behind `vtep`.
    local: u32,
    vtep: [u8; 4],
    /// Largest L3 packet.
    mtu: u32,
    path: UnderlayPath,
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
    space: encap::Space,
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
    if !head::<Plain, PLAIN>(ctx, &mut frame.plain) || !is_plain(ctx, &frame.plain) {
        return None;
    }
    let Plain { eth, ip, ports, .. } = &frame.plain;
    frame.key = Key::new(eth, port, [ip.src, ip.dst]);
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
    let hash = encap::ipv4_hash(ctx, ip, *ports);
    let inner = Inner { eth: *eth, tos: Some(ip.tos()), l3_len, segment_len, hash };
    let net = (pair.vni, pair.flags);
    let sent = encap::send(ctx, net, &inner, pair.vtep, &pair.path, &mut frame.space);
    Some(sent.map(|()| Action::Encap))
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
        pair.path = *path;
        pair.mtu = encap::path_mtu(&vtep, path);
    }
    pair.key = frame.key;
    (pair.vni, pair.flags) = (ep.vni, net.flags);
    (pair.local, pair.vtep) = (local, vtep);
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
    let Wrapped { eth, ip, vxlan, .. } = &frame.wrapped;
    frame.key = Key::new(eth, u32::from_ne_bytes(outer.vtep), bytemuck::cast(*vxlan));
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
    if vlan_id(ctx) != 0 || !head::<Wrapped, WRAPPED>(ctx, wrapped) {
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
