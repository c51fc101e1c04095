//! The targets of Culvert, and the result of a run for each.

use super::words;
use crate::results::{HOST, Metric, Regime, Results};
use crate::scale::ColdStart;
use crate::stats::Interval;

/// Endpoints of the cold start that targets are set for.
const ENDPOINTS: u32 = 100_000;

/// Limit of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// This value or more.
    AtLeast(f64),
    /// This value or less.
    AtMost(f64),
}

impl Bound {
    /// The limit itself.
    fn limit(self) -> f64 {
        match self {
            Self::AtLeast(limit) | Self::AtMost(limit) => limit,
        }
    }

    /// Whether `value` is on the right side.
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
        }
    }
}

/// Result of a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The median is on the right side, and so is its interval.
    Met,
    /// The median is on the right side, but its interval reaches to the other.
    MetUncertain,
    /// The median is on the wrong side, and so is its interval.
    Missed,
    /// The median is on the wrong side, but its interval reaches to the other.
    MissedUncertain,
    /// The run has no such figure.
    NotMeasured,
}

impl Outcome {
    /// Text for the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::MetUncertain => "met, interval straddles",
            Self::Missed => "missed",
            Self::MissedUncertain => "missed, interval straddles",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A figure to reach.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Name of the figure.
    pub(crate) name: String,
    /// The measured figure, if there is one.
    pub(crate) value: Option<Interval>,
    /// The limit to reach.
    pub(crate) bound: Bound,
    /// Unit of both, empty for ratios; a figure with a unit is measured once and has no interval.
    pub(crate) unit: &'static str,
    /// The smallest difference that may be claimed of it, as a share; none where a figure is
    /// not a ratio of two arms.
    pub(crate) noise: Option<f64>,
}

impl Target {
    /// Result of the target.
    pub(crate) fn outcome(&self) -> Outcome {
        let Some(Interval { median, low, high }) = self.value else {
            return Outcome::NotMeasured;
        };
        let straddles = self.bound.holds(low) != self.bound.holds(high);
        match (self.bound.holds(median), straddles) {
            (true, false) => Outcome::Met,
            (true, true) => Outcome::MetUncertain,
            (false, false) => Outcome::Missed,
            (false, true) => Outcome::MissedUncertain,
        }
    }

    /// The measured figure, as text.
    pub(crate) fn measured(&self) -> String {
        match self.value {
            Some(it) if !self.unit.is_empty() => self.with_unit(words::amount(it.median)),
            ratio => words::interval(ratio, 3),
        }
    }

    /// The limit, as text.
    pub(crate) fn wanted(&self) -> String {
        let decimals = usize::from(self.unit.is_empty()) * 2;
        let sign = match self.bound {
            Bound::AtLeast(_) => '≥',
            Bound::AtMost(_) => '≤',
        };
        self.with_unit(format!("{sign} {:.decimals$}", self.bound.limit()))
    }

    fn with_unit(&self, text: String) -> String {
        if self.unit.is_empty() { text } else { format!("{text} {}", self.unit) }
    }
}

/// All targets with their figures in `results`, in the order of the report.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    use {Bound::AtLeast, Bound::AtMost, Regime::Intact, Regime::WireLike};
    const OURS: &str = "culvert-overlay";
    const THEIRS: &str = "vxlan-docker";
    let ratio = |name: &str, arm: &str, base: &str, regime, metric, bound| Target {
        name: name.to_owned(),
        value: results.ratio(arm, base, regime, metric),
        bound,
        unit: "",
        noise: results.noise(regime, metric),
    };
    let mut targets = vec![
        ratio(
            "overlay: TCP, one stream / host, wire-like",
            OURS,
            HOST,
            WireLike,
            Metric::TcpOne,
            AtLeast(0.85),
        ),
        ratio(
            "overlay: TCP, one stream / host, frames intact",
            OURS,
            HOST,
            Intact,
            Metric::TcpOne,
            AtLeast(0.96),
        ),
        ratio(
            "overlay: UDP 64 B / kernel vxlan",
            OURS,
            THEIRS,
            Intact,
            Metric::Udp64,
            AtLeast(2.0),
        ),
        ratio(
            "overlay: TCP round trip p50 / host",
            OURS,
            HOST,
            Intact,
            Metric::RttP50,
            AtMost(1.02),
        ),
        ratio("overlay: TCP connections / host", OURS, HOST, Intact, Metric::Crr, AtLeast(0.92)),
        ratio(
            "overlay: CPU per Gbit / kernel vxlan",
            OURS,
            THEIRS,
            Intact,
            Metric::CpuPerGbit,
            AtMost(0.75),
        ),
        ratio(
            "SNAT: new flows / iptables MASQUERADE",
            "culvert-snat",
            "linux-snat",
            Intact,
            Metric::NewFlows,
            AtLeast(2.0),
        ),
        ratio(
            "bridge + SNAT: TCP, one stream / host",
            "culvert-snat",
            HOST,
            Intact,
            Metric::TcpOne,
            AtLeast(0.95),
        ),
    ];
    let single = |name: &str, value: Option<f64>, bound, unit| Target {
        name: name.to_owned(),
        value: value.map(point),
        bound,
        unit,
        noise: None,
    };
    let programs = program_time(results);
    let traffic = programs.map_or(String::new(), |(traffic, _)| format!(" ({traffic})"));
    let cold = results
        .cold_start
        .iter()
        .filter(|it| it.endpoints >= ENDPOINTS)
        .min_by_key(|it| it.endpoints);
    let slowdown = cold
        .and_then(|it| (it.raw_range_ms > 0.0).then(|| it.snapshot_to_maps_ms / it.raw_range_ms));
    targets.extend([
        single(
            &format!("overlay: encap + decap program time{traffic}"),
            programs.map(|(_, ns)| ns),
            AtMost(200.0),
            "ns",
        ),
        single(
            "cold start, 100,000 endpoints: snapshot to maps / raw range read",
            slowdown,
            AtMost(2.0),
            "",
        ),
        single(
            "cold start, 100,000 endpoints: start to complete maps",
            cold.map(|it| it.exec_to_maps_ms),
            AtMost(2_000.0),
            "ms",
        ),
        single(
            "memory per remote endpoint, kernel + agent",
            cold.and_then(|_| memory_per_endpoint(&results.cold_start)),
            AtMost(512.0),
            "B",
        ),
        single(
            "create → reachable on a peer, p99",
            results.create.map(|it| it.p99_ms),
            AtMost(50.0),
            "ms",
        ),
    ]);
    targets
}

