//! `culvert purge` while the agent runs.

use std::time::Duration;

use super::{Agent, conflict};
use crate::{
    agent::{node, shared::SETTLE},
    api::types::{ApiError, ErrorKind},
    model::ops::ExecuteError,
};

impl Agent {
    /// Removes everything of this node from the store and from the kernel. The agent must stop
    /// afterwards.
    pub(crate) async fn purge_node(&self) -> Result<(), ApiError> {
        let without = |error: ApiError| {
            ApiError::new(
                error.kind,
                format!(
                    "{}; to purge this host without the store, stop the agent and run 'culvert purge' again",
                    error.message
                ),
            )
        };
        let store = self.shared.usable_store().await.map_err(without)?;
        node::check_own(store.as_ref(), &self.shared).await.map_err(|error| match error {
            ExecuteError::Refused(why) => conflict(format!(
                "{why}: to purge this host alone, stop the agent and run 'culvert purge' again"
            )),
            other => without(other.into()),
        })?;
        // No command is started again from now on.
        let _starting = self.shared.requests.starting.lock().await;
        // A supervisor that is being started has a process that nobody knows yet.
        tokio::time::timeout(SETTLE, self.shared.requests.launches.all_ended()).await.map_err(
            |_| {
                ApiError::new(
                    ErrorKind::Unavailable,
                    "purge: a command is being started again: run 'culvert purge' again",
                )
            },
        )?;
        let records = self.look_again_at(self.all_records()).await?;
        for record in &records {
            Self::kill_process(record).await?;
            self.begin_lost_removal(record).await?;
        }
        // The agent does not register the node again.
        self.shared.ending.leaving.cancel();
        let own = &self.shared.node;
        node::leave(store.as_ref(), &own.name, &own.id).await?;
        // The engine removes the device pairs when the endpoints are removed from the store.
        let gone = async {
            while !self.shared.plugs.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SETTLE, gone).await.map_err(|_| {
            ApiError::new(
                ErrorKind::Unavailable,
                "purge: veths are left: stop the agent and run 'culvert purge' again",
            )
        })?;
        for record in &records {
            self.take_away(record).await?;
        }
        self.shared.platform.purge().await?;
        self.shared.ending.purged.cancel();
        Ok(())
    }
}
