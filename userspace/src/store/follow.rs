//! Follows a store for as long as the agent lives.
//!
//! The follower lists the keys at revision R and watches from R on. After a break it watches
//! again from the last revision that it saw. If the store has compacted the history in between,
//! the follower lists again and delivers the difference. A read that fails deletes nothing: the
//! receiver keeps what it has.
//!
//! A read of *another* store deletes nothing either. An etcd that was wiped answers correctly and
//! is empty: a follower that believed it would delete the network of every container. The same
//! holds for an etcd that was rolled back to a backup. The follower identifies the store by its
//! [`StoreMark`](super::StoreMark), by its revision, which never decreases, and by its history
//! (`trust`): a [`Witness`], which is a write that it has seen, and an [`OwnWitness`], which is a
//! write of its own. A follower that lists again also compares the list with what it has delivered
//! (`comparison`). If one of them differs, the follower reports [`Health::replaced`], delivers
//! nothing, and checks again from time to time: the operator may put the right store back. To accept
//! another store, the receiver makes a new follower without [`FollowOptions::known`], or notifies
//! [`Follower::acceptance`].

mod comparison;
mod listing;
mod own;
mod seen;
mod trust;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use self::seen::Seen;
use super::{
    Change, Revision, StateStore, StoreError,
    retry::{Backoff, jittered},
};

/// Capacity of the queue of updates. The follower waits while it is full.
const QUEUE: usize = 64;
/// A watch that lasted this long resets the backoff.
const STABLE: Duration = Duration::from_secs(5);
/// Default of [`FollowOptions::own_every`]. Every write adds to the history of the store, and what was
/// made since the last write is in doubt once the history is compacted.
const OWN_EVERY: Duration = Duration::from_secs(60);
/// Default of [`FollowOptions::doubt`]. A list of a large store is many MB, and many agents may be in
/// doubt at the same time.
const DOUBT: Duration = Duration::from_secs(60);

/// A write that was seen: the key had this revision. A store with another history has the same key
/// written at the same revision only by chance.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Witness {
    /// Key.
    pub key: String,
    /// Revision.
    pub revision: Revision,
}

/// The last write of a key that only this host writes: unlike a [`Witness`], nobody hides it by a
/// later write, so it can be found although the history before that is compacted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnWitness {
    /// Key.
    pub key: String,
    /// Random identifier of the write, which is in the value.
    pub id: String,
    /// Revision of the write.
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
    /// The last write of this host's own key.
    pub own: Option<OwnWitness>,
    /// The finding of the earlier run, one line, if the store was replaced when it ended.
    pub replaced: Option<String>,
}

/// An update of the receiver's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The receiver has all changes up to this revision.
    pub revision: Revision,
    /// Changes in order. After a list they are the difference to the keys delivered before: first
    /// what was written, then what was deleted. A deletion then has the revision of the list.
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
    /// The last write of this host's own key.
    pub own: Option<OwnWitness>,
    /// Why the store refuses the own witness; one line. The store is followed all the same.
    pub own_refused: Option<String>,
    /// Since the connection broke last, the store was found to be the one that was followed before, or
    /// was accepted as it is.
    pub identified: bool,
    /// The finding, one line, if the store is not the one that was followed before. None of its
    /// changes are delivered.
    pub replaced: Option<String>,
    /// How often a replaced store was accepted. Revisions from before the last time have no meaning.
    pub accepted: u32,
}

