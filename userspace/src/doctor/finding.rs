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

/// A finding that needs no advice.
pub(super) fn ok(check: &str, detail: String) -> Finding {
    Finding { check: check.to_owned(), level: Level::Ok, detail, advice: String::new() }
}

/// A finding of something that works, but slower or less safely than it could.
pub(super) fn warning(check: &str, detail: String, advice: &str) -> Finding {
    let advice = advice.to_owned();
    Finding { check: check.to_owned(), level: Level::Warning, detail, advice }
}

/// A finding of something that does not work.
pub(super) fn error(check: &str, detail: String, advice: &str) -> Finding {
    Finding { level: Level::Error, ..warning(check, detail, advice) }
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
