//! Alarms of the store: etcd takes no writes while one is set. It answers reads.

use std::{sync::Arc, time::Duration};

use super::shared::Shared;
use crate::store::StateStore;

/// Interval of the queries for alarms.
const EVERY: Duration = Duration::from_secs(10);

/// Asks the store for its alarms until the agent stops. `status` shows the alarms. The log has each
/// alarm once.
pub(super) async fn keep(shared: Arc<Shared>, store: Arc<dyn StateStore>) {
    tokio::select! {
        () = shared.ending.shutdown.cancelled() => {}
        () = watch(&shared, store.as_ref()) => {}
    }
}

/// Asks the store for its alarms, again and again. Never returns.
async fn watch(shared: &Shared, store: &dyn StateStore) {
    loop {
        // Without an answer the last known alarms stay.
        if let Ok(alarms) = store.alarms().await {
            shared.shown.problems.set("store-alarm", line(&alarms));
            shared.store.set_alarms(alarms);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The problem, on one line. `None`: there is no alarm.
fn line(alarms: &[String]) -> Option<String> {
    (!alarms.is_empty()).then(|| {
        format!(
            "store: etcd has the alarm {}: it takes no writes, so nothing can be created: 'culvert doctor' has the remedy",
            alarms.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn alarms_are_named() {
        assert_eq!(line(&[]), None);
        let line = line(&["NOSPACE".to_owned()]).expect("there is one");
        assert!(line.contains("the alarm NOSPACE: it takes no writes"), "{line}");
    }
}
