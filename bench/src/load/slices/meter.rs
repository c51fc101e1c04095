//! Payload that arrives in a window of time.

use std::time::Duration;

/// Measured part of a slice, by the clock of its path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Start.
    pub(super) begin: Duration,
    /// End.
    pub(super) end: Duration,
}

/// Payload that arrived in a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    /// Payload, bytes.
    pub(super) bytes: u64,
    /// Time.
    pub(super) time: Duration,
}

/// Counts payload, and measures one window after the other.
#[derive(Debug, Default)]
pub(super) struct Meter {
    window: Option<Window>,
    /// Time and count of the first read in the window.
    begun: Option<(Duration, u64)>,
    total: u64,
}

impl Meter {
    /// Measures `window` next.
    pub(super) fn open(&mut self, window: Window) {
        (self.window, self.begun) = (Some(window), None);
    }

    /// Whether a window is not measured yet.
    pub(super) fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// Number of all bytes, with those outside windows.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Adds what a read that ended at `now` has returned. The first read after the end of the
    /// window returns the measurement: from the first read in the window to this one, since the
    /// bytes of a read have arrived in the time before it.
    pub(super) fn add(&mut self, now: Duration, bytes: u64) -> Option<Part> {
        self.total += bytes;
        let window = self.window.filter(|window| now >= window.begin)?;
        let part = match self.begun {
            Some((at, before)) if now >= window.end => {
                Part { bytes: self.total - before, time: now - at }
            }
            // Nothing has arrived in the window: the path stood still.
            None if now >= window.end => Part { bytes, time: now - window.begin },
            Some(_) => return None,
            None => {
                self.begun = Some((now, self.total));
                return None;
            }
        };
        (self.window, self.begun) = (None, None);
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn only_the_window_is_measured() {
        let mut meter = Meter::default();
        assert_eq!(meter.add(MS(1), 1_000), None);
        meter.open(Window { begin: MS(10), end: MS(40) });
        assert_eq!(meter.add(MS(9), 1_000), None);
        assert_eq!(meter.add(MS(12), 500), None);
        assert!(meter.is_open());
        assert_eq!(meter.add(MS(30), 70), None);
        assert_eq!(meter.add(MS(42), 30), Some(Part { bytes: 100, time: MS(30) }));
        assert!(!meter.is_open());
        assert_eq!(meter.add(MS(43), 1_000), None);
        assert_eq!(meter.total(), 3_600);
        meter.open(Window { begin: MS(50), end: MS(60) });
        assert_eq!(meter.add(MS(51), 1), None);
        assert_eq!(meter.add(MS(61), 2), Some(Part { bytes: 2, time: MS(10) }));
    }

    #[test]
    fn a_path_that_stands_still_is_slow() {
        let mut meter = Meter::default();
        meter.open(Window { begin: MS(10), end: MS(40) });
        assert_eq!(meter.add(MS(210), 100), Some(Part { bytes: 100, time: MS(200) }));
    }

    #[test]
    fn a_window_that_was_given_up_has_no_effect() {
        let mut meter = Meter::default();
        meter.open(Window { begin: MS(10), end: MS(40) });
        assert_eq!(meter.add(MS(12), 500), None);
        meter.open(Window { begin: MS(50), end: MS(60) });
        assert_eq!(meter.add(MS(52), 7), None);
        assert_eq!(meter.add(MS(62), 9), Some(Part { bytes: 9, time: MS(10) }));
    }
}
