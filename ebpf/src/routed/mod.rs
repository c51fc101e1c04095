//! Packets that are routed or translated. [`Work`](work::Work) is seen by `from_*` alone.

pub(crate) mod from_container;
pub(crate) mod from_external;
pub(crate) mod from_loopback;
pub(crate) mod from_peer_host;
mod icmp_error;
mod parse;
mod publish;
mod work;
