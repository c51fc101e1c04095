//! Carries plans out.

use super::{Plan, Refusal};
use crate::{
    model::{ROOT, View},
    store::{Outcome, Revision, StateStore, StoreError, retry::Backoff},
};

/// How often a plan may meet a conflict before it is given up: with that much
/// contention the store does not keep up.
const TRIES: u32 = 24;

/// Why [`execute`] came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The plan was refused; nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store did not do as asked. After [`StoreError::Unavailable`] the
    /// writes may or may not be in the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others were always faster; nothing was written.
    #[error("store: {TRIES} attempts met changes by others: try again")]
    Contended,
}

/// Plans from `view` and commits. If the view turns out to be behind the store
/// (a conflict or a refusal), plans again from a fresh snapshot; so a refusal
/// always rests on what the store holds now. Returns what the plan made, and
/// the revision at which it is in the store.
///
/// # Errors
///
/// The plan's refusal, the store's error, or too much contention.
pub async fn execute<T>(
    store: &dyn StateStore,
    view: Option<&View>,
    mut plan: impl FnMut(&View) -> Result<(T, Plan), Refusal>,
) -> Result<(T, Revision), ExecuteError> {
    // The view's first: without contention there is no snapshot to be read.
    if let Some(Ok((made, Plan { compares, writes }))) = view.map(&mut plan)
        && let Outcome::Committed(revision) = store.commit(compares, writes).await?
    {
        return Ok((made, revision));
    }
    execute_below(store, &[ROOT], plan).await
}

/// As [`execute`], for a plan that rests on nothing but what lies below some prefixes.
///
/// # Errors
///
/// The same.
pub async fn execute_below<T>(
    store: &dyn StateStore,
    prefixes: &[&str],
    mut plan: impl FnMut(&View) -> Result<(T, Plan), Refusal>,
) -> Result<(T, Revision), ExecuteError> {
    let mut backoff = Backoff::contention();
    for _ in 0..TRIES {
        let mut fresh = View::default();
        for prefix in prefixes {
            fresh.add_snapshot(&store.snapshot(prefix).await?);
        }
        let (made, Plan { compares, writes }) = plan(&fresh)?;
        if let Outcome::Committed(revision) = store.commit(compares, writes).await? {
            return Ok((made, revision));
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Err(ExecuteError::Contended)
}
