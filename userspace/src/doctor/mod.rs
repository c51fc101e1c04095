//! What the host lacks, and what to do about it.
//!
//! [`Facts`] are collected from the kernel; [`examine`] judges them and knows
//! nothing else, so that every verdict can be tested. [`preflight`] is the part
//! without which an agent need not start.

mod checks;
mod datapath;
mod facts;

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use checks::examine;
pub use datapath::{DatapathFacts, examine_datapath};
pub use facts::{Bpffs, Facts, HostFacts, Probe, TcxProgram, UplinkFacts};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Does not work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that was looked at; a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `btf`, `privileges` and so on.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing needs to be done.
    pub advice: String,
}

/// What the agent is, or shall be, told to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Uplinks by name.
    pub uplinks: Vec<String>,
    /// UDP port for VXLAN.
    pub vxlan_port: u16,
    /// Where the pins are or shall be.
    pub bpffs: PathBuf,
    /// Name and MTU in bytes of the overlay networks.
    pub networks: Vec<(String, u16)>,
    /// How far the store's clock is ahead of ours in ms, if that is known.
    pub clock_offset_ms: Option<i64>,
    /// The agent runs: a socket on the VXLAN port may be its own.
    pub agent_running: bool,
}

/// Checks the kernel, BTF, BPF and our privileges.
///
/// # Errors
/// The first thing that is missing, in one line that names the feature.
pub fn preflight() -> Result<(), String> {
    first_error(&checks::host(&HostFacts::collect()))
}

fn first_error(findings: &[Finding]) -> Result<(), String> {
    match findings.iter().find(|finding| finding.level == Level::Error) {
        Some(finding) if finding.advice.is_empty() => Err(finding.detail.clone()),
        Some(finding) => Err(format!("{}: {}", finding.detail, finding.advice)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_one_line() {
        let finding = |level, advice: &str| Finding {
            check: "kernel".to_owned(),
            level,
            detail: "kernel 5.15 is too old".to_owned(),
            advice: advice.to_owned(),
        };
        assert_eq!(first_error(&[finding(Level::Warning, "wait")]), Ok(()));
        assert_eq!(
            first_error(&[finding(Level::Ok, ""), finding(Level::Error, "upgrade")]),
            Err("kernel 5.15 is too old: upgrade".to_owned())
        );
        assert_eq!(
            first_error(&[finding(Level::Error, "")]),
            Err("kernel 5.15 is too old".to_owned())
        );
    }
}
