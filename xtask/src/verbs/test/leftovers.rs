//! Processes and mounts that the tests left on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ui;

/// Every process of a run inherits this variable. Its value is unique to the run.
const MARK: &str = "CULVERT_TEST_RUN";

/// How long a process may still run after the tests have ended. A killed process needs a moment to
/// end.
const GRACE: Duration = Duration::from_secs(5);

/// Polling interval.
const TICK: Duration = Duration::from_millis(50);

/// The state of the machine before a run.
#[derive(Debug)]
pub(super) struct Before {
    /// `CULVERT_TEST_RUN=VALUE`.
    mark: String,
    /// The mount points, from [`mounts`].
    mounts: BTreeSet<String>,
}

impl Before {
    /// Reads the state, and marks the processes that `command` will start.
    pub(super) fn note(command: &mut Command) -> Result<Self> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let value = format!("{}-{now}", std::process::id());
        command.env(MARK, &value);
        Ok(Self { mark: format!("{MARK}={value}"), mounts: mounts()? })
    }

    /// Kills the processes that are left. Prints them and the mounts that are left.
    ///
    /// # Errors
    ///
    /// The tests left processes or mounts. The error has the number of both.
    pub(super) fn demand_nothing_left(&self) -> Result<()> {
        let start = Instant::now();
        let mut processes = processes(&self.mark);
        while !processes.is_empty() && start.elapsed() < GRACE {
            sleep(TICK);
            processes = self::processes(&self.mark);
        }
        for (pid, command) in &processes {
            ui::line(&format!("left by the tests, killed now: pid {pid}: {command}"));
            // The error is ignored: the process may have ended since.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let mounts: Vec<_> = mounts()?.difference(&self.mounts).cloned().collect();
        for mount in &mounts {
            ui::line(&format!("left by the tests: {mount}"));
        }
        if !processes.is_empty() || !mounts.is_empty() {
            bail!(
                "the tests left {} processes and {} mounts: they are named above",
                processes.len(),
                mounts.len()
            );
        }
        Ok(())
    }
}

/// The processes whose environment has the variable `mark`, each with its command line. A process
/// that has ended and is not reaped has no environment.
fn processes(mark: &str) -> Vec<(Pid, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|part| part == mark.as_bytes())
                .then_some(())?;
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            Some((Pid::from_raw(pid), command.trim_end().to_owned()))
        })
        .collect()
}

/// The mount points of network namespaces with a name, and of file systems for BPF objects.
fn mounts() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(tests_mount).map(str::to_owned).collect())
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)), if tests make such mounts.
fn tests_mount(line: &str) -> Option<&str> {
    let (mount, source) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?;
    match source.split(' ').next()? {
        "bpf" => Some(point),
        "nsfs" if Path::new(point).parent()?.ends_with("run/netns") => Some(point),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_left_is_found_and_killed() {
        let mut command = Command::new("sleep");
        let before = Before::note(&mut command).expect("mountinfo is readable");
        assert!(processes(&before.mark).is_empty());
        let mut child = command.arg("1000").spawn().expect("sleep is installed");
        let error = before.demand_nothing_left().expect_err("sleep is left").to_string();
        assert!(error.starts_with("the tests left 1 processes"), "{error}");
        // The process was killed. Otherwise `wait` would block for 1000 s.
        assert!(!child.wait().expect("it is our child").success());
        assert!(processes(&before.mark).is_empty());
    }

    #[test]
    fn named_namespaces_and_bpf_mounts_are_those_of_tests() {
        let line =
            |point: &str, kind: &str| format!("36 35 0:4 x {point} rw shared:1 - {kind} y rw");
        for (point, kind, ours) in [
            ("/run/netns/web", "nsfs", true),
            ("/tmp/a/bpf", "bpf", true),
            ("/run/docker/netns/0a1b", "nsfs", false),
            ("/mnt", "ext4", false),
        ] {
            let line = line(point, kind);
            assert_eq!(tests_mount(&line), ours.then_some(point), "{line}");
        }
    }
}
