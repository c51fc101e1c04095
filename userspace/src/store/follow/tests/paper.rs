//! A store in memory that can be rolled back, compacted, exchanged and cut off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::sync::watch;

use crate::store::{
    Change, Compare, Entry, Kind, LeaseId, Outcome, Revision, Snapshot, StateStore, StoreError,
    Watch, Write,
};

/// Prefix of the keys that the tests follow.
pub(super) const ROOT: &str = "/t/";

/// Keys and history of a store. A clone is a backup.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub(super) revision: Revision,
    keys: BTreeMap<String, (Revision, Vec<u8>)>,
    history: Vec<Change>,
    /// The oldest revision whose history is left.
    oldest: Revision,
}

impl Contents {
    pub(super) fn new() -> Self {
        Self { revision: 1, keys: BTreeMap::new(), history: Vec::new(), oldest: 1 }
    }

    /// Writes a key. Returns the revision.
    pub(super) fn put(&mut self, key: &str, value: &str) -> Revision {
        self.apply(&[Write::Put {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            lease: None,
        }])
    }

    /// Deletes a key. Returns the revision.
    pub(super) fn delete(&mut self, key: &str) -> Revision {
        self.apply(&[Write::Delete(key.to_owned())])
    }

    /// Writes to `key` until the revision is `revision`.
    pub(super) fn grow(&mut self, key: &str, revision: Revision) {
        while self.revision < revision {
            self.put(key, &self.revision.to_string());
        }
    }

    /// Removes the history before the newest revision.
    pub(super) fn compact(&mut self) {
        self.oldest = self.revision;
    }

    /// Removes the history before a revision.
    pub(super) fn compact_to(&mut self, revision: Revision) {
        self.oldest = revision;
    }

    pub(super) fn value(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// Revision of the last write of a key; 0 if it does not exist.
    pub(super) fn at(&self, key: &str) -> Revision {
        self.keys.get(key).map_or(0, |(revision, _)| *revision)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let below = |prefix: &str| {
            let prefix = prefix.to_owned();
            self.keys.iter().filter(move |(key, _)| key.starts_with(&prefix))
        };
        match compare {
            Compare::Absent(key) => self.at(key) == 0,
            Compare::Unchanged(key, revision) => self.at(key) == *revision,
            Compare::PrefixEmpty(prefix) => below(prefix).next().is_none(),
            Compare::PrefixUnchanged(prefix, revision) => {
                below(prefix).all(|(_, (at, _))| at <= revision)
            }
        }
    }

    fn apply(&mut self, writes: &[Write]) -> Revision {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value, .. } => {
                    self.keys.insert(key.clone(), (revision, value.clone()));
                    changes.push(Change::Put(Entry {
                        key: key.clone(),
                        value: value.clone(),
                        mod_revision: revision,
                    }));
                }
                Write::Delete(key) => {
                    if self.keys.remove(key).is_some() {
                        changes.push(Change::Delete { key: key.clone(), revision });
                    }
                }
                // No follower deletes a prefix.
                Write::DeletePrefix(_) => {}
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
            self.history.extend(changes);
        }
        self.revision
    }

    /// The changes of the first revision from `from` on that has some below the prefix.
    fn changes(&self, prefix: &str, from: Revision) -> Option<Vec<Change>> {
        let later = self.history.iter().filter(|change| change.revision() >= from);
        let mut later = later.filter(|change| change.key().starts_with(prefix)).peekable();
        let revision = later.peek()?.revision();
        Some(later.take_while(|change| change.revision() == revision).cloned().collect())
    }
}

/// A store in memory. A clone is another handle of the same store.
#[derive(Clone, Debug)]
pub(super) struct Paper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    contents: Mutex<Contents>,
    /// Number of changes of the contents.
    turns: watch::Sender<u64>,
    /// Number of breaks of the connection.
    breaks: AtomicUsize,
    cut: AtomicBool,
    silent: AtomicBool,
    narrow: AtomicBool,
    /// Number of lists of [`ROOT`].
    lists: AtomicUsize,
    /// Contents that take the place of the others before the next list.
    before_list: Mutex<Option<Contents>>,
    /// Contents that take the place of the others before the next write outside of [`ROOT`].
    before_own: Mutex<Option<Contents>>,
}

impl Paper {
    pub(super) fn new(contents: Contents) -> Self {
        Self(Arc::new(Inner {
            contents: Mutex::new(contents),
            turns: watch::Sender::new(0),
            breaks: AtomicUsize::new(0),
            cut: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            narrow: AtomicBool::new(false),
            lists: AtomicUsize::new(0),
            before_list: Mutex::new(None),
            before_own: Mutex::new(None),
        }))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the contents, as another client does.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        let outcome = change(&mut self.contents());
        self.turn();
        outcome
    }

    /// A copy of the contents.
    pub(super) fn backup(&self) -> Contents {
        self.contents().clone()
    }

    /// Replaces the contents. The connection breaks.
    pub(super) fn exchange(&self, contents: Contents) {
        *self.contents() = contents;
        self.disconnect();
    }

