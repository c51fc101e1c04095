//! The networks of this host's containers, kept on disk for `ps` while the store does not
//! answer.

use std::{collections::BTreeMap, io, time::Duration};

use super::{Agent, rows};
use crate::{
    agent::containers::{Known, Origin, Record},
    model::{Endpoint, Name},
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
        loop {
            let noted = tokio::task::block_in_place(|| self.note_networks());
            let failed = noted.map_err(|error| shared.disk.refuse("records of containers", error));
            tokio::select! {
                () = shared.ending.shutdown.cancelled() => return,
                () = shared.networks_changed.notified() => {}
                () = tokio::time::sleep(AGAIN), if failed.is_err() => {}
            }
        }
    }

    fn note_networks(&self) -> io::Result<()> {
        let records: Vec<Record> = {
            let containers = self.shared.containers();
            let own = |record: &&Record| matches!(record.origin, Origin::Owned | Origin::Attached);
            containers.iter().filter(own).cloned().collect()
        };
        let known: Vec<(Name, Known)> = {
            let view = self.shared.view();
            let mut endpoints: BTreeMap<Name, Vec<Endpoint>> = BTreeMap::new();
            for endpoint in view.endpoints_on(&self.shared.node.name) {
                let endpoint = endpoint.record;
                endpoints.entry(endpoint.container.clone()).or_default().push(endpoint);
            }
            let known = records.into_iter().map(|record| {
                let endpoints = endpoints.remove(&record.name).unwrap_or_default();
                let known = rows::with_endpoints(&view, &record, endpoints);
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
