//! Reads and compares the maps on a separate thread, not in the engine's task.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::{
    agent::platform::{Audit, Platform},
    datapath::DatapathError,
    reconcile::Observed,
};

/// What the thread has found.
pub(super) struct Read {
    /// The contents of the maps that the reconciler writes.
    pub(super) observed: Result<Observed, DatapathError>,
    /// The comparison of the other maps.
    pub(super) audit: Audit,
}

/// A thread that reads the maps.
pub(super) type Reading = JoinHandle<Read>;

/// Starts a thread that reads the maps: the read of 100,000 entries takes longer than a change in
/// the store may wait.
pub(super) fn begin(platform: Arc<dyn Platform>) -> Reading {
    tokio::task::spawn_blocking(move || Read {
        // First, as the entries of the other maps have the numbers of VTEPs.
        audit: platform.audit(),
        observed: Observed::read(platform.as_ref()),
    })
}

/// Waits for the thread that reads the maps. Waits forever if there is no thread. Cancel safe: the
/// future may be dropped and made again.
pub(super) async fn finished(reading: &mut Option<Reading>) -> Read {
    let Some(thread) = reading else { return std::future::pending().await };
    let read = thread.await.unwrap_or_else(|error| Read {
        audit: Audit::default(),
        observed: Err(DatapathError::Io {
            path: "maps".into(),
            what: "read",
            source: error.into(),
        }),
    });
    *reading = None;
    read
}
