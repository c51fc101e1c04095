//! The database file: keys, history and leases. All functions block.

use std::{
    fmt,
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use redb::{
    Builder, Database, MultimapTable, MultimapTableDefinition, ReadableDatabase,
    ReadableMultimapTable, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use crate::store::{
    Change, Compare, Entry, LeaseId, Outcome, Revision, Snapshot, StoreError, Write,
};

/// Key → (revision of its last write, lease or 0, value).
const KEYS: TableDefinition<'_, &str, (Revision, LeaseId, &[u8])> = TableDefinition::new("keys");
/// (Revision, index of the change within the revision).
type At = (Revision, u32);
/// (Key, value or `None` for a deletion).
type Happened<'a> = (&'a str, Option<&'a [u8]>);
/// History of changes, by revision.
const HISTORY: TableDefinition<'_, At, Happened<'_>> = TableDefinition::new("history");
/// Lease → TTL in milliseconds.
const LEASES: TableDefinition<'_, LeaseId, u64> = TableDefinition::new("leases");
/// (Lease, key) pairs: the keys on each lease.
const LEASED: MultimapTableDefinition<'_, LeaseId, &str> = MultimapTableDefinition::new("leased");
/// [`REVISION`], [`OLDEST`], [`FORMAT`].
const META: TableDefinition<'_, &str, i64> = TableDefinition::new("meta");

/// The newest revision. An empty store is at 1, as in etcd.
const REVISION: &str = "revision";
/// The oldest revision from which a watch can start.
const OLDEST: &str = "oldest";
/// Format version of the tables.
const FORMAT: &str = "format";
const THIS_FORMAT: i64 = 1;

/// Least number of revisions from which a watch can start.
pub(super) const KEEP: i64 = 10_000;
/// Number of further revisions that are kept before the oldest are removed.
const SLACK: i64 = 500;
/// Number of changes that one read of the history returns, rounded up to a whole revision.
const BATCH: usize = 1024;
/// Size of redb's cache in bytes. Its default is 1 GiB; the state of a host is a few MB.
const CACHE: usize = 16 << 20;

/// Part of the history.
pub(super) struct History {
    /// Changes, one item per revision.
    pub(super) groups: Vec<Vec<Change>>,
    /// The revision from which to read next.
    pub(super) next: Revision,
}

/// Makes the file if it does not exist. Only the user of this process can read it, also one that an
/// earlier version has left readable: it has the command lines and addresses of containers.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        match file.set_permissions(Permissions::from_mode(mode & 0o7700)) {
            Ok(()) => tracing::warn!("{}: other users could read it, now not", path.display()),
            Err(error) => tracing::warn!(
                "{}: other users can read it, and its mode cannot be changed: {error}",
                path.display()
            ),
        }
    }
    Ok(())
}

pub(super) struct Db {
    /// `None` after an I/O error, as on a full disk: redb refuses every call until the file is
    /// opened again.
    database: RwLock<Option<Database>>,
    path: PathBuf,
    name: String,
}

