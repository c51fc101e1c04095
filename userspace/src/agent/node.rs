//! The agent's own entry in the store: `nodes/NODE`, and `alive/NODE` on a lease.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{containers::Origin, files, shared::Shared};
use crate::{
    model::{
        ALIVE, Alive, Key, NETWORKS, NODES, Name, Node, ROOT, View,
        ops::{self, ExecuteError, Refusal},
        witness_key,
    },
    store::{LeaseId, Outcome, Revision, StateStore, StoreError, Write, retry::Backoff},
};

/// TTL of the lease: an agent that does not renew the lease for this time counts as gone.
const TTL: Duration = Duration::from_secs(10);
/// Period of the renewals of the lease: two in a row may be lost.
const RENEW: Duration = Duration::from_secs(3);
/// Time after which the lease of an earlier run, or of the machine before its reboot, has run out.
/// If the same identifier is alive for longer, a different agent has it.
const OUTLIVED: Duration = TTL.saturating_add(RENEW);
/// Number of conflicts after which a removal fails.
const TRIES: u32 = 24;

/// The entry of this node in the store.
struct NodeEntry {
    lease: LeaseId,
    /// Revision at which the entry was made.
    revision: Revision,
    /// The store did not have the node before.
    new: bool,
}

/// Enters the node, and renews its lease until the agent stops. Then the lease is revoked, unless
/// the agent starts anew.
///
/// `entered` gets the outcome of the first attempt: a refusal (another agent has the name, or the
/// identifier) ends the agent. Later refusals, and a store that takes no writes, are problems in
/// `status`, and forwarding goes on.
pub(super) async fn keep(
    shared: Arc<Shared>,
    store: Arc<dyn StateStore>,
    entered: oneshot::Sender<Result<(), String>>,
) {
    let mut entered = Some(entered);
    let mut lease = None;
    tokio::select! {
        () = shared.ending.shutdown.cancelled() => {}
        () = stay(&shared, store.as_ref(), &mut entered, &mut lease) => return,
    }
    // An agent that starts anew enters the node with a lease of its own.
    if let Some(lease) = lease
        && !shared.ending.again.is_cancelled()
    {
        give_up(store.as_ref(), lease).await;
    }
}

/// Revokes a lease. Best effort: a lease that is not renewed runs out.
async fn give_up(store: &dyn StateStore, lease: LeaseId) {
    let _ = tokio::time::timeout(Duration::from_secs(2), store.revoke(lease)).await;
}

