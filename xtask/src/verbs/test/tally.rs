//! Results of the tests and of the stages around them.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{process, ui};

/// A test program without output for this time hangs; libtest names every test that takes more than
/// a minute before that.
pub(super) const SILENCE: Duration = Duration::from_secs(300);

/// Results of the stages so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Tests that passed.
    pub(super) passed: u64,
    /// Tests that failed, and test programs that did not finish.
    pub(super) failed: u64,
    /// Tests that libtest ignored.
    pub(super) ignored: u64,
    /// Tests of programs that are not installed: they did not run.
    pub(super) left_out: u64,
    /// Name of each stage, whether it went well, and how long it took.
    pub(super) stages: Vec<(&'static str, bool, Duration)>,
}

impl Tally {
    /// Runs a stage and records its result and duration.
    pub(super) fn stage(
        &mut self,
        name: &'static str,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> bool {
        ui::heading(name);
        let start = Instant::now();
        let result = run(self);
        if let Err(error) = &result {
            ui::error(&format!("{name}: {error:#}"));
        }
        self.stages.push((name, result.is_ok(), start.elapsed()));
        result.is_ok()
    }

    /// Runs a `cargo test`, prints its lines and counts its tests. A test program that does not
    /// finish counts as a failed test.
    ///
    /// # Errors
    ///
    /// It cannot be started, it hangs, or a test fails.
    pub(super) fn run(&mut self, command: &mut Command) -> Result<()> {
        let before = self.failed;
        let status = process::lines_watched(command, Some(SILENCE), |line| {
            ui::line(line);
            self.count(line);
        });
        if status.is_err() {
            self.failed += 1;
        }
        let status = status?;
        if !status.success() {
            if self.failed == before {
                // A test has ended its whole program, which then prints no counts.
                self.failed += 1;
            }
            bail!("cargo test failed ({status}): its messages are above");
        }
        Ok(())
    }

    /// Adds the counts of a line of libtest's output. Returns whether the line has counts.
    pub(super) fn count(&mut self, line: &str) -> bool {
        let Some([passed, failed, ignored]) = parse_result(line) else { return false };
        self.passed += passed;
        self.failed += failed;
        self.ignored += ignored;
        true
    }

    /// Fails if a test was ignored: a test whose requirement is missing has not passed.
    ///
    /// # Errors
    ///
    /// Tests were ignored. The error has their number.
    pub(super) fn demand_none_ignored(&self) -> Result<()> {
        if self.ignored > 0 {
            bail!("{} tests were ignored: each has its reason above", self.ignored);
        }
        Ok(())
    }
}

/// Passed, failed and ignored in libtest's `test result: ok. 6 passed; 0 failed; 0 ignored; ...`.
fn parse_result(line: &str) -> Option<[u64; 3]> {
    let rest = line.trim_start().strip_prefix("test result:")?;
    let number = |word: &str| {
        let before = rest.split(word).next().filter(|before| before.len() < rest.len())?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some([number(" passed;")?, number(" failed;")?, number(" ignored")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_with_and_without_colour() {
        let plain = "test result: ok. 6 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(plain), Some([6, 1, 2]));
        let coloured = "test result: \u{1b}[32mok\u{1b}[m. 12 passed; 0 failed; 0 ignored";
        assert_eq!(parse_result(coloured), Some([12, 0, 0]));
        assert_eq!(parse_result("test a_result ... ok"), None);
    }

    #[test]
    fn an_ignored_test_is_a_failure() {
        let mut tally = Tally::default();
        assert!(tally.count("test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured"));
        assert!(tally.demand_none_ignored().is_ok());
        assert!(tally.count("test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured"));
        assert!(tally.demand_none_ignored().is_err());
    }
}
