//! The agent's part of connection tracking: the agent removes flows that have ended, and reserves
//! the ports of the host's own sockets.
//!
//! The programs make flows, update flows, and make room for new flows: no packet waits for the
//! agent. Each second a round reads a bounded part of the table. This module does not need the
//! store.

mod collector;
mod expiry;
mod ports;
mod shares;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use culvert_common::{
    abi::DropReason,
    wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{collector::Summary, expiry::are_one_flow};
use self::{
    collector::{Collector, Limits},
    expiry::{Criteria, Incarnations},
    ports::{PortSet, Writer, kept_apart, not_kept_apart},
};
use super::{
    platform::Platform,
    state::{Problems, Repairs},
};
use crate::{
    config::ConntrackOptions,
    datapath::{DatapathError, Found},
    netlink::sockets::{Transport, sockets},
};

/// Period of the rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// Period of the comparison of `RESERVED_PORTS` with what was written to it. The map has thousands
/// of words, and each is a system call.
const AUDIT: Duration = Duration::from_secs(60);
/// Time for which a refused flow is shown as a problem.
const RECENT: Duration = Duration::from_secs(60);
/// Kinds of host sockets whose ports are reserved, with their IP protocol number.
const SOCKETS: [(Transport, u8); 3] =
    [(Transport::Tcp, PROTO_TCP), (Transport::Udp, PROTO_UDP), (Transport::Ping, PROTO_ICMP)];

/// Drop reasons of refused flows, each with the advice that `status` gives.
pub(crate) const REFUSALS: [(DropReason, &str); 3] = [
    (
        DropReason::ConntrackFull,
        "conntrack: new flows were refused because the table is full: shorten --conntrack-timeout or raise --conntrack-max",
    ),
    (
        DropReason::NatPortsExhausted,
        "conntrack: new flows were refused because no port is free for them: widen --nat-ports, raise --nat-port-share or shorten --conntrack-timeout",
    ),
    (
        DropReason::ShareExceeded,
        "conntrack: new flows of a container were refused because it has its share of the table: 'culvert status --format json' names the container; raise --conntrack-share or --conntrack-max",
    ),
];

/// Inputs and outputs of [`keep`].
#[derive(Clone)]
pub(crate) struct Context {
    /// The host: the maps of the programs, and its ports.
    pub(crate) platform: Arc<dyn Platform>,
    /// Options of conntrack and NAT.
    pub(crate) options: ConntrackOptions,
    /// UDP port of VXLAN, which no flow may get.
    pub(crate) vxlan_port: u16,
    /// The problems that `status` shows.
    pub(crate) problems: Arc<Problems>,
    /// The repairs that `status` shows.
    pub(crate) repairs: Arc<Repairs>,
    /// Contents of the table as of the last round.
    pub(crate) summary: Arc<Mutex<Summary>>,
    /// Cancelled when the agent stops.
    pub(crate) shutdown: CancellationToken,
}

/// Runs a round each [`PERIOD`] until the agent stops.
pub(super) async fn keep(context: Context) {
    let capacity = context.platform.flows().capacity();
    let wanted = context.options.max_flows;
    if capacity != wanted {
        let line = format!(
            "conntrack: the pinned table has room for {capacity} flows, not {wanted}: --conntrack-max takes effect after 'culvert purge'"
        );
        context.problems.set("conntrack/max", Some(line));
    }
    let mut keeper = Keeper::new(Limits::default());
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let of_round = context.clone();
        // A round makes thousands of system calls.
        let round = tokio::task::spawn_blocking(move || {
            keeper.round(&of_round, Instant::now());
            keeper
        });
        keeper = match round.await {
            Ok(keeper) => keeper,
            Err(error) => {
                let line = format!(
                    "conntrack: ended flows are not removed any more ({error}): restart the agent"
                );
                context.problems.set("conntrack/task", Some(line));
                return;
            }
        };
    }
}

/// State of the keeper from round to round.
struct Keeper {
    collector: Collector,
    ports: Writer,
    /// When `ports` was last compared with the map.
    audited: Option<Instant>,
    /// The ports that masquerading leaves to the host's netfilter. `None`: netfilter has not tracked a
    /// connection since the agent has started.
    left: Option<PortSet>,
    refused: [Recent; REFUSALS.len()],
}

impl Keeper {
    fn new(limits: Limits) -> Self {
        Self {
            collector: Collector::new(limits),
            ports: Writer::default(),
            audited: None,
            left: None,
            refused: Default::default(),
        }
    }

