//! The embedded store: a directory of this host, for one agent.

mod db;
mod lock;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::{db::Db, lock::DirLock};
use super::{
    Change, Compare, Kind, LeaseId, Outcome, Revision, Snapshot, StateStore, StoreError, Watch,
    Write,
};

/// Timeout of a call, longer than any working disk needs.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest TTL of a lease, as in etcd.
const MIN_TTL: Duration = Duration::from_secs(1);

/// The embedded store, in a directory of this host.
///
/// A commit is durable when it returns. A watch can start from any of the last 10 000 revisions.
/// Leases survive a restart of the store. Each then has its whole TTL again: no client could send a
/// keep-alive while the store was closed.
#[derive(Clone)]
pub struct FileStore {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    dir: PathBuf,
    leases: Mutex<BTreeMap<LeaseId, Lease>>,
    /// The newest revision; watches wait for its changes.
    revision: watch::Sender<Revision>,
    /// Wakes the reaper when a lease is new or the store is closed.
    reaper: Arc<Notify>,
    /// The directory's lock. It is dropped after the database is closed.
    _lock: DirLock,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Lease {
    fn new(ttl: Duration) -> Self {
        Self { ttl, deadline: Instant::now() + ttl }
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileStore").field(&self.inner.dir).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reaper.notify_one();
    }
}

impl FileStore {
    /// Opens the store in `dir`, and makes the directory if it does not exist. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`]: another process has the store open.
    /// [`StoreError::Refused`]: the directory or the file cannot be used.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let lock = DirLock::take(&path)?;
            let db = Db::open(&path)?;
            let (revision, leases) = (db.revision()?, db.leases()?);
            Ok((lock, db, revision, leases))
        });
        let (lock, db, revision, leases) = join(opened.await)?;
        let leases = leases.into_iter().map(|(id, ttl)| (id, Lease::new(ttl))).collect();
        let inner = Arc::new(Inner {
            db,
            dir: dir.to_owned(),
            leases: Mutex::new(leases),
            revision: watch::channel(revision).0,
            reaper: Arc::new(Notify::new()),
            _lock: lock,
        });
        tokio::spawn(reap(Arc::downgrade(&inner), Arc::clone(&inner.reaper)));
        Ok(Self { inner })
    }

    /// Compacts: removes the history before `revision`. The store itself removes the history before
    /// the last 10 000 revisions.
    ///
    /// # Errors
    ///
    /// [`StoreError::Refused`] if `revision` is greater than the newest revision.
    pub async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.run(move |inner| inner.db.compact(revision)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        run(Arc::clone(&self.inner), work).await
    }
}

/// Runs blocking work. Stops waiting for it after [`TIMEOUT`].
async fn run<T: Send + 'static>(
    inner: Arc<Inner>,
    work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let dir = inner.dir.clone();
    let task = tokio::task::spawn_blocking(move || work(&inner));
    match tokio::time::timeout(TIMEOUT, task).await {
        Ok(result) => join(result),
        Err(_) => Err(StoreError::Unavailable(format!(
            "file:{}: no answer from the disk within {TIMEOUT:?}",
            dir.display()
        ))),
    }
}

fn join<T>(result: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    result.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("worker: {error}"))))
}

impl Inner {
    fn leases(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Lease>> {
        // A poisoned lock is usable: every single operation leaves the map consistent.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, revision: Revision) {
        self.revision.send_if_modified(|newest| {
            let newer = revision > *newest;
            *newest = revision.max(*newest);
            newer
        });
    }

    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        if let Some(revision) = self.db.revoke(lease)? {
            self.announce(revision);
        }
        Ok(())
    }
}

/// Ends the expired leases, until the store is closed.
async fn reap(store: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let now = Instant::now();
        let (due, next) = {
            let mut leases = inner.leases();
            let due: Vec<LeaseId> = leases
                .iter()
                .filter(|(_, lease)| lease.deadline <= now)
                .map(|(id, _)| *id)
                .collect();
            // A keep-alive of an expired lease fails from now on: the map no longer has the lease.
            leases.retain(|_, lease| lease.deadline > now);
            (due, leases.values().map(|lease| lease.deadline).min())
        };
        for lease in due {
            let ended = run(Arc::clone(&inner), move |inner| inner.end_lease(lease)).await;
            if let Err(error) = ended {
                tracing::warn!("lease {lease:x}: {error}");
                // The next attempt to end the lease is in [`MIN_TTL`].
                inner.leases().insert(lease, Lease::new(MIN_TTL));
                inner.reaper.notify_one();
            }
        }
        drop(inner);
        tokio::select! {
            () = wake.notified() => {}
            () = async {
                match next {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

#[async_trait]
impl StateStore for FileStore {
    fn kind(&self) -> Kind {
        Kind::File
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let prefix = prefix.to_owned();
        self.run(move |inner| inner.db.snapshot(&prefix)).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.run(move |inner| inner.db.was_written(&key, at)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut watching = Watching {
            store: Arc::downgrade(&self.inner),
            newest: self.inner.revision.subscribe(),
            prefix: prefix.to_owned(),
            next: from.max(1),
            backlog: Vec::new().into_iter(),
            ended: false,
        };
        // A compacted revision is reported at once, not at the first read.
        watching.read(Arc::clone(&self.inner)).await?;
        Ok(stream::unfold(watching, |mut watching| async move {
            let item = watching.next().await?;
            Some((item, watching))
        })
        .boxed())
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        super::check_transaction(&compares, &writes)?;
        self.run(move |inner| {
            let outcome = inner.db.commit(&compares, &writes)?;
            if let Outcome::Committed(revision) = outcome {
                inner.announce(revision);
            }
            Ok(outcome)
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl = ttl.max(MIN_TTL);
        self.run(move |inner| {
            let id = inner.db.grant(ttl)?;
            inner.leases().insert(id, Lease::new(ttl));
            inner.reaper.notify_one();
            Ok(id)
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.inner.leases().get_mut(&lease) {
            Some(known) => {
                *known = Lease::new(known.ttl);
                Ok(())
            }
            None => Err(StoreError::LeaseGone(lease)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.inner.leases().remove(&lease).is_none() {
            return Err(StoreError::LeaseGone(lease));
        }
        self.run(move |inner| inner.end_lease(lease)).await
    }
}

/// An open watch. It does not keep the store open.
struct Watching {
    store: Weak<Inner>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    /// The next revision to read.
    next: Revision,
    /// Changes that are read but not yet delivered, one item per revision.
    backlog: std::vec::IntoIter<Vec<Change>>,
    ended: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<Vec<Change>, StoreError>> {
        loop {
            if let Some(changes) = self.backlog.next() {
                return Some(Ok(changes));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.more().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    async fn more(&mut self) -> Result<(), StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".to_owned());
        if *self.newest.borrow_and_update() < self.next {
            self.newest.changed().await.map_err(|_| closed())?;
        }
        let store = self.store.upgrade().ok_or_else(closed)?;
        self.read(store).await
    }

    async fn read(&mut self, store: Arc<Inner>) -> Result<(), StoreError> {
        let (prefix, next) = (self.prefix.clone(), self.next);
        let history = run(store, move |inner| inner.db.history(&prefix, next)).await?;
        self.next = self.next.max(history.next);
        self.backlog = history.groups.into_iter();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
