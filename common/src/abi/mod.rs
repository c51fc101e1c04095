//! The contract between the BPF programs and the agent.
//!
//! Everything here is `repr(C)`, without padding, and [`bytemuck::Pod`], so
//! that a map entry is the same bytes on both sides. Addresses are in network
//! byte order (the bytes as on the wire); interface indices, VNIs, lengths and
//! times are native integers.
//!
//! A change to anything in this module that an agent of another version could
//! misread must raise [`ABI_VERSION`].

mod capacity;
mod counters;
mod endpoint;
mod family;
mod fdb;
mod flow;
mod fragment;
pub mod names;
mod published;
mod seal;
mod underlay;

pub use capacity::*;
pub(crate) use counters::coded;
pub use counters::{
    Action, Code, Counter, Direction, DropReason, Note, STATS_ENTRIES, stats_index,
};
pub use endpoint::{EndpointInfo, NetworkInfo, Scratch, UplinkInfo};
pub use family::{Family, MappedAddr, V4};
pub use fdb::{
    FdbEntry, FdbKey, FloodKey, HeardEntry, LearnedEntry, NeighEntry, NeighKey, QuerierKey, RateKey,
};
pub use flow::{Flow, FlowKey, FlowShare, Tuple, kind, seen, zone};
pub use fragment::{FragmentInfo, FragmentKey, HeldFragment};
pub use names::{globals, programs};
pub use published::{PublishedEntry, PublishedKey, SourceKey, blocked, reserved_bit};
pub use seal::{Sealed, SealedU32};
pub use underlay::{ENCAPSULATED_MARK, HeaderTemplate, PathMtu, UnderlayPath, VtepId, VtepKey};

/// VNI of the agent's own vxlan device, which has a VNI so that it can share its socket with the
/// devices of other programs. No network has this VNI.
pub const RESERVED_VNI: u32 = 0;

/// Version of the map layout. Pins live under a directory of this number, so
/// that an agent never opens maps whose bytes it would misread.
pub const ABI_VERSION: u32 = 5;
