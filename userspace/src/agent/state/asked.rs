//! The store as requests use it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    api::deadline::{Wait, waiting},
    store::{
        Compare, Kind, LeaseId, Outcome, Pages, Revision, Snapshot, StateStore, StoreError, Watch,
        Write,
    },
};

/// A store that marks each call as [`Wait::Store`]: if the time of a request is over during the
/// call, the error tells the caller that the store has not answered.
#[derive(Debug)]
pub(super) struct Asked(pub(super) Arc<dyn StateStore>);

#[async_trait]
impl StateStore for Asked {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    async fn clock_offset_ms(&self) -> Option<i64> {
        waiting(Wait::Store, self.0.clock_offset_ms()).await
    }

    async fn alarms(&self) -> Result<Vec<String>, StoreError> {
        waiting(Wait::Store, self.0.alarms()).await
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        waiting(Wait::Store, self.0.snapshot(prefix)).await
    }

    async fn list(&self, prefix: &str) -> Result<Pages, StoreError> {
        waiting(Wait::Store, self.0.list(prefix)).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        waiting(Wait::Store, self.0.was_written(key, at)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        waiting(Wait::Store, self.0.watch(prefix, from)).await
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        waiting(Wait::Store, self.0.commit(compares, writes)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        waiting(Wait::Store, self.0.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        waiting(Wait::Store, self.0.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        waiting(Wait::Store, self.0.revoke(lease)).await
    }
}
