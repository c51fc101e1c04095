//! The epoch of the maps: what the flow cache and the route cache keep holds for one epoch.

use crate::maps::EPOCH;

/// The epoch of the maps; 0 before the agent has set one.
#[inline(always)]
pub(crate) fn current() -> u64 {
    EPOCH.get(0).copied().unwrap_or(0)
}

/// Begins another epoch: a map has changed that cached entries depend on. The time `now_ns`
/// is greater than every earlier epoch: the programs set the time, and the agent adds one, less
/// often than once a nanosecond.
#[inline(always)]
pub(crate) fn advance(now_ns: u64) {
    if let Some(epoch) = EPOCH.get_ptr_mut(0) {
        // SAFETY: the entry is one aligned word, which a BPF program writes at once.
        unsafe { epoch.write_volatile(now_ns) };
    }
}
