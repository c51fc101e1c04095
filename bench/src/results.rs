//! Results of a run: the data of the table, of the report and of `--compare`.

mod flows;
mod slices;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scale::ColdStart;
use crate::stats::{self, Interval};
pub(crate) use flows::{FlowListing, UnderAttack, Waits};
pub(crate) use slices::{SliceSettings, Slices};

/// Version of the JSON that `--json` writes.
pub(crate) const VERSION: u32 = 1;

/// How frames cross the underlay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Regime {
    /// GSO frames of up to 64 KB cross it whole, as between namespaces of one host.
    Intact,
    /// Segmented to the MTU by the sender and merged by the receiver, as on a wire.
    WireLike,
}

impl Regime {
    /// Both, in the order in which they are measured and reported. A network card cuts frames to
    /// the MTU, so this regime comes first.
    pub(crate) const ALL: [Self; 2] = [Self::WireLike, Self::Intact];

    /// Name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Intact => "frames intact",
            Self::WireLike => "wire-like",
        }
    }
}

/// A metric of one measurement of an arm.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// TCP payload of one stream that arrived, bit/s.
    TcpOne,
    /// TCP payload of four streams that arrived, bit/s.
    TcpFour,
    /// UDP datagrams of 64 bytes that arrived, 1/s, of as many as one thread can send.
    Udp64,
    /// UDP payload of 1,400-byte datagrams that arrived, bit/s.
    Udp1400,
    /// Datagrams of `Udp1400` that did not arrive, per cent.
    Udp1400Loss,
    /// Time of a round trip of one byte over TCP, 50th percentile, ns.
    RttP50,
    /// 99th percentile of the time of a round trip, ns.
    RttP99,
    /// 99.9th percentile of the time of a round trip, ns.
    RttP999,
    /// TCP connections with one byte each way, one after the other, 1/s.
    Crr,
    /// Time that both cores work for one Gbit of TCP payload at a fixed rate, ms.
    CpuPerGbit,
    /// Part of `CpuPerGbit` in softirq, by the kernel's clock tick, ms.
    SoftirqPerGbit,
    /// Datagrams of flows not seen before that arrived, 1/s.
    NewFlows,
}

impl Metric {
    /// All metrics, in the order of the report.
    pub(crate) const ALL: [Self; 12] = [
        Self::TcpOne,
        Self::TcpFour,
        Self::Udp64,
        Self::Udp1400,
        Self::Udp1400Loss,
        Self::RttP50,
        Self::RttP99,
        Self::RttP999,
        Self::Crr,
        Self::CpuPerGbit,
        Self::SoftirqPerGbit,
        Self::NewFlows,
    ];

    /// Heading, unit, stored value of one unit, and number of decimals.
    pub(crate) fn show(self) -> (&'static str, &'static str, f64, usize) {
        match self {
            Self::TcpOne => ("TCP, one stream", "Gbit/s", 1e9, 2),
            Self::TcpFour => ("TCP, four streams", "Gbit/s", 1e9, 2),
            Self::Udp64 => ("UDP, 64 B", "kpps", 1e3, 0),
            Self::Udp1400 => ("UDP, 1,400 B", "Gbit/s", 1e9, 2),
            Self::Udp1400Loss => ("UDP, 1,400 B, lost", "%", 1.0, 1),
            Self::RttP50 => ("TCP round trip, p50", "µs", 1e3, 1),
            Self::RttP99 => ("TCP round trip, p99", "µs", 1e3, 1),
            Self::RttP999 => ("TCP round trip, p99.9", "µs", 1e3, 1),
            Self::Crr => ("TCP connections", "1,000/s", 1e3, 2),
            Self::CpuPerGbit => ("CPU per Gbit", "ms", 1.0, 1),
            Self::SoftirqPerGbit => ("softirq per Gbit", "ms", 1.0, 1),
            Self::NewFlows => ("new flows", "1,000/s", 1e3, 0),
        }
    }

    /// Whether less is better.
    pub(crate) fn less_is_better(self) -> bool {
        match self {
            Self::TcpOne
            | Self::TcpFour
            | Self::Udp64
            | Self::Udp1400
            | Self::Crr
            | Self::NewFlows => false,
            Self::Udp1400Loss
            | Self::RttP50
            | Self::RttP99
            | Self::RttP999
            | Self::CpuPerGbit
            | Self::SoftirqPerGbit => true,
        }
    }
}

