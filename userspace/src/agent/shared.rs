//! State that the engine writes and the API reads: one value of each type in `state`, and the
//! functions that need several of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use crate::datapath::entry::UnderlayPath;
use tokio::{sync::watch, time::timeout};

use super::{
    conntrack,
    containers::Containers,
    denied::Denied,
    platform::Platform,
    ports::{PROBLEM, Pending, Reservations, Synced, Translated},
    state::{Disk, Ending, Lives, Plugs, Readiness, Regrouped, Requests, Shown, StoreHandle},
};
use crate::{
    api::{
        deadline::{self, Wait},
        types::{ApiError, ErrorKind},
    },
    config::AgentOptions,
    model::{
        Alive, Endpoint, Name, Node, PortRequest, PublishedPort, View,
        ops::{self, Plan, Refusal},
    },
    store::{Outcome, Revision, StateStore, StoreError, StoreUrl},
};

/// Time that a request waits until the engine has applied its change to the kernel.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);

/// Time that a request waits for an agent that is starting.
const STARTING: Duration = Duration::from_secs(5);

/// State shared by the tasks of the agent.
pub(crate) struct Shared {
    /// The options of the agent.
    pub(crate) options: AgentOptions,
    /// This node, as it was when the agent started.
    pub(crate) node: Node,
    /// This node, as the store is to have it.
    pub(crate) record: watch::Sender<Node>,
    /// The liveness record of this process.
    pub(crate) alive: Alive,
    /// Names of the uplinks.
    pub(crate) uplinks: Vec<String>,
    /// The host.
    pub(crate) platform: Arc<dyn Platform>,
    /// When the agent started.
    pub(crate) started: Instant,
    /// How the agent ends.
    pub(crate) ending: Ending,
    /// The store, and how the exchange with it goes.
    pub(crate) store: StoreHandle,
    /// Whether the kernel holds what the store says.
    pub(crate) readiness: Readiness,
    /// What `status` shows of the agent's own work.
    pub(crate) shown: Shown,
    /// Whether the state directory can be written.
    pub(crate) disk: Disk,
    /// Containers whose networks, or records, may have changed.
    pub(crate) regrouped: Regrouped,
    /// State of each local endpoint.
    pub(crate) plugs: Plugs,
    /// The requests that change containers.
    pub(crate) requests: Requests,
    /// Contents of the table of flows, by state.
    flows: Arc<Mutex<conntrack::Summary>>,
    view: RwLock<View>,
    containers: Mutex<Containers>,
    /// The path to each VTEP, in use or not.
    paths: Mutex<BTreeMap<[u8; 4], UnderlayPath>>,
    /// The published ports of this host.
    ports: Reservations,
    /// The clients that may not use published ports.
    pub(crate) denied: Denied,
    /// Since when the agents of other nodes are not alive.
    pub(crate) lives: Lives,
}

impl Shared {
    /// The state of an agent that has not reached the store yet.
    pub(crate) fn new(
        options: AgentOptions,
        (node, alive): (Node, Alive),
        uplinks: Vec<String>,
        platform: Arc<dyn Platform>,
        (containers, denied): (Containers, Denied),
    ) -> Self {
        let shown = Shown::default();
        let disk = Disk::new(options.state_dir.clone(), Arc::clone(&shown.problems));
        let requests = Requests::new(&options.state_dir);
        let view = View::at(node.name.clone());
        Self {
            options,
            record: watch::Sender::new(node.clone()),
            node,
            alive,
            uplinks,
            platform,
            started: Instant::now(),
            ending: Ending::default(),
            store: StoreHandle::default(),
            readiness: Readiness::default(),
            shown,
            disk,
            regrouped: Regrouped::default(),
            plugs: Plugs::default(),
            requests,
            flows: Arc::default(),
            view: RwLock::new(view),
            containers: Mutex::new(containers),
            paths: Mutex::default(),
            ports: Reservations::default(),
            denied,
            lives: Lives::default(),
        }
    }

