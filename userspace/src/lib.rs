//! Culvert: a container network for Linux hosts.
//!
//! The library behind the `culvert` binary. From the bottom up:
//!
//! * [`model`]: validated types: networks, endpoints, nodes, VNIs.
//! * [`store`]: the state shared by all hosts, in etcd or in a local file.
//! * [`ipam`]: which address an endpoint gets.
//! * [`datapath`]: loads, pins and attaches the BPF programs; typed maps.
//! * [`netlink`] and [`sandbox`]: links, addresses, routes; namespaces.
//! * [`reconcile`]: desired and observed state, their difference, its application.
//! * [`choice`]: which hook takes VXLAN in, which devices containers get, and why.
//! * [`doctor`]: what the host lacks, and what to do about it.
//! * [`agent`]: wires the above together.
//! * [`api`] and [`cli`]: how people and scripts talk to the agent.

pub mod agent;
pub mod api;
pub mod choice;
pub mod cli;
pub mod datapath;
pub mod doctor;
pub mod ipam;
pub mod model;
pub mod netlink;
pub mod reconcile;
pub mod sandbox;
pub mod store;
