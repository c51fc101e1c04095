//! What is known of the destinations that are closed to containers.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Destinations that are closed to containers. What is not known yet stays as the last agent has
/// closed it.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// Members of the store.
    pub(super) members: Vec<SocketAddrV4>,
    /// No other member is to be closed. `false`: the addresses of some are not known yet.
    pub(super) are_all: bool,
    /// VTEP addresses of the other hosts. `None`: the store is not read yet.
    pub(super) peers: Option<Vec<Ipv4Addr>>,
}
