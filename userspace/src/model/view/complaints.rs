//! Records that are skipped, or contradict each other.

use std::ops::Bound;

use super::View;
use crate::model::{
    ROOT,
    record::{KEY_LIMIT, one_line},
};

/// Greatest length of a line about records that contradict each other, in characters.
const LINE_LIMIT: usize = 600;

impl View {
    /// All skipped or contradictory records, one line each. All records are looked at.
    pub fn complaints(&self) -> Vec<String> {
        let mut anew = self.clone();
        anew.doubt_all();
        anew.first_complaints(usize::MAX).0
    }

    /// As [`Self::complaints`], of each kind the first `most`, and the number of the others. The view
    /// keeps them from change to change: the time does not depend on how many endpoints there are,
    /// except after a change that concerns all endpoints of a network.
    pub fn first_complaints(&mut self, most: usize) -> (Vec<String>, usize) {
        let skipped = self.problems.iter().take(most).map(|(key, why)| problem_line(key, why));
        let mut lines: Vec<String> = skipped.collect();
        let skipped = self.problems.len() - lines.len();
        let (faults, more) = self.first_faults(most);
        // A name in a record may have any length.
        lines.extend(faults.iter().map(|line| one_line(line, LINE_LIMIT)));
        (lines, skipped + more)
    }

    /// The line about the record at a key that is skipped. `None` if it is not.
    pub fn problem_line(&self, key: &str) -> Option<String> {
        self.problems.get(key).map(|why| problem_line(key, why))
    }

    /// The reason why the record at a key is skipped. `None` if it is not.
    pub fn problem_at(&self, key: &str) -> Option<&str> {
        self.problems.get(key).map(String::as_str)
    }

    /// The first unreadable key below a prefix.
    pub fn problem_below(&self, prefix: &str) -> Option<(&str, &str)> {
        debug_assert!(prefix.starts_with(ROOT), "{prefix}");
        self.problems
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .next()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, why)| (key.as_str(), why.as_str()))
    }
}

/// The line about a key whose record is skipped.
fn problem_line(key: &str, why: &str) -> String {
    format!("{}: {why}", one_line(key, KEY_LIMIT))
}
