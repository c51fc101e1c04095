//! Path MTUs of the underlay.

use serde::{Deserialize, Serialize};

/// MTUs of the paths to VTEPs in [`Status`](super::Status).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMtuStatus {
    /// Number of VTEPs whose path takes smaller packets than the route.
    pub smaller: usize,
    /// Number of ICMP errors that were taken as a hint since the counters began.
    pub hints: u64,
    /// Number of ICMP errors about the tunnel that were refused since the counters began: this host
    /// cannot have sent what they quote.
    pub refused: u64,
    /// Number of hints that a probe has confirmed since the agent started.
    pub verified: u64,
    /// Number of hints that no probe has confirmed since the agent started. They have no effect.
    pub unverified: u64,
}
