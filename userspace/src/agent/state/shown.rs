//! What `status` shows of the agent's own work.

use std::sync::Arc;

use super::{MapCounts, PathMtuCounts, Problems, Repairs};

/// Problems, repairs and sizes, as `status` shows them.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The problems that `status` shows.
    pub(crate) problems: Arc<Problems>,
    /// What others have changed, and the agent has put right.
    pub(crate) repairs: Arc<Repairs>,
    /// Number of entries of the large maps.
    pub(crate) map_counts: MapCounts,
    /// What became of the hints of smaller path MTUs.
    pub(crate) path_mtus: PathMtuCounts,
}
