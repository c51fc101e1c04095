//! The charts of a run.

use anyhow::Result;
use plotters::style::RGBColor;

use super::axes::Axis;
use super::charts::{self, Bar, Line, Panel, Rows, RowsPanel, Words};
use crate::report::table;
use crate::report::words::{self, Owner};
use crate::results::{ArmInfo, HOST, Metric, Regime, Results};
use crate::scale::ColdStart;
use crate::stats::{self, Interval};

/// Colour of Culvert's arms. All three colours are legible on white and on black, and to the
/// colour-blind.
pub(super) const CULVERT: RGBColor = RGBColor(0x2b, 0x8c, 0xd6);
/// Colour of other networks.
pub(super) const OTHER: RGBColor = RGBColor(0xd9, 0x82, 0x2b);
/// Colour of the host.
pub(super) const PLAIN: RGBColor = RGBColor(0x8a, 0x93, 0x9e);

/// The metrics that have a chart of their own. The round trip's upper percentiles are in
/// [`latency`].
pub(super) const CHARTED: [Metric; 10] = [
    Metric::TcpOne,
    Metric::TcpFour,
    Metric::Udp64,
    Metric::Udp1400,
    Metric::Udp1400Loss,
    Metric::RttP50,
    Metric::Crr,
    Metric::NewFlows,
    Metric::CpuPerGbit,
    Metric::SoftirqPerGbit,
];

/// The colour of an arm.
fn color(arm: &ArmInfo) -> RGBColor {
    match words::owner(&arm.id) {
        Owner::Culvert => CULVERT,
        Owner::Host => PLAIN,
        Owner::Other => OTHER,
    }
}

/// The common part of all kinds of rows.
fn chart(arms: &[&ArmInfo], panels: Vec<RowsPanel>, axis: Axis, unit: &str) -> Rows {
    let names = arms.iter().map(|arm| (arm.title.clone(), color(arm))).collect();
    Rows { names, panels, axis, unit: unit.to_owned() }
}

/// A panel for each regime, with what `bar` gives for each arm.
fn panels(arms: &[&ArmInfo], bar: impl Fn(&ArmInfo, Regime) -> Option<Bar>) -> Vec<RowsPanel> {
    let side = |regime: Regime| RowsPanel {
        heading: regime.name().to_owned(),
        bars: arms.iter().map(|arm| bar(arm, regime)).collect(),
        ..RowsPanel::default()
    };
    Regime::ALL.map(side).into()
}

/// All bars of the panels.
fn bars(panels: &[RowsPanel]) -> impl Iterator<Item = &Bar> {
    panels.iter().flat_map(|side| &side.bars).flatten()
}

/// The contents of a chart, in words.
fn spoken(chart: &Rows) -> String {
    let mut text = String::new();
    for RowsPanel { heading, bars, .. } in &chart.panels {
        let said = chart
            .names
            .iter()
            .zip(bars)
            .filter_map(|((name, _), bar)| Some(format!("{name} {}", bar.as_ref()?.label)));
        text.push_str(&format!("{heading}: {}. ", said.collect::<Vec<_>>().join("; ")));
    }
    text
}

/// A bar for each arm: the median, its interval, the rounds, and the ratio to the host. None if
/// there is nothing to draw.
pub(super) fn metric(results: &Results, metric: Metric) -> Result<Option<String>> {
    let (name, unit, size, decimals) = metric.show();
    let arms = words::arms_of(results, metric);
    let bar = |arm: &ArmInfo, regime| {
        let samples = results.samples(&arm.id, regime, metric)?;
        let Interval { median, low, high } = stats::bootstrap(samples)?;
        let ratio = results.ratio(&arm.id, HOST, regime, metric);
        let ratio = match ratio.filter(|_| arm.id != HOST) {
            Some(ratio) => format!(" · {:.2}×", ratio.median),
            None => String::new(),
        };
        Some(Bar {
            bar: Some(median / size),
            interval: Some((low / size, high / size)),
            dots: samples.iter().map(|it| it / size).collect(),
            label: format!("{:.decimals$}{ratio}", median / size),
            ..Bar::default()
        })
    };
    let mut panels = panels(&arms, bar);
    let Some(axis) = Axis::linear(bars(&panels).flat_map(|bar| bar.dots.iter().copied())) else {
        return Ok(None);
    };
    for (side, regime) in panels.iter_mut().zip(Regime::ALL) {
        side.line = results.median(HOST, regime, metric).map(|median| median / size);
    }
    let chart = chart(&arms, panels, axis, unit);
    let words = Words {
        id: format!("m{}", metric as u8),
        title: format!("{name}, {unit}, of each arm"),
        text: spoken(&chart),
    };
    charts::rows(&words, &chart).map(Some)
}

