//! One path between two hosts, and its measurements.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::hosts;
use crate::{
    load::{Peers, cpu, flows, slices, tcp, udp, units},
    results::{ArmInfo, Metric},
};

/// Which figures an arm is measured for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// All figures of the path.
    Whole,
    /// TCP throughput, round trips and connections.
    Tcp,
}

/// One path to be measured.
pub(crate) struct Arm {
    /// Description of the arm in the results.
    pub(crate) info: ArmInfo,
    /// Client and server of the path.
    pub(crate) peers: Peers,
    scope: Scope,
    /// Target of new flows, and number of the next flow. None if new flows are not measured.
    flows: Option<(FlowsTo, Cell<u32>)>,
}

/// Target of new flows.
#[derive(Clone, Debug)]
pub(crate) struct FlowsTo {
    /// Namespace of the server's host.
    pub(crate) server: std::path::PathBuf,
}

/// A unit of work, whose cost is counted.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// One byte there and back over TCP.
    #[value(name = "rr")]
    RoundTrip,
    /// A TCP connection with one byte each way.
    #[value(name = "crr")]
    Connection,
    /// 64 KB of TCP payload, in frames that stay whole, and one byte back.
    #[value(name = "tcp64k")]
    Tcp64k,
    /// 64 KB of TCP payload, segmented by the sender and merged by the receiver, and one byte back.
    #[value(name = "tcp64k-wire")]
    Tcp64kWire,
    /// A datagram of 64 bytes.
    #[value(name = "udp64")]
    Udp64,
    /// The first datagram of a flow.
    #[value(name = "flow")]
    NewFlow,
}

impl Unit {
    /// All units, in the order of the report.
    pub(crate) const ALL: [Self; 6] = [
        Self::RoundTrip,
        Self::Connection,
        Self::Tcp64k,
        Self::Tcp64kWire,
        Self::Udp64,
        Self::NewFlow,
    ];

    /// How many units are timed in one measurement. For [`Self::Udp64`], the number of batches of
    /// 64 datagrams.
    fn count(self) -> usize {
        match self {
            Self::RoundTrip => 1_000,
            Self::Connection => 300,
            Self::Tcp64k | Self::Tcp64kWire => 150,
            Self::Udp64 => 100,
            Self::NewFlow => 64 * 120,
        }
    }
}

/// Kind of a measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Load {
    /// Traffic in slices, in which the arms alternate.
    Sliced(slices::Kind),
    /// Traffic of one arm for the whole time of a measurement.
    Steady(Steady),
}

/// Kind of a measurement without alternation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Steady {
    /// UDP datagrams with this payload, bytes.
    Udp(usize),
    /// TCP connections.
    Connections,
    /// CPU time of a TCP stream at a fixed rate.
    Cpu,
    /// New flows.
    NewFlows,
}

impl Load {
    /// All measurements, in their order in a round.
    pub(crate) const ALL: [Self; 8] = [
        Self::Sliced(slices::Kind::Streams(1)),
        Self::Sliced(slices::Kind::Streams(4)),
        Self::Steady(Steady::Udp(64)),
        Self::Steady(Steady::Udp(1400)),
        Self::Sliced(slices::Kind::RoundTrips),
        Self::Steady(Steady::Connections),
        Self::Steady(Steady::Cpu),
        Self::Steady(Steady::NewFlows),
    ];

    /// Name for `--only`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Sliced(kind) => kind.name(),
            Self::Steady(Steady::Udp(len)) => format!("udp{len}"),
            Self::Steady(Steady::Connections) => "crr".to_owned(),
            Self::Steady(Steady::Cpu) => "cpu".to_owned(),
            Self::Steady(Steady::NewFlows) => "flows".to_owned(),
        }
    }
}

impl Arm {
    /// Makes an arm that begins no new flows.
    pub(crate) fn new(
        id: &str,
        title: &str,
        row: Option<char>,
        peers: Peers,
        scope: Scope,
    ) -> Self {
        let info = ArmInfo { id: id.to_owned(), title: title.to_owned(), row };
        Self { info, peers, scope, flows: None }
    }

    /// An arm whose client also begins new flows, to addresses whose packets a host discards.
    pub(crate) fn with_flows(mut self, to: FlowsTo) -> Self {
        self.flows = Some((to, Cell::new(0)));
        self
    }

    /// Target of the arm's new flows, and the number of the next flow.
    pub(crate) fn flows(&self) -> Result<(&FlowsTo, &Cell<u32>)> {
        match &self.flows {
            Some((to, next)) => Ok((to, next)),
            None => bail!("{}: begins no flows", self.info.id),
        }
    }

