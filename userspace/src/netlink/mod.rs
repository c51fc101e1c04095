//! Links, addresses, routes and neighbours, through rtnetlink.
//!
//! A [`Netlink`] works in the network namespace it was made for, whatever
//! thread calls it: a netlink socket stays in the namespace where it was
//! opened. Interfaces go by their name, which is unique in a namespace; the
//! kernel resolves it while it handles the request. Every operation that
//! changes something is idempotent: it makes true what it says and does not
//! mind if it was true before.

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

pub use error::NetlinkError;
pub use ethtool::{ENCAPSULATION_OFFLOADS, RX_GRO, RX_UDP_GRO_FORWARDING};
pub use handle::Netlink;
pub use link::{Link, check_ifname};
pub use monitor::{Event, Monitor};
pub use neighbour::Neighbour;
pub use pair::{PairKind, PairSpec, try_pair};
pub use route::{Route, RouteInfo};

/// Answer of this module.
pub type Result<T, E = NetlinkError> = std::result::Result<T, E>;
