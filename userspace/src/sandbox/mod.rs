//! Network namespaces and what is put into them.
//!
//! * [`Sandbox`]: a namespace, made as `ip netns add` makes it.
//! * [`plug`] and [`unplug`]: the veth pair between the host and a sandbox.
//! * [`plug_gateway`]: the device that is a network's gateway on this host.
//! * [`supervise`]: programs that run in a sandbox.

mod attach;
mod detach;
mod error;
mod exec;
mod gateway;
mod mounts;
mod netns;
mod signals;
mod sysctl;

pub use attach::{
    PlugSpec, Plugged, alias_of, endpoint_of, free_ifname, host_ifname, open_port, plug,
    plug_closed, unplug,
};
pub use detach::{spawn_detached, supervise_detached};
pub use error::SandboxError;
pub use exec::{ExecError, SuperviseSpec, supervise};
pub use gateway::{
    GatewaySpec, allow_loopback, gateway_ifname, gateway_of, keep_forwarding, open_gateway,
    plug_gateway, unplug_gateway,
};
pub use netns::{NetnsId, Sandbox, run_in, same_namespace};

/// Answer of this module.
pub type Result<T, E = SandboxError> = std::result::Result<T, E>;
