//! Removal of everything that is this node's.

use anyhow::Context as _;

use super::{
    backend::Agent,
    containers::{Containers, Origin},
};
use crate::{
    cli::PurgeOptions,
    datapath::Datapath,
    netlink::Netlink,
    sandbox::{self, Sandbox},
};

/// Removes what an agent that does not run any more left in the kernel and in
/// its state directory: veths, sandboxes, programs, maps and records. What is in
/// the store stays there: a later agent of the node finds it.
///
/// # Errors
///
/// One line that names what cannot be removed.
pub async fn purge_offline(options: PurgeOptions) -> anyhow::Result<()> {
    // While it is held, no agent starts.
    let listener = crate::api::bind(&options.socket)?;
    let netlink = Netlink::new()?;
    for link in netlink.links().await? {
        if let Some(id) = sandbox::endpoint_of(&link) {
            sandbox::unplug(&netlink, id).await?;
        }
    }
    let records = options.state_dir.join("containers");
    if records.is_dir() {
        let mut containers = Containers::load(&options.state_dir)
            .with_context(|| format!("state directory {}", options.state_dir.display()))?;
        for record in containers.iter().cloned().collect::<Vec<_>>() {
            Agent::kill_process(&record).await?;
            if record.origin == Origin::Owned {
                let name = record.name.clone();
                tokio::task::spawn_blocking(move || Sandbox::remove(&name)).await??;
            }
            containers.remove(&record.name)?;
        }
    }
    Datapath::purge(&options.bpffs)?;
    drop(listener);
    Ok(())
}