impl Db {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("store.redb");
        let name = format!("file:{}", dir.display());
        let database = Self::open_file(&path)
            .map_err(|why| StoreError::Refused(format!("{name} cannot be opened: {why}")))?;
        Ok(Self { database: RwLock::new(Some(database)), path, name })
    }

    /// Opens the file. The error is the reason, as text.
    fn open_file(path: &Path) -> Result<Database, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        make_private(path).map_err(|error| text(&error))?;
        let database =
            Builder::new().set_cache_size(CACHE).create(path).map_err(|error| text(&error))?;
        let format = Self::prepare(&database).map_err(|error| text(&error))?;
        if format == THIS_FORMAT {
            Ok(database)
        } else {
            Err(format!("it has format {format}, this build reads {THIS_FORMAT}"))
        }
    }

    /// Works on the database. Opens the file again if that is necessary.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        // A thread that panicked with the lock held left an open database, or none.
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                let opened = Self::open_file(&self.path);
                *database = Some(opened.map_err(|why| {
                    StoreError::Unavailable(format!("{} cannot be opened again: {why}", self.name))
                })?);
            }
        }
        let done = match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(redb::Error::PreviousIo),
        };
        if matches!(done, Err(redb::Error::Io(_) | redb::Error::PreviousIo)) {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done.map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.name)))
    }

    /// Makes the tables, because a read of a missing table fails. Returns the format version.
    fn prepare(database: &Database) -> Result<i64, redb::Error> {
        let txn = database.begin_write()?;
        let format = {
            let mut tables = Tables::open(&txn)?;
            let format = tables.meta.get(FORMAT)?.map(|value| value.value());
            match format {
                Some(format) => format,
                None => {
                    tables.meta.insert(FORMAT, THIS_FORMAT)?;
                    tables.meta.insert(REVISION, 1)?;
                    tables.meta.insert(OLDEST, 1)?;
                    THIS_FORMAT
                }
            }
        };
        txn.commit()?;
        Ok(format)
    }

    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get(REVISION)?.map_or(0, |value| value.value()))
        })
    }

    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, StoreError> {
        self.with(|database| {
            let leases = database.begin_read()?.open_table(LEASES)?;
            let mut found = Vec::new();
            for item in leases.iter()? {
                let (id, ttl) = item?;
                found.push((id.value(), Duration::from_millis(ttl.value())));
            }
            Ok(found)
        })
    }

    pub(super) fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.with(|database| {
            let txn = database.begin_read()?;
            let revision = txn.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
            let keys = txn.open_table(KEYS)?;
            let mut entries = Vec::new();
            for item in keys.range(prefix..)? {
                let (key, stored) = item?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                let (mod_revision, _, value) = stored.value();
                let (key, value) = (key.value().to_owned(), value.to_owned());
                entries.push(Entry { key, value, mod_revision });
            }
            Ok(Snapshot { revision, entries })
        })
    }

    /// Whether a key was written at a revision.
    pub(super) fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        let read = self.with(|database| {
            let txn = database.begin_read()?;
            let oldest = txn.open_table(META)?.get(OLDEST)?.map_or(0, |value| value.value());
            if at < oldest {
                return Ok(Err(oldest));
            }
            let history = txn.open_table(HISTORY)?;
            for item in history.range((at, 0)..(at + 1, 0))? {
                let (_, stored) = item?;
                let (other, value) = stored.value();
                if other == key && value.is_some() {
                    return Ok(Ok(true));
                }
            }
            Ok(Ok(false))
        });
        read?.map_err(|oldest| StoreError::Compacted { oldest })
    }

    /// Changes below a prefix from a revision on, about [`BATCH`] of them.
    pub(super) fn history(&self, prefix: &str, from: Revision) -> Result<History, StoreError> {
        let read = self.with(|database| {
            let txn = database.begin_read()?;
            let meta = txn.open_table(META)?;
            let oldest = meta.get(OLDEST)?.map_or(0, |value| value.value());
            if from < oldest {
                return Ok(Err(oldest));
            }
            let revision = meta.get(REVISION)?.map_or(0, |value| value.value());
            let mut history = History { groups: Vec::new(), next: revision + 1 };
            let mut taken = 0;
            for item in txn.open_table(HISTORY)?.range((from, 0)..)? {
                let (at, stored) = item?;
                let (revision, number) = at.value();
                if number == 0 && taken >= BATCH {
                    history.next = revision;
                    break;
                }
                let (key, value) = stored.value();
                if !key.starts_with(prefix) {
                    continue;
                }
                taken += 1;
                let key = key.to_owned();
                let change = match value {
                    Some(value) => {
                        Change::Put(Entry { key, value: value.to_owned(), mod_revision: revision })
                    }
                    None => Change::Delete { key, revision },
                };
                match history.groups.last_mut() {
                    Some(group) if group.first().map(Change::revision) == Some(revision) => {
                        group.push(change);
                    }
                    _ => history.groups.push(vec![change]),
                }
            }
            Ok(Ok(history))
        });
        read?.map_err(|oldest| StoreError::Compacted { oldest })
    }

    pub(super) fn commit(
        &self,
        compares: &[Compare],
        writes: &[Write],
    ) -> Result<Outcome, StoreError> {
        self.write(|tables| {
            for compare in compares {
                if !tables.holds(compare)? {
                    return Ok(Err(Stop::Conflict));
                }
            }
            tables.apply(writes)
        })
    }

    /// Commits without waiting for the disk, for tests with many writes.
    #[cfg(test)]
    pub(super) fn commit_fast(&self, writes: &[Write]) -> Result<Outcome, StoreError> {
        self.write_as(redb::Durability::None, |tables| tables.apply(writes))
    }

    /// Ends a lease. Returns the revision at which its keys were deleted.
    pub(super) fn revoke(&self, lease: LeaseId) -> Result<Option<Revision>, StoreError> {
        let outcome = self.write(|tables| {
            let mut keys = Vec::new();
            for key in tables.leased.get(lease)? {
                keys.push(key?.value().to_owned());
            }
            for key in keys {
                tables.delete(&key)?;
            }
            tables.leases.remove(lease)?;
            Ok(Ok(()))
        })?;
        Ok(match outcome {
            Outcome::Committed(revision) => Some(revision),
            Outcome::Conflict => None,
        })
    }

    /// Makes a lease.
    pub(super) fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut id = 0;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.write(|tables| {
            loop {
                id = rand::random::<i64>() & i64::MAX;
                if id != 0 && tables.leases.get(id)?.is_none() {
                    tables.leases.insert(id, millis)?;
                    return Ok(Ok(()));
                }
            }
        })?;
        Ok(id)
    }

    pub(super) fn compact(&self, to: Revision) -> Result<(), StoreError> {
        let newest = self.revision()?;
        if to > newest {
            return Err(StoreError::Refused(format!(
                "revision {to} cannot be compacted to: {newest} is the newest"
            )));
        }
        self.write(|tables| tables.forget(to).map(Ok)).map(drop)
    }

    /// Runs a write transaction. Commits it unless `work` stops it. The commit is durable on
    /// return.
    fn write(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<Result<(), Stop>, redb::Error>,
    ) -> Result<Outcome, StoreError> {
        self.write_as(redb::Durability::Immediate, work)
    }

    fn write_as(
        &self,
        durability: redb::Durability,
        work: impl FnOnce(&mut Tables<'_>) -> Result<Result<(), Stop>, redb::Error>,
    ) -> Result<Outcome, StoreError> {
        let run = self.with(|database| {
            let mut txn = database.begin_write()?;
            txn.set_durability(durability)?;
            let result = {
                let mut tables = Tables::open(&txn)?;
                match work(&mut tables)? {
                    Ok(()) => Ok(tables.finish()?),
                    Err(stop) => Err(stop),
                }
            };
            match &result {
                Ok(_) => txn.commit()?,
                Err(_) => txn.abort()?,
            }
            Ok(result)
        });
        match run? {
            Ok(revision) => Ok(Outcome::Committed(revision)),
            Err(Stop::Conflict) => Ok(Outcome::Conflict),
            Err(Stop::LeaseGone(lease)) => Err(StoreError::LeaseGone(lease)),
        }
    }
}

