//! The state that all hosts share: keys and values, which this module does not interpret.
//!
//! [`StateStore`] is the interface to a store: snapshots at a revision, watches from a revision,
//! transactions that compare before they write, and leases. The semantics are those of etcd (v3
//! API). The embedded backend has the same semantics; one test suite tests both.

mod etcd;
mod file;
pub mod follow;
mod layout;
mod mark;
pub mod retry;
mod url;

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};

pub use etcd::{EtcdOptions, EtcdStore, is_loopback};
pub use file::FileStore;
pub use follow::{FollowOptions, Follower, Health, Known, Listed, OwnWitness, Update, Witness};
pub use layout::Layout;
pub use mark::{StoreMark, new_id};
pub use url::{MalformedUrl, StoreOptions, StoreUrl, open};

/// Greatest number of writes, and of compares, of one transaction: the default of etcd's
/// `--max-txn-ops`.
pub const MAX_OPS: usize = 128;

/// A point in the history of a store; grows with every committed transaction.
pub type Revision = i64;

/// Handle of a lease.
pub type LeaseId = i64;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Revision of the last write.
    pub mod_revision: Revision,
}

/// All keys below a prefix at one revision, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// A range of the keys below a prefix. The pages of a list cover the prefix without gaps and
/// without overlap, all at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision.
    pub revision: Revision,
    /// The first key of the range.
    pub from: String,
    /// The end of the range, excluded.
    pub to: String,
    /// The entries, in key order.
    pub entries: Vec<Entry>,
}

/// The pages of a list, in no order. The stream ends after its first error.
pub type Pages = BoxStream<'static, Result<Page, StoreError>>;

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key was written.
    Put(Entry),
    /// A key was deleted, or its lease expired.
    Delete {
        /// Key.
        key: String,
        /// Revision of the deletion.
        revision: Revision,
    },
}

impl Change {
    /// Key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// Revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    Unchanged(String, Revision),
    /// No key exists below the prefix.
    PrefixEmpty(String),
    /// No key below the prefix was written after this revision. Deletions do not count.
    PrefixUnchanged(String, Revision),
}

/// A write of a transaction. No two writes of a transaction may touch one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value, on a lease if one is given.
    Put {
        /// Key.
        key: String,
        /// Value.
        value: Vec<u8>,
        /// Lease with which the key is deleted.
        lease: Option<LeaseId>,
    },
    /// Deletes a key. It is no error if the key does not exist.
    Delete(String),
    /// Deletes every key below a prefix.
    DeletePrefix(String),
}

/// The result of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All conditions held; the writes are in the store at this revision.
    Committed(Revision),
    /// A condition did not hold; nothing was written.
    Conflict,
}

/// The error of a store operation: one line.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The requested revision is compacted: take a snapshot again.
    #[error("store: history before revision {oldest} is compacted")]
    Compacted {
        /// The oldest revision that is left; 0 if the store did not report it.
        oldest: Revision,
    },
    /// The store gave no answer, so its contents are unknown. A transaction may have been applied,
    /// or may be later.
    #[error("store: {0}")]
    Unavailable(String),
    /// The request was not sent, or each server refused it before it had an effect: nothing of it
    /// was or will be carried out.
    #[error("store: {0}")]
    Unsent(String),
    /// The store refused the credentials or the request.
    #[error("store: {0}")]
    Refused(String),
    /// The lease is unknown or has expired.
    #[error("store: lease {0:x} has run out")]
    LeaseGone(LeaseId),
    /// The store is not the one that was followed before. Nothing was sent to it.
    #[error("store: {0}")]
    Replaced(String),
}

/// The backend of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An etcd cluster.
    Etcd,
    /// The embedded store.
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::File => "file",
        })
    }
}

/// Changes in order of revision. All changes of one revision are one item. The stream ends after
/// its first error. The caller then takes a snapshot, or watches again from the revision after the
/// last one received.
pub type Watch = BoxStream<'static, Result<Vec<Change>, StoreError>>;

/// A store of keys and values with revisions, watches and leases.
///
/// Every method has a timeout and then returns [`StoreError::Unavailable`], or
/// [`StoreError::Unsent`]. The caller retries with backoff.
#[async_trait]
pub trait StateStore: Send + Sync + fmt::Debug {
    /// The backend of this store.
    fn kind(&self) -> Kind;

