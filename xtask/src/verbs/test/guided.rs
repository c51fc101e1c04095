//! Compiles the tests of mutated input with counters of coverage, and runs the tests that search
//! for inputs that reach more code.

use std::time::Duration;

use anyhow::{Result, bail};

use super::command::PROFILE;
use super::tally::Tally;
use crate::verbs::build;
use crate::{paths, process, ui};

/// Name of the stage, and part of the names of its tests.
pub(super) const NAME: &str = "guided";

/// The compiler adds the counters; the sources compile the code that reads them.
const FLAGS: &str = "-C instrument-coverage --cfg culvert_coverage";

/// A test without output for this time hangs: each says every minute how far it is.
const SILENCE: Duration = Duration::from_secs(300);

/// Runs the tests, one after the other: they share the counters of the program.
///
/// # Errors
///
/// The tests cannot be compiled, or a test fails.
pub(super) fn main(tally: &mut Tally) -> Result<()> {
    let command = || {
        let mut command = build::cargo("test");
        command.args(["--config", PROFILE, "--release"]);
        command.args(["--package", "culvert-tests", "--test", "fuzz", "--target-dir"]);
        command.arg(paths::guided());
        command.env("RUSTFLAGS", FLAGS);
        // The programs would write their counters to files when they end.
        command.env("LLVM_PROFILE_FILE", "/dev/null");
        command
    };
    process::run(command().arg("--no-run"))?;
    let before = tally.failed;
    let mut run = command();
    run.args(["--", NAME, "--test-threads", "1"]);
    let status = process::lines_watched(&mut run, Some(SILENCE), |line| {
        ui::line(line);
        tally.count(line);
    })?;
    if !status.success() {
        if tally.failed == before {
            // A test has ended its whole program, which then prints no counts.
            tally.failed += 1;
        }
        bail!("cargo test failed ({status}): its messages are above");
    }
    Ok(())
}
