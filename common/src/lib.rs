//! Types that the BPF programs and the agent share, and the packet decisions as pure functions.
//!
//! * [`abi`]: keys, values and names of the BPF maps, counters, drop reasons.
//! * [`wire`]: packet headers as big-endian byte fields with accessors.
//! * [`datapath`]: packet decisions, without maps, packet access and BPF helpers.
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod datapath;
pub mod wire;
