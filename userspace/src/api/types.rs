//! Requests and answers of the agent's API. The JSON rows equal those of the CLI's `--format json`.

mod container;
mod error;
mod life;
mod nat;
mod network;
mod node;
mod path;
mod ports;
mod status;
mod tables;

pub use self::{
    container::{AddressChange, Connect, ContainerCreate, ContainerNetwork, ContainerRow},
    error::{ApiError, ErrorKind, one_line},
    life::{ContainerState, Rerun, Supervised},
    nat::{ConntrackShare, ConntrackStatus, FlowProtocol, NatPage, NatQuery, NatRow},
    network::{
        Created, InspectContainer, InspectIpam, InspectPeer, InspectSubnet, NetworkCreate,
        NetworkInspect, NetworkRow,
    },
    node::NodeRow,
    path::PathMtuStatus,
    ports::{Allowed, PublishedPorts, PublishedRow, Sources, may_have_clients},
    status::{
        AgentStatus, ApiConnections, Counts, DatapathStatus, RepairRow, Status, StoreCertificate,
        StoreRead, StoreStatus,
    },
    tables::{FdbRow, NeighRow, StatsRow, VtepChange, VtepRow},
};
