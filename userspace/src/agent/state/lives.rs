//! Times at which the leases of nodes ran out.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::model::Name;

/// Liveness of the nodes, as this agent has seen it. The store does not record when a lease has run
/// out.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    nodes: Mutex<BTreeMap<Name, NodeLife>>,
}

/// Liveness of a node.
#[derive(Clone, Copy, Debug)]
enum NodeLife {
    Alive,
    /// The time at which the lease of the node ran out. `None`: before this agent's start.
    Gone(Option<Instant>),
}

impl Lives {
    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<Name, NodeLife>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether a node is alive now. `None`: the store does not have it.
    pub(crate) fn note(&self, name: &Name, alive: Option<bool>) {
        let mut nodes = self.nodes();
        let now = match (alive, nodes.get(name)) {
            (None, _) => {
                nodes.remove(name);
                return;
            }
            (Some(true), _) => NodeLife::Alive,
            (Some(false), Some(NodeLife::Alive)) => NodeLife::Gone(Some(Instant::now())),
            (Some(false), Some(gone)) => *gone,
            (Some(false), None) => NodeLife::Gone(None),
        };
        nodes.insert(name.clone(), now);
    }

    /// Time since a node's lease has run out. `None`: it is alive, or has been gone for longer than
    /// this agent runs.
    pub(crate) fn gone_for(&self, name: &Name) -> Option<Duration> {
        match self.nodes().get(name)? {
            NodeLife::Gone(since) => since.map(|since| since.elapsed()),
            NodeLife::Alive => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_node_is_dated_only_if_it_was_seen() {
        let lives = Lives::default();
        let [seen, before] = ["seen", "before"].map(|name| name.parse().unwrap());
        lives.note(&seen, Some(true));
        lives.note(&before, Some(false));
        assert!(lives.gone_for(&seen).is_none() && lives.gone_for(&before).is_none());
        lives.note(&seen, Some(false));
        let first = lives.gone_for(&seen).unwrap();
        lives.note(&seen, Some(false));
        assert!(lives.gone_for(&seen).unwrap() >= first);
        assert!(lives.gone_for(&before).is_none());
        for name in [&seen, &before] {
            lives.note(name, Some(true));
            assert!(lives.gone_for(name).is_none());
        }
        // A node that was removed begins anew.
        lives.note(&before, None);
        lives.note(&before, Some(false));
        assert!(lives.gone_for(&before).is_none());
    }
}
