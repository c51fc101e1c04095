//! Outer header on, off to a VTEP.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{bpf_get_hash_recalc, bpf_ktime_get_ns, bpf_redirect_neigh, bpf_skb_change_head},
    programs::TcContext,
};
use bytemuck::Zeroable as _;
use culvert_common::{
    abi::{DropReason, NetworkInfo, UnderlayPath, VXLAN_OVERHEAD},
    datapath::{
        ecn,
        encap::{self, EncapHeaders, OuterHeader},
    },
    wire::{EthHdr, Ipv4Hdr, ethernet::ETH_P_IP},
};

use crate::{
    container::Sender,
    maps::{PATH_MTU, VTEP_IP, lookup},
    packet::{ETH_LEN, gso_size, hash, is_ipv4, redirect, store},
    verdict::hand_back,
};

/// `AF_INET` of linux/socket.h.
const AF_INET: u32 = 2;

/// What the encapsulation needs to know of the inner frame.
#[derive(Clone, Copy)]
pub(crate) struct Inner {
    /// Ethernet header.
    pub(crate) eth: EthHdr,
    /// TOS or traffic class; `None` if the frame is not IP.
    pub(crate) tos: Option<u8>,
    /// Length of the L3 packet.
    pub(crate) l3_len: u32,
    /// Longest L3 packet once a GSO frame is cut into segments.
    pub(crate) segment_len: u32,
    /// Hash of its flow; 0 if the kernel is to be asked.
    pub(crate) hash: u32,
}

impl Default for Inner {
    #[inline(always)]
    fn default() -> Self {
        Self { eth: EthHdr::new([0; 6], [0; 6], 0), tos: None, l3_len: 0, segment_len: 0, hash: 0 }
    }
}

/// Largest inner L3 packet that reaches a VTEP: what its route takes, or less
/// if a router on the way has said so.
#[inline(always)]
pub(crate) fn path_mtu(vtep: &[u8; 4], path: &UnderlayPath) -> u32 {
    let route = u32::from(path.inner_mtu);
    match lookup!(PATH_MTU, vtep) {
        // SAFETY: the helper has no preconditions.
        Some(learnt) if unsafe { bpf_ktime_get_ns() } < learnt.expires_ns => {
            learnt.inner_mtu.min(route)
        }
        _ => route,
    }
}

/// The hash of an IPv4 flow: that of the socket which sent the packet, if it is the
/// kernel's own, else of the addresses and `ports`. To have the kernel take the packet
/// apart would cost more than all the rest.
#[inline(always)]
pub(crate) fn ipv4_hash(ctx: &TcContext, ip: &Ipv4Hdr, ports: [u8; 4]) -> u32 {
    match hash(ctx) {
        0 => encap::ipv4_flow_hash(ip, ports),
        known => known,
    }
}

/// The UDP source port that spreads flows over paths and queues: from the hash of the
/// flow (addresses, protocol and ports; no ports for fragments), from the MACs if the
/// frame is not IP (RFC 7348 §5).
#[inline(always)]
pub(crate) fn entropy_port(ctx: &TcContext, inner: &Inner) -> u16 {
    let hash = if inner.hash != 0 {
        inner.hash
    } else if inner.tos.is_some() {
        // SAFETY: the pointer is the program's own context.
        unsafe { bpf_get_hash_recalc(ctx.skb.skb) }
    } else {
        encap::l2_flow_hash(&inner.eth.dst, &inner.eth.src, inner.eth.ethertype())
    };
    encap::entropy_port(hash)
}

/// Builds the outer IPv4, UDP and VXLAN headers; `flags` are the network's.
#[inline(always)]
pub(crate) fn outer(
    vni: u32,
    flags: u32,
    inner: &Inner,
    vtep: [u8; 4],
    path: &UnderlayPath,
    src_port: u16,
) -> Result<OuterHeader, DropReason> {
    let tos = ecn::encap_tos(inner.tos, flags & NetworkInfo::COPY_DSCP != 0);
    encap::outer_header(
        VTEP_IP.load().to_ne_bytes(),
        vtep,
        src_port,
        path.port,
        vni,
        tos,
        inner.l3_len + ETH_LEN as u32,
    )
}

