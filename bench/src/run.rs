//! The whole benchmark: rounds over all arms, and what is measured once.

mod alternate;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_common::abi::DEFAULT_FLOWS;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    arms::{Arm, Arms, Device, Load, Optional, Receive, Steady},
    attack, create, filled, listing,
    load::slices::{BLOCK, LEAD_IN, LENGTH},
    machine, programs, report,
    results::{Regime, Results, Settings, SliceSettings, VERSION},
    scale,
};

/// Options of the whole benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Three short rounds instead of ten: under three minutes
    #[arg(long)]
    quick: bool,
    /// Rounds; in each every arm is measured once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Time for which each arm is measured in a round, in seconds
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Only these measurements: tcp1, tcp4, udp64, udp1400, rr, crr, cpu, flows, programs,
    /// create, scale, attack, nat-ls, filled
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these arms, by their ids or the beginning of them
    #[arg(long, value_name = "ARM", value_delimiter = ',')]
    arms: Vec<String>,
    /// Measure docker-overlay and openvswitch, too, if installed; '--arms' measures them
    /// without it
    #[arg(long, conflicts_with = "arms")]
    optional: bool,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    show: Show,
}

/// Outputs of the figures besides the tables.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say what got slower since an earlier run, and exit with 1 if anything did
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Put the short table into README.md
    #[arg(long)]
    write: bool,
}

impl Show {
    /// The outputs, with the figures to `json`. Checks in advance that all of them can be written.
    pub(crate) fn output(&self, json: Option<PathBuf>) -> Result<report::Output> {
        let output = report::Output {
            json,
            html: self.html.clone(),
            compare: self.compare.clone(),
            write_readme: self.write.then(readme),
        };
        output.check()?;
        Ok(output)
    }
}

impl Options {
    fn settings(&self) -> Result<Settings> {
        let (rounds, seconds) = if self.quick { (3, 0.1) } else { (10, 0.35) };
        let seconds = self.seconds.unwrap_or(seconds);
        ensure!(
            (0.05..=60.0).contains(&seconds),
            "--seconds {seconds}: not a useful length: 0.05 to 60 is valid"
        );
        Ok(Settings {
            quick: self.quick,
            rounds: self.rounds.unwrap_or(rounds),
            seconds,
            receive_on_other_core: crate::load::cores() > 1,
            slices: Some(SliceSettings {
                stream_ms: LENGTH.as_secs_f64() * 1e3,
                round_trips: BLOCK,
                lead_in_ms: LEAD_IN.as_secs_f64() * 1e3,
            }),
        })
    }

    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == what)
    }
}

/// How often a measurement may fail before the run is given up.
const ATTEMPTS: u32 = 3;

/// Set when a signal asks us to end.
static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_signal: i32) {
    ENDED.store(true, Ordering::Relaxed);
}

/// Makes the ending signals set [`ENDED`]. The run then returns, and the drop of its values removes
/// everything that was made.
fn catch_signals() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

fn check_signals() -> Result<()> {
    if ENDED.load(Ordering::Relaxed) {
        bail!("interrupted: everything that was made is removed");
    }
    Ok(())
}

/// README.md of this work tree.
fn readme() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))
}

/// Runs the whole benchmark. Returns true if a figure got worse than in the earlier run.
pub(crate) fn main(options: &Options) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "needs root to make network namespaces");
    let settings = options.settings()?;
    let output = options.show.output(options.json.clone())?;
    catch_signals()?;
    let mut results = Results {
        version: VERSION,
        machine: machine::here()?,
        settings: settings.clone(),
        ..Results::default()
    };
    let measured = rounds(options, &settings, &mut results)
        .and_then(|()| once(options, &settings, &mut results));
    results.machine.load_after = machine::load()?;
    let Err(why) = measured else { return report::show(&results, &output) };
    // The figures of the finished stages are written as JSON. A page or README.md would show
    // them as a whole run, so these are not written.
    if results.has_any() {
        report::show(&results, &report::Output { json: output.json, ..Default::default() })?;
    }
    Err(why)
}

