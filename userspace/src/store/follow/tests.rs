use proptest::prelude::*;

use super::*;
use crate::store::Entry;

proptest! {
    /// Whoever applies the difference to what it saw holds what the snapshot holds.
    #[test]
    fn a_difference_leads_to_the_snapshot(
        before in proptest::collection::btree_map("[a-d]{1,2}", 1..20_i64, 0..10),
        after in proptest::collection::btree_map("[a-d]{1,2}", 1..40_i64, 0..10),
    ) {
        let entry = |key: &String, revision: i64| Entry {
            key: key.clone(), value: revision.to_string().into_bytes(), mod_revision: revision,
        };
        let snapshot = Snapshot {
            revision: 40,
            entries: after.iter().map(|(key, revision)| entry(key, *revision)).collect(),
        };
        let changes = difference(&before, &snapshot);
        // No more than needed.
        let touched: std::collections::BTreeSet<&str> = changes.iter().map(Change::key).collect();
        prop_assert_eq!(touched.len(), changes.len());
        let mut held = before.clone();
        for change in &changes {
            match change {
                Change::Put(entry) => {
                    prop_assert_ne!(before.get(&entry.key), Some(&entry.mod_revision));
                    held.insert(entry.key.clone(), entry.mod_revision);
                }
                Change::Delete { key, revision } => {
                    prop_assert_eq!(*revision, 40);
                    prop_assert!(held.remove(key).is_some());
                }
            }
        }
        prop_assert_eq!(held, after);
    }
}
