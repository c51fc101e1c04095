//! Maps that the agent writes as a whole: from facts about the host, or from its options.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use culvert_common::abi::{MappedAddr, PublishedKey, UplinkInfo, names};

use crate::datapath::{DatapathError, Found, KernelTables, Options, Prefix, Table, ip_of};

/// The entries that the agent has written to a map. It must be the only writer of the map.
pub(super) struct Kept<K, V> {
    map: &'static str,
    /// Writes a key in words.
    spell: fn(&K) -> String,
    /// `None`: the map has not been written yet. It may have the entries of an earlier agent.
    written: Mutex<Option<BTreeMap<K, V>>>,
}

impl<K: Copy + Ord, V: Copy + PartialEq> Kept<K, V> {
    fn new(map: &'static str, spell: fn(&K) -> String, written: Option<BTreeMap<K, V>>) -> Self {
        Self { map, spell, written: Mutex::new(written) }
    }

    /// Replaces the entries by `wanted`. Only differences are written.
    pub(super) fn replace(
        &self,
        table: &dyn Table<K, V>,
        wanted: &BTreeMap<K, V>,
    ) -> Result<(), DatapathError> {
        let mut written = self.lock();
        let now = match &mut *written {
            Some(now) => now,
            none => none.insert(table.dump()?),
        };
        // Removed first: a full map has room for the new entries only then.
        let gone: Vec<K> = now.keys().copied().filter(|key| !wanted.contains_key(key)).collect();
        for key in gone {
            table.remove(&key)?;
            now.remove(&key);
        }
        for (key, value) in wanted {
            if now.get(key) != Some(value) {
                table.insert(key, value)?;
                now.insert(*key, *value);
            }
        }
        Ok(())
    }

    /// Writes one entry, or removes it if `value` is `None`. Idempotent.
    pub(super) fn set(
        &self,
        table: &dyn Table<K, V>,
        key: K,
        value: Option<V>,
    ) -> Result<(), DatapathError> {
        let mut written = self.lock();
        match &value {
            Some(value) => table.insert(&key, value)?,
            None => table.remove(&key)?,
        }
        if let Some(now) = &mut *written {
            match value {
                Some(value) => now.insert(key, value),
                None => now.remove(&key),
            };
        }
        Ok(())
    }

