//! The agent's handle of the store: whether it is opened, and whether it answers.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    api::types::StoreRead,
    store::{Health, Listed, StateStore},
};

/// The store, and whether it answers.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    store: OnceLock<Arc<dyn StateStore>>,
    /// Health of the first attempts to reach the store.
    early: watch::Sender<Health>,
    /// Health of the follower; of the first attempts until there is a follower.
    health: Mutex<watch::Receiver<Health>>,
    /// The last time that the whole store was read.
    last_read: Mutex<Option<StoreRead>>,
}

impl Default for StoreHandle {
    fn default() -> Self {
        let (early, health) = watch::channel(Health::default());
        Self {
            store: OnceLock::new(),
            early,
            health: Mutex::new(health),
            last_read: Mutex::default(),
        }
    }
}

impl StoreHandle {
    /// Makes the store available to requests. A second call has no effect.
    pub(crate) fn set(&self, store: Arc<dyn StateStore>) {
        let _ = self.store.set(store);
    }

    /// The store, once it has been opened.
    pub(crate) fn opened(&self) -> Option<&Arc<dyn StateStore>> {
        self.store.get()
    }

    /// The present health of the store.
    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).borrow().clone()
    }

    /// Notes that an attempt to reach the store failed. Logs the error if it differs from the last
    /// one. Has no effect on the health once there is a follower.
    pub(crate) fn early_error(&self, error: &str) {
        self.early.send_if_modified(|health| {
            let news = health.error.as_deref() != Some(error);
            if news && !self.early.is_closed() {
                tracing::warn!("{error}; still trying");
            }
            health.error = Some(error.to_owned());
            news
        });
    }

    /// Uses the follower's health from now on.
    pub(crate) fn watch_health(&self, health: watch::Receiver<Health>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// The last time that the whole store was read.
    pub(crate) fn last_read(&self) -> Option<StoreRead> {
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes, and logs, that a whole list of the store is in the maps now.
    pub(crate) fn note_read(&self, list: Listed) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let read = StoreRead {
            keys: list.keys,
            read_ms: ms(list.took),
            maps_ms: ms(list.began.elapsed()),
        };
        tracing::info!(
            "store read keys={} read_ms={} maps_ms={}",
            read.keys,
            read.read_ms,
            read.maps_ms
        );
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
    }
}
