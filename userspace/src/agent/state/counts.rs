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
    /// The counts. If the engine has not set them yet, they are those of `read`, which is called once.
    pub(crate) fn get_or_read(&self, read: impl FnOnce() -> Counts) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(read)
    }

    /// Sets the counts.
    pub(crate) fn set(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }
}
