//! Published ports, and the clients that may not use them.

use std::sync::Arc;

use culvert_common::abi::DropReason;
use ipnetwork::Ipv4Network;

use super::{Agent, internal, invalid};
use crate::{
    agent::shared::Shared,
    api::{
        deadline,
        types::{Allowed, ApiError, PublishedPorts, PublishedRow, Sources, may_have_clients},
    },
    model::{ipv4_source, spell_source},
};

impl Agent {
    pub(super) fn show_ports(&self) -> Result<PublishedPorts, ApiError> {
        let mut published = Vec::new();
        // The row of a container that shares a namespace repeats the ports of the namespace owner.
        let owners = self.list_containers().into_iter().filter(|row| row.shares.is_none());
        for container in owners {
            for network in container.networks {
                published.extend(network.ports.into_iter().map(|port| PublishedRow {
                    container: container.name.clone(),
                    network: network.name.clone(),
                    port,
                    from: network.from.clone(),
                }));
            }
        }
        let has_clients = published.iter().any(|row| may_have_clients(&row.port));
        let links = has_clients.then(|| self.shared.platform.client_links());
        Ok(PublishedPorts {
            published,
            unserved: links.unwrap_or_default().unserved,
            denied: self.shared.denied.sources().into_iter().map(spell_source).collect(),
            dropped: self
                .shared
                .platform
                .dropped(DropReason::Denied)
                .map_err(|error| internal(&error))?,
        })
    }

    pub(super) async fn deny(&self, sources: &Sources) -> Result<(), ApiError> {
        let sources = read(sources)?;
        self.apart(move |shared| shared.denied.deny(&*shared.platform, &shared.disk, &sources))
            .await
    }

    pub(super) async fn allow(&self, sources: &Sources) -> Result<Allowed, ApiError> {
        let sources = read(sources)?;
        let still = self
            .apart(move |shared| shared.denied.allow(&*shared.platform, &shared.disk, &sources))
            .await?;
        Ok(Allowed { still })
    }

    /// Runs `change` on a thread for blocking work, because `change` writes to the disk and reads
    /// the table of flows.
    async fn apart<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Shared) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        deadline::check()?;
        let shared = Arc::clone(&self.shared);
        let changed = tokio::task::spawn_blocking(move || change(&shared)).await;
        changed.map_err(|error| internal(&error))?
    }
}

/// The sources of a request.
fn read(sources: &Sources) -> Result<Vec<Ipv4Network>, ApiError> {
    if sources.sources.is_empty() {
        return Err(invalid(
            "sources: none is named: an address or prefix as in 192.0.2.0/24 is valid",
        ));
    }
    let read = sources.sources.iter().map(|source| ipv4_source(*source));
    read.collect::<Result<_, _>>().map_err(|refusal| invalid(refusal.0))
}
