//! How a verb ends when it does not succeed.

use std::{fmt::Display, io};

use crate::api::{Unreachable, types::ApiError};

/// Exit code of a refusal.
const REFUSAL: u8 = 1;
/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// An exit code, and the line for standard error unless everything is said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) line: Option<String>,
}

impl Failure {
    /// Something did not let us.
    pub(super) fn refusal(line: impl Display) -> Self {
        Self { code: REFUSAL, line: Some(line.to_string()) }
    }

    /// The command line makes no sense.
    pub(super) fn usage(line: impl Display) -> Self {
        Self { code: USAGE, line: Some(line.to_string()) }
    }

    /// Ends with `code`; the lines are out already.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, line: None }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::refusal(error)
    }
}

impl From<Unreachable> for Failure {
    fn from(error: Unreachable) -> Self {
        Self::refusal(error)
    }
}

/// For writes to standard output alone; other I/O names its file.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // `culvert ps | head -1`: the reader has what it wanted.
            Self::silent(0)
        } else {
            Self::refusal(format!("standard output cannot be written to: {error}"))
        }
    }
}
