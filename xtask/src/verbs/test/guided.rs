//! Compiles the tests of mutated input with counters of coverage, and runs the tests that search
//! for inputs that reach more code.

use anyhow::Result;

use super::command::PROFILE;
use super::tally::Tally;
use crate::verbs::build;
use crate::{paths, process};

/// Name of the stage, and part of the names of its tests.
pub(super) const NAME: &str = "guided";

/// The compiler adds the counters; the sources compile the code that reads them.
const FLAGS: &str = "-C instrument-coverage --cfg culvert_coverage";

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
    // Each test says every minute how far it is, so that it does not seem to hang.
    tally.run(command().args(["--", NAME, "--test-threads", "1"]))
}
