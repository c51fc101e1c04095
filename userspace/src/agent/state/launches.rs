//! Supervisors that are being started.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::model::Name;

/// The containers whose supervisor the agent is starting. Its command may already run, and nobody
/// knows its process yet.
#[derive(Debug, Default)]
pub(crate) struct Launches(watch::Sender<BTreeSet<Name>>);

/// A start that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Launching(watch::Sender<BTreeSet<Name>>, Name);

impl Drop for Launching {
    fn drop(&mut self) {
        self.0.send_modify(|names| {
            names.remove(&self.1);
        });
    }
}

impl Launches {
    /// Notes that the supervisor of a container is being started. One container has one start at a
    /// time.
    pub(crate) fn begin(&self, name: &Name) -> Launching {
        self.0.send_modify(|names| {
            names.insert(name.clone());
        });
        Launching(self.0.clone(), name.clone())
    }

    /// Whether the supervisor of a container is being started.
    pub(crate) fn is_under_way(&self, name: &Name) -> bool {
        self.0.borrow().contains(name)
    }

    /// Waits until the supervisor of a container is not being started.
    pub(crate) async fn ended(&self, name: &Name) {
        // The sender is not dropped meanwhile.
        let _ = self.0.subscribe().wait_for(|names| !names.contains(name)).await;
    }

    /// Waits until no supervisor is being started.
    pub(crate) async fn all_ended(&self) {
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_start_is_waited_for() {
        let [web, db]: [Name; 2] = ["web", "db"].map(|name| name.parse().unwrap());
        let launches = Launches::default();
        launches.ended(&web).await;
        launches.all_ended().await;
        let launching = launches.begin(&web);
        assert!(launches.is_under_way(&web) && !launches.is_under_way(&db));
        launches.ended(&db).await;
        let soon = Duration::from_millis(20);
        assert!(timeout(soon, launches.ended(&web)).await.is_err());
        assert!(timeout(soon, launches.all_ended()).await.is_err());
        let task = tokio::spawn(async move {
            tokio::time::sleep(soon).await;
            drop(launching);
        });
        launches.ended(&web).await;
        launches.all_ended().await;
        task.await.unwrap();
    }
}
