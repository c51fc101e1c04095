//! Sandboxes that an agent which was killed has left without a record.

use std::{io, path::PathBuf, sync::Arc};

use super::Agent;
use crate::{
    agent::containers::{Origin, Record},
    api::types::ApiError,
    model::Name,
};

impl Agent {
    /// Looks at the sandboxes that an earlier agent was making or removing. What has a record, or
    /// nothing left, is finished. A namespace that another program has since made of that name is
    /// left alone.
    pub(crate) fn find_unfinished(&self) {
        for name in self.shared.requests.unfinished.left() {
            let recorded = self.shared.containers().get(&name).is_some();
            if !recorded && self.is_unfinished(&name) {
                self.tell_unfinished(&name);
                continue;
            }
            self.finished(&name);
            if !recorded && !self.shared.platform.sandbox_exists(&name) {
                self.remove_stale_path(name);
            }
        }
    }

    /// Removes the path of a sandbox of which there is no namespace: an agent that is killed between
    /// the path and the namespace leaves an empty file there.
    fn remove_stale_path(&self, name: Name) {
        let agent = Self::new(Arc::clone(&self.shared));
        self.shared.ending.tasks.spawn(async move {
            let _turn = agent.shared.requests.turns.wait(&name).await;
            let platform = &agent.shared.platform;
            if agent.shared.containers().get(&name).is_some() || platform.sandbox_exists(&name) {
                return;
            }
            if let Err(error) = platform.remove_sandbox(&name).await {
                tracing::warn!("container '{name}': {error}");
            }
        });
    }

    /// Whether the namespace at the path of the sandbox `name` is one that was being made or removed.
    pub(super) fn is_unfinished(&self, name: &Name) -> bool {
        let found = self.shared.platform.sandbox_id(name);
        self.shared.requests.unfinished.is_meant(name, found)
    }

    /// The record of a container of which there is only a sandbox.
    pub(super) fn unfinished_record(&self, name: &Name) -> Option<Record> {
        let left = self.shared.requests.unfinished.is_left(name);
        left.then(|| {
            Record::new(name.clone(), Origin::Owned, self.shared.platform.sandbox_path(name))
        })
    }

    /// Makes the sandbox `name`, and notes that before.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written to, or the kernel refuses.
    pub(super) async fn make_sandbox(&self, name: &Name) -> Result<PathBuf, ApiError> {
        let platform = &self.shared.platform;
        // A namespace that exists is another program's, and refused.
        if !platform.sandbox_exists(name) {
            let begun = self.shared.requests.unfinished.begin(name);
            begun.map_err(|error| self.unnoted(name, error))?;
        }
        let (unfinished, named) = (Arc::clone(&self.shared.requests.unfinished), name.clone());
        let made = Box::new(move |namespace| unfinished.made(&named, namespace));
        platform.make_sandbox(name, made).await.inspect_err(|_| self.finished(name))
    }

    /// Notes that the sandbox `name`, of which there is no record, is going to be removed.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written to.
    pub(super) fn begin_removal(&self, name: &Name) -> Result<(), ApiError> {
        if self.shared.requests.unfinished.is_left(name) {
            return Ok(());
        }
        if let Some(namespace) = self.shared.platform.sandbox_id(name) {
            let noted = self.shared.requests.unfinished.made(name, namespace);
            noted.map_err(|error| self.unnoted(name, error))?;
            self.shared.requests.unfinished.leave(name);
        }
        Ok(())
    }

    fn unnoted(&self, name: &Name, error: io::Error) -> ApiError {
        self.shared.disk.refuse(&format!("container '{name}'"), error)
    }

    /// Notes that the sandbox `name` is complete, or gone.
    pub(super) fn finished(&self, name: &Name) {
        if let Err(error) = self.shared.requests.unfinished.end(name) {
            tracing::warn!("container '{name}': the note of its sandbox stays: {error}");
        }
        self.shared.shown.problems.set(&format!("unfinished/{name}"), None);
    }

    /// Notes that a sandbox could not be removed, and that nobody tries again.
    fn leave_sandbox(&self, name: &Name) {
        self.shared.requests.unfinished.leave(name);
        self.tell_unfinished(name);
    }

    /// Removes a sandbox whose container did not come to be. One that cannot be removed is left.
    pub(super) async fn drop_sandbox(&self, name: &Name) {
        match self.shared.platform.remove_sandbox(name).await {
            Ok(()) => self.finished(name),
            Err(error) => {
                tracing::warn!("container '{name}': {error}");
                self.leave_sandbox(name);
            }
        }
    }

    fn tell_unfinished(&self, name: &Name) {
        let path = self.shared.platform.sandbox_path(name);
        let line = format!(
            "container '{name}': it was made or removed in part, network namespace {} is left: 'culvert rm {name}' removes it",
            path.display()
        );
        self.shared.shown.problems.set(&format!("unfinished/{name}"), Some(line));
    }
}
