//! Figures that changed between two runs by more than the variation of the measurement.
//!
//! The speed of a machine drifts, so the ratio of an arm to the host at about the same time is
//! compared.
//! A ratio has changed if the 95 % intervals of the two runs do not overlap, and the medians differ
//! by more than the host differs from itself (A/A) in both runs together, since either run may be
//! off by its own A/A. Intervals alone do not suffice: of hundreds of figures, the intervals of some
//! never overlap.

use std::collections::BTreeMap;
use std::fmt;

use super::grid::Grid;
use super::table;
use super::targets::{memory_per_endpoint, point};
use super::words::{self, Owner};
use crate::results::{HOST, HOST_AGAIN, Metric, Regime, Results, Settings};
use crate::scale::ColdStart;
use crate::stats::Interval;

/// Tolerance of a program's time per run: a mean over many runs, which depends on the machine.
const PROGRAM_NOISE: f64 = 0.15;
/// Tolerance of a time that is measured once.
const ONCE_NOISE: f64 = 0.25;
/// Tolerance of memory: it is counted, but depends on the allocator.
const MEMORY_NOISE: f64 = 0.05;

/// One figure in two runs.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Name of the figure.
    what: String,
    /// The figure of the old run, as text.
    old: String,
    /// The figure of the new run, as text.
    new: String,
    /// Growth, as a share of the old figure.
    by: f64,
    /// The change, as a share, above which the figure is listed.
    noise: f64,
    /// Whether the figure is Culvert's own.
    ours: bool,
}

/// Two runs side by side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    /// Date and version of both runs.
    heading: String,
    /// Reasons why the runs may not be comparable.
    notes: Vec<String>,
    /// Figures that got worse, the largest change first.
    slower: Vec<Change>,
    /// Figures that got better, the largest change first.
    faster: Vec<Change>,
    /// Number of figures that did not change beyond noise.
    same: usize,
    /// Number of figures that only one of the runs has.
    unpaired: usize,
    /// Number of figures of both runs that are not compared, since a run has no A/A.
    unjudged: usize,
}

impl Comparison {
    /// Whether a figure of Culvert's got worse. Changes of other systems are listed, but do not
    /// count.
    pub(crate) fn slower(&self) -> bool {
        self.slower.iter().any(|change| change.ours)
    }

    /// Compares one figure. It is not compared if its `noise` is not known.
    fn figure(&mut self, it: &Figure, old: Option<Interval>, new: Option<Interval>) {
        let (Some(old), Some(new)) = (old, new) else {
            self.unpaired += usize::from(old.is_some() != new.is_some());
            return;
        };
        let Some(noise) = it.noise.filter(|_| old.median > 0.0) else {
            self.unjudged += 1;
            return;
        };
        let overlap = new.low <= old.high && old.low <= new.high;
        let by = new.median / old.median - 1.0;
        if overlap || by.abs() <= noise {
            self.same += 1;
            return;
        }
        let show = |value| format!("{}{}", words::interval(Some(value), it.decimals), it.unit);
        let change = Change {
            what: it.what.clone(),
            old: show(old),
            new: show(new),
            by,
            noise,
            ours: it.ours,
        };
        if (by > 0.0) == it.less_is_better {
            self.slower.push(change);
        } else {
            self.faster.push(change);
        }
    }
}

/// A figure to compare.
struct Figure {
    what: String,
    unit: &'static str,
    decimals: usize,
    less_is_better: bool,
    noise: Option<f64>,
    ours: bool,
}

impl Figure {
    /// A figure of Culvert's of which less is better, measured once a run.
    fn once(what: String, unit: &'static str, noise: f64) -> Self {
        Self { what, unit, decimals: 1, less_is_better: true, noise: Some(noise), ours: true }
    }
}

