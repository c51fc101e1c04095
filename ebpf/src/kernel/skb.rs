//! Access to the packet and to the fields of the skb: the one place with bounds checks.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::{
        bpf_csum_diff, bpf_get_hash_recalc, bpf_l4_csum_replace, bpf_skb_change_head,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::{TcContext, XdpContext},
};
use bytemuck::Pod;
use culvert_common::{
    abi::DropReason,
    wire::{
        checksum::Sum,
        ethernet::{ETH_P_8021Q, ETH_P_IP},
    },
};

/// Length of an Ethernet header.
pub(crate) const ETH_LEN: usize = 14;
/// Headers that the programs read directly, options not counted: the outer
/// ones (50), the inner Ethernet (14) and IPv6 (40) headers, and an upper-layer one.
const HEADERS: u32 = 128;
/// What the programs read in place of an IPv4 frame that is not encapsulated, in bytes:
/// Ethernet, IPv4 and the beginning of TCP, up to its flags.
pub(crate) const IPV4_HEADERS: u32 = 48;
/// `PACKET_HOST` of linux/if_packet.h.
pub(super) const PACKET_HOST: u32 = 0;

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

impl Packet for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }
}

/// Makes all headers readable in place: GRO and packet sockets may leave them in page
/// fragments. The headers of a TCP segment as the kernel sends it are shorter than
/// [`HEADERS`]: for these the kernel copies what the frame shares with the socket's queue.
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

/// Copies the first `LEN` bytes of the frame, which may lie in several pieces, into `to`
/// behind its first `LEAD` bytes. `false` if the frame is shorter.
///
/// One helper call costs less than to make the headers contiguous, for which the kernel
/// copies what the frame shares with a socket's queue, and less than reads in place byte by
/// byte, which the compiler makes where it does not know the alignment.
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

/// Overwrites the first `LEN` bytes of the frame with those of `from` behind its first
/// `LEAD` bytes.
#[inline(always)]
pub(crate) fn store_head<T: Pod, const LEAD: usize, const LEN: usize>(
    ctx: &TcContext,
    from: &T,
) -> Result<(), DropReason> {
    const { assert!(LEAD + LEN <= size_of::<T>()) };
    // SAFETY: within `from`, as asserted.
    let from = unsafe { (&raw const *from).cast::<u8>().add(LEAD) };
    // SAFETY: the pointers are the program's own context, and `LEN` bytes of `from`.
    match unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, from.cast(), LEN as u32, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// Copies `len` bytes of the frame from `offset` on to `to`, which has room for them.
/// `false` if the frame is shorter. `len` must be bounded where the verifier can see it.
#[inline(always)]
pub(crate) fn load_to<T>(skb: *mut __sk_buff, offset: u32, to: *mut T, len: u32) -> bool {
    // SAFETY: the pointer is the program's own context; the caller has room for `len` bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), len) == 0 }
}

/// Makes the frame the `len` bytes at `from`: another frame, with its own checksums. `len`
/// must be bounded where the verifier can see it.
#[inline(always)]
pub(crate) fn replace<T>(skb: *mut __sk_buff, from: *const T, len: u32) -> bool {
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
    // SAFETY: the pointer is the program's own context; the caller has `len` bytes there.
    resize(&TcContext::new(skb), len).is_ok()
        && unsafe { bpf_skb_store_bytes(skb, 0, from.cast(), len, flags) == 0 }
}

/// Adds a one's complement `difference` to the checksum at `offset`; `flags` are those of
/// `bpf_l4_csum_replace`. The helper knows whether the checksum is there, is to be filled in
/// by the device, or covers the whole packet.
#[inline(always)]
pub(crate) fn add_to_checksum(
    ctx: &TcContext,
    offset: u32,
    difference: u32,
    flags: u64,
) -> Result<(), DropReason> {
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_l4_csum_replace(ctx.skb.skb, offset, 0, difference.into(), flags) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// The sum over `bytes`. One helper call; the compiler would unroll a loop past the end of
/// the stack.
#[inline(always)]
pub(crate) fn sum<const N: usize>(bytes: &[u8; N]) -> Sum {
    let from = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the bytes are there and as many as stated.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from, N as u32, 0) };
    Sum::new().add_host_order(sum as u32)
}

/// Makes room for `len` bytes in front of a frame of any kind.
#[inline(always)]
pub(crate) fn push_head(ctx: &TcContext, len: u32) -> Result<(), DropReason> {
    // SAFETY: the pointer is the program's own context.
    match unsafe { bpf_skb_change_head(ctx.skb.skb, len, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::EncapFailed),
    }
}

/// The hash of the flow; the kernel dissects the packet where it has noted none.
#[inline(always)]
pub(crate) fn dissected_hash(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_get_hash_recalc(ctx.skb.skb) }
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

/// At egress: the frame came in on another interface, and the host forwards it.
#[inline(always)]
pub(crate) fn is_forwarded(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).ingress_ifindex != 0 }
}

/// The program runs on a netkit device while the container transmits the frame: no
/// interface has received it yet. At tcx ingress the kernel has noted the interface
/// (`skb_iif`); netkit clears it when a frame crosses the pair (`skb_scrub_packet`).
#[inline(always)]
pub(crate) fn is_transmitted(ctx: &TcContext) -> bool {
    !is_forwarded(ctx)
}

/// `skb->protocol` agrees with the EtherType of the frame. For a received frame the kernel
/// has read it there (`eth_type_trans`). For a transmitted one a packet socket may have
/// written another value, which the receiver's kernel would believe. A length in place of
/// an EtherType (IEEE 802.3 §3.2.6) has several values of `skb->protocol`.
#[inline(always)]
pub(crate) fn is_truthful(ctx: &TcContext, ethertype: u16) -> bool {
    const LEAST_TYPE: u16 = 0x0600;
    // SAFETY: the pointer is the program's own context.
    let protocol = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    protocol == ethertype || (protocol < LEAST_TYPE && ethertype < LEAST_TYPE)
}

/// Sets `skb->protocol` to the EtherType of the frame, which a decapsulation does not. The
/// kernel has no helper for that, but reads the EtherType when it takes a VLAN tag out of a
/// frame: so the program pushes two tags (the second moves the first into the frame) and
/// pops both.
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

/// Removes the route (`skb_dst`) that a frame of the loopback device carries: the
/// container's stack would use it. The kernel has no helper for that; tunnel metadata, which
/// nobody reads, replace the route. Since Linux 6.16 `bpf_redirect_peer` removes it itself.
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
