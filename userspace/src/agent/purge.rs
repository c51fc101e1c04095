//! `culvert purge` without a running agent, and its completion by the next agent.

use anyhow::Context as _;

use super::{
    backend::Agent,
    containers::{Containers, Origin},
    files, node,
    shared::Shared,
};
use crate::{
    config::PurgeOptions,
    datapath::Datapath,
    model::ops::ExecuteError,
    netlink::Netlink,
    netns::Netns,
    sandbox,
    store::{StateStore, retry::Backoff},
};

/// Removes device pairs, sandboxes, programs, maps and records that an agent left in the kernel
/// and in its state directory. Only an agent can reach the store: the next agent of the node
/// removes the node from the store before it does anything else.
///
/// # Errors
///
/// One line that names what cannot be removed.
pub async fn purge_offline(options: PurgeOptions) -> anyhow::Result<()> {
    // No agent can start while the socket is bound.
    let listener = crate::api::bind(&options.socket)?;
    let netlink = Netlink::new()?;
    for link in netlink.links().await? {
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
        for record in containers.iter().cloned().collect::<Vec<_>>() {
            Agent::kill_process(&record).await?;
            if record.origin == Origin::Owned {
                let name = record.name.clone();
                tokio::task::spawn_blocking(move || Netns::remove(&name)).await??;
            }
            containers.remove(&record.name)?;
        }
    }
    if Datapath::has_loopback(&options.bpffs)? {
        sandbox::allow_loopback(&netlink, false)?;
    }
    Datapath::purge(&options.bpffs)?;
    if options.state_dir.is_dir() {
        for directory in ["containers", "logs"] {
            // Best effort: what is left does no harm.
            let _ = std::fs::remove_dir_all(options.state_dir.join(directory));
        }
        files::mark_purged(&options.state_dir)
            .with_context(|| format!("state directory {}", options.state_dir.display()))?;
    }
    drop(listener);
    Ok(())
}

/// Removes the node from the store, if [`purge_offline`] has run.
pub(super) async fn finish(shared: &Shared, store: &dyn StateStore) -> anyhow::Result<()> {
    let state_dir = &shared.options.state_dir;
    if !files::is_marked_purged(state_dir) {
        return Ok(());
    }
    let mut backoff = Backoff::unavailable();
    loop {
        match node::leave_own(store, &shared.node).await {
            Ok(()) => break,
            Err(ExecuteError::Store(error)) => shared.store.early_error(&error.to_string()),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
    tracing::info!("node {}: taken out of the store, as purged before", shared.node.name);
    files::unmark_purged(state_dir)
        .with_context(|| format!("state directory {}", state_dir.display()))
}
