//! Commits that the store does not answer, and carries out later.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    fake::{Paper, Running, World, eventually, name, run, stored},
    paper::NETNS,
    refusals::assert_refused,
};
use crate::{
    agent::{
        attempts::{Attempt, Attempts},
        unfinished::Unfinished,
    },
    api::{
        Backend as _,
        types::{Connect, ErrorKind},
    },
    model::ENDPOINTS,
    store::{
        Compare, Kind, LeaseId, Outcome, Revision, Snapshot, StateStore, StoreError, Watch, Write,
    },
};

/// A store that can hang: it keeps the first commit of an endpoint, and answers no commit.
#[derive(Debug)]
struct Slow {
    store: Arc<dyn StateStore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    hangs: bool,
    kept: Option<(Vec<Compare>, Vec<Write>)>,
}

impl Slow {
    fn hang(&self, hangs: bool) {
        self.state.lock().unwrap().hangs = hangs;
    }

    /// Carries out the commit that was kept.
    async fn carry_out(&self) -> Outcome {
        let (compares, writes) = self.state.lock().unwrap().kept.take().unwrap();
        self.store.commit(compares, writes).await.unwrap()
    }
}

#[async_trait]
impl StateStore for Slow {
    fn kind(&self) -> Kind {
        self.store.kind()
    }

