//! Whether the state of the store is in the kernel.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::Revision;

/// Number of turns of the engine. The agent is ready after the first turn that counts: the first
/// snapshot of the store is in the kernel then, with the agent's own entry.
#[derive(Debug)]
pub(crate) struct Readiness {
    turns: watch::Sender<u64>,
    gate: Mutex<Gate>,
}

/// What must be before the first turn counts.
#[derive(Debug, Default)]
struct Gate {
    /// The first attempt to enter the node in the store has ended.
    is_entered: bool,
    /// The least revision that must be in the kernel.
    from: Revision,
    /// The revision that is in the kernel.
    reached: Option<Revision>,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.is_entered && self.reached.is_some_and(|revision| revision >= self.from)
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self { turns: watch::Sender::new(0), gate: Mutex::default() }
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
        let mut gate = self.gate();
        gate.from = gate.from.max(revision);
    }

    /// Notes that the first attempt to enter the node in the store has ended: at `revision`, or
    /// without success, so that the agent does not wait for it. It forwards all the same.
    pub(crate) fn entered(&self, revision: Option<Revision>) {
        let mut gate = self.gate();
        gate.is_entered = true;
        gate.from = gate.from.max(revision.unwrap_or_default());
        if !self.is_ready() && gate.is_open() {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// Notes that the engine has finished a turn, with the state of `revision`.
    pub(crate) fn turned(&self, revision: Revision) {
        let mut gate = self.gate();
        gate.reached = Some(revision);
        // Another store, accepted later, may have smaller revisions.
        if self.is_ready() || gate.is_open() {
            self.turns.send_modify(|turns| *turns += 1);
        }
    }

    /// The number of turns, to wait on.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // A thread that panicked with the lock held left valid values.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_not_ready_before_a_revision_that_it_has_made() {
        let readiness = Readiness::default();
        readiness.entered(None);
        readiness.not_before(7);
        readiness.not_before(5);
        readiness.turned(6);
        assert!(!readiness.is_ready());
        readiness.turned(7);
        readiness.turned(1);
        assert_eq!(*readiness.turns().borrow(), 2);
    }

    #[test]
    fn the_agent_is_not_ready_before_its_own_entry_is_in_the_kernel() {
        let readiness = Readiness::default();
        readiness.turned(6);
        assert!(!readiness.is_ready(), "it is not known at which revision the node is entered");
        readiness.entered(Some(7));
        assert!(!readiness.is_ready());
        readiness.turned(7);
        assert!(readiness.is_ready());
    }

    /// No event of the store follows.
    #[test]
    fn the_agent_does_not_wait_for_an_entry_that_the_store_does_not_take() {
        let readiness = Readiness::default();
        readiness.turned(6);
        readiness.entered(None);
        assert!(readiness.is_ready());
        readiness.entered(None);
        assert_eq!(*readiness.turns().borrow(), 1);
    }
}
