//! The options.

use std::path::PathBuf;

use clap::{ValueEnum, builder::PossibleValue};

use crate::arms::Unit;

/// Options of `exact`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; in each every arm is measured once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(super) rounds: u32,
    /// Only these units of work, the programs, or the agent
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub(super) only: Vec<Part>,
    /// Only these arms besides the host, by their ids or the beginning of them
    #[arg(long, value_name = "ARM", value_delimiter = ',')]
    pub(super) arms: Vec<String>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Exit with 1 if a figure of Culvert's has over 1 % more instructions than in an earlier run
    #[arg(long, value_name = "OLD.json")]
    pub(super) compare: Option<PathBuf>,
    /// Instead of figures, print where the instructions of an arm go, by call chain
    #[arg(long, value_name = "ARM", conflicts_with_all = ["json", "compare", "arms", "rounds"])]
    pub(super) profile: Option<String>,
    /// Only check the options
    #[arg(long, hide = true)]
    pub(super) check: bool,
    /// Show these figures, which the emulated machine has printed
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) figures: Option<PathBuf>,
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
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
    /// Whether the run has the part `part`.
    pub(super) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The units that `--only` names; empty if it names none.
    pub(super) fn named_units(&self) -> Vec<Unit> {
        let unit = |part: &Part| match part {
            Part::Unit(unit) => Some(*unit),
            Part::Programs | Part::Agent => None,
        };
        self.only.iter().filter_map(unit).collect()
    }
}
