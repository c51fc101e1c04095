//! Repairs: changes by other programs that the agent has found and undone.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

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
        tracing::warn!("repaired: {found}");
        // A thread that panicked with the lock held left a valid map.
        let mut by_kind = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_kind.get(kind).map_or(0, |repair| repair.count) + 1;
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
        repairs.note("map", "FDB".to_owned());
        let all = repairs.all();
        assert_eq!((all["device"].count, all["map"].count), (2, 1));
        assert_eq!(all["device"].last, "cvg256 had MTU 9");
    }
}
