//! The agent's API for users and scripts: HTTP with JSON on a unix socket.
//!
//! | Method and path | Body | Answer |
//! |---|---|---|
//! | `POST /v1/networks` | [`types::NetworkCreate`] | [`types::Created`] |
//! | `GET /v1/networks` | | array of [`types::NetworkRow`] |
//! | `GET /v1/networks/NAME` | | [`types::NetworkInspect`] |
//! | `DELETE /v1/networks/NAME` | | |
//! | `POST /v1/networks/NAME/containers` | [`types::Connect`] | [`types::ContainerRow`] |
//! | `DELETE /v1/networks/NAME/containers/CONTAINER` | | |
//! | `POST /v1/containers` | [`types::ContainerCreate`] | [`types::ContainerRow`] |
//! | `GET /v1/containers` | | array of [`types::ContainerRow`] |
//! | `DELETE /v1/containers/NAME?force=true` | | |
//! | `POST /v1/containers/NAME/state` | [`types::ContainerState`] | |
//! | `GET /v1/fdb`, `/v1/neighbours`, `/v1/stats` | | array of rows |
//! | `GET /v1/nat?container=NAME&protocol=tcp&address=IP` ([`types::NatQuery`]) | | array of [`types::NatRow`] |
//! | `GET /v1/nat/page?from=N&…`, otherwise as above | | [`types::NatPage`] |
//! | `GET /v1/ports` | | [`types::PublishedPorts`] |
//! | `POST /v1/ports/denied` | [`types::Sources`] | |
//! | `DELETE /v1/ports/denied` | [`types::Sources`] | [`types::Allowed`] |
//! | `GET /v1/vteps` | | array of [`types::VtepRow`] |
//! | `POST` and `DELETE /v1/vteps` | [`types::VtepChange`] | |
//! | `GET /v1/nodes` | | array of [`types::NodeRow`] |
//! | `DELETE /v1/nodes/NAME?force=true` | | |
//! | `GET /v1/status` | | [`types::Status`] |
//! | `POST /v1/store/accept` | | |
//! | `POST /v1/purge` | | |
//!
//! A success is 200 with JSON, or 204 without a body. An error has the status of its
//! [`types::ErrorKind`] and a [`types::ApiError`] as the body. The header of [`deadline`] gives the
//! time until which the client waits for the answer.

mod accept;
mod backend;
mod client;
mod connections;
mod convert;
pub mod deadline;
mod peer;
mod server;
mod socket;
pub mod types;

pub use backend::Backend;
pub use client::{Client, DEFAULT_TIMEOUT, Unreachable};
pub use server::{MAX_BODY, serve};
pub use socket::{BindError, Listener, bind};
