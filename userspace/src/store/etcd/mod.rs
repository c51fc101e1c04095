//! The store in an etcd cluster (v3 API, etcd 3.4 and later).

mod clock;
mod connection;
mod error;
mod list;
mod options;

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use etcd_client::{
    Compare as EtcdCompare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, PutOptions,
    Txn, TxnOp, WatchOptions, WatchResponse,
};
use futures::{StreamExt, stream};

pub use self::{connection::is_loopback, options::EtcdOptions};
use self::{
    connection::{Connections, MAX_ANSWER, Repeat},
    list::entry,
};
use super::{
    Change, Compare, Kind, Layout, LeaseId, MAX_OPS, Outcome, Pages, Revision, Snapshot,
    StateStore, StoreError, Watch, Write, prefix_end,
};

/// How often a snapshot starts again because a compaction removed its revision.
const SNAPSHOT_TRIES: usize = 4;
/// Interval at which a watch requests a progress notification from the server.
const PROGRESS: Duration = Duration::from_secs(2);

/// The store in an etcd cluster.
#[derive(Clone)]
pub struct EtcdStore {
    connections: Connections,
    layout: Option<Layout>,
    /// Endpoints whose clock can be read. Empty with TLS, which the clock request does not speak.
    plain: Vec<String>,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("connections", &self.connections).finish()
    }
}

impl EtcdStore {
    /// Checks the options and reads the files that they name. Sends nothing: each call connects as
    /// needed, to any endpoint that answers.
    ///
    /// # Errors
    ///
    /// [`StoreError::Refused`], one line: a file cannot be read, options contradict each other, or
    /// the connection would be plaintext beyond the loopback device.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, StoreError> {
        let connections = Connections::new(options).await?;
        let plain = if options.ca.is_some() { Vec::new() } else { options.endpoints.clone() };
        Ok(Self { connections, layout: options.layout, plain })
    }
}

#[async_trait]
impl StateStore for EtcdStore {
    fn kind(&self) -> Kind {
        Kind::Etcd
    }

    async fn clock_offset_ms(&self) -> Option<i64> {
        clock::offset_ms(&self.plain).await
    }

