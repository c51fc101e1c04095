//! Conntrack as far as it is the agent's: flows end, some may go when there is no room,
//! and the ports of the host's own sockets are left alone.
//!
//! The programs make flows and update them; nothing here is in the way of a packet.
//! Once a second a bounded part of the table is looked at. None of it needs the store.

mod collector;
mod judge;
mod ports;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use culvert_common::{
    abi::DropReason,
    wire::ipv4::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
};
use tokio::time::MissedTickBehavior;

pub(crate) use self::{
    collector::Summary,
    judge::{are_one_flow, state},
};
use self::{
    collector::{Collector, Limits},
    judge::{Generations, Law},
    ports::{Ports, Writer},
};
use super::shared::Shared;
use crate::{
    datapath::DatapathError,
    netlink::sockets::{Transport, sockets},
};

/// How often there is a round.
const PERIOD: Duration = Duration::from_secs(1);
/// Refused flows are a problem for so long.
const RECENT: Duration = Duration::from_secs(60);
/// The host's sockets whose ports are reserved, and the number of their protocol.
const SOCKETS: [(Transport, u8); 3] =
    [(Transport::Tcp, PROTO_TCP), (Transport::Udp, PROTO_UDP), (Transport::Ping, PROTO_ICMP)];

/// Drop reasons of flows that were refused, and what to do about them.
pub(crate) const REFUSALS: [(DropReason, &str); 2] = [
    (
        DropReason::ConntrackFull,
        "conntrack: new flows were refused, the table is full: shorten --conntrack-timeout or raise --conntrack-max",
    ),
    (
        DropReason::NatPortsExhausted,
        "conntrack: new flows were refused, no port is free for them: widen --nat-ports or shorten --conntrack-timeout",
    ),
];

/// Keeps conntrack until the agent stops.
pub(super) async fn keep(shared: Arc<Shared>) {
    let capacity = shared.platform.flows().capacity();
    let wanted = shared.options.conntrack.max_flows;
    if capacity != wanted {
        let line = format!(
            "conntrack: the pinned table has room for {capacity} flows, not {wanted}: --conntrack-max takes effect after 'culvert purge'"
        );
        shared.problem("conntrack/max", Some(line));
    }
    let mut keeper = Keeper::new(Limits::default());
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let to_keep = Arc::clone(&shared);
        // System calls by the thousand.
        let round = tokio::task::spawn_blocking(move || {
            keeper.round(&to_keep, Instant::now());
            keeper
        });
        keeper = match round.await {
            Ok(keeper) => keeper,
            Err(error) => {
                let line =
                    format!("conntrack: it is not kept any more ({error}): restart the agent");
                shared.problem("conntrack/task", Some(line));
                return;
            }
        };
    }
}

/// What is remembered from round to round.
struct Keeper {
    collector: Collector,
    ports: Writer,
    refused: [Recent; REFUSALS.len()],
}

impl Keeper {
    fn new(limits: Limits) -> Self {
        Self {
            collector: Collector::new(limits),
            ports: Writer::default(),
            refused: Default::default(),
        }
    }

    /// One round, at the time `at`.
    fn round(&mut self, shared: &Shared, at: Instant) {
        let line = |error: DatapathError| format!("conntrack: {error}");
        let collected = self.collect(shared);
        shared.problem("conntrack/flows", collected.err().map(line));
        let reserved = self.reserve(shared);
        shared.problem("conntrack/ports", reserved.err());
        for ((reason, what), recent) in REFUSALS.iter().zip(&mut self.refused) {
            if let Ok(count) = shared.platform.dropped(*reason) {
                let grew = recent.grew(at, count);
                let key = format!("conntrack/{}", reason.name());
                shared.problem(&key, grew.then(|| (*what).to_owned()));
            }
        }
    }

    fn collect(&mut self, shared: &Shared) -> Result<(), DatapathError> {
        let platform = shared.platform.as_ref();
        let table = platform.flows();
        // The time first: what comes meanwhile is later than what was read.
        let read_ns = platform.now_ns();
        let endpoints = platform.endpoints();
        let generations = endpoints.as_ref().ok().map(|endpoints| {
            let live = endpoints.values().map(|endpoint| endpoint.generation).collect();
            Generations { live, read_ns }
        });
        let law = Law {
            now_ns: read_ns,
            timeouts: &shared.options.conntrack.timeouts,
            generations: generations.as_ref(),
        };
        let round = self.collector.round(table, &law);
        *shared.conntrack() = self.collector.summary(table);
        endpoints.and(round)
    }

    /// Writes which ports masquerading must not take.
    fn reserve(&mut self, shared: &Shared) -> Result<(), String> {
        let platform = shared.platform.as_ref();
        let mut ports = Ports::default();
        // No socket is bound to the VXLAN port: the programs take its packets.
        ports.add(PROTO_UDP, shared.node.port);
        for (transport, protocol) in SOCKETS {
            // No thread of the runtime leaves the agent's namespace, so these are the host's
            // sockets.
            let listed = sockets(transport, None).map_err(|error| {
                format!("conntrack: the host's sockets cannot be listed: {error}")
            })?;
            ports.add_sockets(protocol, &listed);
        }
        let published = platform.published().map_err(|error| format!("conntrack: {error}"))?;
        ports.add_published(published.keys());
        let written = self.ports.write(platform.flows(), &ports);
        written.map_err(|error| format!("conntrack: {error}"))
    }
}

/// Whether a counter has grown lately.
#[derive(Debug, Default)]
struct Recent {
    /// When it was read, and what it was: as far back as [`RECENT`], and one before that.
    history: VecDeque<(Instant, u64)>,
}

impl Recent {
    /// Whether `count`, read at `at`, is more than it was [`RECENT`] ago, or when it was
    /// first read.
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
