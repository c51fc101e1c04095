//! Debian's packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::fit::{self, Fit, Policy};
use super::spinner::{with_progress, with_spinner};
use crate::{process, tools, ui};

/// Options of every `apt-get install`. Recommended packages are not installed. No package may be
/// removed: apt refuses a package that conflicts with one of the user's.
const OPTIONS: [&str; 4] = ["install", "-y", "--no-install-recommends", "--no-remove"];

/// The systemd unit that Debian's etcd-server starts when it is installed.
const ETCD_UNIT: &str = "etcd.service";

/// Whether apt knows a version of `package` to install.
pub(super) fn has_candidate(package: &str) -> bool {
    Policy::of(package).candidate.is_some()
}

/// The command that installs `packages`, for a person to run.
pub(super) fn install_line(packages: &[&str]) -> String {
    format!("apt-get {} {}", OPTIONS.join(" "), packages.join(" "))
}

/// The changes that make `packages` compatible with the installed packages of their sources. Empty
/// if they are compatible, or if apt finds no solution: apt's own message then gives the reason.
fn fits(packages: &[&str]) -> Vec<Fit> {
    if simulates(packages, &[]) {
        return Vec::new();
    }
    let all: Vec<_> = packages.iter().flat_map(|package| fit::of(package)).collect();
    // Installed packages keep their versions if possible.
    let (choose, replace): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|fit| matches!(fit, Fit::Choose { .. }));
    [choose, replace]
        .into_iter()
        .find(|fits| !fits.is_empty() && simulates(packages, fits))
        .unwrap_or_default()
}

/// Whether apt says that it would install `packages` with `fits`.
fn simulates(packages: &[&str], fits: &[Fit]) -> bool {
    process::quiet(Command::new("apt-get").arg("--simulate").args(arguments(packages, fits)))
        .is_ok()
}

/// The arguments of `apt-get` that install `packages` with `fits`.
fn arguments(packages: &[&str], fits: &[Fit]) -> Vec<String> {
    let mut arguments: Vec<_> = OPTIONS.map(str::to_owned).into();
    if fits.iter().any(|fit| matches!(fit, Fit::Replace { .. })) {
        arguments.push("--allow-downgrades".to_owned());
    }
    let chosen = |name: &str| {
        fits.iter().any(|fit| matches!(fit, Fit::Choose { package, .. } if package == name))
    };
    arguments.extend(packages.iter().filter(|name| !chosen(name)).map(|&name| name.to_owned()));
    arguments.extend(fits.iter().map(Fit::argument));
    arguments
}

/// Whether apt has no lists at all, so that an unknown package proves nothing.
pub(super) fn has_no_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        !entries.flatten().any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Refreshes apt's lists if one of `packages` is not in them, or if the machine has no lists.
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
    let fits = fits(packages);
    for fit in &fits {
        ui::line(&fit.line());
    }
    match install_once(packages, &fits) {
        // Lists that are older than the mirror name files that the mirror no longer has.
        Err(error) if error.to_string().contains("apt-get update") => {
            refresh()?;
            install_once(packages, &fits)
        }
        other => other,
    }
}

fn install_once(packages: &[&'static str], fits: &[Fit]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(arguments(packages, fits))
        .args(["-o", "APT::Status-Fd=1", "-o", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C");
    let what = format!("Installing {}", packages.join(" "));
    with_progress(&what, command, |progress, line| match parse_status(line) {
        Some((percent, message)) => {
            progress.percent(percent);
            progress.message(message);
            false
        }
        None => true,
    })
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

/// Keeps Debian's etcd-server from starting a service that the user did not request: the demo and
/// the tests start etcd themselves.
#[derive(Debug)]
struct KeepEtcdStopped;

impl KeepEtcdStopped {
    /// Whether systemd runs here and etcd is not installed yet.
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

/// Runs systemctl. A failure is ignored: at worst an unused service runs.
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
    fn only_a_replaced_package_may_become_older() {
        let choose = Fit::Choose { package: "a".into(), version: "2".into(), beside: "b".into() };
        let replace = Fit::Replace {
            installed: "b".into(),
            from: "2".into(),
            to: "1".into(),
            beside: "a".into(),
        };
        let plain = arguments(&["a"], &[choose]).join(" ");
        assert_eq!(plain, "install -y --no-install-recommends --no-remove a=2");
        let older = arguments(&["a"], &[replace]).join(" ");
        assert_eq!(
            older,
            "install -y --no-install-recommends --no-remove --allow-downgrades a b=1"
        );
    }

    #[test]
    fn the_line_is_one_that_a_person_can_type() {
        assert_eq!(
            install_line(&["gcc", "iperf3"]),
            "apt-get install -y --no-install-recommends --no-remove gcc iperf3"
        );
    }
}
