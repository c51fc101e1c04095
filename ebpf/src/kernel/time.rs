//! Clocks and random numbers.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

/// Nanoseconds since boot, without the time in suspend.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The value of [`now`] at the last timer tick, at most 10 ms ago. The call takes less time.
#[inline(always)]
pub(crate) fn now_coarse() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A pseudo-random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}
