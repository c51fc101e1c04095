//! Follows a store for as long as the agent lives.
//!
//! The follower lists the keys at revision R and watches from R+1. After a break it watches
//! again from the last revision that it saw. If the store has compacted the history in between,
//! the follower lists again and delivers the difference. A read that fails deletes nothing: the
//! receiver keeps what it has.
//!
//! A read of *another* store deletes nothing either. An etcd that was wiped answers correctly and
//! is empty: a follower that believed it would delete the network of every container. The same
//! holds for an etcd that was rolled back to a backup. The follower identifies the store by its
//! [`StoreMark`], by its revision, which never decreases, and by a [`Witness`]: a write that it has
//! seen must be in the store's history. If one of them differs, the follower reports
//! [`Health::replaced`], delivers nothing, and checks again from time to time: the operator may put
//! the right store back. To accept another store, the receiver makes a new follower without
//! [`FollowOptions::known`], or notifies [`Follower::acceptance`].

mod seen;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use self::seen::Seen;
use super::{
    Change, Compare, Entry, Outcome, Revision, StateStore, StoreError, StoreMark, Write,
    retry::Backoff,
};

/// Capacity of the queue of updates. The follower waits while it is full.
const QUEUE: usize = 64;
/// Number of changes in an update of a list. The receiver works on one update while the follower
/// reads the next.
const PART: usize = 4096;
/// A watch that lasted this long resets the backoff.
const STABLE: Duration = Duration::from_secs(5);

/// Time within which a store must deliver a change that is in its history.
const HISTORY: Duration = Duration::from_secs(10);

/// A write that was seen: the key had this revision. A store with another history has the same key
/// written at the same revision only by chance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Witness {
    /// Key.
    pub key: String,
    /// Revision.
    pub revision: Revision,
}

/// A store as an earlier run has seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Mark of the store.
    pub mark: String,
    /// A revision that the store had.
    pub revision: Revision,
    /// A write in the store's history.
    pub witness: Option<Witness>,
}

/// An update of the receiver's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The receiver has all changes up to this revision.
    pub revision: Revision,
    /// Changes in order. After a list they are the difference to the keys delivered before; a
    /// deletion then has the revision of the list.
    pub changes: Vec<Change>,
    /// The update belongs to a list. One change may then replace several changes of a key.
    pub resync: bool,
    /// Set in the last update of a list. The updates before it have the revision from before the
    /// list.
    pub listed: Option<Listed>,
}

/// Size and duration of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Keys in the list.
    pub keys: usize,
    /// Start time of the list.
    pub began: Instant,
    /// Time from the start until the last key was received.
    pub took: Duration,
}

/// Health of the connection to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The last exchange with the store succeeded.
    pub healthy: bool,
    /// The last error, while unhealthy; one line.
    pub error: Option<String>,
    /// The revision up to which the store has been seen.
    pub revision: Revision,
    /// The store's mark, once known.
    pub mark: Option<String>,
    /// The last write that was seen.
    pub witness: Option<Witness>,
    /// The store was found to be the one that was followed before, or is accepted as it is.
    pub identified: bool,
    /// The store is not the one that was followed before. None of its changes are delivered.
    pub replaced: bool,
}

/// Options of a follower.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// Prefix of the keys to follow; the mark must lie below it.
    pub prefix: String,
    /// Key of the store's mark.
    pub mark_key: String,
    /// The store that an earlier run has seen. `None`: any store is followed.
    pub known: Option<Known>,
    /// Delays while the store does not answer.
    pub backoff: Backoff,
}

impl FollowOptions {
    /// Options to follow `prefix` in any store, with the mark at `mark_key`.
    pub fn new(prefix: &str, mark_key: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            mark_key: mark_key.to_owned(),
            known: None,
            backoff: Backoff::unavailable(),
        }
    }
}

