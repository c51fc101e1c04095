//! Instructions per unit of work, counted on the clock of an emulated machine.
//!
//! QEMU runs the machine with `-icount`: its clock advances by a fixed time with each instruction,
//! the kernel's included, and one processor runs everything. So a figure does not depend on what
//! else the host does. `cargo xtask bench --exact` runs this program twice: within the machine to
//! measure, and on the host to show the figures.

mod compare;
mod control;
mod figures;
mod measure;
mod options;
mod profile;
mod steps;
mod table;

use anyhow::{Result, bail, ensure};

use self::figures::Figures;
pub(crate) use self::options::Args;
use crate::{arms::Unit, report};

/// Environment variable with the time of an instruction on the machine's clock, ns; set within the
/// machine.
const NS_PER_INSTRUCTION: &str = "CULVERT_NS_PER_INSTRUCTION";
/// Beginning of the line with the figures, on the machine's console.
const FIGURES: &str = "culvert-figures: ";
/// Largest accepted difference of the host from itself (A/A), as a share.
const MOST_A_A: f64 = 0.005;

/// Measures within the emulated machine, or shows the figures. Returns true if the figures are not
/// accepted, or got worse.
pub(crate) fn main(args: &Args) -> Result<bool> {
    // A closure: the emulated machine does not read the file, which it may not see.
    let old = || args.compare.as_deref().map(Figures::load).transpose();
    if args.check {
        report::Output { json: args.json.clone(), ..Default::default() }.check()?;
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
    let refusals = refusals(figures);
    refusals.iter().for_each(|line| eprintln!("bench: {line}"));
    let refused = !refusals.is_empty();
    if let Some(path) = args.json.as_ref().filter(|_| !refused) {
        figures.save(path)?;
    }
    let Some(old) = old else { return Ok(refused) };
    let comparison = compare::compare(old, figures);
    println!("{comparison}");
    Ok(refused || comparison.is_worse())
}

/// Why the figures are not accepted: the units in which the host differs from itself by more than
/// [`MOST_A_A`].
fn refusals(figures: &Figures) -> Vec<String> {
    let different = figures.host_differences().into_iter().filter(|(_, by)| *by > MOST_A_A);
    let line = |(unit, by): (Unit, f64)| {
        format!(
            "{}: the host differs from itself by {:.2} %: at most {:.1} % is accepted",
            unit.heading(),
            by * 100.0,
            MOST_A_A * 100.0
        )
    };
    different.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{HOST, HOST_AGAIN, Machine};

    #[test]
    fn a_host_that_differs_from_itself_is_refused() {
        let run = |again: f64| {
            let mut figures = Figures::new(Machine::default(), "QEMU".to_owned());
            figures.add(HOST, Unit::RoundTrip, 30_000.0);
            figures.add(HOST_AGAIN, Unit::RoundTrip, again);
            refusals(&figures)
        };
        assert!(run(30_150.0).is_empty() && run(29_850.0).is_empty());
        let [line] = &run(30_180.0)[..] else { panic!("{:?}", run(30_180.0)) };
        assert_eq!(
            line,
            "TCP round trip: the host differs from itself by 0.60 %: at most 0.5 % is accepted"
        );
        assert_eq!(run(29_820.0).len(), 1);
    }
}
