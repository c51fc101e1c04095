//! Slots of the members of a flood list.

use std::collections::{BTreeMap, BTreeSet};

use culvert_common::abi::FloodKey;

/// Gives each of `members` one of the slots `0..members.len()` of `vni`. A member that has
/// such a slot in `observed` keeps it, so that a change writes as few slots as possible.
pub fn assign_slots<V: Copy + Ord>(
    vni: u32,
    members: &BTreeSet<V>,
    observed: &BTreeMap<FloodKey, V>,
) -> BTreeMap<FloodKey, V> {
    let mut slots = BTreeMap::new();
    let mut homeless = members.clone();
    for (key, member) in observed {
        let in_range = usize::try_from(key.index).is_ok_and(|index| index < members.len());
        if key.vni == vni && in_range && homeless.remove(member) {
            slots.insert(*key, *member);
        }
    }
    let mut index = 0;
    for member in homeless {
        while slots.contains_key(&FloodKey { vni, index }) {
            index += 1;
        }
        slots.insert(FloodKey { vni, index }, member);
    }
    slots
}

/// The slots that change in the list of `vni` without gaps, `observed`, when the slots `free` are
/// given up and `new` members come. The last members move into slots that stay free. The time does
/// not depend on the number of the other members.
pub(super) fn change_slots<V: Copy>(
    vni: u32,
    observed: &BTreeMap<FloodKey, V>,
    mut free: BTreeSet<u32>,
    new: impl Iterator<Item = V>,
) -> BTreeMap<FloodKey, Option<V>> {
    let key = |index| FloodKey { vni, index };
    let mut end = u32::try_from(observed.len()).unwrap_or(u32::MAX);
    let mut changes = BTreeMap::new();
    for member in new {
        let index = free.pop_first().unwrap_or_else(|| {
            end = end.saturating_add(1);
            end - 1
        });
        changes.insert(key(index), Some(member));
    }
    while let Some(hole) = free.pop_last() {
        end = end.saturating_sub(1);
        let last = changes.get(&key(end)).copied().flatten();
        let last = last.or_else(|| observed.get(&key(end)).copied());
        changes.insert(key(end), None);
        if hole != end {
            changes.insert(key(hole), last);
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Changed slots are those of a list without gaps: of the same members, in slots that a
        /// whole assignment leaves as they are.
        #[test]
        fn changed_slots_are_without_gaps(
            members in proptest::collection::btree_set(0..40_u32, 0..20),
            leave in proptest::collection::btree_set(0..40_u32, 0..20),
            come in proptest::collection::btree_set(40..60_u32, 0..6),
        ) {
            let mut slots = assign_slots(7, &members, &BTreeMap::new());
            let free = slots.iter().filter(|(_, member)| leave.contains(*member));
            let free = free.map(|(key, _)| key.index).collect();
            for (key, member) in change_slots(7, &slots, free, come.iter().copied()) {
                match member {
                    Some(member) => slots.insert(key, member),
                    None => slots.remove(&key),
                };
            }
            let members: BTreeSet<u32> =
                members.difference(&leave).chain(&come).copied().collect();
            prop_assert_eq!(slots.len(), members.len());
            prop_assert_eq!(assign_slots(7, &members, &slots), slots);
        }
    }

    fn slots(members: &[u32], observed: &[(u32, u32)]) -> Vec<(u32, u32)> {
        let observed =
            observed.iter().map(|(index, v)| (FloodKey { vni: 7, index: *index }, *v)).collect();
        assign_slots(7, &members.iter().copied().collect(), &observed)
            .into_iter()
            .map(|(key, member)| (key.index, member))
            .collect()
    }

    #[test]
    fn a_new_list_is_dense_and_sorted() {
        assert_eq!(slots(&[30, 10, 20], &[]), [(0, 10), (1, 20), (2, 30)]);
    }

    #[test]
    fn members_that_stay_keep_their_slots() {
        assert_eq!(slots(&[10, 20, 5], &[(0, 20), (1, 10)]), [(0, 20), (1, 10), (2, 5)]);
    }

    #[test]
    fn only_a_member_beyond_the_end_moves_into_a_hole() {
        assert_eq!(slots(&[10, 30], &[(0, 10), (1, 20), (2, 30)]), [(0, 10), (1, 30)]);
    }

    #[test]
    fn a_member_listed_twice_keeps_one_slot() {
        assert_eq!(slots(&[10, 20], &[(0, 10), (1, 10)]), [(0, 10), (1, 20)]);
    }

    #[test]
    fn slots_of_another_network_do_not_count() {
        let observed = BTreeMap::from([(FloodKey { vni: 8, index: 1 }, 10)]);
        let laid = assign_slots(7, &BTreeSet::from([10]), &observed);
        assert_eq!(laid, BTreeMap::from([(FloodKey { vni: 7, index: 0 }, 10)]));
    }
}
