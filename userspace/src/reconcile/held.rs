//! The entries that the kernel has of one network.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{diff::Op, tables::Tables};

/// Copy of the kernel's tables of one VNI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    tables: Tables,
    /// Number of FDB entries of each VTEP that has some.
    behind: BTreeMap<[u8; 4], usize>,
}

impl From<Tables> for Held {
    fn from(tables: Tables) -> Self {
        let mut behind = BTreeMap::new();
        for vtep in tables.fdb.values().map(|entry| entry.vtep) {
            *behind.entry(vtep).or_default() += 1;
        }
        Self { tables, behind }
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

    /// Applies a step that the kernel has carried out.
    pub(super) fn apply(&mut self, op: &Op) {
        if let Op::Fdb(key, after) = op {
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
        op.apply_to(&mut self.tables);
    }
}
