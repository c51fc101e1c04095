//! Whether the state of the store is in the kernel.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Number of turns of the engine. The agent is ready after the first turn: the first snapshot of
/// the store is in the kernel then.
#[derive(Debug)]
pub(crate) struct Readiness {
    turns: watch::Sender<u64>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { turns: watch::Sender::new(0) }
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

    /// Notes that the engine has finished a turn.
    pub(crate) fn turned(&self) {
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// The number of turns, to wait on.
    pub(crate) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }
}
