//! Exit code and message of a verb that fails.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use crate::{
    api::{
        Unreachable,
        types::{ApiError, ErrorKind, one_line},
    },
    printable::printable,
};

/// Exit code of a refusal.
const REFUSAL: u8 = 1;
/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Writes one line to standard error. If standard error is closed, the line is lost.
pub(super) fn tell(line: &str) {
    let line = one_line(line.to_owned());
    let _ = writeln!(io::stderr(), "culvert: {}", printable(&line));
}

/// An exit code, and the line for standard error. `None`: the lines are written already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) line: Option<String>,
    /// The agent or its store does not answer: further requests would fail too.
    pub(super) in_vain: bool,
}

impl Failure {
    /// The agent, the kernel or a file refuses: exit code 1.
    pub(super) fn refusal(line: impl Display) -> Self {
        Self { code: REFUSAL, line: Some(line.to_string()), in_vain: false }
    }

    /// The command line is wrong: exit code 2.
    pub(super) fn usage(line: impl Display) -> Self {
        Self { code: USAGE, line: Some(line.to_string()), in_vain: false }
    }

    /// Ends with `code`; the lines are written already.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, line: None, in_vain: false }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let in_vain = error.kind == ErrorKind::Unavailable;
        Self { in_vain, ..Self::refusal(error) }
    }
}

impl From<Unreachable> for Failure {
    fn from(error: Unreachable) -> Self {
        Self { in_vain: true, ..Self::refusal(error) }
    }
}

/// Only for writes to standard output: errors of other I/O name the file.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // The reader closed the pipe, as in `culvert ps | head -1`.
            Self::silent(0)
        } else {
            Self::refusal(format!("standard output cannot be written to: {error}"))
        }
    }
}
