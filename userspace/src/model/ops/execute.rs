//! Execution of plans.

use super::{Plan, Refusal};
use crate::{
    model::{ROOT, View},
    store::{Outcome, Revision, StateStore, StoreError, retry::Backoff},
};

/// Number of conflicts after which `execute` gives up: with more contention the store is too slow.
const TRIES: u32 = 24;

/// The error of [`execute`].
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The plan was refused; nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store returned an error; nothing was written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store did not answer a transaction: its writes may or may not be in the store, and may
    /// still come.
    #[error(transparent)]
    InDoubt(StoreError),
    /// Every attempt met a conflict; nothing was written.
    #[error("store: {TRIES} attempts met changes by others: try again")]
    Contended,
}

/// Commits a transaction.
///
/// # Errors
///
/// [`ExecuteError::Store`] or [`ExecuteError::InDoubt`].
pub async fn commit(
    store: &dyn StateStore,
    Plan { compares, writes }: Plan,
) -> Result<Outcome, ExecuteError> {
    store.commit(compares, writes).await.map_err(|error| match error {
        unknown @ StoreError::Unavailable(_) => ExecuteError::InDoubt(unknown),
        other => ExecuteError::Store(other),
    })
}

/// Plans from `view` and commits. If the view may be behind the store (a conflict or a refusal),
/// plans again from a fresh snapshot, so a refusal always rests on the store's current contents.
/// Returns the plan's result, and the revision at which it was committed.
///
/// # Errors
///
/// The plan's refusal, the store's error, or too much contention.
pub async fn execute<T>(
    store: &dyn StateStore,
    view: Option<&View>,
    mut plan: impl FnMut(&View) -> Result<(T, Plan), Refusal>,
) -> Result<(T, Revision), ExecuteError> {
    // The first attempt uses the given view: without contention no snapshot is read.
    if let Some(Ok((made, planned))) = view.map(&mut plan)
        && let Outcome::Committed(revision) = commit(store, planned).await?
    {
        return Ok((made, revision));
    }
    execute_below(store, &[ROOT], plan).await
}

/// As [`execute`], for a plan that depends only on the keys below some prefixes.
///
/// # Errors
///
/// As [`execute`].
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
        let (made, planned) = plan(&fresh)?;
        if let Outcome::Committed(revision) = commit(store, planned).await? {
            return Ok((made, revision));
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Err(ExecuteError::Contended)
}
