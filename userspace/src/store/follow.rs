//! Follows a store for as long as the agent lives.
//!
//! The rule: list at revision R, watch from R+1; after a break, watch again
//! from the last revision seen; if the history in between is compacted, list
//! again and deliver the difference to what was last seen. A read that fails
//! deletes nothing: whoever follows keeps what it has.
//!
//! Neither does a read of *another* store delete anything. An etcd that came
//! back wiped answers correctly and holds nothing; taken at its word it would
//! end every container's network. The follower knows the store by its mark
//! (the key `/culvert/v1/store`, written once by the first follower to find it
//! missing) and by its revision, which never goes back. When either differs it
//! reports "replaced", delivers nothing, and looks again from time to time: the
//! operator may restore a backup. If the new store is meant, the operator says
//! so by removing what the agent remembers of the old one and restarting it
//! ([`FollowOptions::known`] empty), or through [`Follower::accept`].

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

/// Updates that may wait for their receiver before the follower does.
const QUEUE: usize = 64;
/// Changes of a list that make an update of their own, so that they are taken in while
/// the rest is read.
const PART: usize = 4096;
/// A watch that held this long was a good one: the next break starts the
/// backoff over.
const STABLE: Duration = Duration::from_secs(5);

/// What happened in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The receiver has now seen everything up to this revision.
    pub revision: Revision,
    /// Changes in order. After a list they are the difference to what was seen
    /// before; a deletion among them bears the revision of the list.
    pub changes: Vec<Change>,
    /// This is of a whole list: the first update is, and the changes of a
    /// later one may stand for several each.
    pub resync: bool,
    /// How the reading of a whole list went: with this update it is complete. A large one
    /// comes in several, of which the others bear the revision from before.
    pub listed: Option<Listed>,
}

/// How the reading of a whole list went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Keys in the list.
    pub keys: usize,
    /// When it began.
    pub began: Instant,
    /// How long it took until the last key was here.
    pub took: Duration,
}

/// How the follower is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The last exchange with the store succeeded.
    pub healthy: bool,
    /// The last error, while unhealthy; one line.
    pub error: Option<String>,
    /// Up to where the store has been seen.
    pub revision: Revision,
    /// The store's mark, once known.
    pub mark: Option<String>,
}

/// What a follower does.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// Prefix of the keys to follow; the mark must lie below it.
    pub prefix: String,
    /// Key of the store's mark.
    pub mark_key: String,
    /// The mark and the revision that an earlier run has seen, if the store
    /// must still be the same one.
    pub known: Option<(String, Revision)>,
    /// Delays while the store does not answer.
    pub backoff: Backoff,
}

impl FollowOptions {
    /// Follows `prefix` in whatever store is there, with the mark at `mark_key`.
    pub fn new(prefix: &str, mark_key: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            mark_key: mark_key.to_owned(),
            known: None,
            backoff: Backoff::unavailable(),
        }
    }
}

/// A task that follows a store; it ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    updates: mpsc::Receiver<Update>,
    health: watch::Receiver<Health>,
    accept: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts to follow. Must be called in a tokio runtime.
    pub fn spawn(store: Arc<dyn StateStore>, options: FollowOptions) -> Self {
        let (updates_tx, updates) = mpsc::channel(QUEUE);
        let (mark, last) = options.known.unzip();
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
            replaced: false,
        };
        Self { updates, health, accept, task: tokio::spawn(worker.run()) }
    }

    /// The next update; waits while the store does not answer. Safe to cancel.
    /// `None` only after a panic in the follower.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// The health, to look at or to wait on.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Takes a store that was reported as replaced for what it is: what it
    /// does not hold is then deleted. Without effect on a store that was not.
    pub fn accept(&self) {
        self.accept.notify_one();
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
    /// Every key delivered and not deleted since, with its revision.
    seen: Seen,
    /// Revision up to which everything is delivered.
    last: Option<Revision>,
    mark: Option<String>,
    /// The store was last found to be another one.
    replaced: bool,
}

