//! `test`: every test, and the demo as the last of them.

mod emulated;

use std::io::IsTerminal as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use culvert_bpf_build::PACKAGE;

use super::{build, demo, setup};
use crate::tools::Need;
use crate::{privilege, process, ui};

/// A test program that says nothing for so long hangs; libtest names every test that takes
/// more than a minute before that.
const SILENCE: Duration = Duration::from_secs(300);

/// Options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also run the tests that take long, and those of a kernel on another one, emulated
    #[arg(long)]
    full: bool,
    /// Only run tests whose name contains this ('demo' is the demo)
    filter: Option<String>,
}

/// What the stages have brought so far.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    stages: Vec<(&'static str, bool, Duration)>,
}

impl Tally {
    /// Runs a stage and notes how it went and how long it took.
    fn stage(&mut self, name: &'static str, run: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        ui::heading(name);
        let start = Instant::now();
        let result = run(self);
        if let Err(error) = &result {
            ui::error(&format!("{name}: {error:#}"));
        }
        self.stages.push((name, result.is_ok(), start.elapsed()));
        result.is_ok()
    }

    /// Adds what a line of libtest's output says. Returns whether it is one that says so.
    fn count(&mut self, line: &str) -> bool {
        let Some((passed, failed)) = parse_result(line) else { return false };
        self.passed += passed;
        self.failed += failed;
        true
    }
}

/// Runs the stages and prints the sum as the last line.
pub(crate) fn main(args: &Args) -> Result<()> {
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
    // Apart from running them, so that the durations tell one from the other.
    let ready = ready
        && tally.stage("build tests", |tally| {
            let built = process::run(cargo_test_command().arg("--no-run"));
            tally.failed += u64::from(built.is_err());
            built
        });
    if ready {
        let filter = args.filter.as_deref();
        tally.stage("tests", |tally| cargo_test(tally, filter, args.full));
        if args.full {
            tally.stage("tests, emulated kernel", |tally| emulated::main(tally, filter));
        }
        if filter.is_none_or(|filter| "demo".contains(filter)) {
            let passed = tally.stage("demo", |_| demo::main(&demo::Args::without_building()));
            tally.passed += u64::from(passed);
            tally.failed += u64::from(!passed);
        }
    }
    crate::signals::check()?;
    summary(&tally)
}

/// `cargo test` of every package but the programs', which run in the kernel only.
fn cargo_test_command() -> Command {
    let mut command = build::cargo("test");
    command
        .args(["--release", "--workspace", "--exclude", PACKAGE, "--no-fail-fast"])
        .args(["--color", if std::io::stdout().is_terminal() { "always" } else { "never" }]);
    command
}

/// Runs the tests and counts them.
fn cargo_test(tally: &mut Tally, filter: Option<&str>, full: bool) -> Result<()> {
    let mut command = cargo_test_command();
    command.args(filter);
    if full {
        command.args(["--", "--include-ignored"]).env("CULVERT_TEST_FULL", "1");
    }
    let before = tally.failed;
    let status = process::lines_watched(&mut command, Some(SILENCE), |line| {
        ui::line(line);
        tally.count(line);
    });
    if status.is_err() {
        tally.failed += 1;
    }
    let status = status?;
    if !status.success() {
        if tally.failed == before {
            // A test took its whole program down.
            tally.failed += 1;
        }
        bail!("cargo test failed ({status}): its messages are above");
    }
    Ok(())
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
    ui::line(&format!("{} passed, {} failed", tally.passed, tally.failed));
    if let Some((name, ..)) = tally.stages.iter().find(|(_, ok, _)| !ok) {
        bail!("stage '{name}' failed: its messages are above");
    }
    Ok(())
}

/// Passed and failed in libtest's `test result: ok. 6 passed; 0 failed; 0 ignored; ...`.
fn parse_result(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim_start().strip_prefix("test result:")?;
    let number = |word: &str| {
        let before = rest.split(word).next().filter(|before| before.len() < rest.len())?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some((number(" passed;")?, number(" failed;")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_with_and_without_colour() {
        let plain = "test result: ok. 6 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(plain), Some((6, 1)));
        let coloured = "test result: \u{1b}[32mok\u{1b}[m. 12 passed; 0 failed; 0 ignored";
        assert_eq!(parse_result(coloured), Some((12, 0)));
        assert_eq!(parse_result("test a_result ... ok"), None);
    }
}