/// A task that follows a store. It ends when this value is dropped.
#[derive(Debug)]
pub struct Follower {
    updates: mpsc::Receiver<Update>,
    health: watch::Receiver<Health>,
    accept: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts the follower. Must be called in a tokio runtime.
    pub fn spawn(store: Arc<dyn StateStore>, options: FollowOptions) -> Self {
        let (updates_tx, updates) = mpsc::channel(QUEUE);
        let (mark, last, witness) = match options.known {
            Some(Known { mark, revision, witness }) => (Some(mark), Some(revision), witness),
            None => (None, None, None),
        };
        let (health_tx, health) = watch::channel(Health::default());
        let accept = Arc::new(Notify::new());
        let worker = Worker {
            store,
            prefix: options.prefix,
            mark_key: options.mark_key,
            backoff: options.backoff,
            accept: Arc::clone(&accept),
            updates: updates_tx,
            health: health_tx,
            seen: Seen::default(),
            last,
            mark,
            witness,
            replaced: false,
        };
        Self { updates, health, accept, task: tokio::spawn(worker.run()) }
    }

    /// Returns the next update; waits while the store does not answer. Cancel-safe. `None` only
    /// after a panic in the follower.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Waits until it is known whether the store is the one that was followed before.
    pub async fn identified(&mut self) {
        // An error means that the follower has panicked: `next` reports it.
        let _ = self.health.wait_for(|health| health.identified || health.replaced).await;
    }

