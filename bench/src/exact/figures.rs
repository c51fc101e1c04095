//! The figures of a run, and their JSON.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    arms::Unit,
    report,
    results::{ArmInfo, HOST, HOST_AGAIN},
    stats::median,
};

/// Version of the JSON format.
const VERSION: u32 = 1;

/// All that a run has counted.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    version: u32,
    /// UTC, as `2026-11-28`.
    pub(crate) date: String,
    /// Version of Culvert, and commit if it is known.
    pub(crate) culvert: String,
    /// Release of the emulated machine's Linux.
    pub(crate) kernel: String,
    /// Version of the emulator.
    pub(crate) emulator: String,
    /// Arms in the order of the report.
    pub(crate) arms: Vec<ArmInfo>,
    /// Cost of units of work.
    pub(crate) units: Vec<UnitCost>,
    /// Cost of the programs alone.
    pub(crate) programs: Vec<Cost>,
    /// Instructions and helper calls of the programs, step by step.
    pub(crate) steps: Vec<Steps>,
    /// Cost of the agent's work.
    pub(crate) agent: Vec<Cost>,
}

/// Instructions per unit of work of an arm.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct UnitCost {
    /// [`ArmInfo::id`].
    pub(crate) arm: String,
    /// The unit.
    pub(crate) unit: Unit,
    /// Instructions per unit, one figure a round, in the order of the rounds: the mean of the
    /// middle half of the units of that round.
    pub(crate) rounds: Vec<f64>,
}

/// Instructions of a program alone, or of the agent's work.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Cost {
    /// Name of the figure, such as `from_host: own container, UDP 64 B`.
    pub(crate) what: String,
    /// Instructions, one figure a round.
    pub(crate) rounds: Vec<f64>,
}

/// Instructions and helper calls of a program on a packet of a flow that it knows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Steps {
    /// Program, path and traffic.
    pub(crate) what: String,
    /// Instructions of the program's machine code: about 1.2 times the BPF instructions, since a
    /// conditional jump is two.
    pub(crate) own: u64,
    /// Instructions of the helpers.
    pub(crate) helpers: u64,
    /// Calls by name of the helper.
    pub(crate) calls: BTreeMap<String, u64>,
}

impl Unit {
    /// Name for the report.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::RoundTrip => "TCP round trip",
            Self::Connection => "TCP connection",
            Self::Tcp64k => "64 KB of TCP, intact",
            Self::Tcp64kWire => "64 KB of TCP, wire-like",
            Self::Udp64 => "UDP, 64 B",
            Self::NewFlow => "new flow",
        }
    }
}

impl Figures {
    /// Makes a value without figures, of this machine.
    pub(crate) fn new(machine: crate::results::Machine, emulator: String) -> Self {
        Self {
            version: VERSION,
            date: machine.date,
            culvert: machine.culvert,
            kernel: machine.kernel,
            emulator,
            arms: Vec::new(),
            units: Vec::new(),
            programs: Vec::new(),
            steps: Vec::new(),
            agent: Vec::new(),
        }
    }

    /// Reads the JSON that [`Self::save`] wrote.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is not the JSON of an exact run of this version.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
        let figures: Self = serde_json::from_str(&text).with_context(|| {
            format!("{name}: is not what 'cargo xtask bench --exact --json' writes")
        })?;
        if figures.version != VERSION {
            bail!(
                "{name}: is of version {}, this is version {VERSION}: measure it again",
                figures.version
            );
        }
        Ok(figures)
    }

    /// Writes the figures to a file. If this fails, the file keeps its contents.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        report::save(path, self)
    }

    /// Adds one round's figure.
    pub(crate) fn add(&mut self, arm: &str, unit: Unit, instructions: f64) {
        match self.units.iter_mut().find(|it| it.arm == arm && it.unit == unit) {
            Some(known) => known.rounds.push(instructions),
            None => {
                self.units.push(UnitCost { arm: arm.to_owned(), unit, rounds: vec![instructions] });
            }
        }
    }

    /// The cost of a unit of an arm: the median of the rounds.
    pub(crate) fn cost(&self, arm: &str, unit: Unit) -> Option<f64> {
        let found = self.units.iter().find(|it| it.arm == arm && it.unit == unit)?;
        Some(median(&found.rounds))
    }

    /// The cost of a unit of an arm minus that of the host.
    pub(crate) fn above_host(&self, arm: &str, unit: Unit) -> Option<f64> {
        Some(self.cost(arm, unit)? - self.cost(HOST, unit)?)
    }

    /// How much the host differs from itself (A/A), as a share, for each unit.
    pub(crate) fn host_differences(&self) -> Vec<(Unit, f64)> {
        let of = |unit| {
            let (host, again) = (self.cost(HOST, unit)?, self.cost(HOST_AGAIN, unit)?);
            Some((unit, (again / host - 1.0).abs()))
        };
        Unit::ALL.into_iter().filter_map(of).collect()
    }

    /// The largest difference of a figure of `unit` between two rounds, as a share.
    pub(crate) fn spread(&self, unit: Unit) -> f64 {
        let of = self.units.iter().filter(|it| it.unit == unit);
        of.map(|it| spread(&it.rounds)).fold(0.0, f64::max)
    }
}

/// The difference between the largest and the least figure, as a share of the median.
pub(crate) fn spread(rounds: &[f64]) -> f64 {
    let most = rounds.iter().copied().fold(f64::MIN, f64::max);
    let least = rounds.iter().copied().fold(f64::MAX, f64::min);
    if rounds.is_empty() { 0.0 } else { (most - least) / median(rounds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Machine;

    #[test]
    fn costs_are_medians_and_the_host_is_compared_with_itself() {
        let mut figures = Figures::new(Machine::default(), String::new());
        for cost in [100.0, 102.0, 101.0] {
            figures.add(HOST, Unit::RoundTrip, cost);
            figures.add(HOST_AGAIN, Unit::RoundTrip, cost + 1.01);
            figures.add("culvert-overlay-veth", Unit::RoundTrip, cost * 2.0);
        }
        assert_eq!(figures.above_host("culvert-overlay-veth", Unit::RoundTrip), Some(101.0));
        let [(Unit::RoundTrip, by)] = figures.host_differences()[..] else {
            panic!("{:?}", figures.host_differences());
        };
        assert!((by - 0.01).abs() < 1e-9, "{by}");
        assert!((figures.spread(Unit::RoundTrip) - 2.0 / 101.0).abs() < 1e-9);
        assert_eq!(figures.cost(HOST, Unit::Connection), None);
    }

    #[test]
    fn what_is_saved_is_what_is_loaded_and_garbage_is_refused_in_a_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("exact.json");
        let mut figures = Figures::new(Machine::default(), "QEMU".to_owned());
        figures.add(HOST, Unit::Tcp64kWire, 1.5);
        figures.save(&path).expect("saved");
        let back = Figures::load(&path).expect("loaded");
        assert_eq!(format!("{back:?}"), format!("{figures:?}"));
        for text in ["hello", "{\"version\": 2}", ""] {
            fs::write(&path, text).expect("written");
            let error = format!("{:#}", Figures::load(&path).expect_err("refused"));
            assert!(error.contains("is not what") && !error.contains('\n'), "{error}");
        }
    }
}