    /// Runs one round at the time `at`: removes ended flows, reserves ports, and updates problems.
    fn round(&mut self, context: &Context, at: Instant) {
        let line = |error: DatapathError| format!("conntrack: {error}");
        let collected = self.collect(context);
        context.problems.set("conntrack/flows", collected.err().map(line));
        let reserved = self.reserve(context, at);
        context.problems.set("conntrack/ports", reserved.err());
        for ((reason, what), recent) in REFUSALS.iter().zip(&mut self.refused) {
            if let Ok(count) = context.platform.dropped(*reason) {
                let grew = recent.grew(at, count);
                let key = format!("conntrack/{}", reason.name());
                context.problems.set(&key, grew.then(|| (*what).to_owned()));
            }
        }
    }

    fn collect(&mut self, context: &Context) -> Result<(), DatapathError> {
        let maps = context.platform.as_ref();
        let table = maps.flows();
        // The time is read before `ENDPOINTS`: a flow that begins meanwhile has a later time.
        let read_ns = maps.now_ns();
        let endpoints = maps.endpoints();
        let incarnations = endpoints.as_ref().ok().map(|endpoints| {
            let live = endpoints.values().map(|endpoint| endpoint.incarnation).collect();
            Incarnations { live, read_ns }
        });
        // A host without any address is between an old and a new address: until the new address
        // is known, no flow counts as moved.
        let addresses = maps.host_addresses().ok().filter(|addresses| !addresses.is_empty());
        let criteria = Criteria {
            now_ns: read_ns,
            timeouts: &context.options.timeouts.table(),
            incarnations: incarnations.as_ref(),
            addresses: addresses.as_ref(),
        };
        let round = self.collector.round(table, &criteria);
        let summary = self.collector.summary(table);
        *context.summary.lock().unwrap_or_else(PoisonError::into_inner) = summary;
        endpoints.and(round)
    }

    /// Writes the ports that masquerading must not take to `RESERVED_PORTS`.
    fn reserve(&mut self, context: &Context, at: Instant) -> Result<(), String> {
        let maps = context.platform.as_ref();
        let begins = self.left.is_none() && context.platform.netfilter_is_active();
        let nat_ports = context.options.nat_ports;
        if begins {
            self.left = Some(PortSet::left_to_netfilter(nat_ports));
            context.problems.set("conntrack/apart", not_kept_apart(nat_ports));
        }
        let mut ports = self.left.clone().unwrap_or_default();
        // No socket is bound to the VXLAN port: the programs take its packets.
        ports.add(PROTO_UDP, context.vxlan_port);
        for (transport, protocol) in SOCKETS {
            // No thread of the runtime leaves the agent's namespace, so these are the host's
            // sockets.
            let listed = sockets(transport, None).map_err(|error| {
                format!("conntrack: the host's sockets cannot be listed: {error}")
            })?;
            ports.add_sockets(protocol, &listed);
        }
        let published = maps.published().map_err(|error| format!("conntrack: {error}"))?;
        ports.add_published(published.keys());
        let audited = self.audit(context, at);
        let written = self.ports.write(maps.flows(), &ports);
        audited.and(written).map_err(|error| format!("conntrack: {error}"))?;
        if begins && let Some(line) = kept_apart(nat_ports) {
            tracing::info!("{line}");
        }
        Ok(())
    }

    /// Puts `RESERVED_PORTS` back to what was written to it, each [`AUDIT`].
    fn audit(&mut self, context: &Context, at: Instant) -> Result<(), DatapathError> {
        if self.audited.is_some_and(|last| at.saturating_duration_since(last) < AUDIT) {
            return Ok(());
        }
        self.audited = Some(at);
        let mut found = Found::default();
        let restored = self.ports.restore(context.platform.flows(), &mut found);
        context.repairs.note_entries(&found);
        restored
    }
}

/// Tells whether a counter has grown within [`RECENT`].
#[derive(Debug, Default)]
struct Recent {
    /// Values of the counter with their read times: all values within [`RECENT`], and the last
    /// value before that time.
    history: VecDeque<(Instant, u64)>,
}

impl Recent {
    /// Whether `count`, read at `at`, is greater than the value of [`RECENT`] ago. If the counter
    /// was first read later, the first value is compared.
    fn grew(&mut self, at: Instant, count: u64) -> bool {
        self.history.push_back((at, count));
        let old = |entry: Option<&(Instant, u64)>| {
            entry.is_some_and(|(read, _)| at.saturating_duration_since(*read) >= RECENT)
        };
        while old(self.history.get(1)) {
            self.history.pop_front();
        }
        self.history.front().is_some_and(|(_, before)| *before < count)
    }
}
