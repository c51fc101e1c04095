//! Desired and observed state of the maps, the steps between them, and their application.
//!
//! * [`Tables`]: the contents of the maps that the agent writes, as values.
//! * [`NetworkState`] and [`network_state`]: the desired state of one network on this host,
//!   computed from the view of the store; pure.
//! * [`Patch`] and [`network_patch`]: the changes to that state when a few endpoints change; the
//!   other endpoints are not read; pure.
//! * [`diff()`]: the ordered steps from one set of tables to another; pure.
//! * [`Reconciler`]: keeps a copy of what the kernel holds of each network, so that a change
//!   in one network costs nothing for the others.
//! * [`Observed`]: the contents of the maps when they were read. The reconciler may write them
//!   during the read.
//!
//! A network without an endpoint on this host has no entry in its maps: the cost of a host
//! follows from the networks that it takes part in, not from the number of networks.

mod changes;
mod desired;
mod diff;
mod flood;
mod held;
mod kernel;
mod moves;
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
pub use held::Held;
pub use kernel::Kernel;
pub use objects::{LocalEndpoint, gateway_device, local_endpoint};
pub use observed::Observed;
pub use patch::{Changed, Patch, network_patch};
pub use reconciler::{ApplyError, EntryCounts, Reconciler};
pub use tables::{Gateway, NetworkState, Tables};