    /// The health, which the caller can read or wait on.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The caller notifies it ([`Notify::notify_one`]) to accept a store that was reported as
    /// replaced: keys that the store does not have are then deleted. No effect if the store was not
    /// reported as replaced.
    pub fn acceptance(&self) -> Arc<Notify> {
        Arc::clone(&self.accept)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Worker {
    store: Arc<dyn StateStore>,
    prefix: String,
    mark_key: String,
    backoff: Backoff,
    accept: Arc<Notify>,
    updates: mpsc::Sender<Update>,
    health: watch::Sender<Health>,
    /// Every key that was delivered and not deleted since, with its revision.
    seen: Seen,
    /// Revision up to which all changes are delivered.
    last: Option<Revision>,
    mark: Option<String>,
    witness: Option<Witness>,
    /// At the last check the store was not the one that was followed before.
    replaced: bool,
}

/// The reason why the worker leaves its current step.
enum Break {
    /// The receiver was dropped.
    Closed,
    /// The history was compacted: list again.
    Relist,
    /// Try again later.
    Failed(String),
    /// The store is not the one that was followed before.
    Replaced(String),
}

impl From<StoreError> for Break {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { .. } => Self::Relist,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Worker {
    async fn run(mut self) {
        let mut relist = true;
        loop {
            let result = if relist { self.list().await } else { self.follow().await };
            match result {
                Ok(()) => relist = false,
                Err(Break::Closed) => return,
                Err(Break::Relist) => relist = true,
                Err(Break::Failed(why)) => {
                    self.unhealthy(why);
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
                Err(Break::Replaced(why)) => {
                    if !self.replaced {
                        // An acceptance from before the replacement was reported has no effect.
                        let _ = self.accept.notified().now_or_never();
                        self.replaced = true;
                    }
                    self.unhealthy(why);
                    tokio::select! {
                        () = tokio::time::sleep(self.backoff.next_delay()) => {}
                        () = self.accept.notified() => {
                            tracing::warn!("store: the replaced store is accepted");
                            self.mark = None;
                            self.last = None;
                            self.witness = None;
                            relist = true;
                        }
                    }
                }
            }
        }
    }

    fn unhealthy(&self, why: String) {
        self.health.send_if_modified(|health| {
            let news = health.healthy || health.error.as_ref() != Some(&why);
            if news {
                tracing::warn!("{why}");
            }
            health.healthy = false;
            health.replaced = self.replaced;
            health.identified &= !self.replaced;
            health.error = Some(why);
            news
        });
    }

    fn healthy(&mut self) {
        self.health.send_if_modified(|health| {
            let now = Health {
                healthy: true,
                error: None,
                revision: self.last.unwrap_or_default(),
                mark: self.mark.clone(),
                witness: self.witness.clone(),
                identified: true,
                replaced: false,
            };
            let news = *health != now;
            if !health.healthy {
                tracing::info!("store: connected at revision {}", now.revision);
            }
            *health = now;
            news
        });
        self.replaced = false;
    }

    async fn send(&self, update: Update) -> Result<(), Break> {
        self.updates.send(update).await.map_err(|_| Break::Closed)
    }

    /// Lists all keys, and delivers the difference to the delivered keys page by page.
    ///
    /// Nothing is delivered before the mark has been checked. If a later page cannot be read, the
    /// delivered part is still correct, as with an interrupted watch.
    async fn list(&mut self) -> Result<(), Break> {
        let began = Instant::now();
        self.same_history().await?;
        let mut pages = self.store.list(&self.prefix).await?;
        let (mut held, mut keys, mut revision) = (Vec::new(), 0, None);
        let mut same = false;
        let mut changes = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page?;
            keys += page.entries.len();
            revision = Some(page.revision);
            if !same && page.from <= self.mark_key && self.mark_key < page.to {
                self.same_store(page.revision, &page.entries)?;
                if self.mark.is_none() {
                    match self.mark_in(&page.entries) {
                        Some(mark) => self.mark = Some(mark),
                        // The next list contains the mark.
                        None if self.write_mark(page.revision).await? => return Err(Break::Relist),
                        None => {}
                    }
                }
                same = true;
                self.health
                    .send_if_modified(|health| !std::mem::replace(&mut health.identified, true));
            }
            held.push(page);
            if !same {
                continue;
            }
            for page in held.drain(..) {
                let newest = page.entries.iter().max_by_key(|entry| entry.mod_revision);
                self.witness_to(newest.map(|entry| (entry.key.as_str(), entry.mod_revision)));
                changes.extend(self.seen.turn_to(page));
                if changes.len() >= PART {
                    let revision = self.last.unwrap_or_default();
                    let changes = std::mem::take(&mut changes);
                    self.send(Update { revision, changes, resync: true, listed: None }).await?;
                }
            }
        }
        let Some(revision) = revision.filter(|_| same) else {
            return Err(Break::Failed("store: a list without the store's mark".to_owned()));
        };
        let listed = Some(Listed { keys, began, took: began.elapsed() });
        self.last = Some(revision);
        self.healthy();
        self.send(Update { revision, changes, resync: true, listed }).await
    }

    /// Checks that this is still the store that was listed.
    async fn check_same(&mut self) -> Result<(), Break> {
        let snapshot = self.store.snapshot(&self.mark_key).await?;
        self.same_store(snapshot.revision, &snapshot.entries)?;
        self.same_history().await
    }

    /// Checks that the store's history has the write that was seen.
    async fn same_history(&self) -> Result<(), Break> {
        let Some(Witness { key, revision }) = &self.witness else { return Ok(()) };
        let other = || {
            Break::Replaced(format!(
                "store: replaced: {key} was written at revision {revision}, of which its history knows nothing: it was rolled back; nothing is deleted"
            ))
        };
        let now = self.store.snapshot(key).await?;
        if now.entries.iter().any(|entry| entry.key == *key && entry.mod_revision == *revision) {
            return Ok(());
        }
        // If the key was changed later, the watch has a change from that revision on.
        let first = async {
            let mut watch = self.store.watch(&self.prefix, *revision).await?;
            watch
                .next()
                .await
                .unwrap_or_else(|| Err(StoreError::Unavailable("the watch ended".to_owned())))
        };
        match tokio::time::timeout(HISTORY, first).await {
            Ok(Ok(changes)) => {
                let is_it = |change: &Change| change.key() == key && change.revision() == *revision;
                if changes.iter().any(is_it) { Ok(()) } else { Err(other()) }
            }
            // The history of that revision is compacted, so nothing shows another store. A store
            // that was reported as replaced stays replaced.
            Ok(Err(StoreError::Compacted { .. })) if !self.replaced => Ok(()),
            Ok(Err(StoreError::Compacted { .. })) | Err(_) => Err(other()),
            Ok(Err(error)) => Err(error.into()),
        }
    }

    /// Notes a write as the witness, if it is newer than the current one.
    fn witness_to(&mut self, write: Option<(&str, Revision)>) {
        if let Some((key, revision)) = write
            && self.witness.as_ref().is_none_or(|known| known.revision < revision)
        {
            self.witness = Some(Witness { key: key.to_owned(), revision });
        }
    }

    fn same_store(&self, revision: Revision, entries: &[Entry]) -> Result<(), Break> {
        let Some(last) = self.last else { return Ok(()) };
        if revision < last {
            return Err(Break::Replaced(format!(
                "store: replaced: it is at revision {revision} and was at {last}; nothing is deleted"
            )));
        }
        let Some(mark) = &self.mark else { return Ok(()) };
        match self.mark_in(entries) {
            Some(found) if found == *mark => Ok(()),
            found => Err(Break::Replaced(format!(
                "store: replaced: its mark at {} is {} and was {mark}; nothing is deleted",
                self.mark_key,
                found.as_deref().unwrap_or("missing")
            ))),
        }
    }

    fn mark_in(&self, entries: &[Entry]) -> Option<String> {
        let entry = entries.iter().find(|entry| entry.key == self.mark_key)?;
        match StoreMark::decode(&entry.value) {
            Some(mark) => Some(mark.id),
            // An unreadable mark is identified by its revision, which differs between stores.
            None => Some(format!("unreadable, of revision {}", entry.mod_revision)),
        }
    }

    /// Writes the mark. `false`: the store refuses it, and is followed without a mark.
    async fn write_mark(&self, revision: Revision) -> Result<bool, Break> {
        let value = StoreMark::fresh().encode();
        let value = value.map_err(|error| Break::Failed(format!("store: mark: {error}")))?;
        let key = self.mark_key.clone();
        let compares = vec![Compare::Absent(key.clone())];
        match self.store.commit(compares, vec![Write::Put { key, value, lease: None }]).await {
            // If another follower wrote its mark first, that mark is read now.
            Ok(Outcome::Committed(_) | Outcome::Conflict) => Ok(true),
            Err(StoreError::Refused(why)) => {
                tracing::warn!("store: no mark can be written at revision {revision}: {why}");
                Ok(false)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Watches until an error occurs.
    async fn follow(&mut self) -> Result<(), Break> {
        let from = self.last.unwrap_or_default() + 1;
        let mut watch = self.store.watch(&self.prefix, from).await?;
        // The check follows the opening of the watch, because the watch may be on another server. A
        // wiped server would send nothing until its revision reaches the requested one.
        self.check_same().await?;
        self.healthy();
        let started = Instant::now();
        loop {
            let item = tokio::select! {
                item = watch.next() => item,
                () = self.updates.closed() => return Err(Break::Closed),
            };
            match item {
                Some(Ok(changes)) => {
                    self.backoff.reset();
                    self.deliver(changes).await?;
                }
                Some(Err(error)) => {
                    if started.elapsed() >= STABLE {
                        self.backoff.reset();
                    }
                    return Err(error.into());
                }
                None => return Err(Break::Failed("store: the watch ended".to_owned())),
            }
        }
    }

    async fn deliver(&mut self, mut changes: Vec<Change>) -> Result<(), Break> {
        let last = self.last.unwrap_or_default();
        changes.retain(|change| change.revision() > last);
        let Some(revision) = changes.iter().map(Change::revision).max() else { return Ok(()) };
        for change in &changes {
            match change {
                Change::Put(entry) => {
                    self.seen.put(&entry.key, entry.mod_revision);
                    self.witness_to(Some((&entry.key, entry.mod_revision)));
                }
                Change::Delete { key, .. } => {
                    self.seen.delete(key);
                    // The watch delivered the mark's deletion, so it is the same store, now without
                    // a mark.
                    if *key == self.mark_key {
                        self.mark = None;
                    }
                }
            }
        }
        self.last = Some(revision);
        self.healthy();
        self.send(Update { revision, changes, resync: false, listed: None }).await
    }
}
