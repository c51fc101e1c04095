//! The two backends of the test suite.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use culvert::store::{
    EtcdOptions, EtcdStore, FileStore, Revision, Snapshot, StateStore, StoreError,
};
use culvert_tests::etcd::EtcdServer;

/// Deadline of every wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A store that can be compacted, stopped, started and wiped.
#[async_trait]
pub(crate) trait Backend: Send {
    /// A handle. A handle made before [`Backend::stop`] works again after
    /// [`Backend::start_again`].
    fn store(&self) -> Arc<dyn StateStore>;
    /// Compacts the history before a revision.
    async fn compact(&self, revision: Revision);
    /// Stops the store.
    async fn stop(&mut self);
    /// Starts the store again with its contents.
    async fn start_again(&mut self);
    /// Wipes the store, which must be stopped.
    async fn wipe(&mut self);
}

/// Waits for a future, with a deadline.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Reads until the store answers.
pub(crate) async fn answer(store: &dyn StateStore, prefix: &str) -> Snapshot {
    in_time("an answer", async {
        loop {
            match store.snapshot(prefix).await {
                Ok(snapshot) => return snapshot,
                Err(StoreError::Unavailable(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await
}

/// A real etcd.
pub(crate) struct Etcd {
    server: EtcdServer,
    store: Arc<dyn StateStore>,
}

/// Options for the endpoints, in plaintext.
pub(crate) fn etcd_options(endpoints: &[String]) -> EtcdOptions {
    EtcdOptions {
        endpoints: endpoints.to_vec(),
        ca: None,
        cert: None,
        key: None,
        user: None,
        password_file: None,
        insecure: false,
        timeout: EtcdOptions::TIMEOUT,
        layout: Some(culvert::model::LAYOUT),
    }
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        let server = tokio::task::block_in_place(EtcdServer::start).expect("etcd starts");
        let options = etcd_options(&[server.endpoint()]);
        let store = EtcdStore::connect(&options).await.expect("options are fine");
        Self { server, store: Arc::new(store) }
    }
}

impl Etcd {
    /// Stops the server, and keeps a copy of its data.
    pub(crate) async fn back_up(&mut self) {
        tokio::task::block_in_place(|| self.server.back_up()).expect("data is copied");
    }

    /// Stops the server, and restores the copy of its data.
    pub(crate) async fn roll_back(&mut self) {
        tokio::task::block_in_place(|| self.server.roll_back()).expect("data is put back");
    }
}

#[async_trait]
impl Backend for Etcd {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.store)
    }

    async fn compact(&self, revision: Revision) {
        let client = etcd_client::Client::connect([self.server.endpoint()], None).await;
        let mut kv = client.expect("connects").kv_client();
        kv.compact(revision, None).await.expect("compacts");
    }

    async fn stop(&mut self) {
        tokio::task::block_in_place(|| self.server.stop());
    }

    async fn start_again(&mut self) {
        tokio::task::block_in_place(|| self.server.resume()).expect("etcd starts again");
        answer(&*self.store, "/none/").await;
    }

    async fn wipe(&mut self) {
        tokio::task::block_in_place(|| self.server.wipe()).expect("data is removed");
    }
}

/// A file store in a directory. Handles refer to [`Reopened`], which outlives the open store, as an
/// etcd handle outlives the server.
pub(crate) struct File {
    dir: tempfile::TempDir,
    open: Arc<Reopened>,
}

impl File {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut file = Self { dir, open: Arc::default() };
        file.start_again().await;
        file
    }
}

#[async_trait]
impl Backend for File {
    fn store(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.open) as _
    }

    async fn compact(&self, revision: Revision) {
        let store = self.open.current().expect("is open");
        store.compact(revision).await.expect("compacts");
    }

    async fn stop(&mut self) {
        let store = self.open.take();
        drop(store);
    }

    async fn start_again(&mut self) {
        let store = in_time("the directory to be free", async {
            loop {
                match FileStore::open(self.dir.path()).await {
                    Ok(store) => return store,
                    // A running read keeps the store open a little longer.
                    Err(StoreError::Unavailable(_)) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        })
        .await;
        self.open.put(store);
    }

    async fn wipe(&mut self) {
        // If the store can be opened, no other handle has it open.
        self.start_again().await;
        drop(self.open.take());
        for entry in std::fs::read_dir(self.dir.path()).expect("directory") {
            std::fs::remove_file(entry.expect("entry").path()).expect("file is removed");
        }
    }
}

/// The [`FileStore`] that is open now.
#[derive(Debug, Default)]
pub(crate) struct Reopened(std::sync::Mutex<Option<FileStore>>);

impl Reopened {
    fn current(&self) -> Result<FileStore, StoreError> {
        let current = self.0.lock().expect("lock").clone();
        current.ok_or_else(|| StoreError::Unavailable("the store is closed".to_owned()))
    }

    fn put(&self, store: FileStore) {
        *self.0.lock().expect("lock") = Some(store);
    }

    fn take(&self) -> Option<FileStore> {
        self.0.lock().expect("lock").take()
    }
}

#[async_trait]
impl StateStore for Reopened {
    fn kind(&self) -> culvert::store::Kind {
        culvert::store::Kind::File
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.current()?.snapshot(prefix).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.current()?.was_written(key, at).await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<culvert::store::Watch, StoreError> {
        self.current()?.watch(prefix, from).await
    }

    async fn commit(
        &self,
        compares: Vec<culvert::store::Compare>,
        writes: Vec<culvert::store::Write>,
    ) -> Result<culvert::store::Outcome, StoreError> {
        self.current()?.commit(compares, writes).await
    }

    async fn grant(&self, ttl: Duration) -> Result<culvert::store::LeaseId, StoreError> {
        self.current()?.grant(ttl).await
    }

    async fn keep_alive(&self, lease: culvert::store::LeaseId) -> Result<(), StoreError> {
        self.current()?.keep_alive(lease).await
    }

    async fn revoke(&self, lease: culvert::store::LeaseId) -> Result<(), StoreError> {
        self.current()?.revoke(lease).await
    }
}
