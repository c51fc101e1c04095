//! The kernel of the emulated machine: unpacked from a distribution's package, never
//! installed, so that nothing changes about how the host boots.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::kernel::{OLDEST, version};
use crate::{paths, process, tools, ui};

/// Debian's packages that depend on the newest kernel of a series: of a point release's
/// security updates, and of the release itself.
const META_PACKAGES: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];

/// The instruction for a user if `fetch` is not possible.
pub(crate) const BY_HAND: &str = "unpack a kernel of Linux 6.7 or newer with CONFIG_NETKIT=y and 9p over virtio as modules \
     (boot/vmlinuz-RELEASE, lib/modules/RELEASE with depmod's files), and name the directory \
     with CULVERT_VM_KERNEL";

/// The kernel package to fetch; none if apt knows no package that is new enough.
pub(crate) fn package() -> Option<String> {
    META_PACKAGES.iter().find_map(|meta| {
        let shown = Command::new("apt-cache")
            .args(["depends", "--important", meta])
            .env("LC_ALL", "C")
            .stderr(Stdio::null())
            .output()
            .ok()?;
        image_package(&String::from_utf8_lossy(&shown.stdout))
    })
}

/// The package that `apt-cache depends` of a meta package names.
fn image_package(depends: &str) -> Option<String> {
    let named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let of_kernel = |name: &&str| {
        name.strip_prefix("linux-image-").and_then(version).is_some_and(|found| found >= OLDEST)
    };
    named.map(str::trim).find(of_kernel).map(str::to_owned)
}

/// Fetches and unpacks a kernel package, beside the build output.
pub(crate) fn fetch(package: &str) -> Result<()> {
    let dir = paths::vm_kernel();
    let fresh = dir.with_extension("new");
    remove(&fresh)?;
    fs::create_dir_all(&fresh).with_context(|| format!("{}: cannot be made", fresh.display()))?;
    let progress = ui::Progress::start(&format!("Fetching {package} for the emulated machine"));
    let done = unpack(package, &fresh);
    progress.finish(done.is_ok());
    done?;
    remove(&dir)?;
    fs::rename(&fresh, &dir).with_context(|| format!("{}: cannot be renamed", fresh.display()))
}

fn unpack(package: &str, dir: &Path) -> Result<()> {
    process::quiet(Command::new("apt-get").args(["download", package]).current_dir(dir))?;
    let entries = fs::read_dir(dir).with_context(|| format!("{}: unreadable", dir.display()))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let Some(deb) = files.find(|path| path.extension().is_some_and(|ext| ext == "deb")) else {
        bail!("{package}: apt-get has downloaded nothing");
    };
    process::quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
    fs::remove_file(&deb).with_context(|| format!("{}: cannot be removed", deb.display()))?;
    let release = package.trim_start_matches("linux-image-").trim_end_matches("-unsigned");
    let depmod = tools::which("depmod").context("depmod: not installed: it is in kmod")?;
    process::quiet(Command::new(depmod).arg("-b").arg(dir).arg(release)).map(drop)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_a_meta_package_is_found() {
        let depends =
            "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n  Breaks: x\n";
        let found = image_package(depends);
        assert_eq!(found.as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(
            image_package("linux-image-amd64\n  Depends: linux-image-6.1.0-54-amd64\n"),
            None
        );
        assert_eq!(image_package(""), None);
    }
}