/// Why the worker cannot go on as it does.
enum Break {
    /// The receiver is gone.
    Closed,
    /// List again.
    Relist,
    /// Try again later.
    Failed(String),
    /// The store is another one.
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
                        // An acceptance from before does not count.
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
            };
            let news = *health != now;
            if !health.healthy {
                tracing::info!("store: in touch at revision {}", now.revision);
            }
            *health = now;
            news
        });
        self.replaced = false;
    }

    async fn send(&self, update: Update) -> Result<(), Break> {
        self.updates.send(update).await.map_err(|_| Break::Closed)
    }

    /// Reads everything, and delivers the difference to what was seen, as it comes.
    ///
    /// Nothing of it is delivered before it is known whose it is. If the rest cannot be
    /// read, what was delivered is as true as what a watch would have told.
    async fn list(&mut self) -> Result<(), Break> {
        let began = Instant::now();
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
                        // Written now, it is in the next list.
                        None if self.write_mark(page.revision).await? => return Err(Break::Relist),
                        None => {}
                    }
                }
                same = true;
            }
            held.push(page);
            if !same {
                continue;
            }
            for page in held.drain(..) {
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

    /// Is this still the store that was listed?
    async fn check_same(&mut self) -> Result<(), Break> {
        let snapshot = self.store.snapshot(&self.mark_key).await?;
        self.same_store(snapshot.revision, &snapshot.entries)
    }

    fn same_store(&self, revision: Revision, entries: &[Entry]) -> Result<(), Break> {
        let Some(last) = self.last else { return Ok(()) };
        if revision < last {
            return Err(Break::Replaced(format!(
                "store: replaced: it is at revision {revision} and was at {last}; nothing is deleted; restore it, or restart the agent to accept it"
            )));
        }
        let Some(mark) = &self.mark else { return Ok(()) };
        match self.mark_in(entries) {
            Some(found) if found == *mark => Ok(()),
            found => Err(Break::Replaced(format!(
                "store: replaced: its mark at {} is {} and was {mark}; nothing is deleted; restore it, or restart the agent to accept it",
                self.mark_key,
                found.as_deref().unwrap_or("missing")
            ))),
        }
    }

    fn mark_in(&self, entries: &[Entry]) -> Option<String> {
        let entry = entries.iter().find(|entry| entry.key == self.mark_key)?;
        match StoreMark::decode(&entry.value) {
            Some(mark) => Some(mark.id),
            // Its revision tells stores apart as well.
            None => Some(format!("unreadable, of revision {}", entry.mod_revision)),
        }
    }

    /// Marks the store. `false`: it may not be written, and has to do without.
    async fn write_mark(&self, revision: Revision) -> Result<bool, Break> {
        let value = StoreMark::fresh().encode();
        let value = value.map_err(|error| Break::Failed(format!("store: mark: {error}")))?;
        let key = self.mark_key.clone();
        let compares = vec![Compare::Absent(key.clone())];
        match self.store.commit(compares, vec![Write::Put { key, value, lease: None }]).await {
            // If another follower was faster, its mark is there now.
            Ok(Outcome::Committed(_) | Outcome::Conflict) => Ok(true),
            Err(StoreError::Refused(why)) => {
                tracing::warn!("store: no mark can be written at revision {revision}: {why}");
                Ok(false)
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Watches until something breaks.
    async fn follow(&mut self) -> Result<(), Break> {
        let from = self.last.unwrap_or_default() + 1;
        let mut watch = self.store.watch(&self.prefix, from).await?;
        // Only now: whichever server the watch has come to, it must be checked
        // before it is listened to. A wiped one would just stay silent until its
        // revision gets there.
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
                }
                Change::Delete { key, .. } => {
                    self.seen.delete(key);
                    // Seen to be deleted: it is the same store without a mark.
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
