//! What can go wrong with a sandbox.

use std::{io, path::PathBuf};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::netlink::NetlinkError;

/// Why an operation on a sandbox failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The name of a sandbox to make is in use.
    #[error("sandbox {} exists already: choose another name, or remove it with 'ip netns del'", .0.display())]
    Taken(PathBuf),
    /// Nothing is at that path.
    #[error("network namespace {} does not exist: a path as in /run/netns/NAME or /proc/PID/ns/net is valid", .0.display())]
    Missing(PathBuf),
    /// There is no such process.
    #[error("process {0} does not exist: the pid of a running process is valid")]
    DeadProcess(i32),
    /// Something else is at that path.
    #[error("{} is not a network namespace: a path as in /run/netns/NAME or /proc/PID/ns/net is valid", .0.display())]
    NotNetns(PathBuf),
    /// Missing privilege.
    #[error("{0}: permission denied: run as root, CAP_SYS_ADMIN and CAP_NET_ADMIN are needed")]
    Permission(String),
    /// The interface that a sandbox is to get is in it already and not ours.
    #[error("interface name {ifname} is taken in {}: choose another with --ifname", .sandbox.display())]
    InterfaceTaken {
        /// Interface.
        ifname: String,
        /// Sandbox.
        sandbox: PathBuf,
    },
    /// The host has an interface of that name that is not ours.
    #[error("interface {ifname} of the host is not {owner}: remove it")]
    ForeignInterface {
        /// Interface.
        ifname: String,
        /// Whose it should be.
        owner: String,
    },
    /// The kernel has no IPv6 on the interface that is to have such an address.
    #[error(
        "interface {ifname} cannot have {address}: IPv6 needs an MTU of 1280 or more (it is {mtu}) and a kernel that has IPv6"
    )]
    NoIpv6 {
        /// Interface.
        ifname: String,
        /// Address.
        address: IpNetwork,
        /// MTU, in bytes.
        mtu: u32,
    },
    /// An interface, address or route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// The operation and what it was applied to.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl SandboxError {
    /// An error of the kernel while doing `what`.
    pub(super) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Permission(what),
            _ => Self::Io { what, source },
        }
    }
}
