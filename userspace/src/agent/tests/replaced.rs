//! Stores that are replaced: nothing is read from them or written to them, until a person accepts
//! them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use tokio::sync::watch;

use super::{
    fake::{Paper, World, eventually, name, run, stored, two_hosts},
    refusals::assert_refused,
};
use crate::{
    agent::CleanUp,
    api::{
        Backend as _,
        types::{AddressChange, Connect, ErrorKind, VtepChange},
    },
    model::{ALIVE, NODES, ROOT},
    store::{
        Compare, FileStore, Kind, LeaseId, Outcome, Revision, Snapshot, StateStore, StoreError,
        Watch, Write,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_store_is_accepted_by_doing_what_status_says() {
    let mut world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let paper = Arc::clone(&one.paper);
    eventually("the store is remembered", || async {
        one.shared.options.state_dir.join("store-mark").exists()
    })
    .await;
    one.stop().await;

    let other = FileStore::open(&world.dir.path().join("other")).await.unwrap();
    world.store = Arc::new(other);
    // Restarts alone do not accept the new store, and nothing is written to it.
    let told =
        |problems: &[String]| problems.iter().any(|line| line.contains("'culvert store accept'"));
    for _ in 0..2 {
        let one = world.start(1, &paper).await;
        eventually("the replacement is told", || async {
            told(&one.agent.status().await.unwrap().problems)
        })
        .await;
        assert!(!one.shared.readiness.is_ready() && !paper.state().veths.is_empty());
        assert!(stored(&world).await.nodes.is_empty(), "a node was entered in the other store");
        one.stop().await;
    }
    let one = world.start(1, &paper).await;
    eventually("the replacement is told", || async {
        told(&one.agent.status().await.unwrap().problems)
    })
    .await;
    one.agent.store_accept().await.unwrap();
    let one = one.ready().await;
    one.agent.store_accept().await.expect_err("nothing to accept");
    one.eventually("what it does not hold is removed", |state| state.veths.is_empty()).await;
    // One problem remains: this node was not in the store, so its container has lost its network.
    eventually("the problem is over", || async {
        !told(&one.agent.status().await.unwrap().problems)
    })
    .await;
    one.stop().await;
}

/// A store that is exchanged for another one while agents use it, as an etcd that is restored from a
/// backup.
#[derive(Debug)]
struct Exchanged {
    store: watch::Sender<Arc<dyn StateStore>>,
    /// Number of calls that write.
    writes: AtomicUsize,
    /// Each store has the leases, as a backup has.
    same_leases: AtomicBool,
}

impl Exchanged {
    /// Lets the agents of a world use its store through a handle that can be exchanged. Returns the
    /// store as well.
    fn in_world(world: &mut World) -> (Arc<Self>, Arc<dyn StateStore>) {
        let right = Arc::clone(&world.store);
        let exchanged = Arc::new(Self {
            store: watch::Sender::new(Arc::clone(&right)),
            writes: AtomicUsize::new(0),
            same_leases: AtomicBool::new(false),
        });
        world.store = Arc::clone(&exchanged) as Arc<dyn StateStore>;
        (exchanged, right)
    }

    fn now(&self) -> Arc<dyn StateStore> {
        Arc::clone(&self.store.borrow())
    }

    fn writing(&self) -> Arc<dyn StateStore> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.now()
    }
}

#[async_trait]
impl StateStore for Exchanged {
    fn kind(&self) -> Kind {
        Kind::Etcd
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.now().snapshot(prefix).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.now().was_written(key, at).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut store = self.store.subscribe();
        let until = async move {
            let _ = store.changed().await;
        };
        Ok(self.now().watch(prefix, from).await?.take_until(until).boxed())
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        self.writing().commit(compares, writes).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.writing().grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.same_leases.load(Ordering::SeqCst) {
            return Ok(());
        }
        // It writes no key.
        self.now().keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.writing().revoke(lease).await
    }
}

/// Another store with the same keys.
async fn back_up(store: &dyn StateStore, world: &World) -> FileStore {
    let backup = FileStore::open(&world.dir.path().join("backup")).await.unwrap();
    let entries = store.snapshot(ROOT).await.unwrap().entries.into_iter();
    let copied =
        entries.map(|entry| Write::Put { key: entry.key, value: entry.value, lease: None });
    backup.commit(Vec::new(), copied.collect()).await.unwrap();
    backup
}

/// An agent that is started again does not trust a store that its predecessor has called replaced,
/// although nothing would tell any more: the store has grown, and its history is compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finding_outlives_the_agent() {
    let mut world = World::new().await;
    let (exchanged, right) = Exchanged::in_world(&mut world);
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    let backup = back_up(&*right, &world).await;
    one.run("web", "blue").await.unwrap();
    let paper = Arc::clone(&one.paper);
    exchanged.store.send_replace(Arc::new(backup.clone()));
    let kept = one.shared.options.state_dir.join("store-mark");
    eventually("the finding is on the disk", || async {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("\"store: replaced: "))
    })
    .await;
    one.stop().await;

    let seen = right.snapshot(ROOT).await.unwrap().revision;
    for _ in 0..=seen {
        let write = Write::Put { key: "/other".to_owned(), value: Vec::new(), lease: None };
        backup.commit(Vec::new(), vec![write]).await.unwrap();
    }
    let newest = backup.snapshot("/other").await.unwrap().revision;
    backup.compact(newest).await.unwrap();
    let one = world.start(1, &paper).await;
    // Time for several attempts.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!one.shared.readiness.is_ready() && !paper.state().veths.is_empty());
    let problems = one.agent.status().await.unwrap().problems;
    assert!(problems.iter().any(|line| line.contains("'culvert store accept'")), "{problems:?}");
    one.agent.store_accept().await.unwrap();
    let one = one.ready().await;
    one.eventually("what it does not hold is removed", |state| state.veths.is_empty()).await;
    one.stop().await;
}

