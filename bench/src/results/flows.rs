//! Figures of a host with very many flows.

use serde::{Deserialize, Serialize};

/// TCP connections of a container to an external server, one after the other: each with one byte
/// each way.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Waits {
    /// Connections that were tried.
    pub(crate) tried: usize,
    /// Connections that failed. They count in the percentiles with the time until they failed.
    pub(crate) failed: usize,
    /// Half of them took at most this long, from `connect` to the end, µs.
    pub(crate) p50_us: f64,
    /// 99 of 100 took at most this long, µs.
    pub(crate) p99_us: f64,
}

impl Waits {
    /// The fraction of connections that succeeded; `None` if none was tried.
    pub(crate) fn made(&self) -> Option<f64> {
        let made = self.tried.saturating_sub(self.failed);
        (self.tried > 0).then(|| made as f64 / self.tried as f64)
    }
}

/// New connections of a container while another one of the host attacks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct UnderAttack {
    /// Connections before the attack.
    pub(crate) quiet: Waits,
    /// Connections during the attack.
    pub(crate) attacked: Waits,
    /// Packets of the attacker during these connections, 1/s.
    pub(crate) packets_per_second: f64,
}

impl UnderAttack {
    /// The 99th percentile during the attack as a ratio to the one before it.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (self.quiet.p99_us > 0.0).then(|| self.attacked.p99_us / self.quiet.p99_us)
    }
}

/// `culvert nat ls` of a full table.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct FlowListing {
    /// `--format`.
    pub(crate) format: String,
    /// Flows that were listed.
    pub(crate) flows: u64,
    /// From the start of the command to the end of its output, s.
    pub(crate) seconds: f64,
    /// Largest resident memory of the command, bytes.
    pub(crate) cli_peak_bytes: u64,
    /// The agent's resident memory before, bytes.
    pub(crate) agent_bytes: u64,
    /// Growth of the agent's resident memory during the command, bytes.
    pub(crate) agent_growth_bytes: u64,
}
