//! What other programs have changed, and the agent has put right.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use culvert_common::abi::MappedAddr;

/// Entries of maps that were not as the agent had written them, by map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    maps: BTreeMap<&'static str, Group>,
}

/// Changes that have something in common, such as the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    number: u64,
    /// The first [`Group::NAMED`] of them, in words.
    named: Vec<String>,
}

impl Group {
    /// Number of changes that are named.
    const NAMED: usize = 3;

    /// Adds a change. `spell` names it, and is called for the first few changes.
    fn note(&mut self, spell: impl FnOnce() -> String) {
        self.number += 1;
        if self.named.len() < Self::NAMED {
            self.named.push(spell());
        }
    }

    fn merge(&mut self, Self { number, named }: Self) {
        self.number += number;
        let room = Self::NAMED.saturating_sub(self.named.len());
        self.named.extend(named.into_iter().take(room));
    }

    /// The first few names, and the number of the others.
    fn names(&self) -> String {
        let names = self.named.join(", ");
        match self.number.saturating_sub(self.named.len() as u64) {
            0 => names,
            rest => format!("{names}, and {rest} more"),
        }
    }
}

impl Found {
    /// Notes an entry of a map. `spell` writes its key, and what has happened to it. It is called
    /// for the first few entries.
    pub fn note(&mut self, map: &'static str, spell: impl FnOnce() -> String) {
        self.maps.entry(map).or_default().note(spell);
    }

    /// Notes the differences between the entries that the agent has written to a map, and those
    /// that were read from it. `spell` writes a key.
    pub fn compare<K: Ord, V: PartialEq>(
        &mut self,
        map: &'static str,
        written: &BTreeMap<K, V>,
        read: &BTreeMap<K, V>,
        spell: impl Fn(&K) -> String,
    ) {
        let Ok(()) = self.restore(map, written, read, spell, |_, _| Ok::<(), Infallible>(()));
    }

    /// Puts a map back to the entries that the agent has written. `read` are the entries that were
    /// read from it. `set` writes an entry, or removes it if the value is `None`. Notes each entry
    /// that is put back. `spell` writes a key.
    ///
    /// Entries that were added are removed first: a map that another program has filled has no room
    /// for the agent's entries before.
    ///
    /// # Errors
    ///
    /// The first error of `set`. The entries after the refused one are put back nevertheless.
    pub fn restore<K: Ord, V: PartialEq, E>(
        &mut self,
        map: &'static str,
        written: &BTreeMap<K, V>,
        read: &BTreeMap<K, V>,
        spell: impl Fn(&K) -> String,
        mut set: impl FnMut(&K, Option<&V>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut outcome = Ok(());
        let mut put_back = |key: &K, value: Option<&V>, what: &str| match set(key, value) {
            Ok(()) => self.note(map, || format!("{} {what}", spell(key))),
            Err(error) if outcome.is_ok() => outcome = Err(error),
            Err(_) => {}
        };
        for key in read.keys().filter(|key| !written.contains_key(key)) {
            put_back(key, None, "added");
        }
        for (key, value) in written {
            match read.get(key) {
                Some(now) if now == value => {}
                Some(_) => put_back(key, Some(value), "changed"),
                None => put_back(key, Some(value), "removed"),
            }
        }
        outcome
    }

    /// Adds what was found elsewhere.
    pub fn merge(&mut self, other: Self) {
        for (map, group) in other.maps {
            self.maps.entry(map).or_default().merge(group);
        }
    }

    /// Number of entries.
    pub fn number(&self) -> u64 {
        self.maps.values().map(|group| group.number).sum()
    }

    /// For each map the number of its entries, and a line that names the map and the first few of
    /// them.
    pub fn lines(&self) -> Vec<(u64, String)> {
        let line = |(map, group): (&&str, &Group)| {
            let number = group.number;
            let noun = if number == 1 { "entry" } else { "entries" };
            (number, format!("map {map}: {number} {noun}: {}", group.names()))
        };
        self.maps.iter().map(line).collect()
    }
}

/// Objects that were not as the agent had left them, such as pins, by their fault. One cause can
/// concern thousands of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    faults: BTreeMap<String, Group>,
}

impl Changes {
    /// Notes an object. `fault` follows its name in a line, as `was detached` does.
    pub fn note(&mut self, object: impl Into<String>, fault: impl Into<String>) {
        self.faults.entry(fault.into()).or_default().note(|| object.into());
    }

    /// For each fault the number of the objects, and a line that names the fault and the first few
    /// of them.
    pub fn lines(&self) -> Vec<(u64, String)> {
        let line = |(fault, group): (&String, &Group)| match group.number {
            1 => (1, format!("{} {fault}", group.names())),
            number => (number, format!("{fault}, {number} times: {}", group.names())),
        };
        self.faults.iter().map(line).collect()
    }
}