    /// Replaces the contents once a list is asked for, before it is answered.
    pub(super) fn exchange_before_list(&self, contents: Contents) {
        *self.0.before_list.lock().unwrap() = Some(contents);
    }

    /// Replaces the contents once a key outside of [`ROOT`] is written, before that is done.
    pub(super) fn exchange_before_own_write(&self, contents: Contents) {
        *self.0.before_own.lock().unwrap() = Some(contents);
    }

    /// Breaks the connection.
    pub(super) fn disconnect(&self) {
        self.0.breaks.fetch_add(1, Ordering::SeqCst);
        self.turn();
    }

    /// Sets whether the store does not answer.
    pub(super) fn cut(&self, cut: bool) {
        self.0.cut.store(cut, Ordering::SeqCst);
        self.disconnect();
    }

    /// Watches deliver nothing from now on.
    pub(super) fn silence(&self) {
        self.0.silent.store(true, Ordering::SeqCst);
        self.disconnect();
    }

    /// The user may use only the keys below [`ROOT`] from now on, or all keys again.
    pub(super) fn narrow(&self, narrow: bool) {
        self.0.narrow.store(narrow, Ordering::SeqCst);
    }

    /// Number of lists of [`ROOT`].
    pub(super) fn lists(&self) -> usize {
        self.0.lists.load(Ordering::SeqCst)
    }

    fn turn(&self) {
        self.0.turns.send_modify(|turns| *turns += 1);
    }

    /// Checks that the store answers, and that the user may use the key.
    fn admit(&self, key: &str) -> Result<(), StoreError> {
        if self.0.cut.load(Ordering::SeqCst) {
            Err(StoreError::Unavailable("cut off".to_owned()))
        } else if self.0.narrow.load(Ordering::SeqCst) && !key.starts_with(ROOT) {
            Err(StoreError::Refused("permission denied".to_owned()))
        } else {
            Ok(())
        }
    }

    /// The next changes of a watch that was opened after `breaks` breaks of the connection.
    fn watched(
        &self,
        prefix: &str,
        from: Revision,
        breaks: usize,
    ) -> Result<Option<Vec<Change>>, StoreError> {
        if self.0.breaks.load(Ordering::SeqCst) != breaks {
            return Err(StoreError::Unavailable("the connection broke".to_owned()));
        }
        if self.0.silent.load(Ordering::SeqCst) {
            return Ok(None);
        }
        Ok(self.contents().changes(prefix, from))
    }
}

#[async_trait]
impl StateStore for Paper {
    fn kind(&self) -> Kind {
        Kind::File
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.admit(prefix)?;
        if prefix == ROOT {
            self.0.lists.fetch_add(1, Ordering::SeqCst);
            let next = self.0.before_list.lock().unwrap().take();
            if let Some(next) = next {
                self.exchange(next);
            }
        }
        let contents = self.contents();
        let keys = contents.keys.iter().filter(|(key, _)| key.starts_with(prefix));
        let entries = keys.map(|(key, (at, value))| Entry {
            key: key.clone(),
            value: value.clone(),
            mod_revision: *at,
        });
        Ok(Snapshot { revision: contents.revision, entries: entries.collect() })
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.admit(key)?;
        let contents = self.contents();
        if at < contents.oldest {
            return Err(StoreError::Compacted { oldest: contents.oldest });
        }
        let is_it = |change: &Change| {
            matches!(change, Change::Put(_)) && change.key() == key && change.revision() == at
        };
        Ok(contents.history.iter().any(is_it))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.admit(prefix)?;
        let oldest = self.contents().oldest;
        if from < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let breaks = self.0.breaks.load(Ordering::SeqCst);
        let state = (self.clone(), self.0.turns.subscribe(), from);
        let prefix = prefix.to_owned();
        let changes = stream::unfold(state, move |(store, mut turns, from)| {
            let prefix = prefix.clone();
            async move {
                loop {
                    turns.borrow_and_update();
                    match store.watched(&prefix, from, breaks) {
                        Ok(Some(changes)) => {
                            let next = changes.first().map_or(from, Change::revision) + 1;
                            return Some((Ok(changes), (store, turns, next)));
                        }
                        Ok(None) => turns.changed().await.ok()?,
                        Err(error) => return Some((Err(error), (store, turns, from))),
                    }
                }
            }
        });
        Ok(changes.boxed())
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        for write in &writes {
            let (Write::Put { key, .. } | Write::Delete(key) | Write::DeletePrefix(key)) = write;
            self.admit(key)?;
            if !key.starts_with(ROOT) {
                let next = self.0.before_own.lock().unwrap().take();
                if let Some(next) = next {
                    self.exchange(next);
                }
            }
        }
        let outcome = self.with(|contents| {
            let holds = compares.iter().all(|compare| contents.holds(compare));
            holds.then(|| contents.apply(&writes))
        });
        Ok(outcome.map_or(Outcome::Conflict, Outcome::Committed))
    }

    async fn grant(&self, _ttl: Duration) -> Result<LeaseId, StoreError> {
        Ok(1)
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn revoke(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Ok(())
    }
}
