//! Path of the emulated machine's kernel.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::paths;

/// Names a directory with an unpacked kernel to use instead of the one that `setup` fetches.
pub(crate) const VARIABLE: &str = "CULVERT_VM_KERNEL";
/// The first kernel with netkit.
pub(super) const OLDEST: (u32, u32) = (6, 7);
/// An unpacked kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The image that the emulator boots.
    pub(crate) image: PathBuf,
    /// The directory `lib/modules`, which holds a directory named by the release.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The kernel that the environment variable names, or the one that `setup` has fetched.
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
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number() {
        assert_eq!(version("6.12.117+deb12-amd64"), Some((6, 12)));
        assert!(version("6.12.1") > version("6.7.0") && version("7.2") > version("6.12"));
        assert_eq!(version("amd64"), None);
    }
}
