//! The containers whose networks may have changed.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::model::Name;

/// Containers of this host whose networks may differ from those in their records.
#[derive(Debug, Default)]
pub(crate) struct Regrouped {
    containers: Mutex<Selection>,
    noted: Notify,
}

#[derive(Debug)]
enum Selection {
    All,
    These(BTreeSet<Name>),
}

impl Default for Selection {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Regrouped {
    fn containers(&self) -> MutexGuard<'_, Selection> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a container. `None`: it is not known which one.
    pub(crate) fn note(&self, container: Option<Name>) {
        let mut containers = self.containers();
        match container {
            Some(name) => {
                if let Selection::These(names) = &mut *containers {
                    names.insert(name);
                }
            }
            None => *containers = Selection::All,
        }
        drop(containers);
        self.noted.notify_one();
    }

    /// Waits until a container has been noted since the last call.
    pub(crate) async fn wait(&self) {
        self.noted.notified().await;
    }

    /// Takes the containers that were noted. `None`: any may have changed.
    pub(crate) fn take(&self) -> Option<BTreeSet<Name>> {
        match mem::take(&mut *self.containers()) {
            Selection::All => None,
            Selection::These(names) => Some(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_is_told_once() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let regrouped = Regrouped::default();
        assert_eq!(regrouped.take(), Some(BTreeSet::new()));
        for text in ["web", "db", "web"] {
            regrouped.note(Some(name(text)));
        }
        assert_eq!(regrouped.take(), Some([name("db"), name("web")].into()));
        regrouped.note(Some(name("web")));
        regrouped.note(None);
        regrouped.note(Some(name("db")));
        assert_eq!(regrouped.take(), None);
        assert_eq!(regrouped.take(), Some(BTreeSet::new()));
    }
}
