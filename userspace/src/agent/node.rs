//! The agent's own entry in the store: `nodes/NODE`, and `alive/NODE` on a lease.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::shared::Shared;
use crate::{
    model::{
        ALIVE, NODES, Name, Node, ROOT, View,
        ops::{self, ExecuteError},
    },
    store::{LeaseId, StateStore, StoreError, retry::Backoff},
};

/// TTL of the lease: an agent that does not renew the lease for this time counts as gone.
const TTL: Duration = Duration::from_secs(10);
/// Period of the renewals of the lease: two in a row may be lost.
const RENEW: Duration = Duration::from_secs(3);

/// Enters the node, and renews its lease until the agent stops. Then the lease is revoked.
///
/// `entered` gets the outcome of the first entry: a refusal (another agent has the name) ends
/// the agent. Later refusals are problems in `status`, and forwarding goes on.
pub(super) async fn keep(
    shared: Arc<Shared>,
    store: Arc<dyn StateStore>,
    entered: oneshot::Sender<Result<(), String>>,
) {
    let mut entered = Some(entered);
    let mut lease = None;
    tokio::select! {
        () = shared.shutdown.cancelled() => {}
        () = stay(&shared, store.as_ref(), &mut entered, &mut lease) => return,
    }
    if let Some(lease) = lease {
        // Best effort: it runs out by itself.
        let _ = tokio::time::timeout(Duration::from_secs(2), store.revoke(lease)).await;
    }
}

/// Enters the node and renews its lease. Returns only if the first entry is refused.
async fn stay(
    shared: &Shared,
    store: &dyn StateStore,
    entered: &mut Option<oneshot::Sender<Result<(), String>>>,
    current: &mut Option<LeaseId>,
) {
    let mut backoff = Backoff::unavailable();
    loop {
        match enter(shared, store).await {
            Ok(lease) => {
                *current = Some(lease);
                backoff.reset();
                shared.problems.set("node", None);
                if let Some(entered) = entered.take() {
                    // The receiver is gone if the agent is stopping.
                    let _ = entered.send(Ok(()));
                }
                renew(store, lease).await;
                tracing::warn!("node {}: its lease has run out, entering again", shared.node.name);
            }
            Err(ExecuteError::Refused(refusal)) => {
                if let Some(entered) = entered.take() {
                    let _ = entered.send(Err(refusal.to_string()));
                    return;
                }
                shared.problems.set("node", Some(refusal.to_string()));
                tokio::time::sleep(RENEW).await;
            }
            Err(error) => {
                shared.store.early_error(&error.to_string());
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn enter(shared: &Shared, store: &dyn StateStore) -> Result<LeaseId, ExecuteError> {
    let lease = store.grant(TTL).await?;
    // The plan needs only these prefixes, and the whole store is large.
    let entry = ops::execute_below(store, &[NODES, ALIVE], |view| {
        Ok(((), ops::register_node(view, &shared.node, lease)?))
    });
    match entry.await {
        Ok(_) => Ok(lease),
        Err(error) => {
            // Best effort: it runs out by itself.
            let _ = store.revoke(lease).await;
            Err(error)
        }
    }
}

/// Keeps the lease alive; returns once it is gone.
async fn renew(store: &dyn StateStore, lease: LeaseId) {
    let mut pause = RENEW;
    loop {
        tokio::time::sleep(pause).await;
        match store.keep_alive(lease).await {
            Ok(()) => pause = RENEW,
            Err(StoreError::LeaseGone(_)) => return,
            // The follower reports that the store does not answer.
            Err(_) => pause = Duration::from_secs(1),
        }
    }
}

/// Removes the node from the store if the entry is this installation's own.
pub(super) async fn leave_own(store: &dyn StateStore, own: &Node) -> Result<(), ExecuteError> {
    let view = View::from_snapshot(&store.snapshot(ROOT).await?);
    if view.nodes.get(&own.name).is_some_and(|node| node.id == own.id) {
        leave(store, &own.name).await?;
    }
    Ok(())
}

/// Removes the node and its endpoints from the store.
pub(super) async fn leave(store: &dyn StateStore, name: &Name) -> Result<(), ExecuteError> {
    loop {
        let view = View::from_snapshot(&store.snapshot(ROOT).await?);
        if !view.nodes.contains_key(name) {
            return Ok(());
        }
        let mut current = true;
        for plan in ops::remove_node(&view, name, true)? {
            let outcome = store.commit(plan.compares, plan.writes).await?;
            current &= matches!(outcome, crate::store::Outcome::Committed(_));
        }
        if current {
            return Ok(());
        }
    }
}
