//! What the engine writes and the API reads.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    },
    time::{Duration, Instant},
};

use culvert_common::abi::UnderlayPath;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::{
    conntrack,
    containers::Containers,
    platform::{Platform, PlugError},
    ports::{Pending, Reservations},
};
use crate::{
    api::types::{ApiError, ErrorKind, StoreRead},
    config::AgentOptions,
    model::{
        Name, Node, PortRequest, PublishedPort, View,
        ops::{self, Plan, Refusal},
    },
    store::{Health, Listed, Outcome, Revision, StateStore},
};

/// How long a request waits for the kernel side of what it asked for.
pub(crate) const SETTLE: Duration = Duration::from_secs(15);

/// How far a local endpoint has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugState {
    /// Known from the store, not yet plugged in.
    Pending,
    /// Plugged in, and in the maps.
    Ready {
        /// Host side of its veth.
        ifindex: u32,
    },
    /// Not plugged in; tried again later.
    Failed(PlugError),
}

/// State shared by the tasks of the agent.
pub(crate) struct Shared {
    /// What the agent was told.
    pub(crate) options: AgentOptions,
    /// This node.
    pub(crate) node: Node,
    /// Names of the uplinks.
    pub(crate) uplinks: Vec<String>,
    /// The host.
    pub(crate) platform: Arc<dyn Platform>,
    /// When the agent started.
    pub(crate) started: Instant,
    /// Asks all tasks to end.
    pub(crate) shutdown: CancellationToken,
    /// Everything of this node was purged: nothing more is to be cleaned up.
    pub(crate) purged: CancellationToken,
    store: OnceLock<Arc<dyn StateStore>>,
    view: RwLock<View>,
    containers: Mutex<Containers>,
    plugs: Mutex<BTreeMap<String, PlugState>>,
    problems: Mutex<BTreeMap<String, String>>,
    conntrack: Mutex<conntrack::Summary>,
    /// The last time that the whole store was read.
    last_read: Mutex<Option<StoreRead>>,
    /// How each VTEP is reached, in use or not.
    paths: Mutex<BTreeMap<[u8; 4], UnderlayPath>>,
    /// The published ports of this host.
    ports: Reservations,
    /// One request at a time per container: `run` and `rm` of one name must not
    /// meet half-way.
    locks: Mutex<BTreeMap<Name, Arc<tokio::sync::Mutex<()>>>>,
    /// Of the first attempts to reach the store.
    early_health: watch::Sender<Health>,
    /// Of the follower; before there is one, the former.
    health: Mutex<watch::Receiver<Health>>,
    /// Counts the turns of the engine; 0 until the first snapshot is in the kernel.
    turns: watch::Sender<u64>,
}

/// How long a request waits for an agent that is starting.
const STARTING: Duration = Duration::from_secs(5);

impl Shared {
    pub(crate) fn new(
        options: AgentOptions,
        node: Node,
        uplinks: Vec<String>,
        platform: Arc<dyn Platform>,
        containers: Containers,
    ) -> Self {
        let (early_health, health) = watch::channel(Health::default());
        Self {
            options,
            node,
            uplinks,
            platform,
            started: Instant::now(),
            shutdown: CancellationToken::new(),
            purged: CancellationToken::new(),
            store: OnceLock::new(),
            view: RwLock::new(View::default()),
            containers: Mutex::new(containers),
            plugs: Mutex::default(),
            problems: Mutex::default(),
            conntrack: Mutex::default(),
            last_read: Mutex::default(),
            paths: Mutex::default(),
            ports: Reservations::default(),
            locks: Mutex::default(),
            early_health,
            health: Mutex::new(health),
            turns: watch::Sender::new(0),
        }
    }

    // A thread that panicked with one of these locks held left a value behind
    // that is as good as before: none is changed in steps that belong together.

