//! A map with its entries in contiguous memory.
//!
//! The crate `fst` does not replace it: its values have 64 bits, and a change rebuilds the whole
//! map (0.8 s for 100,000 identifiers).
//!
//! The nodes of a tree that is built while the store is read would be spread over the memory that
//! the read takes, and would keep the allocator from returning it.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Bound, RangeInclusive},
};

/// Number of changes that may be pending, independent of the number of entries.
const RECENT: usize = 1024;

/// A sorted map, see the module.
#[derive(Clone)]
pub(super) struct Sorted<K, V> {
    /// Entries in key order.
    entries: Vec<(K, V)>,
    /// Changes since the last packing; `None`: removed.
    recent: BTreeMap<K, Option<V>>,
    len: usize,
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new(), recent: BTreeMap::new(), len: 0 }
    }
}

impl<K: Copy + Ord, V: Clone> Sorted<K, V> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        match self.recent.get(key) {
            Some(changed) => changed.as_ref(),
            None => {
                let index = self.entries.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
                self.entries.get(index).map(|(_, value)| value)
            }
        }
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.len += usize::from(self.get(&key).is_none());
        self.recent.insert(key, Some(value));
        self.tidy();
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let before = self.get(key).cloned()?;
        self.len -= 1;
        self.recent.insert(*key, None);
        self.tidy();
        Some(before)
    }

    /// All entries, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        merge(&self.entries, self.recent.iter())
    }

    /// Keys within a range, in order.
    pub(super) fn keys_in(
        &self,
        range: RangeInclusive<K>,
    ) -> impl Iterator<Item = K> + use<'_, K, V> {
        let (from, to) = range.into_inner();
        let first = self.entries.partition_point(|(key, _)| *key < from);
        let end = self.entries.partition_point(|(key, _)| *key <= to);
        let entries = self.entries.get(first..end).unwrap_or_default();
        // `BTreeMap::range` panics if the start is after the end.
        let recent = (from <= to)
            .then(|| self.recent.range((Bound::Included(from), Bound::Included(to))))
            .into_iter()
            .flatten();
        merge(entries, recent).map(|(key, _)| *key)
    }

    /// Merges the pending changes into the entries.
    pub(super) fn pack(&mut self) {
        let mut entries = Vec::with_capacity(self.len);
        entries.extend(self.iter().map(|(key, value)| (*key, value.clone())));
        self.entries = entries;
        self.recent = BTreeMap::new();
    }

    fn tidy(&mut self) {
        if self.recent.len() > RECENT + self.entries.len() / 4 {
            self.pack();
        }
    }
}

/// Merges entries with their pending changes, in key order.
fn merge<'a, K: Ord, V>(
    entries: &'a [(K, V)],
    recent: impl Iterator<Item = (&'a K, &'a Option<V>)>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let mut entries = entries.iter().map(|(key, value)| (key, value)).peekable();
    let mut recent = recent.peekable();
    std::iter::from_fn(move || {
        loop {
            let Some((changed, _)) = recent.peek() else { return entries.next() };
            if let Some(entry) = entries.next_if(|(key, _)| key < changed) {
                return Some(entry);
            }
            // The pending change replaces the entry.
            entries.next_if(|(key, _)| key == changed);
            if let Some((key, Some(value))) = recent.next() {
                return Some((key, value));
            }
        }
    })
}

impl<K: Copy + Ord, V: Clone + PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Copy + Ord, V: Clone + Eq> Eq for Sorted<K, V> {}

impl<K: Copy + Ord + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(
            history in proptest::collection::vec((0..30_u8, any::<u8>(), 0..8_u8), 0..120),
            (from, to) in (0..30_u8, 0..30_u8),
        ) {
            let (mut sorted, mut map) = (Sorted::default(), BTreeMap::new());
            for (key, value, what) in history {
                match what {
                    0 => sorted.pack(),
                    1..3 => prop_assert_eq!(sorted.remove(&key), map.remove(&key)),
                    _ => {
                        sorted.insert(key, value);
                        map.insert(key, value);
                    }
                }
                prop_assert_eq!(sorted.get(&key), map.get(&key));
                prop_assert_eq!(sorted.len(), map.len());
                prop_assert!(sorted.iter().eq(map.iter()));
            }
            let within = map.keys().copied().filter(|key| (from..=to).contains(key));
            prop_assert!(sorted.keys_in(from..=to).eq(within));
        }
    }

    #[test]
    fn many_changes_are_packed() {
        let mut sorted = Sorted::default();
        for key in (0..20_000_u32).rev() {
            sorted.insert(key, key);
        }
        assert!(sorted.recent.len() <= RECENT + sorted.entries.len() / 4);
        assert_eq!(sorted.len(), 20_000);
    }
}
