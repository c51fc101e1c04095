//! Links, addresses, routes and neighbours, through rtnetlink.
//!
//! A [`Netlink`] works in the network namespace it was made for, whatever
//! thread calls it: a netlink socket stays in the namespace where it was
//! opened. Interfaces are named by their name, which is unique in a namespace;
//! the kernel resolves it while it handles the request. Every operation that
//! changes something is idempotent: it makes true what it says and does not
//! mind if it was true before.

mod error;
mod signatures;

pub use error::NetlinkError;
pub use signatures::*;

/// Answer of this module.
pub type Result<T, E = NetlinkError> = std::result::Result<T, E>;
