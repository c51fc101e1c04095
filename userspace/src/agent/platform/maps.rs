//! The maps of the BPF programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::datapath::entry::{FdbEntry, LearnedEntry, NeighEntry, PathMtu, UnderlayPath};
use culvert_common::abi::{
    Code, Counter, Direction, DropReason, EndpointInfo, FdbKey, HeardEntry, MappedAddr, NeighKey,
    PublishedEntry, PublishedKey,
};
use ipnetwork::Ipv4Network;

use crate::{
    datapath::{DatapathError, FlowTable, Found},
    reconcile::Kernel,
};

/// Result of [`Maps::audit`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Audit {
    /// The entries that another program had changed.
    pub(crate) found: Found,
    /// Why a map cannot be compared or put back, a line for each such map.
    pub(crate) problems: Vec<String>,
}

/// Reads the maps. [`Kernel`] writes the maps whose entries follow from the store.
pub(crate) trait Maps: Kernel<Error = DatapathError> + Send + Sync + 'static {
    /// Compares the maps that [`Kernel`] does not write with what the agent has written to them, and
    /// puts them back to that: those of the host's addresses and interfaces, of the numbers of
    /// VTEPs, and of the options. `RESERVED_PORTS` is not among them.
    fn audit(&self) -> Audit;

    /// The entries of `FDB`.
    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError>;

    /// The entries of `FDB_LEARNED`.
    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError>;

    /// The time on the clock of [`LearnedEntry::last_seen_ns`], in ns.
    fn now_ns(&self) -> u64;

    /// Age after which a learned entry is no longer used.
    fn ageing(&self) -> Duration;

    /// Removes a learned entry.
    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError>;

    /// The entries of `NEIGHBOURS`.
    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError>;

    /// The entries of `NEIGHBOURS_HEARD`.
    fn heard(&self) -> Result<Vec<(NeighKey, HeardEntry)>, DatapathError>;

    /// The entries of `UNDERLAY`.
    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError>;

    /// Takes the hints out of `PATH_HINTS`: for each VTEP the largest inner L3 packet in bytes, as
    /// an ICMP error says that may be forged.
    fn take_path_hints(&self) -> Result<BTreeMap<[u8; 4], u32>, DatapathError>;

    /// The entries of `PATH_MTU`.
    fn path_mtus(&self) -> Result<BTreeMap<[u8; 4], PathMtu>, DatapathError>;

    /// Writes entries of `PATH_MTU`.
    fn set_path_mtus(&self, entries: &[([u8; 4], PathMtu)]) -> Result<(), DatapathError>;

    /// Removes an entry of `PATH_MTU`. Idempotent.
    fn forget_path_mtu(&self, vtep: [u8; 4]) -> Result<(), DatapathError>;

    /// The table of flows.
    fn flows(&self) -> &dyn FlowTable;

    /// The entries of `ENDPOINTS`, by interface index of the host side.
    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError>;

    /// The entries of `HOST_ADDRS`.
    fn host_addresses(&self) -> Result<BTreeSet<MappedAddr>, DatapathError>;

    /// The entries of `PUBLISHED`.
    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError>;

    /// Adds clients to `DENIED`. Idempotent.
    fn deny(&self, source: Ipv4Network) -> Result<(), DatapathError>;

    /// Removes clients from `DENIED`. Idempotent.
    fn allow(&self, source: Ipv4Network) -> Result<(), DatapathError>;

    /// Number of packets that were counted under `code`, in all directions.
    fn packets(&self, code: Code) -> Result<u64, DatapathError>;

    /// Number of packets that were dropped for `reason`, in all directions.
    fn dropped(&self, reason: DropReason) -> Result<u64, DatapathError> {
        self.packets(Code::Drop(reason))
    }

    /// The counters.
    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError>;
}
