//! Plans: what a transaction must compare and write to do one thing.
//!
//! A plan is made from a [`View`] and is pure. What the view was too old to
//! know shows as [`crate::store::Outcome::Conflict`]; [`execute`] then plans
//! again from a fresh snapshot. So an allocation has one owner, without a lock.

mod allocate;
mod endpoint;
mod execute;
mod network;
mod node;
mod vtep;

use super::{Invalid, Name, Versioned, View};
use crate::store::{Compare, Write};

pub use crate::store::new_id;
pub use endpoint::{EndpointSpec, create_endpoint, may_publish, remove_endpoint};
pub use execute::{ExecuteError, execute, execute_below};
pub use network::{
    NetworkSpec, PREDEFINED_BRIDGE, choose_subnet, create_network, lowest_free_vni, remove_network,
};
pub use node::{register_node, remove_node};
pub use vtep::{add_vtep, remove_vtep};

/// A transaction to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is then written.
    pub writes: Vec<Write>,
}

/// Why something is not done. The text is one line: the thing, what is wrong
/// with it and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No such thing.
    #[error("{0}")]
    NotFound(String),
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
}

impl From<Invalid> for Refusal {
    fn from(Invalid(line): Invalid) -> Self {
        Self::Invalid(line)
    }
}

fn put<T: super::Record>(key: String, record: &T) -> Result<Write, Refusal> {
    Ok(Write::Put { key, value: super::encode(record)?, lease: None })
}

/// The network, if it is there and its record can be relied upon.
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
