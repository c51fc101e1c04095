//! Reads the maps on a separate thread, not in the engine's task.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::{agent::platform::Platform, datapath::DatapathError, reconcile::Observed};

/// A thread that reads the maps.
pub(super) type Reading = JoinHandle<Result<Observed, DatapathError>>;

/// Starts a thread that reads the maps: the read of 100,000 entries takes longer than a change in
/// the store may wait.
pub(super) fn begin(platform: Arc<dyn Platform>) -> Reading {
    tokio::task::spawn_blocking(move || Observed::read(platform.as_ref()))
}

/// Waits for the thread that reads the maps. Waits forever if there is no thread. Cancel safe: the
/// future may be dropped and made again.
pub(super) async fn finished(reading: &mut Option<Reading>) -> Result<Observed, DatapathError> {
    let Some(thread) = reading else { return std::future::pending().await };
    let read = thread.await.unwrap_or_else(|error| {
        Err(DatapathError::Io { path: "maps".into(), what: "read", source: error.into() })
    });
    *reading = None;
    read
}
