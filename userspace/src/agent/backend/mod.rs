//! Carries out the requests of the API.
//!
//! A request that changes something is one transaction in the store. The engine applies the
//! change to this host, as it does for changes by other hosts. The request waits for the
//! engine. If the engine fails, the request reverts its transaction.
//!
//! The agent waits for the requests that change something before it ends, also for those whose
//! callers have gone: an agent that starts anew in the same process must not meet them.

mod address;
mod attach;
mod commands;
mod container;
mod doubt;
mod expose;
mod known;
mod lost;
mod macs;
mod names;
mod nat;
mod network;
mod node;
mod ports;
mod purge;
mod resolver;
mod rows;
mod show;
mod unfinished;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use super::{reruns, shared::Shared};
use crate::{
    api::{
        Backend,
        deadline::{self, Wait},
        types::{
            AddressChange, Allowed, ApiError, Connect, ContainerCreate, ContainerRow,
            ContainerState, Created, ErrorKind, FdbRow, NatPage, NatQuery, NatRow, NeighRow,
            NetworkCreate, NetworkInspect, NetworkRow, NodeRow, PublishedPorts, Sources, StatsRow,
            Status, VtepChange, VtepRow,
        },
    },
    model::{
        Name, View,
        ops::{self, ExecuteError},
    },
};

/// The agent, as the API server sees it.
pub(crate) struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes up what an earlier agent has left halfway. To be called once, before the first request.
    pub(crate) fn resume(&self) {
        self.find_unfinished();
        self.resume_attempts();
        // A record that cannot be read is one, too.
        let records = self.shared.options.state_dir.join("containers");
        let has_record =
            |name: &str| records.join(format!("{name}.json")).try_exists().unwrap_or(true);
        let stays = reruns::remove_strays(&self.shared.options.state_dir, has_record);
        self.shared.shown.problems.set_list("reruns/", stays);
    }

    /// Waits until no other request is about this container.
    ///
    /// # Errors
    ///
    /// The caller has given up meanwhile.
    async fn turn(&self, container: &Name) -> Result<OwnedMutexGuard<()>, ApiError> {
        let wait = Wait::Turn(format!("container '{container}'"));
        let turn = deadline::waiting(wait, self.shared.requests.turns.wait(container)).await;
        deadline::check()?;
        Ok(turn)
    }
}

impl Agent {
    /// As [`Self::turn`], and the supervisor of the container is not being started: its command
    /// would survive the container.
    ///
    /// # Errors
    ///
    /// The caller has given up meanwhile.
    async fn turn_after_launch(&self, container: &Name) -> Result<OwnedMutexGuard<()>, ApiError> {
        loop {
            let turn = self.turn(container).await?;
            if !self.shared.requests.launches.is_under_way(container) {
                return Ok(turn);
            }
            // The supervisor needs the turn for its report.
            drop(turn);
            let wait = Wait::Turn(format!("container '{container}'"));
            deadline::waiting(wait, self.shared.requests.launches.ended(container)).await;
            deadline::check()?;
        }
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Invalid, message)
}

fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::NotFound, message)
}

fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Conflict, message)
}

/// The error of a change that has failed. If the store did not answer, the line says what may have
/// happened, and the `command` that shows it. `what` is the object that is made or removed.
fn in_doubt(error: ExecuteError, what: &str, command: &str) -> ApiError {
    match error {
        ExecuteError::InDoubt(error) => ApiError::new(
            ErrorKind::Unavailable,
            format!(
                "{error}: {what} may or may not be in the store, and that may still change: '{command}' shows it when the store answers"
            ),
        ),
        other => other.into(),
    }
}

/// As [`in_doubt`], for a VTEP.
fn vtep_in_doubt(error: ExecuteError, VtepChange { network, ip, .. }: &VtepChange) -> ApiError {
    in_doubt(error, &format!("VTEP {ip} of network '{network}'"), "culvert vtep ls")
}

/// An error that the host causes, not the request.
fn internal(error: &(impl std::fmt::Display + ?Sized)) -> ApiError {
    ApiError::new(ErrorKind::Internal, error.to_string())
}

