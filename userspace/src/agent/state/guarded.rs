//! The store as the agent may use it: only while it is the one that the agent knows.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::watch, time::timeout};

use crate::store::{
    Compare, Health, Kind, LeaseId, Outcome, Pages, Revision, Snapshot, StateStore, StoreError,
    Watch, Write,
};

/// Time for which a write waits for the follower to check the store, as after a failover. etcd elects
/// a leader within 2 s by default, and the follower then connects again.
const CHECK: Duration = Duration::from_secs(4);

/// A store whose keys are neither read nor written while the follower calls the store replaced. So no
/// caller can plan with the contents of another store, or write to it. After a break of the connection
/// nothing is written before the follower has checked the store. A lease is kept alive all the same.
/// The follower itself uses the store without this guard.
#[derive(Debug)]
pub(super) struct Guarded {
    store: Arc<dyn StateStore>,
    /// Health of the follower of this store.
    health: watch::Receiver<Health>,
}

impl Guarded {
    pub(super) fn new(store: Arc<dyn StateStore>, health: watch::Receiver<Health>) -> Self {
        Self { store, health }
    }

    /// The store, if it is not called replaced.
    fn known(&self) -> Result<&dyn StateStore, StoreError> {
        match refusal(&self.health.borrow()) {
            Some(error) => Err(error),
            None => Ok(self.store.as_ref()),
        }
    }

    /// The store, if it is the one that the agent knows. Waits until the follower has checked it,
    /// for [`CHECK`] at most.
    async fn checked(&self) -> Result<&dyn StateStore, StoreError> {
        let mut health = self.health.clone();
        let checked = async {
            let is_checked = |health: &Health| health.identified || health.replaced.is_some();
            // `None`: the follower has ended, because the agent is stopping.
            health.wait_for(is_checked).await.ok().map(|health| refusal(&health))
        };
        match timeout(CHECK, checked).await {
            Ok(Some(None)) => Ok(self.store.as_ref()),
            Ok(Some(Some(error))) => Err(error),
            Ok(None) | Err(_) => Err(unchecked(&self.health.borrow())),
        }
    }
}

/// Why nothing is written to a store of this health, which is not checked.
fn unchecked(health: &Health) -> StoreError {
    let why = health.error.as_deref().unwrap_or("it is not read yet").trim_start_matches("store: ");
    StoreError::Unsent(format!(
        "{why}; nothing is written to it before it has answered and is checked: try again"
    ))
}

/// Why a store of this health is not used. `None`: it may be used.
pub(super) fn refusal(health: &Health) -> Option<StoreError> {
    let why = health.replaced.as_deref()?.trim_start_matches("store: ");
    Some(StoreError::Replaced(format!("{why}; 'culvert store accept' if this store is meant")))
}

#[async_trait]
impl StateStore for Guarded {
    fn kind(&self) -> Kind {
        self.store.kind()
    }

    async fn clock_offset_ms(&self) -> Option<i64> {
        self.store.clock_offset_ms().await
    }

    async fn alarms(&self) -> Result<Vec<String>, StoreError> {
        self.store.alarms().await
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.known()?.snapshot(prefix).await
    }

    async fn list(&self, prefix: &str) -> Result<Pages, StoreError> {
        self.known()?.list(prefix).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.known()?.was_written(key, at).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.known()?.watch(prefix, from).await
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        self.checked().await?.commit(compares, writes).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.checked().await?.grant(ttl).await
    }

    // It writes no key. Without it a healthy store in doubt would show this node as dead, and `node rm`
    // on another host would remove it.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.checked().await?.revoke(lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileStore;

    #[test]
    fn the_refusal_names_the_way_out() {
        let finding = Some("store: replaced: it is at revision 3 and was at 9".to_owned());
        // The last error may be another one.
        let error = Some("store: etcd does not answer".to_owned());
        let replaced = Health { replaced: finding, error, ..Health::default() };
        let line = refusal(&replaced).expect("is refused").to_string();
        assert_eq!(
            line,
            "store: replaced: it is at revision 3 and was at 9; 'culvert store accept' if this store is meant"
        );
        assert!(refusal(&Health { replaced: None, ..replaced }).is_none());
    }

    async fn file_store() -> (tempfile::TempDir, Arc<dyn StateStore>) {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).await.unwrap();
        (dir, Arc::new(store))
    }

    /// After a break nothing is written before the store is checked: it may have been rolled back
    /// meanwhile.
    #[tokio::test]
    async fn a_store_that_is_not_checked_is_not_written_to() {
        let (_dir, store) = file_store().await;
        let error = Some("store: the watch ended".to_owned());
        let (health, follower) = watch::channel(Health { error, ..Health::default() });
        let guarded = Guarded::new(Arc::clone(&store), follower);
        let put = || vec![Write::Put { key: "/a".to_owned(), value: Vec::new(), lease: None }];
        let ttl = Duration::from_secs(10);
        let (written, granted) =
            tokio::join!(guarded.commit(Vec::new(), put()), guarded.grant(ttl));
        for refused in [written.map(drop), granted.map(drop)] {
            let error = refused.unwrap_err();
            assert!(matches!(error, StoreError::Unsent(_)), "{error:?}");
            let line = error.to_string();
            assert!(line.starts_with("store: the watch ended; nothing is written to"), "{line}");
        }
        assert!(store.snapshot("/").await.unwrap().entries.is_empty());
        assert!(guarded.snapshot("/").await.unwrap().entries.is_empty());

        // A write that waits is sent once the check has succeeded.
        let writes = put();
        let writing = tokio::spawn(async move { guarded.commit(Vec::new(), writes).await });
        tokio::task::yield_now().await;
        health.send_modify(|health| health.identified = true);
        writing.await.unwrap().unwrap();
        assert_eq!(store.snapshot("/").await.unwrap().entries.len(), 1);
    }

    /// The lease of a replaced store is kept alive: the node lives, and the store may be healthy.
    #[tokio::test]
    async fn a_lease_is_kept_alive_in_any_case() {
        let (_dir, store) = file_store().await;
        let lease = store.grant(Duration::from_secs(10)).await.unwrap();
        let replaced = Some("store: replaced: it is at revision 3 and was at 9".to_owned());
        let (_health, follower) = watch::channel(Health { replaced, ..Health::default() });
        let guarded = Guarded::new(Arc::clone(&store), follower);
        guarded.keep_alive(lease).await.unwrap();
        let refused = guarded.revoke(lease).await.unwrap_err();
        assert!(matches!(refused, StoreError::Replaced(_)), "{refused}");
    }
}
