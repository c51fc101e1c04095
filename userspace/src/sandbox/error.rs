//! Errors of operations on a sandbox.

use std::{io, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::{limits::name_limit, netlink::NetlinkError, netns::NetnsError};

/// Why an operation on a sandbox failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A network namespace cannot be made, opened or entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The process lacks the privilege.
    #[error("{0}: permission denied: run as root, CAP_SYS_ADMIN and CAP_NET_ADMIN are needed")]
    Permission(String),
    /// The sandbox has an interface of the wanted name that Culvert did not make.
    #[error("interface name {ifname} is taken in {}: choose another with --ifname", .sandbox.display())]
    InterfaceTaken {
        /// Interface.
        ifname: String,
        /// Sandbox.
        sandbox: PathBuf,
    },
    /// The host has an interface of the wanted name that Culvert did not make.
    #[error("interface {ifname} of the host is not {owner}: remove it")]
    ForeignInterface {
        /// Interface.
        ifname: String,
        /// The endpoint or network that the interface should belong to.
        owner: String,
    },
    /// The host has a route of its own to addresses of a network.
    #[error(
        "subnet {subnet}: this host has a route to {destination} by {device}: remove that route, or use another host or network"
    )]
    RouteTaken {
        /// Subnet of the network.
        subnet: IpNetwork,
        /// Destination of the host's route.
        destination: IpNetwork,
        /// Interface of the host's route.
        device: String,
    },
    /// The next hop of a route of the host has an address of a network.
    #[error(
        "subnet {subnet} has {hop}, the next hop of the route of this host to {destination} by {device}: change that route, or use another host or network"
    )]
    HopTaken {
        /// Subnet of the network.
        subnet: IpNetwork,
        /// Next hop of the host's route.
        hop: IpAddr,
        /// Destination of the host's route.
        destination: IpNetwork,
        /// Interface of the host's route.
        device: String,
    },
    /// The kernel has no IPv6 on an interface that is to get an IPv6 address.
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
    /// The kernel refused an interface, an address or a route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A process whose namespaces were to be entered has ended.
    #[error("process {0}, the command of the container, has ended: try again")]
    CommandEnded(i32),
    /// A process whose namespaces were to be entered has those of the caller.
    #[error(
        "process {0}, the command of the container, is in the namespaces of this program: it was not started with --pid, --ipc, --read-only or --tmpfs, or has left their namespaces, or 'culvert exec' runs inside of them"
    )]
    NotApart(i32),
    /// A process whose namespaces were to be entered has those of another user namespace.
    #[error(
        "process {0}, the command of the container, has moved to namespaces of another user namespace: no second command can enter them safely"
    )]
    OtherUserNamespace(i32),
    /// There are as many namespaces as the kernel permits.
    #[error("{what}: the limit {limits} is reached: raise it with sysctl")]
    NamespaceLimit {
        /// The operation.
        what: &'static str,
        /// Settings of the kernel, one of which is the limit (namespaces(7)).
        limits: &'static str,
    },
    /// The kernel refused for another reason.
    #[error("{what}: {source}")]
    Io {
        /// The operation and what it was applied to.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl SandboxError {
    /// An error of the kernel while doing `what`.
    pub(super) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Permission(what),
            _ => Self::Io { what, source: name_limit(source) },
        }
    }
}
