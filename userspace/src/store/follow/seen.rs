//! The delivered keys of a follower, in compact form.
//!
//! The follower needs them when the store has compacted the history that it missed: the deletions
//! are then the difference between the delivered keys and the listed ones. A store may have
//! hundreds of thousands of keys. So the keys are packed, each as the difference to the key before
//! it. Changes since the last packing are kept in a separate map.
//!
//! The crate `fst` takes 66 bytes a key, this module 34 (100,000 keys of endpoints, whose
//! identifiers are random).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::{Entry, Page, Revision};

/// Number of keys in a packed segment.
const SEGMENT: usize = 4096;
/// Least number of unpacked changes that starts a packing.
const RECENT: usize = 1024;

/// A revision that no entry has.
const NEVER: Revision = 0;

/// The difference between delivered keys and those of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Entries of the page that were not delivered with their revision, in key order.
    pub(super) news: Vec<Entry>,
    /// Delivered keys that the page does not have, with their revisions, in key order.
    pub(super) gone: Vec<(String, Revision)>,
    /// The greatest revision of the entries that were delivered with their revision.
    pub(super) kept: Revision,
}

/// Every key that was delivered and not deleted since, with its revision.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Segments in key order, without overlap; none is empty.
    segments: Vec<Segment>,
    /// Changes since the last packing: written at a revision, or deleted (`None`).
    recent: BTreeMap<String, Option<Revision>>,
}

impl Seen {
    /// Records that a key was written.
    pub(super) fn put(&mut self, key: &str, revision: Revision) {
        self.recent.insert(key.to_owned(), Some(revision));
        self.tidy();
    }

    /// Records that a key was deleted.
    pub(super) fn delete(&mut self, key: &str) {
        self.recent.insert(key.to_owned(), None);
        self.tidy();
    }

    /// Forgets with which revisions the keys were delivered: each entry of a later page is then news.
    pub(super) fn forget_revisions(&mut self) {
        let keys = self.take("", None).into_iter().map(|(key, _)| (key, NEVER)).collect();
        self.pack(keys);
    }

    /// The difference between the keys within a page's range and those of the page.
    pub(super) fn compare(&self, page: Page) -> Difference {
        difference(self.within(&page.from, &page.to), page.entries)
    }

    /// Records that the keys of a page were written. Returns the difference. Keys that the page does
    /// not have stay until [`Self::delete`] is called for them.
    pub(super) fn turn_to(&mut self, page: Page) -> Difference {
        let before = self.take(&page.from, Some(&page.to));
        let entries = page.entries.iter();
        let mut keys: Vec<(String, Revision)> =
            entries.map(|entry| (entry.key.clone(), entry.mod_revision)).collect();
        let found = difference(before, page.entries);
        if !found.gone.is_empty() {
            keys.extend(found.gone.iter().cloned());
            keys.sort_unstable();
        }
        self.pack(keys);
        found
    }

    /// Packs the changes once there are enough of them.
    fn tidy(&mut self) {
        let packed: usize = self.segments.iter().map(|segment| segment.keys).sum();
        if self.recent.len() > RECENT + packed / 16 {
            let all = self.take("", None);
            self.pack(all);
        }
    }

    /// The keys from `from` (included) to `to` (excluded), in order.
    fn within(&self, from: &str, to: &str) -> Vec<(String, Revision)> {
        let within = |key: &str| key >= from && key < to;
        let mut keys = BTreeMap::new();
        for segment in &self.segments {
            if segment.last.as_str() >= from && segment.first.as_str() < to {
                keys.extend(segment.unpack().into_iter().filter(|(key, _)| within(key)));
            }
        }
        for (key, revision) in self.recent.iter().filter(|(key, _)| within(key)) {
            if let Some(revision) = revision {
                keys.insert(key.clone(), *revision);
            } else {
                keys.remove(key);
            }
        }
        keys.into_iter().collect()
    }

    /// Removes the keys from `from` (included) to `to` (excluded). Returns them in order.
    fn take(&mut self, from: &str, to: Option<&str>) -> Vec<(String, Revision)> {
        let within = |key: &str| key >= from && to.is_none_or(|to| key < to);
        let mut taken = BTreeMap::new();
        let (mut kept, mut rest) = (Vec::new(), Vec::new());
        for segment in std::mem::take(&mut self.segments) {
            if segment.last.as_str() < from || to.is_some_and(|to| segment.first.as_str() >= to) {
                kept.push(segment);
                continue;
            }
            for (key, revision) in segment.unpack() {
                if within(&key) {
                    taken.insert(key, revision);
                } else {
                    rest.push((key, revision));
                }
            }
        }
        self.segments = kept;
        self.pack(rest);
        let recent = std::mem::take(&mut self.recent);
        for (key, revision) in recent {
            if !within(&key) {
                self.recent.insert(key, revision);
            } else if let Some(revision) = revision {
                taken.insert(key, revision);
            } else {
                taken.remove(&key);
            }
        }
        taken.into_iter().collect()
    }

