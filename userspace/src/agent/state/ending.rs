//! How the agent ends.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tokens that end the agent, and the tasks that it waits for.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Asks all tasks to end.
    pub(crate) shutdown: CancellationToken,
    /// Asks the agent to start anew, because what the programs were loaded with has changed.
    pub(crate) again: CancellationToken,
    /// This node is being removed from the store by this agent.
    pub(crate) leaving: CancellationToken,
    /// Everything of this node was purged: there is nothing left to clean up.
    pub(crate) purged: CancellationToken,
    /// The tasks that the agent waits for before it ends.
    pub(crate) tasks: TaskTracker,
}

impl Ending {
    /// Asks all tasks to end, and waits until they have.
    pub(crate) async fn end_tasks(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
