//! Access to the packet and to the fields of the skb: the one place with bounds checks.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_CSUM_LEVEL_QUERY, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM},
    helpers::{
        bpf_csum_diff, bpf_csum_level, bpf_get_hash_recalc, bpf_l4_csum_replace,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_set_tunnel_key,
        bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
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
/// Bytes of the headers that the programs read directly, without options: the outer headers (50),
/// the inner Ethernet (14) and IPv6 (40) headers, and an upper-layer header.
const HEADERS: u32 = 128;
/// Bytes that the programs read directly from an IPv4 frame that is not encapsulated: the Ethernet
/// and IPv4 headers, and the TCP header up to its flags.
pub(crate) const IPV4_HEADERS: u32 = 48;
/// `PACKET_HOST` of linux/if_packet.h.
pub(super) const PACKET_HOST: u32 = 0;

/// A packet whose bytes can be read in place.
pub(crate) trait Packet {
    /// Start and end of the bytes that may be read.
    fn bounds(&self) -> (usize, usize);

    /// Copies a header out of the packet. `None` if the packet ends before the end of the header.
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let (start, end) = self.bounds();
        let from = start + offset;
        if from + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the check above keeps the read within the packet. The verifier demands the same
        // check.
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

/// Makes all headers readable in place: GRO and packet sockets may leave them in page fragments.
/// This costs time for a TCP segment of a local socket: its headers are shorter than [`HEADERS`],
/// so payload shared with the socket is copied as well.
#[inline(always)]
pub(crate) fn linearise(ctx: &TcContext) {
    ensure(ctx, HEADERS);
}

/// Makes the first `len` bytes of the frame readable in place.
#[inline(always)]
pub(crate) fn ensure(ctx: &TcContext, len: u32) {
    let wanted = ctx.len().min(len);
    if ctx.data() + wanted as usize > ctx.data_end() {
        // If this fails, the caller cannot read the headers.
        let _ = ctx.pull_data(wanted);
    }
}

/// Copies bytes at a computed offset. The verifier cannot check a read in place at such an offset.
#[inline(always)]
pub(crate) fn load<T: Pod>(ctx: &TcContext, offset: usize) -> Result<T, DropReason> {
    ctx.load(offset).map_err(|_| DropReason::Malformed)
}

/// Copies the first `LEN` bytes of the frame into `to`, after the first `LEAD` bytes of `to`. The
/// bytes of the frame may be in several pieces. Returns `false` if the frame is shorter.
///
/// One helper call takes less time than the alternatives. To make the headers contiguous, the
/// kernel copies the bytes that the frame shares with a socket's queue. To read them in place, the
/// compiler reads byte by byte where it does not know the alignment.
#[inline(always)]
pub(crate) fn head<T: Pod, const LEAD: usize, const LEN: usize>(
    ctx: &TcContext,
    to: &mut T,
) -> bool {
    const { assert!(LEAD + LEN <= size_of::<T>()) };
    // SAFETY: the assertion above keeps the offset within `to`.
    let to = unsafe { (&raw mut *to).cast::<u8>().add(LEAD) };
    // SAFETY: the pointers are the program's own context, and `LEN` bytes within `to`.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, to.cast(), LEN as u32) == 0 }
}

/// Overwrites the first `LEN` bytes of the frame with the bytes of `from` after its first `LEAD`
/// bytes.
#[inline(always)]
pub(crate) fn store_head<T: Pod, const LEAD: usize, const LEN: usize>(
    ctx: &TcContext,
    from: &T,
) -> Result<(), DropReason> {
    const { assert!(LEAD + LEN <= size_of::<T>()) };
    // SAFETY: the assertion above keeps the offset within `from`.
    let from = unsafe { (&raw const *from).cast::<u8>().add(LEAD) };
    // SAFETY: the pointers are the program's own context, and `LEN` bytes within `from`.
    match unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, from.cast(), LEN as u32, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}

/// Copies `len` bytes of the frame, from `offset` on, to `to`, which must have room for them.
/// Returns `false` if the frame is shorter. The verifier must see an upper bound of `len`.
#[inline(always)]
pub(crate) fn load_to<T>(skb: *mut __sk_buff, offset: u32, to: *mut T, len: u32) -> bool {
    // SAFETY: the pointer is the program's own context; the caller guarantees room for `len` bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), len) == 0 }
}

/// Replaces the frame by the `len` bytes at `from`. These are another frame, so the kernel updates
/// `skb->csum` and forgets the hash of the flow. The verifier must see an upper bound of `len`.
#[inline(always)]
pub(crate) fn replace<T>(skb: *mut __sk_buff, from: *const T, len: u32) -> bool {
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
    // SAFETY: the pointer is the program's own context; the caller guarantees `len` bytes at
    // `from`.
    resize(&TcContext::new(skb), len).is_ok()
        && unsafe { bpf_skb_store_bytes(skb, 0, from.cast(), len, flags) == 0 }
}

/// Adds a one's complement `difference` to the checksum at `offset`; `flags` are those of
/// `bpf_l4_csum_replace`. The helper handles a complete checksum, a checksum that the device fills
/// in (`CHECKSUM_PARTIAL`), and the sum of the whole packet in `skb->csum` (`CHECKSUM_COMPLETE`).
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

/// Whether the network card or the kernel has verified the checksum of the outermost upper layer
/// (`CHECKSUM_UNNECESSARY`).
#[inline(always)]
pub(crate) fn is_verified(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { bpf_csum_level(ctx.skb.skb, BPF_CSUM_LEVEL_QUERY.into()) >= 0 }
}

/// The one's complement sum over `bytes`, computed by a helper. The compiler would unroll a loop,
/// and its values do not fit the stack of 512 bytes.
#[inline(always)]
pub(crate) fn sum<const N: usize>(bytes: &[u8; N]) -> Sum {
    let from = bytes.as_ptr().cast_mut().cast();
    // SAFETY: `from` points to `N` bytes.
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

/// The hash of the flow. The kernel computes it from the packet if the skb has none.
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

/// The hash of the flow in the skb; 0 if the skb has none.
#[inline(always)]
pub(crate) fn hash(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).hash }
}

/// Whether `skb->protocol` is IPv4.
#[inline(always)]
pub(crate) fn is_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).protocol == u32::from(ETH_P_IP.to_be()) }
}

