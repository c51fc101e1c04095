//! Desired and observed state, their difference, its application.
//!
//! * [`Tables`]: the contents of the maps that the agent writes, as values.
//! * [`NetworkState`] and [`network_state`]: what one network needs on this
//!   host, computed from the view of the store; pure.
//! * [`Patch`] and [`network_patch`]: what a few endpoints of other hosts change in it,
//!   without the others being looked at; pure.
//! * [`diff()`]: the ordered steps from one set of tables to another; pure.
//! * [`Reconciler`]: remembers what the kernel holds, network by network, so
//!   that a change in one network costs nothing for the others.
//! * [`Observed`]: what the maps held when they were read, which may take place
//!   while the reconciler writes them.
//!
//! A network without an endpoint on this host has no state here at all: a host
//! carries the cost of the networks that it takes part in, however many there are.

mod desired;
mod diff;
mod flood;
mod kernel;
mod objects;
mod observed;
mod patch;
mod reconciler;
mod tables;
#[cfg(test)]
mod tests;

pub use desired::{Bum, Inputs, network_state};
pub use diff::{Op, diff};
pub use flood::assign_slots;
pub use kernel::Kernel;
pub use objects::{LocalEndpoint, gateway_device, local_endpoint};
pub use observed::Observed;
pub use patch::{Changed, Patch, network_patch};
pub use reconciler::{ApplyError, Counts, Reconciler};
pub use tables::{Gateway, NetworkState, Tables};
