//! The tests that depend on the kernel, run again on an emulated kernel with netkit.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::command::command;
use super::tally::Tally;
use crate::vm::{self, Clock};
use crate::{paths, ui};

/// The test programs, in the order in which they run: from the least requirements to whole hosts.
const PROGRAMS: [&str; 3] = ["host", "prog_run", "netns"];

/// Tests that are not run there: those that start the binary hundreds of times to check refusals,
/// which do not depend on the kernel, and one that compares NAT with the kernel's in thousands of
/// steps, which does not depend on the device: they take many minutes under emulation. Also a test
/// of how much GRO merges, which depends on the rate of the frames, and those of two processors at
/// once, which take turns there.
const SKIPPED: [&str; 5] =
    ["bad_input::", "bad_modes::", "differential::", "offloads::payloads_arrive", "races::"];

/// Factor by which the deadlines of the tests are longer there.
const PATIENCE: u32 = 5;

/// Runs them and counts them.
pub(super) fn main(tally: &mut Tally, filter: Option<&str>) -> Result<()> {
    let programs = programs()?;
    let (before, mut ran) = (tally.failed, 0_usize);
    let outcome = vm::run(Clock::Host, &script(&programs, filter), |line| {
        ui::line(line);
        ran += usize::from(tally.count(line));
    });
    if outcome.is_err() && tally.failed == before {
        // A test ended its whole program, or the machine did not start.
        tally.failed += 1;
    }
    outcome?;
    if ran != programs.len() {
        tally.failed += 1;
        bail!("{ran} of {} test programs came to their end there", programs.len());
    }
    tally.demand_none_ignored()
}

/// What the emulated machine runs: every program, also after one has failed.
fn script(programs: &[PathBuf], filter: Option<&str>) -> String {
    let mut script = format!(
        "echo \"Linux $(uname -r), emulated\"\n\
         export CULVERT_TEST_DEVICE=netkit CULVERT_TEST_PATIENCE={PATIENCE}\n\
         cd {}\n\
         code=0\n",
        word(&paths::root().join("tests")),
    );
    let skips: String = SKIPPED.iter().map(|name| format!(" --skip {name}")).collect();
    for program in programs {
        let program = word(program);
        let filter = filter.map(vm::quoted).unwrap_or_default();
        // One at a time, so that the tests meet their deadlines. Writing to a string does not fail.
        let options = format!("--include-ignored --color never --test-threads 1{skips}");
        let _ = writeln!(script, "{program} {options} {filter} 2>&1 || code=1");
    }
    script + "exit $code"
}

/// A path as one word of a shell.
fn word(path: &Path) -> String {
    vm::quoted(&path.display().to_string())
}

/// The test programs' files, as cargo names them.
fn programs() -> Result<Vec<PathBuf>> {
    let mut command = command();
    command.args(["--no-run", "--message-format", "json"]).stderr(Stdio::null());
    let said = command.output().context("cargo: cannot be started")?;
    let text = String::from_utf8_lossy(&said.stdout);
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    PROGRAMS.iter().map(|name| program(&messages, name)).collect()
}

fn program(messages: &[Value], name: &str) -> Result<PathBuf> {
    let is_it = |message: &&Value| {
        let text = |path: &str| message.pointer(path).and_then(Value::as_str);
        text("/target/name") == Some(name)
            && text("/target/kind/0") == Some("test")
            && text("/executable").is_some()
    };
    match messages.iter().find(is_it).and_then(|message| message.get("executable")?.as_str()) {
        Some(file) => Ok(PathBuf::from(file)),
        None => bail!("test program {name}: cargo has not built it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = [
            serde_json::json!({"target": {"name": "netns", "kind": ["lib"]}, "executable": "/t/no"}),
            serde_json::json!({"target": {"name": "netns", "kind": ["test"]}, "executable": null}),
            serde_json::json!({"target": {"name": "netns", "kind": ["test"]}, "executable": "/t/n"}),
        ];
        assert_eq!(program(&messages, "netns").ok(), Some("/t/n".into()));
        assert!(program(&messages, "host").is_err());
    }

    #[test]
    fn every_program_is_run_with_the_filter() {
        let programs = ["/t/a".into(), "/t/b c".into()];
        let script = script(&programs, Some("overlay"));
        assert!(
            script.contains(
                "'/t/b c' --include-ignored --color never --test-threads 1 --skip bad_input:: "
            ),
            "{script}"
        );
        assert_eq!(script.matches("'overlay' 2>&1 || code=1").count(), 2);
    }
}