/// A point for each arm: the median of its ratios to the host, their interval, and the ratio of
/// each round. None if there is nothing to draw.
pub(super) fn ratios(results: &Results, metric: Metric) -> Result<Option<String>> {
    let mut arms = words::arms_of(results, metric);
    arms.retain(|arm| arm.id != HOST);
    let bar = |arm: &ArmInfo, regime| {
        let Interval { median, low, high } = results.ratio(&arm.id, HOST, regime, metric)?;
        let rounds = results.ratios(&arm.id, HOST, regime, metric)?;
        let rounds = rounds.iter().filter(|round| !round.is_empty());
        Some(Bar {
            mark: Some(median),
            interval: Some((low, high)),
            dots: rounds.map(|round| stats::median(round)).collect(),
            label: format!("{median:.3}"),
            ..Bar::default()
        })
    };
    let mut panels = panels(&arms, bar);
    if bars(&panels).next().is_none() {
        return Ok(None);
    }
    let ends = |(low, high): (f64, f64)| [low, high];
    let ratios = bars(&panels)
        .flat_map(|bar| bar.dots.iter().copied().chain(bar.interval.into_iter().flat_map(ends)));
    let Some(axis) = Axis::around_one(ratios) else {
        return Ok(None);
    };
    for (side, regime) in panels.iter_mut().zip(Regime::ALL) {
        side.line = Some(1.0);
        side.band = results.noise(regime, metric).unwrap_or_default();
    }
    let chart = chart(&arms, panels, axis, "ratio to the host; not from zero");
    let words = Words {
        id: format!("r{}", metric as u8),
        title: format!("{}: ratio of each arm to the host", metric.show().0),
        text: spoken(&chart),
    };
    charts::rows(&words, &chart).map(Some)
}

/// The round trip's percentiles of each arm. None if there is nothing to draw.
pub(super) fn latency(results: &Results) -> Result<Option<String>> {
    let arms = words::arms_of(results, Metric::RttP50);
    let bar = |arm: &ArmInfo, regime| {
        let median = |metric| results.median(&arm.id, regime, metric).map(|it| it / 1e3);
        let percentiles = [Metric::RttP50, Metric::RttP99, Metric::RttP999].map(median);
        let chain: Vec<f64> = percentiles.into_iter().flatten().collect();
        let label: Vec<String> = chain.iter().map(|it| format!("{it:.1}")).collect();
        let label = label.join(" · ");
        (!chain.is_empty()).then(|| Bar { chain, label, ..Bar::default() })
    };
    let panels = panels(&arms, bar);
    let Some(axis) = Axis::log(bars(&panels).flat_map(|bar| bar.chain.iter().copied())) else {
        return Ok(None);
    };
    let chart = chart(&arms, panels, axis, "µs: p50 (dot), p99, p99.9; logarithmic");
    let words = Words {
        id: "latency".into(),
        title: "TCP round trip of each arm, µs: p50, p99, p99.9".into(),
        text: spoken(&chart),
    };
    charts::rows(&words, &chart).map(Some)
}

/// Lines in words: each one's first and last point.
fn said(panels: &[Panel]) -> String {
    let mut text = String::new();
    for panel in panels {
        for line in &panel.lines {
            if let (Some((x0, y0, _)), Some((x1, y1, _))) =
                (line.points.first(), line.points.last())
            {
                text.push_str(&format!(
                    "{}, {}: {y0:.2} with {x0:.0}, {y1:.2} with {x1:.0}. ",
                    panel.heading, line.name
                ));
            }
        }
    }
    text
}

