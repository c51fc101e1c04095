//! The tables of a run.

use super::grid::{Cell, Grid, Tone};
use super::targets::{self, Outcome};
use super::words::{self, NONE, ROWS, Row};
use crate::results::{ArmInfo, Filled, HOST, HOST_AGAIN, Metric, Regime, Results, Slices};
use crate::stats::{self, Interval};

/// Level of detail of an [`article`] table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    /// Few words for the path and stable names for the arms, to fit a terminal.
    Terminal,
    /// Full texts, for a page.
    Page,
}

/// All tables, for a terminal.
pub(crate) fn terminal(results: &Results) -> String {
    let mut grids = vec![article(results, Form::Terminal), metrics(results, Form::Terminal)];
    grids.extend(details(results));
    grids.extend([noise(results), slices(results), targets(results)]);
    let shown: Vec<String> =
        grids.iter().filter(|grid| !grid.is_empty()).map(Grid::terminal).collect();
    let circumstances = words::circumstances(results);
    format!("{circumstances}; Culvert {}\n\n{}", results.machine.culvert, shown.join("\n"))
}

/// Figures that are not measured for each arm.
pub(super) fn details(results: &Results) -> [Grid; 6] {
    [
        programs(results),
        create(results),
        cold_start(results),
        filled(results),
        attack(results),
        listings(results),
    ]
}

/// The article's table: rows A to F of one TCP stream. In a terminal, arms without a row follow,
/// such as those with one NAT: no other table shows them there.
pub(super) fn article(results: &Results, form: Form) -> Grid {
    let mut grid = Grid::new(
        "TCP, one stream, as in the article's table",
        &format!(
            "Medians, and medians of the ratios to C {} with their 95 % intervals.",
            words::pairs(results)
        ),
        &[
            "",
            "path",
            "arm",
            ">wire-like, Gbit/s",
            ">ratio to C",
            ">intact, Gbit/s",
            ">ratio to C",
            ">article",
        ],
    );
    for row in ROWS {
        let arms: Vec<_> = results.arms.iter().filter(|arm| arm.row == Some(row.letter)).collect();
        if arms.is_empty() {
            grid.row(article_row(results, form, Some(&row), None));
        }
        for (index, arm) in arms.into_iter().enumerate() {
            grid.row(article_row(results, form, (index == 0).then_some(&row), Some(arm)));
        }
    }
    if form == Form::Terminal {
        let further = |arm: &&ArmInfo| arm.row.is_none() && arm.id != HOST_AGAIN;
        for (index, arm) in results.arms.iter().filter(further).enumerate() {
            let row = (index == 0).then_some(&words::FURTHER);
            grid.row(article_row(results, form, row, Some(arm)));
        }
    }
    grid
}

/// The table's row of one arm. `row` is the article's row if the arm is the first of it.
fn article_row(
    results: &Results,
    form: Form,
    row: Option<&Row>,
    arm: Option<&ArmInfo>,
) -> Vec<Cell> {
    let path = |row: &Row| if form == Form::Terminal { row.brief } else { row.path };
    let name = arm.map_or(NONE, |arm| match form {
        Form::Terminal => &arm.id,
        Form::Page => &arm.title,
    });
    let mut cells = vec![
        row.map_or_else(String::new, |row| row.letter.to_string()).trim().into(),
        row.map_or("", path).into(),
        name.into(),
    ];
    for regime in Regime::ALL {
        let id = arm.map_or("", |arm| arm.id.as_str());
        let median = results.median(id, regime, Metric::TcpOne);
        let ratio = results.ratio(id, HOST, regime, Metric::TcpOne);
        cells.push(words::figure(Metric::TcpOne, median).into());
        cells.push(Cell::new(words::interval(ratio, 2), Tone::Strong));
    }
    cells.push(row.map_or("", |row| row.ratio).into());
    cells
}

/// Every metric of every arm. A page's table omits the single TCP stream, which [`article`] has.
pub(super) fn metrics(results: &Results, form: Form) -> Grid {
    let mut grid = Grid::new(
        "All metrics",
        "Medians, and medians of the ratios to the host with their 95 % intervals.",
        &["metric", "arm", ">wire-like", ">to the host", ">intact", ">to the host"],
    );
    let shown = |metric: &Metric| form == Form::Page || *metric != Metric::TcpOne;
    for metric in Metric::ALL.into_iter().filter(shown) {
        for (index, arm) in words::arms_of(results, metric).into_iter().enumerate() {
            let heading = if index == 0 { words::heading(metric) } else { String::new() };
            let name = if form == Form::Terminal { &arm.id } else { &arm.title };
            let mut cells = vec![heading.into(), name.as_str().into()];
            for regime in Regime::ALL {
                let median = results.median(&arm.id, regime, metric);
                let ratio = results.ratio(&arm.id, HOST, regime, metric);
                cells.push(words::figure(metric, median).into());
                cells.push(words::interval(ratio, 2).into());
            }
            grid.row(cells);
        }
    }
    grid
}

