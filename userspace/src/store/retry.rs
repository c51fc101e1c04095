//! Backoff between attempts.

use std::time::Duration;

/// Delays that double up to a limit, each with jitter, so that a thousand agents do not reconnect
/// to a restarted store at the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    attempt: u32,
}

impl Backoff {
    /// Delays from `first` up to `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, attempt: 0 }
    }

    /// Backoff for a store that does not answer: 100 ms to 5 s.
    pub const fn unavailable() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// Backoff for a transaction that met a conflict: 1 ms to 50 ms.
    pub const fn contention() -> Self {
        Self::new(Duration::from_millis(1), Duration::from_millis(50))
    }

    /// Returns the next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = delay(self.first, self.limit, self.attempt, rand::random());
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// Resets the backoff: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// A delay of at most `limit` and at least half of it.
pub fn jittered(limit: Duration) -> Duration {
    delay(limit, limit, 0, rand::random())
}

/// The delay after `attempt` earlier ones: `first` doubled that often, at most `limit`. `random` (0
/// to 1) selects a point in its upper half.
pub fn delay(first: Duration, limit: Duration, attempt: u32, random: f64) -> Duration {
    let doubled = 1_u32.checked_shl(attempt).and_then(|factor| first.checked_mul(factor));
    let ceiling = doubled.map_or(limit, |delay| delay.min(limit));
    ceiling.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn it_doubles_up_to_the_limit() {
        let whole: Vec<_> =
            (0..8).map(|attempt| delay(FIRST, LIMIT, attempt, 1.0).as_millis()).collect();
        assert_eq!(whole, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(delay(FIRST, LIMIT, 0, 0.0), FIRST / 2);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(FIRST, LIMIT);
        while backoff.next_delay() < LIMIT / 2 {}
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }

    proptest! {
        #[test]
        fn it_stays_in_its_bounds(attempt: u32, random in 0.0..=1.0f64) {
            let delay = delay(FIRST, LIMIT, attempt, random);
            prop_assert!((FIRST / 2..=LIMIT).contains(&delay));
            prop_assert!((LIMIT / 2..=LIMIT).contains(&jittered(LIMIT)));
        }
    }
}
