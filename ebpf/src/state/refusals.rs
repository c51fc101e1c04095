//! Which containers were refused a flow a moment ago. Their next searches are short: a packet that
//! is refused costs no more than one that is accepted.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::kernel::memory::own;

/// The last refusal of a container on this CPU. Tests read and write it.
#[repr(C)]
struct Refusal {
    /// Incarnation of the container; 0 if there is none.
    owner: u32,
    /// Explicit padding; zero.
    pad: u32,
    /// Time in ns until which the searches for the container are short.
    until_ns: u64,
}

/// Number of containers that this CPU remembers: a power of two. Of two containers with the same
/// index, the last one is remembered.
const LEN: u32 = 256;
/// How long the searches for a container are short after a refusal, in ns.
const BRIEF_NS: u64 = 100_000_000;

#[map]
static REFUSALS: PerCpuArray<Refusal> = PerCpuArray::with_max_entries(LEN, 0);

/// Notes that the container with the incarnation `owner` was refused a flow. A BPF function of its
/// own, for a stack frame of its own.
#[inline(never)]
pub(super) fn note_refusal(owner: u32, now: u64) {
    if let Some(refusal) = own(&REFUSALS, owner & (LEN - 1)) {
        (refusal.owner, refusal.until_ns) = (owner, now.wrapping_add(BRIEF_NS));
    }
}

/// Whether the container with the incarnation `owner` was refused a flow a moment ago. Returns 1 or
/// 0. A BPF function of its own, for a stack frame of its own.
#[inline(never)]
pub(super) fn was_refused(owner: u32, now: u64) -> u32 {
    let Some(refusal) = own(&REFUSALS, owner & (LEN - 1)) else { return 0 };
    (owner != 0 && refusal.owner == owner && now < refusal.until_ns).into()
}
