//! Validated types for what the store holds.
//!
//! Every record carries its schema version, so that an agent can tell a
//! record of a newer Culvert from garbage and skip both by name.

mod types;

pub use types::*;