    async fn alarms(&self) -> Result<Vec<String>, StoreError> {
        let call = self.connections.call(Repeat::Always, |client| async move {
            // The request for alarms would be an entry of the cluster's log, each time.
            client.maintenance_client().status().await
        });
        let answer = self.connections.within(call).await?;
        // Several members may have the same alarm.
        let alarms: BTreeSet<&str> =
            answer.errors().iter().filter_map(|line| alarm(line)).collect();
        Ok(alarms.into_iter().map(str::to_owned).collect())
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match list::whole(&self.connections, self.layout, prefix).await {
                Err(StoreError::Compacted { .. }) if tries < SNAPSHOT_TRIES => {}
                result => return result,
            }
        }
    }

    async fn list(&self, prefix: &str) -> Result<Pages, StoreError> {
        list::pages(&self.connections, self.layout, prefix).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        let options = GetOptions::new().with_revision(at).with_keys_only();
        let call = self.connections.call(Repeat::Always, |client| {
            let options = options.clone();
            async move { client.kv_client().get(key, Some(options)).await }
        });
        let answer = self.connections.within(call).await?;
        Ok(answer.kvs().iter().any(|pair| pair.mod_revision() == at))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        // Fragments are off: etcd then sends all events of a revision in one message. The client
        // library does not distinguish a fragment from the last one.
        let options =
            WatchOptions::new().with_range(prefix_end(prefix)).with_start_revision(from.max(1));
        let open = self.connections.call(Repeat::Always, |client| {
            let options = options.clone();
            async move {
                let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER);
                watch.watch(prefix, Some(options)).await
            }
        });
        let (requests, responses) = self.connections.within(open).await?.split();
        let mut state = Watching {
            requests,
            responses,
            timeout: self.connections.timeout(),
            endpoint: self.connections.current_name(),
            backlog: Vec::new().into_iter(),
            ended: false,
        };
        // The first answer is to the request itself and carries a refusal.
        let first = self.connections.within(state.created()).await?;
        state.take(first)?;
        Ok(stream::unfold(state, |mut state| async move {
            let item = state.next().await?;
            Some((item, state))
        })
        .boxed())
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        super::check_transaction(&compares, &writes)?;
        debug_assert!(compares.len().max(writes.len()) <= MAX_OPS);
        let lease = writes.iter().find_map(|write| match write {
            Write::Put { lease, .. } => *lease,
            _ => None,
        });
        let compares: Vec<_> = compares.into_iter().map(compare).collect();
        let writes: Vec<_> = writes.into_iter().map(operation).collect();
        let txn = Txn::new().when(compares).and_then(writes);
        let call = self.connections.call(Repeat::IfUnsent, |client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        });
        let answer = self.connections.within(call).await.map_err(|error| match (error, lease) {
            // A lease is the only object of a transaction that can be missing.
            (StoreError::LeaseGone(_), Some(lease)) => StoreError::LeaseGone(lease),
            (other, _) => other,
        })?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            Ok(Outcome::Committed(revision))
        } else {
            Ok(Outcome::Conflict)
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // etcd counts TTLs in whole seconds.
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        // A retry is safe: a lease that was granted twice expires.
        let call = self.connections.call(Repeat::Always, |client| async move {
            client.lease_client().grant(seconds, None).await
        });
        Ok(self.connections.within(call).await?.id())
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = self.connections.call(Repeat::Always, |client| async move {
            client.lease_client().keep_alive(lease).await
        });
        self.connections.within(call).await.map(drop).map_err(|error| named(error, lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = self.connections.call(Repeat::Always, |client| async move {
            client.lease_client().revoke(lease).await
        });
        self.connections.within(call).await.map(drop).map_err(|error| named(error, lease))
    }
}

/// The alarm in an error of a server's status, as `memberID:1 alarm:NOSPACE`. `None`: it is another
/// error, such as that there is no leader.
fn alarm(error: &str) -> Option<&str> {
    let (_, name) = error.split_once("alarm:")?;
    name.split_whitespace().next()
}

fn named(error: StoreError, lease: LeaseId) -> StoreError {
    if let StoreError::LeaseGone(_) = error { StoreError::LeaseGone(lease) } else { error }
}

/// An open watch.
struct Watching {
    requests: etcd_client::WatchRequestSender,
    responses: etcd_client::WatchResponseStream,
    timeout: Duration,
    endpoint: String,
    /// Changes that are received but not yet delivered, one item per revision.
    backlog: std::vec::IntoIter<Vec<Change>>,
    ended: bool,
}

impl Watching {
    async fn created(&mut self) -> Result<WatchResponse, StoreError> {
        let message = self.responses.message().await;
        self.received(message)
    }

    fn received(
        &self,
        message: Result<Option<WatchResponse>, etcd_client::Error>,
    ) -> Result<WatchResponse, StoreError> {
        match message {
            Ok(Some(response)) => Ok(response),
            Ok(None) => {
                Err(StoreError::Unavailable(format!("etcd {} ended the watch", self.endpoint)))
            }
            Err(error) => Err(error::translate(&self.endpoint, &error)),
        }
    }

    /// Adds a response. Returns an error if the watch has ended.
    fn take(&mut self, response: WatchResponse) -> Result<(), StoreError> {
        if response.compact_revision() != 0 {
            return Err(StoreError::Compacted { oldest: response.compact_revision() });
        }
        if response.canceled() {
            let why = response.cancel_reason();
            return Err(error::translate_reason(&self.endpoint, why));
        }
        let mut groups: Vec<Vec<Change>> = Vec::new();
        for event in response.events() {
            let Some(change) = event.kv().and_then(|pair| change(event.event_type(), pair)) else {
                continue;
            };
            match groups.last_mut() {
                Some(group) if group.first().map(Change::revision) == Some(change.revision()) => {
                    group.push(change);
                }
                _ => groups.push(vec![change]),
            }
        }
        self.backlog = groups.into_iter();
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<Vec<Change>, StoreError>> {
        loop {
            if let Some(changes) = self.backlog.next() {
                return Some(Ok(changes));
            }
            if self.ended {
                return None;
            }
            let response = self.receive().await;
            if let Err(error) = response.and_then(|response| self.take(response)) {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    /// Returns the next response. A silent server is asked for a progress notification, so that a
    /// hanging server is detected although its connection is open.
    async fn receive(&mut self) -> Result<WatchResponse, StoreError> {
        let mut quiet = Duration::ZERO;
        loop {
            match tokio::time::timeout(PROGRESS, self.responses.message()).await {
                Ok(message) => return self.received(message),
                Err(_) if quiet >= self.timeout => {
                    return Err(StoreError::Unavailable(format!(
                        "etcd {} gave no sign of life for {quiet:?}",
                        self.endpoint
                    )));
                }
                Err(_) => {
                    quiet += PROGRESS;
                    // If sending fails, the response stream reports the error too.
                    let _ = self.requests.request_progress().await;
                }
            }
        }
    }
}

fn change(kind: EventType, pair: &KeyValue) -> Option<Change> {
    let entry = entry(pair)?;
    Some(match kind {
        EventType::Put => Change::Put(entry),
        EventType::Delete => Change::Delete { key: entry.key, revision: entry.mod_revision },
    })
}

fn compare(compare: Compare) -> EtcdCompare {
    match compare {
        Compare::Absent(key) => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
        Compare::Unchanged(key, revision) => {
            EtcdCompare::mod_revision(key, CompareOp::Equal, revision)
        }
        // etcd compares a range without keys as one key with revision 0. In a range with keys, the
        // condition must hold for each key.
        Compare::PrefixEmpty(prefix) => {
            let end = prefix_end(&prefix);
            EtcdCompare::create_revision(prefix, CompareOp::Equal, 0).with_range(end)
        }
        Compare::PrefixUnchanged(prefix, revision) => {
            let end = prefix_end(&prefix);
            EtcdCompare::mod_revision(prefix, CompareOp::Less, revision.saturating_add(1))
                .with_range(end)
        }
    }
}

fn operation(write: Write) -> TxnOp {
    match write {
        Write::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease));
            TxnOp::put(key, value, options)
        }
        Write::Delete(key) => TxnOp::delete(key, None),
        Write::DeletePrefix(prefix) => {
            let options = DeleteOptions::new().with_range(prefix_end(&prefix));
            TxnOp::delete(prefix, Some(options))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::alarm;

    #[test]
    fn alarms_are_found_among_the_errors_of_a_status() {
        assert_eq!(alarm("memberID:10276657743932975437 alarm:NOSPACE "), Some("NOSPACE"));
        assert_eq!(alarm("memberID:1 alarm:CORRUPT"), Some("CORRUPT"));
        assert_eq!(alarm("etcdserver: no leader"), None);
    }
}
