//! Outer header on, off to a VTEP.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{bpf_get_hash_recalc, bpf_ktime_get_ns, bpf_redirect_neigh, bpf_skb_change_head},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
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
    maps::{PATH_MTU, VTEP_IP, lookup, own},
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

/// Makes room for the outer header.
#[inline(always)]
pub(crate) fn make_room(ctx: &TcContext, is_ip: bool) -> Result<(), DropReason> {
    if is_ip {
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

/// The way from one endpoint to another behind a VTEP: all headers in front of its frames but
/// for what differs by frame, and the next hop.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Prepared {
    headers: EncapHeaders,
    next_hop: bpf_redir_neigh,
    /// Uplink.
    ifindex: u32,
    /// The network's flags.
    flags: u32,
}

/// Where the way of a frame is prepared that is not remembered. Not on the stack, which is
/// short.
#[map]
static PREPARED: PerCpuArray<Prepared> = PerCpuArray::with_max_entries(1, 0);

impl Prepared {
    /// Prepares the way for frames with the Ethernet header `eth` of a network, given by its
    /// VNI and flags.
    #[inline(always)]
    pub(crate) fn set(
        &mut self,
        (vni, flags): (u32, u32),
        eth: &EthHdr,
        vtep: [u8; 4],
        path: &UnderlayPath,
    ) {
        let headers = &mut self.headers;
        headers.outer_eth = EthHdr::new(path.next_hop_mac, path.uplink_mac, ETH_P_IP);
        headers.outer = OuterHeader::towards(VTEP_IP.load().to_ne_bytes(), vtep, path.port, vni);
        headers.inner_eth = *eth;
        // The union's IPv4 address is its first word.
        let ipv6_nh = [u32::from_ne_bytes(path.next_hop), 0, 0, 0];
        let __bindgen_anon_1 = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh };
        self.next_hop = bpf_redir_neigh { nh_family: AF_INET, __bindgen_anon_1 };
        self.ifindex = path.ifindex;
        self.flags = flags;
    }

    /// Whether the agent knows the MAC of the next hop.
    #[inline(always)]
    pub(crate) fn is_resolved(&self) -> bool {
        self.headers.outer_eth.dst != [0; 6]
    }

    /// Writes the headers into the room made for them, for a frame with an L3 packet of
    /// `l3_len` bytes, of this TOS or traffic class if it is IP.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        ctx: &TcContext,
        inner_tos: Option<u8>,
        l3_len: u32,
        src_port: u16,
    ) -> Result<(), DropReason> {
        self.fit(inner_tos, l3_len, src_port)?;
        store(ctx, 0, &self.headers)
    }

    #[inline(always)]
    fn fit(&mut self, inner_tos: Option<u8>, l3_len: u32, src_port: u16) -> Result<(), DropReason> {
        let tos = ecn::encap_tos(inner_tos, self.flags & NetworkInfo::COPY_DSCP != 0);
        self.headers.outer.fit(src_port, tos, l3_len + ETH_LEN as u32)
    }

    /// Encapsulates a frame and sends it this way. See [`Self::write`].
    #[inline(always)]
    pub(crate) fn send(
        &mut self,
        ctx: &TcContext,
        inner_tos: Option<u8>,
        l3_len: u32,
        src_port: u16,
    ) -> Result<(), DropReason> {
        // Before there is room: what does not fit is left as it was.
        self.fit(inner_tos, l3_len, src_port)?;
        if inner_tos.is_none() && !self.is_resolved() {
            return Err(DropReason::NoUnderlayNeighbour);
        }
        make_room(ctx, inner_tos.is_some())?;
        // adjust_room opens the room behind the MAC header, so the inner one has
        // to be written again.
        store(ctx, 0, &self.headers)?;
        if is_ipv4(ctx) {
            // The kernel fills in the MACs from its neighbour table, and resolves
            // them if it has to.
            let len = size_of::<bpf_redir_neigh>() as i32;
            // SAFETY: the parameters are in a map, and as long as stated.
            unsafe { bpf_redirect_neigh(self.ifindex, &raw mut self.next_hop, len, 0) };
        } else if self.is_resolved() {
            // bpf_redirect_neigh refuses what skb->protocol does not call IP.
            redirect(self.ifindex);
        } else {
            return Err(DropReason::NoUnderlayNeighbour);
        }
        Ok(())
    }
}

/// Where the way of a frame is prepared that is not remembered.
#[inline(always)]
pub(crate) fn prepared() -> Option<&'static mut Prepared> {
    own(&PREPARED, 0)
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
    let Some(prepared) = prepared() else { return 1 };
    prepared.set((ep.vni, net.flags), &inner.eth, vtep.to_ne_bytes(), path);
    let sent = prepared.send(ctx, inner.tos, inner.l3_len, entropy_port(ctx, inner));
    hand_back(sent, &mut (), reason)
}
