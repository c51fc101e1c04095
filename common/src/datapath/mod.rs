//! Packet decisions: values in, a decision out.
//!
//! Nothing here reads a map, touches a packet or calls a helper, so that each
//! decision is tested where it is made and compiles for the kernel and the host
//! alike. Lengths are in bytes, times in nanoseconds, VNIs, ports and hashes
//! native integers, addresses bytes in network order.

pub mod arp;
pub mod conntrack;
pub mod decap;
pub mod ecn;
pub mod encap;
pub mod learn;
pub mod nat;
pub mod nd;
pub mod pmtu;
pub mod rate;
pub mod source;

#[cfg(test)]
mod tests;