    // A thread that panicked with one of these locks held left a valid value: no value is changed
    // in several dependent steps.

    /// The view, for reading. Not to be held across an await.
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view, for the engine, and for `first_complaints`, which updates the view's cached
    /// faults.
    pub(super) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container records.
    pub(crate) fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path to each VTEP, in use or not.
    pub(crate) fn paths(&self) -> MutexGuard<'_, BTreeMap<[u8; 4], UnderlayPath>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Contents of the table of flows, by state.
    pub(crate) fn flows(&self) -> MutexGuard<'_, conntrack::Summary> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The context of [`conntrack::keep`].
    pub(crate) fn conntrack_context(&self) -> conntrack::Context {
        conntrack::Context {
            platform: Arc::clone(&self.platform),
            options: self.options.conntrack.clone(),
            vxlan_port: self.node.port,
            problems: Arc::clone(&self.shown.problems),
            repairs: Arc::clone(&self.shown.repairs),
            summary: Arc::clone(&self.flows),
            shutdown: self.ending.shutdown.clone(),
        }
    }

    /// Chooses and holds the published ports of a new endpoint. They are released when the
    /// returned value is dropped, unless the endpoint exists by then. `counts` tells whether an
    /// endpoint of the store has its ports.
    pub(crate) fn assign_ports(
        &self,
        container: &Name,
        requests: &[PortRequest],
        translated: &Translated,
        counts: impl Fn(&Endpoint) -> bool,
    ) -> Result<Pending<'_>, ApiError> {
        // The holder of a port is found by a search of /proc, which takes long.
        tokio::task::block_in_place(|| {
            let platform = &*self.platform;
            let published = || {
                let with_ports: Vec<Endpoint> = {
                    let view = self.view();
                    let own = view.endpoints_on(&self.node.name).map(|endpoint| endpoint.record);
                    own.filter(|endpoint| !endpoint.ports.is_empty()).collect()
                };
                let counted = with_ports.into_iter().filter(|endpoint| counts(endpoint));
                let ports = counted.flat_map(|Endpoint { ports, container, .. }| {
                    ports.into_iter().map(move |port| (port, container.clone()))
                });
                ports.collect()
            };
            // No lock is held while ports are bound and holders searched: the engine does not wait.
            let assigned = self.ports.assign(platform, &published, container, requests, translated);
            assigned.map_err(|refused| refused.explain(platform))
        })
    }

    /// Holds the published ports of these endpoints (container by identifier and port), and no
    /// others. `again`: as in [`Reservations::sync`]. Returns the ports that are not held.
    pub(super) fn hold_ports(
        &self,
        wanted: &BTreeMap<(String, PublishedPort), Name>,
        again: bool,
    ) -> BTreeSet<(String, PublishedPort)> {
        let Synced { lines, unclaimed } = self.ports.sync(&*self.platform, wanted, again);
        self.shown.problems.set_below(PROBLEM, lines);
        unclaimed
    }

    /// The addresses of the store: those that `--store` has, and those that its names had when they
    /// were last looked up.
    pub(crate) fn store_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.given_store_addresses();
        addresses.extend(self.store.named_addresses());
        addresses
    }

    /// The addresses of the store that `--store` has.
    pub(crate) fn given_store_addresses(&self) -> Vec<IpAddr> {
        let url: Result<StoreUrl, _> = self.options.store.parse();
        url.map(|url| url.addresses()).unwrap_or_default()
    }

    /// Whether ports are not held because no open file was left.
    pub(super) fn lacks_files_for_ports(&self) -> bool {
        self.ports.is_starved()
    }

    /// Whether [`Self::hold_ports`] has left ports to its next call.
    pub(super) fn has_ports_left(&self) -> bool {
        self.ports.is_unfinished()
    }

    /// Waits until [`Self::has_ports_left`] may have become true without a call of
    /// [`Self::hold_ports`].
    pub(super) async fn ports_closed(&self) {
        self.ports.closed().await;
    }

    /// The store, for a request that changes state. While the agent starts, the request waits for
    /// [`STARTING`] at most.
    ///
    /// # Errors
    ///
    /// The first snapshot of the store is not in the kernel yet, the store is not the one that
    /// this agent knows, or the caller has given up.
    pub(crate) async fn usable_store(&self) -> Result<&Arc<dyn StateStore>, ApiError> {
        let store = self.read_store().await?;
        // The store itself refuses as well, but then the request may have changed the host.
        match self.store.refusal() {
            Some(refusal) => Err(ApiError::new(ErrorKind::Unavailable, refusal.to_string())),
            None => Ok(store),
        }
    }

    /// As [`Self::usable_store`], for a request that only reads the view.
    ///
    /// # Errors
    ///
    /// The first snapshot of the store is not in the kernel yet, or the caller has given up.
    pub(crate) async fn read_store(&self) -> Result<&Arc<dyn StateStore>, ApiError> {
        if !self.readiness.is_ready() && self.store.health().error.is_none() {
            let starting = timeout(STARTING, self.wait_ready());
            let _ = deadline::waiting(Wait::Store, starting).await;
        }
        deadline::check()?;
        let reason = || match (self.store.refusal(), self.store.health().error) {
            (Some(refusal), _) => refusal.to_string(),
            (None, Some(error)) => {
                format!("{error}; the agent keeps trying, 'culvert status' shows when it answers")
            }
            (None, None) => "store: not read yet, the agent is starting: try again".to_owned(),
        };
        self.store
            .opened()
            .filter(|_| self.readiness.is_ready())
            .ok_or_else(|| ApiError::new(ErrorKind::Unavailable, reason()))
    }

    /// Waits until the first snapshot of the store is in the kernel. `false`: the agent stops
    /// first.
    pub(crate) async fn wait_ready(&self) -> bool {
        self.readiness.wait(&self.ending.shutdown).await
    }

    /// Carries out a plan. It is made from the view, and if the view is too old, again from a new
    /// snapshot of the store.
    pub(crate) async fn execute<T>(
        &self,
        mut plan: impl FnMut(&View) -> Result<(T, Plan), Refusal> + Send,
    ) -> Result<(T, Revision), ops::ExecuteError>
    where
        T: Send,
    {
        let store = self
            .store
            .opened()
            .ok_or_else(|| StoreError::Unavailable("not opened yet".to_owned()))?;
        // `ops::execute` with the view would hold its lock across the commit.
        let planned = plan(&self.view());
        if let Ok((made, planned)) = planned
            && let Outcome::Committed(revision) = ops::commit(store.as_ref(), planned).await?
        {
            return Ok((made, revision));
        }
        ops::execute(store.as_ref(), None, plan).await
    }

    /// Waits until the engine has applied `revision` and `done` returns a result.
    ///
    /// # Errors
    ///
    /// [`SETTLE`] has passed, or the agent stops.
    pub(crate) async fn settled<T>(
        &self,
        revision: Revision,
        what: &str,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<T, ApiError> {
        let mut turns = self.readiness.turns();
        let wait = async {
            loop {
                turns.borrow_and_update();
                if self.view().revision >= revision
                    && let Some(outcome) = done()
                {
                    return Some(outcome);
                }
                if turns.changed().await.is_err() {
                    return None;
                }
            }
        };
        let outcome = tokio::select! {
            () = self.ending.shutdown.cancelled() => None,
            outcome = deadline::waiting(Wait::Kernel(what.to_owned()), timeout(SETTLE, wait)) => {
                outcome.ok().flatten()
            }
        };
        outcome.ok_or_else(|| {
            ApiError::new(
                ErrorKind::Unavailable,
                format!(
                    "{what}: in the store, but not in the kernel after {} s: see 'culvert status'",
                    SETTLE.as_secs()
                ),
            )
        })
    }
}
