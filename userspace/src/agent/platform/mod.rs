//! What the agent asks of its host. The traits are the boundary at which tests put a host
//! without a kernel.
//!
//! * [`Devices`]: devices and sandboxes of containers, gateway devices.
//! * [`Maps`]: the maps of the BPF programs.
//! * [`Underlay`]: uplinks, routes, changes.
//! * [`Ports`]: ports of the host and the processes that have them.

mod devices;
mod maps;
mod ports;
mod types;
mod underlay;

pub(crate) use self::{
    devices::Devices,
    maps::Maps,
    ports::Ports,
    types::{Holder, HostEvent, Paths, PlugError, PortError, PortHold},
    underlay::Underlay,
};

/// A host: all of the four.
pub(crate) trait Platform: Devices + Maps + Underlay + Ports {}

impl<T: Devices + Maps + Underlay + Ports> Platform for T {}
