//! Whether the state of the store is in the kernel.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::Revision;

/// Number of turns of the engine. The agent is ready after the first turn: the first snapshot of
/// the store is in the kernel then.
#[derive(Debug)]
pub(crate) struct Readiness {
    turns: watch::Sender<u64>,
    from: AtomicI64,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { turns: watch::Sender::new(0), from: AtomicI64::new(0) }
    }
}

impl Readiness {
    /// Whether the first snapshot of the store is in the kernel.
    pub(crate) fn is_ready(&self) -> bool {
        *self.turns.borrow() > 0
    }

    /// Waits until the first snapshot of the store is in the kernel. `false`: `shutdown` was
    /// cancelled first.
    pub(crate) async fn wait(&self, shutdown: &CancellationToken) -> bool {
        let mut turns = self.turns.subscribe();
        tokio::select! {
            () = shutdown.cancelled() => false,
            ready = turns.wait_for(|turns| *turns > 0) => ready.is_ok(),
        }
    }

    /// The agent is not ready before the state of `revision` is in the kernel.
    pub(crate) fn not_before(&self, revision: Revision) {
        self.from.fetch_max(revision, Ordering::Relaxed);
    }

    /// Notes that the engine has finished a turn, with the state of `revision`.
    pub(crate) fn turned(&self, revision: Revision) {
        // Another store, accepted later, may have smaller revisions.
        if self.is_ready() || revision >= self.from.load(Ordering::Relaxed) {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// The number of turns, to wait on.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_not_ready_before_a_revision_that_it_has_made() {
        let readiness = Readiness::default();
        readiness.not_before(7);
        readiness.not_before(5);
        readiness.turned(6);
        assert!(!readiness.is_ready());
        readiness.turned(7);
        readiness.turned(1);
        assert_eq!(*readiness.turns().borrow(), 2);
    }
}
