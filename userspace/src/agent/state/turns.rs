//! Locks that serialise the requests for one name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::model::Name;

/// A lock for each name of a container or of a network: `run` and `rm` of one name come one
/// after the other.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    locks: Mutex<BTreeMap<Name, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits until no other request has this name.
    pub(crate) async fn wait(&self, name: &Name) -> OwnedMutexGuard<()> {
        self.lock(name).lock_owned().await
    }

    /// The lock of this name. `None`: a request has it.
    pub(crate) fn take(&self, name: &Name) -> Option<OwnedMutexGuard<()>> {
        self.lock(name).try_lock_owned().ok()
    }

    fn lock(&self, name: &Name) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes the locks that no request holds or waits for.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(name.clone()).or_default())
    }
}
