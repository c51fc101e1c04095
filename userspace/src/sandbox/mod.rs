//! The network namespace of a container, its *sandbox*, and its devices on the host.
//!
//! * [`plug`] and [`unplug`]: the device pair between the host and a sandbox.
//! * [`plug_gateway`]: the device that is a network's gateway on this host.
//! * [`keep_gro`], [`keep_room`] and [`Rooms`]: devices that make the BPF programs faster.
//! * [`supervise`]: programs that run in a sandbox; [`may_have`]: capabilities that they can have.
//! * [`start_starter`]: a process that starts supervisors with all privileges of the agent.
//! * [`Resolver`], [`hosts()`]: the contents of a container's files in `/etc`.
//! * [`LogReader`]: what a detached program has printed.

mod assist;
mod attach;
mod covers;
mod detach;
mod error;
mod exec;
mod gateway;
mod hosts;
mod interface;
mod isolation;
mod log;
mod mounts;
mod privileges;
mod resolver;
mod rooms;
mod signals;
mod spec;
mod starter;
mod sysctl;

pub use assist::{
    Assistant, GRO, ROOM, close_gro, is_assistant, is_port_taken, is_room, is_room_ifname,
    keep_gro, keep_lender, keep_room, lender_ifname, open_gro, remove_assistants, room_ifname,
};
pub use attach::{
    Inside, Plugged, alias_of, endpoint_of, free_ifname, host_ifname, keep_quiet, leads_into,
    open_host_side, plug, plug_closed, unplug,
};
pub use detach::{Life, Surroundings, spawn_detached, supervise_detached};
pub use error::SandboxError;
pub use exec::{ExecError, SuperviseSpec, supervise};
pub use gateway::{
    GatewaySpec, allow_loopback, differences as gateway_differences, gateway_ifname, gateway_of,
    is_gateway_ifname, keep_settings as keep_gateway_settings, open_gateway, plug_gateway,
    restore_loopback, unplug_gateway,
};
pub use hosts::{hosts, names_of, readdressed};
pub use interface::forget_rules;
pub use isolation::FirstCommand;
pub use log::{LogLimits, LogReader, ReadError, remove_log};
pub use privileges::may_have;
pub use resolver::{RESOLV_CONF, RESOLVER_ADVICE, ResolvConf, Resolver};
pub use rooms::{Enrolled, Rooms, enrol, fence};
pub use spec::PlugSpec;
pub use starter::{
    follow_starter, serve_starter, spawn_by_starter, start_starter, starter_has_ended,
};

/// Result of this module.
pub type Result<T, E = SandboxError> = std::result::Result<T, E>;
