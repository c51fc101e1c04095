//! Operations of the agent on its host. Tests implement the traits by a host without a kernel.
//!
//! * [`Commands`]: commands of containers.
//! * [`Devices`]: devices and sandboxes of containers, gateway devices.
//! * [`Maps`]: the maps of the BPF programs.
//! * [`Underlay`]: uplinks, routes, changes.
//! * [`Ports`]: ports of the host and the processes that have them.

mod commands;
mod devices;
mod maps;
mod ports;
mod types;
mod underlay;

pub(crate) use self::{
    commands::Commands,
    devices::Devices,
    maps::{Audit, Maps},
    ports::Ports,
    types::{
        Adopted, ClientLinks, Files, FoundSupervisor, Holder, HostEvent, Launch, Made, NodeFacts,
        OtherLinks, Paths, PlugError, PluggedPair, PortError, PortHold, Remote, UplinkChoice,
        UplinkFault, Wanted,
    },
    underlay::{Underlay, UplinkCheck},
};

/// A host: all five traits.
pub(crate) trait Platform: Commands + Devices + Maps + Underlay + Ports {}

impl<T: Commands + Devices + Maps + Underlay + Ports> Platform for T {}
