//! How the agent ends.

use std::sync::OnceLock;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tokens that end the agent, and the tasks that it waits for.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Asks all tasks to end.
    pub(crate) shutdown: CancellationToken,
    /// Asks the agent to start anew, because what it has chosen at its start has changed.
    pub(crate) again: CancellationToken,
    /// Why it is to start anew, on one line.
    reason: OnceLock<String>,
    /// This node is being removed from the store by this agent.
    pub(crate) leaving: CancellationToken,
    /// Everything of this node was purged: there is nothing left to clean up.
    pub(crate) purged: CancellationToken,
    /// The tasks that the agent waits for before it ends.
    pub(crate) tasks: TaskTracker,
}

impl Ending {
    /// Asks the agent to start anew, and logs the reason, which the next run shows in `status`.
    pub(crate) fn start_anew(&self, reason: String) {
        let line = format!("{reason}: starting anew with it");
        // With a second reason the agent is starting anew already.
        if self.reason.set(reason).is_ok() {
            tracing::warn!("{line}");
        }
        self.again.cancel();
    }

    /// Why the agent is to start anew, on one line, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.get().cloned()
    }

    /// Asks all tasks to end, and waits until they have.
    pub(crate) async fn end_tasks(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
