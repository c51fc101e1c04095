//! Device pairs of endpoints: the slow work of the engine.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use tokio::time::{Duration, Instant};

use super::{
    Engine,
    queue::{Retry, Work},
};
use crate::{
    agent::{
        agreed,
        containers::Origin,
        platform::{PlugError, PluggedPair},
        state::PlugState,
    },
    api::types::ErrorKind,
    model::{ENDPOINTS, Name},
    reconcile::{LocalEndpoint, local_endpoint},
    store::Revision,
};

/// The longest pause between two attempts to plug or unplug an endpoint.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Engine {
    /// Does one piece of work.
    pub(super) async fn do_one_work(&mut self) {
        match self.work.pop_first() {
            Some(Work::Unplug(id)) => self.unplug(id).await,
            Some(Work::Plug(id)) => self.plug(id).await,
            None => {}
        }
    }

    /// The device pair that the host should have for an endpoint, and the revision of its record.
    /// `None`: it should have none.
    fn wanted(&self, id: &str) -> Option<(LocalEndpoint, Revision)> {
        let name = self.local.get(id)?;
        let view = self.shared.view();
        let network = view.usable_network(name).ok()?;
        let endpoint = view.endpoint(name, id)?;
        Some((local_endpoint(network, &endpoint), endpoint.revision))
    }

    async fn plug(&mut self, id: String) {
        let Some((endpoint, revision)) = self.wanted(&id) else { return };
        let plugged = match self.adopted_process_gone(&endpoint) {
            Some(error) => Err(error),
            None => self.plug_into(&endpoint).await,
        };
        let problem = format!("endpoint/{id}");
        match plugged {
            Ok(PluggedPair { ifindex, found }) => {
                self.retries.remove(&id);
                self.note_host_side(&id, ifindex, &endpoint.container, &endpoint.network);
                if let Some(found) = found {
                    let line = format!("container '{}': {found}", endpoint.container);
                    self.shared.shown.repairs.note("container interface", line);
                }
                self.containers.insert(id.clone(), endpoint.container.clone());
                let former = self.ifindexes.insert(id.clone(), ifindex);
                if former != Some(ifindex) {
                    self.mark_own(&endpoint.network, &id, former);
                }
                let record = self.shared.view().endpoint(&endpoint.network, &id);
                if self.note_ports(&id, record.as_deref()) {
                    self.hold_ports(false);
                }
                self.write_maps().await;
                if self.dirty.contains(&endpoint.network) {
                    // The maps could not be written. The problem of the network says why.
                    self.fail(
                        &id,
                        PlugError::Refused(
                            ErrorKind::Unavailable,
                            format!("network '{}': its maps cannot be written", endpoint.network),
                        ),
                    );
                    return;
                }
                self.shared.plugs.set(&id, Some(PlugState::Ready { revision }));
                self.shared.shown.problems.set(&problem, None);
            }
            Err(error) => {
                let line = format!(
                    "container '{}' in network '{}': {}; trying again",
                    endpoint.container,
                    endpoint.network,
                    error.message()
                );
                // The request that waits for the first attempt reports its error.
                if self.retries.contains_key(&id) {
                    self.shared.shown.problems.set(&problem, Some(line));
                }
                match error {
                    // The sandbox is gone, and the device pair with it.
                    PlugError::Absent(_) => self.drop_port(&id),
                    // A device pair that was plugged before stays in use: it lacks the change that
                    // was refused. If the device pair is gone, the kernel sends an event.
                    PlugError::Covers(_) | PlugError::Refused(..) => {}
                }
                self.fail(&id, error);
            }
        }
    }

    async fn plug_into(&self, endpoint: &LocalEndpoint) -> Result<PluggedPair, PlugError> {
        let platform = &self.shared.platform;
        if self.shared.requests.attempts.is_failed(&endpoint.id) {
            // Its sandbox was removed. A new one would belong to no container.
            return Err(PlugError::Absent(format!(
                "container '{}': an attempt that has failed: it is taken back when the store answers",
                endpoint.container
            )));
        }
        agreed::check(&self.shared, endpoint).await?;
        if endpoint.sandbox.owned {
            let running = self.running(&endpoint.container);
            platform.ensure_sandbox(&endpoint.container, running).await?;
        }
        platform.plug(endpoint).await
    }

    /// The error of an endpoint whose namespace was adopted by process number, if that process is
    /// gone: the kernel may give the number to a process in another namespace.
    fn adopted_process_gone(&self, endpoint: &LocalEndpoint) -> Option<PlugError> {
        let process = self.shared.containers().get(&endpoint.container)?.adopted?;
        if process.lives() {
            return None;
        }
        Some(PlugError::Absent(format!(
            "process {} is gone, and its network namespace with it: 'culvert detach {}', then attach its successor",
            process.pid, endpoint.container
        )))
    }

    /// Notes that an endpoint could not be plugged in.
    fn fail(&mut self, id: &str, error: PlugError) {
        self.postpone(id, &error);
        self.shared.plugs.set(id, Some(PlugState::Failed(error)));
    }

    /// Decides when to try again: each second for a sandbox that does not exist, after
    /// growing pauses for everything else.
    fn postpone(&mut self, id: &str, error: &PlugError) {
        let shortest = self.periods.retry;
        let pause = match (error, self.retries.get(id)) {
            (PlugError::Covers(_) | PlugError::Refused(..), Some(before)) => {
                (before.pause * 2).min(LONGEST_PAUSE)
            }
            _ => shortest,
        };
        let is_covered = matches!(error, PlugError::Covers(_));
        self.retries.insert(id.to_owned(), Retry::new(Instant::now(), pause, is_covered));
        let network = self.local.get(id).filter(|_| is_covered);
        if let Some(name) = network.filter(|name| !self.barred.contains_key(*name))
            && let Some(network) = self.shared.view().networks.get(name)
        {
            let subnets = network.subnets.iter().map(|subnet| subnet.subnet);
            self.barred.insert(name.clone(), subnets.collect());
        }
    }

    /// Schedules an early retry of the endpoints that were refused because of routes of the host,
    /// in networks with a subnet that `may_be_free` now.
    pub(super) fn hasten(&mut self, may_be_free: impl Fn(IpNetwork) -> bool) {
        for (name, subnets) in &self.barred {
            if !self.hastened.contains(name) && subnets.iter().any(|subnet| may_be_free(*subnet)) {
                self.hastened.insert(name.clone());
            }
        }
    }

    /// Queues the failed work whose next attempt is due.
    pub(super) fn retry(&mut self) {
        let now = Instant::now();
        let hastened = std::mem::take(&mut self.hastened);
        let mut barred = BTreeSet::new();
        for (id, retry) in self.retries.iter_mut().filter(|(_, retry)| retry.is_covered) {
            if let Some(network) = self.local.get(id) {
                barred.insert(network);
                if hastened.contains(network) {
                    retry.hasten();
                }
            }
        }
        self.barred.retain(|network, _| barred.contains(network));
        let due = self.retries.iter().filter(|(_, retry)| retry.at <= now);
        self.work.extend(due.map(|(id, _)| match self.local.contains_key(id) {
            true => Work::Plug(id.clone()),
            false => Work::Unplug(id.clone()),
        }));
    }

    async fn unplug(&mut self, id: String) {
        if self.local.contains_key(&id) {
            return;
        }
        // The view does not have the endpoint, so its entries are already out of the maps.
        let ifindex = self.ifindexes.get(&id).copied();
        let problem = format!("endpoint/{id}");
        match self.shared.platform.unplug(&id, ifindex).await {
            Ok(()) => {
                self.ifindexes.remove(&id);
                self.forget_host_side(&id);
                self.retries.remove(&id);
                self.shared.plugs.set(&id, None);
                self.replug_siblings(&id);
                self.shared.shown.problems.set(&problem, None);
            }
            Err(error) => {
                let line = format!(
                    "endpoint {id}: it cannot be removed from this host: {}; trying again",
                    error.message()
                );
                self.shared.shown.problems.set(&problem, Some(line));
                self.postpone(&id, &error);
                self.shared.plugs.set(&id, Some(PlugState::Stuck(error)));
            }
        }
    }

    /// Queues endpoints whose sandbox was removed by another program while a process keeps the
    /// namespace alive: the interface stays, so the kernel sends no event.
    pub(super) fn find_lost_sandboxes(&mut self) {
        let ready =
            |id: &&String| self.ifindexes.contains_key(*id) && !self.retries.contains_key(*id);
        let lost = self.local.keys().filter(ready).filter(|id| {
            self.wanted(id).is_some_and(|(endpoint, _)| {
                endpoint.sandbox.owned && !self.shared.platform.sandbox_exists(&endpoint.container)
            })
        });
        let lost: Vec<_> = lost.cloned().map(Work::Plug).collect();
        self.work.extend(lost);
    }

    /// The process number of a container's command. `None`: it does not run.
    fn running(&self, container: &Name) -> Option<i32> {
        let process = self.shared.containers().get(container)?.process?;
        process.lives().then_some(process.pid)
    }

    /// Makes the missing sandboxes that Culvert owns, with a network or without.
    pub(super) async fn revive_sandboxes(&self) {
        let owned: Vec<_> = {
            let containers = self.shared.containers();
            let owned = containers.iter().filter(|record| record.origin == Origin::Owned);
            owned.map(|record| record.name.clone()).collect()
        };
        for name in owned {
            let made = self.shared.platform.ensure_sandbox(&name, self.running(&name)).await;
            // The lock is held until the problem is set: a container that is removed meanwhile has
            // none.
            let containers = self.shared.containers();
            let failed = made.err().filter(|_| containers.get(&name).is_some());
            let line = failed.map(|error| format!("container '{name}': {}", error.message));
            self.shared.shown.problems.set(&format!("sandbox/{name}"), line);
        }
    }

    /// Queues the removal of device pairs whose endpoints are not on this host in the store, and
    /// removes attachments without a device pair.
    pub(super) async fn find_strays(&mut self) {
        let plugged = match self.shared.platform.plugged().await {
            Ok(plugged) => plugged,
            Err(error) => {
                self.shared.shown.problems.set("links", Some(error.message().to_owned()));
                return;
            }
        };
        self.shared.shown.problems.set("links", None);
        // A device pair that was made again and then refused differs as well: the map has the
        // ifindex of the former pair.
        let differs = |(id, ifindex): &(&String, &u32)| plugged.get(*id) != Some(*ifindex);
        let gone: Vec<String> =
            self.ifindexes.iter().filter(differs).map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.drop_port(&id);
        }
        let kept: BTreeSet<String> = {
            let view = self.shared.view();
            // An endpoint that is unusable or unreadable is still one of this host.
            let own = view.endpoints_on(&self.shared.node.name).map(|ep| ep.id.clone());
            let unreadable = view.problems.keys().filter(|key| key.starts_with(ENDPOINTS));
            own.chain(unreadable.filter_map(|key| Some(key.rsplit_once('/')?.1.to_owned())))
                .collect()
        };
        for (id, ifindex) in &plugged {
            if !self.local.contains_key(id) && !kept.contains(id) {
                self.ifindexes.insert(id.clone(), *ifindex);
                self.work.insert(Work::Unplug(id.clone()));
            }
        }
        let stand: BTreeSet<u32> =
            plugged.into_values().chain(self.gateways.values().copied()).collect();
        let retained = self.shared.platform.retain_attachments(&stand);
        let line = retained.err().map(|error| format!("{error}; trying again"));
        self.shared.shown.problems.set("attachments", line);
    }
}
