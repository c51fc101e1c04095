//! How far the local endpoints have come.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::agent::platform::PlugError;

/// How far a local endpoint has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugState {
    /// The store has it. It is not plugged in yet.
    Pending,
    /// It is plugged in, and in the maps.
    Ready {
        /// Interface index of the host side of its device pair.
        ifindex: u32,
    },
    /// It could not be plugged in. The engine tries again.
    Failed(PlugError),
    /// The store does not have it any more, and it could not be unplugged. The engine tries
    /// again.
    Stuck(PlugError),
}

/// State of each local endpoint, by identifier. An endpoint without a state is not here.
#[derive(Debug, Default)]
pub(crate) struct Plugs {
    states: Mutex<BTreeMap<String, PlugState>>,
}

impl Plugs {
    // A thread that panicked left a whole map behind: it changes in one step.
    fn states(&self) -> MutexGuard<'_, BTreeMap<String, PlugState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of an endpoint.
    pub(crate) fn get(&self, id: &str) -> Option<PlugState> {
        self.states().get(id).cloned()
    }

    /// Sets the state of an endpoint. `None`: it is not here any more.
    pub(crate) fn set(&self, id: &str, state: Option<PlugState>) {
        match state {
            Some(state) => self.states().insert(id.to_owned(), state),
            None => self.states().remove(id),
        };
    }

    /// Whether no endpoint is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.states().is_empty()
    }
}
