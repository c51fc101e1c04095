//! The agent's handle of the store: whether it is opened, and whether it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::{
    asked::Asked,
    guarded::{self, Guarded},
};
use crate::{
    api::types::StoreRead,
    store::{Follower, Health, Listed, StateStore, StoreError},
};

/// The store, and whether it answers.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    store: OnceLock<Arc<dyn StateStore>>,
    /// Health of the first attempts to reach the store.
    early: watch::Sender<Health>,
    /// Health of the follower. Until there is a follower: health of the first attempts.
    health: Mutex<watch::Receiver<Health>>,
    /// Tells the follower to accept a store that was replaced.
    acceptance: OnceLock<Arc<Notify>>,
    /// Tells the follower that this host is registered.
    registration: OnceLock<Arc<Notify>>,
    /// Key count and durations of the last read of the whole store.
    last_read: Mutex<Option<StoreRead>>,
    /// Alarms of the store, as they were last read.
    alarms: Mutex<Vec<String>>,
    /// Addresses of the members of the store that have a name, as they were last looked up.
    named: Mutex<BTreeMap<String, BTreeSet<IpAddr>>>,
    /// Notified when `named` has changed.
    renamed: Notify,
}

impl Default for StoreHandle {
    fn default() -> Self {
        let (early, health) = watch::channel(Health::default());
        Self {
            store: OnceLock::new(),
            early,
            health: Mutex::new(health),
            acceptance: OnceLock::new(),
            registration: OnceLock::new(),
            last_read: Mutex::default(),
            alarms: Mutex::default(),
            named: Mutex::default(),
            renamed: Notify::new(),
        }
    }
}

impl StoreHandle {
    /// Makes the store, as [`Self::watch`] returned it, available to requests. A second call has no
    /// effect.
    pub(crate) fn set(&self, store: Arc<dyn StateStore>) {
        let _ = self.store.set(Arc::new(Asked(store)));
    }

    /// The store, once it has been opened.
    pub(crate) fn opened(&self) -> Option<&Arc<dyn StateStore>> {
        self.store.get()
    }

    /// Notes the addresses of a member of the store, `HOST:PORT`, that has a name.
    pub(crate) fn note_addresses(&self, member: &str, addresses: BTreeSet<IpAddr>) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.get(member) != Some(&addresses) {
            named.insert(member.to_owned(), addresses);
            self.renamed.notify_one();
        }
    }

    /// Waits until [`Self::named_addresses`] may have changed.
    pub(crate) async fn addresses_changed(&self) {
        self.renamed.notified().await;
    }

    /// The addresses of the members of the store that have a name, as far as they are known.
    pub(crate) fn named_addresses(&self) -> Vec<IpAddr> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.values().flatten().copied().collect()
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

    /// Uses the health of the follower of `store` from now on. Returns a wrapper of the store for
    /// all users except the follower: it refuses while the store counts as replaced.
    pub(crate) fn watch(
        &self,
        follower: &Follower,
        store: Arc<dyn StateStore>,
    ) -> Arc<dyn StateStore> {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = follower.health();
        // A second call has no effect: an agent has one follower.
        let _ = self.acceptance.set(follower.acceptance());
        let _ = self.registration.set(follower.registration());
        Arc::new(Guarded::new(store, follower.health()))
    }

    /// Accepts a store that was replaced. Has no effect if the store was not replaced.
    pub(crate) fn accept(&self) {
        if let Some(acceptance) = self.acceptance.get() {
            acceptance.notify_one();
        }
    }

    /// Notes that this host is registered in the store.
    pub(crate) fn registered(&self) {
        if let Some(registration) = self.registration.get() {
            registration.notify_one();
        }
    }

    /// Waits until the store is identified as the store that this agent knows, or is accepted.
    pub(crate) async fn is_known(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // The follower has ended: the agent is stopping.
        let _ = health.wait_for(|health| health.identified).await;
    }

    /// Why the store is not used: it is not the one that this agent knows. `None`: it may be used.
    pub(crate) fn refusal(&self) -> Option<StoreError> {
        guarded::refusal(&self.health())
    }

    /// The alarms of the store, as they were last read.
    pub(crate) fn alarms(&self) -> Vec<String> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the alarms of the store.
    pub(crate) fn set_alarms(&self, alarms: Vec<String>) {
        *self.alarms.lock().unwrap_or_else(PoisonError::into_inner) = alarms;
    }

    /// Key count and durations of the last read of the whole store.
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
