//! The present problems of this host.

use std::{
    collections::BTreeMap,
    ops::Bound::{Included, Unbounded},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The problems that `status` shows, each under a key of its own.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    lines: Mutex<BTreeMap<String, String>>,
}

impl Problems {
    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn lines_mut(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the problem under `key`, one line. `None`: the problem is over. Logs a change.
    pub(crate) fn set(&self, key: &str, line: Option<String>) {
        let mut lines = self.lines_mut();
        match line {
            Some(line) => {
                if lines.get(key) != Some(&line) {
                    tracing::warn!("{line}");
                    lines.insert(key.to_owned(), line);
                }
            }
            None => {
                if let Some(line) = lines.remove(key) {
                    tracing::info!("resolved: {line}");
                }
            }
        }
    }

    /// Replaces all problems whose key begins with `prefix` by `lines`.
    pub(crate) fn set_below(&self, prefix: &str, lines: BTreeMap<String, String>) {
        let over: Vec<String> = {
            let held = self.lines_mut();
            let below = held.keys().filter(|key| key.starts_with(prefix));
            below.filter(|key| !lines.contains_key(*key)).cloned().collect()
        };
        for key in over {
            self.set(&key, None);
        }
        for (key, line) in lines {
            self.set(&key, Some(line));
        }
    }

    /// Replaces all problems whose key begins with `prefix` by `lines`, with numbers as the rest of
    /// their keys.
    pub(crate) fn set_list(&self, prefix: &str, lines: Vec<String>) {
        let lines = lines.into_iter().enumerate();
        self.set_below(prefix, lines.map(|(at, line)| (format!("{prefix}{at}"), line)).collect());
    }

    /// Whether there is a problem under `key`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.lines_mut().contains_key(key)
    }

    /// Whether there is a problem whose key begins with `prefix`.
    pub(crate) fn has_below(&self, prefix: &str) -> bool {
        let lines = self.lines_mut();
        let mut from = lines.range::<str, _>((Included(prefix), Unbounded));
        from.next().is_some_and(|(key, _)| key.starts_with(prefix))
    }

    /// All problems, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines_mut().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_below_a_prefix_are_replaced_and_others_stay() {
        let problems = Problems::default();
        problems.set("a/1", Some("one".to_owned()));
        problems.set("a/2", Some("two".to_owned()));
        problems.set("b", Some("other".to_owned()));
        problems.set_below("a/", [("a/2".to_owned(), "new".to_owned())].into());
        assert_eq!(problems.lines(), ["new", "other"]);
        for (prefix, is_there) in [("a/", true), ("b", true), ("a/3", false), ("c", false)] {
            assert_eq!(problems.has_below(prefix), is_there, "{prefix}");
        }
        problems.set("b", None);
        problems.set_below("a/", BTreeMap::new());
        assert!(problems.lines().is_empty());
    }
}
