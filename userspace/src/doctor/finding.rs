//! Findings: the results of checks.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is wrong.
    Ok,
    /// Culvert works, but slower or less safely than it could.
    Warning,
    /// Culvert does not work.
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

/// The result of one check, shown on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the check: `kernel`, `btf`, `privileges` and so on.
    pub check: String,
    /// Severity.
    pub level: Level,
    /// The fact that was found.
    pub detail: String,
    /// Advice. Empty if the user need not do anything.
    pub advice: String,
}
