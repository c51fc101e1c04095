//! Records and claims with the revisions that wrote them.

use std::ops::Deref;

use crate::store::Revision;

/// A record and the revision that wrote it, as [`crate::store::Compare::Unchanged`] needs it.
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

/// A claim: the existence of its key alone means that something is taken, independent of the
/// record's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<T> {
    /// The owner; `None` if the record cannot be read.
    pub owner: Option<T>,
    /// Revision of the last write.
    pub revision: Revision,
}
