//! Agents on simulated hosts.

use std::{future::Future, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use super::paper::State;
pub(super) use super::{
    paper::{DEADLINE, Paper, Port},
    requests::{name, network, run},
};
use crate::{
    agent::{
        backend::Agent,
        containers::Containers,
        denied::Denied,
        engine::{Engine, Periods},
        identity, node,
        platform::Platform,
        shared::Shared,
        start,
    },
    api::{
        Backend as _,
        types::{ApiError, ContainerRow},
    },
    config::{AgentOptions, ConntrackOptions, DatapathMode, DeviceMode, SeccompMode, StoreAccess},
    model::{Alive, Node, ROOT, View},
    store::{FileStore, Follower, StateStore, new_id},
};

/// Short periods: a simulated host does its work at once.
const PERIODS: Periods = Periods {
    retry: Duration::from_millis(20),
    anti_entropy: Duration::from_millis(100),
    ageing: Duration::from_millis(20),
    steady: Duration::from_millis(50),
};

/// An agent that runs.
pub(super) struct Running {
    pub(super) agent: Arc<Agent>,
    pub(super) shared: Arc<Shared>,
    pub(super) paper: Arc<Paper>,
    tasks: Vec<JoinHandle<()>>,
    /// Until the engine has it.
    follower: Option<Follower>,
}

/// The store and the state directories of a test.
pub(super) struct World {
    pub(super) store: Arc<dyn StateStore>,
    pub(super) dir: tempfile::TempDir,
    /// The agents have no `--uplink`.
    pub(super) default_uplink: bool,
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(&dir.path().join("store")).await.unwrap();
        Self { store: Arc::new(store), dir, default_uplink: false }
    }

    /// Starts agent `number` on a host that may have been used before.
    pub(super) async fn start(&self, number: u8, paper: &Arc<Paper>) -> Running {
        let (running, entry) = self.prepare(number, paper, &format!("{number:064x}"));
        let mut health = running.follower.as_ref().unwrap().health();
        tokio::select! {
            entered = entry => entered.unwrap().unwrap(),
            // The agent is not entered in a store that it does not know.
            _ = health.wait_for(|health| health.replaced.is_some()) => {}
        }
        self.follow(running)
    }

    /// Lets an agent whose node is in the store do its work.
    pub(super) fn follow(&self, mut running: Running) -> Running {
        let follower = running.follower.take().unwrap();
        let engine = Engine::new(Arc::clone(&running.shared), follower, PERIODS);
        running.tasks.push(tokio::spawn(engine.run()));
        running
    }

    /// State directory of an agent. The path has the address: it distinguishes a host from its
    /// copy.
    pub(super) fn state_dir(&self, node: &Node) -> PathBuf {
        self.dir.path().join(format!("state-{}-{}-{}", node.name, node.vtep, node.id))
    }

    /// Starts an agent up to the entry of its node in the store.
    pub(super) fn prepare(
        &self,
        number: u8,
        paper: &Arc<Paper>,
        id: &str,
    ) -> (Running, oneshot::Receiver<Result<(), String>>) {
        let vtep = Ipv4Addr::new(192, 0, 2, number);
        let node = Node::new(name(&format!("host{number}")), id.to_owned(), vtep, 4789);
        self.prepare_as(node, identity::alive(id.to_owned(), &new_id()), paper)
    }

    /// As above, for an agent of any identity.
    pub(super) fn prepare_as(
        &self,
        node: Node,
        alive: Alive,
        paper: &Arc<Paper>,
    ) -> (Running, oneshot::Receiver<Result<(), String>>) {
        let state_dir = self.state_dir(&node);
        let options = AgentOptions {
            node: Some(node.name.clone()),
            store: "file:/paper".to_owned(),
            store_access: StoreAccess::default(),
            store_timeout: None,
            uplinks: if self.default_uplink { Vec::new() } else { vec!["up0".to_owned()] },
            vtep_ip: None,
            pools: Vec::new(),
            services: Vec::new(),
            vxlan_port: 4789,
            datapath: DatapathMode::Auto,
            device: DeviceMode::Auto,
            socket: "/paper/socket".into(),
            state_dir: state_dir.clone(),
            bpffs: "/paper/bpf".into(),
            allow_private_mounts: false,
            cleanup_on_exit: false,
            seccomp: SeccompMode::On,
            log: "info".to_owned(),
            trace: false,
            ageing: Duration::from_secs(300),
            conntrack: ConntrackOptions::default(),
        };
        let shared = Arc::new(Shared::new(
            options,
            (node, alive),
            vec!["up0".to_owned()],
            Arc::clone(paper) as Arc<dyn Platform>,
            (Containers::load(&state_dir).unwrap(), Denied::load(&state_dir).unwrap()),
        ));
        let (follower, store) = start::follow(&shared, Arc::clone(&self.store));
        let (entered, entry) = oneshot::channel();
        let keeper = node::keep(Arc::clone(&shared), Arc::clone(&store), entered);
        let tasks = vec![tokio::spawn(keeper)];
        shared.store.set(store);
        shared.ending.tasks.spawn(shared.disk.clone().keep(shared.ending.shutdown.clone()));
        let agent = Arc::new(Agent::new(Arc::clone(&shared)));
        agent.resume();
        let keeper = Arc::clone(&agent);
        shared.ending.tasks.spawn(async move { keeper.keep_known().await });
        let keeper = Arc::clone(&agent);
        shared.ending.tasks.spawn(async move { keeper.keep_resolvers(PERIODS.retry).await });
        let keeper = Arc::clone(&agent);
        shared.ending.tasks.spawn(async move { keeper.claim_macs().await });
        let keeper = Arc::clone(&agent);
        shared.ending.tasks.spawn(async move {
            let found = keeper.find_commands().await;
            keeper.keep_commands(PERIODS.retry, found).await;
        });
        (
            Running { agent, shared, paper: Arc::clone(paper), tasks, follower: Some(follower) },
            entry,
        )
    }
}