/// Enters the node and renews its lease. Returns only if the first entry is refused.
async fn stay(
    shared: &Shared,
    store: &dyn StateStore,
    entered: &mut Option<oneshot::Sender<Result<(), String>>>,
    current: &mut Option<LeaseId>,
) {
    let name = &shared.node.name;
    let mut backoff = Backoff::unavailable();
    // The time counts from the first answer of the store: while the store is down, a lease may live
    // longer than its TTL.
    let mut outlived = None;
    loop {
        shared.store.is_known().await;
        match enter(shared, store).await {
            Ok(NodeEntry { lease, revision, new }) => {
                *current = Some(lease);
                backoff.reset();
                shared.store.registered();
                shared.shown.problems.set("node", None);
                shared.shown.problems.set("node/record", None);
                shared.shown.problems.set("node/removed", removed(shared, new));
                remember(shared);
                if let Some(entered) = entered.take() {
                    shared.readiness.entered(Some(revision));
                    // The receiver is gone if the agent is stopping.
                    let _ = entered.send(Ok(()));
                }
                if renew(shared, store, lease, revision).await {
                    tracing::warn!("node {name}: its lease has run out, entering again");
                } else {
                    tracing::warn!("node {name}: the store has no entry of it, entering again");
                    give_up(store, lease).await;
                }
            }
            Err(ExecuteError::Refused(Refusal::Elsewhere(why)))
                if entered.is_some() && is_soon(&mut outlived) =>
            {
                // The earlier run may have had another address, or may have been before a reboot.
                shared.store.early_error(&format!("{why}: its lease may run out"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(ExecuteError::Refused(refusal)) => {
                let line = with_remedy(&refusal, &shared.options.state_dir);
                if let Some(entered) = entered.take() {
                    let _ = entered.send(Err(line));
                    return;
                }
                shared.shown.problems.set("node", Some(line));
                tokio::time::sleep(RENEW).await;
            }
            Err(error) => {
                // The agent can read the store without the entry, so the containers on this host
                // keep their network.
                if let Some(entered) = entered.take() {
                    shared.readiness.entered(None);
                    let _ = entered.send(Ok(()));
                }
                let line =
                    format!("node {}: not entered in the store yet: {error}", shared.node.name);
                shared.shown.problems.set("node", Some(line));
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Whether the lease of an earlier run may still live. The first call sets the time at which that
/// lease has run out.
fn is_soon(outlived: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    now < *outlived.get_or_insert(now + OUTLIVED)
}

/// A refusal with its remedy.
fn with_remedy(refusal: &Refusal, state_dir: &Path) -> String {
    match refusal {
        Refusal::Elsewhere(why) => format!(
            "{why}: {dir} is a copy of that node's: stop the agent here, 'rm -r {dir}' and start again under another name, or stop that node for good",
            dir = state_dir.display()
        ),
        other => other.to_string(),
    }
}

async fn enter(shared: &Shared, store: &dyn StateStore) -> Result<NodeEntry, ExecuteError> {
    let lease = store.grant(TTL).await?;
    match register(shared, store, lease).await {
        Ok((new, revision)) => Ok(NodeEntry { lease, revision, new }),
        Err(error) => {
            // Best effort: a lease that is not renewed runs out.
            let _ = store.revoke(lease).await;
            Err(error)
        }
    }
}

/// Writes the record of the node if it differs from the store's record, and the liveness record
/// on `lease`. Returns whether the node is new in the store, and the revision.
async fn register(
    shared: &Shared,
    store: &dyn StateStore,
    lease: LeaseId,
) -> Result<(bool, Revision), ExecuteError> {
    let node = shared.record.borrow().clone();
    // The plan needs only these prefixes, and the whole store is large. Without the networks, a
    // host that was registered before is not refused because of one of them.
    let before = files::kept_name(&shared.options.state_dir).ok().flatten();
    let prefixes: &[&str] =
        if before.is_some() { &[NODES, ALIVE] } else { &[NODES, ALIVE, NETWORKS] };
    let entry = ops::execute_below(store, prefixes, |view| {
        let plan = ops::register_node(view, &node, &shared.alive, lease)?;
        Ok((!view.nodes.contains_key(&node.name), plan))
    });
    entry.await
}

/// The problem, on one line, of a node that was registered before and was missing in the store.
/// `None`: no container has lost a network.
fn removed(shared: &Shared, new: bool) -> Option<String> {
    let before = files::kept_name(&shared.options.state_dir).ok().flatten();
    (new && before.is_some() && has_sandbox(shared)).then(|| {
        format!(
            "node {}: it had been removed from the store and is registered again: its containers have lost their networks, 'culvert network connect NET NAME' connects a container again",
            shared.node.name
        )
    })
}

/// Whether this host has a container that can be connected to a network.
fn has_sandbox(shared: &Shared) -> bool {
    let containers = shared.containers();
    containers.iter().any(|record| matches!(record.origin, Origin::Owned | Origin::Attached))
}

/// Keeps the node's name on disk: from now on a new host name does not change it.
fn remember(shared: &Shared) {
    let dir = &shared.options.state_dir;
    let failed = files::keep_name(dir, &shared.node.name).err();
    let line = |error| format!("{}: {error}", files::name_path(dir).display());
    shared.shown.problems.set("node-name/file", failed.map(line));
}

/// Keeps the lease alive, and the record up to date. Returns `true` once the lease is gone. Returns
/// `false` once the store no longer has the entry of `revision`, or another store was accepted.
async fn renew(
    shared: &Shared,
    store: &dyn StateStore,
    lease: LeaseId,
    revision: Revision,
) -> bool {
    let mut record = shared.record.subscribe();
    let accepted = shared.store.health().accepted;
    let mut pause = RENEW;
    // Revision of the last write of this agent.
    let mut written = revision;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = record.changed() => {
                if changed.is_ok() {
                    match register(shared, store, lease).await {
                        Ok((_, revision)) => written = revision,
                        Err(error) => {
                            let name = &shared.node.name;
                            tracing::warn!("node {name}: record not updated yet: {error}");
                            record.mark_changed();
                            tokio::time::sleep(RENEW).await;
                        }
                    }
                }
            }
        }
        match store.keep_alive(lease).await {
            // The revision is one of the store before, and the lease may live in this one as well.
            Ok(()) if shared.store.health().accepted != accepted => return false,
            Ok(()) if is_out(shared, revision) => return false,
            Ok(()) => {
                pause = RENEW;
                // A change of its own is written first.
                let is_settled = record.has_changed().is_ok_and(|changed| !changed);
                if let Some(found) = overwritten(shared, written).filter(|_| is_settled) {
                    written = restore(shared, store, found).await.unwrap_or(written);
                }
            }
            Err(StoreError::LeaseGone(_)) => return true,
            // The follower reports that the store does not answer.
            Err(_) => pause = Duration::from_secs(1),
        }
    }
}

/// Whether the entry that was made at `revision` has been removed from the store, or replaced.
fn is_out(shared: &Shared, revision: Revision) -> bool {
    let view = shared.view();
    let name = &shared.node.name;
    let in_it = || {
        view.nodes.contains_key(name)
            && view.alive.get(name).is_some_and(|alive| alive.run == shared.alive.run)
    };
    view.revision >= revision && !shared.ending.leaving.is_cancelled() && !in_it()
}

/// What another client of the store has made of this node's record since `written`, on one line.
/// `None`: nothing, or the view is not so far yet.
fn overwritten(shared: &Shared, written: Revision) -> Option<String> {
    let view = shared.view();
    let name = &shared.node.name;
    if view.revision < written || shared.ending.leaving.is_cancelled() {
        return None;
    }
    if let Some(why) = view.problem_at(&Key::node(name)) {
        return Some(format!("the record of node {name} was {why}"));
    }
    // If it is missing, the node is entered again.
    let found = &view.nodes.get(name)?.record;
    let wanted = shared.record.borrow();
    if *found == *wanted {
        return None;
    }
    let mut wrong = Vec::new();
    if found.id != wanted.id {
        wrong.push("another identifier".to_owned());
    }
    if (found.vtep, found.port) != (wanted.vtep, wanted.port) {
        wrong.push(format!("VTEP {} port {}", found.vtep, found.port));
    }
    if wrong.is_empty() {
        wrong.push("other subnets or another MTU".to_owned());
    }
    Some(format!("the record of node {name} had {}", wrong.join(" and ")))
}

/// Writes this node's record again. `found` is what another client has made of it. Returns the
/// revision of the write.
async fn restore(shared: &Shared, store: &dyn StateStore, found: String) -> Option<Revision> {
    let node = shared.record.borrow().clone();
    let restored = ops::execute_below(store, &[NODES, ALIVE], |view| {
        Ok(((), ops::restore_node(view, &node, &shared.alive)?))
    });
    match restored.await {
        Ok(((), revision)) => {
            shared.shown.problems.set("node/record", None);
            shared.shown.repairs.note("node record", found);
            Some(revision)
        }
        Err(error) => {
            let line = format!("{found}, it cannot be written again: {error}; trying again");
            shared.shown.problems.set("node/record", Some(line));
            None
        }
    }
}

/// Removes the nodes with the identifier of `former` from the store. Removes nothing if an agent on
/// another host is still alive with that identifier after [`OUTLIVED`], and returns `None`. Otherwise
/// returns the revision without the nodes, which is 0 if there were none.
///
/// # Errors
///
/// The store fails.
pub(super) async fn leave_as(
    store: &dyn StateStore,
    own: &Node,
    former: &Alive,
) -> Result<Option<Revision>, ExecuteError> {
    let mut outlived = None;
    loop {
        let view = View::from_snapshot(&store.snapshot(ROOT).await?);
        match ops::not_elsewhere(&view, own.vtep, former) {
            Ok(()) => {
                let names = view.nodes.values().filter(|node| node.id == former.id);
                let mut without = 0;
                for name in names.map(|node| &node.name) {
                    without = leave(store, name, &former.id).await?.max(without);
                }
                return Ok(Some(without));
            }
            Err(_) if is_soon(&mut outlived) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(_) => return Ok(None),
        }
    }
}

/// Checks that the entry in the store is this agent's, before it is removed.
///
/// # Errors
///
/// The agent of a copy of this host is alive, or the store fails.
pub(super) async fn check_own(store: &dyn StateStore, shared: &Shared) -> Result<(), ExecuteError> {
    let mut view = View::default();
    for prefix in [NODES, ALIVE] {
        view.add_snapshot(&store.snapshot(prefix).await?);
    }
    Ok(ops::not_elsewhere(&view, shared.node.vtep, &shared.alive)?)
}

/// Removes a node, its endpoints and its own witness from the store. It is no error if the node is
/// missing, or if the store refuses to remove the witness. Returns the revision without the node,
/// which is 0 if it was missing.
pub(super) async fn leave(
    store: &dyn StateStore,
    name: &Name,
    id: &str,
) -> Result<Revision, ExecuteError> {
    let without = match remove(store, name, true).await {
        Ok(revision) => revision,
        Err(ExecuteError::Refused(Refusal::NotFound(_))) => 0,
        Err(error) => return Err(error),
    };
    match store.commit(Vec::new(), vec![Write::Delete(witness_key(id))]).await {
        Ok(_) => Ok(without),
        // The store's user may not use the key, so there is none, or it stays: it does no harm.
        Err(StoreError::Refused(why)) => {
            tracing::warn!("store: the witness of node {name} is not removed: {why}");
            Ok(without)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a node and its endpoints from the store. Returns the revision of the last transaction.
///
/// # Errors
///
/// The refusals of [`ops::remove_node`], or the store fails.
pub(super) async fn remove(
    store: &dyn StateStore,
    name: &Name,
    force: bool,
) -> Result<Revision, ExecuteError> {
    let mut backoff = Backoff::contention();
    for _ in 0..TRIES {
        let view = View::from_snapshot(&store.snapshot(ROOT).await?);
        let mut last = None;
        for plan in ops::remove_node(&view, name, force)? {
            last = match ops::commit(store, plan).await? {
                Outcome::Committed(revision) => Some(revision),
                Outcome::Conflict => None,
            };
            if last.is_none() {
                break;
            }
        }
        if let Some(revision) = last {
            return Ok(revision);
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    Err(ExecuteError::Contended)
}
