//! The networks of this host's containers, kept on disk for `ps` while the store does not
//! answer.

use std::{collections::BTreeSet, io, time::Duration};

use super::{Agent, rows};
use crate::{
    agent::containers::{KnownNetworks, Origin, Record},
    model::Name,
};

/// Pause before a record that could not be written is written again.
const AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    /// Notes the networks of the containers in their records when they change, until the agent
    /// stops.
    pub(crate) async fn keep_known(&self) {
        let shared = &self.shared;
        if !shared.wait_ready().await {
            return;
        }
        // At first, and after a failure, all of them.
        let mut these = None;
        loop {
            let noted = tokio::task::block_in_place(|| self.note_networks(these.as_ref()));
            let failed = noted.map_err(|error| shared.disk.refuse("records of containers", error));
            tokio::select! {
                () = shared.ending.shutdown.cancelled() => return,
                () = shared.regrouped.wait() => {}
                () = tokio::time::sleep(AGAIN), if failed.is_err() => {}
            }
            these = shared.regrouped.take().filter(|_| failed.is_ok());
        }
    }

    /// Notes the networks of `these` containers; of all if it is `None`.
    fn note_networks(&self, these: Option<&BTreeSet<Name>>) -> io::Result<()> {
        let records: Vec<Record> = {
            let containers = self.shared.containers();
            let own = |record: &&Record| matches!(record.origin, Origin::Owned | Origin::Attached);
            let wanted = |record: &&Record| these.is_none_or(|these| these.contains(&record.name));
            containers.iter().filter(wanted).filter(own).cloned().collect()
        };
        let known: Vec<(Name, KnownNetworks)> = {
            let view = self.shared.view();
            let known = records.into_iter().map(|record| {
                let known = rows::in_store(&view, &self.shared.node.name, &record);
                (record.name, known)
            });
            known.collect()
        };
        for (name, known) in known {
            // `note` waits for the disk: the lock is released between two records, for requests.
            self.shared.containers().note(&name, known)?;
        }
        Ok(())
    }
}
