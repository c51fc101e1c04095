//! Packet decisions, as functions of values.
//!
//! The functions do not read maps or packets and call no BPF helpers, so that unit tests cover
//! them, and they compile for the kernel and the host. Lengths are in bytes, times in
//! nanoseconds; VNIs, ports and hashes are native integers, addresses are in network order.

pub mod arp;
pub mod conntrack;
pub mod decap;
pub mod ecn;
pub mod encap;
pub mod learn;
pub mod membership;
pub mod nat;
pub mod nd;
pub mod pmtu;
pub mod publish;
pub mod rate;
pub mod segment;
pub mod source;
pub mod tunnel_source;

#[cfg(test)]
mod tests;
