//! The epoch of the maps. An entry of the flow cache or of the route cache is valid for one epoch.

use crate::maps::EPOCH;

/// The epoch of the maps; 0 before the agent has set one.
#[inline(always)]
pub(crate) fn current() -> u64 {
    EPOCH.get(0).copied().unwrap_or(0)
}

/// Begins a new epoch, because a map has changed that cached entries depend on. `now_ns` is the
/// time of `bpf_ktime_get_ns`. It is greater than every earlier epoch: the programs set the epoch
/// to the time, and the agent adds 1 to it, less often than once per nanosecond.
#[inline(always)]
pub(crate) fn advance(now_ns: u64) {
    if let Some(epoch) = EPOCH.get_ptr_mut(0) {
        // SAFETY: `get_ptr_mut` has checked the index. The entry is one aligned word, which a BPF
        // program writes with one instruction.
        unsafe { epoch.write_volatile(now_ns) };
    }
}
