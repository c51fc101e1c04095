//! The error for an invalid value.

/// The error for an invalid value: one line that names the value, what is wrong with it and what
/// would be valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);
