//! Instructions per unit of work, counted on the clock of an emulated machine.
//!
//! QEMU runs the machine with `-icount`: its clock advances by a fixed time with each instruction,
//! the kernel's included, and one processor runs everything. So a figure does not depend on what
//! else the host does. `cargo xtask bench --exact` runs this program twice: within the machine to
//! measure, and outside to show what was measured.

mod compare;
mod control;
mod figures;
mod measure;
mod profile;
mod steps;
mod table;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use self::figures::Figures;
use crate::arms::Unit;
use clap::{ValueEnum, builder::PossibleValue};

/// Time of an instruction on the machine's clock, ns; set within the machine.
const NS_PER_INSTRUCTION: &str = "CULVERT_NS_PER_INSTRUCTION";
/// Beginning of the line with the figures, on the machine's console.
const FIGURES: &str = "culvert-figures: ";
/// Largest difference of the host from itself, as a share, with which figures are accepted.
const MOST_A_A: f64 = 0.005;
/// Growth of a figure, as a share, that is a regression.
const MOST_GROWTH: f64 = 0.01;

/// Options of `exact`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; in each every arm is measured once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these units of work, the programs, or the agent
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these arms besides the host, by their ids or the beginning of them
    #[arg(long, value_name = "ARM", value_delimiter = ',')]
    arms: Vec<String>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Exit with 1 if a figure of Culvert's has over 1 % more instructions than in an earlier run
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Instead of figures, print where the instructions of an arm go, by call chain
    #[arg(long, value_name = "ARM", conflicts_with_all = ["json", "compare", "arms"])]
    profile: Option<String>,
    /// Only check the options
    #[arg(long, hide = true)]
    check: bool,
    /// Show these figures, which the emulated machine has printed
    #[arg(long, value_name = "FILE", hide = true)]
    figures: Option<PathBuf>,
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Units of work.
    Unit(Unit),
    /// The programs alone.
    Programs,
    /// The agent.
    Agent,
}

impl ValueEnum for Part {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Unit(Unit::RoundTrip),
            Self::Unit(Unit::Connection),
            Self::Unit(Unit::Tcp64k),
            Self::Unit(Unit::Tcp64kWire),
            Self::Unit(Unit::Udp64),
            Self::Unit(Unit::NewFlow),
            Self::Programs,
            Self::Agent,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Unit(unit) => unit.to_possible_value(),
            Self::Programs => Some(PossibleValue::new("programs")),
            Self::Agent => Some(PossibleValue::new("agent")),
        }
    }
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The units that are asked for; none if none is named.
    fn named_units(&self) -> Vec<Unit> {
        let unit = |part: &Part| match part {
            Part::Unit(unit) => Some(*unit),
            Part::Programs | Part::Agent => None,
        };
        self.only.iter().filter_map(unit).collect()
    }
}

/// Measures within the emulated machine, or shows what was measured. True if the figures are not
/// accepted, or got worse.
pub(crate) fn main(args: &Args) -> Result<bool> {
    // The machine does not see every file of its host.
    let old = || args.compare.as_deref().map(Figures::load).transpose();
    if args.check {
        return old().map(|_| false);
    }
    if let Some(path) = &args.figures {
        return show(args, &Figures::load(path)?, old()?.as_ref());
    }
    let ns = ns_per_instruction()?;
    if let Some(arm) = &args.profile {
        return profile::main(arm, &args.named_units()).map(|()| false);
    }
    let figures = measure::main(args, ns)?;
    println!("{FIGURES}{}", serde_json::to_string(&figures)?);
    Ok(false)
}

fn ns_per_instruction() -> Result<f64> {
    let Ok(text) = std::env::var(NS_PER_INSTRUCTION) else {
        bail!("exact figures are measured in an emulated machine: run 'cargo xtask bench --exact'");
    };
    let ns = text.parse().ok().filter(|ns: &f64| *ns > 0.0);
    ensure!(ns.is_some(), "{NS_PER_INSTRUCTION}={text}: not a time in ns");
    Ok(ns.unwrap_or(1.0))
}

fn show(args: &Args, figures: &Figures, old: Option<&Figures>) -> Result<bool> {
    println!("{}", table::terminal(figures));
    if let Some(path) = &args.json {
        figures.save(path)?;
    }
    let mut refused = false;
    for (unit, by) in figures.host_differences() {
        if by > MOST_A_A {
            refused = true;
            eprintln!(
                "bench: {}: the host differs from itself by {:.2} %: at most {:.1} % is accepted",
                unit.heading(),
                by * 100.0,
                MOST_A_A * 100.0
            );
        }
    }
    let Some(old) = old else { return Ok(refused) };
    let comparison = compare::compare(old, figures);
    println!("{comparison}");
    Ok(refused || comparison.is_worse())
}
