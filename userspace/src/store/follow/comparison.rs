//! Comparison of the delivered keys with a list of the store.
//!
//! If the history that a follower has missed is compacted, a list alone does not tell a key that was
//! deleted from a key that a rolled-back store never had. In the history that was seen up to a
//! revision `last`, two things hold for every later list:
//!
//! * An entry that was written up to `last` was delivered with this revision.
//! * A delivered key that the list does not have was deleted after `last`.
//!
//! An entry against the first rule shows another history. The second rule cannot be checked, except
//! for keys that were written up to a revision that both histories share: such a key was in the
//! store, so it was deleted there.

use super::seen::Difference;
use crate::store::{Entry, Revision};

/// The differences between the delivered keys and a list, of which all pages are added.
#[derive(Debug)]
pub(super) struct Comparison {
    /// All changes up to this revision are delivered.
    last: Revision,
    /// The entries that are to be delivered.
    news: Vec<Entry>,
    /// Delivered keys that the list does not have.
    gone: Vec<(String, Revision)>,
    /// The greatest revision of an entry that was delivered with it.
    kept: Revision,
    /// An entry that is not in the history that was seen.
    strange: Option<(String, Revision)>,
}

/// What a list changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    /// Entries that are new or have another revision.
    pub(super) news: Vec<Entry>,
    /// Keys that are deleted.
    pub(super) gone: Vec<String>,
}

impl Comparison {
    /// A comparison of all keys that are delivered up to `last`.
    pub(super) fn new(last: Revision) -> Self {
        Self { last, news: Vec::new(), gone: Vec::new(), kept: 0, strange: None }
    }

    /// Adds the difference of a page.
    pub(super) fn add(&mut self, Difference { news, gone, kept }: Difference) {
        if self.strange.is_none() {
            let strange = news.iter().find(|entry| entry.mod_revision <= self.last);
            self.strange = strange.map(|entry| (entry.key.clone(), entry.mod_revision));
        }
        self.kept = self.kept.max(kept);
        self.news.extend(news);
        self.gone.extend(gone);
    }

