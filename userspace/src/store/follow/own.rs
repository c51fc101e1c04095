//! The own witness: a key that only this host writes.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Break, OwnWitness, Worker, trust::rolled_back};
use crate::store::{Compare, Entry, Outcome, Revision, StoreError, Write, retry::jittered};

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

    /// The value after another write. If `known` is not one of the writes, another agent wrote
    /// them.
    fn with_another(self, known: Option<&OwnWitness>) -> (String, Self) {
        let id = format!("{:016x}", rand::random::<u64>());
        let is_own = known.is_some_and(|known| self.writes.contains(&known.id));
        let before = if is_own { self.writes } else { Vec::new() };
        let writes = std::iter::once(id.clone()).chain(before).take(WRITES).collect();
        (id, Self { schema: 1, writes })
    }
}

impl Worker {
    /// Checks that the store has the own witness. Returns its revision. `None`: there is no own
    /// witness yet, or the store has a later one, of which this host does not know any more.
    pub(super) async fn has_own(&self) -> Result<Option<Revision>, Break> {
        let Some(OwnWitness { key, id, revision }) = &self.own else { return Ok(None) };
        let now = match self.store.snapshot(key).await {
            Ok(now) => now,
            // The store's user may not read the key any more, see `write_own`.
            Err(StoreError::Refused(_)) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        if OwnWrites::of(key, &now.entries).writes.contains(id) {
            return Ok(Some(*revision));
        }
        // No other host writes the key. If it was written later, this host was set back, not the
        // store: its disk took no writes, or it is a virtual machine that was restored from a
        // snapshot.
        let is_later = |entry: &Entry| entry.key == *key && entry.mod_revision > *revision;
        if now.entries.iter().any(is_later) { Ok(None) } else { Err(rolled_back(key, *revision)) }
    }

    /// Plans the next write of the own witness, if the store has changed since the last one. A write
    /// that is planned stays planned: breaks of the connection do not put it off.
    pub(super) fn plan_own(&mut self) {
        if self.own_key.is_some() && self.is_own_stale() {
            self.own_due.get_or_insert_with(|| Instant::now() + jittered(self.own_every));
        }
    }

    /// Plans the first write of the own witness for now: until then nothing tells a roll-back from
    /// a store whose history is compacted.
    ///
    /// Only a host that is registered does this. A copy of a host has the same key, and is not to
    /// write it before it is refused.
    pub(super) fn begin_own(&mut self) {
        if self.own_key.is_some() && self.own.is_none() {
            self.own_due = Some(Instant::now());
        }
    }

    /// Whether the store has changed since the own witness was written.
    fn is_own_stale(&self) -> bool {
        let last = self.last.unwrap_or_default();
        self.own.as_ref().is_none_or(|own| own.revision < last)
    }

    /// Writes the own witness again if the store has changed since the last time. Plans the next
    /// write.
    pub(super) async fn renew_own(&mut self) -> Result<(), Break> {
        self.own_due = None;
        if let Some(key) = self.own_key.clone()
            && self.is_own_stale()
        {
            self.write_own(key).await?;
        }
        self.plan_own();
        Ok(())
    }

    async fn write_own(&mut self, key: String) -> Result<(), Break> {
        let now = match self.store.snapshot(&key).await {
            Ok(now) => now,
            Err(StoreError::Refused(why)) => {
                self.own_is_refused(why);
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        };
        let mark = self.store.snapshot(&self.mark_key).await?;
        // After the reads: a store that takes the place of this one from here on has other revisions of
        // these keys, or is a copy of this one from before the first own write.
        let proven = self.check_same().await?;
        if !self.covers(proven) {
            // Only the old witness can show a rollback of the store. A new one would hide it.
            return Ok(());
        }
        let compares =
            vec![unchanged(&key, &now.entries), unchanged(&self.mark_key, &mark.entries)];
        let (id, writes) = OwnWrites::of(&key, &now.entries).with_another(self.own.as_ref());
        let value = serde_json::to_vec(&writes)
            .map_err(|error| Break::Failed(format!("store: own witness: {error}")))?;
        let write = Write::Put { key: key.clone(), value, lease: None };
        match self.store.commit(compares, vec![write]).await {
            Ok(Outcome::Committed(revision)) => {
                self.own = Some(OwnWitness { key, id, revision });
                self.own_refused = None;
                self.healthy();
            }
            // A write before this one has arrived late. The next one is based on it.
            Ok(Outcome::Conflict) => {}
            Err(StoreError::Refused(why)) => self.own_is_refused(why),
            Err(other) => return Err(other.into()),
        }
        Ok(())
    }

    /// Reports that the store refuses the own witness, and logs it once. The store is followed without
    /// it.
    fn own_is_refused(&mut self, why: String) {
        if self.own_refused.is_none() {
            tracing::warn!("store: the witness of this host cannot be written: {why}");
        }
        self.own_refused = Some(why);
        self.healthy();
    }
}

/// The condition that a key is as it was read among `entries`.
fn unchanged(key: &str, entries: &[Entry]) -> Compare {
    match entries.iter().find(|entry| entry.key == key) {
        Some(entry) => Compare::Unchanged(key.to_owned(), entry.mod_revision),
        None => Compare::Absent(key.to_owned()),
    }
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
