//! Whether a store is the one that was followed before.

use std::time::Duration;

use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::{Break, OwnWitness, Witness, Worker};
use crate::store::{Change, Compare, Entry, Outcome, Revision, StoreError, StoreMark, Write};

/// Time within which a store must deliver a change that is in its history.
const HISTORY: Duration = Duration::from_secs(10);
/// Number of identifiers in the value of an own witness: so many writes may be lost on the way to
/// the disk of this host.
const WRITES: usize = 8;

/// The value of an own witness.
#[derive(Debug, Serialize, Deserialize)]
struct OwnWrites {
    /// Version of the fields, 1.
    schema: u32,
    /// Identifiers of the last writes, the newest first.
    writes: Vec<String>,
}

impl OwnWrites {
    /// The value of the key among `entries`. Empty: there is none, or it cannot be read.
    fn of(key: &str, entries: &[Entry]) -> Self {
        let entry = entries.iter().find(|entry| entry.key == key);
        let read = entry.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        read.unwrap_or(Self { schema: 1, writes: Vec::new() })
    }

    /// The value after another write. If `known` is not one of the writes, somebody else wrote them.
    fn with_another(self, known: Option<&OwnWitness>) -> (String, Self) {
        let id = format!("{:016x}", rand::random::<u64>());
        let is_own = known.is_some_and(|known| self.writes.contains(&known.id));
        let before = if is_own { self.writes } else { Vec::new() };
        let writes = std::iter::once(id.clone()).chain(before).take(WRITES).collect();
        (id, Self { schema: 1, writes })
    }
}

impl Worker {
    /// Checks that the store is the one that was followed before. Returns the revision up to which
    /// its history is known to be the one that was seen. `None`: the history that would tell is
    /// compacted.
    pub(super) async fn check_same(&self) -> Result<Option<Revision>, Break> {
        if self.last.is_some() {
            let snapshot = self.store.snapshot(&self.mark_key).await?;
            self.same_store(snapshot.revision, &snapshot.entries)?;
        }
        self.same_history().await
    }

    /// Checks mark and revision.
    pub(super) fn same_store(&self, revision: Revision, entries: &[Entry]) -> Result<(), Break> {
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

    /// The mark among these entries.
    pub(super) fn mark_in(&self, entries: &[Entry]) -> Option<String> {
        let entry = entries.iter().find(|entry| entry.key == self.mark_key)?;
        match StoreMark::decode(&entry.value) {
            Some(mark) => Some(mark.id),
            // An unreadable mark is identified by its revision, which differs between stores.
            None => Some(format!("unreadable, of revision {}", entry.mod_revision)),
        }
    }

    /// Writes the mark. `false`: the store refuses it, and is followed without a mark.
    pub(super) async fn write_mark(&self, revision: Revision) -> Result<bool, Break> {
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

    /// Checks that the store's history has the write that was seen, or the last own write. The
    /// result is that of [`Self::check_same`].
    async fn same_history(&self) -> Result<Option<Revision>, Break> {
        let Some(Witness { key, revision }) = &self.witness else { return Ok(Some(0)) };
        let now = self.store.snapshot(key).await?;
        if now.entries.iter().any(|entry| entry.key == *key && entry.mod_revision == *revision) {
            return Ok(Some(*revision));
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
                if changes.iter().any(is_it) {
                    Ok(Some(*revision))
                } else {
                    Err(rolled_back(key, *revision))
                }
            }
            // The history of that revision is compacted. A store that was reported as replaced stays
            // replaced, unless the own write is in it.
            Ok(Err(StoreError::Compacted { .. })) => {
                match (self.has_own().await?, &self.replaced) {
                    (None, Some(why)) => Err(Break::Replaced(why.clone())),
                    (proven, _) => Ok(proven),
                }
            }
            Err(_) => Err(rolled_back(key, *revision)),
            Ok(Err(error)) => Err(error.into()),
        }
    }

    /// Checks that the store has the own witness. Returns its revision. `None`: there is no own
    /// witness yet.
    async fn has_own(&self) -> Result<Option<Revision>, Break> {
        let Some(OwnWitness { key, id, revision }) = &self.own else { return Ok(None) };
        let now = self.store.snapshot(key).await?;
        if OwnWrites::of(key, &now.entries).writes.contains(id) {
            Ok(Some(*revision))
        } else {
            Err(rolled_back(key, *revision))
        }
    }

    /// Writes the own witness again if the store has changed since the last time.
    pub(super) async fn renew_own(&mut self) -> Result<(), Break> {
        let last = self.last.unwrap_or_default();
        let Some(key) = self.own_key.clone() else { return Ok(()) };
        if self.own.as_ref().is_some_and(|own| own.revision >= last) {
            return Ok(());
        }
        let now = self.store.snapshot(&key).await?;
        // After the read: a store that takes the place of this one from here on has another revision
        // of the key, or none.
        self.check_same().await?;
        let found = now.entries.iter().find(|entry| entry.key == key);
        let compare = match found {
            Some(entry) => Compare::Unchanged(key.clone(), entry.mod_revision),
            None => Compare::Absent(key.clone()),
        };
        let (id, writes) = OwnWrites::of(&key, &now.entries).with_another(self.own.as_ref());
        let value = serde_json::to_vec(&writes)
            .map_err(|error| Break::Failed(format!("store: own witness: {error}")))?;
        let write = Write::Put { key: key.clone(), value, lease: None };
        match self.store.commit(vec![compare], vec![write]).await {
            Ok(Outcome::Committed(revision)) => {
                self.own = Some(OwnWitness { key, id, revision });
                self.own_refused = false;
                self.healthy();
            }
            // A write before this one has arrived late. The next one is based on it.
            Ok(Outcome::Conflict) => {}
            Err(StoreError::Refused(why)) => {
                if !self.own_refused {
                    tracing::warn!("store: no witness of this host can be written: {why}");
                }
                self.own_refused = true;
            }
            Err(other) => return Err(other.into()),
        }
        Ok(())
    }
}

fn rolled_back(key: &str, revision: Revision) -> Break {
    Break::Replaced(format!(
        "store: replaced: {key} was written at revision {revision}, of which its history knows nothing: it was rolled back; nothing is deleted"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_has_the_last_writes() {
        let none = OwnWrites::of("/own", &[]);
        let (first, mut value) = none.with_another(None);
        let written = |id| OwnWitness { key: "/own".to_owned(), id, revision: 1 };
        let mut known = written(first.clone());
        for _ in 1..WRITES {
            let (id, next) = value.with_another(Some(&known));
            (known, value) = (written(id), next);
        }
        let stored = Entry {
            key: "/own".to_owned(),
            value: serde_json::to_vec(&value).unwrap(),
            mod_revision: 1,
        };
        let read = OwnWrites::of("/own", &[stored]);
        assert_eq!(read.writes, value.writes);
        assert_eq!((read.writes.len(), read.writes.last()), (WRITES, Some(&first)));
        // A writer that has seen none of the writes for that long begins anew.
        let (_, next) = read.with_another(Some(&known));
        assert!(!next.writes.contains(&first) && next.writes.contains(&known.id));
        assert_eq!(next.with_another(Some(&written(first))).1.writes.len(), 1);
    }
}
