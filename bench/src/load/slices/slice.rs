//! One slice, and how long its parts take.

use std::time::Duration;

/// Measured time of a slice of streams.
pub(crate) const LENGTH: Duration = Duration::from_millis(30);
/// Traffic before the measured part of a slice, which is not counted: afterwards the caches and
/// queues are those of the slice's own path.
pub(crate) const LEAD_IN: Duration = Duration::from_millis(2);
/// Measured round trips of a slice.
pub(crate) const BLOCK: usize = 64;
/// How long one part of a slice may take. A lost segment is sent again after 0.2 s or more.
pub(super) const LIMIT: Duration = Duration::from_secs(4);

/// The figures of one slice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    /// Figure to compare with the figures of other slices: payload that arrived, bit/s, or the
    /// median of the round trips, ns.
    pub(crate) figure: f64,
    /// Time of each round trip, ns; empty for streams.
    pub(crate) trips: Vec<u32>,
    /// Time that the hypervisor has stolen from the cores of both ends, in ticks of `/proc/stat`.
    pub(crate) steal: u64,
    /// Involuntary context switches of the threads of both ends.
    pub(crate) switches: u64,
}