/// A single figure, as an interval without width.
pub(super) fn point(value: f64) -> Interval {
    Interval { median: value, low: value, high: value }
}

/// Time of both overlay programs on one packet, ns, and the traffic. Traffic with the smallest
/// packets is preferred: its packets are not merged, so a run is a packet.
fn program_time(results: &Results) -> Option<(&str, f64)> {
    let time = |program: &str, traffic: &str| {
        let same = |it: &&crate::results::ProgramCost| {
            it.program == program && it.traffic == traffic && it.runs > 0
        };
        results.programs.iter().find(same)?.ns_per_run
    };
    let sums: Vec<(&str, f64)> = results
        .programs
        .iter()
        .filter(|it| it.program == "from_container")
        .filter_map(|it| {
            let traffic = it.traffic.as_str();
            Some((traffic, time("from_container", traffic)? + time("from_underlay", traffic)?))
        })
        .collect();
    sums.iter().find(|(traffic, _)| traffic.contains("64 B")).or(sums.first()).copied()
}

/// Bytes for each further endpoint: the difference between the fewest and the most endpoints. So
/// the memory of an agent without endpoints does not count.
pub(super) fn memory_per_endpoint(cold_start: &[ColdStart]) -> Option<f64> {
    let few = cold_start.iter().min_by_key(|it| it.endpoints)?;
    let many = cold_start.iter().max_by_key(|it| it.endpoints)?;
    let bytes = |it: &ColdStart| it.kernel_bytes as f64 + it.agent_rss_bytes as f64;
    let endpoints = f64::from(many.endpoints) - f64::from(few.endpoints);
    (endpoints > 0.0).then(|| (bytes(many) - bytes(few)) / endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    fn target(bound: Bound, median: f64, low: f64, high: f64) -> Outcome {
        let value = Some(Interval { median, low, high });
        Target { name: String::new(), value, bound, unit: "", noise: None }.outcome()
    }

    #[test]
    fn an_interval_on_both_sides_is_said() {
        assert_eq!(target(Bound::AtLeast(0.96), 0.97, 0.96, 0.98), Outcome::Met);
        assert_eq!(target(Bound::AtLeast(0.96), 0.97, 0.95, 0.98), Outcome::MetUncertain);
        assert_eq!(target(Bound::AtLeast(0.96), 0.95, 0.94, 0.97), Outcome::MissedUncertain);
        assert_eq!(target(Bound::AtLeast(0.96), 0.95, 0.94, 0.955), Outcome::Missed);
        assert_eq!(target(Bound::AtMost(1.02), 1.0, 0.9, 1.02), Outcome::Met);
        assert_eq!(target(Bound::AtMost(1.02), 1.03, 1.02, 1.04), Outcome::MissedUncertain);
    }

    #[test]
    fn nothing_measured_is_neither_met_nor_missed() {
        let targets = all(&Results::default());
        assert_eq!(targets.len(), 13);
        assert!(targets.iter().all(|it| it.outcome() == Outcome::NotMeasured));
    }

    #[test]
    fn every_target_finds_its_figure() {
        let lines: Vec<String> = all(&fixture::results())
            .iter()
            .map(|it| {
                let (measured, wanted) = (it.measured(), it.wanted());
                format!("{}: {measured}, {wanted}: {}", it.name, it.outcome().name())
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn what_the_agent_takes_anyway_is_not_the_endpoints() {
        let at = |endpoints, kernel_bytes, agent_rss_bytes| ColdStart {
            endpoints,
            raw_range_ms: 1.0,
            snapshot_to_maps_ms: 1.0,
            exec_to_maps_ms: 1.0,
            kernel_bytes,
            agent_rss_bytes,
        };
        let two = [at(1_100, 210_000, 20_300_000), at(100, 10_000, 20_000_000)];
        assert_eq!(memory_per_endpoint(&two), Some(500.0));
        assert_eq!(memory_per_endpoint(&two[..1]), None);
    }
}
