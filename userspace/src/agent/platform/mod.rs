//! Operations of the agent on its host. Tests implement the traits by a host without a kernel.
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
    maps::{Audit, Maps},
    ports::Ports,
    types::{Adopted, Facts, Holder, HostEvent, Paths, PlugError, PortError, PortHold, Remote},
    underlay::{Underlay, UplinkCheck},
};

/// A host: all four traits.
pub(crate) trait Platform: Devices + Maps + Underlay + Ports {}

impl<T: Devices + Maps + Underlay + Ports> Platform for T {}
