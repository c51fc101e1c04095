//! Stores that fail: a host keeps its state and its traffic.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::{
    fake::{Paper, World, eventually, name, run, stored, two_hosts},
    requests::network,
};
use crate::{
    agent::platform::{HostEvent, PlugError},
    api::{
        Backend as _,
        types::{AddressChange, ApiError, ErrorKind, NetworkCreate, VtepChange},
    },
    model::{Key, MacAddr, ROOT},
    store::{
        Compare, Kind, LeaseId, Outcome, Revision, Snapshot, StateStore, StoreError, Watch, Write,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_that_cannot_be_read_are_not_written() {
    let world = World::new().await;
    let paper = Paper::new();
    {
        let mut state = paper.state();
        state.blind = true;
        state.veths.insert("dead".to_owned(), 7);
        state.tables.underlay.insert([9; 4], Default::default());
    }
    let one = world.start(1, &paper).await;
    eventually("the problem is told", || async {
        one.agent.status().await.unwrap().problems.iter().any(|line| line.contains("blind"))
    })
    .await;
    assert!(!one.shared.readiness.is_ready());
    assert!(paper.state().ops.is_empty() && paper.state().veths.len() == 1);
    paper.state().blind = false;
    let one = one.ready().await;
    one.eventually("strays are gone", |state| state.tables.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_the_store_is_named_and_the_rest_works() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let put = |key: &str, value: &str| Write::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        lease: None,
    };
    let right = one.paper.state().tables.clone();
    let newer = put(&Key::network(&name("red")), r#"{"schema":99}"#);
    // An unreadable record replaces a good one: the network's traffic goes on.
    let broken = put(&Key::network(&name("blue")), "{");
    world.store.commit(Vec::new(), vec![newer, broken]).await.unwrap();
    eventually("both are named", || async {
        let problems = one.agent.status().await.unwrap().problems;
        let named = |part: &str| problems.iter().any(|line| line.contains(part));
        named("networks/red") && named("networks/blue")
    })
    .await;
    assert_eq!(one.paper.state().tables, right);
    let refused = one.run("x", "red").await.unwrap_err();
    assert!(refused.message.contains("newer"), "{refused}");

    // A restarted agent, which never read the good record, does not remove the entries either.
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    let _again = world.start(1, &paper).await.ready().await;
    assert_eq!(paper.state().tables, right);
    assert_eq!(paper.state().veths.len(), 1);
}

/// A store that stops answering on request.
#[derive(Debug)]
struct Flaky {
    store: Arc<dyn StateStore>,
    down: AtomicBool,
    /// Commits are applied, but their answers are lost.
    loses_answers: AtomicBool,
    /// Commits are not sent.
    shut: AtomicBool,
    /// The user may write only the keys below [`ROOT`].
    narrow: AtomicBool,
    /// The user may not write this key.
    closed: Mutex<Option<String>>,
}

impl Flaky {
    /// Lets the agents of a world use its store through this handle.
    fn in_world(world: &mut World) -> Arc<Self> {
        let flaky = Arc::new(Self {
            store: Arc::clone(&world.store),
            down: AtomicBool::new(false),
            loses_answers: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            narrow: AtomicBool::new(false),
            closed: Mutex::new(None),
        });
        world.store = Arc::clone(&flaky) as Arc<dyn StateStore>;
        flaky
    }

    fn up(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            Err(StoreError::Unavailable("it is down".to_owned()))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl StateStore for Flaky {
    fn kind(&self) -> Kind {
        self.store.kind()
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.up()?;
        self.store.snapshot(prefix).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.up()?;
        self.store.was_written(key, at).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.up()?;
        self.store.watch(prefix, from).await
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        self.up()?;
        if self.shut.load(Ordering::SeqCst) {
            return Err(StoreError::Unsent("nothing is sent".to_owned()));
        }
        let is_narrow = self.narrow.load(Ordering::SeqCst);
        let closed = self.closed.lock().unwrap().clone();
        let beyond = |write: &Write| match write {
            Write::Put { key, .. } | Write::Delete(key) | Write::DeletePrefix(key) => {
                (is_narrow && !key.starts_with(ROOT)) || closed.as_ref() == Some(key)
            }
        };
        if writes.iter().any(beyond) {
            return Err(StoreError::Refused("permission denied".to_owned()));
        }
        let outcome = self.store.commit(compares, writes).await;
        if self.loses_answers.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("no answer".to_owned()));
        }
        outcome
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.up()?;
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.up()?;
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.up()?;
        self.store.revoke(lease).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_at_the_start_changes_nothing() {
    let mut world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let paper = Arc::clone(&one.paper);
    let right = paper.state().tables.clone();
    one.stop().await;

    let flaky = Flaky::in_world(&mut world);
    flaky.down.store(true, Ordering::SeqCst);
    let (starting, _entry) = world.prepare(1, &paper, &format!("{:064x}", 1));
    eventually("status tells of it", || async {
        let status = starting.agent.status().await.unwrap();
        status.store.error.is_some_and(|error| error.contains("it is down"))
    })
    .await;
    let refused = starting.run("x", "blue").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert!(!starting.agent.fdb().await.unwrap().is_empty(), "what is in the maps is shown");
    assert_eq!(paper.state().tables, right);
    starting.stop().await;

    flaky.down.store(false, Ordering::SeqCst);
    let _again = world.start(1, &paper).await.ready().await;
    assert_eq!(paper.state().tables, right);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_taken_back() {
    let mut world = World::new().await;
    let flaky = Flaky::in_world(&mut world);
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    flaky.loses_answers.store(true, Ordering::SeqCst);
    let error = one.run("web", "blue").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    // The endpoint was written all the same.
    flaky.loses_answers.store(false, Ordering::SeqCst);
    one.eventually("nothing is left of it", |state| {
        state.veths.is_empty() && state.namespaces.is_empty() && state.tables.is_empty()
    })
    .await;
    assert!(stored(&world).await.ipam.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_address_whose_answer_is_lost_can_be_repeated() {
    let mut world = World::new().await;
    let flaky = Flaky::in_world(&mut world);
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let blue = name("blue");
    let change = || AddressChange { container: name("web"), ip: [10, 0, 1, 100].into() };
    let additional = || one.paper.state().wanted.values().next().unwrap().additional.len();

    flaky.loses_answers.store(true, Ordering::SeqCst);
    let error = one.agent.address_add(&blue, change()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("may or may not be in the store"), "{error}");
    eventually("it was written all the same", || async { additional() == 1 }).await;
    flaky.loses_answers.store(false, Ordering::SeqCst);
    one.agent.address_add(&blue, change()).await.unwrap();
    let refusal = PlugError::Refused(ErrorKind::Internal, "the kernel says no".to_owned());
    one.paper.state().refuse_plug = Some(refusal);
    one.paper.tell(HostEvent::Lost);
    eventually("the interface fails", || async {
        one.agent.address_add(&blue, change()).await.is_err()
    })
    .await;
    // The address was there before the request that fails, and stays.
    let view = stored(&world).await;
    assert_eq!(view.ipam.count_in(&blue), 2);
    one.paper.state().refuse_plug = None;
    eventually("the interface is back", || async {
        one.agent.address_add(&blue, change()).await.is_ok()
    })
    .await;

    flaky.loses_answers.store(true, Ordering::SeqCst);
    let error = one.agent.address_remove(&blue, change()).await.unwrap_err();
    assert!(error.message.contains("may or may not be in the store"), "{error}");
    eventually("it is removed all the same", || async { additional() == 0 }).await;
    flaky.loses_answers.store(false, Ordering::SeqCst);
    let error = one.agent.address_remove(&blue, change()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains("is not one of container 'web'"), "{error}");
    // The store is down, so nothing was sent to it.
    flaky.down.store(true, Ordering::SeqCst);
    let error = one.agent.address_remove(&blue, change()).await.unwrap_err();
    assert!(!error.message.contains("may or may not"), "{error}");
}

/// A change that is not fenced off says what may have happened, and which command shows it. One
/// that was not sent says nothing of the kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_is_lost_says_what_may_have_happened() {
    let mut world = World::new().await;
    let flaky = Flaky::in_world(&mut world);
    let (one, _two) = two_hosts(&world).await;
    one.run("db", "blue").await.unwrap();
    let learns = NetworkCreate { learning: true, ..network("green") };
    one.agent.network_create(learns).await.unwrap();
    let (blue, green, red) = (name("blue"), name("green"), name("red"));
    let vtep = || VtepChange { ip: [192, 0, 2, 99].into(), network: green.clone(), port: None };
    let told = |outcome: Result<(), ApiError>, what: &str, command: &str| {
        let error = outcome.unwrap_err();
        let line = format!(
            "store: no answer: {what} may or may not be in the store, and that may still change: '{command}' shows it when the store answers"
        );
        assert_eq!((error.kind, error.message), (ErrorKind::Unavailable, line));
    };
    let there = || {
        let view = one.shared.view();
        let has_vtep = view.vteps.get(&green).is_some_and(|vteps| !vteps.is_empty());
        (view.networks.contains_key(&red), has_vtep)
    };
    let (networks, vteps) = ("culvert network ls", "culvert vtep ls");

    flaky.loses_answers.store(true, Ordering::SeqCst);
    told(one.network("red").await.map(drop), "network 'red'", networks);
    told(one.agent.vtep_add(vtep()).await, "VTEP 192.0.2.99 of network 'green'", vteps);
    eventually("both were made all the same", || async { there() == (true, true) }).await;
    told(one.agent.vtep_remove(vtep()).await, "VTEP 192.0.2.99 of network 'green'", vteps);
    told(one.agent.network_remove(&red).await, "network 'red'", networks);
    let left = one.agent.disconnect(&blue, &name("db")).await;
    told(left, "container 'db' in network 'blue'", "culvert ps");
    eventually("both are gone", || async { there() == (false, false) }).await;
    let removed = one.agent.node_remove(&name("host2"), true).await;
    told(removed, "node 'host2'", "culvert node ls");
    flaky.loses_answers.store(false, Ordering::SeqCst);

    flaky.shut.store(true, Ordering::SeqCst);
    for error in [
        one.network("red").await.map(drop).unwrap_err(),
        one.agent.vtep_add(vtep()).await.unwrap_err(),
        one.run("web", "blue").await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.message, "store: nothing is sent");
    }
    let problems = one.shared.shown.problems.lines();
    assert!(!problems.iter().any(|line| line.contains("taken back")), "{problems:?}");
}

/// A claim that the store refuses is told, and keeps no other from being made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_to_a_mac_that_is_refused_is_told() {
    let mut world = World::new().await;
    let flaky = Flaky::in_world(&mut world);
    let (one, _two) = two_hosts(&world).await;
    let blue = name("blue");
    let macs = ["0e:00:00:00:00:01", "0e:00:00:00:00:02", "0e:00:00:00:00:03"]
        .map(|mac| mac.parse::<MacAddr>().unwrap());
    for (number, mac) in macs.iter().enumerate() {
        let mut request = run(&format!("c{number}"), "blue");
        request.mac = Some(*mac);
        one.agent.container_create(request).await.unwrap();
    }
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    // As an earlier version has made the endpoints. The first one is refused.
    let first = stored(&world).await.endpoints_on(&name("host1")).next().unwrap().record;
    *flaky.closed.lock().unwrap() = Some(Key::mac(&blue, first.mac));
    let deletions = macs.map(|mac| Write::Delete(Key::mac(&blue, mac)));
    flaky.store.commit(Vec::new(), deletions.into()).await.unwrap();
    let one = world.start(1, &paper).await.ready().await;
    let claimed = || async {
        let view = stored(&world).await;
        macs.map(|mac| view.mac_claim(&blue, mac).is_some() || mac == first.mac)
    };
    eventually("the others are claimed", || async { claimed().await == [true; 3] }).await;
    let line = format!("endpoint {} in network 'blue': its MAC is not claimed", first.id);
    let is_told = || one.shared.shown.problems.lines().iter().any(|told| told.starts_with(&line));
    eventually("the refused one is told", || async { is_told() }).await;
    assert!(stored(&world).await.mac_claim(&blue, first.mac).is_none());
    *flaky.closed.lock().unwrap() = None;
    eventually("it is claimed", || async {
        stored(&world).await.mac_claim(&blue, first.mac).is_some() && !is_told()
    })
    .await;
}

/// A role of the store that does not cover the witnesses keeps no host from being purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_does_not_need_the_permission_to_remove_the_witness() {
    let mut world = World::new().await;
    let flaky = Flaky::in_world(&mut world);
    flaky.narrow.store(true, Ordering::SeqCst);
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    one.agent.purge().await.unwrap();
    let left = stored(&world).await;
    assert_eq!(left.nodes.keys().collect::<Vec<_>>(), [&two.shared.node.name]);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_unplug_is_told_and_tried_again() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let refusal = PlugError::Refused(ErrorKind::Internal, "the kernel says no".to_owned());
    one.paper.state().refuse_unplug = Some(refusal);
    let error = one.agent.disconnect(&name("blue"), &name("web")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains("the kernel says no"), "{error}");
    assert_eq!(error.message.lines().count(), 1, "{error}");
    let problems = one.agent.status().await.unwrap().problems;
    assert!(problems.iter().any(|line| line.contains("the kernel says no")), "{problems:?}");
    assert_eq!(one.paper.state().veths.len(), 1);

    one.paper.state().refuse_unplug = None;
    eventually("it is removed and the problem is over", || async {
        let problems = one.agent.status().await.unwrap().problems;
        problems.is_empty() && one.paper.state().veths.is_empty()
    })
    .await;
    assert!(one.paper.state().attached.is_empty());
    one.agent.container_remove(&name("web"), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_counts_entries_without_reading_the_maps() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    for n in 0..3 {
        one.run(&format!("one{n}"), "blue").await.unwrap();
        two.run(&format!("two{n}"), "blue").await.unwrap();
    }
    eventually("host 1 has the entries of both", || async {
        one.agent.fdb().await.unwrap().len() == 6
    })
    .await;
    let read = one.paper.state().shown;
    let counts = one.agent.status().await.unwrap().counts;
    // The gateway has an entry in `NEIGHBOURS` as well.
    assert_eq!((counts.fdb, counts.neighbours), (6, 7));
    assert_eq!(one.paper.state().shown, read, "status has read the maps");
    one.agent.container_remove(&name("one0"), false).await.unwrap();
    eventually("the counts follow", || async {
        let counts = one.agent.status().await.unwrap().counts;
        (counts.fdb, counts.neighbours) == (5, 6)
    })
    .await;
}