/// Machine and date of the measurement.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Machine {
    /// UTC, as `2026-11-25`.
    pub(crate) date: String,
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Cores.
    pub(crate) cores: usize,
    /// Memory, MiB.
    pub(crate) memory_mib: u64,
    /// Version of Linux.
    pub(crate) kernel: String,
    /// Load average of the minute before the run.
    pub(crate) load_before: f64,
    /// Load average of the last minute of the run.
    pub(crate) load_after: f64,
    /// Version of Culvert, and commit if it is known.
    pub(crate) culvert: String,
}

/// Settings of the measurement.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Settings {
    /// `--quick`.
    pub(crate) quick: bool,
    /// Rounds.
    pub(crate) rounds: u32,
    /// Length of one measurement, s.
    pub(crate) seconds: f64,
    /// Whether the receiving core is not the sending core.
    pub(crate) receive_on_other_core: bool,
    /// The slices in which the arms alternate; older results do not have it: their arms were
    /// measured one after the other.
    #[serde(default)]
    pub(crate) slices: Option<SliceSettings>,
}

/// One path between two ends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ArmInfo {
    /// Stable name, as `culvert-overlay`.
    pub(crate) id: String,
    /// Title in the report.
    pub(crate) title: String,
    /// Row of the article's table, `A` to `F`.
    pub(crate) row: Option<char>,
}

/// One metric of one arm: a figure for each round.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Series {
    /// [`ArmInfo::id`].
    pub(crate) arm: String,
    /// Regime.
    pub(crate) regime: Regime,
    /// Metric.
    pub(crate) metric: Metric,
    /// One figure a round, in the order of the rounds. An index is the same round in all series.
    pub(crate) samples: Vec<f64>,
    /// For each round, the ratios to the host in neighbouring slices: an index is the same cycle
    /// in all series, and null is a cycle whose slices were thrown away. Empty if the metric is
    /// not measured in slices, and for the host. In a run without the host, the first arm takes
    /// its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ratios: Vec<Vec<Option<f64>>>,
}

impl Series {
    /// Whether it is the series of these three.
    fn is(&self, arm: &str, regime: Regime, metric: Metric) -> bool {
        self.arm == arm && self.regime == regime && self.metric == metric
    }
}

/// The slices of one load of an arm in one regime.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SliceCount {
    /// [`ArmInfo::id`].
    pub(crate) arm: String,
    /// Regime.
    pub(crate) regime: Regime,
    /// Name of the load for `--only`.
    pub(crate) load: String,
    /// Numbers.
    #[serde(flatten)]
    pub(crate) count: Slices,
}

/// A BPF program's cost.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ProgramCost {
    /// Name.
    pub(crate) program: String,
    /// Traffic while it was measured, as `UDP 64 B`.
    pub(crate) traffic: String,
    /// Time per run by the kernel's statistics, ns. None if no traffic has such packets.
    #[serde(default)]
    pub(crate) ns_per_run: Option<f64>,
    /// Time of a test run, ns; older results do not have it.
    #[serde(default)]
    pub(crate) test_run_ns: Option<f64>,
    /// Runs that the statistics counted.
    pub(crate) runs: u64,
    /// Instructions that the verifier followed at load.
    pub(crate) verified_instructions: u64,
    /// Length of the machine code, bytes.
    pub(crate) jited_bytes: u64,
}

/// Time from the request for an endpoint to its first packet from another host.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Create {
    /// Endpoints made.
    pub(crate) endpoints: usize,
    /// Half of them took at most this long, ms.
    pub(crate) p50_ms: f64,
    /// 99 of 100 took at most this long, ms.
    pub(crate) p99_ms: f64,
}

/// TCP throughput with so many entries in a table.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Filled {
    /// `FDB entries` or `NAT flows`.
    pub(crate) what: String,
    /// Number of entries.
    pub(crate) entries: u32,
    /// Payload that arrived, bit/s, one figure a round.
    pub(crate) tcp: Vec<f64>,
    /// Datagrams of 64 bytes that arrived, 1/s, one figure a round.
    pub(crate) udp64: Vec<f64>,
}

/// All that a run measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// Machine.
    pub(crate) machine: Machine,
    /// Settings.
    pub(crate) settings: Settings,
    /// Arms, in the order of the report.
    pub(crate) arms: Vec<ArmInfo>,
    /// Figures.
    pub(crate) series: Vec<Series>,
    /// Cost of the programs.
    pub(crate) programs: Vec<ProgramCost>,
    /// Create → reachable.
    pub(crate) create: Option<Create>,
    /// Cold start by number of endpoints.
    pub(crate) cold_start: Vec<ColdStart>,
    /// Throughput by number of entries.
    pub(crate) filled: Vec<Filled>,
    /// Slices of each load, and how many of them were thrown away; older results have none.
    #[serde(default)]
    pub(crate) slices: Vec<SliceCount>,
    /// Connections during an attack; older results do not have it.
    #[serde(default)]
    pub(crate) attack: Option<UnderAttack>,
    /// Listings of a full table of flows, one for each format; older results have none.
    #[serde(default)]
    pub(crate) listings: Vec<FlowListing>,
}

