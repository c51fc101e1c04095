//! The interface between the API server and the agent.

use async_trait::async_trait;

use super::types::{
    AddressChange, Allowed, ApiError, Connect, ContainerCreate, ContainerRow, ContainerState,
    Created, FdbRow, NatPage, NatQuery, NatRow, NeighRow, NetworkCreate, NetworkInspect,
    NetworkRow, NodeRow, PublishedPorts, Sources, StatsRow, Status, VtepChange, VtepRow,
};
use crate::model::Name;

/// The agent, as the API server calls it. A request that fails leaves the state unchanged.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// `network create`.
    async fn network_create(&self, request: NetworkCreate) -> Result<Created, ApiError>;
    /// `network ls`.
    async fn networks(&self) -> Result<Vec<NetworkRow>, ApiError>;
    /// `network inspect`.
    async fn network_inspect(&self, name: &Name) -> Result<NetworkInspect, ApiError>;
    /// `network rm`.
    async fn network_remove(&self, name: &Name) -> Result<(), ApiError>;
    /// `network connect`.
    async fn connect(&self, network: &Name, request: Connect) -> Result<ContainerRow, ApiError>;
    /// `network disconnect`; also `detach NAME --network NET`.
    async fn disconnect(&self, network: &Name, container: &Name) -> Result<(), ApiError>;
    /// `network address add`.
    async fn address_add(&self, network: &Name, request: AddressChange) -> Result<(), ApiError>;
    /// `network address rm`.
    async fn address_remove(&self, network: &Name, request: AddressChange) -> Result<(), ApiError>;
    /// `run` and `attach`: makes or adopts the sandbox and attaches it, without starting a process.
    async fn container_create(&self, request: ContainerCreate) -> Result<ContainerRow, ApiError>;
    /// The state report of `run`'s supervisor.
    async fn container_state(&self, name: &Name, state: ContainerState) -> Result<(), ApiError>;
    /// `ps`.
    async fn containers(&self) -> Result<Vec<ContainerRow>, ApiError>;
    /// `rm` (a running process is killed only with `force`) and `detach`.
    async fn container_remove(&self, name: &Name, force: bool) -> Result<(), ApiError>;
    /// `fdb show`.
    async fn fdb(&self) -> Result<Vec<FdbRow>, ApiError>;
    /// `neigh show`.
    async fn neighbours(&self) -> Result<Vec<NeighRow>, ApiError>;
    /// The flows that match the query.
    async fn nat(&self, query: NatQuery) -> Result<Vec<NatRow>, ApiError>;
    /// `nat ls`: the flows of a part of the table that match the query.
    async fn nat_page(&self, query: NatQuery) -> Result<NatPage, ApiError>;
    /// `ports ls`.
    async fn ports(&self) -> Result<PublishedPorts, ApiError>;
    /// `ports deny`. Idempotent.
    async fn ports_deny(&self, sources: Sources) -> Result<(), ApiError>;
    /// `ports allow`. Idempotent.
    async fn ports_allow(&self, sources: Sources) -> Result<Allowed, ApiError>;
    /// `vtep ls`.
    async fn vteps(&self) -> Result<Vec<VtepRow>, ApiError>;
    /// `vtep add`.
    async fn vtep_add(&self, request: VtepChange) -> Result<(), ApiError>;
    /// `vtep rm`.
    async fn vtep_remove(&self, request: VtepChange) -> Result<(), ApiError>;
    /// `node ls`.
    async fn nodes(&self) -> Result<Vec<NodeRow>, ApiError>;
    /// `node rm`: removes a node of another host with its endpoints and their addresses (one that
    /// is alive only with `force`).
    async fn node_remove(&self, name: &Name, force: bool) -> Result<(), ApiError>;
    /// `stats`: every counter that is not zero, and the number of flows by state.
    async fn stats(&self) -> Result<Vec<StatsRow>, ApiError>;
    /// `status`.
    async fn status(&self) -> Result<Status, ApiError>;
    /// `store accept`: the agent follows the store that has replaced the earlier one. It is an
    /// error if the store has not been replaced.
    async fn store_accept(&self) -> Result<(), ApiError>;
    /// `purge`: removes all objects of this node from the store and the kernel. Then the agent
    /// exits.
    async fn purge(&self) -> Result<(), ApiError>;
}