#[async_trait]
impl Backend for Agent {
    async fn network_create(&self, request: NetworkCreate) -> Result<Created, ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.create_network(request).await
    }

    async fn networks(&self) -> Result<Vec<NetworkRow>, ApiError> {
        self.list_networks().await
    }

    async fn network_inspect(&self, name: &Name) -> Result<NetworkInspect, ApiError> {
        self.inspect_network(name).await
    }

    async fn network_remove(&self, name: &Name) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.remove_network(name).await
    }

    async fn connect(&self, network: &Name, request: Connect) -> Result<ContainerRow, ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(&request.container).await?;
        self.connect_container(network, &request).await
    }

    async fn disconnect(&self, network: &Name, container: &Name) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(container).await?;
        self.disconnect_container(network, container).await
    }

    async fn address_add(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(&request.container).await?;
        self.add_address(network, request).await
    }

    async fn address_remove(&self, network: &Name, request: AddressChange) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(&request.container).await?;
        self.remove_address(network, request).await
    }

    async fn container_create(&self, request: ContainerCreate) -> Result<ContainerRow, ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(&request.name).await?;
        self.create_container(request).await
    }

    async fn container_state(&self, name: &Name, state: ContainerState) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn(name).await?;
        self.set_container_state(name, state).await
    }

    async fn containers(&self) -> Result<Vec<ContainerRow>, ApiError> {
        Ok(self.list_containers())
    }

    async fn container_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        let _turn = self.turn_after_launch(name).await?;
        self.remove_container(name, force).await
    }

    async fn fdb(&self) -> Result<Vec<FdbRow>, ApiError> {
        self.show_fdb()
    }

    async fn neighbours(&self) -> Result<Vec<NeighRow>, ApiError> {
        self.show_neighbours()
    }

    async fn nat(&self, query: NatQuery) -> Result<Vec<NatRow>, ApiError> {
        self.show_nat(query).await
    }

    async fn nat_page(&self, query: NatQuery) -> Result<NatPage, ApiError> {
        self.show_nat_page(query).await
    }

    async fn ports(&self) -> Result<PublishedPorts, ApiError> {
        self.show_ports()
    }

    async fn ports_deny(&self, sources: Sources) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.deny(&sources).await
    }

    async fn ports_allow(&self, sources: Sources) -> Result<Allowed, ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.allow(&sources).await
    }

    async fn vteps(&self) -> Result<Vec<VtepRow>, ApiError> {
        self.show_vteps()
    }

    async fn vtep_add(&self, request: VtepChange) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.shared.usable_store().await?;
        let port = request.port.unwrap_or(self.shared.node.port);
        let own = &self.shared.node.name;
        let plan = |view: &View| {
            ops::add_vtep(view, &view.resolve(&request.network, own), request.ip, port)
        };
        let executed = self.shared.execute(plan).await;
        let (_, revision) = executed.map_err(|error| vtep_in_doubt(error, &request))?;
        self.shared.settled(revision, &format!("VTEP {}", request.ip), || Some(())).await
    }

    async fn vtep_remove(&self, request: VtepChange) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.shared.usable_store().await?;
        let own = &self.shared.node.name;
        let plan = |view: &View| {
            Ok(((), ops::remove_vtep(view, &view.resolve(&request.network, own), request.ip)?))
        };
        let executed = self.shared.execute(plan).await;
        let ((), revision) = executed.map_err(|error| vtep_in_doubt(error, &request))?;
        self.shared.settled(revision, &format!("VTEP {}", request.ip), || Some(())).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>, ApiError> {
        self.list_nodes().await
    }

    async fn node_remove(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.remove_node(name, force).await
    }

    async fn stats(&self) -> Result<Vec<StatsRow>, ApiError> {
        self.show_stats()
    }

    async fn status(&self) -> Result<Status, ApiError> {
        let clock_offset_ms = match self.shared.store.opened() {
            Some(store) if self.shared.store.health().healthy => store.clock_offset_ms().await,
            _ => None,
        };
        Ok(self.show_status(clock_offset_ms))
    }

    async fn store_accept(&self) -> Result<(), ApiError> {
        if self.shared.store.health().replaced.is_none() {
            return Err(conflict(
                "store: it is the one that this agent knows, or does not answer: there is nothing to accept",
            ));
        }
        self.shared.store.accept();
        Ok(())
    }

    async fn purge(&self) -> Result<(), ApiError> {
        let _under_way = self.shared.ending.tasks.token();
        self.purge_node().await?;
        self.shared.ending.shutdown.cancel();
        Ok(())
    }
}
