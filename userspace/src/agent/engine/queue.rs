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

/// Time of the next attempt at failed work of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    /// The time of the next attempt.
    pub(super) at: Instant,
    /// The pause between the failure and the next attempt.
    pub(super) pause: Duration,
}
