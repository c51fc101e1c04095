//! Culvert: a container network for Linux hosts.
//!
//! The library behind the `culvert` binary. Each module is a room; the rooms are in an
//! order, and a room imports only rooms below it. From the top down:
//!
//! * [`cli`]: the command line.
//! * [`agent`]: the process that makes a host match the store.
//! * [`api`]: how the command line and scripts talk to the agent.
//! * [`doctor`]: checks of the host, with advice.
//! * [`choice`]: which hook receives VXLAN, which devices containers get, and why.
//! * [`reconcile`]: desired and observed contents of the maps, their difference, its
//!   application.
//! * [`sandbox`]: devices of containers and networks; programs that run in a sandbox.
//! * [`datapath`]: loads, pins and attaches the BPF programs; typed maps.
//! * [`netlink`]: links, addresses, routes, neighbours.
//! * [`netfilter`]: ports that other systems translate.
//! * [`netns`]: network namespaces.
//! * [`config`]: options of the agent.
//! * [`model`]: records of networks, endpoints and nodes; plans that change them.
//! * [`ipam`]: arithmetic of addresses.
//! * [`store`]: keys, values, watches and transactions, in etcd or in a local file.
//! * [`mountinfo`]: the mounts of a mount namespace.
//! * [`limits`]: limits of the system, named in errors.
//! * [`probe`]: probes of the underlay's paths.
//! * [`printable`]: text of others in the output for people.
//!
//! docs/ARCHITECTURE.md has the table of rooms that `cargo xtask check` reads.
#![warn(clippy::indexing_slicing)]

pub mod agent;
pub mod api;
pub mod choice;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod doctor;
pub mod ipam;
pub mod limits;
pub mod model;
pub mod mountinfo;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod printable;
pub mod private;
pub mod probe;
pub mod reconcile;
pub mod sandbox;
pub mod store;
#[cfg(test)]
mod testing;
