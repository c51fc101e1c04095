//! Containers without a file in the state directory, of which the store tells.

use super::{Agent, conflict};
use crate::{
    agent::containers::{Origin, Record},
    api::types::ApiError,
};

impl Agent {
    /// Whether this host itself knows the namespace of a container: it has a file of it, or a
    /// device pair of the container leads there. What the store alone has may name any namespace.
    async fn is_known_here(&self, record: &Record) -> bool {
        let name = &record.name;
        let recorded = self.shared.containers().get(name).is_some();
        if recorded || self.shared.requests.unfinished.is_left(name) {
            return true;
        }
        let platform = &self.shared.platform;
        let netns = match record.origin {
            Origin::Owned => platform.sandbox_path(name),
            Origin::Attached | Origin::Host | Origin::Shares(_) => record.netns.clone(),
        };
        for (_, id) in self.endpoints_of(name) {
            if platform.leads_into(&id, &netns).await {
                return true;
            }
        }
        false
    }

    /// Refuses to use the namespace of a container that is known from the store alone.
    pub(super) async fn check_known(&self, record: &Record) -> Result<(), ApiError> {
        if self.is_known_here(record).await {
            return Ok(());
        }
        Err(conflict(format!(
            "container '{name}' is known from the store alone, with network namespace {}: 'culvert rm {name}' removes it, then make it again",
            record.netns.display(),
            name = record.name
        )))
    }

    /// Notes that the sandbox of a container without a file is going to be removed: once its
    /// endpoints are gone, nothing else tells of it. A namespace that only the store calls the
    /// container's is another program's, and stays.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written to.
    pub(super) async fn begin_lost_removal(&self, record: &Record) -> Result<(), ApiError> {
        let recorded = self.shared.containers().get(&record.name).is_some();
        if record.origin == Origin::Owned && !recorded && self.is_known_here(record).await {
            self.begin_removal(&record.name)?;
        }
        Ok(())
    }
}