/// Makes room for the outer header.
#[inline(always)]
pub(crate) fn make_room(ctx: &TcContext, inner: &Inner) -> Result<(), DropReason> {
    if inner.tos.is_some() {
        // Keeps GSO frames whole: the segments get the outer header later.
        let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L4_UDP)
            | u64::from(BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
            | bpf_f_adj_room_encap_l2(ETH_LEN as u64);
        if ctx.adjust_room(i32::from(VXLAN_OVERHEAD), BPF_ADJ_ROOM_MAC, flags).is_ok() {
            return Ok(());
        }
        if gso_size(ctx) != 0 {
            return Err(DropReason::EncapFailed);
        }
    }
    // adjust_room refuses what is not IP, and what is encapsulated already: a
    // tunnel within the container, or a frame that it forwards.
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_skb_change_head(ctx.skb.skb, u32::from(VXLAN_OVERHEAD), 0) } {
        0 => Ok(()),
        _ => Err(DropReason::EncapFailed),
    }
}

/// Writes the outer header into the room made for it.
#[inline(always)]
pub(crate) fn write(ctx: &TcContext, headers: &EncapHeaders) -> Result<(), DropReason> {
    // adjust_room opens the room behind the MAC header, so the inner one has
    // to be written again.
    store(ctx, 0, headers)
}

/// Where a header is put together before it is written.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Space(EncapHeaders);

impl Space {
    /// An empty one.
    #[inline(always)]
    fn new() -> Self {
        Self(EncapHeaders::zeroed())
    }
}

/// The outer MAC header towards a next hop whose MAC the agent has resolved.
#[inline(always)]
pub(crate) fn outer_mac(path: &UnderlayPath) -> Option<EthHdr> {
    if path.next_hop_mac == [0; 6] {
        return None;
    }
    Some(EthHdr::new(path.next_hop_mac, path.uplink_mac, ETH_P_IP))
}

/// Encapsulates the frame and sends it to one VTEP, given as its four bytes. A
/// function of its own for the sake of the stack.
#[inline(never)]
pub(crate) fn encapsulate(
    sender: &Sender<'_>,
    inner: &Inner,
    vtep: u32,
    path: &UnderlayPath,
    reason: &mut DropReason,
) -> u32 {
    let &Sender { ctx, ep, net, .. } = sender;
    let space = &mut Space::new();
    let sent = send(ctx, (ep.vni, net.flags), inner, vtep.to_ne_bytes(), path, space);
    hand_back(sent, &mut (), reason)
}

/// The same of a frame of a network, given by its VNI and flags.
#[inline(always)]
pub(crate) fn send(
    ctx: &TcContext,
    (vni, flags): (u32, u32),
    inner: &Inner,
    vtep: [u8; 4],
    path: &UnderlayPath,
    Space(headers): &mut Space,
) -> Result<(), DropReason> {
    headers.outer = outer(vni, flags, inner, vtep, path, entropy_port(ctx, inner))?;
    headers.inner_eth = inner.eth;
    let resolved = outer_mac(path);
    if inner.tos.is_none() && resolved.is_none() {
        return Err(DropReason::NoUnderlayNeighbour);
    }
    headers.outer_eth = resolved.unwrap_or(EthHdr::new([0; 6], [0; 6], ETH_P_IP));
    make_room(ctx, inner)?;
    write(ctx, headers)?;
    if is_ipv4(ctx) {
        // The kernel fills in the MACs from its neighbour table, and resolves
        // them if it has to.
        let mut ipv6_nh = [0; 4];
        ipv6_nh[0] = u32::from_ne_bytes(path.next_hop);
        // The union's IPv4 address is its first word.
        let mut neighbour = bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh },
        };
        // SAFETY: the parameters are on our stack and as long as stated.
        unsafe {
            bpf_redirect_neigh(
                path.ifindex,
                &raw mut neighbour,
                size_of::<bpf_redir_neigh>() as i32,
                0,
            )
        };
    } else if resolved.is_some() {
        // bpf_redirect_neigh refuses what skb->protocol does not call IP.
        redirect(path.ifindex);
    } else {
        return Err(DropReason::NoUnderlayNeighbour);
    }
    Ok(())
}
