//! Whether a store is the one that was followed before.

use super::{Break, Witness, Worker};
use crate::store::{Compare, Entry, Outcome, Revision, StoreError, StoreMark, Write};

impl Worker {
    /// Checks that the store is the one that was followed before. Returns the revision up to which
    /// its history is known to be the one that was seen. `None`: that part of the history is
    /// compacted.
    pub(super) async fn check_same(&self) -> Result<Option<Revision>, Break> {
        if self.last.is_some() {
            let snapshot = self.store.snapshot(&self.mark_key).await?;
            self.same_store(snapshot.revision, &snapshot.entries)?;
        }
        self.same_history().await
    }

    /// Whether the history is known to be the one that was seen for all writes that were seen, if it
    /// is known up to `proven`.
    pub(super) fn covers(&self, proven: Option<Revision>) -> bool {
        let seen = self.witness.as_ref().map_or(0, |witness| witness.revision);
        proven.is_some_and(|proven| proven >= seen)
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
        // What the finding of an earlier run was made from is gone: only the witness can refute it.
        let finding = self.replaced.as_ref().filter(|_| !self.complete);
        let Some(Witness { key, revision }) = &self.witness else {
            return finding.map_or(Ok(Some(0)), |why| Err(Break::Replaced(why.clone())));
        };
        match self.was_written(key, *revision).await? {
            Some(true) => return Ok(Some(*revision)),
            Some(false) => return Err(rolled_back(key, *revision)),
            None => {}
        }
        // The own write may be older than what was lost. So a store that was reported as replaced
        // stays replaced, unless it has the own write and is compared with what was delivered.
        match (self.has_own().await?, finding, self.replaced.as_ref()) {
            (_, Some(why), _) | (None, _, Some(why)) => Err(Break::Replaced(why.clone())),
            (proven, ..) => Ok(proven),
        }
    }

    /// Whether a key was written at a revision. `None`: that part of the history is compacted.
    async fn was_written(&self, key: &str, revision: Revision) -> Result<Option<bool>, Break> {
        match self.store.was_written(key, revision).await {
            Ok(written) => return Ok(Some(written)),
            Err(StoreError::Compacted { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        // A compaction keeps the last write of each key.
        let now = self.store.snapshot(key).await?;
        let is_last = |entry: &Entry| entry.key == key && entry.mod_revision == revision;
        Ok(now.entries.iter().any(is_last).then_some(true))
    }
}

pub(super) fn rolled_back(key: &str, revision: Revision) -> Break {
    Break::Replaced(format!(
        "store: replaced: the store was rolled back: its history lacks the write of {key} at revision {revision}; nothing is deleted"
    ))
}
