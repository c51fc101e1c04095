//! What Culvert's kernel side and user side must agree on, and every packet
//! decision that can be a pure function.
//!
//! * [`abi`]: keys, values and names of the BPF maps, counters, drop reasons.
//! * [`wire`]: packet headers as big-endian byte fields with accessors.
//! * [`datapath`]: values in, a decision out; no map, no packet, no helper.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod datapath;
pub mod wire;
