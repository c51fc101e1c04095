//! Facts about a packet and its sender. The modules only read.

pub(crate) mod checksum;
pub(crate) mod gso;
pub(crate) mod inner;
pub(crate) mod membership;
pub(crate) mod outer;
pub(crate) mod routed;
pub(crate) mod sender;
pub(crate) mod tunnel_source;
