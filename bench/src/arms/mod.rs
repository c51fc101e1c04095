//! The ways that are compared, each between two hosts of its own: what one brings along
//! (programs on the uplink, iptables rules) costs the others nothing.

mod culvert;
mod docker;
mod hosts;
mod iptables;
mod openvswitch;
mod optional;
mod vxlan;

pub(crate) use culvert::Culvert;
pub(crate) use hosts::{Pair, Receive};
pub(crate) use iptables::Bridge;
pub(crate) use optional::Optional;

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};

use crate::{
    load::{Way, cpu, flows, tcp, udp},
    results::{ArmInfo, HOST, HOST_AGAIN, Metric, Regime},
};

/// Which figures an arm is measured for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// All that a way has.
    Whole,
    /// TCP throughput, round trips and connections.
    Tcp,
}

/// One way to be measured.
pub(crate) struct Arm {
    /// What the results say of it.
    pub(crate) info: ArmInfo,
    /// From where to where.
    pub(crate) way: Way,
    scope: Scope,
    /// New flows: from where to where, and the number of the next.
    flows: Option<(FlowsTo, Cell<u32>)>,
}

/// Where new flows go.
#[derive(Clone, Debug)]
pub(crate) struct FlowsTo {
    /// Namespace of the server's host.
    pub(crate) server: std::path::PathBuf,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Load {
    /// TCP streams.
    Tcp(u32),
    /// UDP datagrams of so many bytes.
    Udp(usize),
    /// TCP round trips.
    RoundTrips,
    /// TCP connections.
    Connections,
    /// CPU at a fixed rate.
    Cpu,
    /// New flows.
    NewFlows,
}

impl Load {
    /// All, in the order in which they are taken.
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
    /// An arm.
    pub(crate) fn new(id: &str, title: &str, row: Option<char>, way: Way, scope: Scope) -> Self {
        let info = ArmInfo { id: id.to_owned(), title: title.to_owned(), row };
        Self { info, way, scope, flows: None }
    }

    /// The same, whose client is also to begin new flows to what a host swallows.
    pub(crate) fn with_flows(mut self, to: FlowsTo) -> Self {
        self.flows = Some((to, Cell::new(0)));
        self
    }

    /// Where its new flows go, and the number of the next.
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

    /// Measures.
    pub(crate) fn measure(&self, load: Load, time: Duration) -> Result<BTreeMap<Metric, f64>> {
        let way = &self.way;
        Ok(match load {
            Load::Tcp(1) => [(Metric::TcpOne, tcp::throughput(way, 1, time)?)].into(),
            Load::Tcp(streams) => [(Metric::TcpFour, tcp::throughput(way, streams, time)?)].into(),
            Load::Udp(64) => [(Metric::Udp64, udp::datagrams(way, 64, time)?.per_second)].into(),
            Load::Udp(len) => {
                let got = udp::datagrams(way, len, time)?;
                let bits = got.per_second * len as f64 * 8.0;
                [(Metric::Udp1400, bits), (Metric::Udp1400Loss, got.lost)].into()
            }
            Load::RoundTrips => {
                let [p50, p99, p999] = tcp::round_trips(way, time)?;
                [(Metric::RttP50, p50), (Metric::RttP99, p99), (Metric::RttP999, p999)].into()
            }
            Load::Connections => [(Metric::Crr, tcp::connections(way, time)?)].into(),
            Load::Cpu => {
                let cost = cpu::per_gbit(way, time)?;
                [(Metric::CpuPerGbit, cost.busy_ms), (Metric::SoftirqPerGbit, cost.softirq_ms)]
                    .into()
            }
            Load::NewFlows => {
                let (to, next) = self.flows()?;
                let (rate, after) = flows::new_flows(&to.target(way), next.get(), time)?;
                next.set(after);
                [(Metric::NewFlows, rate)].into()
            }
        })
    }
}

impl FlowsTo {
    /// The target of flows that `way`'s client begins.
    pub(crate) fn target<'a>(&'a self, way: &'a Way) -> flows::Target<'a> {
        flows::Target {
            client: &way.client,
            server: &self.server,
            device: hosts::UPLINK,
            network: hosts::SINK,
        }
    }
}

/// The hosts of all arms.
pub(crate) struct Arms {
    /// Arms in the order of the report.
    pub(crate) all: Vec<Arm>,
    // Processes end before the hosts go that they run on.
    _optional: Vec<optional::Running>,
    pairs: Vec<Pair>,
    /// Culvert's hosts.
    pub(crate) culvert: Culvert,
    // What the ways lead through lives as long as they are measured.
    _vxlan: Vec<vxlan::Vxlan>,
    _bridge: Option<Bridge>,
}

impl Arms {
    /// Makes the hosts.
    pub(crate) fn make(optional: &[Optional]) -> Result<Self> {
        let mut pairs = Vec::new();
        let plain = Pair::new()?;
        let mut all: Vec<_> = [(HOST, "host to host"), (HOST_AGAIN, "host to host, again")]
            .into_iter()
            .map(|(id, title)| {
                let way = Way::direct(plain.one.path(), plain.two.path(), Pair::TWO);
                let row = (id == HOST).then_some('C');
                let flows = FlowsTo { server: plain.two.path().to_owned() };
                Arm::new(id, title, row, way, Scope::Whole).with_flows(flows)
            })
            .collect();
        pairs.push(plain);

        let culvert = Culvert::new()?;
        all.extend(culvert.arms());

        let mut kernel = Vec::new();
        for make in [vxlan::Vxlan::docker, vxlan::Vxlan::flannel] {
            let pair = Pair::new()?;
            let (vxlan, arm) = make(&pair)?;
            kernel.push(vxlan);
            all.push(arm);
            pairs.push(pair);
        }

        let pair = Pair::new()?;
        let bridge = Bridge::new(&pair)?;
        if let Some(bridge) = &bridge {
            all.extend(bridge.arms(&pair));
        }
        pairs.push(pair);

        let mut running = Vec::new();
        for it in optional {
            let pair = Pair::new()?;
            let (it, arm) = it.make(&pair)?;
            running.push(it);
            all.push(arm);
            pairs.push(pair);
        }

        all.sort_by_key(|arm| (arm.info.row.unwrap_or('C'), !arm.info.id.starts_with("culvert")));
        Ok(Self { all, _optional: running, pairs, culvert, _vxlan: kernel, _bridge: bridge })
    }

    /// Sets all underlays to a regime.
    pub(crate) fn set(&self, regime: Regime, receive: Receive) -> Result<()> {
        let [one, two] = &self.culvert.hosts;
        hosts::set([&one.netns, &two.netns], regime, receive)?;
        self.pairs.iter().try_for_each(|pair| hosts::set([&pair.one, &pair.two], regime, receive))
    }
}
