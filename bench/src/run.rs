//! The whole benchmark: rounds over all arms, and what is measured once.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    arms::{Arm, Arms, Device, Load, Optional, Receive},
    create, filled, machine, programs, report,
    results::{Metric, Regime, Results, Settings, VERSION},
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
    /// Length of one measurement, in seconds
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Only these measurements: tcp1, tcp4, udp64, udp1400, rr, crr, cpu, flows, programs,
    /// create, scale, filled
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

/// What is to be made of the figures besides the tables.
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
    /// The same, and the figures to `json`; nothing of it is done that cannot be finished.
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

/// What was made goes when the values that hold it do, so signals only ask.
fn catch_signals() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
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

/// Runs it. True if something got slower than it was.
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
    // What took a quarter of an hour is not lost to the stage that failed, nor is it passed
    // off as a whole run.
    if results.has_any() {
        report::show(&results, &report::Output { json: output.json, ..Default::default() })?;
    }
    Err(why)
}

/// What is measured on hosts of its own.
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
    Ok(())
}

/// Measures one arm. What fails is measured again, and said: of ten thousand connections
/// one may time out on a machine that does something else.
fn measure(
    arm: &Arm,
    load: Load,
    time: Duration,
    bar: &ProgressBar,
) -> Result<BTreeMap<Metric, f64>> {
    let mut failures = 0;
    loop {
        match arm.measure(load, time) {
            Ok(figures) => return Ok(figures),
            Err(error) => {
                let error = error.context(format!("{}: {}", arm.info.id, load.name()));
                failures += 1;
                if failures == ATTEMPTS {
                    return Err(error);
                }
                bar.suspend(|| eprintln!("bench: {error:#}; once more"));
            }
        }
    }
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
        // How frames cross the underlay is nothing to a frame that is the first of its flow.
        let regime_matters = load != Load::NewFlows || regime == Regime::Intact;
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
                let ways: Vec<_> = of(regime, load).collect();
                for turn in 0..ways.len() {
                    check_signals()?;
                    // Each round begins with another arm.
                    let Some(arm) = ways.get((turn + round) % ways.len()) else { continue };
                    bar.set_message(format!("{}: {}", arm.info.id, load.name()));
                    let figures = measure(arm, load, time, &bar)?;
                    results.add(&arm.info.id, regime, &figures);
                    bar.inc(1);
                }
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
