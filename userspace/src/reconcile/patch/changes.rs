//! What has changed in a network, and what that changes in its tables.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::{
    EndpointInfo, FdbKey, NeighKey, PublishedEntry, PublishedKey, SourceKey,
};

use crate::{
    datapath::{
        Prefix,
        entry::{FdbEntry, NeighEntry, VtepInfo},
    },
    model::Former,
};

/// The endpoints that have changed in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Identifiers of the endpoints that are new, changed or removed.
    pub endpoints: BTreeSet<String>,
    /// MAC, addresses and node that the changed and removed endpoints had before.
    pub former: BTreeSet<Former>,
    /// Interfaces on this host that changed endpoints had before, if they have them no more.
    pub ifindexes: BTreeSet<u32>,
}

/// Changes to a network's tables: the new value of each key, or `None` to remove it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// VNI.
    pub vni: u32,
    /// Entries of `FDB`.
    pub fdb: BTreeMap<FdbKey, Option<FdbEntry>>,
    /// Entries of `NEIGHBOURS`.
    pub neighbours: BTreeMap<NeighKey, Option<NeighEntry>>,
    /// Entries of `VTEPS`, by VTEP address.
    pub vteps: BTreeMap<[u8; 4], Option<VtepInfo>>,
    /// Entries of `ENDPOINTS`. The flood list and its length follow from them.
    pub endpoints: BTreeMap<u32, Option<EndpointInfo>>,
    /// Entries of `PUBLISHED`.
    pub published: BTreeMap<PublishedKey, Option<PublishedEntry>>,
    /// Entries of `SOURCES`.
    pub sources: BTreeMap<Prefix<SourceKey>, Option<u32>>,
}