    /// Whether the arm has a figure of this kind.
    pub(crate) fn has(&self, load: Load) -> bool {
        match load {
            Load::Sliced(slices::Kind::Streams(1) | slices::Kind::RoundTrips)
            | Load::Steady(Steady::Connections) => true,
            Load::Sliced(slices::Kind::Streams(_)) | Load::Steady(Steady::Udp(_) | Steady::Cpu) => {
                self.scope == Scope::Whole
            }
            Load::Steady(Steady::NewFlows) => self.flows.is_some(),
        }
    }

    /// Opens the arm's connections, for slices.
    pub(crate) fn open(&self, kind: slices::Kind) -> Result<slices::Path> {
        slices::Path::open(&self.peers, kind)
    }

    /// Measures the arm for `time`. Returns the figures of this load.
    pub(crate) fn measure(&self, load: Steady, time: Duration) -> Result<BTreeMap<Metric, f64>> {
        let peers = &self.peers;
        Ok(match load {
            Steady::Udp(64) => {
                [(Metric::Udp64, udp::datagrams(peers, 64, time)?.per_second)].into()
            }
            Steady::Udp(len) => {
                let got = udp::datagrams(peers, len, time)?;
                let bits = got.per_second * len as f64 * 8.0;
                [(Metric::Udp1400, bits), (Metric::Udp1400Loss, got.lost)].into()
            }
            Steady::Connections => [(Metric::Crr, tcp::connections(peers, time)?)].into(),
            Steady::Cpu => {
                let cost = cpu::per_gbit(peers, time)?;
                [(Metric::CpuPerGbit, cost.busy_ms), (Metric::SoftirqPerGbit, cost.softirq_ms)]
                    .into()
            }
            Steady::NewFlows => {
                let (to, next) = self.flows()?;
                let (rate, after) = flows::new_flows(&to.target(peers), next.get(), time)?;
                next.set(after);
                [(Metric::NewFlows, rate)].into()
            }
        })
    }
}

impl Arm {
    /// Whether the arm has units of this kind.
    pub(crate) fn has_unit(&self, unit: Unit) -> bool {
        match unit {
            Unit::RoundTrip | Unit::Connection | Unit::Tcp64k | Unit::Tcp64kWire => true,
            Unit::Udp64 => self.scope == Scope::Whole,
            Unit::NewFlow => self.flows.is_some(),
        }
    }

    /// Times of units of this kind, ns.
    pub(crate) fn units(&self, unit: Unit) -> Result<Vec<u64>> {
        let (peers, count) = (&self.peers, unit.count());
        match unit {
            Unit::RoundTrip => units::round_trips(peers, count),
            Unit::Connection => units::connections(peers, count),
            Unit::Tcp64k | Unit::Tcp64kWire => units::payloads(peers, count),
            Unit::Udp64 => units::datagrams(peers, count),
            Unit::NewFlow => {
                let (to, next) = self.flows()?;
                let target = to.target(peers);
                let (taken, after) = flows::units(&target, next.get(), u32::try_from(count)?)?;
                next.set(after);
                Ok(taken)
            }
        }
    }
}

impl FlowsTo {
    /// The target of flows that `peers`'s client begins.
    pub(crate) fn target<'a>(&'a self, peers: &'a Peers) -> flows::Target<'a> {
        flows::Target {
            client: &peers.client,
            server: &self.server,
            device: hosts::UPLINK,
            network: hosts::SINK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::hosts::Pair, *};
    use slices::Kind;

    #[test]
    #[ignore = "needs root"]
    fn arms_with_one_address_alternate_on_connections_that_stay_open() {
        let pair = Pair::new().expect("hosts");
        let peers = || Peers::direct(pair.one.path(), pair.two.path(), Pair::TWO);
        let arms = ["one", "two"].map(|id| Arm::new(id, id, None, peers(), Scope::Whole));
        for (kind, trips) in
            [(Kind::Streams(1), 0), (Kind::Streams(4), 0), (Kind::RoundTrips, slices::BLOCK)]
        {
            let mut paths = arms.each_ref().map(|arm| arm.open(kind).expect("open"));
            for turn in [0, 1, 1, 0] {
                let slice = paths[turn].slice().expect("measured");
                assert!(slice.figure > 0.0 && slice.trips.len() == trips, "{kind:?}: {slice:?}");
            }
            paths.into_iter().try_for_each(slices::Path::close).expect("closed");
        }
    }
}
