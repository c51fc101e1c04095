//! The engine: one task that brings this host to the state in the store.
//!
//! In each turn the engine applies all updates of the store and of netlink, writes the maps of
//! the networks that these concern, and then does one piece of slow work (a device pair). So a
//! change on another host waits at most until one device pair here is made or removed. The
//! engine does not poll for changes.

mod announce;
mod choice;
mod events;
mod fold;
mod gateway;
mod looks;
mod own;
mod queue;
mod reading;
mod repair;
mod routes;
mod uplink;
mod work;
mod wrong;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use ipnetwork::IpNetwork;
use tokio::time::{Instant, MissedTickBehavior};

use self::{
    choice::Choice,
    looks::Looks,
    queue::{Retry, Work},
    reading::{Read, Reading, finished},
    wrong::Wrong,
};
use super::{memory, platform::Remote, shared::Shared};
use crate::{
    datapath::{DatapathError, Found, PinCheck},
    model::{Name, PublishedPort, View},
    reconcile::{ApplyError, Changed, Inputs, Reconciler, network_patch, network_state},
    sandbox::GatewaySpec,
    store::{Follower, Listed},
};

/// Number of MACs of a network from which on the memory of computing it is given back to the
/// kernel.
const LARGE: usize = 4096;

/// Periods of the work that no event triggers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    /// Failed work is tried again, and removed sandboxes are looked for.
    pub(crate) retry: Duration,
    /// Anti-entropy: maps and devices are compared with the desired state.
    pub(crate) anti_entropy: Duration,
    /// Learned entries that are not used any more are removed.
    pub(crate) ageing: Duration,
    /// Another choice of the uplinks is followed after it has stood for so long.
    pub(crate) steady: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(1),
            anti_entropy: Duration::from_secs(60),
            ageing: Duration::from_secs(10),
            steady: Duration::from_secs(2),
        }
    }
}

