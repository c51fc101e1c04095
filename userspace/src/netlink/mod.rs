//! Links, addresses, routes, neighbours, sockets, filters and device features.
//!
//! A [`Netlink`] works in the network namespace in which it was opened, from any thread;
//! [`sockets`] works in the namespace of the calling thread. Interfaces are given by name: a name
//! is unique in a namespace, and the kernel resolves it while it handles the request. Every
//! operation that changes state is idempotent: a change that was already made is no error.

mod address;
mod announce;
mod error;
mod ethtool;
mod handle;
mod link;
mod monitor;
mod namespaces;
mod neighbour;
mod netdev;
mod pair;
mod route;
mod rule;
pub mod sockets;
mod tc;

pub use address::subnet_of;
pub use announce::{Announcement, announce};
pub use error::NetlinkError;
pub use ethtool::{ENCAPSULATION_OFFLOADS, RX_GRO, RX_UDP_GRO_FORWARDING};
pub use handle::Netlink;
pub use link::{Framing, Link, check_ifname};
pub use monitor::{Event, Monitor};
pub use namespaces::{Heard, Message, NamespaceChange, NamespaceMonitor};
pub use neighbour::Neighbour;
pub use pair::{PairKind, PairSpec, try_pair};
pub use route::{MAIN_TABLE, Route, RouteInfo, default_link};
pub use rule::Rule;

/// Result of an operation of this module.
pub type Result<T, E = NetlinkError> = std::result::Result<T, E>;
