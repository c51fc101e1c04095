//! Claims to MACs that an earlier version of the agent has not made.

use std::{collections::BTreeMap, time::Duration};

use super::Agent;
use crate::{
    model::{
        View,
        ops::{self, ExecuteError, Refusal},
    },
    store::{StoreError, retry::Backoff},
};

/// Prefix of the keys of the problems.
const PROBLEMS: &str = "mac/";

impl Agent {
    /// Claims the MACs of this host's endpoints that need a claim and have none, once the store has
    /// been read. A claim that is refused is told, and tried again after the others. Ends when all
    /// are claimed, or when the agent stops.
    pub(crate) async fn claim_macs(&self) {
        let shared = &self.shared;
        if !shared.wait_ready().await {
            return;
        }
        let mut unclaimed = shared.view().unclaimed_macs(&shared.node.name);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        loop {
            let mut left = Vec::new();
            let mut lines = BTreeMap::new();
            let mut round = unclaimed.into_iter();
            for (network, id) in round.by_ref() {
                let plan = |view: &View| Ok(((), ops::claim_mac(view, &network, &id)?));
                let is_refused = match shared.execute(plan).await {
                    Ok(_) => {
                        tracing::info!("endpoint {id} in network '{network}': its MAC is claimed");
                        continue;
                    }
                    // It is gone.
                    Err(ExecuteError::Refused(Refusal::NotFound(_))) => continue,
                    Err(
                        error @ (ExecuteError::Refused(_)
                        | ExecuteError::Store(StoreError::Refused(_))),
                    ) => {
                        let line = format!(
                            "endpoint {id} in network '{network}': its MAC is not claimed, so an endpoint of another host may claim it: {error}; trying again"
                        );
                        lines.insert(format!("{PROBLEMS}{}/{id}", network.as_str()), line);
                        true
                    }
                    // The state of the store is told elsewhere.
                    Err(error) => {
                        tracing::debug!("endpoint {id}: MAC not claimed yet: {error}");
                        false
                    }
                };
                left.push((network, id));
                if !is_refused {
                    break;
                }
            }
            left.extend(round);
            shared.shown.problems.set_below(PROBLEMS, lines);
            if left.is_empty() {
                return;
            }
            unclaimed = left;
            tokio::select! {
                () = shared.ending.shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }
}
