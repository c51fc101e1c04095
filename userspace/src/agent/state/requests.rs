//! What requests that change containers share.

use std::{path::Path, sync::Arc};

use super::{Launches, Turns};
use crate::agent::{attempts::Attempts, unfinished::Unfinished};

/// The requests that change containers, and what those before them have left undone.
#[derive(Debug)]
pub(crate) struct Requests {
    /// One request at a time for each container.
    pub(crate) turns: Turns,
    /// Attempts to make an endpoint, of which it may not be known whether they have succeeded.
    pub(crate) attempts: Attempts,
    /// Sandboxes that are being made or removed.
    pub(crate) unfinished: Arc<Unfinished>,
    /// Supervisors that are being started.
    pub(crate) launches: Launches,
    /// Held while commands are started again, and by a purge.
    pub(crate) starting: tokio::sync::Mutex<()>,
}

impl Requests {
    /// No request yet; what earlier agents have left undone is in `state_dir`.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            turns: Turns::default(),
            attempts: Attempts::new(state_dir),
            unfinished: Arc::new(Unfinished::load(state_dir)),
            launches: Launches::default(),
            starting: tokio::sync::Mutex::default(),
        }
    }
}