    /// Adds keys, in order, to a range that has none.
    fn pack(&mut self, keys: Vec<(String, Revision)>) {
        let mut segments: Vec<Segment> = keys.chunks(SEGMENT).filter_map(Segment::pack).collect();
        self.segments.append(&mut segments);
        self.segments.sort_unstable_by(|one, other| one.first.cmp(&other.first));
    }
}

/// The difference between delivered keys and the entries of a page, both in key order.
fn difference(before: Vec<(String, Revision)>, entries: Vec<Entry>) -> Difference {
    let mut before = before.into_iter().peekable();
    let mut found = Difference::default();
    for entry in entries {
        while let Some(gone) = before.next_if(|(key, _)| *key < entry.key) {
            found.gone.push(gone);
        }
        match before.next_if(|(key, _)| *key == entry.key) {
            Some((_, revision)) if revision == entry.mod_revision => {
                found.kept = found.kept.max(revision);
            }
            _ => found.news.push(entry),
        }
    }
    found.gone.extend(before);
    found
}

/// A segment: consecutive keys.
#[derive(Debug)]
struct Segment {
    first: String,
    last: String,
    keys: usize,
    /// For each key: the length of the prefix that it shares with the key before it, the rest (see
    /// [`put_rest`]), and the difference of the revisions.
    bytes: Box<[u8]>,
}

impl Segment {
    fn pack(keys: &[(String, Revision)]) -> Option<Self> {
        let (first, last) = (keys.first()?.0.clone(), keys.last()?.0.clone());
        let (mut bytes, mut before, mut revision) = (Vec::new(), "", 0);
        for (key, at) in keys {
            let common = key.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
            put_rest(&mut bytes, key.as_bytes(), common);
            put_number(&mut bytes, at.wrapping_sub(revision));
            (before, revision) = (key, *at);
        }
        Some(Self { first, last, keys: keys.len(), bytes: bytes.into() })
    }

    fn unpack(&self) -> Vec<(String, Revision)> {
        let (mut bytes, mut key, mut revision) = (&*self.bytes, Vec::new(), 0_i64);
        let mut keys = Vec::with_capacity(self.keys);
        while !bytes.is_empty() {
            take_rest(&mut bytes, &mut key);
            revision = revision.wrapping_add(take_number(&mut bytes));
            keys.push((String::from_utf8_lossy(&key).into_owned(), revision));
        }
        keys
    }
}

/// Writes a key without its first `common` bytes, which the reader knows. Identifiers of endpoints
/// are hexadecimal digits to the end of the key: two digits share a byte.
fn put_rest(bytes: &mut Vec<u8>, key: &[u8], common: usize) {
    for common in [common, common.saturating_sub(1)] {
        let rest = key.get(common..).unwrap_or_default();
        let digits: Option<Vec<u8>> = rest.iter().map(|digit| digit_value(*digit)).collect();
        if let Some(digits) = digits.filter(|digits| digits.len().is_multiple_of(2)) {
            put_number(bytes, common as u64);
            put_number(bytes, (rest.len() as u64) << 1 | 1);
            bytes.extend(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |a, b| a << 4 | b)));
            return;
        }
    }
    let rest = key.get(common..).unwrap_or_default();
    put_number(bytes, common as u64);
    put_number(bytes, (rest.len() as u64) << 1);
    bytes.extend(rest);
}

/// Changes a key into the next one.
fn take_rest(bytes: &mut &[u8], key: &mut Vec<u8>) {
    key.truncate(usize::try_from(take_number::<u64>(bytes)).unwrap_or(usize::MAX));
    let length: u64 = take_number(bytes);
    let digits = length & 1 == 1;
    let length = usize::try_from(length >> 1).unwrap_or(usize::MAX);
    let packed = if digits { length / 2 } else { length };
    let (rest, after) = bytes.split_at(packed.min(bytes.len()));
    *bytes = after;
    if digits {
        key.extend(rest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit_of));
    } else {
        key.extend(rest);
    }
}

