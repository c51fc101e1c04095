//! The store, as another client sees and changes it.

use std::collections::BTreeSet;

use culvert_tests::{
    cluster::{Cluster, SOON},
    netns::wait_until,
    sock,
};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, Error, GetOptions,
    ResponseHeader,
};

/// Prefix of all keys of records.
const PREFIX: &str = "/culvert/v1/";

/// Uses the store as another client, in the namespace of the store. Of a store with several
/// members, the first one is asked.
pub(crate) fn as_client<T: Send>(
    cluster: &Cluster,
    work: impl AsyncFnOnce(Client) -> T + Send,
) -> T {
    sock::within(cluster.switch.path(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            work(Client::connect([cluster.etcd.endpoint()], None).await.unwrap()).await
        })
    })
}

/// What the keys of networks, containers and addresses begin with. The records of hosts are others.
const OF_CONTAINERS: [&str; 6] = ["networks/", "vnis/", "endpoints/", "ipam/", "macs/", "vteps/"];

/// The keys of networks, containers and addresses, without the common prefix of all keys.
pub(crate) fn keys(cluster: &Cluster) -> BTreeSet<String> {
    as_client(cluster, async |mut client| {
        let all = GetOptions::new().with_prefix().with_keys_only();
        let found = client.get(PREFIX, Some(all)).await.unwrap();
        let keys =
            found.kvs().iter().filter_map(|pair| pair.key_str().unwrap().strip_prefix(PREFIX));
        let is_one = |key: &&str| OF_CONTAINERS.iter().any(|prefix| key.starts_with(prefix));
        keys.filter(is_one).map(str::to_owned).collect()
    })
}

/// The number of leases.
pub(crate) fn leases(cluster: &Cluster) -> usize {
    as_client(cluster, async |mut client| client.leases().await.unwrap().leases().len())
}

/// Removes the history of the store up to now.
pub(crate) fn compact(cluster: &Cluster) {
    async fn try_it(mut client: Client) -> Result<(), Error> {
        // There is something to compact, also if nobody has written since the last compaction.
        let put = client.put("/filler/compacted", "", None).await?;
        let revision = put.header().map_or(0, ResponseHeader::revision);
        let physical = CompactionOptions::new().with_physical();
        client.compact(revision, Some(physical)).await.map(drop)
    }
    // The members may be choosing a leader.
    wait_until(SOON, "a compaction", || {
        as_client(cluster, async |client| try_it(client).await.is_ok())
    });
}

/// Sets the alarm that etcd sets when it has reached its quota: it takes no writes then.
pub(crate) fn set_full(cluster: &Cluster) {
    async fn try_it(mut client: Client) -> Result<(), Error> {
        let status = client.status().await?;
        let mut member = AlarmOptions::new();
        member.with_member(status.header().map_or(0, ResponseHeader::member_id));
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(member)).await.map(drop)
    }
    wait_until(SOON, "the alarm to be set", || {
        as_client(cluster, async |client| try_it(client).await.is_ok())
    });
}

/// Disarms the alarm NOSPACE of all members.
pub(crate) fn end_full(cluster: &Cluster) {
    async fn try_it(mut client: Client) -> Result<(), Error> {
        let set = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        for alarm in set.alarms() {
            let mut member = AlarmOptions::new();
            member.with_member(alarm.member_id());
            let action = AlarmAction::Deactivate;
            client.alarm(action, AlarmType::Nospace, Some(member)).await?;
        }
        Ok(())
    }
    wait_until(SOON, "the alarm to be disarmed", || {
        as_client(cluster, async |client| try_it(client).await.is_ok())
    });
}
