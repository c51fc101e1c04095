//! Agents on a host of paper, with the embedded store.
//!
//! The engine, the API and the node's entry are the real ones; only the kernel is
//! not. Several agents share one store, as hosts do.

mod fake;
mod faults;
mod lifecycle;
mod modes;
mod nat;
mod paper;
mod ports;
mod refusals;
mod requests;
