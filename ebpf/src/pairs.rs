//! The flow cache: results for IPv4 TCP and UDP frames between two endpoints. The frames that
//! follow the first one need no look-ups in the other maps.
//!
//! The result for a frame depends on its endpoint, on its MAC and IP addresses, and on maps that
//! seldom change. The key of an entry holds the addresses, and the interface or VTEP that the frame
//! comes from. For a frame from the underlay, the key does not need the destination IP address. A
//! frame that differs in one of them is a miss. An entry is valid for one epoch of the maps
//! ([`EPOCH`](culvert_common::abi::names::EPOCH)). A new epoch begins whenever a map changes that
//! the result depends on. Lengths, ECN, fragments and the outer header are checked for every packet.
//!
//! Each CPU has a cache of its own: no memory is shared, and there is no lock. A slot holds the
//! last pair that was written to it.

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
        skb::{ETH_LEN, head, is_for_host, is_ipv4, vlan_present},
    },
    maps::underlay,
    state::{epoch, path_mtu},
    verdict::{Outcome, Packed},
};

/// Slots of each CPU in each direction. A slot holds one pair.
const SLOTS: u32 = 4096;

/// Bytes of padding before the Ethernet header, so that the IP header is 4-byte aligned, like
/// `NET_IP_ALIGN`. BPF has no unaligned access to the stack and to map values in general;
/// where the compiler does not know the alignment, it reads byte by byte.
const LEAD: usize = 2;

/// The headers of a frame that a container sends, without options.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(8))]
struct Plain {
    /// Padding; zero.
    lead: [u8; LEAD],
    eth: EthHdr,
    ip: Ipv4Hdr,
    /// Source and destination port of TCP or UDP, in network order.
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
    /// Padding; zero.
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

/// Key of an entry: the fields of a frame that its result depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Key {
    /// Destination and source MAC. From a container, the words also have the padding and the
    /// EtherType, which are the same in all frames of the cache. From the underlay, the second word
    /// also has the source IP address.
    macs: [u64; 2],
    /// From a container: the IP addresses. From the underlay: the VXLAN header.
    more: u64,
    /// From a container: the interface index of the host side. From the underlay: the address of
    /// the VTEP that sent the frame.
    from: u64,
}

/// Joins two words of 4 bytes to one of 8 bytes, in their order in memory.
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
        let src = u32::from_ne_bytes(self.ip.src);
        Key { macs: [join(m0, m1), join(m2, src)], more: join(v0, v1), from: vtep.into() }
    }
}

impl Key {
    /// Slot of the key. The hash spreads the last bytes of the addresses: addresses that are
    /// assigned one after the other differ only there.
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

/// Entry for frames that come from a container.
#[repr(C)]
struct Outbound {
    key: Key,
    /// Epoch in which the entry is valid; 0 if the slot has no entry.
    epoch: u64,
    /// Interface index of the host side if the destination is a local endpoint; 0 if it is behind a
    /// VTEP.
    local: u32,
    /// Bytes of the largest L3 packet that reaches the VTEP.
    mtu: u32,
    encap: Encap,
}

/// Entry for frames that come from the underlay.
#[repr(C)]
struct Inbound {
    key: Key,
    /// Epoch in which the entry is valid; 0 if the slot has no entry.
    epoch: u64,
    /// Interface index of the host side of the destination endpoint.
    local: u32,
}

/// The frame that the program processes: its headers, and its key if the result can be cached. It
/// is not on the BPF stack, which has only 512 bytes.
#[repr(C)]
struct Frame {
    plain: Plain,
    wrapped: Wrapped,
    key: Key,
    epoch: u64,
    /// Not 0 if the result can be cached.
    cacheable: u32,
}

#[map]
static OUTBOUND: PerCpuArray<Outbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static INBOUND: PerCpuArray<Inbound> = PerCpuArray::with_max_entries(SLOTS, 0);
#[map]
static FRAME: PerCpuArray<Frame> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's memory for the frame that the program processes.
#[inline(always)]
fn frame() -> Option<&'static mut Frame> {
    let frame = own(&FRAME, 0)?;
    frame.cacheable = 0;
    Some(frame)
}

/// The outcome for a frame that a container sends; none if the cache does not have it. A BPF
/// function of its own, for a stack frame of its own.
#[inline(never)]
pub(crate) fn from_container(ctx: &TcContext, ifindex: u32) -> Packed {
    Packed::new(try_from_container(ctx, ifindex))
}

#[inline(always)]
fn try_from_container(ctx: &TcContext, ifindex: u32) -> Option<Outcome> {
    let frame = frame()?;
    // The epoch is read before the maps: if a map changes in between, the entry is not valid.
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
        // A miss: the program then reads the present path MTU, and sends an ICMP error if the
        // packet is still too big.
        return None;
    }
    let src_port = entropy_port(ipv4_hash(ctx, ip, *ports));
    Some(pair.encap.send(ctx, Some(ip.tos()), l3_len, src_port).map(|()| Action::Encap))
}

/// Whether the frame is a TCP or UDP packet that is not a fragment and has no IP options. VXLAN is
/// excluded: a container must not send to VTEPs.
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

/// Caches that the frame of `sender` went to `local`, the interface index of a host side, or to
/// `vtep` if `local` is 0. Returns 1 if the entry was written, else 0. A BPF function of its own,
/// for a stack frame of its own.
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
    // The slot has no entry until the new one is complete.
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

/// The outcome for a frame from the underlay; none if the cache does not have it. A BPF function of
/// its own, for a stack frame of its own.
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

/// Reads the headers of a frame from the underlay. `None` if the frame cannot be cached: only IPv4
/// in VXLAN to this host's MAC, without a VLAN tag and without reserved bits can.
#[inline(always)]
fn read_wrapped(ctx: &TcContext, wrapped: &mut Wrapped) -> Option<Tunnelled> {
    if vlan_present(ctx) || !is_for_host(ctx) || !head::<Wrapped, LEAD, WRAPPED>(ctx, wrapped) {
        return None;
    }
    match classify(wrapped, ctx.len()) {
        Ok(Outer::Vxlan(outer)) if !outer.reserved_bits && wrapped.eth.ethertype() == ETH_P_IP => {
            Some(outer)
        }
        Ok(Outer::Vxlan(_) | Outer::Other | Outer::Icmp) | Err(_) => None,
    }
}

/// Caches that the frame from the underlay went to `local`, the interface index of a host side.
/// Returns 1 if the entry was written, else 0. A BPF function of its own, for a stack frame of its
/// own.
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
