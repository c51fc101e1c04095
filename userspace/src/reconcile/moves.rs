//! Addresses that get another MAC in the store. The agent announces the new MAC to containers that
//! may have the former MAC in their neighbour tables.

use std::collections::BTreeMap;

use culvert_common::abi::NeighKey;

/// A MAC address.
type Mac = [u8; 6];

/// Addresses whose MAC has changed, and addresses that have lost their MAC.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// The new MAC of each address whose MAC has changed since the last [`Self::take`].
    moved: BTreeMap<NeighKey, Mac>,
    /// The addresses that have no MAC now.
    freed: BTreeMap<NeighKey, Freed>,
    /// The keys of `freed` by [`Freed::number`].
    order: BTreeMap<u64, NeighKey>,
    /// The next [`Freed::number`].
    next: u64,
}

/// An address that has no MAC now.
#[derive(Debug)]
struct Freed {
    /// The MAC that containers have for the address. `None`: its last change was not announced, so
    /// that containers may have different MACs.
    told: Option<Mac>,
    /// Number in the order of removal. The entry with the lowest number is forgotten first.
    number: u64,
}

impl Moves {
    /// Greatest number of freed addresses that are remembered. A container's neighbour entry of an
    /// older one is corrected by the container's own unreachability detection (RFC 4861 §7.3; RFC
    /// 1122 §2.3.2.1).
    const MOST: usize = 8192;

    /// Notes a change of the neighbour map: the MAC of an address before and after it.
    pub(super) fn note(&mut self, key: NeighKey, before: Option<Mac>, after: Option<Mac>) {
        // `told` is the MAC that containers have for the address. `None`: they may have different
        // MACs.
        let (is_known, told) = match (before, self.remember(&key)) {
            (Some(before), _) => (true, (!self.moved.contains_key(&key)).then_some(before)),
            (None, Some(freed)) => (true, freed.told),
            (None, None) => (false, None),
        };
        match after {
            Some(after) if is_known && told != Some(after) => {
                self.moved.insert(key, after);
            }
            None if is_known => {
                self.moved.remove(&key);
                self.free(key, told);
            }
            Some(_) | None => {}
        }
    }

    /// Removes an address from `freed`. Returns its entry.
    fn remember(&mut self, key: &NeighKey) -> Option<Freed> {
        let freed = self.freed.remove(key)?;
        self.order.remove(&freed.number);
        Some(freed)
    }

    /// Adds an address to `freed`, which does not have it.
    fn free(&mut self, key: NeighKey, told: Option<Mac>) {
        self.freed.insert(key, Freed { told, number: self.next });
        self.order.insert(self.next, key);
        self.next += 1;
        while self.order.len() > Self::MOST {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.freed.remove(&oldest);
            }
        }
    }

    /// Takes the addresses that have moved since the last call, with their MACs.
    pub(super) fn take(&mut self) -> BTreeMap<NeighKey, Mac> {
        std::mem::take(&mut self.moved)
    }

    /// Puts back the changes that [`Self::take`] returned and that were not announced. Later
    /// changes are kept.
    pub(super) fn put_back(&mut self, moved: BTreeMap<NeighKey, Mac>) {
        for (key, mac) in moved {
            match self.freed.get_mut(&key) {
                Some(freed) => freed.told = None,
                None => {
                    self.moved.entry(key).or_insert(mac);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> NeighKey {
        let [_, b, c, d] = n.to_be_bytes();
        NeighKey::v4(256, [10, b, c, d])
    }

    fn mac(n: u8) -> Mac {
        [2, 0, 0, 0, 0, n]
    }

    #[test]
    fn an_address_that_gets_another_mac_has_moved() {
        let mut moves = Moves::default();
        moves.note(key(1), None, Some(mac(1)));
        moves.note(key(1), Some(mac(1)), Some(mac(1)));
        assert!(moves.take().is_empty(), "a new address is news to nobody");
        moves.note(key(1), Some(mac(1)), Some(mac(2)));
        assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(2))]));
        assert!(moves.take().is_empty());
        // The address is freed, and later gets another MAC.
        moves.note(key(1), Some(mac(2)), None);
        assert!(moves.take().is_empty());
        moves.note(key(1), None, Some(mac(3)));
        assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(3))]));
        // The address is freed and gets the same MAC, as when a container is made again.
        moves.note(key(1), Some(mac(3)), None);
        moves.note(key(1), None, Some(mac(3)));
        assert!(moves.take().is_empty());
    }

    #[test]
    fn a_move_that_nobody_was_told_of_is_told_when_the_address_comes_back() {
        // Some containers have the former MAC. Containers that asked later have the new one.
        for back in [3, 4, 5] {
            let mut moves = Moves::default();
            moves.note(key(1), Some(mac(3)), Some(mac(4)));
            moves.note(key(1), Some(mac(4)), None);
            assert!(moves.take().is_empty());
            moves.note(key(1), None, Some(mac(back)));
            assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(back))]));
            // The MAC was announced: the same MAC again needs no announcement.
            moves.note(key(1), Some(mac(back)), None);
            moves.note(key(1), None, Some(mac(back)));
            assert!(moves.take().is_empty());
        }
        // The address gets another MAC, and then the former one.
        let mut moves = Moves::default();
        moves.note(key(1), Some(mac(3)), Some(mac(4)));
        moves.note(key(1), Some(mac(4)), Some(mac(3)));
        assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(3))]));
    }

    #[test]
    fn what_could_not_be_told_is_told_later() {
        let mut moves = Moves::default();
        for n in [1, 2] {
            moves.note(key(n), Some(mac(1)), Some(mac(2)));
        }
        let untold = moves.take();
        moves.note(key(2), Some(mac(2)), Some(mac(3)));
        moves.put_back(untold);
        assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(2)), (key(2), mac(3))]));
        // An address that is free meanwhile has no MAC to tell.
        moves.note(key(1), Some(mac(2)), Some(mac(3)));
        let untold = moves.take();
        moves.note(key(1), Some(mac(3)), None);
        moves.put_back(untold);
        assert!(moves.take().is_empty());
        moves.note(key(1), None, Some(mac(3)));
        assert_eq!(moves.take(), BTreeMap::from([(key(1), mac(3))]));
    }

    #[test]
    fn the_memory_of_freed_addresses_is_bounded() {
        let mut moves = Moves::default();
        let most = u32::try_from(Moves::MOST).unwrap();
        for n in 0..most + 10 {
            moves.note(key(n), Some(mac(1)), None);
        }
        assert!(moves.freed.len() <= Moves::MOST && moves.order.len() <= Moves::MOST);
        moves.note(key(0), None, Some(mac(2)));
        assert!(moves.take().is_empty(), "forgotten");
        moves.note(key(most), None, Some(mac(2)));
        assert_eq!(moves.take().len(), 1);
        // An address that is freed many times displaces no other address. Its last removal counts.
        let freed = moves.freed.len();
        moves.note(key(0), Some(mac(1)), None);
        for _ in 0..2 * most {
            moves.note(key(0), None, Some(mac(1)));
            moves.note(key(0), Some(mac(1)), None);
        }
        assert_eq!((moves.freed.len(), moves.order.len()), (freed + 1, freed + 1));
        for n in most + 10..2 * most + 9 {
            moves.note(key(n), Some(mac(1)), None);
        }
        assert_eq!(moves.freed.len(), Moves::MOST);
        moves.note(key(0), None, Some(mac(2)));
        assert_eq!(moves.take(), BTreeMap::from([(key(0), mac(2))]));
    }
}
