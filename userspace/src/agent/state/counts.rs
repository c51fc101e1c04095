//! Number of entries of the large maps.

use std::sync::{Mutex, PoisonError};

use crate::reconcile::EntryCounts;

/// Number of entries of `FDB` and `NEIGHBOURS`. Empty until the engine or [`Self::get_or_read`] has
/// read the maps for the first time.
#[derive(Debug, Default)]
pub(crate) struct MapCounts {
    counts: Mutex<Option<EntryCounts>>,
}

impl MapCounts {
    /// The counts. If no counts are set yet, calls `read` and stores its result. `read` is called
    /// with the lock held.
    pub(crate) fn get_or_read(&self, read: impl FnOnce() -> EntryCounts) -> EntryCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(read)
    }

    /// Sets the counts.
    pub(crate) fn set(&self, counts: EntryCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
    }
}
