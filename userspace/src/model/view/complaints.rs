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
    /// All skipped or contradictory records, one line each.
    pub fn complaints(&self) -> Vec<String> {
        self.first_complaints(usize::MAX).0
    }

    /// As [`Self::complaints`], of each kind the first `most`, and the number of the others.
    pub fn first_complaints(&self, most: usize) -> (Vec<String>, usize) {
        let networks = self.networks.keys().filter_map(|name| self.usable_network(name).err());
        let endpoints = self.endpoints.networks().flat_map(|name| {
            let network = self.usable_network(name).ok();
            // An unusable network is reported once, not once per endpoint.
            let named = network.is_none() && self.networks.contains_key(name);
            let briefs = self.endpoints.briefs(name).filter(move |_| !named);
            let briefs =
                briefs.filter(move |ep| network.is_none_or(|net| !self.is_usable(net, ep)));
            briefs.filter_map(|ep| self.usable_endpoint(&*ep.unpack(name)?).err())
        });
        // If one of them has a claim, the others are not usable, and named already.
        let macs = self.endpoints.networks().flat_map(|name| {
            let repeated = self.endpoints.repeated_macs(name);
            let repeated = repeated.filter(move |(mac, ..)| self.mac_claim(name, *mac).is_none());
            repeated.map(move |(mac, first, other)| {
                format!(
                    "endpoint {} in network '{name}': MAC {mac} is that of endpoint {}, too, and nobody has claimed it",
                    other.text(),
                    first.text()
                )
            })
        });
        let skipped = self.problems.iter().take(most).map(|(key, why)| problem_line(key, why));
        let mut lines: Vec<String> = skipped.collect();
        let mut more = self.problems.len() - lines.len();
        more += first_lines(networks, most, &mut lines);
        more += first_lines(endpoints, most, &mut lines);
        more += first_lines(macs, most, &mut lines);
        (lines, more)
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

/// Adds the first `most` items to `lines`, and returns the number of the others. A name in a record
/// may have any length.
fn first_lines(
    mut found: impl Iterator<Item = String>,
    most: usize,
    lines: &mut Vec<String>,
) -> usize {
    lines.extend(found.by_ref().take(most).map(|line| one_line(&line, LINE_LIMIT)));
    found.count()
}

/// The line about a key whose record is skipped.
fn problem_line(key: &str, why: &str) -> String {
    format!("{}: {why}", one_line(key, KEY_LIMIT))
}
