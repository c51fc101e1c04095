//! Programs of an earlier agent that had another `--bpffs`.

use std::{fmt::Display, sync::Arc, time::Duration};

use anyhow::bail;

use crate::{
    agent::{host::Host, shared::Shared},
    api::types::ApiError,
    config::{AgentOptions, DatapathMode},
    datapath::{self, Leftover, Retired},
    netlink::Netlink,
};

/// Finds the programs. If this agent attaches XDP programs, an XDP program among the found ones is
/// detached: an interface can have only one XDP program. The other programs run until this agent's
/// maps are filled, see [`Retiring`]. Returns the detached programs, a line each.
///
/// # Errors
///
/// The agent that attached a program runs, or may run. The error is one line.
pub(super) async fn check(
    netlink: &Netlink,
    options: &AgentOptions,
) -> anyhow::Result<Vec<String>> {
    let links = netlink.links().await?;
    let bpffs = options.bpffs.clone();
    let xdp = options.datapath == DatapathMode::Xdp;
    tokio::task::spawn_blocking(move || {
        let leftovers = datapath::find_leftovers(&links, &bpffs)?;
        let remedy = "stop it, or give this one a network namespace of its own";
        if let Some(line) = leftovers.iter().find_map(|other| other.kept(remedy)) {
            bail!("{line}");
        }
        if !xdp {
            return Ok(Vec::new());
        }
        let detached = datapath::detach_xdp_leftovers(&leftovers)?;
        Ok(detached.into_iter().map(line).collect())
    })
    .await?
}

/// Pause between two attempts to retire the programs.
const PAUSE: Duration = Duration::from_secs(10);

/// Retires the programs (detaches them and removes their pins) once the maps of this agent are
/// filled.
pub(super) struct Retiring {
    shared: Arc<Shared>,
    host: Arc<Host>,
    /// Programs that were detached and whose pins are not all removed.
    unpinned: Vec<Leftover>,
}

impl Retiring {
    /// `detached` has the lines that [`check`] returned. Each line counts as a repair.
    pub(super) fn new(shared: &Arc<Shared>, host: &Arc<Host>, detached: Vec<String>) -> Self {
        for found in detached {
            shared.shown.repairs.note("earlier program", found);
        }
        Self { shared: Arc::clone(shared), host: Arc::clone(host), unpinned: Vec::new() }
    }

    /// Detaches the programs and removes their pins. Counts each program as a repair. Returns
    /// whether nothing is left.
    pub(super) async fn attempt(&mut self) -> bool {
        let outcome = self.host.retire_leftovers(self.unpinned.clone()).await;
        let problem = problem(&outcome);
        let is_done = problem.is_none();
        if let Ok(retired) = outcome {
            self.note(&retired);
            self.unpinned.extend(retired.programs);
        }
        self.shared.shown.problems.set("leftovers", problem);
        is_done
    }

    /// Repeats [`Self::attempt`] until nothing is left, or the agent stops.
    pub(super) async fn keep(mut self) {
        loop {
            tokio::select! {
                () = self.shared.ending.shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            if self.attempt().await {
                return;
            }
        }
    }

    fn note(&self, retired: &Retired) {
        for found in &retired.programs {
            self.shared.shown.repairs.note("earlier program", line(found));
        }
        if retired.programs.is_empty() {
            return;
        }
        let what = "programs of an agent with another --bpffs retired";
        if let Some(error) = &retired.not_copied {
            tracing::warn!("{what}: flows of theirs are lost: {error}");
        }
        match retired.flows {
            Some(flows) => {
                tracing::info!(
                    "{what}: {} flows carried over, {} lost",
                    flows.entries / 2,
                    flows.lost.div_ceil(2)
                );
            }
            None if retired.not_copied.is_some() => {}
            None => {
                tracing::warn!("{what}: their flows are lost, they have another map layout");
            }
        }
    }
}

/// The problem that is left after an attempt, on one line. `None`: nothing is left.
fn problem(outcome: &Result<Retired, ApiError>) -> Option<String> {
    let error: &dyn Display = match outcome {
        Ok(retired) => match &retired.not_removed {
            Some(error) => error,
            None => return retired.kept.iter().find_map(|other| other.kept("stop one")),
        },
        Err(error) => error,
    };
    Some(format!(
        "{error}: programs of an agent with another --bpffs, or their pins, may be there still, and the programs run before this one's: 'culvert doctor' names them; tried again every {} s",
        PAUSE.as_secs()
    ))
}

/// A program that was found, on one line.
fn line(leftover: impl std::borrow::Borrow<Leftover>) -> String {
    format!("{}: it was of an agent with another --bpffs", leftover.borrow())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::types::ErrorKind,
        datapath::{DatapathError, Owner},
    };

    #[test]
    fn it_goes_on_until_nothing_is_left() {
        let broken = || DatapathError::Io {
            path: "/old/v4".into(),
            what: "remove directory",
            source: std::io::ErrorKind::ResourceBusy.into(),
        };
        assert_eq!(problem(&Ok(Retired::default())), None);
        // The programs are detached: another attempt cannot save their flows.
        let retired = Retired {
            programs: vec![Leftover::of_a_test(Owner::Ended)],
            not_copied: Some(broken()),
            ..Retired::default()
        };
        assert_eq!(problem(&Ok(retired)), None);
        for owner in [Owner::Runs(77), Owner::Unseen] {
            let kept = vec![Leftover::of_a_test(owner)];
            let line = problem(&Ok(Retired { kept, ..Retired::default() })).unwrap();
            assert!(line.contains("from_underlay on up0"), "{line}");
        }
        let retired = Retired { not_removed: Some(broken()), ..Retired::default() };
        let line = problem(&Ok(retired)).unwrap();
        assert!(line.contains("/old/v4") && line.contains("every 10 s"), "{line}");
        assert!(problem(&Err(ApiError::new(ErrorKind::Internal, "no list"))).is_some());
    }
}