/// A store that is accepted may be of an earlier revision. Requests wait for its own revisions, and the
/// node is entered in it, although its lease lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_store_counts_by_its_own_revisions() {
    let mut world = World::new().await;
    let (exchanged, right) = Exchanged::in_world(&mut world);
    for number in 0..30 {
        let key = format!("{ROOT}other");
        let write = Write::Put { key, value: vec![number], lease: None };
        right.commit(Vec::new(), vec![write]).await.unwrap();
    }
    let one = world.start(1, &Paper::new()).await.ready().await;
    let backup = back_up(&*right, &world).await;
    let gone = [NODES, ALIVE].map(|prefix| Write::DeletePrefix(prefix.to_owned()));
    backup.commit(Vec::new(), gone.to_vec()).await.unwrap();
    exchanged.same_leases.store(true, Ordering::SeqCst);
    exchanged.store.send_replace(Arc::new(backup.clone()));
    eventually("the replacement is noticed", || async { one.shared.store.refusal().is_some() })
        .await;
    one.agent.store_accept().await.unwrap();
    let host = name("host1");
    eventually("the node is entered", || async { stored(&world).await.nodes.contains_key(&host) })
        .await;
    one.network("red").await.unwrap();
    let newest = backup.snapshot(ROOT).await.unwrap().revision;
    {
        let view = one.shared.view();
        assert!(view.revision <= newest, "{} {newest}", view.revision);
        assert!(view.networks.contains_key(&name("red")));
    }
    one.stop().await;
}

/// A store is rolled back while two agents run: whatever they are asked, and whatever they do by
/// themselves, nothing is written to it. They go on when the right store is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_to_a_store_that_is_called_replaced() {
    let mut world = World::new().await;
    let (exchanged, right) = Exchanged::in_world(&mut world);
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    one.agent.container_create(run("lone", "none")).await.unwrap();
    // The backup has all that requests are about, so nothing but the guard refuses them.
    let backup = back_up(&*right, &world).await;

    exchanged.store.send_replace(Arc::new(backup.clone()));
    for host in [&one, &two] {
        eventually("the replacement is noticed", || async {
            host.agent
                .status()
                .await
                .unwrap()
                .store
                .error
                .is_some_and(|why| why.contains("replaced"))
        })
        .await;
    }
    let (there, writes) =
        (backup.snapshot("/").await.unwrap(), exchanged.writes.load(Ordering::SeqCst));
    let (blue, web) = (name("blue"), name("web"));
    let vtep = || VtepChange { ip: [192, 0, 2, 99].into(), network: blue.clone(), port: None };
    let address = || AddressChange { container: web.clone(), ip: [10, 0, 1, 100].into() };
    let connect = Connect { container: name("lone"), ip: None, more_ips: Vec::new(), mac: None };
    let outcomes = [
        ("network create", one.network("red").await.map(drop)),
        ("network rm", one.agent.network_remove(&blue).await),
        ("run", one.run("x", "blue").await.map(drop)),
        ("connect", one.agent.connect(&blue, connect).await.map(drop)),
        ("disconnect", one.agent.disconnect(&blue, &web).await),
        ("address add", one.agent.address_add(&blue, address()).await),
        ("address rm", one.agent.address_remove(&blue, address()).await),
        ("rm", one.agent.container_remove(&web, true).await),
        ("vtep add", one.agent.vtep_add(vtep()).await),
        ("vtep rm", one.agent.vtep_remove(vtep()).await),
        ("node rm", one.agent.node_remove(&name("host2"), true).await),
        ("purge", one.agent.purge().await),
    ];
    for (verb, outcome) in outcomes {
        println!("{verb}: {outcome:?}");
        assert_refused(outcome, ErrorKind::Unavailable, "'culvert store accept'");
    }
    // What only shows the view is answered.
    assert_eq!(one.agent.nodes().await.unwrap().len(), 2);
    let networks = one.agent.networks().await.unwrap();
    assert!(networks.iter().any(|network| network.name == "blue"), "{networks:?}");
    assert_eq!(one.agent.network_inspect(&blue).await.unwrap().containers.len(), 1);
    // An agent that stops would give its lease back.
    let paper = Arc::clone(&two.paper);
    two.stop().await;
    assert_eq!(backup.snapshot("/").await.unwrap(), there);
    assert_eq!(exchanged.writes.load(Ordering::SeqCst), writes);
    // An agent that is to clean up leaves the store alone.
    assert_eq!(CleanUp::of(true, &one.shared), CleanUp::Host);
    assert_eq!(CleanUp::of(false, &one.shared), CleanUp::Nothing);
    assert!(!one.paper.state().veths.is_empty() && one.paper.state().namespaces.len() == 2);

    exchanged.store.send_replace(right);
    eventually("the right store is used again", || async {
        one.agent.address_add(&blue, address()).await.is_ok()
    })
    .await;
    let two = world.start(2, &paper).await.ready().await;
    assert_eq!(CleanUp::of(true, &two.shared), CleanUp::Node);
    two.run("db", "blue").await.unwrap();
    one.agent.node_remove(&name("host2"), true).await.unwrap();
    two.stop().await;
    one.stop().await;
}
