//! Whether the checksum of a packet's upper layer is right.

use core::ffi::c_void;

use aya_ebpf::{bindings::__sk_buff, macros::map, maps::PerCpuArray, programs::TcContext};
use culvert_common::{
    datapath::nat,
    wire::{
        checksum::{Sum, is_whole},
        ipv4::{PROTO_ICMP, PROTO_UDP},
    },
};

use super::routed::Routed;
use crate::kernel::{
    memory::{own, repeat},
    skb::{ETH_LEN, gso_size, is_verified, load, load_to, sum},
};

/// Bytes that one step sums while at least as many are left.
const STEP: usize = 64;
/// Greatest number of steps: those for the bytes of [`MAX`], and those for a rest of 63 bytes.
const STEPS: u32 = (MAX / STEP) as u32 + 15 + 2;
/// Longest upper layer that is summed, in bytes: that of a frame on a link with an MTU of 1500.
const MAX: usize = 1536;

/// A sum over a part of a packet.
struct Summed {
    bytes: [u8; STEP],
    /// Offset of the rest in the frame, in bytes.
    at: u32,
    /// Bytes of the rest.
    left: u32,
    sum: Sum,
}

/// This CPU's sum. It is not on the BPF stack, which has only 512 bytes.
#[map]
static SUMMED: PerCpuArray<Summed> = PerCpuArray::with_max_entries(1, 0);

/// Whether the TCP or ICMP checksum of `routed` is wrong. Returns 1 if so. Returns 0 if the network
/// card or the kernel has verified it, or if the packet is longer than [`MAX`], a fragment, or
/// merged of several packets (GRO verifies those). A BPF function of its own, for a stack frame of
/// its own.
///
/// UDP is not summed. In a datagram of a tunnel the UDP checksum may be right, and the one of the
/// inner packet be left to the network card (local checksum offload). The sum over the bytes is then
/// wrong, and nothing in the packet tells so.
#[inline(never)]
pub(crate) fn is_damaged(skb: *mut __sk_buff, routed: &Routed) -> u32 {
    let ctx = TcContext::new(skb);
    let (protocol, tuple) = (routed.key.protocol, &routed.key.tuple);
    let header_len = routed.l4.wrapping_sub(ETH_LEN as u32);
    let len = u32::from(routed.ip.tot_len()).wrapping_sub(header_len);
    if protocol == PROTO_UDP
        || !routed.has_header
        || routed.ip.more_fragments()
        || len > MAX as u32
        || gso_size(&ctx) != 0
        || is_verified(&ctx)
    {
        return 0;
    }
    let at = routed.l4.wrapping_add(nat::checksum_offset(protocol));
    let Ok(field) = load::<[u8; 2]>(&ctx, at as usize) else { return 0 };
    let field = u16::from_be_bytes(field);
    let pseudo = match protocol {
        PROTO_ICMP => None,
        _ => Some(Sum::new().add_pseudo_ipv4(tuple.src, tuple.dst, protocol, len as u16)),
    };
    // The field has the sum of the pseudo header alone: the sender is on this host, and leaves the
    // rest of the sum to the network card.
    if pseudo.is_some_and(|pseudo| pseudo.fold() == field) {
        return 0;
    }
    let Some(summed) = own(&SUMMED, 0) else { return 0 };
    (summed.at, summed.left, summed.sum) = (routed.l4, len, pseudo.unwrap_or_default());
    let mut skb = skb;
    repeat(STEPS, add_step, &mut skb);
    // A packet that could not be read to its end is not dropped.
    (summed.left == 0 && !is_whole(summed.sum)).into()
}

/// Loop body of [`is_damaged`]. Each load has a constant length, which the verifier demands.
unsafe extern "C" fn add_step(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: `is_damaged` passes its own pointer to the context.
    let skb = unsafe { *context.cast::<*mut __sk_buff>() };
    let Some(summed) = own(&SUMMED, 0) else { return 1 };
    let step = match summed.left {
        0 => return 1,
        1 => 1,
        2..4 => 2,
        4..64 => 4,
        _ => STEP as u32,
    };
    let to = &raw mut summed.bytes;
    let done = match step {
        1 => load_to(skb, summed.at, to, 1),
        2 => load_to(skb, summed.at, to, 2),
        4 => load_to(skb, summed.at, to, 4),
        _ => load_to(skb, summed.at, to, STEP as u32),
    };
    if !done {
        return 1;
    }
    let [a, b, c, d, ..] = summed.bytes;
    summed.sum = match step {
        // An odd last byte is padded (RFC 1071 §4.1).
        1 => summed.sum.add_u16(u16::from_be_bytes([a, 0])),
        2 => summed.sum.add_u16(u16::from_be_bytes([a, b])),
        4 => summed.sum.add_u32(u32::from_be_bytes([a, b, c, d])),
        _ => summed.sum.add_u16(sum(&summed.bytes).fold()),
    };
    summed.at = summed.at.wrapping_add(step);
    summed.left = summed.left.wrapping_sub(step);
    0
}