const fn digit_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

const fn digit_of(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

/// Writes a 64-bit number as postcard does (varint; a signed number in zigzag).
fn put_number<T: Serialize>(bytes: &mut Vec<u8>, number: T) {
    // A varint of 64 bits has at most 10 bytes.
    bytes.extend_from_slice(postcard::to_slice(&number, &mut [0; 10]).unwrap_or_default());
}

/// Reads what [`put_number`] wrote.
fn take_number<'a, T: Deserialize<'a> + Default>(bytes: &mut &'a [u8]) -> T {
    let (number, rest) = postcard::take_from_bytes(bytes).unwrap_or_default();
    *bytes = rest;
    number
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn packed_keys_are_unpacked_as_they_were(
            keys in btree_map("/(net|x)/([0-9a-f]{0,9}|.{0,9})", any::<i64>(), 1..50),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            prop_assert_eq!(Segment::pack(&keys).expect("not empty").unpack(), keys);
        }

        /// After any sequence of writes, deletions and pages, the delivered keys equal the model's.
        #[test]
        fn what_is_seen_is_what_is_there(
            history in proptest::collection::vec(
                ("[a-d]{1,3}", 0..9_i64, btree_map("[a-d]{1,3}", 1..9_i64, 0..20), any::<bool>()),
                0..40,
            ),
        ) {
            let mut seen = Seen::default();
            let mut there = BTreeMap::new();
            for (key, revision, entries, list) in history {
                if list {
                    // A page replaces all keys from this one on.
                    let entries: BTreeMap<_, _> =
                        entries.into_iter().filter(|(other, _)| *other >= key).collect();
                    let page = Page {
                        revision: 10,
                        from: key.clone(),
                        to: "e".to_owned(),
                        entries: entries.iter().map(|(key, at)| Entry {
                            key: key.clone(), value: Vec::new(), mod_revision: *at,
                        }).collect(),
                    };
                    let compared = seen.compare(page.clone());
                    let found = seen.turn_to(page);
                    prop_assert_eq!(&found, &compared);
                    for entry in found.news {
                        let before = there.insert(entry.key, entry.mod_revision);
                        prop_assert_ne!(before, Some(entry.mod_revision));
                    }
                    // A key that is gone stays until its deletion is delivered.
                    for (key, revision) in found.gone {
                        prop_assert_eq!(there.remove(&key), Some(revision));
                        let still = seen.within(&key, &format!("{key} "));
                        prop_assert_eq!(still, [(key.clone(), revision)]);
                        seen.delete(&key);
                    }
                    let now: BTreeMap<_, _> =
                        there.range(key..).map(|(key, at)| (key.clone(), *at)).collect();
                    prop_assert_eq!(now, entries);
                } else if revision == 0 {
                    seen.delete(&key);
                    there.remove(&key);
                } else {
                    seen.put(&key, revision);
                    there.insert(key, revision);
                }
                if there.len() % 3 == 0 {
                    let all = seen.take("", None);
                    seen.pack(all);
                }
            }
            prop_assert_eq!(seen.take("", None), there.into_iter().collect::<Vec<_>>());
        }
    }

    /// Another store may have the same key at the same revision with another value.
    #[test]
    fn every_entry_is_news_once_the_revisions_are_forgotten() {
        let entry = |key: &str| Entry { key: key.to_owned(), value: Vec::new(), mod_revision: 3 };
        let page = Page {
            revision: 4,
            from: "/".to_owned(),
            to: "0".to_owned(),
            entries: vec![entry("/a"), entry("/b")],
        };
        let mut seen = Seen::default();
        seen.turn_to(page.clone());
        seen.put("/c", 4);
        assert!(seen.compare(page.clone()).news.is_empty());
        seen.forget_revisions();
        let found = seen.turn_to(page.clone());
        assert_eq!(found.news, page.entries);
        assert_eq!(found.gone, [("/c".to_owned(), NEVER)]);
        assert!(seen.turn_to(page).news.is_empty());
    }

    #[test]
    fn many_changes_are_packed() {
        let mut seen = Seen::default();
        for number in 0..10_000_i64 {
            seen.put(&format!("/endpoints/net/{number:064x}"), number);
        }
        let packed: usize = seen.segments.iter().map(|segment| segment.bytes.len()).sum();
        assert!(seen.recent.len() <= 2 * RECENT, "{}", seen.recent.len());
        assert!(packed < 40 * 10_000, "{packed}");
    }
}
