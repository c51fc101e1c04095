//! Plans: the compares and writes of one transaction.
//!
//! A plan is computed from a [`View`] without input or output. If the view is behind the store, the
//! transaction ends with [`crate::store::Outcome::Conflict`], and [`execute`] plans again from a
//! fresh snapshot. So an allocation has one owner, without a lock.

mod allocate;
mod endpoint;
mod execute;
mod network;
mod node;
mod vtep;

use super::{Invalid, Name, Versioned, View};
use crate::store::{Compare, Write};

pub use crate::store::new_id;
pub use endpoint::{
    EndpointSpec, add_address, claim_mac, create_endpoint, create_endpoint_as, fence_endpoint,
    may_publish, remove_address, remove_endpoint,
};
pub use execute::{ExecuteError, commit, execute, execute_below};
pub use network::{
    NetworkSpec, PREDEFINED_BRIDGE, choose_subnet, create_network, lowest_free_vni, remove_network,
};
pub use node::{not_elsewhere, register_node, remove_node, restore_node};
pub use vtep::{add_vtep, remove_vtep};

/// A transaction that is not committed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Conditions of the transaction.
    pub compares: Vec<Compare>,
    /// Writes that are applied if all conditions hold.
    pub writes: Vec<Write>,
}

/// The reason why an operation is refused. The text is one line: the object, what is wrong with it
/// and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The current state does not allow the operation.
    #[error("{0}")]
    Conflict(String),
    /// An agent with the same identifier is alive on another host, or was until its lease runs out.
    /// The text has no remedy, which depends on the state directory.
    #[error("{0}")]
    Elsewhere(String),
}

impl From<Invalid> for Refusal {
    fn from(Invalid(line): Invalid) -> Self {
        Self::Invalid(line)
    }
}

fn put<T: super::StoreRecord>(key: String, record: &T) -> Result<Write, Refusal> {
    Ok(Write::Put { key, value: super::encode(record)?, lease: None })
}

/// The network, if it exists and its record can be read.
fn network<'a>(view: &'a View, name: &Name) -> Result<&'a Versioned<super::Network>, Refusal> {
    if let Some(why) = view.problem_at(&super::Key::network(name)) {
        return Err(Refusal::Conflict(format!(
            "network '{name}': its record in the store is {why}"
        )));
    }
    view.networks.get(name).ok_or_else(|| {
        Refusal::NotFound(format!(
            "network '{name}' is unknown: `culvert network ls` lists those there are"
        ))
    })
}

#[cfg(test)]
mod tests;
