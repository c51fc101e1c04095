//! `setup`: installs what is missing, or names it.

mod apt;
mod fit;
mod linker;
mod plan;
mod spinner;

use anyhow::{Result, bail};

use self::plan::Plan;
use crate::tools::{self, Need, TOOLS, Tool};
use crate::{privilege, ui};

/// Options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only print what is there and what is missing
    #[arg(long)]
    check: bool,
    /// Also the tools of 'cargo xtask test --full': an emulator, and a kernel with netkit
    #[arg(long)]
    full: bool,
}

/// Installs or names every tool that is missing.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut every = vec![Need::Build, Need::Demo, Need::Test, Need::Check];
    if args.full {
        every.push(Need::Full);
    }
    if args.check {
        return check(&every);
    }
    let missing = tools::missing(&every);
    if missing.is_empty() {
        ui::line("Nothing to do: every tool is there ('cargo xtask setup --check' lists them).");
        return Ok(());
    }
    install(&missing)?;
    ui::line("Everything is there.");
    Ok(())
}

/// Runs `setup` for the missing tools of `needs`; prints nothing if none is missing.
pub(crate) fn require(needs: &[Need]) -> Result<()> {
    let missing = tools::missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs `missing`. If this is not possible, prints the commands that install it and fails.
fn install(missing: &[&'static Tool]) -> Result<()> {
    let names: Vec<_> = missing.iter().map(|t| t.name).collect();
    ui::line(&format!("Missing: {}.", names.join(", ")));
    if tools::which("apt-get").is_some() {
        if privilege::is_root() {
            apt::refresh_for(missing.iter().flat_map(|t| t.debian).copied())?;
        } else if apt::has_no_lists() {
            bail!(
                "{}: not installed, and apt has no lists of packages: run 'sudo apt-get update', \
                 then again",
                names.join(", ")
            );
        }
    }
    let plan = Plan::make(missing);
    if !plan.by_hand.is_empty() || (!plan.packages.is_empty() && !privilege::is_root()) {
        ui::line("To install them, run:");
        for command in plan.commands() {
            ui::line(&format!("  {command}"));
        }
        bail!("{}: not installed: run the commands above, then again", names.join(", "));
    }
    plan.carry_out()?;
    let still: Vec<_> = missing.iter().filter(|t| t.found().is_none()).map(|t| t.name).collect();
    if !still.is_empty() {
        bail!(
            "{}: installed but not found: 'cargo xtask setup --check' says more",
            still.join(", ")
        );
    }
    Ok(())
}

/// Prints the table of tools; fails if one is missing.
fn check(needs: &[Need]) -> Result<()> {
    let mut missing = 0_usize;
    let rows: Vec<Vec<String>> = TOOLS
        .iter()
        .filter(|tool| needs.contains(&tool.need))
        .map(|tool| {
            let found = tool.found();
            missing += usize::from(found.is_none());
            vec![
                tool.name.to_owned(),
                if found.is_some() { "ok".to_owned() } else { "missing".to_owned() },
                tool.need.name().to_owned(),
                tool.why.to_owned(),
                found.unwrap_or_default(),
            ]
        })
        .collect();
    ui::table(&["TOOL", "STATE", "FOR", "WHY", "WHERE"], &rows);
    if missing > 0 {
        bail!("{missing} of {} tools missing: run 'cargo xtask setup'", rows.len());
    }
    Ok(())
}
