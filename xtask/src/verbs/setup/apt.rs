//! Debian's packages.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::spinner::with_spinner;
use crate::{process, tools, ui};

/// Options of every `apt-get install`: nothing that only is recommended, and nothing removed,
/// so that a package which conflicts with one of the user's is refused instead.
const OPTIONS: [&str; 4] = ["install", "-y", "--no-install-recommends", "--no-remove"];

/// The unit that Debian's etcd-server would start at once.
const ETCD_UNIT: &str = "etcd.service";

/// Whether apt knows a version of `package` to install.
pub(super) fn has_candidate(package: &str) -> bool {
    let said = Command::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .stderr(Stdio::null())
        .output();
    let Ok(said) = said else {
        return false;
    };
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    said.lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

/// The command that installs `packages`, for a person to run.
pub(super) fn install_line(packages: &[&str]) -> String {
    format!("apt-get {} {}", OPTIONS.join(" "), packages.join(" "))
}

/// Whether apt has no lists at all, so that what it does not know says nothing.
pub(super) fn has_no_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        !entries.flatten().any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Refreshes apt's lists if one of `packages` is not in them, as on a machine that never did.
pub(super) fn refresh_for<'a>(mut packages: impl Iterator<Item = &'a str>) -> Result<()> {
    if packages.all(has_candidate) { Ok(()) } else { refresh() }
}

fn refresh() -> Result<()> {
    let mut update = Command::new("apt-get");
    update.arg("update");
    with_spinner("Refreshing apt's lists", update)
}

/// Installs `packages`, with progress.
pub(super) fn install(packages: &[&'static str]) -> Result<()> {
    let unknown: Vec<_> = packages.iter().filter(|p| !has_candidate(p)).copied().collect();
    if !unknown.is_empty() {
        bail!(
            "{}: no such package in apt's sources: add the distribution's main and security \
             sources, or install it by hand",
            unknown.join(", ")
        );
    }
    let etcd = packages.contains(&"etcd-server") && KeepEtcdStopped::applies();
    let _etcd = etcd.then(KeepEtcdStopped::begin);
    match install_once(packages) {
        // Lists that are older than the mirror name files that are gone.
        Err(error) if error.to_string().contains("apt-get update") => {
            refresh()?;
            install_once(packages)
        }
        other => other,
    }
}

fn install_once(packages: &[&'static str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(OPTIONS)
        .args(["-o", "APT::Status-Fd=1", "-o", "DPkg::Lock::Timeout=120"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    let progress = ui::Progress::start(&format!("Installing {}", packages.join(" ")));
    let mut text = String::new();
    let status = process::lines(&mut command, |line| match parse_status(line) {
        Some((percent, message)) => {
            progress.percent(percent);
            progress.message(message);
        }
        None => {
            text.push_str(line);
            text.push('\n');
        }
    });
    let ok = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    progress.finish(ok);
    let status = status?;
    if !status.success() {
        bail!("apt-get failed ({status}): {}", process::last_lines(&text, 4));
    }
    Ok(())
}

/// Per cent and message of a line of `APT::Status-Fd`. Downloading is the first half of the
/// bar, unpacking and configuring the second.
fn parse_status(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.splitn(4, ':');
    let half = match fields.next()? {
        "dlstatus" => 0.0,
        "pmstatus" => 50.0,
        _ => return None,
    };
    let _package = fields.next()?;
    let percent: f64 = fields.next()?.trim().parse().ok()?;
    let message = fields.next()?;
    let whole = (half + percent.clamp(0.0, 100.0) / 2.0).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 100 by the clamp above"
    )]
    Some((whole as u64, message))
}

/// Keeps Debian's etcd-server from starting a service that nobody asked for: the demo and the
/// tests start etcd themselves.
#[derive(Debug)]
struct KeepEtcdStopped;

impl KeepEtcdStopped {
    /// Whether systemd runs here and has no etcd yet.
    fn applies() -> bool {
        Path::new("/run/systemd/system").is_dir() && tools::which("etcd").is_none()
    }

    fn begin() -> Self {
        systemctl(&["mask", "--runtime", ETCD_UNIT]);
        Self
    }
}

impl Drop for KeepEtcdStopped {
    fn drop(&mut self) {
        systemctl(&["disable", ETCD_UNIT]);
        systemctl(&["unmask", "--runtime", ETCD_UNIT]);
    }
}

/// Runs systemctl. Failing is no reason to stop: at worst a service runs that is not used.
fn systemctl(args: &[&str]) {
    if let Err(error) = process::quiet(Command::new("systemctl").args(args)) {
        ui::warn(&format!("{error:#}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_become_percent() {
        let line = "dlstatus:1:20.0:Retrieving file 1 of 2";
        assert_eq!(parse_status(line), Some((10, "Retrieving file 1 of 2")));
        let line = "pmstatus:etcd-server:100.0000:Installed etcd-server (amd64)";
        assert_eq!(parse_status(line), Some((100, "Installed etcd-server (amd64)")));
        assert_eq!(parse_status("Reading package lists..."), None);
        assert_eq!(parse_status("dlstatus:1:much:x"), None);
    }

    #[test]
    fn the_line_is_one_that_a_person_can_type() {
        assert_eq!(
            install_line(&["gcc", "iperf3"]),
            "apt-get install -y --no-install-recommends --no-remove gcc iperf3"
        );
    }
}
