//! Access to the packet and the skb: the one place with bounds checks.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{
        bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_set_tunnel_key, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use bytemuck::Pod;
use culvert_common::{
    abi::DropReason,
    wire::ethernet::{ETH_P_8021Q, ETH_P_IP},
};

/// Length of an Ethernet header.
pub(crate) const ETH_LEN: usize = 14;
/// Headers that the programs read directly, options not counted: the outer
/// ones (50), the inner Ethernet (14) and IPv6 (40) headers, and an upper-layer one.
const HEADERS: u32 = 128;
/// What is read directly of a frame that is not encapsulated and not IPv6: Ethernet, IPv4
/// and the beginning of TCP, up to its flags.
pub(crate) const PLAIN: u32 = 48;
/// `PACKET_HOST` of linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// A packet whose bytes can be read in place.
pub(crate) trait Packet {
    /// Start and end of the bytes that may be read.
    fn bounds(&self) -> (usize, usize);

    /// Copies a header out of the packet, or `None` if the packet ends before it.
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        let from = start + offset;
        if from + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the check above, which is also what the verifier asks for.
        Some(unsafe { (from as *const T).read_unaligned() })
    }
}

impl Packet for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }
}

/// Makes the headers readable in place: GRO and packet sockets may leave them
/// in page fragments. The headers of TCP as the kernel sends it are shorter than what this
/// asks for: the kernel then copies what it shares with the socket's queue.
#[inline(always)]
pub(crate) fn linearise(ctx: &TcContext) {
    ensure(ctx, HEADERS);
}

/// The same for the first `len` bytes.
#[inline(always)]
pub(crate) fn ensure(ctx: &TcContext, len: u32) {
    let wanted = ctx.len().min(len);
    if ctx.data() + wanted as usize > ctx.data_end() {
        // Failure shows as a header that cannot be read.
        let _ = ctx.pull_data(wanted);
    }
}

/// Copies bytes at a computed offset, which the verifier cannot follow in place.
#[inline(always)]
pub(crate) fn load<T: Pod>(ctx: &TcContext, offset: usize) -> Result<T, DropReason> {
    ctx.load(offset).map_err(|_| DropReason::Malformed)
}

/// Copies the first `LEN` bytes, which may lie in several pieces, into `to` behind its first
/// `LEAD` bytes. `false` if there are not so many.
///
/// One call of a helper: cheaper than to make the headers lie in one piece, for which the
/// kernel copies what it shares with a socket's queue, and than to read them byte by byte,
/// as the compiler must where it knows nothing of their alignment.
#[inline(always)]
pub(crate) fn head<T: Pod, const LEAD: usize, const LEN: usize>(
    ctx: &TcContext,
    to: &mut T,
) -> bool {
    const { assert!(LEAD + LEN <= size_of::<T>()) };
    // SAFETY: within `to`, as asserted.
    let to = unsafe { (&raw mut *to).cast::<u8>().add(LEAD) };
    // SAFETY: the pointers are the program's own context, and `LEN` bytes of `to`.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, to.cast(), LEN as u32) == 0 }
}

/// Overwrites bytes of the packet.
#[inline(always)]
pub(crate) fn store<T: Pod>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), DropReason> {
    ctx.store(offset, value, 0).map_err(|_| DropReason::HelperFailed)
}

/// Cuts or extends the frame to `len` bytes.
#[inline(always)]
pub(crate) fn resize(ctx: &TcContext, len: u32) -> Result<(), DropReason> {
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_skb_change_tail(ctx.skb.skb, len, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// The interface the frame arrived on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Payload bytes per segment of a GSO frame; 0 for any other.
#[inline(always)]
pub(crate) fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).gso_size }
}

/// The hash of the flow that the kernel has noted; 0 if it has none.
#[inline(always)]
pub(crate) fn hash(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).hash }
}

/// `skb->protocol` calls the frame IPv4.
#[inline(always)]
pub(crate) fn is_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).protocol == u32::from(ETH_P_IP.to_be()) }
}