/// Throughput by number of entries, as a share of the throughput with the fewest entries. None if
/// there is nothing to draw.
pub(super) fn filled(results: &Results) -> Result<Option<String>> {
    let mut kinds: Vec<&str> = Vec::new();
    for it in &results.filled {
        if !kinds.contains(&it.what.as_str()) {
            kinds.push(&it.what);
        }
    }
    let mut panels = Vec::new();
    for what in kinds {
        let mut of_it: Vec<_> = results.filled.iter().filter(|it| it.what == what).collect();
        of_it.sort_by_key(|it| it.entries);
        let line = |name: &str, color, udp: bool| {
            let points = of_it.iter().filter_map(|it| {
                let (tcp, datagrams) = table::flatness(results, it);
                let ratio = if udp { datagrams } else { tcp }?;
                let Interval { median, low, high } = ratio;
                Some((f64::from(it.entries), median, Some((low, high))))
            });
            Line { name: name.to_owned(), color, points: points.collect() }
        };
        let lines = vec![line("TCP, one stream", CULVERT, false), line("UDP, 64 B", OTHER, true)];
        let counts = of_it.iter().map(|it| f64::from(it.entries));
        let highs = lines.iter().flat_map(|it| &it.points).filter_map(|(.., range)| *range);
        let (Some(x), Some(y)) = (Axis::log(counts), Axis::linear(highs.map(|(_, high)| high)))
        else {
            continue;
        };
        panels.push(Panel {
            heading: format!("{what}: throughput, 1 = with the fewest"),
            lines,
            x,
            x_name: format!("{what}, logarithmic"),
            y,
            y_unit: "×".into(),
        });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let words = Words {
        id: "filled".into(),
        title: "Throughput by number of entries in the tables".into(),
        text: said(&panels),
    };
    charts::lines(&words, &panels).map(Some)
}

/// Time and memory of a cold start by endpoints. None if there is nothing to draw.
pub(super) fn cold_start(results: &Results) -> Result<Option<String>> {
    type Value = fn(&ColdStart) -> f64;
    const TIMES: [(&str, RGBColor, Value); 3] = [
        ("start to maps", CULVERT, |it| it.exec_to_maps_ms),
        ("snapshot to maps", OTHER, |it| it.snapshot_to_maps_ms),
        ("raw range read", PLAIN, |it| it.raw_range_ms),
    ];
    const SIZES: [(&str, RGBColor, Value); 2] = [
        ("agent", CULVERT, |it| words::mebi(it.agent_rss_bytes)),
        ("entries of maps", OTHER, |it| words::mebi(it.kernel_bytes)),
    ];
    let mut sorted: Vec<&ColdStart> = results.cold_start.iter().collect();
    sorted.sort_by_key(|it| it.endpoints);
    let panel = |heading: &str, unit: &str, values: &[(&str, RGBColor, Value)]| {
        let line = |&(name, color, value): &(&str, RGBColor, Value)| Line {
            name: name.to_owned(),
            color,
            points: sorted
                .iter()
                .map(|it| (f64::from(it.endpoints), value(it), None))
                // A logarithmic axis has only values above zero.
                .filter(|(endpoints, value, _)| *endpoints > 0.0 && *value > 0.0)
                .collect(),
        };
        let lines: Vec<Line> = values.iter().map(line).collect();
        let points = || lines.iter().flat_map(|line| &line.points);
        let x = Axis::log(points().map(|(x, ..)| *x))?;
        let y = Axis::log(points().map(|(_, y, _)| *y))?;
        Some(Panel {
            heading: heading.to_owned(),
            lines,
            x,
            x_name: "endpoints of other hosts; both axes logarithmic".into(),
            y,
            y_unit: unit.to_owned(),
        })
    };
    let panels: Vec<Panel> = [panel("Time, ms", "", &TIMES), panel("Memory, MiB", "", &SIZES)]
        .into_iter()
        .flatten()
        .collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let words = Words {
        id: "cold".into(),
        title: "Cold start by number of endpoints".into(),
        text: said(&panels),
    };
    charts::lines(&words, &panels).map(Some)
}
