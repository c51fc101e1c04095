//! Redirects: of a frame when the program returns, or of a copy at once.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::{bpf_clone_redirect, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use culvert_common::abi::DropReason;

use super::skb::{PACKET_HOST, is_for_host, is_transmitted};

/// Sends the frame out of an interface when the program returns.
#[inline(always)]
pub(crate) fn out(ifindex: u32) {
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect(ifindex, 0) };
}

/// Redirects the frame to the ingress of an interface when the program returns.
#[inline(always)]
pub(crate) fn ingress(ifindex: u32) {
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) };
}

/// Hands the frame to the container behind a pair of devices (veth or netkit) when the program
/// returns. The frame bypasses the queue of the pair. `skb->protocol` must be right.
#[inline(always)]
pub(crate) fn peer(ctx: &TcContext, ifindex: u32) -> Result<(), DropReason> {
    if is_transmitted(ctx) {
        // bpf_redirect_peer works at tc ingress only (`skb_at_tc_ingress`).
        out(ifindex);
        return Ok(());
    }
    if !is_for_host(ctx) {
        // The kernel has compared the destination MAC with the MAC of another interface.
        ctx.change_type(PACKET_HOST).map_err(|_| DropReason::HelperFailed)?;
    }
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect_peer(ifindex, 0) };
    Ok(())
}

/// A next hop for [`neighbour`].
pub(crate) type NextHop = bpf_redir_neigh;

/// The next hop `address` of `family`; an IPv4 address is in the first word.
#[inline(always)]
pub(crate) fn next_hop(family: u32, address: [u32; 4]) -> NextHop {
    let __bindgen_anon_1 = bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: address };
    bpf_redir_neigh { nh_family: family, __bindgen_anon_1 }
}

/// Sends the frame out of an interface to a next hop when the program returns. The kernel fills in
/// the MACs from its neighbour table, and resolves them if it has to. It refuses frames whose
/// `skb->protocol` is not IP.
#[inline(always)]
pub(crate) fn neighbour(ifindex: u32, next_hop: &mut NextHop) {
    let len = size_of::<NextHop>() as i32;
    // SAFETY: `next_hop` is a valid reference, and `len` is its size.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut *next_hop, len, 0) };
}

/// Sends a copy of the frame out of an interface, at once. Returns `false` if the kernel refused.
#[inline(always)]
pub(crate) fn copy_out(skb: *mut __sk_buff, ifindex: u32) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_clone_redirect(skb, ifindex, 0) == 0 }
}

/// Redirects a copy of the frame to the ingress of an interface. The kernel processes the copy
/// after the program. Returns `false` if the kernel refused.
#[inline(always)]
pub(crate) fn copy_ingress(skb: *mut __sk_buff, ifindex: u32) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_clone_redirect(skb, ifindex, BPF_F_INGRESS.into()) == 0 }
}