/// The reason why a write transaction was aborted.
enum Stop {
    Conflict,
    LeaseGone(LeaseId),
}

/// The tables of a write transaction, and its changes so far.
struct Tables<'txn> {
    keys: Table<'txn, &'static str, (Revision, LeaseId, &'static [u8])>,
    history: Table<'txn, At, Happened<'static>>,
    leases: Table<'txn, LeaseId, u64>,
    leased: MultimapTable<'txn, LeaseId, &'static str>,
    meta: Table<'txn, &'static str, i64>,
    /// The revision before the transaction.
    revision: Revision,
    changes: u32,
}

impl<'txn> Tables<'txn> {
    fn open(txn: &'txn WriteTransaction) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        let revision = meta.get(REVISION)?.map_or(1, |value| value.value());
        Ok(Self {
            keys: txn.open_table(KEYS)?,
            history: txn.open_table(HISTORY)?,
            leases: txn.open_table(LEASES)?,
            leased: txn.open_multimap_table(LEASED)?,
            meta,
            revision,
            changes: 0,
        })
    }

    fn holds(&self, compare: &Compare) -> Result<bool, redb::Error> {
        Ok(match compare {
            Compare::Absent(key) => self.keys.get(key.as_str())?.is_none(),
            Compare::Unchanged(key, revision) => {
                self.keys.get(key.as_str())?.is_some_and(|stored| stored.value().0 == *revision)
            }
            Compare::PrefixEmpty(prefix) => match self.keys.range(prefix.as_str()..)?.next() {
                Some(first) => !first?.0.value().starts_with(prefix.as_str()),
                None => true,
            },
            Compare::PrefixUnchanged(prefix, revision) => {
                for item in self.keys.range(prefix.as_str()..)? {
                    let (key, stored) = item?;
                    if !key.value().starts_with(prefix.as_str()) {
                        break;
                    }
                    if stored.value().0 > *revision {
                        return Ok(false);
                    }
                }
                true
            }
        })
    }

