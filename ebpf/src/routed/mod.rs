//! Packets that are routed or translated. Only `from_*` and `publish` use
//! [`Work`](work::Work).

pub(crate) mod from_container;
pub(crate) mod from_external;
pub(crate) mod from_forwarded;
pub(crate) mod from_loopback;
pub(crate) mod from_peer_host;
mod icmp_error;
mod parse;
mod publish;
mod work;
