//! Number of path MTUs that the agent has verified.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What became of the hints of smaller path MTUs since the agent started.
#[derive(Debug, Default)]
pub(crate) struct PathMtuCounts {
    verified: AtomicU64,
    unverified: AtomicU64,
    smaller: AtomicUsize,
}

impl PathMtuCounts {
    /// Counts a hint: whether a probe has confirmed it.
    pub(crate) fn count(&self, is_confirmed: bool) {
        let counter = if is_confirmed { &self.verified } else { &self.unverified };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the number of VTEPs with a smaller path MTU than the route's.
    pub(crate) fn set_smaller(&self, number: usize) {
        self.smaller.store(number, Ordering::Relaxed);
    }

    /// Number of hints that a probe has confirmed.
    pub(crate) fn verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    /// Number of hints that no probe has confirmed.
    pub(crate) fn unverified(&self) -> u64 {
        self.unverified.load(Ordering::Relaxed)
    }

    /// Number of VTEPs with a smaller path MTU than the route's.
    pub(crate) fn smaller(&self) -> usize {
        self.smaller.load(Ordering::Relaxed)
    }
}
