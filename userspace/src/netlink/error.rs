//! What can go wrong, with the interface named.

use std::{io, net::IpAddr};

/// Why a netlink operation failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No interface has this name.
    #[error("interface {0} does not exist in this network namespace: see 'ip link'")]
    NoSuchInterface(String),
    /// Another interface has this name.
    #[error("interface name {0} is taken: remove that interface or choose another name")]
    NameTaken(String),
    /// An interface cannot be called this.
    #[error(
        "interface name {0:?} is malformed: 1 to 15 bytes without '/', ':' or white space are valid"
    )]
    MalformedName(String),
    /// The kernel refuses this MTU.
    #[error("interface {interface}: MTU {mtu} is refused by the kernel: {} to {} is valid", min, max)]
    Mtu {
        /// Interface.
        interface: String,
        /// What was asked for.
        mtu: u32,
        /// Least valid MTU.
        min: u32,
        /// Greatest valid MTU.
        max: u32,
    },
    /// No route leads there.
    #[error("no route to {0}: add one, or bring up the uplink that leads there")]
    NoRoute(IpAddr),
    /// Missing privilege.
    #[error("{0}: permission denied: CAP_NET_ADMIN is needed, run as root")]
    Permission(String),
    /// The kernel refused for another reason.
    #[error("{what}: {source}")]
    Kernel {
        /// The operation and what it was applied to.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel gave no answer, or one that makes no sense.
    #[error("{what}: {detail}")]
    Protocol {
        /// The operation and what it was applied to.
        what: String,
        /// What came instead of an answer.
        detail: String,
    },
}