    /// Puts the map back to what was written to it. Notes what another program has changed. Does
    /// nothing before the first write.
    fn restore(&self, table: &dyn Table<K, V>, found: &mut Found) -> Result<(), DatapathError> {
        // Locked during the whole comparison, so that nothing is written meanwhile.
        let written = self.lock();
        let Some(written) = &*written else { return Ok(()) };
        let read = table.dump()?;
        found.restore(self.map, written, &read, self.spell, |key, value| match value {
            Some(value) => table.insert(key, value),
            None => table.remove(key),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<K, V>>> {
        // A thread that panicked with the lock held left the entries that it had written.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The maps that the agent writes as a whole.
pub(super) struct KeptMaps {
    pub(super) blocked: Kept<PublishedKey, u32>,
    pub(super) host_addrs: Kept<MappedAddr, u32>,
    pub(super) uplinks: Kept<u32, UplinkInfo>,
    pub(super) client_links: Kept<u32, u32>,
    pub(super) denied: Kept<Prefix<MappedAddr>, u32>,
    services: Kept<Prefix<[u8; 4]>, u32>,
}

impl KeptMaps {
    /// The maps of programs that were loaded with these options.
    pub(super) fn new(options: &Options) -> Self {
        let denied = options.denied.iter().map(|source| (Prefix::of_v4(*source), 0));
        let services = options.services.iter().map(|range| (Prefix::of_services(*range), 0));
        let ip = |address: &MappedAddr| ip_of(address).to_string();
        let destination = |key: &PublishedKey| match u16::from_be_bytes(key.port) {
            0 => ip_of(&key.addr).to_string(),
            port => format!("{}:{port}", ip_of(&key.addr)),
        };
        Self {
            blocked: Kept::new(names::BLOCKED, destination, None),
            host_addrs: Kept::new(names::HOST_ADDRS, ip, None),
            uplinks: Kept::new(names::UPLINKS, u32::to_string, None),
            client_links: Kept::new(names::CLIENT_LINKS, u32::to_string, None),
            denied: Kept::new(names::DENIED, ToString::to_string, Some(denied.collect())),
            services: Kept::new(names::SERVICES, ToString::to_string, Some(services.collect())),
        }
    }

    /// Puts the maps back to what was written to them. Notes what another program has changed.
    /// Returns the errors.
    pub(super) fn restore(&self, tables: &KernelTables, found: &mut Found) -> Vec<DatapathError> {
        let outcomes = [
            self.blocked.restore(&tables.blocked, found),
            self.host_addrs.restore(&tables.host_addrs, found),
            self.uplinks.restore(&tables.uplinks, found),
            self.client_links.restore(&tables.client_links, found),
            self.denied.restore(&tables.denied, found),
            self.services.restore(&tables.services, found),
        ];
        outcomes.into_iter().filter_map(Result::err).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map in memory that takes at most `most` entries.
    struct Memory {
        entries: Mutex<BTreeMap<u32, u32>>,
        most: usize,
    }

    impl Memory {
        fn new(entries: &[(u32, u32)]) -> Self {
            Self { entries: Mutex::new(entries.iter().copied().collect()), most: 3 }
        }

        fn now(&self) -> Vec<(u32, u32)> {
            self.entries.lock().unwrap().iter().map(|(key, value)| (*key, *value)).collect()
        }
    }

    impl Table<u32, u32> for Memory {
        fn dump(&self) -> Result<BTreeMap<u32, u32>, DatapathError> {
            Ok(self.entries.lock().unwrap().clone())
        }

        fn insert(&self, key: &u32, value: &u32) -> Result<(), DatapathError> {
            let mut entries = self.entries.lock().unwrap();
            if entries.len() == self.most && !entries.contains_key(key) {
                return Err(DatapathError::Io {
                    path: "/paper/map".into(),
                    what: "write",
                    source: std::io::Error::other("full"),
                });
            }
            entries.insert(*key, *value);
            Ok(())
        }

        fn remove(&self, key: &u32) -> Result<(), DatapathError> {
            self.entries.lock().unwrap().remove(key);
            Ok(())
        }
    }

    fn kept() -> Kept<u32, u32> {
        Kept::new("M", u32::to_string, None)
    }

    #[test]
    fn what_others_change_is_put_back_and_noted() {
        let (table, kept, mut found) = (Memory::new(&[(9, 9)]), kept(), Found::default());
        kept.restore(&table, &mut found).unwrap();
        assert_eq!(table.now(), [(9, 9)], "nothing has been written yet");
        kept.replace(&table, &[(1, 1), (2, 2)].into()).unwrap();
        assert_eq!(table.now(), [(1, 1), (2, 2)]);
        table.remove(&1).unwrap();
        table.insert(&2, &7).unwrap();
        table.insert(&3, &3).unwrap();
        kept.restore(&table, &mut found).unwrap();
        assert_eq!(table.now(), [(1, 1), (2, 2)]);
        let line = "map M: 3 entries: 3 added, 1 removed, 2 changed";
        assert_eq!(found.lines(), [(3, line.to_owned())]);
    }

    /// Otherwise the agent would report a repair of its own write.
    #[test]
    fn what_the_agent_writes_is_no_change_by_others() {
        let (table, kept, mut found) = (Memory::new(&[]), kept(), Found::default());
        kept.replace(&table, &[(1, 1), (2, 2)].into()).unwrap();
        kept.set(&table, 3, Some(3)).unwrap();
        kept.set(&table, 1, None).unwrap();
        kept.set(&table, 1, None).unwrap();
        kept.restore(&table, &mut found).unwrap();
        assert_eq!((table.now(), found.number()), (vec![(2, 2), (3, 3)], 0));
        // The map is full: what was written until then is known.
        let wanted = [(4, 4), (5, 5), (6, 6), (7, 7)].into();
        assert!(kept.replace(&table, &wanted).is_err());
        kept.restore(&table, &mut found).unwrap();
        assert_eq!((table.now(), found.number()), (vec![(4, 4), (5, 5), (6, 6)], 0));
    }

    /// A full map takes other entries in place of those that it has.
    #[test]
    fn all_entries_of_a_full_map_are_replaced() {
        let (table, kept) = (Memory::new(&[]), kept());
        for wanted in [[(1, 1), (2, 2), (3, 3)], [(4, 4), (5, 5), (6, 6)]] {
            kept.replace(&table, &wanted.into()).unwrap();
            assert_eq!(table.now(), wanted);
        }
    }
}
