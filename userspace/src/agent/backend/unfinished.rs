//! Sandboxes that an agent which was killed has left without a record.

use super::Agent;
use crate::{
    agent::containers::{Origin, Record},
    api::types::ApiError,
    model::Name,
};

impl Agent {
    /// Looks at the sandboxes that an earlier agent was making or removing. What has a record, or
    /// nothing left, is finished.
    pub(crate) fn find_unfinished(&self) {
        for name in self.shared.unfinished.left() {
            let recorded = self.shared.containers().get(&name).is_some();
            if recorded || !self.shared.platform.sandbox_exists(&name) {
                self.finished(&name);
            } else {
                self.tell_unfinished(&name);
            }
        }
    }

    /// The record of a container of which there is only a sandbox.
    pub(super) fn unfinished_record(&self, name: &Name) -> Option<Record> {
        let left = self.shared.unfinished.is_left(name);
        left.then(|| {
            Record::new(name.clone(), Origin::Owned, self.shared.platform.sandbox_path(name))
        })
    }

    /// Notes that the sandbox `name` is going to be made or removed.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written to.
    pub(super) fn begin_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        let what = format!("container '{name}'");
        self.shared.unfinished.begin(name).map_err(|error| self.shared.disk.refuse(&what, error))
    }

    /// Notes that the sandbox `name` is complete, or gone.
    pub(super) fn finished(&self, name: &Name) {
        if let Err(error) = self.shared.unfinished.end(name) {
            tracing::warn!("container '{name}': the note of its sandbox stays: {error}");
        }
        self.shared.problems.set(&format!("unfinished/{name}"), None);
    }

    /// Notes that a sandbox could not be removed, and that nobody tries again.
    pub(super) fn leave_sandbox(&self, name: &Name) {
        self.shared.unfinished.leave(name);
        self.tell_unfinished(name);
    }

    fn tell_unfinished(&self, name: &Name) {
        let path = self.shared.platform.sandbox_path(name);
        let line = format!(
            "container '{name}': it was made or removed in part, network namespace {} is left: 'culvert rm {name}' removes it",
            path.display()
        );
        self.shared.problems.set(&format!("unfinished/{name}"), Some(line));
    }
}
