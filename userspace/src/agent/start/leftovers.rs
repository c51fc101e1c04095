//! Programs of an earlier agent that had another `--bpffs`.

use anyhow::bail;

use crate::{
    agent::{host::Host, shared::Shared},
    config::{AgentOptions, DatapathMode},
    datapath::{self, Leftover},
    netlink::Netlink,
};

/// Finds them. An XDP program among them is detached if this agent attaches one: an interface has
/// one XDP program. The others go on until this agent's maps are filled, see [`retire`]. Returns
/// what was detached, a line each.
///
/// # Errors
///
/// One line: the agent that has attached them runs.
pub(super) async fn check(
    netlink: &Netlink,
    options: &AgentOptions,
) -> anyhow::Result<Vec<String>> {
    let links = netlink.links().await?;
    let bpffs = options.bpffs.clone();
    let xdp = options.datapath == DatapathMode::Xdp;
    tokio::task::spawn_blocking(move || {
        let leftovers = datapath::find_leftovers(&links, &bpffs)?;
        if let Some(line) = held(&leftovers) {
            bail!("{line}: stop it, or give this one a network namespace of its own");
        }
        if !xdp {
            return Ok(Vec::new());
        }
        let detached = datapath::detach_xdp_leftovers(&leftovers)?;
        Ok(detached.into_iter().map(line).collect())
    })
    .await?
}

/// Detaches them once the maps of this agent are filled, and removes their pins. Counts each as a
/// repair. `detached` are those that [`check`] has detached.
pub(super) async fn retire(shared: &Shared, host: &Host, detached: Vec<String>) {
    let found = host.retire_leftovers().await;
    let (retired, problem) = match found {
        Ok((retired, held)) => (retired, self::held(&held).map(|line| format!("{line}: stop one"))),
        Err(error) => (
            datapath::Retired::default(),
            Some(format!(
                "{error}: programs of an agent with another --bpffs may be attached still, and run before this one's: 'culvert doctor' names them"
            )),
        ),
    };
    for found in detached.into_iter().chain(retired.programs.iter().map(line)) {
        shared.repairs.note("earlier program", found);
    }
    if !retired.programs.is_empty() {
        match retired.flows {
            Some(flows) => {
                tracing::info!(
                    "programs of an agent with another --bpffs retired: {} flows carried over, {} lost",
                    flows.entries / 2,
                    flows.lost.div_ceil(2)
                );
            }
            None => tracing::warn!(
                "programs of an agent with another --bpffs retired: their flows are lost, they have another map layout"
            ),
        }
    }
    shared.problems.set("leftovers", problem);
}

/// What was found, on one line.
fn line(leftover: impl std::borrow::Borrow<Leftover>) -> String {
    format!("{}: it was of an agent with another --bpffs", leftover.borrow())
}

/// Names the agent, if one of them belongs to one that runs.
fn held(leftovers: &[Leftover]) -> Option<String> {
    let (other, pid) = leftovers.iter().find_map(|other| Some((other, other.holder?)))?;
    Some(format!(
        "another agent, pid {pid}, serves this network namespace: it has attached {other}"
    ))
}
