//! Facts about the machine of the measurement.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::results::Machine;

/// The facts about this machine, now.
pub(crate) fn here() -> Result<Machine> {
    let date = Command::new("date").args(["-u", "+%F"]).output().context("date")?;
    let uname = nix::sys::utsname::uname().context("uname")?;
    let release = uname.release().to_string_lossy();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Ok(Machine {
        date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
        cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
        cores: crate::load::cores(),
        memory_mib: field(&meminfo, "MemTotal")
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default()
            / 1024,
        // The text after the version number names the builder, and is left out.
        kernel: release.split(['-', '+']).next().unwrap_or(&release).to_owned(),
        load_before: load()?,
        load_after: 0.0,
        culvert: commit(),
    })
}

/// Load average of the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().context("/proc/loadavg: not as expected")
}

/// Version, and the commit if this is a work tree.
fn commit() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let args = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"];
    match Command::new("git").args(args).output() {
        Ok(output) if output.status.success() => {
            format!("{version} ({})", String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(_) | Err(_) => version.to_owned(),
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_once(':').map(|(_, value)| value.trim()))
}
