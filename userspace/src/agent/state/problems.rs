//! The present problems of this host.

use std::{
    collections::BTreeMap,
    ops::Bound::{Included, Unbounded},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::api::types::one_line;

/// Most problems of a kind that are named, and most lines about a kind in the log in a [`WINDOW`].
/// Somebody who can write to the store can make very many.
pub(crate) const MOST: usize = 20;
/// Time in which [`MOST`] counts.
const WINDOW: Duration = Duration::from_secs(60);

/// The problems that `status` shows, each under a key of its own. The part of a key before the
/// first '/' is its kind.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: BTreeMap<String, String>,
    /// What the log has of each kind.
    logged: BTreeMap<String, Logged>,
}

/// What the log has of a kind in a [`WINDOW`].
#[derive(Clone, Copy, Debug)]
struct Logged {
    since: Instant,
    lines: usize,
    left_out: u64,
}

fn kind_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(kind, _)| kind)
}

impl State {
    /// The keys that begin with `prefix`.
    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> {
        let from = self.lines.range::<str, _>((Included(prefix), Unbounded));
        from.map(|(key, _)| key).take_while(move |key| key.starts_with(prefix))
    }

    /// Whether one more line of a kind may be logged now.
    fn may_log(&mut self, kind: &str, now: Instant) -> bool {
        let fresh = Logged { since: now, lines: 0, left_out: 0 };
        let logged = self.logged.entry(kind.to_owned()).or_insert(fresh);
        if now.duration_since(logged.since) >= WINDOW {
            if logged.left_out > 0 {
                let left_out = logged.left_out;
                tracing::warn!("{left_out} lines about problems of kind '{kind}' were left out");
            }
            *logged = fresh;
        }
        if logged.lines < MOST {
            logged.lines += 1;
            return true;
        }
        logged.left_out += 1;
        if logged.left_out == 1 {
            let seconds = WINDOW.as_secs();
            tracing::warn!(
                "more than {MOST} lines about problems of kind '{kind}' in {seconds} s: the others are left out, 'culvert status' counts the problems"
            );
        }
        false
    }

    fn log(&mut self, kind: &str, line: &str, is_over: bool) {
        if !self.may_log(kind, Instant::now()) {
            return;
        }
        if is_over {
            tracing::info!("resolved: {line}");
        } else {
            tracing::warn!("{line}");
        }
    }
}

impl Problems {
    // A thread that panicked with the lock held left valid maps.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the problem under `key`, one line, which is shortened if it is too long. `None`: the
    /// problem is over. Logs a change.
    pub(crate) fn set(&self, key: &str, line: Option<String>) {
        let mut state = self.state();
        match line.map(one_line) {
            Some(line) => {
                if state.lines.get(key) != Some(&line) {
                    state.log(kind_of(key), &line, false);
                    state.lines.insert(key.to_owned(), line);
                }
            }
            None => {
                if let Some(line) = state.lines.remove(key) {
                    state.log(kind_of(key), &line, true);
                }
            }
        }
    }

    /// Logs a problem of a kind that is kept elsewhere, or its end. A line that is too long is
    /// shortened.
    pub(crate) fn log(&self, kind: &str, line: &str, is_over: bool) {
        self.state().log(kind, &one_line(line.to_owned()), is_over);
    }

    /// Replaces all problems whose key begins with `prefix` by `lines`.
    pub(crate) fn set_below(&self, prefix: &str, lines: BTreeMap<String, String>) {
        let over: Vec<String> = {
            let state = self.state();
            state.below(prefix).filter(|key| !lines.contains_key(*key)).cloned().collect()
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
        self.state().lines.contains_key(key)
    }

    /// Whether there is a problem whose key begins with `prefix`.
    pub(crate) fn has_below(&self, prefix: &str) -> bool {
        self.state().below(prefix).next().is_some()
    }

    /// The problems, a line each: of each kind the first [`MOST`], and the number of the others.
    pub(crate) fn lines(&self) -> Vec<String> {
        let state = self.state();
        let mut lines = Vec::new();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, line) in &state.lines {
            let number = numbers.entry(kind_of(key)).or_default();
            *number += 1;
            if *number <= MOST {
                lines.push(line.clone());
            }
        }
        let more = numbers.into_iter().filter(|(_, number)| *number > MOST);
        lines.extend(more.map(|(kind, number)| {
            format!("{} more problems of kind '{kind}', which are not named", number - MOST)
        }));
        lines
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

    #[test]
    fn very_many_problems_are_counted_and_few_are_named() {
        let problems = Problems::default();
        problems.set("b", Some("another".to_owned()));
        for number in 0..1000 {
            problems.set(&format!("a/{number:04}"), Some(format!("line {number}")));
        }
        let lines = problems.lines();
        assert_eq!(lines.len(), MOST + 1 + 1);
        assert_eq!((lines[0].as_str(), lines[MOST].as_str()), ("line 0", "another"));
        let last = format!("{} more problems of kind 'a', which are not named", 1000 - MOST);
        assert_eq!(lines[MOST + 1], last);
        for number in MOST..1000 {
            problems.set(&format!("a/{number:04}"), None);
        }
        assert_eq!(problems.lines().len(), MOST + 1);
    }

    #[test]
    fn lines_of_the_log_are_bounded_for_each_kind() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut logged = |kind: &str, at: Duration| state.may_log(kind, start + at);
        let now = Duration::ZERO;
        assert_eq!((0..1000).filter(|_| logged("a", now)).count(), MOST);
        assert!(logged("b", now), "a kind of its own");
        assert!(!logged("a", WINDOW - Duration::from_millis(1)));
        assert_eq!((0..1000).filter(|_| logged("a", WINDOW)).count(), MOST);
    }
}