impl Running {
    /// Waits until the first snapshot is in the kernel.
    pub(super) async fn ready(self) -> Self {
        assert!(tokio::time::timeout(DEADLINE, self.shared.wait_ready()).await.unwrap());
        self
    }

    /// Ends the agent as a signal does; the host stays as it is.
    pub(super) async fn stop(self) {
        self.shared.ending.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        self.shared.ending.end_tasks().await;
    }

    /// Ends the agent as a crash does: its lease lives on for a while.
    pub(super) async fn crash(self) {
        for task in self.tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        // Only now, so that the lease is not revoked.
        self.shared.ending.shutdown.cancel();
    }

    pub(super) async fn network(&self, request: &str) -> Result<String, ApiError> {
        self.agent.network_create(network(request)).await.map(|created| created.id)
    }

    pub(super) async fn run(
        &self,
        container: &str,
        network: &str,
    ) -> Result<ContainerRow, ApiError> {
        self.agent.container_create(run(container, network)).await
    }

    /// Waits until `condition` holds for the simulated host.
    pub(super) async fn eventually(&self, what: &str, condition: impl Fn(&State) -> bool) {
        eventually(what, || async { condition(&self.paper.state()) }).await;
    }
}

/// Waits until `condition` holds.
pub(super) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not so within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The contents of the store.
pub(super) async fn stored(world: &World) -> View {
    View::from_snapshot(&world.store.snapshot(ROOT).await.unwrap())
}

/// Two hosts with one network. It gets 10.0.1.0/24, as the host has a route to 10.0.0.0/24.
pub(super) async fn two_hosts(world: &World) -> (Running, Running) {
    let one = world.start(1, &Paper::new()).await.ready().await;
    let two = world.start(2, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    (one, two)
}
