//! Where the instructions of an arm go: samples at equal distances on the clock that counts them.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{measure::regime, steps};
use crate::arms::{Arms, Device, Receive, Unit};

/// Samples per second of the machine's clock: one every 25,000 instructions.
const FREQUENCY: &str = "20000";
/// File with the largest sample rate that the kernel permits.
const RATE: &str = "/proc/sys/kernel/perf_event_max_sample_rate";
/// Runs of the units while samples are taken.
const RUNS: usize = 3;

/// Prints the profile of an arm during `units`, or during round trips if `units` is empty.
pub(super) fn main(id: &str, units: &[Unit]) -> Result<()> {
    let arms = Arms::make(&[Device::Veth, Device::Netkit], &[])?;
    let Some(arm) = arms.all.iter().find(|arm| arm.info.id == id) else {
        let ids: Vec<_> = arms.all.iter().map(|arm| arm.info.id.as_str()).collect();
        bail!("--profile {id}: no such arm: {} are valid", ids.join(", "));
    };
    // perf names programs and functions by /proc/kallsyms.
    steps::name_functions()?;
    fs::write(RATE, FREQUENCY).with_context(|| format!("{RATE}: cannot be written"))?;
    let _paused = arms.paused()?;
    let units = if units.is_empty() { &[Unit::RoundTrip] } else { units };
    for &unit in units {
        ensure!(arm.has_unit(unit), "{id}: has no {}", unit.heading());
        arms.set(regime(unit), Receive::SendersCore)?;
        let file = tempfile::NamedTempFile::new()?;
        let mut perf = Command::new("perf")
            .args(["record", "--quiet", "--all-cpus", "--event", "cpu-clock", "--call-graph", "fp"])
            .args(["--freq", FREQUENCY, "--output"])
            .arg(file.path())
            .args(["sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .context(
                "perf: cannot be started: 'cargo xtask bench --exact --profile ARM' installs it",
            )?;
        until_sampling(perf.id())?;
        let done = (0..RUNS).try_for_each(|_| arm.units(unit).map(drop));
        let pid = nix::unistd::Pid::from_raw(perf.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        perf.wait()?;
        done?;
        println!("{id}: {}", unit.heading());
        report(file.path())?;
    }
    Ok(())
}

/// Waits until perf takes samples. It starts to sample when its child has become `sleep`. A wait of
/// a fixed time does not suffice: the machine's clock jumps while perf waits for the host's files.
fn until_sampling(perf: u32) -> Result<()> {
    let children = format!("/proc/{perf}/task/{perf}/children");
    loop {
        let pids = fs::read_to_string(&children).context("perf: has ended")?;
        let samples = pids.split_whitespace().any(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
        });
        if samples {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Prints the functions with the most samples, and the call chains to them.
fn report(samples: &std::path::Path) -> Result<()> {
    let output = Command::new("perf")
        .args([
            "report",
            "--stdio",
            "--no-children",
            "--comms",
            "culvert-bench",
            "--sort",
            "symbol",
        ])
        .args(["--call-graph", "graph,2,6,caller", "--percent-limit", "0.5", "--input"])
        .arg(samples)
        .output()
        .context("perf")?;
    ensure!(output.status.success(), "perf: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8_lossy(&output.stdout);
    let is_shown = |line: &&str| !line.starts_with('#') && !line.trim().is_empty();
    let lines: Vec<_> = text.lines().filter(is_shown).collect();
    ensure!(!lines.is_empty(), "perf: has taken no sample of the units");
    lines.iter().for_each(|line| println!("{}", line.trim_end()));
    Ok(())
}
