//! States of the local endpoints.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{agent::platform::PlugError, store::Revision};

/// State of a local endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugState {
    /// The endpoint is in the store. It is not plugged in yet.
    Pending,
    /// The endpoint is plugged in, and in the maps.
    Ready {
        /// Revision of the endpoint's record that the interface matches.
        revision: Revision,
    },
    /// Plugging in failed. The engine tries again.
    Failed(PlugError),
    /// The endpoint is no longer in the store, and unplugging failed. The engine tries again.
    Stuck(PlugError),
}

/// State of each local endpoint, by identifier. An endpoint without a state is not on this host.
#[derive(Debug, Default)]
pub(crate) struct Plugs {
    states: Mutex<BTreeMap<String, PlugState>>,
}

impl Plugs {
    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn states(&self) -> MutexGuard<'_, BTreeMap<String, PlugState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an endpoint.
    pub(crate) fn get(&self, id: &str) -> Option<PlugState> {
        self.states().get(id).cloned()
    }

    /// Sets the state of an endpoint. `None`: the endpoint is no longer on this host.
    pub(crate) fn set(&self, id: &str, state: Option<PlugState>) {
        match state {
            Some(state) => self.states().insert(id.to_owned(), state),
            None => self.states().remove(id),
        };
    }

    /// Whether no endpoint is on this host.
    pub(crate) fn is_empty(&self) -> bool {
        self.states().is_empty()
    }
}