    /// How far the store's clock is ahead of this host's, in ms. `None`: the store has no clock of
    /// its own, or does not report it. The value is only for readers of logs.
    async fn clock_offset_ms(&self) -> Option<i64> {
        None
    }

    /// The alarms of the store, by their names. While one is set the store takes no writes.
    async fn alarms(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// All keys below `prefix` at one revision.
    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// All keys below `prefix` at one revision, in pages, so that the caller works on one page
    /// while the next is read.
    async fn list(&self, prefix: &str) -> Result<Pages, StoreError> {
        let Snapshot { revision, entries } = self.snapshot(prefix).await?;
        let page = Page { revision, from: prefix.to_owned(), to: prefix_end(prefix), entries };
        Ok(stream::iter([Ok(page)]).boxed())
    }

    /// Whether `key` was written, not deleted, at revision `at`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Compacted`]: the history of that revision is compacted.
    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError>;

    /// Changes below `prefix` from revision `from` (included) on.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Applies all `writes` atomically if all `compares` hold; otherwise applies none.
    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError>;

    /// Makes a lease that expires `ttl` after the last keep-alive.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Keeps a lease alive for another TTL.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease and deletes the keys on it.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// End of the range of all keys below a prefix: the prefix with its last byte incremented. Prefixes
/// are ASCII and not empty.
fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    let last = end.pop().map_or(0, u32::from);
    end.push(char::from_u32(last.saturating_add(1)).unwrap_or(char::MAX));
    end
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Refuses what etcd would refuse, before anything is sent, so that both backends refuse the same
/// transactions.
fn check_transaction(compares: &[Compare], writes: &[Write]) -> Result<(), StoreError> {
    let most = compares.len().max(writes.len());
    if most > MAX_OPS {
        return Err(StoreError::Refused(format!(
            "a transaction of {most} operations is too large: {MAX_OPS} is the limit"
        )));
    }
    // In sorted order a prefix directly precedes the keys below it.
    let mut touched: Vec<(&str, bool)> = writes
        .iter()
        .map(|write| match write {
            Write::Put { key, .. } | Write::Delete(key) => (key.as_str(), false),
            Write::DeletePrefix(prefix) => (prefix.as_str(), true),
        })
        .collect();
    touched.sort_unstable_by(|a, b| a.0.cmp(b.0).then(b.1.cmp(&a.1)));
    let mut prefix: Option<&str> = None;
    let mut before: Option<&str> = None;
    for (key, is_prefix) in touched {
        if before == Some(key) || prefix.is_some_and(|prefix| key.starts_with(prefix)) {
            return Err(StoreError::Refused(format!("a transaction writes {key} twice")));
        }
        before = Some(key);
        if is_prefix {
            prefix = Some(key);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Write {
        Write::Put { key: key.to_owned(), value: Vec::new(), lease: None }
    }

    #[test]
    fn a_key_may_be_written_once_per_transaction() {
        let delete = |key: &str| Write::Delete(key.to_owned());
        let below = |prefix: &str| Write::DeletePrefix(prefix.to_owned());
        for writes in [
            vec![put("/a"), put("/a")],
            vec![put("/a"), delete("/a")],
            vec![put("/a/b"), below("/a/")],
            vec![below("/a/"), put("/a/b/c"), put("/b")],
            vec![below("/a"), below("/a/b")],
            vec![delete("/a/"), below("/a/")],
        ] {
            let refused = check_transaction(&[], &writes);
            assert!(matches!(refused, Err(StoreError::Refused(_))), "{writes:?}");
        }
        let fine = [put("/a"), delete("/b"), below("/a/"), below("/c"), put("/d")];
        assert!(check_transaction(&[], &fine).is_ok());
    }

    #[test]
    fn a_transaction_has_a_size() {
        let writes: Vec<_> = (0..=MAX_OPS).map(|n| put(&n.to_string())).collect();
        assert!(matches!(check_transaction(&[], &writes), Err(StoreError::Refused(_))));
        assert!(check_transaction(&[], &writes[1..]).is_ok());
    }
}
