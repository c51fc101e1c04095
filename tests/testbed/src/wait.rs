//! Waiting for a condition, with a deadline.

#![expect(clippy::panic, reason = "a condition that does not hold in time fails the test")]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Polling interval of a condition.
pub(crate) const POLL: Duration = Duration::from_millis(5);

/// Environment variable: the factor by which all deadlines are multiplied. It is set where the
/// machine is slow, such as an emulated one.
const PATIENCE: &str = "CULVERT_TEST_PATIENCE";

/// `deadline` times the factor of `CULVERT_TEST_PATIENCE`, which is 1 if the variable is not set.
pub fn on_this_machine(deadline: Duration) -> Duration {
    let factor = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
    deadline * factor.unwrap_or(1)
}

/// Calls `look` until it returns something.
///
/// # Panics
/// When `deadline` has passed, with `what`.
pub fn wait_for<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let (start, deadline) = (Instant::now(), on_this_machine(deadline));
    loop {
        if let Some(found) = look() {
            return found;
        }
        if start.elapsed() > deadline {
            panic!("{what}: not within {deadline:?}");
        }
        thread::sleep(POLL);
    }
}

/// Waits until `holds` returns true.
///
/// # Panics
/// When `deadline` has passed, with `what`.
pub fn wait_until(deadline: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(deadline, what, || holds().then_some(()));
}

/// A number that is unique in this process.
pub fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}
