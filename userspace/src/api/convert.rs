//! Conversion of errors of lower layers into errors of the API.

use super::types::{ApiError, ErrorKind};
use crate::model::ops::{ExecuteError, Refusal};

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (kind, message) = match refusal {
            Refusal::Invalid(line) => (ErrorKind::Invalid, line),
            Refusal::NotFound(line) => (ErrorKind::NotFound, line),
            Refusal::Conflict(line) | Refusal::Elsewhere(line) => (ErrorKind::Conflict, line),
        };
        Self { kind, message }
    }
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        let message = error.to_string();
        match error {
            ExecuteError::Refused(refusal) => refusal.into(),
            ExecuteError::Store(_) | ExecuteError::Contended => {
                Self { kind: ErrorKind::Unavailable, message }
            }
            ExecuteError::InDoubt(_) => Self {
                kind: ErrorKind::Unavailable,
                message: format!(
                    "{message}: the change may or may not be in the store, and may still come"
                ),
            },
        }
    }
}
