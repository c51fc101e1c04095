//! Claims to MACs that an earlier version of the agent has not made.

use std::time::Duration;

use super::Agent;
use crate::{
    model::{
        View,
        ops::{self, ExecuteError},
    },
    store::retry::Backoff,
};

impl Agent {
    /// Claims the MACs of this host's endpoints that need a claim and have none, once the store has
    /// been read. Ends when all are claimed, or when the agent stops.
    pub(crate) async fn claim_macs(&self) {
        let shared = &self.shared;
        if !shared.wait_ready().await {
            return;
        }
        let unclaimed = shared.view().unclaimed_macs(&shared.node.name);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for (network, id) in unclaimed {
            loop {
                let plan = |view: &View| Ok(((), ops::claim_mac(view, &network, &id)?));
                match shared.execute(plan).await {
                    Ok(_) => {
                        tracing::info!("endpoint {id} in network '{network}': its MAC is claimed");
                        break;
                    }
                    // It is gone.
                    Err(ExecuteError::Refused(_)) => break,
                    Err(error) => tracing::debug!("endpoint {id}: MAC not claimed yet: {error}"),
                }
                tokio::select! {
                    () = shared.ending.shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                }
            }
        }
    }
}