/// Options of a follower.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// Prefix of the keys to follow; the mark must lie below it.
    pub prefix: String,
    /// Key of the store's mark.
    pub mark_key: String,
    /// Prefix of keys on leases, which the store itself deletes.
    pub fleeting: Option<String>,
    /// Key of the own witness, which nobody else writes. It must not lie below the prefix. `None`:
    /// the follower has no own witness.
    pub own_key: Option<String>,
    /// Longest time from a change to the write of the own witness that follows it. The least time is
    /// half of it: followers do not write in step.
    pub own_every: Duration,
    /// Longest time between two lists of a store that a list has shown to be replaced. The least time
    /// is half of it.
    pub doubt: Duration,
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
            fleeting: None,
            own_key: None,
            own_every: OWN_EVERY,
            doubt: DOUBT,
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
    registered: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts the follower. Must be called in a tokio runtime.
    pub fn spawn(store: Arc<dyn StateStore>, options: FollowOptions) -> Self {
        let (updates_tx, updates) = mpsc::channel(QUEUE);
        let (mark, last, witness, own, replaced) = match options.known {
            Some(Known { mark, revision, witness, own, replaced }) => {
                // A purged host has got another key since.
                let own = own.filter(|own| options.own_key.as_ref() == Some(&own.key));
                (Some(mark), Some(revision), witness, own, replaced)
            }
            None => (None, None, None, None, None),
        };
        let found = Health { replaced: replaced.clone(), ..Health::default() };
        let (health_tx, health) = watch::channel(found);
        let (accept, registered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let worker = Worker {
            store,
            prefix: options.prefix,
            mark_key: options.mark_key,
            fleeting: options.fleeting,
            own_key: options.own_key,
            own_every: options.own_every,
            doubt: options.doubt,
            backoff: options.backoff,
            accept: Arc::clone(&accept),
            registered: Arc::clone(&registered),
            updates: updates_tx,
            health: health_tx,
            seen: Seen::default(),
            complete: false,
            last,
            mark,
            witness,
            own,
            own_due: None,
            own_refused: None,
            replaced,
            accepted: 0,
        };
        Self { updates, health, accept, registered, task: tokio::spawn(worker.run()) }
    }

    /// Returns the next update; waits while the store does not answer. Cancel-safe. `None` only
    /// after a panic in the follower.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// Waits until it is known whether the store is the one that was followed before.
    pub async fn identified(&mut self) {
        // An error means that the follower has panicked: `next` reports it.
        let _ = self.health.wait_for(|health| health.identified || health.replaced.is_some()).await;
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

    /// The caller notifies it ([`Notify::notify_one`]) when this host is registered in the store:
    /// an own witness that is missing is then written at once. No effect if there is one already.
    pub fn registration(&self) -> Arc<Notify> {
        Arc::clone(&self.registered)
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
    fleeting: Option<String>,
    own_key: Option<String>,
    own_every: Duration,
    doubt: Duration,
    backoff: Backoff,
    accept: Arc<Notify>,
    registered: Arc<Notify>,
    updates: mpsc::Sender<Update>,
    health: watch::Sender<Health>,
    /// Every key that was delivered and not deleted since, with its revision.
    seen: Seen,
    /// A whole list was delivered: `seen` has all keys of revision `last`.
    complete: bool,
    /// Revision up to which all changes are delivered.
    last: Option<Revision>,
    mark: Option<String>,
    witness: Option<Witness>,
    own: Option<OwnWitness>,
    /// When the own witness is to be written. `None`: the store has not changed since the last write.
    own_due: Option<Instant>,
    /// Why the store refused the last write of the own witness.
    own_refused: Option<String>,
    /// The finding, if the store was not the one that was followed before. It holds until the
    /// store is trusted again, or accepted, also over a restart.
    replaced: Option<String>,
    /// How often a replaced store was accepted.
    accepted: u32,
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
    /// The same, or it may be so, found by a list of the whole store.
    Doubtful(String),
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
        let (mut relist, mut listed) = (true, false);
        loop {
            let result = if relist { self.list().await } else { self.follow(listed).await };
            listed = relist && result.is_ok();
            match result {
                Ok(()) => relist = false,
                Err(Break::Closed) => return,
                Err(Break::Relist) => relist = true,
                Err(Break::Failed(why)) => {
                    self.unhealthy(why);
                    tokio::time::sleep(self.backoff.next_delay()).await;
                }
                // A store that is trusted again is compared with what was delivered.
                Err(Break::Replaced(why)) => {
                    relist = true;
                    let pause = self.backoff.next_delay();
                    self.stand_by(why, pause).await;
                }
                Err(Break::Doubtful(why)) => {
                    relist = true;
                    self.stand_by(why, jittered(self.doubt)).await;
                }
            }
        }
    }

    /// Reports that the store is replaced. Waits for `pause`, or until the store is accepted.
    async fn stand_by(&mut self, why: String, pause: Duration) {
        if self.replaced.is_none() {
            // An acceptance from before the replacement was reported has no effect.
            let _ = self.accept.notified().now_or_never();
        }
        self.replaced = Some(why.clone());
        self.unhealthy(why);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.accept.notified() => self.accept_store(),
        }
    }

    /// Forgets the store that was followed before.
    fn accept_store(&mut self) {
        tracing::warn!("store: the replaced store is accepted");
        self.accepted = self.accepted.wrapping_add(1);
        self.replaced = None;
        self.mark = None;
        self.last = None;
        self.witness = None;
        self.own = None;
        // An entry of the accepted store may have the same key and revision, and another value.
        self.seen.forget_revisions();
    }

    fn unhealthy(&self, why: String) {
        self.health.send_if_modified(|health| {
            if health.healthy || health.error.as_ref() != Some(&why) {
                tracing::warn!("{why}");
            }
            let now = Health {
                healthy: false,
                error: Some(why),
                // The store may be rolled back before it answers again.
                identified: false,
                replaced: self.replaced.clone(),
                ..health.clone()
            };
            let news = *health != now;
            *health = now;
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
                own: self.own.clone(),
                own_refused: self.own_refused.clone(),
                identified: true,
                replaced: None,
                accepted: self.accepted,
            };
            let news = *health != now;
            if !health.healthy {
                tracing::info!("store: connected at revision {}", now.revision);
            }
            *health = now;
            news
        });
        self.replaced = None;
    }

    async fn send(&self, update: Update) -> Result<(), Break> {
        self.updates.send(update).await.map_err(|_| Break::Closed)
    }

    /// Notes a write as the witness, if it is newer than the current one.
    fn witness_to(&mut self, write: Option<(&str, Revision)>) {
        if let Some((key, revision)) = write
            && self.witness.as_ref().is_none_or(|known| known.revision < revision)
        {
            self.witness = Some(Witness { key: key.to_owned(), revision });
        }
    }

    /// Watches until an error occurs. `listed`: the store was listed just now.
    async fn follow(&mut self, listed: bool) -> Result<(), Break> {
        // What is known is asked for again: some versions of etcd do not deliver a deletion of the very
        // revision to which the history is compacted, and refuse only what is before it.
        let from = self.last.unwrap_or_default();
        let mut watch = self.store.watch(&self.prefix, from).await?;
        // The check follows the opening of the watch, because the watch may be on another server. A
        // wiped server would send nothing until its revision reaches the requested one.
        let proven = self.check_same().await?;
        if !listed && !self.covers(proven) {
            // The history is not proven for all writes that were seen: a list is to be compared.
            return Err(Break::Relist);
        }
        self.healthy();
        self.plan_own();
        let started = Instant::now();
        loop {
            let own_due = self.own_due;
            let item = tokio::select! {
                item = watch.next() => item,
                () = self.updates.closed() => return Err(Break::Closed),
                () = self.registered.notified() => {
                    self.begin_own();
                    continue;
                }
                () = tokio::time::sleep_until(own_due.unwrap_or(started)), if own_due.is_some() => {
                    self.renew_own().await?;
                    continue;
                }
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
        self.plan_own();
        self.healthy();
        self.send(Update { revision, changes, resync: false, listed: None }).await
    }
}

#[cfg(test)]
mod tests;
