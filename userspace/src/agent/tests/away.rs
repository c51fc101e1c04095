//! A store that does not answer, and a state directory that cannot be written.

use std::time::Duration;

use super::{
    fake::{Paper, World, eventually, name, run, stored},
    refusals::assert_refused,
};
use crate::{
    agent::containers::Containers,
    api::{
        Backend as _,
        types::{Connect, ErrorKind},
    },
    testing::SmallDisk,
};

/// The state directory of the first host.
fn state_dir(world: &World) -> std::path::PathBuf {
    let node = crate::model::testing::node("host1", 1);
    world.state_dir(&node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ps_tells_modes_and_networks_before_the_store_is_read() {
    let world = World::new().await;
    let paper = Paper::new();
    let one = world.start(1, &paper).await.ready().await;
    one.network("blue").await.unwrap();
    one.network("red").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.run("lan", "bridge").await.unwrap();
    one.run("alone", "none").await.unwrap();
    one.run("bare", "host").await.unwrap();
    one.run("side", "container:web").await.unwrap();
    let connect = Connect { container: name("web"), ip: None, more_ips: Vec::new(), mac: None };
    one.agent.connect(&name("red"), connect).await.unwrap();
    let before = one.agent.containers().await.unwrap();
    let modes: Vec<_> = before.iter().map(|row| row.mode.as_str()).collect();
    assert_eq!(modes, ["none", "host", "bridge", "container", "overlay"]);
    assert_eq!(before[4].networks.len(), 2);
    eventually("the second network is in the record", || async {
        let records = Containers::load(&state_dir(&world)).unwrap();
        let known = records.get(&name("web")).unwrap().known.clone();
        known.is_some_and(|known| known.networks.len() == 2)
    })
    .await;
    one.stop().await;

    // `prepare` starts no follower of the store, as if the store did not answer.
    let (two, entered) = world.prepare(1, &paper, &format!("{:064x}", 1));
    entered.await.unwrap().unwrap();
    assert_eq!(two.agent.containers().await.unwrap(), before);
    two.stop().await;

    // An earlier version wrote records without networks.
    let path = state_dir(&world).join("containers/web.json");
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record.as_object_mut().unwrap().remove("known").unwrap();
    std::fs::write(&path, record.to_string()).unwrap();
    let (old, entered) = world.prepare(1, &paper, &format!("{:064x}", 1));
    entered.await.unwrap().unwrap();
    let rows = old.agent.containers().await.unwrap();
    assert_eq!((rows[4].mode.as_str(), rows[4].networks.len()), ("unknown", 0));
    assert_eq!(rows[3].mode, "container");
    old.stop().await;
    // The agent notes the networks in the record when it has read the store.
    let again = world.start(1, &paper).await.ready().await;
    assert_eq!(again.agent.containers().await.unwrap(), before);
    eventually("the networks are noted", || async {
        let records = Containers::load(&state_dir(&world)).unwrap();
        records.get(&name("web")).unwrap().known.is_some()
    })
    .await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_full_state_directory_refuses_what_writes_and_changes_nothing() {
    let world = World::new().await;
    let disk = SmallDisk::at(&state_dir(&world), "64k");
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let before = stored(&world).await;
    let namespaces = one.paper.state().namespaces.clone();
    let problem =
        |line: &str| one.shared.shown.problems.lines().iter().any(|has| has.contains(line));

    disk.fill();
    let full = "cannot be written: No space left on device";
    // The first request may itself find the full disk. At the second request the problem is known.
    for _ in 0..2 {
        assert_refused(one.run("b", "blue").await, ErrorKind::Unavailable, full);
        assert!(problem(full), "{:?}", one.shared.shown.problems.lines());
    }
    assert_refused(one.run("c", "host").await, ErrorKind::Unavailable, full);
    let after = stored(&world).await;
    assert_eq!(after.endpoints.count(), before.endpoints.count());
    assert_eq!(one.paper.state().namespaces, namespaces);
    assert_eq!(one.agent.containers().await.unwrap().len(), 1);
    let mut names: Vec<_> = std::fs::read_dir(disk.path().join("containers"))
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["web.json"]);

    disk.empty();
    eventually("the problem is over", || async { !problem(full) }).await;
    one.run("b", "blue").await.unwrap();

    disk.read_only(true);
    let read_only = "cannot be written: Read-only file system";
    eventually("the problem is told", || async { problem(read_only) }).await;
    assert_refused(one.run("c", "blue").await, ErrorKind::Unavailable, read_only);
    let removed = one.agent.container_remove(&name("b"), true).await;
    assert_refused(removed, ErrorKind::Unavailable, read_only);
    assert_eq!(one.agent.containers().await.unwrap().len(), 2);
    assert_eq!(stored(&world).await.endpoints.count(), 2);
    disk.read_only(false);
    eventually("the problem is over", || async { !problem(read_only) }).await;
    one.agent.container_remove(&name("b"), true).await.unwrap();
    // A full disk does not prevent a removal.
    disk.fill();
    one.agent.container_remove(&name("web"), true).await.unwrap();
    one.stop().await;
}

/// A request whose caller has stopped waiting leaves no container behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_caller_has_given_up_is_taken_back() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    let socket = world.dir.path().join("x.sock");
    let listener = crate::api::bind(&socket).unwrap();
    let serving = crate::api::serve(
        listener,
        std::sync::Arc::clone(&one.agent) as _,
        one.shared.ending.shutdown.clone().cancelled_owned(),
    );
    let serving = tokio::spawn(serving);
    let client = crate::api::Client::new(&socket).with_timeout(Some(Duration::from_secs(3)));

    // A request that waits for its turn.
    let turn = one.shared.requests.turns.wait(&name("web")).await;
    let refused = client.container_create(run("web", "blue")).await;
    assert_refused(refused, ErrorKind::Unavailable, "container 'web': another request for it");
    drop(turn);
    // Turns are granted in order: after this turn, the abandoned request has had its turn.
    drop(one.shared.requests.turns.wait(&name("web")).await);
    assert!(one.agent.containers().await.unwrap().is_empty());

    // The kernel does not take the endpoint: the device pair is never ready.
    one.paper.plugging.close(true);
    let refused = client.container_create(run("web", "blue")).await;
    assert_refused(refused, ErrorKind::Unavailable, "not in the kernel after");
    one.paper.plugging.close(false);
    eventually("it is taken back", || async { stored(&world).await.endpoints.count() == 0 }).await;
    one.eventually("its sandbox is gone", |state| state.namespaces.is_empty()).await;
    assert!(one.agent.containers().await.unwrap().is_empty());
    client.clone().with_timeout(None).container_create(run("web", "blue")).await.unwrap();
    one.stop().await;
    serving.await.unwrap().unwrap();
}
