//! The verbs. A verb that only sends requests to the agent takes any
//! [`Backend`](crate::api::Backend).

mod container;
mod doctor;
mod each;
mod local;
mod logs;
mod nat;
mod network;
mod node;
mod ports;
mod run;
mod show;
mod telling;

pub(super) use container::{attach, detach, ps, rm};
pub(super) use doctor::doctor;
pub(super) use local::{agent, completion, purge, starter};
pub(super) use logs::logs;
pub(super) use nat::nat;
pub(super) use network::network;
pub(super) use node::node;
pub(super) use ports::ports;
pub(super) use run::{exec, run, supervise_detached};
pub(super) use show::{fdb, neighbours, stats, status, store_accept, vtep};