/// Cost of each program.
fn programs(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "BPF programs",
        "Time per run by the kernel's statistics, whose own cost is in it; and alone, on one \
         such packet after the other, without traffic (PROG_TEST_RUN).",
        &[
            "program",
            "traffic",
            ">ns a run",
            ">ns alone",
            ">runs",
            ">verified instructions",
            ">JITed bytes",
        ],
    );
    for it in &results.programs {
        grid.row([
            it.program.as_str().into(),
            it.traffic.as_str().into(),
            words::number(it.ns_per_run, 0).into(),
            words::number(it.test_run_ns, 0).into(),
            words::whole(it.runs).into(),
            words::whole(it.verified_instructions).into(),
            words::whole(it.jited_bytes).into(),
        ]);
    }
    grid
}

/// Create → reachable.
fn create(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Create → reachable",
        "From the request for an endpoint to its first packet from another host.",
        &[">endpoints", ">p50, ms", ">p99, ms"],
    );
    if let Some(it) = results.create {
        grid.row([
            words::whole(it.endpoints as u64).into(),
            words::number(Some(it.p50_ms), 1).into(),
            words::number(Some(it.p99_ms), 1).into(),
        ]);
    }
    grid
}

/// Cold start by number of endpoints.
fn cold_start(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Cold start",
        "An agent starts with so many endpoints of other hosts in the store; raw range: a \
         range read of the same keys, nothing parsed.",
        &[
            ">endpoints",
            ">raw range, ms",
            ">snapshot to maps, ms",
            ">/ raw range",
            ">start to maps, ms",
            ">maps, MiB",
            ">agent, MiB",
        ],
    );
    for it in &results.cold_start {
        let slowdown = (it.raw_range_ms > 0.0).then(|| it.snapshot_to_maps_ms / it.raw_range_ms);
        grid.row([
            words::whole(it.endpoints.into()).into(),
            words::amount(it.raw_range_ms).into(),
            words::amount(it.snapshot_to_maps_ms).into(),
            words::number(slowdown, 2).into(),
            words::amount(it.exec_to_maps_ms).into(),
            words::number(Some(words::mebi(it.kernel_bytes)), 1).into(),
            words::number(Some(words::mebi(it.agent_rss_bytes)), 1).into(),
        ]);
    }
    grid
}

/// Throughput by number of entries.
fn filled(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Filled tables",
        "The cost has to stay flat: ratios to the fewest entries within a round, with their \
         95 % intervals.",
        &["table", ">entries", ">TCP, Gbit/s", ">to fewest", ">UDP 64 B, kpps", ">to fewest"],
    );
    let median = |samples: &[f64]| (!samples.is_empty()).then(|| stats::median(samples));
    for it in &results.filled {
        let (tcp, udp) = flatness(results, it);
        grid.row([
            it.what.as_str().into(),
            words::whole(it.entries.into()).into(),
            words::figure(Metric::TcpOne, median(&it.tcp)).into(),
            words::interval(tcp, 2).into(),
            words::figure(Metric::Udp64, median(&it.udp64)).into(),
            words::interval(udp, 2).into(),
        ]);
    }
    grid
}

/// Connections while a container of the same host attacks.
fn attack(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Connections during an attack",
        "New TCP connections of a container, from connect to the end, while another container of \
         the host begins flows as fast as a core can. Wanted: 99 % made, and a p99 of at most 5 \
         times the quiet one.",
        &["", ">tried", ">made", ">p50, µs", ">p99, µs", ">p99 / quiet", ">attack, packets/s"],
    );
    let Some(it) = results.attack else { return grid };
    let rows = [
        ("quiet", it.quiet, None, NONE.to_owned()),
        ("attacked", it.attacked, it.ratio(), words::whole(it.packets_per_second as u64)),
    ];
    for (name, waits, ratio, packets) in rows {
        grid.row([
            name.into(),
            words::whole(waits.tried as u64).into(),
            words::percent(waits.made()).into(),
            words::number(Some(waits.p50_us), 0).into(),
            words::number(Some(waits.p99_us), 0).into(),
            words::number(ratio, 2).into(),
            packets.into(),
        ]);
    }
    grid
}

/// Listings of a full table of flows.
fn listings(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "culvert nat ls of a full table",
        "Time until the last row has been read, largest memory of the command, and memory of the \
         agent before and how much it grows.",
        &["format", ">flows", ">s", ">command, MiB", ">agent, MiB", ">agent grows, MiB"],
    );
    for it in &results.listings {
        grid.row([
            it.format.as_str().into(),
            words::whole(it.flows).into(),
            words::number(Some(it.seconds), 2).into(),
            words::number(Some(words::mebi(it.cli_peak_bytes)), 1).into(),
            words::number(Some(words::mebi(it.agent_bytes)), 1).into(),
            words::number(Some(words::mebi(it.agent_growth_bytes)), 1).into(),
        ]);
    }
    grid
}