    /// What the list changes, if it continues the history that was seen. Up to `proven` the
    /// histories are known to be equal. Keys below `fleeting` are on leases: the store itself deletes
    /// them, so a missing one says nothing.
    ///
    /// # Errors
    ///
    /// One line: the list is of another history, or may be.
    pub(super) fn conclude(
        self,
        proven: Revision,
        fleeting: Option<&str>,
    ) -> Result<Changed, String> {
        let Self { last, news, gone, kept, strange } = self;
        if let Some((key, revision)) = strange {
            return Err(format!(
                "the store was rolled back: it has {key} of revision {revision}, which it did not have at revision {last}"
            ));
        }
        // An entry that was kept is in both histories.
        let shared = proven.max(kept);
        let lasting = |key: &str| fleeting.is_none_or(|prefix| !key.starts_with(prefix));
        let mut lost = gone.iter().filter(|(key, at)| *at > shared && lasting(key));
        if let Some((key, revision)) = lost.next() {
            let missing = match lost.count() {
                0 => "is missing".to_owned(),
                1 => "and 1 more key are missing".to_owned(),
                more => format!("and {more} more keys are missing"),
            };
            return Err(format!(
                "the store may have been rolled back: {key}, written at revision {revision}, {missing}, and the history that would tell of a deletion is compacted"
            ));
        }
        Ok(Changed { news, gone: gone.into_iter().map(|(key, _)| key).collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::store::{Page, follow::seen::Seen};

    const FLEETING: &str = "/f";

    /// A store: its keys with their revisions, and its revision.
    #[derive(Clone, Debug, Default)]
    struct Model {
        keys: BTreeMap<String, Revision>,
        revision: Revision,
    }

    /// A step of a history: a key, and whether it is written or deleted.
    type Step = (String, bool);

    impl Model {
        /// Carries out a step. Revisions grow by `by`.
        fn step(&mut self, (key, write): &Step, by: Revision) {
            if *write {
                self.revision += by;
                self.keys.insert(key.clone(), self.revision);
            } else if self.keys.remove(key).is_some() {
                self.revision += by;
            }
        }

        /// Lists the keys in two pages.
        fn list(&self) -> [Page; 2] {
            let page = |from: &str, to: &str| Page {
                revision: self.revision,
                from: from.to_owned(),
                to: to.to_owned(),
                entries: self
                    .keys
                    .iter()
                    .filter(|(key, _)| key.as_str() >= from && key.as_str() < to)
                    .map(|(key, at)| Entry {
                        key: key.clone(),
                        value: Vec::new(),
                        mod_revision: *at,
                    })
                    .collect(),
            };
            [page("/", "/e"), page("/e", "/z")]
        }

        /// The keys of this store as a follower has them.
        fn seen(&self) -> Seen {
            let mut seen = Seen::default();
            for (key, at) in &self.keys {
                seen.put(key, *at);
            }
            seen
        }

        /// Compares the keys of this store with a list of `other`.
        fn compared_with(&self, other: &Self) -> Comparison {
            let (seen, mut comparison) = (self.seen(), Comparison::new(self.revision));
            for page in other.list() {
                comparison.add(seen.compare(page));
            }
            comparison
        }
    }

    fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
        vec(("/[a-f]", prop::bool::weighted(0.7)), 0..most)
    }

    fn after(model: &Model, steps: &[Step], by: Revision) -> Model {
        let mut after = model.clone();
        for step in steps {
            after.step(step, by);
        }
        after
    }

    proptest! {
        /// A list of the same history is trusted, if that is known, and changes what is delivered
        /// into what is there.
        #[test]
        fn a_list_of_the_same_history_is_what_is_there(before in steps(30), later in steps(30)) {
            let seen = after(&Model::default(), &before, 2);
            let now = after(&seen, &later, 2);
            let comparison = seen.compared_with(&now);
            let changed = comparison.conclude(seen.revision, None).expect("the same history");
            let mut there = seen.keys;
            for entry in changed.news {
                there.insert(entry.key, entry.mod_revision);
            }
            for key in changed.gone {
                prop_assert!(there.remove(&key).is_some(), "{}", key);
            }
            prop_assert_eq!(there, now.keys);
        }

        /// A store that was rolled back and written to since is either refused, or nothing that it
        /// has lost is taken for deleted. The revisions of its new writes are odd: the same key with
        /// the same revision in both histories is chance.
        #[test]
        fn nothing_that_a_rolled_back_store_has_lost_is_deleted(
            kept in steps(20),
            lost in steps(20),
            other in steps(20),
        ) {
            let backup = after(&Model::default(), &kept, 2);
            let seen = after(&backup, &lost, 2);
            let rolled_back = Model { revision: backup.revision - 1, ..backup.clone() };
            let now = after(&rolled_back, &other, 2);
            let comparison = seen.compared_with(&now);
            let strange = now.keys.iter().any(|(key, at)| {
                *at <= seen.revision && seen.keys.get(key) != Some(at)
            });
            // What is common to both histories is known up to the backup, and not beyond it.
            for proven in [0, backup.revision / 2, backup.revision] {
                let comparison = seen.compared_with(&now);
                if let Ok(changed) = comparison.conclude(proven, Some(FLEETING)) {
                    prop_assert!(!strange);
                    for key in changed.gone {
                        let at = seen.keys.get(&key).copied();
                        let lost = at.is_some_and(|at| at > backup.revision);
                        prop_assert!(!lost || key.starts_with(FLEETING), "{} of {:?}", key, at);
                    }
                }
            }
            prop_assert_eq!(strange, comparison.strange.is_some());
        }

        /// Without a proof a list of the same history is trusted if each missing key is older than
        /// one that was kept.
        #[test]
        fn an_older_key_may_be_missing_without_a_proof(before in steps(30), later in steps(30)) {
            let seen = after(&Model::default(), &before, 2);
            let now = after(&seen, &later, 2);
            let kept = seen.keys.iter().filter(|(key, at)| now.keys.get(*key) == Some(*at));
            let kept = kept.map(|(_, at)| *at).max().unwrap_or_default();
            let lost = seen.keys.iter().any(|(key, at)| {
                !now.keys.contains_key(key) && *at > kept && !key.starts_with(FLEETING)
            });
            let concluded = seen.compared_with(&now).conclude(0, Some(FLEETING));
            prop_assert_eq!(concluded.is_err(), lost, "{:?}", concluded);
        }
    }

    #[test]
    fn the_line_names_what_is_missing_or_strange() {
        let model = |keys: &[(&str, Revision)], revision| Model {
            keys: keys.iter().map(|(key, at)| ((*key).to_owned(), *at)).collect(),
            revision,
        };
        let seen = model(&[("/a", 2), ("/b", 3), ("/c", 4), ("/f", 5)], 5);
        let concluded =
            |now: &Model| seen.compared_with(now).conclude(0, Some(FLEETING)).unwrap_err();
        let line = concluded(&model(&[("/a", 2)], 9));
        assert!(
            line.contains(": /b, written at revision 3, and 1 more key are missing, and"),
            "{line}"
        );
        let line = concluded(&model(&[], 9));
        assert!(
            line.contains(": /a, written at revision 2, and 2 more keys are missing,"),
            "{line}"
        );
        let line = concluded(&model(&[("/a", 2), ("/b", 3)], 9));
        assert!(line.contains(": /c, written at revision 4, is missing, and"), "{line}");
        let line = concluded(&model(&[("/a", 2), ("/b", 3), ("/c", 1)], 9));
        assert!(line.contains("it has /c of revision 1, which it did not have at"), "{line}");
        // The key on a lease alone may go.
        let now = model(&[("/a", 2), ("/b", 3), ("/c", 4)], 9);
        let changed = seen.compared_with(&now).conclude(0, Some(FLEETING)).unwrap();
        assert_eq!(changed, Changed { news: Vec::new(), gone: vec!["/f".to_owned()] });
    }
}
