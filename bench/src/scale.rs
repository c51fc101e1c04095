//! Placeholder until the scale measurements are merged.

use serde::{Deserialize, Serialize};

/// Cold start with a number of endpoints in the store.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ColdStart {
    /// Remote endpoints in the store.
    pub(crate) endpoints: u32,
    /// A range read of the same keys by etcd-client, nothing parsed, ms.
    pub(crate) raw_range_ms: f64,
    /// From the beginning of the agent's read to complete maps, ms.
    pub(crate) snapshot_to_maps_ms: f64,
    /// From the start of the agent to complete maps, ms.
    pub(crate) exec_to_maps_ms: f64,
    /// Memory of the maps' entries, bytes.
    pub(crate) kernel_bytes: u64,
    /// Resident memory of the agent, bytes.
    pub(crate) agent_rss_bytes: u64,
}