/// TCP and UDP throughput of `it`, as ratios to the throughput with the fewest entries.
pub(super) fn flatness(results: &Results, it: &Filled) -> (Option<Interval>, Option<Interval>) {
    let same = results.filled.iter().filter(|other| other.what == it.what);
    let Some(fewest) = same.min_by_key(|other| other.entries) else {
        return (None, None);
    };
    (stats::paired_ratio(&it.tcp, &fewest.tcp), stats::paired_ratio(&it.udp64, &fewest.udp64))
}

/// The smallest difference claimed of each metric.
pub(super) fn noise(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Smallest difference claimed (A/A)",
        "The host measured twice in each round, as if it were two arms: how far the ratio of \
         the two is, or may be, from one.",
        &["metric", ">wire-like", ">intact"],
    );
    for metric in Metric::ALL {
        let noise = Regime::ALL.map(|regime| results.noise(regime, metric));
        if noise.iter().any(Option::is_some) {
            let mut cells = vec![metric.show().0.into()];
            cells.extend(noise.map(|share| Cell::from(words::percent(share))));
            grid.row(cells);
        }
    }
    grid
}

/// The slices of each load, and how many of them do not count.
pub(super) fn slices(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Slices thrown away",
        "Steal: the hypervisor took away more time than is usual in the slices of the arm; \
         displaced: the load's threads had more involuntary context switches.",
        &["load", "regime", ">slices", ">steal", ">displaced", ">thrown away"],
    );
    let mut loads: Vec<&str> = Vec::new();
    for it in &results.slices {
        if !loads.contains(&it.load.as_str()) {
            loads.push(&it.load);
        }
    }
    for load in loads {
        for regime in Regime::ALL {
            let mut sum = Slices::default();
            for it in results.slices.iter().filter(|it| it.load == load && it.regime == regime) {
                sum += it.count;
            }
            if sum.slices > 0 {
                let share = sum.thrown as f64 / sum.slices as f64;
                grid.row([
                    load.into(),
                    regime.name().into(),
                    words::whole(sum.slices).into(),
                    words::whole(sum.steal).into(),
                    words::whole(sum.switches).into(),
                    words::percent(Some(share)).into(),
                ]);
            }
        }
    }
    grid
}

/// The targets and their results.
pub(super) fn targets(results: &Results) -> Grid {
    let mut grid = Grid::new(
        "Targets",
        "Straddles: the target lies within the 95 % interval. A/A: the smallest difference \
         claimed of the metric.",
        &["figure", ">measured", ">target", "", ">A/A"],
    );
    for it in targets::all(results) {
        let tone = match it.outcome() {
            Outcome::Met => Tone::Good,
            Outcome::Missed => Tone::Bad,
            Outcome::MetUncertain | Outcome::MissedUncertain => Tone::Unsure,
            Outcome::NotMeasured => Tone::Plain,
        };
        grid.row([
            it.name.as_str().into(),
            it.measured().into(),
            it.wanted().into(),
            Cell::new(it.outcome().name(), tone),
            it.noise.map_or_else(String::new, |share| words::percent(Some(share))).into(),
        ]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;
    use crate::results::{FlowListing, UnderAttack, Waits};

    #[test]
    fn the_terminal_shows_all_of_it() {
        insta::assert_snapshot!(terminal(&fixture::results()));
    }

    #[test]
    fn a_run_of_two_arms_has_all_rows_of_the_article() {
        let mut results = fixture::results();
        results.arms.retain(|arm| ["host", "culvert-overlay"].contains(&arm.id.as_str()));
        results
            .series
            .retain(|series| series.regime == Regime::Intact && series.metric == Metric::TcpOne);
        insta::assert_snapshot!(article(&results, Form::Terminal).terminal());
        assert!(!terminal(&results).contains("All metrics"));
    }

    #[test]
    fn an_attack_and_listings_are_shown_if_they_were_measured() {
        let mut results = Results::default();
        assert!(!terminal(&results).contains("attack"));
        let quiet = Waits { tried: 1_000, failed: 0, p50_us: 60.0, p99_us: 100.0 };
        let attacked = Waits { failed: 5, p99_us: 250.0, ..quiet };
        results.attack = Some(UnderAttack { quiet, attacked, packets_per_second: 312_000.0 });
        results.listings.push(FlowListing {
            format: "json".to_owned(),
            flows: 262_144,
            seconds: 1.5,
            cli_peak_bytes: 20 << 20,
            agent_bytes: 30 << 20,
            agent_growth_bytes: 1 << 20,
        });
        let text = terminal(&results);
        for shown in ["99.5 %", "2.50", "312,000", "262,144", "1.50", "20.0", "30.0"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
    }

    #[test]
    fn nothing_measured_is_no_error() {
        let text = terminal(&Results::default());
        assert!(text.contains("not measured") && !text.contains("NaN"), "{text}");
    }
}
