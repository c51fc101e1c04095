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
mod options;
mod profile;
mod steps;
mod table;

use anyhow::{Result, bail, ensure};

use self::figures::Figures;
pub(crate) use self::options::Args;
use crate::report;

/// Time of an instruction on the machine's clock, ns; set within the machine.
const NS_PER_INSTRUCTION: &str = "CULVERT_NS_PER_INSTRUCTION";
/// Beginning of the line with the figures, on the machine's console.
const FIGURES: &str = "culvert-figures: ";
/// Largest difference of the host from itself, as a share, with which figures are accepted.
const MOST_A_A: f64 = 0.005;

/// Measures within the emulated machine, or shows what was measured. True if the figures are not
/// accepted, or got worse.
pub(crate) fn main(args: &Args) -> Result<bool> {
    // The machine does not see every file of its host.
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
    if let Some(path) = args.json.as_ref().filter(|_| !refused) {
        figures.save(path)?;
    }
    let Some(old) = old else { return Ok(refused) };
    let comparison = compare::compare(old, figures);
    println!("{comparison}");
    Ok(refused || comparison.is_worse())
}