/// Id of the arm that ratios are taken to.
pub(crate) const HOST: &str = "host";
/// Id of the arm that measures the host once more (A/A).
pub(crate) const HOST_AGAIN: &str = "host-again";

impl Results {
    /// Whether there is at least one figure.
    pub(crate) fn has_any(&self) -> bool {
        !self.series.is_empty()
            || !self.programs.is_empty()
            || !self.filled.is_empty()
            || self.create.is_some()
            || !self.cold_start.is_empty()
            || self.attack.is_some()
            || !self.listings.is_empty()
    }

    /// The series of one metric of one arm; none if it was not measured.
    fn series(&self, arm: &str, regime: Regime, metric: Metric) -> Option<&Series> {
        self.series.iter().find(|series| series.is(arm, regime, metric))
    }

    /// The figures of one metric of one arm; none if it was not measured.
    pub(crate) fn samples(&self, arm: &str, regime: Regime, metric: Metric) -> Option<&[f64]> {
        self.series(arm, regime, metric).map(|series| series.samples.as_slice())
    }

    /// The median of one metric of one arm.
    pub(crate) fn median(&self, arm: &str, regime: Regime, metric: Metric) -> Option<f64> {
        self.samples(arm, regime, metric).map(stats::median)
    }

    /// The ratios of `arm` to `base`, for each round: those of neighbouring slices, or else the
    /// one of the round's figures. The ratio of two arms that are not neighbours is that of their
    /// ratios to the host in one cycle.
    pub(crate) fn ratios(
        &self,
        arm: &str,
        base: &str,
        regime: Regime,
        metric: Metric,
    ) -> Option<Vec<Vec<f64>>> {
        let ours = self.series(arm, regime, metric)?;
        let base = self.series(base, regime, metric)?;
        let ratio = |ours: f64, base: f64| (base > 0.0).then_some(ours / base);
        if ours.ratios.is_empty() && base.ratios.is_empty() {
            let rounds = ours.samples.iter().zip(&base.samples);
            let round = |(ours, base): (&f64, &f64)| Vec::from_iter(ratio(*ours, *base));
            return Some(rounds.map(round).collect());
        }
        // The series of the host itself has no ratios: it is 1 in each cycle.
        let at = |series: &Series, round: usize, cycle: usize| {
            if series.ratios.is_empty() {
                return Some(1.0);
            }
            *series.ratios.get(round)?.get(cycle)?
        };
        let longer = if ours.ratios.is_empty() { &base.ratios } else { &ours.ratios };
        let round = |(round, cycles): (usize, &Vec<Option<f64>>)| {
            (0..cycles.len())
                .filter_map(|cycle| ratio(at(ours, round, cycle)?, at(base, round, cycle)?))
                .collect::<Vec<f64>>()
        };
        Some(longer.iter().enumerate().map(round).collect())
    }

    /// The median of the ratios of `arm` to `base`, and its interval.
    pub(crate) fn ratio(
        &self,
        arm: &str,
        base: &str,
        regime: Regime,
        metric: Metric,
    ) -> Option<Interval> {
        stats::bootstrap_rounds(&self.ratios(arm, base, regime, metric)?)
    }

    /// The smallest difference that may be claimed of a metric: the largest distance from 1 of the
    /// interval of the host's ratio to itself.
    pub(crate) fn noise(&self, regime: Regime, metric: Metric) -> Option<f64> {
        let same = self.ratio(HOST_AGAIN, HOST, regime, metric)?;
        Some((same.high - 1.0).abs().max((1.0 - same.low).abs()))
    }

    /// Adds one round's figures of an arm.
    pub(crate) fn add(&mut self, arm: &str, regime: Regime, figures: &BTreeMap<Metric, f64>) {
        for (&metric, &value) in figures {
            let known = self.series.iter_mut().find(|series| series.is(arm, regime, metric));
            match known {
                Some(series) => series.samples.push(value),
                None => self.series.push(Series {
                    arm: arm.to_owned(),
                    regime,
                    metric,
                    samples: vec![value],
                    ratios: Vec::new(),
                }),
            }
        }
    }

