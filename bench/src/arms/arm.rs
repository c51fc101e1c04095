//! One path between two hosts, and its measurements.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::hosts;
use crate::{
    load::{Peers, cpu, flows, tcp, udp, units},
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
    /// This many TCP streams.
    Tcp(u32),
    /// UDP datagrams with this payload, bytes.
    Udp(usize),
    /// TCP round trips.
    RoundTrips,
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
        Self::Tcp(1),
        Self::Tcp(4),
        Self::Udp(64),
        Self::Udp(1400),
        Self::RoundTrips,
        Self::Connections,
        Self::Cpu,
        Self::NewFlows,
    ];

    /// Name for `--only`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Tcp(streams) => format!("tcp{streams}"),
            Self::Udp(len) => format!("udp{len}"),
            Self::RoundTrips => "rr".to_owned(),
            Self::Connections => "crr".to_owned(),
            Self::Cpu => "cpu".to_owned(),
            Self::NewFlows => "flows".to_owned(),
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
            Load::Tcp(1) | Load::RoundTrips | Load::Connections => true,
            Load::Tcp(_) | Load::Udp(_) | Load::Cpu => self.scope == Scope::Whole,
            Load::NewFlows => self.flows.is_some(),
        }
    }

    /// Measures the arm for `time`. Returns the figures of this load.
    pub(crate) fn measure(&self, load: Load, time: Duration) -> Result<BTreeMap<Metric, f64>> {
        let peers = &self.peers;
        Ok(match load {
            Load::Tcp(1) => [(Metric::TcpOne, tcp::throughput(peers, 1, time)?)].into(),
            Load::Tcp(streams) => {
                [(Metric::TcpFour, tcp::throughput(peers, streams, time)?)].into()
            }
            Load::Udp(64) => [(Metric::Udp64, udp::datagrams(peers, 64, time)?.per_second)].into(),
            Load::Udp(len) => {
                let got = udp::datagrams(peers, len, time)?;
                let bits = got.per_second * len as f64 * 8.0;
                [(Metric::Udp1400, bits), (Metric::Udp1400Loss, got.lost)].into()
            }
            Load::RoundTrips => {
                let [p50, p99, p999] = tcp::round_trips(peers, time)?;
                [(Metric::RttP50, p50), (Metric::RttP99, p99), (Metric::RttP999, p999)].into()
            }
            Load::Connections => [(Metric::Crr, tcp::connections(peers, time)?)].into(),
            Load::Cpu => {
                let cost = cpu::per_gbit(peers, time)?;
                [(Metric::CpuPerGbit, cost.busy_ms), (Metric::SoftirqPerGbit, cost.softirq_ms)]
                    .into()
            }
            Load::NewFlows => {
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
