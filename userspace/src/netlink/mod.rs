//! Links, addresses, routes, neighbours, sockets and features of devices.
//!
//! A [`Netlink`] works in the network namespace in which it was opened, whatever thread calls it;
//! [`sockets`] works in that of the calling thread. An interface is named, and the kernel
//! resolves the name, which is unique in a namespace, while it handles the request. Every
//! operation that changes something is idempotent: it is no error if the change was made before.

mod address;
mod error;
mod ethtool;
mod handle;
mod link;
mod monitor;
mod neighbour;
mod netdev;
mod pair;
mod route;
pub mod sockets;

pub use error::NetlinkError;
pub use ethtool::{ENCAPSULATION_OFFLOADS, RX_GRO, RX_UDP_GRO_FORWARDING};
pub use handle::Netlink;
pub use link::{Link, check_ifname};
pub use monitor::{Event, Monitor};
pub use neighbour::Neighbour;
pub use pair::{PairKind, PairSpec, try_pair};
pub use route::{Route, RouteInfo};

/// Result of an operation of this module.
pub type Result<T, E = NetlinkError> = std::result::Result<T, E>;
