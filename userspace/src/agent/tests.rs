//! Agents on a simulated host ([`paper`]), with the embedded store.
//!
//! The engine, the API and the node's entry are the real ones; only the kernel is simulated.
//! Several agents share one store, as hosts do.

mod addresses;
mod away;
mod commands;
mod denied;
mod doubt;
mod egress;
mod fake;
mod faults;
mod gate;
mod host;
mod lifecycle;
mod modes;
mod names;
mod nat;
mod nodes;
mod paper;
mod path_mtu;
mod ports;
mod records;
mod refusals;
mod repairs;
mod replaced;
mod requests;
mod unfinished;