    /// Adds one round's ratios of an arm to the host, to the series that [`Self::add`] has made.
    pub(crate) fn add_ratios(
        &mut self,
        arm: &str,
        regime: Regime,
        metric: Metric,
        ratios: Vec<Option<f64>>,
    ) {
        // The file has a line for each ratio: four decimals are enough.
        let rounded = |ratio: f64| (ratio * 1e4).round() / 1e4;
        let known = self.series.iter_mut().find(|series| series.is(arm, regime, metric));
        if let Some(series) = known {
            series.ratios.push(ratios.into_iter().map(|ratio| ratio.map(rounded)).collect());
        }
    }

    /// Adds one round's numbers of slices of an arm.
    pub(crate) fn count(&mut self, arm: &str, regime: Regime, load: &str, count: Slices) {
        let known = self
            .slices
            .iter_mut()
            .find(|it| it.arm == arm && it.regime == regime && it.load == load);
        match known {
            Some(it) => it.count += count,
            None => self.slices.push(SliceCount {
                arm: arm.to_owned(),
                regime,
                load: load.to_owned(),
                count,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric::TcpOne;
    const REGIME: Regime = Regime::WireLike;

    fn sliced() -> Results {
        let mut results = Results::default();
        for (arm, sample) in [(HOST, 10.0), (HOST_AGAIN, 10.0), ("a", 6.0), ("b", 5.0)] {
            for _ in 0..2 {
                results.add(arm, REGIME, &BTreeMap::from([(METRIC, sample)]));
            }
        }
        // The figures of whole rounds would say 0.6. Neighbouring slices say 0.9.
        for ratios in [vec![Some(0.9), None, Some(0.9)], vec![Some(0.900_04), Some(0.45)]] {
            results.add_ratios("a", REGIME, METRIC, ratios);
        }
        for ratios in [vec![Some(0.45), Some(0.45), None], vec![Some(0.45), Some(0.45)]] {
            results.add_ratios("b", REGIME, METRIC, ratios);
        }
        results
    }

    #[test]
    fn ratios_are_those_of_neighbouring_slices() {
        let results = sliced();
        let ratios = |arm, base| results.ratios(arm, base, REGIME, METRIC);
        assert_eq!(ratios("a", HOST), Some(vec![vec![0.9, 0.9], vec![0.9, 0.45]]));
        // Only cycles that both arms have.
        assert_eq!(ratios("a", "b"), Some(vec![vec![2.0], vec![2.0, 1.0]]));
        assert_eq!(ratios(HOST, "b"), Some(vec![vec![1.0 / 0.45; 2], vec![1.0 / 0.45; 2]]));
        // Without slices, of the rounds' figures.
        assert_eq!(ratios(HOST_AGAIN, HOST), Some(vec![vec![1.0], vec![1.0]]));
        assert_eq!(ratios("none", HOST), None);
        let median = results.ratio("a", "b", REGIME, METRIC).map(|it| it.median);
        assert_eq!(median, Some(2.0));
    }

    #[test]
    fn slices_are_counted_by_arm_and_stay_in_the_file() {
        let mut results = sliced();
        let one = Slices { slices: 12, thrown: 3, steal: 1, switches: 2 };
        results.count("a", REGIME, "tcp1", one);
        results.count("a", REGIME, "tcp1", one);
        results.count("a", REGIME, "rr", one);
        let text = serde_json::to_string(&results).expect("JSON");
        let back: Results = serde_json::from_str(&text).expect("loaded");
        let counts: Vec<_> = back.slices.iter().map(|it| it.count.slices).collect();
        assert_eq!(counts, [24, 12]);
        assert_eq!(back.ratios("a", "b", REGIME, METRIC), results.ratios("a", "b", REGIME, METRIC));
    }

    #[test]
    fn a_file_from_before_the_slices_is_read() {
        let mut old = serde_json::to_value(sliced()).expect("JSON");
        old.as_object_mut().expect("an object").remove("slices");
        let settings = old.pointer_mut("/settings").and_then(|it| it.as_object_mut());
        settings.expect("settings").remove("slices");
        for series in old.pointer_mut("/series").and_then(|it| it.as_array_mut()).expect("series") {
            series.as_object_mut().expect("an object").remove("ratios");
        }
        let results: Results = serde_json::from_value(old).expect("loaded");
        assert_eq!(results.ratio("a", HOST, REGIME, METRIC).map(|it| it.median), Some(0.6));
    }
}
