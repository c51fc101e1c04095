//! The flow cache: IPv4 TCP and UDP between a pair of endpoints whose frames have been
//! judged before.
//!
//! What becomes of a frame depends on the endpoint, on the MAC and IP addresses in it, and on
//! maps that seldom change. The cache keeps the result under all of these addresses, so that
//! a frame with any other address, or on another interface, is a miss; and for one epoch of
//! the maps ([`EPOCH`](culvert_common::abi::names::EPOCH)), which begins anew whenever a map
//! changes that the result depends on. What depends on more (lengths, ECN, fragments, the
//! outer header) is checked for every packet.
//!
//! Each CPU has a cache of its own: nothing is shared, nothing is locked. A slot holds the
//! pair that was judged last.

use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};
use bytemuck::{Pod, Zeroable};
use culvert_common::{
    abi::{Action, EndpointInfo, NetworkInfo, VtepId},
    datapath::{encap::entropy_port, source},
    wire::{
        EthHdr, Ipv4Hdr, UdpHdr, VxlanHdr,
        ethernet::ETH_P_IP,
        ipv4::{PROTO_TCP, PROTO_UDP},
    },
};

use crate::{
    act::{decap, encap::Encap},
    facts::{
        gso::longest_packet,
        inner::ipv4_hash,
        outer::{INNER_L3, Outer, OuterHeaders, Tunnelled, classify},
        sender::Sender,
    },
    globals::VXLAN_PORT,
    kernel::{
        memory::own,
        redirect,
        skb::{ETH_LEN, head, is_ipv4, vlan_id, vlan_present},
    },
    maps::underlay,
    state::{epoch, path_mtu},
    verdict::{Outcome, Packed},
};

/// Pairs that a CPU keeps in each direction.
const SLOTS: u32 = 4096;

/// Bytes of padding before the Ethernet header, so that the IP header is 4-byte aligned, like
/// `NET_IP_ALIGN`. BPF has no unaligned access to the stack and to map values in general;
/// where the compiler does not know the alignment, it reads byte by byte.
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

/// Bytes of [`Plain`] that are in every TCP and UDP packet.
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

/// Bytes of the headers in [`Wrapped`].
const WRAPPED: usize = INNER_L3 + Ipv4Hdr::LEN;

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

/// Everything of a frame that decides what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Key {
    /// Destination and source MAC, and what lies in the same words: that is the same in every
    /// frame that the cache keeps.
    macs: [u64; 2],
    /// IP addresses, or VXLAN header.
    more: u64,
    /// Interface index of the host side, or the VTEP that sent the frame.
    from: u64,
}

/// Two words as one, as they lie in memory.
#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    first as u64 | ((second as u64) << 32)
}

impl Plain {
    #[inline(always)]
    fn key(&self, ifindex: u32) -> Key {
        let words: &[u32; size_of::<Self>() / 4] = bytemuck::cast_ref(self);
        let &[w0, w1, w2, w3, _, _, _, src, dst, _, _, _] = words;
        Key { macs: [join(w0, w1), join(w2, w3)], more: join(src, dst), from: ifindex.into() }
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
    /// Slot of the key. Addresses that are given one after the other differ in their last bytes.
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
    /// Epoch for which the entry holds; 0 is no entry.
    epoch: u64,
    /// Interface index of the host side of the local endpoint; 0 if it is behind a VTEP.
    local: u32,
    /// Bytes of the largest L3 packet that reaches the VTEP.
    mtu: u32,
    encap: Encap,
}

/// A pair in the direction from the underlay.
#[repr(C)]
struct Inbound {
    key: Key,
    /// Epoch for which the entry holds; 0 is no entry.
    epoch: u64,
    /// Interface index of the host side of the local endpoint.
    local: u32,
}

/// The frame at hand: its headers, and its key if the result can be kept. Not on the stack,
/// which has 512 bytes.
#[repr(C)]
struct Frame {
    plain: Plain,
    wrapped: Wrapped,
    key: Key,
    epoch: u64,
    /// Not 0: the result can be kept.
    cacheable: u32,
}

#[map]
static OUTBOUND: PerCpuArray<Outbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static INBOUND: PerCpuArray<Inbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static FRAME: PerCpuArray<Frame> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's memory for the frame at hand.
#[inline(always)]
fn frame() -> Option<&'static mut Frame> {
    let frame = own(&FRAME, 0)?;
    frame.cacheable = 0;
    Some(frame)
}

