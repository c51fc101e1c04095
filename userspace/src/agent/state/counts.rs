//! Number of entries of the large maps.

use std::sync::{Mutex, PoisonError};

use crate::reconcile::Counts;

/// Number of entries of `FDB` and `NEIGHBOURS`. Not known until the engine has read the maps
/// for the first time.
#[derive(Debug, Default)]
pub(crate) struct MapCounts {
    counts: Mutex<Option<Counts>>,
}

impl MapCounts {
    /// The counts, once they are known.
    pub(crate) fn get(&self) -> Option<Counts> {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the counts.
    pub(crate) fn set(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }
}