/// The task that applies the store to this host, see the module.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    follower: Follower,
    periods: Periods,
    reconciler: Reconciler,
    /// The thread that reads the maps for an anti-entropy pass, while it does.
    reading: Option<Reading>,
    /// The first list of the store is in the view.
    listed: bool,
    /// The newest list of the store. `None` when its contents are in the kernel.
    list: Option<Listed>,
    /// Memory is to be given back to the kernel.
    trim: bool,
    /// The maps and devices of a former run have been read. Before that the engine writes nothing,
    /// and the programs use the pinned maps as they are.
    informed: bool,
    /// Interface index of the host side, of each endpoint that has a device pair.
    ifindexes: BTreeMap<String, u32>,
    /// Interface index of the gateway device of each VNI that has one here.
    gateways: BTreeMap<u32, u32>,
    /// Specification with which each gateway device was made. A device without an entry is checked
    /// again.
    gateway_specs: BTreeMap<u32, GatewaySpec>,
    /// The program is attached to the loopback device. `None`: not known.
    loopback: Option<bool>,
    /// Container of each endpoint that has a device pair.
    containers: BTreeMap<String, Name>,
    /// Network of each endpoint that this host should have, by identifier.
    local: BTreeMap<String, Name>,
    /// Ports of this host that these endpoints publish, with the name of the container.
    published: BTreeMap<(String, PublishedPort), Name>,
    /// Published ports that this agent does not hold: the programs do not publish them.
    unclaimed: BTreeSet<(String, PublishedPort)>,
    /// VNI that each network had when its maps were last written.
    vnis: BTreeMap<Name, u32>,
    /// VTEP address, UDP port and MTU of each node, as the paths were last resolved for.
    nodes: BTreeMap<Name, (Ipv4Addr, Remote)>,
    /// Networks whose maps are to be computed as a whole.
    dirty: BTreeSet<Name>,
    /// Changed endpoints, by networks that have an endpoint here.
    changed: BTreeMap<Name, Changed>,
    /// The paths are to be resolved in this turn.
    underlay_dirty: bool,
    /// When the gathered changes of the host are acted on, and the paths resolved again. Only that
    /// clears it: paths that are resolved for another reason do not act on changes of the host.
    underlay_stale: Option<Instant>,
    /// The uplinks are to be checked as well.
    uplinks_stale: bool,
    /// The choice of the uplinks.
    choice: Choice,
    /// Events of the host were lost.
    events_lost: bool,
    /// Map entries that other programs have changed. They are logged and counted when they are
    /// restored.
    found: Found,
    /// Devices of Culvert that were changed.
    devices_stale: BTreeSet<u32>,
    /// What was found wrong with devices, until they are put right.
    wrong: Wrong,
    /// Sandboxes to look into.
    looks: Looks,
    /// A gateway device, its address or its route may have been changed.
    gateways_stale: bool,
    /// Name of the network, and address of the gateway with the prefix length of the subnet, by VNI
    /// of the networks that have, or are to have, a gateway device here.
    subnets: BTreeMap<u32, (Name, IpNetwork)>,
    /// Interface index of each gateway device that has its address and the route to the subnet, by
    /// VNI. Other devices have given way, or are not opened yet.
    routed: BTreeMap<u32, u32>,
    /// VNIs of the networks with a public subnet that the log has named.
    told_public: BTreeSet<u32>,
    /// Addresses of the store that name servers have told, as the networks were last compared with
    /// them.
    store_names: BTreeSet<IpAddr>,
    /// A route of the host into one of these subnets may have been changed.
    routes_stale: bool,
    /// Ports that could not be held may be free now.
    ports_stale: bool,
    /// Interfaces on which IPv6 has come up since the last look at settings.
    ipv6_up: BTreeSet<u32>,
    /// Gateway devices that could not be opened are to be opened in this turn.
    reopens: bool,
    /// The endpoint at which the last look at settings of device pairs ended.
    settings_at: String,
    /// Subnets that the host's own interfaces are connected to.
    connected: Vec<IpNetwork>,
    /// Device pairs to make and to remove.
    work: BTreeSet<Work>,
    /// When failed work is tried again, by endpoint.
    retries: BTreeMap<String, Retry>,
    /// Subnets of the networks with endpoints that were refused because of routes of the host.
    barred: BTreeMap<Name, Vec<IpNetwork>>,
    /// Those of them in which such an endpoint is to be tried again early.
    hastened: BTreeSet<Name>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, follower: Follower, periods: Periods) -> Self {
        Self {
            shared,
            follower,
            periods,
            reconciler: Reconciler::default(),
            reading: None,
            listed: false,
            list: None,
            trim: false,
            informed: false,
            ifindexes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            gateway_specs: BTreeMap::new(),
            loopback: None,
            containers: BTreeMap::new(),
            local: BTreeMap::new(),
            published: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
            vnis: BTreeMap::new(),
            nodes: BTreeMap::new(),
            dirty: BTreeSet::new(),
            changed: BTreeMap::new(),
            found: Found::default(),
            devices_stale: BTreeSet::new(),
            wrong: Wrong::default(),
            looks: Looks::default(),
            gateways_stale: false,
            subnets: BTreeMap::new(),
            routed: BTreeMap::new(),
            told_public: BTreeSet::new(),
            store_names: BTreeSet::new(),
            routes_stale: false,
            ports_stale: false,
            ipv6_up: BTreeSet::new(),
            reopens: false,
            settings_at: String::new(),
            connected: Vec::new(),
            underlay_dirty: true,
            underlay_stale: None,
            uplinks_stale: false,
            choice: Choice::default(),
            events_lost: false,
            work: BTreeSet::new(),
            retries: BTreeMap::new(),
            barred: BTreeMap::new(),
            hastened: BTreeSet::new(),
        }
    }

    /// Runs until the agent is asked to stop. Then the kernel stays as it is.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shared.ending.shutdown.clone();
        let mut retry = interval(self.periods.retry);
        let mut anti_entropy = interval(self.periods.anti_entropy);
        let mut ageing = interval(self.periods.ageing);
        let platform = Arc::clone(&self.shared.platform);
        // A source that has ended must not be polled again.
        let (mut more_updates, mut more_events) = (true, true);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                update = self.follower.next(), if more_updates => match update {
                    Some(update) => self.fold(&update),
                    None => more_updates = false,
                },
                event = platform.event(), if more_events => match event {
                    Some(event) => self.host_event(event),
                    None => more_events = false,
                },
                // Before the work: plugging a device pair again removes what was wrong with it.
                () = wait_until(self.underlay_stale) => self.host_changed().await,
                () = wait_until(self.looks.next()) => self.look_inside().await,
                () = wait_until(self.choice.due()) => self.check_choice().await,
                // The next condition is looked at again.
                () = self.shared.ports_closed() => {}
                () = self.shared.store.addresses_changed() => self.store_moved(),
                () = std::future::ready(()), if self.informed && self.shared.has_ports_left() => {
                    self.hold_ports(false);
                }
                () = std::future::ready(()), if self.informed && !self.work.is_empty() => {
                    self.do_one_work().await;
                }
                _ = retry.tick() => {
                    self.retry();
                    self.find_lost_sandboxes();
                    if self.informed {
                        self.retry_ports();
                        self.check_devices().await;
                        self.repair().await;
                    }
                }
                _ = ageing.tick() => self.age(),
                _ = anti_entropy.tick(), if self.informed && self.reading.is_none() => {
                    self.reading = Some(self.read_maps());
                }
                read = finished(&mut self.reading) => self.anti_entropy(read).await,
            }
            while let Some(Some(update)) = self.follower.next().now_or_never() {
                self.fold(&update);
            }
            if self.listed && !self.informed {
                self.begin().await;
            }
            if self.informed {
                self.write_maps().await;
                self.note_entries();
                if let Some(list) = self.list.take() {
                    self.shared.store.note_read(list);
                    self.trim = true;
                }
                if std::mem::take(&mut self.trim) {
                    memory::give_back();
                }
                self.shared.shown.map_counts.set(self.reconciler.counts());
                let revision = self.shared.view().revision;
                self.shared.readiness.turned(revision);
            }
        }
    }

    /// Removes an endpoint's host side from the engine's state, so that the maps of its network
    /// are written without it.
    fn drop_port(&mut self, id: &str) {
        if let Some(ifindex) = self.ifindexes.remove(id)
            && let Some(network) = self.local.get(id).cloned()
        {
            self.mark_own(&network, id, Some(ifindex));
        }
    }

    /// Marks an endpoint that is, or was, on this host. `former` is the host side that it had, if
    /// it has it no more.
    fn mark_own(&mut self, network: &Name, id: &str, former: Option<u32>) {
        // The first endpoint makes the maps of its network, and its device pair the gateway device.
        if !self.vnis.contains_key(network) || !self.gateway_stands(network) {
            self.dirty.insert(network.clone());
            return;
        }
        let changed = self.changed.entry(network.clone()).or_default();
        changed.endpoints.insert(id.to_owned());
        changed.ifindexes.extend(former);
    }

    /// Brings paths and maps up to date. A network that fails stays marked and is tried again.
    async fn write_maps(&mut self) {
        if self.underlay_dirty {
            self.resolve_underlay().await;
        }
        for (network, changed) in std::mem::take(&mut self.changed) {
            if !self.dirty.contains(&network) && !self.patch_network(&network, &changed) {
                self.dirty.insert(network);
            }
        }
        if std::mem::take(&mut self.reopens) {
            self.reopen_gateways().await;
        }
        let mut failed = BTreeSet::new();
        while let Some(network) = self.dirty.pop_first() {
            let gateway = self.make_gateway(&network).await;
            if let Err(error) = self.write_network(&network) {
                let line = format!("network '{network}': {error}; trying again");
                self.shared.shown.problems.set(&format!("maps/{}", network.as_str()), Some(line));
                failed.insert(network);
            } else {
                self.shared.shown.problems.set(&format!("maps/{}", network.as_str()), None);
                if let Some(gateway) = gateway {
                    self.open_gateway(&network, gateway).await;
                }
            }
        }
        self.dirty = failed;
        self.announce().await;
        self.remove_gateways().await;
        self.take_loopback().await;
        if self.underlay_dirty {
            // A network uses a new VTEP, whose next hop the kernel is to keep resolved.
            self.resolve_underlay().await;
        }
    }

    /// The values that the maps of a network are computed from.
    fn inputs<'a>(&'a self, view: &'a View) -> Inputs<'a> {
        Inputs {
            view,
            own: &self.shared.node,
            ifindexes: &self.ifindexes,
            gateways: &self.gateways,
            unclaimed: &self.unclaimed,
        }
    }

    /// Applies changed endpoints to the maps of one network. `false`: the network is to be computed
    /// as a whole.
    fn patch_network(&mut self, name: &Name, changed: &Changed) -> bool {
        let Some(held) = self.vnis.get(name).and_then(|vni| self.reconciler.network(*vni)) else {
            return false;
        };
        let patch = {
            let view = self.shared.view();
            network_patch(&self.inputs(&view), name, held, changed)
        };
        let Some(patch) = patch.filter(|patch| self.vnis.get(name) == Some(&patch.vni)) else {
            return false;
        };
        let wanted = patch.vteps.iter().filter(|(_, info)| info.is_some());
        let new_vtep = wanted.into_iter().any(|(ip, _)| !self.reconciler.uses(*ip));
        // A failure is reported when the whole network is tried.
        let patched = self.reconciler.patch(self.shared.platform.as_ref(), &patch).is_ok();
        self.underlay_dirty |= new_vtep;
        patched
    }

    /// Brings the maps of one network up to date.
    fn write_network(&mut self, name: &Name) -> Result<(), ApplyError<DatapathError>> {
        let began = Instant::now();
        let state = {
            let view = self.shared.view();
            network_state(&self.inputs(&view), name)
        };
        let computed = began.elapsed();
        let vni = state.as_ref().map(|state| state.vni);
        // The network was removed, or removed and created again with another VNI.
        if let Some(old) = self.vnis.get(name).copied()
            && Some(old) != vni
        {
            // A VNI is given again at once: its maps may be another network's by now.
            if !self.is_of_another(name, old) {
                self.reconciler.network_to(self.shared.platform.as_ref(), old, None)?;
                self.forget_subnet(old);
            }
            self.vnis.remove(name);
        }
        if let Some(state) = state {
            self.vnis.insert(name.clone(), state.vni);
            self.trim |= state.fdb.len() > LARGE;
            let new_vtep = state.vteps.keys().any(|ip| !self.reconciler.uses(*ip));
            let platform = self.shared.platform.as_ref();
            let steps = self.reconciler.network_to(platform, state.vni, Some(&state))?;
            let took = began.elapsed();
            tracing::debug!(network = name.as_str(), steps, ?computed, ?took, "maps written");
            self.underlay_dirty |= new_vtep;
        }
        Ok(())
    }

    /// Resolves the paths to all VTEPs and writes them.
    async fn resolve_underlay(&mut self) {
        self.underlay_dirty = false;
        self.check_host().await;
        self.keep_client_links().await;
        let mut vteps: BTreeMap<Ipv4Addr, Remote> = {
            let view = self.shared.view();
            let foreign = view.vteps.values().flat_map(BTreeMap::values);
            foreign.map(|vtep| (vtep.ip, Remote { port: vtep.port, mtu: None })).collect()
        };
        vteps.extend(self.nodes.values().copied());
        vteps.remove(&self.shared.node.vtep);
        let used = vteps.keys().copied().filter(|ip| self.reconciler.uses(ip.octets())).collect();
        let resolved = match self.shared.platform.paths(&vteps, &used).await {
            Ok(resolved) => resolved,
            Err(error) => {
                // No path could be read: the present ones stay.
                self.shared
                    .shown
                    .problems
                    .set("underlay", Some(format!("underlay: {}", error.message())));
                self.act_within(self.periods.retry);
                return;
            }
        };
        self.shared.shown.problems.set("underlay", None);
        let lines = resolved
            .problems
            .into_iter()
            .filter(|(ip, _)| used.contains(ip))
            .map(|(ip, line)| (format!("vtep/{ip}"), line))
            .collect();
        self.shared.shown.problems.set_below("vtep/", lines);
        self.shared.paths().clone_from(&resolved.paths);
        let written = self.reconciler.paths_to(self.shared.platform.as_ref(), resolved.paths);
        let line = written.err().map(|error| format!("underlay: {error}; trying again"));
        if line.is_some() {
            self.act_within(self.periods.retry);
        }
        self.shared.shown.problems.set("underlay/maps", line);
    }

    /// Compares the maps, as they were `read`, and the devices with the desired state, and corrects
    /// changes by other programs.
    async fn anti_entropy(&mut self, read: Read) {
        self.all_devices_changed();
        self.check_devices().await;
        self.repair_programs(PinCheck::Objects).await;
        if self.adopt_maps(read) {
            self.prune_maps();
        }
        self.gateway_specs.clear();
        self.trim = true;
        self.find_strays().await;
        self.revive_sandboxes().await;
        self.work.extend(self.local.keys().cloned().map(Work::Plug));
        self.check_uplinks().await;
        self.check_choice().await;
        self.hold_ports(true);
    }

    async fn check_uplinks(&self) {
        let check = self.shared.platform.check_uplinks().await;
        self.shared.shown.problems.set_list("uplink/", check.problems);
        for line in check.repaired {
            self.shared.shown.repairs.note("assistant device", line);
        }
    }

    /// Begins to read the maps. The reconciler notes what is written meanwhile.
    fn read_maps(&mut self) -> Reading {
        self.reconciler.begin_read();
        reading::begin(Arc::clone(&self.shared.platform))
    }

    /// Takes over the contents of the maps that were read, and marks every network. `false`: the
    /// maps cannot be read.
    fn adopt_maps(&mut self, Read { observed, audit }: Read) -> bool {
        // The pass that has found these entries has restored them already.
        self.shared.shown.repairs.note_entries(&audit.found);
        self.shared.shown.problems.set_list("audit/", audit.problems);
        let line = observed.as_ref().err().map(|error| format!("maps cannot be read: {error}"));
        self.shared.shown.problems.set("maps", line);
        let Ok(observed) = observed else {
            self.reconciler.end_read();
            return false;
        };
        self.found.merge(self.reconciler.adopt(observed));
        self.underlay_dirty = true;
        let known: BTreeSet<Name> =
            self.shared.view().networks.keys().chain(self.vnis.keys()).cloned().collect();
        self.dirty.extend(known);
        true
    }

    /// Removes learned entries that are too old, or whose host side or VTEP is gone.
    fn age(&self) {
        let platform = &self.shared.platform;
        let oldest = platform
            .now_ns()
            .saturating_sub(u64::try_from(platform.ageing().as_nanos()).unwrap_or(u64::MAX));
        let aged = platform.learned().and_then(|entries| {
            for (key, entry) in entries {
                let network = self.reconciler.network(key.vni);
                let leads_somewhere = network.is_some_and(|held| {
                    let tables = held.tables();
                    if entry.ifindex == 0 {
                        tables.flood_remote.values().any(|vtep| *vtep == entry.vtep)
                    } else {
                        tables.endpoints.contains_key(&entry.ifindex)
                    }
                });
                // Before the first snapshot the host sides and VTEPs are not known.
                if entry.last_seen_ns < oldest || (self.informed && !leads_somewhere) {
                    platform.forget(&key)?;
                }
            }
            Ok(())
        });
        let line = aged.err().map(|error| format!("learned FDB: {error}"));
        self.shared.shown.problems.set("learned", line);
    }
}

/// Waits until `then`; for ever if it is `None`.
async fn wait_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// A timer whose first tick is one period away.
fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
