//! `test`: every test, and the demo as the last of them.

mod command;
mod emulated;
mod guided;
mod leftovers;
mod mutants;
mod tally;

use std::fmt::Write as _;

use anyhow::{Result, bail};

use self::command::command;
use self::leftovers::Before;
use self::tally::Tally;
use super::{build, demo, setup};
use crate::tools::{self, Need};
use crate::{privilege, process, ui};

/// Tests of programs that `setup` does not install: they run if the program is installed.
const OPTIONAL: [(&str, &str); 3] = [
    ("docker_moves_packets_and_goes", "dockerd"),
    ("networkd_leaves_the_devices_alone", "networkctl"),
    ("openvswitch_moves_packets_and_goes", "ovs-vswitchd"),
];

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also run the tests that take long, and run the kernel tests on another, emulated kernel
    #[arg(long)]
    full: bool,
    /// Only run tests whose name contains this ('demo' is the demo; with --full, 'mutants' removes
    /// each check of the data plane in turn, and demands that a test fails, and 'guided' looks for
    /// inputs of the parsers that reach more code)
    filter: Option<String>,
    /// With 'mutants': only a part of the checks, such as '1/4': the first of four parts
    #[arg(long, value_name = "INDEX/COUNT", requires = "full")]
    shard: Option<mutants::Shard>,
}

/// Runs the stages and prints the number of passed and failed tests as the last line.
pub(crate) fn main(args: &Args) -> Result<()> {
    if args.shard.is_some() && args.filter.as_deref() != Some(mutants::NAME) {
        bail!("--shard: it goes only with '{}': add that word", mutants::NAME);
    }
    privilege::require_root("test")?;
    privilege::require_kernel()?;
    let mut tally = Tally::default();
    let ready = tally.stage("setup", |_| {
        setup::require(&[Need::Build, Need::Demo, Need::Test])?;
        if args.full {
            setup::require(&[Need::Full])?;
        }
        ui::line("Every tool is there.");
        Ok(())
    }) && tally.stage("build", |_| build::build());
    // A stage of its own, so that the durations of compiling and running are separate.
    let ready = ready
        && tally.stage("build tests", |tally| {
            let built = process::run(command(args.full).arg("--no-run"));
            tally.failed += u64::from(built.is_err());
            built
        });
    if ready {
        let filter = args.filter.as_deref();
        tally.stage("tests", |tally| cargo_test(tally, filter, args.full));
        if args.full {
            tally.stage("tests, emulated kernel", |tally| emulated::main(tally, filter));
            // Only on demand, because it takes several hours.
            if filter == Some(mutants::NAME) {
                let shard = args.shard.unwrap_or_default();
                tally.stage(mutants::NAME, |tally| mutants::main(tally, shard));
            }
            // It compiles everything once more.
            if filter == Some(guided::NAME) {
                tally.stage(guided::NAME, guided::main);
            }
        }
        // The tests have replaced the product's binary by one that is built with their profile.
        let ready = tally.stage("build again", |_| build::build());
        if ready && filter.is_none_or(|filter| "demo".contains(filter)) {
            let passed = tally.stage("demo", |_| demo::main(&demo::Args::without_building()));
            tally.passed += u64::from(passed);
            tally.failed += u64::from(!passed);
        }
    }
    crate::signals::check()?;
    summary(&tally)
}

/// Runs the tests and counts them.
fn cargo_test(tally: &mut Tally, filter: Option<&str>, full: bool) -> Result<()> {
    let mut command = command(full);
    command.args(filter);
    // The tests that need root are ignored by default, and this is root.
    command.args(["--", "--include-ignored"]);
    for (test, program) in OPTIONAL {
        if tools::which(program).is_none() {
            ui::line(&format!("Not run, as {program} is not installed: {test}"));
            command.args(["--skip", test]);
            tally.left_out += 1;
        }
    }
    if full {
        command.env("CULVERT_TEST_FULL", "1");
    }
    let machine = Before::note(&mut command)?;
    let outcome = tally.run(&mut command);
    let clean = machine.demand_nothing_left();
    outcome?;
    clean?;
    tally.demand_none_ignored()
}

/// Prints the stages and the sum.
fn summary(tally: &Tally) -> Result<()> {
    let rows: Vec<_> = tally
        .stages
        .iter()
        .map(|(name, ok, took)| {
            let state = if *ok { "ok" } else { "failed" };
            vec![(*name).to_owned(), state.to_owned(), ui::seconds(*took)]
        })
        .collect();
    ui::heading("summary");
    ui::table(&["STAGE", "STATE", "TOOK"], &rows);
    let mut sum = format!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.left_out > 0 {
        // Writing to a string does not fail.
        let _ = write!(sum, ", {} not run (the program is not installed)", tally.left_out);
    }
    ui::line(&sum);
    if let Some((name, ..)) = tally.stages.iter().find(|(_, ok, _)| !ok) {
        bail!("stage '{name}' failed: its messages are above");
    }
    Ok(())
}
