//! A table of the data plane.

use std::collections::BTreeMap;

use super::DatapathError;

/// A table of the data plane: a BPF map, or a stand-in for it in a test.
pub trait Table<K, V>: Send + Sync {
    /// All entries.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    fn dump(&self) -> Result<BTreeMap<K, V>, DatapathError>;

    /// Writes an entry, whether or not the key exists.
    ///
    /// # Errors
    ///
    /// If the map is full or cannot be written.
    fn insert(&self, key: &K, value: &V) -> Result<(), DatapathError>;

    /// Removes an entry. It is no error if there is none.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    fn remove(&self, key: &K) -> Result<(), DatapathError>;
}
