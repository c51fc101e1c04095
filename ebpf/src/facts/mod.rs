//! What a packet says of itself and of its sender. Reads only.

pub(crate) mod gso;
pub(crate) mod inner;
pub(crate) mod membership;
pub(crate) mod outer;
pub(crate) mod routed;
pub(crate) mod sender;
