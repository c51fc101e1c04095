//! Figures that grew since an earlier run.

use std::fmt;

use super::{
    figures::{Cost, Figures, Steps, spread},
    table::instructions,
};
use crate::{
    report::words::{Owner, owner},
    stats::median,
};

/// Growth of a figure, as a share, that is accepted.
const MOST_GROWTH: f64 = 0.01;

/// One figure in two runs.
#[derive(Clone, Debug)]
struct InstructionChange {
    what: String,
    old: f64,
    new: f64,
    /// Growth as a share that is accepted: [`MOST_GROWTH`], or the largest difference between two
    /// rounds of one of the runs.
    accepted: f64,
}

impl InstructionChange {
    /// Growth as a share of the old figure.
    fn by(&self) -> f64 {
        self.new / self.old - 1.0
    }
}

/// Two runs side by side.
#[derive(Clone, Debug, Default)]
pub(super) struct InstructionComparison {
    heading: String,
    /// Differences of the kernel and the emulator, which may cause differences of figures.
    notes: Vec<String>,
    /// Culvert's figures that grew by more than is accepted.
    more: Vec<InstructionChange>,
    /// Culvert's figures that shrank by more than is accepted.
    fewer: Vec<InstructionChange>,
    /// Number of figures of both runs that changed by no more than is accepted.
    same: usize,
    /// Figures of Culvert's that the new run does not have.
    gone: Vec<String>,
}

/// Compares two runs. Arms of other systems are not compared.
pub(super) fn compare(old: &Figures, new: &Figures) -> InstructionComparison {
    let run = |it: &Figures| format!("{} (Culvert {})", it.date, it.culvert);
    let mut found = InstructionComparison {
        heading: format!("{} against {}", run(new), run(old)),
        ..InstructionComparison::default()
    };
    for (what, was, is) in
        [("Linux", &old.kernel, &new.kernel), ("emulator", &old.emulator, &new.emulator)]
    {
        if was != is {
            found.notes.push(format!("{what}: was {was}, is {is}"));
        }
    }
    for was in old.units.iter().filter(|it| owner(&it.arm) == Owner::Culvert) {
        let what = format!("{}: {}", was.arm, was.unit.heading());
        let is = new.units.iter().find(|it| it.arm == was.arm && it.unit == was.unit);
        found.figure(what, &was.rounds, is.map(|it| it.rounds.as_slice()));
    }
    for (old, new) in [(&old.programs, &new.programs), (&old.agent, &new.agent)] {
        for Cost { what, rounds } in old {
            let is = new.iter().find(|it| it.what == *what).map(|it| it.rounds.as_slice());
            found.figure(what.clone(), rounds, is);
        }
    }
    for was in &old.steps {
        let is = new.steps.iter().find(|it| it.what == was.what);
        let what = |of: &str| format!("{}: {of}", was.what);
        for (name, of) in [
            ("own instructions", own as fn(&Steps) -> [f64; 1]),
            ("calls of helpers", calls as fn(&Steps) -> [f64; 1]),
        ] {
            let is = is.map(of);
            found.figure(what(name), &of(was), is.as_ref().map(|it| it.as_slice()));
        }
    }
    found.more.sort_by(|a, b| b.by().total_cmp(&a.by()));
    found.fewer.sort_by(|a, b| a.by().total_cmp(&b.by()));
    found
}

/// Instructions of a program itself.
fn own(steps: &Steps) -> [f64; 1] {
    [steps.own as f64]
}

/// Calls of helpers.
fn calls(steps: &Steps) -> [f64; 1] {
    [steps.calls.values().sum::<u64>() as f64]
}

impl InstructionComparison {
    /// Whether a figure of Culvert's grew by more than is accepted, or was not measured.
    pub(super) fn is_worse(&self) -> bool {
        !self.more.is_empty() || !self.gone.is_empty()
    }

    fn figure(&mut self, what: String, old: &[f64], new: Option<&[f64]>) {
        let Some(new) = new else {
            self.gone.push(what);
            return;
        };
        let accepted = MOST_GROWTH.max(spread(old)).max(spread(new));
        let (old, new) = (median(old), median(new));
        let change = InstructionChange { what, old, new, accepted };
        // The comparison is in whole instructions, so that a growth of exactly 1 % is accepted.
        let most = (old * accepted).round().max(1.0);
        match new - old {
            more if more > most => self.more.push(change),
            fewer if fewer < -most => self.fewer.push(change),
            _ => self.same += 1,
        }
    }
}

impl fmt::Display for InstructionComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        for (title, changes) in [("more instructions", &self.more), ("fewer", &self.fewer)] {
            for change in changes {
                let (old, new) = (instructions(change.old), instructions(change.new));
                let by = change.by() * 100.0;
                let accepted = change.accepted * 100.0;
                writeln!(
                    f,
                    "{title}: {}: {old} to {new} ({by:+.1} %, accepted {accepted:.1} %)",
                    change.what
                )?;
            }
        }
        for what in &self.gone {
            writeln!(f, "not measured: {what}")?;
        }
        if self.is_worse() && !self.notes.is_empty() {
            writeln!(
                f,
                "the machine differs, which may be the cause: compare with a baseline that \
                 'cargo xtask bench --exact --json FILE' of the old commit writes here"
            )?;
        }
        write!(f, "{} figures differ by no more than is accepted", self.same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arms::Unit, results::Machine};

    /// A run in which Culvert's round trip takes `overlay` instructions, and the program `program`.
    fn run(overlay: f64, program: f64) -> Figures {
        let mut figures = Figures::new(Machine::default(), "QEMU 1".to_owned());
        figures.add("culvert-overlay-veth", Unit::RoundTrip, overlay);
        figures.add("vxlan-docker", Unit::RoundTrip, overlay * 2.0);
        figures.programs.push(Cost { what: "from_container".to_owned(), rounds: vec![program] });
        figures
    }

    #[test]
    fn over_one_per_cent_more_is_worse() {
        let old = run(40_000.0, 500.0);
        assert!(!compare(&old, &run(40_400.0, 505.0)).is_worse());
        assert!(!compare(&old, &run(30_000.0, 400.0)).is_worse());
        let worse = compare(&old, &run(40_410.0, 500.0));
        assert!(worse.is_worse());
        let text = worse.to_string();
        let line = "more instructions: culvert-overlay-veth: TCP round trip: 40,000 to 40,410 (+1.0 %, accepted 1.0 %)";
        assert!(text.contains(line), "{text}");
        assert!(compare(&old, &run(40_000.0, 506.0)).is_worse());
    }

    #[test]
    fn figures_of_other_systems_do_not_count_and_missing_ones_are_named() {
        let old = run(40_000.0, 500.0);
        let mut new = run(40_000.0, 500.0);
        new.units.retain(|it| it.arm != "culvert-overlay-veth");
        for it in &mut new.units {
            it.rounds = vec![1e6];
        }
        let found = compare(&old, &new);
        assert!(found.is_worse() && found.more.is_empty());
        let text = found.to_string();
        assert!(text.contains("not measured: culvert-overlay-veth: TCP round trip"), "{text}");
    }

    #[test]
    fn another_kernel_or_emulator_is_told() {
        let (old, mut new) = (run(1.0, 1.0), run(1.0, 1.0));
        new.kernel = "6.12".to_owned();
        new.emulator = "QEMU 2".to_owned();
        let text = compare(&old, &new).to_string();
        assert!(text.contains("note: emulator: was QEMU 1, is QEMU 2"), "{text}");
        assert!(text.contains("note: Linux: was , is 6.12"), "{text}");
    }
}