/// Compares two runs.
pub(crate) fn compare(old: &Results, new: &Results) -> Comparison {
    let run = |it: &Results| format!("{} (Culvert {})", it.machine.date, it.machine.culvert);
    let mut found = Comparison {
        heading: format!("{} against {}", run(new), run(old)),
        notes: differences(old, new),
        ..Comparison::default()
    };
    arms(&mut found, old, new);
    filled(&mut found, old, new);
    // Times have no base in the same round: they cannot be compared between processors.
    if old.machine.cpu == new.machine.cpu {
        times(&mut found, old, new);
    }
    cold_start(&mut found, old, new);
    for changes in [&mut found.slower, &mut found.faster] {
        changes.sort_by(|a, b| {
            (b.ours, b.by.abs())
                .partial_cmp(&(a.ours, a.by.abs()))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
    }
    found
}

/// Differences of the two runs besides Culvert.
fn differences(old: &Results, new: &Results) -> Vec<String> {
    let (was, is) = (&old.machine, &new.machine);
    let (before, now) = (&old.settings, &new.settings);
    let core = |other: bool| if other { "the other" } else { "the same" };
    let pairs = [
        ("processor", was.cpu.clone(), is.cpu.clone()),
        ("cores", was.cores.to_string(), is.cores.to_string()),
        ("Linux", was.kernel.clone(), is.kernel.clone()),
        ("rounds", before.rounds.to_string(), now.rounds.to_string()),
        ("seconds", before.seconds.to_string(), now.seconds.to_string()),
        (
            "receiving core",
            core(before.receive_on_other_core).into(),
            core(now.receive_on_other_core).into(),
        ),
        ("TCP streams and round trips", method(before), method(now)),
    ];
    let mut notes: Vec<String> = pairs
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(what, was, is)| format!("{what}: was {was}, is {is}"))
        .collect();
    if was.cpu != is.cpu {
        notes.push("times of programs and of creation are not compared between processors".into());
    }
    notes
}

/// How the arms took turns.
fn method(settings: &Settings) -> String {
    match &settings.slices {
        Some(it) => format!("in slices of {} ms or {} round trips", it.stream_ms, it.round_trips),
        None => "one arm after the other".to_owned(),
    }
}

/// Every metric of every arm, as its ratio to the host.
fn arms(found: &mut Comparison, old: &Results, new: &Results) {
    let noise = Noise { old, new };
    let mut ids: Vec<&str> = new.arms.iter().map(|arm| arm.id.as_str()).collect();
    for arm in &old.arms {
        if !ids.contains(&arm.id.as_str()) {
            ids.push(&arm.id);
        }
    }
    ids.retain(|id| *id != HOST && *id != HOST_AGAIN);
    for arm in ids {
        for regime in Regime::ALL {
            for metric in Metric::ALL {
                let (name, ..) = metric.show();
                let figure = Figure {
                    what: format!("{arm}: {name}, {} / host", regime.name()),
                    unit: "",
                    decimals: 3,
                    less_is_better: metric.less_is_better(),
                    noise: noise.of(regime, metric),
                    ours: words::owner(arm) == Owner::Culvert,
                };
                let ratio = |run: &Results| run.ratio(arm, HOST, regime, metric);
                found.figure(&figure, ratio(old), ratio(new));
            }
        }
    }
}

/// The A/A of two runs.
struct Noise<'a> {
    old: &'a Results,
    new: &'a Results,
}

impl Noise<'_> {
    /// The sum of the A/A of both runs; none unless both are known.
    fn of(&self, regime: Regime, metric: Metric) -> Option<f64> {
        Some(self.old.noise(regime, metric)? + self.new.noise(regime, metric)?)
    }
}

/// Throughput with many entries, as its ratio to the same with the fewest.
fn filled(found: &mut Comparison, old: &Results, new: &Results) {
    let noise = Noise { old, new };
    let flat = |run: &Results| -> BTreeMap<(String, u32), _> {
        let key = |it: &crate::results::Filled| (it.what.clone(), it.entries);
        run.filled.iter().map(|it| (key(it), table::flatness(run, it))).collect()
    };
    let (old, new) = (flat(old), flat(new));
    for (key, (tcp, udp)) in &new {
        let (old_tcp, old_udp) = old.get(key).copied().unwrap_or_default();
        for (metric, was, is) in [(Metric::TcpOne, old_tcp, *tcp), (Metric::Udp64, old_udp, *udp)] {
            let (what, entries) = (&key.0, words::whole(key.1.into()));
            let figure = Figure {
                what: format!("{entries} {what}: {} / with the fewest", metric.show().0),
                unit: "",
                decimals: 3,
                less_is_better: false,
                noise: noise.of(Regime::Intact, metric),
                ours: true,
            };
            found.figure(&figure, was, is);
        }
    }
}

/// Times without a base for a ratio.
fn times(found: &mut Comparison, old: &Results, new: &Results) {
    for it in &new.programs {
        let before = old
            .programs
            .iter()
            .find(|before| before.program == it.program && before.traffic == it.traffic);
        let figure = Figure::once(
            format!("{}, {}: time per run", it.program, it.traffic),
            " ns",
            PROGRAM_NOISE,
        );
        let was = before.and_then(|before| before.ns_per_run);
        found.figure(&figure, was.map(point), it.ns_per_run.map(point));
    }
    let p99 = |run: &Results| run.create.map(|it| point(it.p99_ms));
    let figure = Figure::once("create → reachable, p99".into(), " ms", ONCE_NOISE);
    found.figure(&figure, p99(old), p99(new));
}

