//! A sorted list in pieces. To insert or to remove an item moves the items of one piece, and not
//! all behind it.

use std::cmp::Ordering;

/// Greatest number of items of a piece.
const MOST: usize = 512;

/// Location of an item: number of the piece, and index in the piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    piece: usize,
    index: usize,
}

/// A list, see the module. Its order is that of the caller.
#[derive(Clone, Debug)]
pub(super) struct Chunked<T> {
    /// No piece is empty.
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T> Chunked<T> {
    /// Number of items. The call takes the same time for any number.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All items, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.pieces.last()?.last()
    }

    pub(super) fn get(&self, place: Place) -> Option<&T> {
        self.pieces.get(place.piece)?.get(place.index)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.pieces.get_mut(place.piece)?.get_mut(place.index)
    }

    /// Where the wanted item is, or where it is to be inserted. `order` compares an item with the
    /// wanted one, as for [`slice::binary_search_by`].
    pub(super) fn find(&self, order: impl Fn(&T) -> Ordering) -> Result<Place, Place> {
        let is_before = |piece: &Vec<T>| piece.last().is_some_and(|last| order(last).is_lt());
        let piece = self.pieces.partition_point(is_before);
        match self.pieces.get(piece) {
            Some(items) => match items.binary_search_by(&order) {
                Ok(index) => Ok(Place { piece, index }),
                Err(index) => Err(Place { piece, index }),
            },
            None => Err(self.end()),
        }
    }

    /// Where an item that is greater than all is to be inserted.
    fn end(&self) -> Place {
        let index = self.pieces.last().map_or(0, Vec::len);
        Place { piece: self.pieces.len().saturating_sub(1), index }
    }

    /// Adds an item that is greater than all.
    pub(super) fn push(&mut self, item: T) {
        self.len += 1;
        match self.pieces.last_mut().filter(|piece| piece.len() < MOST) {
            Some(piece) => piece.push(item),
            None => self.pieces.push(vec![item]),
        }
    }

    /// Adds an item at the place that [`Self::find`] has returned for it.
    pub(super) fn insert(&mut self, Place { piece: number, index }: Place, item: T) {
        let Some(piece) = self.pieces.get_mut(number).filter(|piece| index <= piece.len()) else {
            self.push(item);
            return;
        };
        self.len += 1;
        if piece.len() < MOST {
            piece.insert(index, item);
            return;
        }
        let mut behind = piece.split_off(MOST / 2);
        match index.checked_sub(MOST / 2) {
            Some(index) => behind.insert(index, item),
            None => piece.insert(index, item),
        }
        self.pieces.insert(number + 1, behind);
    }

    /// Removes the item at a place that [`Self::find`] has returned.
    pub(super) fn remove(&mut self, Place { piece: number, index }: Place) -> Option<T> {
        let piece = self.pieces.get_mut(number).filter(|piece| index < piece.len())?;
        let item = piece.remove(index);
        if piece.is_empty() {
            self.pieces.remove(number);
        }
        self.len -= 1;
        Some(item)
    }
}

impl<T> FromIterator<T> for Chunked<T> {
    /// The list of items that come in order. It takes no more memory than they need.
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut list = Self::default();
        for item in items {
            list.push(item);
        }
        list.pieces.iter_mut().for_each(Vec::shrink_to_fit);
        list.pieces.shrink_to_fit();
        list
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a sorted vector, for more items than one piece has.
        #[test]
        fn it_is_a_sorted_list(
            first in 0..3 * MOST,
            history in proptest::collection::vec((0..4_000_usize, any::<bool>()), 0..400),
        ) {
            let mut expected: Vec<usize> = (0..first).map(|item| 2 * item).collect();
            let mut list: Chunked<usize> = expected.iter().copied().collect();
            for (item, there) in history {
                let place = list.find(|other| other.cmp(&item));
                prop_assert_eq!(place.is_ok(), expected.binary_search(&item).is_ok());
                match (place, expected.binary_search(&item)) {
                    (Ok(place), Ok(index)) if !there => {
                        prop_assert_eq!(list.remove(place), Some(expected.remove(index)));
                    }
                    (Ok(place), Ok(_)) => {
                        prop_assert_eq!(list.get(place), Some(&item));
                        prop_assert_eq!(list.get_mut(place).copied(), Some(item));
                    }
                    (Err(place), Err(index)) if there => {
                        list.insert(place, item);
                        expected.insert(index, item);
                    }
                    _ => {}
                }
                prop_assert_eq!(list.len(), expected.len());
                prop_assert_eq!(list.is_empty(), expected.is_empty());
                prop_assert_eq!(list.last(), expected.last());
                prop_assert!(list.pieces.iter().all(|piece| (1..=MOST).contains(&piece.len())));
            }
            prop_assert!(list.iter().eq(expected.iter()));
        }
    }

    /// A removal moves the items of one piece at most, however many there are.
    #[test]
    fn a_change_concerns_one_piece() {
        let mut list: Chunked<usize> = (0..20_000).collect();
        assert!(list.pieces.iter().all(|piece| piece.capacity() <= MOST));
        let sizes = |list: &Chunked<usize>| list.pieces.iter().map(Vec::len).collect::<Vec<_>>();
        let before = sizes(&list);
        let place = list.find(|item| item.cmp(&7)).unwrap();
        assert_eq!(list.remove(place), Some(7));
        let differing = before.iter().zip(sizes(&list)).filter(|(was, is)| **was != *is).count();
        assert_eq!(differing, 1);
    }
}
