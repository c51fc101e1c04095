//! The epoch of the maps. An entry of the flow cache or of the route cache is valid for one epoch.

use crate::maps::EPOCH;

/// The epoch of the maps; 0 before the agent has set one. The agent advances it.
#[inline(always)]
pub(crate) fn current() -> u64 {
    EPOCH.get(0).copied().unwrap_or(0)
}
