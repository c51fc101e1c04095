//! The entries that the kernel has of one network.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use culvert_common::abi::{FloodKey, PublishedKey, SourceKey};

use super::{
    diff::Op,
    flood::{assign_slots, change_slots},
    tables::Tables,
};
use crate::datapath::Prefix;

/// Copy of the kernel's tables of one VNI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    tables: Tables,
    /// Number of FDB entries of each VTEP that has some.
    behind: BTreeMap<[u8; 4], usize>,
    /// Slot of each interface in `FLOOD_LOCAL`.
    slots: BTreeMap<u32, u32>,
    /// Keys in `PUBLISHED` of each interface that has some.
    published: BTreeMap<u32, BTreeSet<PublishedKey>>,
}

impl From<Tables> for Held {
    fn from(tables: Tables) -> Self {
        let mut held = Self::default();
        for vtep in tables.fdb.values().map(|entry| entry.vtep) {
            *held.behind.entry(vtep).or_default() += 1;
        }
        held.slots.extend(tables.flood_local.iter().map(|(key, port)| (*port, key.index)));
        for (key, entry) in &tables.published {
            held.published.entry(entry.ifindex).or_default().insert(*key);
        }
        held.tables = tables;
        held
    }
}

impl Held {
    /// The tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Number of MACs in the FDB that are behind a VTEP. The call takes the same time for any
    /// number.
    pub fn behind(&self, vtep: [u8; 4]) -> usize {
        self.behind.get(&vtep).copied().unwrap_or_default()
    }

    /// Whether an interface has a slot in `FLOOD_LOCAL`.
    pub(super) fn is_listed(&self, ifindex: u32) -> bool {
        self.slots.contains_key(&ifindex)
    }

    /// Keys in `PUBLISHED` that lead to an interface. The other keys are not read.
    pub(super) fn published_of(&self, ifindex: u32) -> impl Iterator<Item = PublishedKey> {
        self.published.get(&ifindex).into_iter().flatten().copied()
    }

    /// Keys in `SOURCES` of an interface. The other keys are not read.
    pub(super) fn sources_of(&self, ifindex: u32) -> impl Iterator<Item = Prefix<SourceKey>> {
        let first = Prefix { key: SourceKey { ifindex, ..SourceKey::default() }, bits: 0 };
        let keys = self.tables.sources.range(first..).map(|(key, _)| *key);
        keys.take_while(move |source| source.key.ifindex == ifindex)
    }

    /// The changes of `FLOOD_LOCAL` when the interfaces `gone` leave `ENDPOINTS` and `new` ones
    /// come. The other interfaces are not read, unless the list has gaps.
    pub(super) fn change_ports(
        &self,
        vni: u32,
        gone: &BTreeSet<u32>,
        new: &BTreeSet<u32>,
    ) -> BTreeMap<FloodKey, Option<u32>> {
        let Tables { endpoints, flood_local, .. } = &self.tables;
        let free: BTreeSet<u32> =
            gone.iter().filter_map(|port| self.slots.get(port).copied()).collect();
        let next = flood_local.last_key_value().map_or(0, |(key, _)| u64::from(key.index) + 1);
        let is_dense = flood_local.len() == endpoints.len()
            && self.slots.len() == endpoints.len()
            && free.len() == gone.len()
            && u64::try_from(flood_local.len()) == Ok(next)
            && new.iter().all(|port| !self.slots.contains_key(port));
        if is_dense {
            return change_slots(vni, flood_local, free, new.iter().copied());
        }
        let members = endpoints.keys().filter(|port| !gone.contains(port)).chain(new);
        let laid = assign_slots(vni, &members.copied().collect(), flood_local);
        let keys = flood_local.keys().chain(laid.keys());
        keys.map(|key| (*key, laid.get(key).copied())).collect()
    }

    /// Applies a step that the kernel has carried out.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Fdb(key, after) => {
                if let Some(before) = self.tables.fdb.get(key)
                    && let Entry::Occupied(mut count) = self.behind.entry(before.vtep)
                {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
                if let Some(after) = after {
                    *self.behind.entry(after.vtep).or_default() += 1;
                }
            }
            Op::FloodLocal(key, after) => {
                // Between two steps a member may be in two slots: the later one is its slot.
                if let Some(before) = self.tables.flood_local.get(key)
                    && self.slots.get(before) == Some(&key.index)
                {
                    self.slots.remove(before);
                }
                if let Some(after) = after {
                    self.slots.insert(*after, key.index);
                }
            }
            Op::Published(key, after) => {
                if let Some(before) = self.tables.published.get(key)
                    && let Entry::Occupied(mut keys) = self.published.entry(before.ifindex)
                {
                    keys.get_mut().remove(key);
                    if keys.get().is_empty() {
                        keys.remove();
                    }
                }
                if let Some(after) = after {
                    self.published.entry(after.ifindex).or_default().insert(*key);
                }
            }
            Op::Endpoint(..)
            | Op::Network(..)
            | Op::Neighbour(..)
            | Op::Vtep(..)
            | Op::Underlay(..)
            | Op::FloodRemote(..)
            | Op::Gateway(..)
            | Op::Source(..) => {}
        }
        op.apply_to(&mut self.tables);
    }
}
