//! Records and claims with the revisions that wrote them.

use std::ops::Deref;

use crate::store::Revision;

/// A record and the revision that wrote it, as [`crate::store::Compare::Unchanged`] wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// Revision of the write.
    pub revision: Revision,
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.record
    }
}

/// A key whose existence alone means that something is taken, whatever the
/// record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<T> {
    /// Who took it; `None` if the record is unreadable.
    pub owner: Option<T>,
    /// Revision of the write.
    pub revision: Revision,
}
