//! What is known of the members of the store that are closed to containers.

use std::net::SocketAddrV4;

/// Members of the store that are closed to containers.
#[derive(Clone, Debug, Default)]
pub(super) struct ClosedStore {
    pub(super) members: Vec<SocketAddrV4>,
    /// No other member is to be closed. `false`: the addresses of some are not known yet.
    pub(super) are_all: bool,
}
