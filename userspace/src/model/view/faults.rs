//! Networks and endpoints that must not be carried, kept from change to change: the time of a list
//! of them does not depend on the number of endpoints.

use std::collections::{BTreeMap, BTreeSet};

use super::packed::Id;
use crate::model::{MacAddr, Name};

/// Cached: networks and endpoints that must not be carried.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// Networks that have a record and are not usable.
    pub(super) networks: BTreeSet<Name>,
    /// Endpoints that are not usable, by network, without those of `networks`. No set is empty.
    pub(super) endpoints: BTreeMap<Name, BTreeSet<Id>>,
    /// Number of them.
    pub(super) endpoint_count: usize,
    /// MACs that several endpoints have and nobody has claimed, by network: each with the first
    /// endpoint, and one of the others. No list is empty.
    pub(super) macs: BTreeMap<Name, Vec<(MacAddr, Id, Id)>>,
    /// Networks all of whose endpoints are to be looked at again.
    pub(super) stale: BTreeSet<Name>,
    /// Networks whose MACs are to be looked at again.
    pub(super) stale_macs: BTreeSet<Name>,
    /// Number of endpoints that have been looked at.
    pub(super) looks: usize,
}

impl PartialEq for Faults {
    /// The cache is not compared: it follows from the records.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Faults {}

impl Faults {
    /// Replaces the unusable endpoints of a network.
    pub(super) fn set_endpoints(&mut self, network: Name, ids: BTreeSet<Id>) {
        self.endpoint_count += ids.len();
        let before = if ids.is_empty() {
            self.endpoints.remove(&network)
        } else {
            self.endpoints.insert(network, ids)
        };
        self.endpoint_count -= before.map_or(0, |ids| ids.len());
    }

    /// Notes whether an endpoint is unusable.
    pub(super) fn set_endpoint(&mut self, network: &Name, id: Id, is_unusable: bool) {
        if is_unusable {
            let ids = self.endpoints.entry(network.clone()).or_default();
            self.endpoint_count += usize::from(ids.insert(id));
        } else if let Some(ids) = self.endpoints.get_mut(network) {
            self.endpoint_count -= usize::from(ids.remove(&id));
            if ids.is_empty() {
                self.endpoints.remove(network);
            }
        }
    }
}