/// Whether the skb has a VLAN tag in its metadata.
#[inline(always)]
pub(crate) fn vlan_present(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// The VLAN ID in the metadata of the skb; 0 if there is none (IEEE 802.1Q §9.6).
#[inline(always)]
fn vlan_id(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).vlan_tci & 0x0fff }
}

/// Takes a priority tag, which is a VLAN tag with the VLAN ID 0, off a received frame. Linux takes
/// such a frame for one without a tag (`__netif_receive_skb_core`), but a container would receive
/// the tag with the frame. Returns `false` if the frame has a tag of a VLAN then: it is for a VLAN
/// device of the kernel.
#[inline(always)]
pub(crate) fn strip_priority_tag(ctx: &TcContext) -> bool {
    if !vlan_present(ctx) {
        return true;
    }
    if vlan_id(ctx) != 0 {
        return false;
    }
    // SAFETY: the pointer is the program's own context.
    let popped = unsafe { bpf_skb_vlan_pop(ctx.skb.skb) == 0 };
    // The kernel moves a second tag from the frame to the metadata.
    popped && !vlan_present(ctx)
}

/// The mark of the frame (`SO_MARK`, netfilter); 0 if it has none.
#[inline(always)]
pub(crate) fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).mark }
}

/// Sets the mark of the frame.
#[inline(always)]
pub(crate) fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: the pointer is the program's own context, and the kernel lets programs at tc write this
    // field.
    unsafe { (*ctx.skb.skb).mark = mark };
}

/// At egress: whether the frame came in on another interface, so that the host forwards it.
#[inline(always)]
pub(crate) fn is_forwarded(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).ingress_ifindex != 0 }
}

/// Whether the program runs on a netkit device while the container transmits the frame: no
/// interface has received it yet. At tcx ingress the kernel has set `skb_iif` to the interface.
/// Netkit clears `skb_iif` when a frame crosses the pair (`skb_scrub_packet`).
#[inline(always)]
pub(crate) fn is_transmitted(ctx: &TcContext) -> bool {
    !is_forwarded(ctx)
}

/// Whether `skb->protocol` agrees with the EtherType of the frame. For a received frame the kernel
/// has set `skb->protocol` from the EtherType (`eth_type_trans`). For a transmitted frame a packet
/// socket may have set another value, which the receiver's kernel would use. If the frame has a
/// length instead of an EtherType (IEEE 802.3 §3.2.6), `skb->protocol` has one of several values.
#[inline(always)]
pub(crate) fn is_truthful(ctx: &TcContext, ethertype: u16) -> bool {
    const LEAST_TYPE: u16 = 0x0600;
    // SAFETY: the pointer is the program's own context.
    let protocol = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    protocol == ethertype || (protocol < LEAST_TYPE && ethertype < LEAST_TYPE)
}

/// Sets `skb->protocol` to the EtherType of the frame. A decapsulation does not set it, and the
/// kernel has no helper for that. But the kernel reads the EtherType when it takes a VLAN tag out
/// of a frame. So the program pushes two tags (the second moves the first into the frame) and pops
/// both.
#[inline(always)]
pub(crate) fn set_protocol(ctx: &TcContext) -> Result<(), DropReason> {
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

/// Whether the kernel found that the frame's destination MAC is that of the interface, so that the
/// frame is for this host.
#[inline(always)]
pub(crate) fn is_for_host(ctx: &TcContext) -> bool {
    // SAFETY: the pointer is the program's own context.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST }
}

/// Removes the route (`skb_dst`) of a frame of the loopback device: the container's stack would use
/// it. The kernel has no helper for that. So the program sets tunnel metadata, which replaces the
/// route and which no code reads. Since Linux 6.16 `bpf_redirect_peer` removes the route.
#[inline(always)]
pub(crate) fn drop_route(ctx: &TcContext) -> Result<(), DropReason> {
    // The shortest key that the helper accepts: the first 8 bytes.
    let mut key = 0_u64;
    let key = (&raw mut key).cast();
    // SAFETY: the pointers are the program's own context, and 8 bytes of its stack.
    match unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, key, size_of::<u64>() as u32, 0) } {
        0 => Ok(()),
        _ => Err(DropReason::HelperFailed),
    }
}