/// Cold start as ratios to the raw range read of the same run, and the memory it takes.
fn cold_start(found: &mut Comparison, old: &Results, new: &Results) {
    type Time = fn(&ColdStart) -> f64;
    const TIMES: [(&str, Time); 2] = [
        ("snapshot to maps", |it| it.snapshot_to_maps_ms),
        ("start to maps", |it| it.exec_to_maps_ms),
    ];
    for it in &new.cold_start {
        let before = old.cold_start.iter().find(|before| before.endpoints == it.endpoints);
        let endpoints = words::whole(it.endpoints.into());
        for (name, time) in TIMES {
            let ratio =
                |it: &ColdStart| (it.raw_range_ms > 0.0).then(|| point(time(it) / it.raw_range_ms));
            let figure = Figure {
                decimals: 2,
                ..Figure::once(
                    format!("cold start, {endpoints} endpoints: {name} / raw range"),
                    "",
                    ONCE_NOISE,
                )
            };
            found.figure(&figure, before.and_then(ratio), ratio(it));
        }
    }
    let memory = |run: &Results| memory_per_endpoint(&run.cold_start).map(point);
    let figure = Figure::once("memory per remote endpoint".into(), " B", MEMORY_NOISE);
    found.figure(&figure, memory(old), memory(new));
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        for note in &self.notes {
            writeln!(f, "  difference: {note}")?;
        }
        writeln!(f)?;
        for (title, changes) in [("Slower", &self.slower), ("Faster", &self.faster)] {
            if changes.is_empty() {
                writeln!(f, "{title}: nothing beyond noise.")?;
                continue;
            }
            let headings = ["figure", ">was", ">is", ">change", ">noise", ""];
            let mut grid = Grid::new(&format!("{title}: {}", changes.len()), "", &headings);
            for it in changes {
                grid.row([
                    it.what.as_str().into(),
                    it.old.as_str().into(),
                    it.new.as_str().into(),
                    format!("{:+.1} %", it.by * 100.0).into(),
                    words::percent(Some(it.noise)).into(),
                    if it.ours { "" } else { "not Culvert's" }.into(),
                ]);
            }
            writeln!(f, "{}", grid.terminal())?;
        }
        writeln!(f, "Unchanged: {}; in one run alone: {}.", self.same, self.unpaired)?;
        if self.unjudged > 0 {
            writeln!(f, "Not compared, for want of an A/A in both runs: {}.", self.unjudged)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn a_run_is_as_fast_as_itself() {
        let run = fixture::results();
        let same = compare(&run, &run);
        assert!(same.slower.is_empty() && same.faster.is_empty() && !same.slower());
        assert_eq!((same.unpaired, same.unjudged), (0, 0));
        assert!(same.same > 200, "{}", same.same);
    }

    #[test]
    fn noise_is_not_claimed() {
        // Ten comparisons with about 3,000 figures, each with an interval of 95 %.
        let claims: Vec<String> = (2..12)
            .map(|seed| compare(&fixture::results(), &fixture::run(seed, 0.03)))
            .flat_map(|found| [found.slower, found.faster].concat())
            .map(|change| change.what)
            .collect();
        assert!(claims.len() <= 1, "{claims:?}");
    }

    #[test]
    fn a_slower_arm_is_found_and_only_that() {
        let found = compare(&fixture::results(), &fixture::slower("culvert-overlay", 0.9));
        assert!(found.slower());
        insta::assert_snapshot!(found.to_string());
        let back = compare(&fixture::slower("culvert-overlay", 0.9), &fixture::results());
        assert!(!back.slower());
        assert_eq!((back.slower.len(), back.faster.len()), (0, 2));
    }

    #[test]
    fn another_networks_speed_is_shown_but_not_culverts() {
        let found = compare(&fixture::results(), &fixture::slower("vxlan-docker", 0.9));
        assert_eq!(found.slower.len(), 2);
        assert!(!found.slower());
    }

    #[test]
    fn a_faster_machine_is_no_faster_culvert() {
        let mut new = fixture::results();
        for series in &mut new.series {
            series.samples.iter_mut().for_each(|sample| *sample *= 1.5);
        }
        let found = compare(&fixture::results(), &new);
        assert!(found.slower.is_empty() && found.faster.is_empty(), "{found}");
    }

    #[test]
    fn without_an_a_a_nothing_is_claimed() {
        let mut new = fixture::slower("culvert-overlay", 0.5);
        new.series.retain(|series| series.arm != HOST_AGAIN);
        let found = compare(&fixture::results(), &new);
        assert!(!found.slower() && found.unjudged > 100, "{found}");
    }

    #[test]
    fn times_and_memory_and_filled_tables_are_compared() {
        let mut new = fixture::results();
        for (program, by) in [(1, 1.2), (0, 1.1)] {
            *new.programs[program].ns_per_run.as_mut().expect("measured") *= by;
        }
        new.create.as_mut().expect("measured").p99_ms = 40.0;
        new.cold_start[2].snapshot_to_maps_ms *= 1.5;
        for it in &mut new.cold_start {
            it.agent_rss_bytes += u64::from(it.endpoints) * 100;
        }
        new.filled[2].udp64.iter_mut().for_each(|sample| *sample *= 0.7);
        let found = compare(&fixture::results(), &new);
        let slower: Vec<&str> = found.slower.iter().map(|it| it.what.as_str()).collect();
        insta::assert_snapshot!(slower.join("\n"));
        assert!(found.faster.is_empty(), "{found}");

        // On another processor, only what is a ratio or a size counts.
        new.machine.cpu = "Example 4000".into();
        let found = compare(&fixture::results(), &new);
        assert_eq!(found.slower.len(), 3, "{found}");
        assert!(found.to_string().contains("was Example 3000, is Example 4000"), "{found}");
    }

    #[test]
    fn arms_of_one_run_alone_are_counted() {
        let mut new = fixture::results();
        new.series.retain(|series| series.arm != "linux-local");
        let found = compare(&fixture::results(), &new);
        assert_eq!((found.unpaired, found.slower.len()), (22, 0), "{found}");
    }
}
