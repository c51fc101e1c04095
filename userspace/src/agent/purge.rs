//! `culvert purge` without a running agent, and its completion by the next agent.

use anyhow::{Context as _, bail};

use super::{
    backend::Agent,
    containers::{Containers, Origin},
    files, host, node,
    platform::Wanted,
    shared::Shared,
    unfinished::Unfinished,
};
use crate::{
    config::PurgeOptions,
    datapath::{self, Datapath},
    limits::name_limit,
    model::{Alive, ops::ExecuteError},
    netlink::Netlink,
    netns::Netns,
    sandbox,
    store::{StateStore, retry::Backoff},
};

/// Removes device pairs, sandboxes, programs, maps and records that an agent left in the kernel
/// and in its state directory, its identifier and name included. Only an agent can reach the store:
/// the next agent removes the node from the store before it does anything else.
///
/// # Errors
///
/// One line that names what cannot be removed.
pub async fn purge_offline(options: PurgeOptions) -> anyhow::Result<()> {
    // No agent can start while the socket is bound.
    let listener = crate::api::bind(&options.socket)?;
    let netlink = Netlink::new()?;
    let links = netlink.links().await?;
    let leftovers = datapath::find_leftovers(&links, &options.bpffs)?;
    let remedy = "name its --socket, or stop it";
    if let Some(line) = leftovers.iter().find_map(|other| other.kept(remedy)) {
        bail!("{line}");
    }
    for link in links {
        if let Some(id) = sandbox::endpoint_of(&link) {
            sandbox::unplug(&netlink, id).await?;
        }
        if let Some(vni) = sandbox::gateway_of(&link) {
            sandbox::unplug_gateway(&netlink, vni).await?;
        }
    }
    sandbox::remove_assistants(&netlink).await?;
    let records = options.state_dir.join("containers");
    if records.is_dir() {
        let mut containers = Containers::load(&options.state_dir)
            .with_context(|| format!("state directory {}", options.state_dir.display()))?;
        // Containers whose supervisor has reported to no agent. If it lived on, it would start the
        // command again.
        let untold = containers.iter().filter(|record| record.untold());
        let wanted: Vec<_> = untold.filter_map(Wanted::of).collect();
        let logs = options.state_dir.join("logs");
        let find = move || host::find_commands(&wanted, &logs);
        let found = tokio::task::spawn_blocking(find).await?;
        let found = found.map_err(name_limit).context("looking for commands in /proc")?;
        for record in containers.iter().cloned().collect::<Vec<_>>() {
            if let Some(found) = found.get(&record.name) {
                Agent::kill_supervisor(&record, found.supervisor).await?;
            }
            Agent::kill_process(&record).await?;
            match record.origin {
                Origin::Owned => {
                    let name = record.name.clone();
                    tokio::task::spawn_blocking(move || Netns::remove(&name)).await??;
                }
                Origin::Attached => sandbox::forget_rules(&record.sandbox()).await?,
                Origin::Shares(_) | Origin::Host => {}
            }
            containers.remove(&record.name)?;
        }
    }
    let unfinished = Unfinished::load(&options.state_dir);
    for name in unfinished.left() {
        // Another program may have made a namespace of that name.
        if !unfinished.is_meant(&name, Netns::find(&name)) {
            continue;
        }
        tokio::task::spawn_blocking(move || Netns::remove(&name)).await??;
    }
    sandbox::restore_loopback(&netlink)?;
    Datapath::purge(&options.bpffs)?;
    datapath::remove_leftovers(&leftovers)?;
    if options.state_dir.is_dir() {
        files::remove_files(&options.state_dir);
        files::mark_purged(&options.state_dir)
            .with_context(|| format!("state directory {}", options.state_dir.display()))?;
    }
    drop(listener);
    Ok(())
}

/// Removes the node from the store, if [`purge_offline`] has run. The node of another host, of which
/// the state directory was a copy, stays.
pub(super) async fn finish(shared: &Shared, store: &dyn StateStore) -> anyhow::Result<()> {
    let state_dir = &shared.options.state_dir;
    let Some(id) = files::purged_id(state_dir) else { return Ok(()) };
    let id = if id.is_empty() { shared.alive.id.clone() } else { id };
    let former = Alive { id, ..shared.alive.clone() };
    let mut backoff = Backoff::unavailable();
    let without = loop {
        shared.store.is_known().await;
        match node::leave_as(store, &shared.node, &former).await {
            Ok(without) => break without,
            Err(ExecuteError::Store(error) | ExecuteError::InDoubt(error)) => {
                shared.store.early_error(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    };
    if let Some(revision) = without {
        // What the store had of this host before is not taken up again.
        shared.readiness.not_before(revision);
        tracing::info!("this host: taken out of the store, as purged before");
    } else {
        tracing::warn!(
            "this host: purged before, and its state was a copy of another host's, which is alive and stays in the store"
        );
    }
    files::unmark_purged(state_dir)
        .with_context(|| format!("state directory {}", state_dir.display()))
}