/// The frame carries a VLAN tag in its metadata.
#[inline(always)]
pub(crate) fn vlan_present(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// The VLAN that the frame's metadata names; 0 for none (IEEE 802.1Q §9.6).
#[inline(always)]
pub(crate) fn vlan_id(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).vlan_tci & 0x0fff }
}

/// Sends the frame out of an interface when the program returns.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) {
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect(ifindex, 0) };
}

/// Lets the frame come in on an interface when the program returns.
#[inline(always)]
pub(crate) fn redirect_ingress(ifindex: u32) {
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) };
}

/// Of a frame that leaves an interface: it has come in on another one, and the host
/// forwards it.
#[inline(always)]
pub(crate) fn is_forwarded(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).ingress_ifindex != 0 }
}

/// The frame has not come in anywhere yet: the program runs while its sender transmits it,
/// on a netkit device. At tcx ingress the kernel has noted the interface (`skb_iif`), which
/// netkit clears when a frame crosses it (`skb_scrub_packet`).
#[inline(always)]
pub(crate) fn is_transmitted(ctx: &TcContext) -> bool {
    !is_forwarded(ctx)
}

/// `skb->protocol` is what the frame says itself. Where a frame comes in, the kernel has
/// read it there (`eth_type_trans`); in one that is transmitted, a packet socket may have
/// written anything, and the receiver's kernel would go by that. Lengths in place of a type
/// (IEEE 802.3 §3.2.6) have several names.
#[inline(always)]
pub(crate) fn is_truthful(ctx: &TcContext, ethertype: u16) -> bool {
    const LEAST_TYPE: u16 = 0x0600;
    // SAFETY: the pointer is the program's own context.
    let protocol = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    protocol == ethertype || (protocol < LEAST_TYPE && ethertype < LEAST_TYPE)
}

/// Sets `skb->protocol` to what the frame says, as it does not after a decapsulation. The
/// kernel has no helper for that alone, but reads it when it takes a VLAN tag out of a
/// frame: so two are put on (the second brings the first into the frame) and off again.
#[inline(always)]
pub(crate) fn read_protocol(ctx: &TcContext) -> Result<(), DropReason> {
    let (skb, tag) = (ctx.skb.skb, ETH_P_8021Q.to_be());
    // SAFETY: the pointer is the program's own context.
    let done = unsafe {
        bpf_skb_vlan_push(skb, tag, 0) == 0
            && bpf_skb_vlan_push(skb, tag, 0) == 0
            && bpf_skb_vlan_pop(skb) == 0
            && bpf_skb_vlan_pop(skb) == 0
    };
    if done { Ok(()) } else { Err(DropReason::HelperFailed) }
}

/// The frame's MAC is that of the interface, so that it is for this host.
#[inline(always)]
pub(crate) fn is_for_host(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST }
}

/// Hands the frame to the container behind a pair of devices, past its queue, when the
/// program returns. `skb->protocol` must be right.
#[inline(always)]
pub(crate) fn redirect_peer(ctx: &TcContext, ifindex: u32) -> Result<(), DropReason> {
    if is_transmitted(ctx) {
        // The kernel does that for what has come in only (`skb_at_tc_ingress`).
        redirect(ifindex);
        return Ok(());
    }
    if !is_for_host(ctx) {
        // The frame was judged by the MAC of another interface.
        ctx.change_type(PACKET_HOST).map_err(|_| DropReason::HelperFailed)?;
    }
    // SAFETY: the helper takes any index and answers a wrong one with a drop.
    unsafe { bpf_redirect_peer(ifindex, 0) };
    Ok(())
}

/// Takes off the route of the host that a frame of the loopback device carries, which
/// would hold in a container. The kernel has no helper for that alone; tunnel metadata
/// take the route's place, and nobody asks for them. (Since 6.16 `bpf_redirect_peer` takes
/// the route off itself.)
#[inline(always)]
pub(crate) fn drop_route(ctx: &TcContext) -> Result<(), DropReason> {
    // The least that the helper takes: the key's first 8 bytes.
    let mut key = 0_u64;
    let key = (&raw mut key).cast();
    // SAFETY: the pointers are the program's own context, and 8 bytes of its stack.
    match unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, key, size_of::<u64>() as u32, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}
