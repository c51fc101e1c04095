//! The kernel of the emulated machine: unpacked from a distribution's package, never
//! installed, so that nothing changes about how the host boots.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{paths, process, tools, ui};

/// Names a directory with an unpacked kernel to use instead of the one that `setup` fetches.
pub(crate) const VARIABLE: &str = "CULVERT_VM_KERNEL";
/// The first kernel with netkit.
const OLDEST: (u32, u32) = (6, 7);
/// Debian's packages that depend on the newest kernel of a series: of a point release's
/// security updates, and of the release itself.
const META_PACKAGES: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];

/// An unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// `uname -r` of it.
    pub(crate) release: String,
    /// What the emulator boots.
    pub(crate) image: PathBuf,
    /// The directory that holds the one of the release.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The one named by the environment, or the one that `setup` has fetched.
    pub(crate) fn find() -> Result<Self> {
        let named = env::var_os(VARIABLE).map(PathBuf::from);
        let dir = named.clone().unwrap_or_else(paths::vm_kernel);
        match Self::newest_in(&dir) {
            Some(kernel) => Ok(kernel),
            None if named.is_some() => bail!(
                "{VARIABLE}={}: no kernel of Linux 6.7 or newer is there: the root of an unpacked \
                 package is valid, with boot/vmlinuz-RELEASE and lib/modules/RELEASE",
                dir.display()
            ),
            None => bail!(
                "no kernel for the emulated machine: run 'cargo xtask setup --full', or name one \
                 with {VARIABLE}=DIR (boot/vmlinuz-RELEASE and lib/modules/RELEASE in it)"
            ),
        }
    }

    fn newest_in(dir: &Path) -> Option<Self> {
        let modules = ["lib/modules", "usr/lib/modules"].map(|each| dir.join(each));
        let modules = modules.into_iter().find(|each| each.is_dir())?;
        let kernels = fs::read_dir(dir.join("boot")).ok()?.flatten().filter_map(|entry| {
            let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            let complete = modules.join(&release).join("modules.dep").is_file();
            let version = version(&release)?;
            let kernel = Self { release, image: entry.path(), modules: modules.clone() };
            (complete && version >= OLDEST).then_some((version, kernel))
        });
        kernels.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, kernel)| kernel)
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What `fetch` needs that is not everywhere, and for a person who has to do it by hand.
pub(crate) const BY_HAND: &str = "unpack a kernel of Linux 6.7 or newer with CONFIG_NETKIT=y and 9p over virtio as modules \
     (boot/vmlinuz-RELEASE, lib/modules/RELEASE with depmod's files), and name the directory \
     with CULVERT_VM_KERNEL";

/// The kernel package to fetch; none if apt knows none that is new enough.
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

    #[test]
    fn releases_are_ordered_by_number() {
        assert_eq!(version("6.12.117+deb12-amd64"), Some((6, 12)));
        assert!(version("6.12.1") > version("6.7.0") && version("7.2") > version("6.12"));
        assert_eq!(version("amd64"), None);
    }
}