/// Measures `create`, `scale`, `attack` and `nat-ls`, which have hosts of their own.
fn once(options: &Options, settings: &Settings, results: &mut Results) -> Result<()> {
    if options.wants("create") {
        check_signals()?;
        results.create = Some(create::figures(if settings.quick { 20 } else { 100 })?);
    }
    if options.wants("scale") {
        let sizes: &[u32] =
            if settings.quick { &[1_000, 10_000] } else { &[1_000, 10_000, 100_000] };
        for &size in sizes {
            check_signals()?;
            results.cold_start.extend(scale::cold_start(&[size])?);
        }
    }
    if options.wants("attack") {
        check_signals()?;
        results.attack = Some(attack::measure(if settings.quick { 2_000 } else { 10_000 })?);
    }
    if options.wants("nat-ls") {
        check_signals()?;
        results.listings = listing::measure(DEFAULT_FLOWS)?;
    }
    Ok(())
}

/// Makes a measurement. If it fails, this is reported, and it is repeated: of ten thousand
/// connections one may time out on a busy machine.
fn attempt<T>(bar: &ProgressBar, mut measure: impl FnMut() -> Result<T>) -> Result<T> {
    let mut failures = 0;
    loop {
        match measure() {
            Ok(figures) => return Ok(figures),
            Err(error) => {
                check_signals()?;
                failures += 1;
                if failures == ATTEMPTS {
                    return Err(error);
                }
                bar.suspend(|| eprintln!("bench: {error:#}; once more"));
            }
        }
    }
}

/// Measures the arms one after the other in a round. Each round begins with another arm.
fn one_by_one(
    arms: &[&Arm],
    load: Steady,
    (round, time): (usize, Duration),
    regime: Regime,
    results: &mut Results,
    bar: &ProgressBar,
) -> Result<()> {
    let mut turns = arms.to_vec();
    turns.rotate_left(round % arms.len());
    for arm in turns {
        check_signals()?;
        let what = format!("{}: {}", arm.info.id, Load::Steady(load).name());
        bar.set_message(what.clone());
        let figures = attempt(bar, || arm.measure(load, time).with_context(|| what.clone()))?;
        results.add(&arm.info.id, regime, &figures);
    }
    Ok(())
}

/// All arms, round after round.
fn rounds(options: &Options, settings: &Settings, results: &mut Results) -> Result<()> {
    let arms = Arms::make(&[Device::Chosen], &Optional::wanted(&options.arms, options.optional)?)?;
    let chosen: Vec<_> = arms
        .all
        .iter()
        .filter(|arm| {
            options.arms.is_empty()
                || options.arms.iter().any(|wanted| arm.info.id.starts_with(wanted.as_str()))
        })
        .collect();
    results.arms = chosen.iter().map(|arm| arm.info.clone()).collect();
    let time = Duration::from_secs_f64(settings.seconds);
    let receive =
        if settings.receive_on_other_core { Receive::OtherCore } else { Receive::SendersCore };
    let loads: Vec<_> = Load::ALL.into_iter().filter(|load| options.wants(&load.name())).collect();
    let of = |regime, load: Load| {
        // New flows are measured in one regime: it has no effect on the first frame of a flow.
        let regime_matters = load != Load::Steady(Steady::NewFlows) || regime == Regime::Intact;
        chosen.iter().filter(move |arm| regime_matters && arm.has(load))
    };
    let turns: usize = Regime::ALL
        .iter()
        .flat_map(|&regime| loads.iter().map(move |&load| of(regime, load).count()))
        .sum();
    let bar = ProgressBar::new(turns as u64 * u64::from(settings.rounds));
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {percent}% {eta} left  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    for round in 0..settings.rounds as usize {
        for regime in Regime::ALL {
            arms.set(regime, receive)?;
            for &load in &loads {
                let chosen: Vec<&Arm> = of(regime, load).copied().collect();
                if chosen.is_empty() {
                    continue;
                }
                check_signals()?;
                let name = load.name();
                bar.set_message(name.clone());
                match load {
                    Load::Sliced(kind) => attempt(&bar, || {
                        let slot = (round, time);
                        alternate::measure(&chosen, kind, slot, regime, results, check_signals)
                            .with_context(|| name.clone())
                    })?,
                    Load::Steady(load) => {
                        one_by_one(&chosen, load, (round, time), regime, results, &bar)?;
                    }
                }
                bar.inc(chosen.len() as u64);
            }
        }
    }
    bar.finish_and_clear();
    if options.wants("programs") {
        arms.set(Regime::Intact, receive)?;
        results.programs = programs::costs(&arms.culvert, &arms.all, time)?;
    }
    if options.wants("filled") {
        check_signals()?;
        arms.set(Regime::Intact, receive)?;
        results.filled = filled::measure(&arms, 3, time)?;
    }
    Ok(())
}
