//! Slices in the results.

use serde::{Deserialize, Serialize};

/// Slices of TCP streams and round trips.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct SliceSettings {
    /// Measured time of a slice of streams, ms.
    pub(crate) stream_ms: f64,
    /// Measured round trips of a slice.
    pub(crate) round_trips: usize,
    /// Traffic before the measured part, ms.
    pub(crate) lead_in_ms: f64,
}

/// Numbers of slices.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Slices {
    /// Measured.
    pub(crate) slices: u64,
    /// Thrown away.
    pub(crate) thrown: u64,
    /// Slices in which the hypervisor stole more time than usual.
    pub(crate) steal: u64,
    /// Slices with more involuntary context switches of the load's threads than usual.
    pub(crate) switches: u64,
}

impl std::ops::AddAssign for Slices {
    fn add_assign(&mut self, other: Self) {
        self.slices += other.slices;
        self.thrown += other.thrown;
        self.steal += other.steal;
        self.switches += other.switches;
    }
}
