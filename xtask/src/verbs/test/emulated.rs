//! The tests that depend on the kernel, run again on an emulated kernel with netkit, on as many
//! machines as the host has room for.

use std::fmt::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sys::sysinfo::sysinfo;

use super::command::programs;
use super::tally::Tally;
use crate::vm::{self, Clock};
use crate::{paths, ui};

/// The test programs, in the order in which they run: from the least requirements to whole hosts.
const PROGRAMS: [&str; 3] = ["host", "prog_run", "netns"];

/// Tests that are not run on the emulated machines. The tests of refusals, of names and files, of
/// hung processes and of records of hosts do not depend on the kernel, and take many minutes under
/// emulation. The test that compares NAT with the kernel's in thousands of steps is as slow, and
/// does not depend on the device. The same is true of the tests of mutated frames and of random
/// flows. The test of how much GRO merges depends on the rate of frames. The tests of races need
/// two processors at once, which take turns under emulation. The test of systemd-networkd needs a
/// program that may be missing.
const SKIPPED: [&str; 11] = [
    "bad_input::",
    "bad_modes::",
    "differential::",
    "fuzz::no_mutated_frame",
    "hung::",
    "names::",
    "nat_fuzz::",
    "nodes::",
    "offloads::payloads_arrive",
    "packaging::networkd",
    "races::",
];

/// Factor by which the deadlines of the tests are longer on the emulated machines.
const PATIENCE: u32 = 5;

/// The most machines that run at once.
const MACHINES: usize = 4;

/// Runs the tests on the emulated machines and counts them.
pub(super) fn main(tally: &mut Tally, filter: Option<&str>) -> Result<()> {
    let lists: Vec<_> = programs(&PROGRAMS)?
        .into_iter()
        .map(|program| Ok((tests(&program, filter)?, program)))
        .collect::<Result<_>>()?;
    let parts = parts(&lists, machines()?);
    let scripts: Vec<_> = parts.iter().map(|part| script(part)).collect();
    let expected: usize = parts.iter().map(Vec::len).sum();
    let (before, mut ran) = (tally.failed, 0_usize);
    let outcome = vm::run_all(Clock::Host, &scripts, |machine, line| {
        ui::line(&format!("{}| {line}", machine + 1));
        ran += usize::from(tally.count(line));
    });
    if outcome.is_err() && tally.failed == before {
        // A test has ended its whole program, or a machine did not start.
        tally.failed += 1;
    }
    outcome?;
    if ran != expected {
        tally.failed += 1;
        bail!("{ran} of {expected} test programs finished in the emulated machine");
    }
    tally.demand_none_ignored()
}

/// How many machines run at once: each has a processor of the host, and all have at most half of
/// its memory.
fn machines() -> Result<usize> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let memory = sysinfo().context("sysinfo: cannot be read")?.ram_total() / 2;
    let room = usize::try_from(memory / vm::MEMORY).unwrap_or(usize::MAX);
    Ok(processors.min(room).clamp(1, MACHINES))
}

/// Names of the tests of a program that run on the emulated machines.
fn tests(program: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]).args(filter).stderr(Stdio::null());
    for name in SKIPPED {
        command.args(["--skip", name]);
    }
    let said = command.output().with_context(|| format!("{}: not started", program.display()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// A test program, and names of tests to run.
type Run<'a> = (&'a Path, Vec<&'a str>);

/// Distributes the tests over machines. Returns the runs of each machine.
fn parts(lists: &[(Vec<String>, PathBuf)], machines: usize) -> Vec<Vec<Run<'_>>> {
    let part = |machine| {
        let runs = lists.iter().map(|(tests, program)| {
            let mine = tests.iter().skip(machine).step_by(machines);
            (program.as_path(), mine.map(String::as_str).collect::<Vec<_>>())
        });
        runs.filter(|(_, tests)| !tests.is_empty()).collect()
    };
    (0..machines).map(part).filter(|runs: &Vec<_>| !runs.is_empty()).collect()
}

/// The shell script of a machine. It runs every program, also after a program has failed.
fn script(runs: &[Run<'_>]) -> String {
    let mut script = format!(
        "echo \"Linux $(uname -r), emulated\"\n\
         export CULVERT_TEST_DEVICE=netkit CULVERT_TEST_PATIENCE={PATIENCE}\n\
         cd {}\n\
         code=0\n",
        word(&paths::root().join("tests")),
    );
    for (program, tests) in runs {
        let (program, tests) = (word(program), tests.join(" "));
        // One test at a time, so that the tests meet their deadlines. Writing to a string does not fail.
        let options = "--include-ignored --exact --color never --test-threads 1";
        let _ = writeln!(script, "{program} {options} {tests} 2>&1 || code=1");
    }
    script + "exit $code"
}

/// A path as one quoted word of a shell.
fn word(path: &Path) -> String {
    vm::quoted(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_run_on_one_machine() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let lists = [
            (names(&["a::one", "a::two", "b::three"]), "/t/a".into()),
            (names(&["c::four"]), "/t/b c".into()),
            (names(&[]), "/t/none".into()),
        ];
        let two = parts(&lists, 2);
        let scripts: Vec<_> = two.iter().map(|runs| script(runs)).collect();
        assert!(scripts[0].contains("--test-threads 1 a::one b::three 2>&1 || code=1\n"));
        assert!(scripts[0].contains("'/t/b c' --include-ignored --exact "));
        assert!(scripts[1].contains("--test-threads 1 a::two 2>&1 || code=1\n"));
        assert!(!scripts[1].contains("/t/b c"), "{}", scripts[1]);
        assert_eq!(parts(&lists, 4).len(), 3);
        assert_eq!(parts(&lists[2..], 4).len(), 0);
    }
}