/// The outcome for a frame that a container sends; none if it is not in the cache. A BPF
/// function of its own, for its stack.
#[inline(never)]
pub(crate) fn from_container(ctx: &TcContext, ifindex: u32) -> Packed {
    Packed::new(try_from_container(ctx, ifindex))
}

#[inline(always)]
fn try_from_container(ctx: &TcContext, ifindex: u32) -> Option<Outcome> {
    let frame = frame()?;
    // Read before the maps are: a change in between makes the entry old.
    let now = epoch::current();
    if !head::<Plain, LEAD, PLAIN>(ctx, &mut frame.plain) || !is_plain(ctx, &frame.plain) {
        return None;
    }
    let Plain { ip, ports, .. } = &frame.plain;
    frame.key = frame.plain.key(ifindex);
    (frame.epoch, frame.cacheable) = (now, 1);
    let pair = own(&OUTBOUND, frame.key.slot())?;
    if pair.epoch != now || now == 0 || pair.key != frame.key {
        return None;
    }
    if pair.local != 0 {
        return Some(redirect::peer(ctx, pair.local).map(|()| Action::Deliver));
    }
    let l3_len = ctx.len() - ETH_LEN as u32;
    let longest = longest_packet(ctx, l3_len, ip.protocol(), Ipv4Hdr::LEN as u32).ok()?;
    if longest > pair.mtu {
        // The sender is told, or the path may take more by now.
        return None;
    }
    let src_port = entropy_port(ipv4_hash(ctx, ip, *ports));
    Some(pair.encap.send(ctx, Some(ip.tos()), l3_len, src_port).map(|()| Action::Encap))
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

/// Keeps that the frame of `sender` went to `local`, the interface index of a host side, or
/// if that is 0, to `vtep`. Returns 1 if it was kept. A BPF function of its own, for its stack.
#[inline(never)]
pub(crate) fn keep_outbound(sender: &Sender<'_>, local: u32, vtep: VtepId) -> u32 {
    let &Sender { ep, net, .. } = sender;
    let Some(frame) = own(&FRAME, 0) else { return 0 };
    // The endpoint's own MAC is in the store: there is nothing to learn.
    let learns = net.flags & NetworkInfo::LEARNING != 0
        && ep.flags & EndpointInfo::ALLOW_ANY_SOURCE != 0
        && frame.plain.eth.src != ep.mac;
    if frame.cacheable == 0 || learns {
        return 0;
    }
    let Some(pair) = own(&OUTBOUND, frame.key.slot()) else { return 0 };
    // Not in use until it is complete.
    pair.epoch = 0;
    if local == 0 {
        let Some(path) = underlay(vtep) else { return 0 };
        pair.encap.set((ep.vni, net.flags), &frame.plain.eth, path);
        pair.mtu = path_mtu::of(vtep, path);
    }
    pair.key = frame.key;
    pair.local = local;
    pair.epoch = frame.epoch;
    1
}

/// The outcome for a frame out of the underlay; none if it is not in the cache. A BPF
/// function of its own, for its stack.
#[inline(never)]
pub(crate) fn from_underlay(ctx: &TcContext) -> Packed {
    Packed::new(try_from_underlay(ctx))
}

#[inline(always)]
fn try_from_underlay(ctx: &TcContext) -> Option<Outcome> {
    let frame = frame()?;
    let now = epoch::current();
    let outer = read_wrapped(ctx, &mut frame.wrapped)?;
    let Wrapped { eth, ip, .. } = &frame.wrapped;
    frame.key = frame.wrapped.key();
    (frame.epoch, frame.cacheable) = (now, 1);
    let pair = own(&INBOUND, frame.key.slot())?;
    if pair.epoch != now || now == 0 || pair.key != frame.key {
        return None;
    }
    Some(decap::deliver(ctx, &outer, ip, eth, pair.local))
}

/// Reads the headers of a frame. `None` if it is none that the cache keeps.
#[inline(always)]
fn read_wrapped(ctx: &TcContext, wrapped: &mut Wrapped) -> Option<Tunnelled> {
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

/// Keeps that the frame out of the underlay went to `local`, the interface index of a host
/// side. Returns 1 if it was kept. A BPF function of its own, for its stack.
#[inline(never)]
pub(crate) fn keep_inbound(local: u32) -> u32 {
    let Some(frame) = own(&FRAME, 0) else { return 0 };
    if frame.cacheable == 0 {
        return 0;
    }
    let Some(pair) = own(&INBOUND, frame.key.slot()) else { return 0 };
    *pair = Inbound { key: frame.key, epoch: frame.epoch, local };
    1
}