    /// The view, for reading. Never held across an await.
    pub(crate) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view, for the engine.
    pub(super) fn view_mut(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container records.
    pub(crate) fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn with a container.
    pub(crate) async fn lock(&self, name: &Name) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(name.clone()).or_default())
        };
        lock.lock_owned().await
    }

    /// How each VTEP is reached, in use or not.
    pub(crate) fn paths(&self) -> MutexGuard<'_, BTreeMap<[u8; 4], UnderlayPath>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses and holds the published ports of a new endpoint. They are let go with
    /// what is returned, unless the endpoint is there by then.
    pub(crate) fn assign_ports(
        &self,
        container: &Name,
        requests: &[PortRequest],
    ) -> Result<Pending<'_>, ApiError> {
        // Whoever has a port is looked for in all of /proc.
        tokio::task::block_in_place(|| {
            let platform = self.platform.as_ref();
            let assigned =
                self.ports.assign(platform, &self.view(), &self.node.name, container, requests);
            // The view is free again: the engine must not wait for this.
            assigned.map_err(|refused| refused.explain(platform))
        })
    }

    /// Holds the published ports of these endpoints (identifier and port → container),
    /// and no others; tries those that were not to be had `again`.
    pub(super) fn hold_ports(&self, wanted: &BTreeMap<(String, PublishedPort), Name>, again: bool) {
        let lines = self.ports.sync(self.platform.as_ref(), wanted, again);
        self.problems_below("port/", lines);
    }

    /// What the table of flows holds.
    pub(crate) fn conntrack(&self) -> MutexGuard<'_, conntrack::Summary> {
        self.conntrack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last time that the whole store was read.
    pub(crate) fn last_read(&self) -> Option<StoreRead> {
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a whole list of the store is in the maps now, and logs it.
    pub(super) fn note_read(&self, list: Listed) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let read = StoreRead {
            keys: list.keys,
            read_ms: ms(list.took),
            maps_ms: ms(list.began.elapsed()),
        };
        tracing::info!(
            "store read keys={} read_ms={} maps_ms={}",
            read.keys,
            read.read_ms,
            read.maps_ms
        );
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
    }

    /// States of the local endpoints.
    pub(crate) fn plugs(&self) -> MutexGuard<'_, BTreeMap<String, PlugState>> {
        self.plugs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the exchange with the store goes.
    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).borrow().clone()
    }

    /// Notes that an attempt to reach the store failed, and logs it once. Once
    /// there is a follower, it is the one to tell.
    pub(super) fn early_store_error(&self, error: &str) {
        self.early_health.send_if_modified(|health| {
            let news = health.error.as_deref() != Some(error);
            if news && !self.early_health.is_closed() {
                tracing::warn!("{error}; still trying");
            }
            health.error = Some(error.to_owned());
            news
        });
    }

    /// Where to look for that from now on.
    pub(super) fn watch_health(&self, health: watch::Receiver<Health>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Notes a problem under a key, or that it is over. Logged when it changes.
    pub(crate) fn problem(&self, key: &str, line: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match line {
            Some(line) => {
                if problems.get(key) != Some(&line) {
                    tracing::warn!("{line}");
                    problems.insert(key.to_owned(), line);
                }
            }
            None => {
                if let Some(line) = problems.remove(key) {
                    tracing::info!("resolved: {line}");
                }
            }
        }
    }

    /// Replaces all problems whose key begins with `prefix`.
    pub(crate) fn problems_below(&self, prefix: &str, lines: BTreeMap<String, String>) {
        let gone: Vec<String> = {
            let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
            let ours = problems.keys().filter(|key| key.starts_with(prefix));
            ours.filter(|key| !lines.contains_key(*key)).cloned().collect()
        };
        for key in gone {
            self.problem(&key, None);
        }
        for (key, line) in lines {
            self.problem(&key, Some(line));
        }
    }

    /// All problems, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes the store available to requests.
    pub(crate) fn set_store(&self, store: Arc<dyn StateStore>) {
        // A second store is never set: `run` opens one.
        let _ = self.store.set(store);
    }

    /// The store, once it has been opened.
    pub(crate) fn opened_store(&self) -> Option<&Arc<dyn StateStore>> {
        self.store.get()
    }

    /// The store, for a request that changes state: refused until the first
    /// snapshot of it is in the kernel, for which a request that comes while the
    /// agent starts waits a little.
    pub(crate) async fn store(&self) -> Result<&Arc<dyn StateStore>, ApiError> {
        if !self.ready() && self.health().error.is_none() {
            let _ = tokio::time::timeout(STARTING, self.wait_ready()).await;
        }
        let reason = || match self.health().error {
            Some(error) => {
                format!("{error}; the agent keeps trying, 'culvert status' shows when it answers")
            }
            None => "store: not read yet, the agent is starting: try again".to_owned(),
        };
        self.store
            .get()
            .filter(|_| self.ready())
            .ok_or_else(|| ApiError::new(ErrorKind::Unavailable, reason()))
    }

    /// Whether the first snapshot is in the kernel.
    pub(crate) fn ready(&self) -> bool {
        *self.turns.borrow() > 0
    }

    /// Waits for that; `false` when the agent stops before.
    pub(crate) async fn wait_ready(&self) -> bool {
        let mut turns = self.turns.subscribe();
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            ready = turns.wait_for(|turns| *turns > 0) => ready.is_ok(),
        }
    }

    /// The engine has finished a turn.
    pub(super) fn turned(&self) {
        self.turns.send_modify(|turns| *turns += 1);
    }

    /// Carries out a plan: from the view at hand, and from a fresh snapshot if that
    /// turns out to be too old.
    pub(crate) async fn execute<T>(
        &self,
        mut plan: impl FnMut(&View) -> Result<(T, Plan), Refusal> + Send,
    ) -> Result<(T, Revision), ops::ExecuteError>
    where
        T: Send,
    {
        let store = self
            .store
            .get()
            .ok_or_else(|| crate::store::StoreError::Unavailable("not opened yet".to_owned()))?;
        // Not `ops::execute` with the view: the lock must not be held across the commit.
        let planned = plan(&self.view());
        if let Ok((made, Plan { compares, writes })) = planned
            && let Outcome::Committed(revision) = store.commit(compares, writes).await?
        {
            return Ok((made, revision));
        }
        ops::execute(store.as_ref(), None, plan).await
    }

    /// Waits until the engine has dealt with `revision` and `done` says so.
    ///
    /// # Errors
    ///
    /// After [`SETTLE`], or when the agent stops.
    pub(crate) async fn settled<T>(
        &self,
        revision: Revision,
        what: &str,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<T, ApiError> {
        let mut turns = self.turns.subscribe();
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
            () = self.shutdown.cancelled() => None,
            outcome = tokio::time::timeout(SETTLE, wait) => outcome.ok().flatten(),
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
