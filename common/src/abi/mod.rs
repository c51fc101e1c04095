//! The contract between the BPF programs and the agent.
//!
//! Everything here is `repr(C)`, without padding, and [`bytemuck::Pod`], so
//! that a map entry is the same bytes on both sides. Addresses are in network
//! byte order (the bytes as on the wire); interface indices, VNIs, lengths and
//! times are native integers.
//!
//! A change to anything in this module that an agent of another version could
//! misread must raise [`ABI_VERSION`].

mod counters;
mod maps;
mod nat;

pub(crate) use counters::coded;
pub use counters::{
    Action, Code, Counter, Direction, DropReason, Note, STATS_ENTRIES, stats_index,
};
pub use maps::*;
pub use nat::*;

/// Version of the map layout. Pins live under a directory of this number, so
/// that an agent never opens maps whose bytes it would misread.
pub const ABI_VERSION: u32 = 3;
