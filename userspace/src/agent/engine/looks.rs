//! When to look into sandboxes in which something was changed.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::{Duration, Instant};

/// How long changes of the host and of sandboxes are gathered before they are acted on: each device
/// and each route of a routing daemon is an event.
pub(super) const GATHER: Duration = Duration::from_millis(20);

/// The looks that are due, by endpoint. The first look at a sandbox is almost at once. If another
/// program undoes each repair, the further ones are a pause apart.
#[derive(Debug, Default)]
pub(super) struct Looks {
    due: BTreeMap<String, Instant>,
    /// The last looks, until the pause after them is over.
    last: BTreeMap<String, Instant>,
}

impl Looks {
    /// Notes that something was changed. The looks at an endpoint are at least `pause` apart.
    pub(super) fn note(&mut self, endpoints: BTreeSet<String>, now: Instant, pause: Duration) {
        for id in endpoints {
            let earliest = self.last.get(&id).map_or(now, |last| *last + pause);
            self.due.entry(id).or_insert_with(|| earliest.max(now + GATHER));
        }
    }

    /// Time of the next look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Takes the endpoints out that are to be looked at now.
    pub(super) fn take(&mut self, now: Instant, pause: Duration) -> Vec<String> {
        self.last.retain(|_, last| now < *last + pause);
        let due = self.due.iter().filter(|(_, due)| **due <= now);
        let due: Vec<String> = due.map(|(id, _)| id.clone()).collect();
        for id in &due {
            self.due.remove(id);
            self.last.insert(id.clone(), now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn many_changes_are_one_look() {
        let began = Instant::now();
        let mut looks = Looks::default();
        assert_eq!(looks.next(), None);
        looks.note(ids(&["a"]), began, PAUSE);
        looks.note(ids(&["a", "b"]), began + GATHER / 2, PAUSE);
        assert_eq!(looks.next(), Some(began + GATHER));
        assert!(looks.take(began + GATHER / 2, PAUSE).is_empty());
        assert_eq!(looks.take(began + GATHER, PAUSE), ["a"]);
        assert_eq!(looks.take(began + GATHER * 2, PAUSE), ["b"]);
        assert_eq!(looks.next(), None);
    }

    /// Another program in the sandbox may set back what the agent sets.
    #[test]
    fn looks_at_one_endpoint_are_a_pause_apart() {
        let began = Instant::now();
        let mut looks = Looks::default();
        looks.note(ids(&["a"]), began, PAUSE);
        let first = began + GATHER;
        assert_eq!(looks.take(first, PAUSE), ["a"]);
        looks.note(ids(&["a", "b"]), first, PAUSE);
        assert_eq!(looks.take(first + GATHER, PAUSE), ["b"]);
        assert_eq!(looks.next(), Some(first + PAUSE));
        assert_eq!(looks.take(first + PAUSE, PAUSE), ["a"]);
        // After a rest it is at once again.
        let later = first + PAUSE * 3;
        looks.note(ids(&["a"]), later, PAUSE);
        assert_eq!(looks.next(), Some(later + GATHER));
    }
}