    fn apply(&mut self, writes: &[Write]) -> Result<Result<(), Stop>, redb::Error> {
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    if let Some(lease) = lease
                        && self.leases.get(*lease)?.is_none()
                    {
                        return Ok(Err(Stop::LeaseGone(*lease)));
                    }
                    self.put(key, value, lease.unwrap_or(0))?;
                }
                Write::Delete(key) => self.delete(key)?,
                Write::DeletePrefix(prefix) => {
                    for key in self.below(prefix)? {
                        self.delete(&key)?;
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    fn below(&self, prefix: &str) -> Result<Vec<String>, redb::Error> {
        let mut found = Vec::new();
        for item in self.keys.range(prefix..)? {
            let (key, _) = item?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push(key.value().to_owned());
        }
        Ok(found)
    }

    fn put(&mut self, key: &str, value: &[u8], lease: LeaseId) -> Result<(), redb::Error> {
        let revision = self.revision + 1;
        let before = self.keys.insert(key, (revision, lease, value))?.map(|old| old.value().1);
        if let Some(before) = before.filter(|before| *before != 0 && *before != lease) {
            self.leased.remove(before, key)?;
        }
        if lease != 0 {
            self.leased.insert(lease, key)?;
        }
        self.record(key, Some(value))
    }

    fn delete(&mut self, key: &str) -> Result<(), redb::Error> {
        let Some(lease) = self.keys.remove(key)?.map(|old| old.value().1) else { return Ok(()) };
        if lease != 0 {
            self.leased.remove(lease, key)?;
        }
        self.record(key, None)
    }

    fn record(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), redb::Error> {
        self.history.insert((self.revision + 1, self.changes), (key, value))?;
        self.changes += 1;
        Ok(())
    }

    /// Removes the history before a revision.
    fn forget(&mut self, to: Revision) -> Result<(), redb::Error> {
        let oldest = self.meta.get(OLDEST)?.map_or(1, |value| value.value());
        if to <= oldest {
            return Ok(());
        }
        self.history.retain_in((oldest, 0)..(to, 0), |_, _| false)?;
        self.meta.insert(OLDEST, to)?;
        Ok(())
    }

    /// Increments the revision if anything changed. Returns the newest revision.
    fn finish(&mut self) -> Result<Revision, redb::Error> {
        if self.changes == 0 {
            return Ok(self.revision);
        }
        let revision = self.revision + 1;
        self.meta.insert(REVISION, revision)?;
        let oldest = self.meta.get(OLDEST)?.map_or(1, |value| value.value());
        if revision - oldest >= KEEP + SLACK {
            self.forget(revision - KEEP)?;
        }
        Ok(revision)
    }
}