    async fn snapshot(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.store.snapshot(prefix).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn commit(
        &self,
        compares: Vec<Compare>,
        writes: Vec<Write>,
    ) -> Result<Outcome, StoreError> {
        {
            let mut state = self.state.lock().unwrap();
            if state.hangs {
                let is_endpoint = |write: &Write| matches!(write, Write::Put { key, .. } if key.starts_with(ENDPOINTS));
                if state.kept.is_none() && writes.iter().any(is_endpoint) {
                    state.kept = Some((compares, writes));
                }
                return Err(StoreError::Unavailable("no answer".to_owned()));
            }
        }
        self.store.commit(compares, writes).await
    }

    async fn was_written(&self, key: &str, at: Revision) -> Result<bool, StoreError> {
        self.store.was_written(key, at).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

async fn slow_world() -> (World, Arc<Slow>) {
    let mut world = World::new().await;
    let slow = Arc::new(Slow { store: Arc::clone(&world.store), state: Mutex::default() });
    world.store = Arc::clone(&slow) as Arc<dyn StateStore>;
    (world, slow)
}

/// Waits until the node's record is in the store as the agent last changed it, and the agent knows
/// that: an endpoint is committed only with the node's record as it was.
async fn settled(host: &Running, world: &World) {
    let name = &host.shared.node.name;
    eventually("the node's record is written", || async {
        let stored = stored(world).await;
        let Some(node) = stored.nodes.get(name) else { return false };
        let view = host.shared.view();
        node.record == *host.shared.record.borrow()
            && view.nodes.get(name).is_some_and(|known| known.revision == node.revision)
    })
    .await;
}

fn in_doubt(host: &Running) -> bool {
    let problems = host.shared.shown.problems.lines();
    problems.iter().any(|line| line.contains("'web'") && line.contains("an attempt has failed"))
}

/// Fails to make a container, with an address and a port of its own.
async fn fail(host: &Running, slow: &Slow) {
    slow.hang(true);
    let mut request = run("web", "blue");
    request.ip = Some("10.0.1.9".parse().unwrap());
    request.ports = vec!["8080:80".to_owned()];
    let refused = host.agent.container_create(request).await;
    assert_refused(refused, ErrorKind::Unavailable, "no answer");
    assert!(in_doubt(host));
    assert!(host.paper.state().namespaces.is_empty());
}

/// Makes the same container.
async fn succeed(host: &Running, world: &World) {
    let mut request = run("web", "blue");
    request.ip = Some("10.0.1.9".parse().unwrap());
    request.ports = vec!["8080:80".to_owned()];
    host.agent.container_create(request).await.unwrap();
    assert_eq!(stored(world).await.endpoints.count(), 1);
    assert_eq!(host.paper.state().veths.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_has_failed_does_not_come_true_later() {
    let (world, slow) = slow_world().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    fail(&one, &slow).await;
    slow.hang(false);
    eventually("it is taken back", || async { !in_doubt(&one) }).await;
    assert_eq!(slow.carry_out().await, Outcome::Conflict);
    assert_eq!(stored(&world).await.endpoints.count(), 0);
    assert!(Attempts::new(&one.shared.options.state_dir).earlier().attempts.is_empty());
    succeed(&one, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_does_not_wait_until_the_first_is_taken_back() {
    let (world, slow) = slow_world().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    settled(&one, &world).await;
    fail(&one, &slow).await;
    assert!(matches!(slow.carry_out().await, Outcome::Committed(_)));
    slow.hang(false);
    succeed(&one, &world).await;
    assert!(!in_doubt(&one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_agent_takes_a_failed_run_back() {
    let (world, slow) = slow_world().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    let paper = Arc::clone(&one.paper);
    fail(&one, &slow).await;
    one.crash().await;

    slow.hang(false);
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is taken back", || async { !in_doubt(&one) }).await;
    assert_eq!(slow.carry_out().await, Outcome::Conflict);
    assert_eq!(stored(&world).await.endpoints.count(), 0);
    succeed(&one, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_agent_was_killed_is_taken_back_and_one_that_was_complete_is_not() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    for container in ["web", "half", "theirs"] {
        one.run(container, "blue").await.unwrap();
    }
    let paper = Arc::clone(&one.paper);
    let state_dir = one.shared.options.state_dir.clone();
    one.stop().await;
    // The agent was killed after the commit, one time before it had written the record.
    let attempts = Attempts::new(&state_dir);
    for endpoint in stored(&world).await.endpoints_in(&name("blue")) {
        let (id, container) = (endpoint.id.clone(), endpoint.container.clone());
        attempts.begin(&Attempt::new(id, name("blue"), container, true)).unwrap();
    }
    let unfinished = Unfinished::load(&state_dir);
    for container in ["half", "theirs"] {
        std::fs::remove_file(state_dir.join(format!("containers/{container}.json"))).unwrap();
        unfinished.made(&name(container), NETNS).unwrap();
    }
    // Another program has since made a namespace of that name.
    let theirs = std::path::PathBuf::from("/paper/netns/theirs");
    paper.state().foreign.insert(theirs.clone());
    let one = world.start(1, &paper).await.ready().await;
    eventually("two are taken back", || async { stored(&world).await.endpoints.count() == 1 })
        .await;
    one.eventually("its sandbox is gone", |state| state.namespaces.len() == 2).await;
    assert!(paper.state().namespaces.contains_key(&theirs));
    eventually("the attempts are over", || async { attempts.earlier().attempts.is_empty() }).await;
    let rows = one.agent.containers().await.unwrap();
    assert_eq!((rows.len(), rows[0].name.as_str()), (1, "web"));
    eventually("no problem is left", || async { one.shared.shown.problems.lines().is_empty() })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_file_is_torn_is_taken_back_by_its_name() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.run("half", "blue").await.unwrap();
    let (paper, state_dir) = (Arc::clone(&one.paper), one.shared.options.state_dir.clone());
    one.stop().await;
    std::fs::remove_file(state_dir.join("containers/half.json")).unwrap();
    let directory = state_dir.join("attempts");
    std::fs::create_dir_all(&directory).unwrap();
    // After a crash of the host, the file of a complete attempt may be there again.
    for endpoint in stored(&world).await.endpoints_in(&name("blue")) {
        std::fs::write(directory.join(format!("blue~{}.json", endpoint.id)), "").unwrap();
    }
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is taken back", || async { stored(&world).await.endpoints.count() == 1 }).await;
    eventually("both are over", || async {
        std::fs::read_dir(&directory).unwrap().count() == 0
            && one.shared.shown.problems.lines().is_empty()
    })
    .await;
    assert_eq!(
        stored(&world).await.endpoints_in(&name("blue")).next().unwrap().container,
        name("web")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_agent_was_killed_is_fenced_off_unless_it_was_made() {
    let (world, slow) = slow_world().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    for network in ["blue", "red"] {
        one.network(network).await.unwrap();
    }
    one.run("web", "blue").await.unwrap();
    let (paper, state_dir) = (Arc::clone(&one.paper), one.shared.options.state_dir.clone());
    slow.hang(true);
    let request = Connect { container: name("web"), ip: None, more_ips: Vec::new(), mac: None };
    one.agent.connect(&name("red"), request).await.unwrap_err();
    one.crash().await;
    slow.hang(false);
    // As if the agent had been killed before the store answered, and another one after it had made
    // the endpoint in 'blue'.
    let attempts = Attempts::new(&state_dir);
    let failed = attempts.earlier().attempts.pop().unwrap();
    assert!(failed.joins && failed.network == name("red"));
    attempts.begin(&Attempt { failed: false, ..failed }).unwrap();
    let made = stored(&world).await.endpoints_in(&name("blue")).next().unwrap().id.clone();
    let made = Attempt { joins: true, ..Attempt::new(made, name("blue"), name("web"), true) };
    attempts.begin(&made).unwrap();

    let one = world.start(1, &paper).await.ready().await;
    eventually("both are over", || async {
        attempts.earlier().attempts.is_empty() && one.shared.shown.problems.lines().is_empty()
    })
    .await;
    assert_eq!(slow.carry_out().await, Outcome::Conflict);
    let view = stored(&world).await;
    assert_eq!(view.endpoints.count(), 1);
    assert_eq!(view.endpoints_in(&name("blue")).count(), 1);
}
