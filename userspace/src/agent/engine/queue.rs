//! The queue of slow work.

use tokio::time::{Duration, Instant};

/// One piece of work, by endpoint identifier. Removals are done first: a new endpoint may have
/// the interface name or the address of a removed one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Remove the device pair.
    Unplug(String),
    /// Make the device pair, or correct it.
    Plug(String),
}

/// Part of a pause after which an early attempt is made at the earliest: 1 / `EARLY`.
const EARLY: u32 = 8;

/// Time of the next attempt at failed work of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    /// The time of the next attempt.
    pub(super) at: Instant,
    /// The pause between the failure and the next attempt.
    pub(super) pause: Duration,
    /// The time of the failure.
    failed: Instant,
    /// The host has a route of its own to addresses of the network.
    pub(super) is_covered: bool,
}

impl Retry {
    /// The next attempt, `pause` after a failure at the time `failed`.
    pub(super) fn new(failed: Instant, pause: Duration, is_covered: bool) -> Self {
        Self { at: failed + pause, pause, failed, is_covered }
    }

    /// Makes the next attempt early. However often this is called, an eighth of the pause passes
    /// between two attempts: some hosts change a route or an interface each second.
    pub(super) fn hasten(&mut self) {
        self.at = self.at.min(self.failed + self.pause / EARLY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haste_leaves_a_part_of_the_pause() {
        let failed = Instant::now();
        let mut retry = Retry::new(failed, Duration::from_secs(60), true);
        assert_eq!(retry.at, failed + Duration::from_secs(60));
        for _ in 0..3 {
            retry.hasten();
            assert_eq!(retry.at, failed + Duration::from_millis(7500));
        }
    }
}
