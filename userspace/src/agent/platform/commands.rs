//! Commands of containers: their supervisors.

use std::{collections::BTreeMap, io, path::Path};

use async_trait::async_trait;

use super::types::{FoundSupervisor, Launch, Wanted};
use crate::{agent::containers::Process, api::types::ApiError, model::Name};

/// Starts the supervisors of commands, and finds those that run.
#[async_trait]
pub(crate) trait Commands: Send + Sync + 'static {
    /// Starts a supervisor, which does not depend on the agent. Returns once its command runs.
    ///
    /// # Errors
    ///
    /// The supervisor or its command could not be started, on one line. The supervisor may try
    /// again by itself. It then reports to the agent.
    async fn supervise(&self, launch: &Launch) -> Result<(), String>;

    /// The process `pid`, if it runs and is a child of the process `supervisor`.
    ///
    /// # Errors
    ///
    /// It is not known whether it runs.
    fn command_of(&self, supervisor: i32, pid: i32) -> io::Result<Option<Process>>;

    /// The supervisors of these containers that run, and their commands. `logs`: directory of the
    /// logs of this agent's containers.
    ///
    /// # Errors
    ///
    /// The processes of this host cannot be looked at.
    async fn supervised(
        &self,
        wanted: Vec<Wanted>,
        logs: &Path,
    ) -> Result<BTreeMap<Name, FoundSupervisor>, ApiError>;
}
