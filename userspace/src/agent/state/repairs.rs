//! Repairs: changes by other programs that the agent has found and undone.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use crate::datapath::{Changes, Found};

/// The repairs since the agent started, by kind.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    by_kind: Mutex<BTreeMap<&'static str, Repair>>,
}

/// The repairs of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Repair {
    /// Number of repairs.
    pub(crate) count: u64,
    /// What the last repair found, on one line.
    pub(crate) last: String,
    /// Time of the last repair.
    pub(crate) at: Instant,
}

impl Repairs {
    /// Counts and logs a repair. `kind` is the kind of object, such as `pin`. `found` names the
    /// object and the change that was found.
    pub(crate) fn note(&self, kind: &'static str, found: String) {
        self.note_several(kind, 1, found);
    }

    /// Counts a repair that the log has already.
    pub(crate) fn note_logged(&self, kind: &'static str, found: String) {
        self.count(kind, 1, found);
    }

    /// Counts the objects that were put right, and logs a line for each kind of fault.
    pub(crate) fn note_changes(&self, kind: &'static str, changes: &Changes) {
        for (number, line) in changes.lines() {
            self.note_several(kind, number, line);
        }
    }

    /// Counts the map entries that were put right, and logs a line for each map.
    pub(crate) fn note_entries(&self, found: &Found) {
        for (number, line) in found.lines() {
            self.note_several("map entry", number, line);
        }
    }

    /// Counts `number` repairs, and logs them on one line.
    pub(crate) fn note_several(&self, kind: &'static str, number: u64, found: String) {
        tracing::warn!("repaired: {found}");
        self.count(kind, number, found);
    }

    fn count(&self, kind: &'static str, number: u64, found: String) {
        // A thread that panicked with the lock held left a valid map.
        let mut by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_kind.get(kind).map_or(0, |repair| repair.count) + number;
        by_kind.insert(kind, Repair { count, last: found, at: Instant::now() });
    }

    /// The repairs, by kind.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, Repair> {
        self.by_kind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_counted_by_kind_and_the_last_is_told() {
        let repairs = Repairs::default();
        repairs.note("device", "cvg256 was down".to_owned());
        repairs.note("device", "cvg256 had MTU 9".to_owned());
        repairs.note_logged("map", "FDB".to_owned());
        let all = repairs.all();
        assert_eq!((all["device"].count, all["map"].count), (2, 1));
        assert_eq!(all["device"].last, "cvg256 had MTU 9");
    }

    #[test]
    fn each_object_is_counted() {
        let repairs = Repairs::default();
        let mut changes = Changes::default();
        repairs.note_changes("pin", &changes);
        assert!(repairs.all().is_empty());
        for name in ["FDB", "VTEPS"] {
            changes.note(name, "was missing");
        }
        repairs.note_changes("pin", &changes);
        let all = repairs.all();
        assert_eq!(all["pin"].count, 2);
        assert_eq!(all["pin"].last, "was missing, 2 times: FDB, VTEPS");
    }

    #[test]
    fn each_map_entry_is_counted() {
        let repairs = Repairs::default();
        let mut found = Found::default();
        repairs.note_entries(&found);
        assert!(repairs.all().is_empty());
        for key in 1..=4 {
            found.note("FDB", || format!("{key} removed"));
        }
        found.note("VTEPS", || "7 added".to_owned());
        repairs.note_entries(&found);
        let all = repairs.all();
        assert_eq!(all["map entry"].count, 5);
        assert_eq!(all["map entry"].last, "map VTEPS: 1 entry: 7 added");
    }
}