/// Result of a search for changes by other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// What was found and put right.
    pub found: Changes,
    /// Why something could not be looked at or put right, on one line; the first of several
    /// reasons.
    pub failed: Option<String>,
}

impl Repaired {
    /// Notes that something could not be looked at or put right.
    pub fn fail(&mut self, why: impl Display) {
        self.failed.get_or_insert_with(|| why.to_string());
    }
}

/// The address in a key.
pub fn ip_of(address: &MappedAddr) -> IpAddr {
    match address.as_v4() {
        Some(octets) => Ipv4Addr::from(octets).into(),
        None => Ipv6Addr::from(address.0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(u32, u8)]) -> BTreeMap<u32, u8> {
        entries.iter().copied().collect()
    }

    /// The log has the map, the number of entries, and the first few of them.
    #[test]
    fn the_first_entries_of_each_map_are_named() {
        let mut found = Found::default();
        let written = map(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
        found.compare("FDB", &written, &written, u32::to_string);
        assert_eq!((found.number(), found.lines()), (0, vec![]));
        found.compare("FDB", &written, &map(&[(1, 1), (2, 9), (4, 4), (6, 6)]), u32::to_string);
        found.compare("VTEPS", &map(&[(7, 7)]), &map(&[]), u32::to_string);
        assert_eq!(
            found.lines(),
            [
                (4, "map FDB: 4 entries: 6 added, 2 changed, 3 removed, and 1 more".to_owned()),
                (1, "map VTEPS: 1 entry: 7 removed".to_owned()),
            ]
        );
        let mut more = Found::default();
        more.compare("VTEPS", &map(&[]), &map(&[(8, 8)]), u32::to_string);
        found.merge(more);
        assert_eq!(found.number(), 6);
        assert_eq!(
            found.lines().last(),
            Some(&(2, "map VTEPS: 2 entries: 7 removed, 8 added".to_owned()))
        );
    }

    /// An entry that cannot be put back is not counted as repaired. It does not keep the others from
    /// being put back.
    #[test]
    fn what_is_put_back_is_noted_in_spite_of_refusals() {
        let (written, read) = (map(&[(1, 1), (2, 2), (4, 4)]), map(&[(2, 9), (3, 3)]));
        let mut found = Found::default();
        let refused = found.restore("M", &written, &read, u32::to_string, |key, _| match *key {
            1 => Err("first"),
            2 => Err("second"),
            _ => Ok(()),
        });
        assert_eq!((refused, found.number()), (Err("first"), 2));
        let line = "map M: 2 entries: 3 added, 4 removed".to_owned();
        assert_eq!(found.lines(), [(2, line)]);
    }

    /// Another program has filled a map with entries of its own.
    #[test]
    fn a_full_map_is_put_back() {
        const MOST: usize = 3;
        let (written, read) = (map(&[(1, 1), (2, 2), (3, 3)]), map(&[(3, 3), (8, 8), (9, 9)]));
        let (mut now, mut found) = (read.clone(), Found::default());
        let set = |key: &u32, value: Option<&u8>| {
            match value {
                Some(_) if now.len() == MOST && !now.contains_key(key) => return Err("full"),
                Some(value) => now.insert(*key, *value),
                None => now.remove(key),
            };
            Ok(())
        };
        assert_eq!(found.restore("M", &written, &read, u32::to_string, set), Ok(()));
        assert_eq!((now, found.number()), (written, 4));
    }

    /// An unmounted BPF file system is one cause: it does not fill the log with a line for each
    /// container.
    #[test]
    fn objects_with_the_same_fault_are_told_on_one_line() {
        let mut changes = Changes::default();
        assert!(changes.lines().is_empty());
        changes.note("from_loopback on lo", "was detached");
        for port in 1..=2000 {
            changes.note(format!("from_container on cv{port}"), "had lost its pin");
        }
        let many = "had lost its pin, 2000 times: from_container on cv1, from_container on cv2, \
                    from_container on cv3, and 1997 more";
        let one = "from_loopback on lo was detached";
        assert_eq!(changes.lines(), [(2000, many.to_owned()), (1, one.to_owned())]);
    }

    #[test]
    fn the_first_failure_is_kept() {
        let mut repaired = Repaired::default();
        repaired.fail("first");
        repaired.fail("second");
        assert_eq!(repaired.failed.as_deref(), Some("first"));
    }

    #[test]
    fn an_address_is_written_in_its_family() {
        assert_eq!(ip_of(&MappedAddr::v4([192, 0, 2, 1])).to_string(), "192.0.2.1");
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&[0x20, 0x01]);
        assert_eq!(ip_of(&MappedAddr(bytes)).to_string(), "2001::");
    }
}
