//! The BPF file system.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
};

use culvert_common::abi::ABI_VERSION;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::error::DatapathError;
use crate::{limits::name_limit, mountinfo};

/// Directory of the pins of this build: `BPFFS/v<ABI_VERSION>`.
pub(super) fn version_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI_VERSION}"))
}

/// The version of the map ABI whose pins a directory holds; `None` if it holds none.
pub(super) fn version_of(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// Whether the directory is on a BPF file system.
pub(super) fn is_mounted(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `dir` unless it is on one already.
pub(super) fn ensure_mounted(dir: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(dir).map_err(failed(dir, "create directory"))?;
    if is_mounted(dir) {
        return Ok(());
    }
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| failed(dir, "mount BPF file system")(errno.into()))
}

/// Where BPF file systems are mounted in this mount namespace. Empty if that cannot be read.
pub(super) fn mount_points() -> Vec<PathBuf> {
    let mounts = mountinfo::of("thread-self").unwrap_or_default();
    mounts.into_iter().filter(|mount| mount.kind == "bpf").map(|mount| mount.point).collect()
}

/// Makes a directory and its parents.
pub(super) fn create_dir(dir: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(dir).map_err(failed(dir, "create directory"))
}

/// Entries of a directory; none if there is no such directory.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    Ok(entries(dir)?.iter().map(fs::DirEntry::path).collect())
}

/// Entries of a directory with their inode numbers; none if there is no such directory. The inode
/// numbers are part of the listing, so this costs no more than [`list`].
pub(super) fn inodes(dir: &Path) -> Result<BTreeMap<PathBuf, u64>, DatapathError> {
    Ok(entries(dir)?.iter().map(|entry| (entry.path(), entry.ino())).collect())
}

fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, DatapathError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map_err(failed(dir, "list"))).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(dir, "list")(error)),
    }
}

/// Removes a pin; it is no error if there is none.
pub(super) fn remove_file(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path, "remove pin")(error)),
    }
}

/// Removes a directory of pins. Links are removed first, so that the programs stop before
/// their maps are removed.
pub(super) fn remove_tree(dir: &Path) -> Result<(), DatapathError> {
    for sub in ["links", "programs", "maps"] {
        let sub = dir.join(sub);
        for pin in list(&sub)? {
            remove_file(&pin)?;
        }
        remove_dir(&sub)?;
    }
    remove_dir(dir)
}

fn remove_dir(dir: &Path) -> Result<(), DatapathError> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(dir, "remove directory")(error)),
    }
}

/// Unmounts the BPF file system at `dir` if it has no pins left.
pub(super) fn unmount_if_empty(dir: &Path) -> Result<(), DatapathError> {
    // The kernel puts these into every BPF file system.
    let own = |path: &PathBuf| !path.ends_with("maps.debug") && !path.ends_with("progs.debug");
    if list(dir)?.iter().any(own) || !is_mount_point(dir) {
        return Ok(());
    }
    umount2(dir, MntFlags::MNT_DETACH)
        .map_err(|errno| failed(dir, "unmount BPF file system")(errno.into()))?;
    remove_dir(dir)
}

/// Whether `dir` is on another file system than its parent directory.
fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    match (device(dir), dir.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

fn failed<'a>(path: &'a Path, what: &'static str) -> impl Fn(io::Error) -> DatapathError + 'a {
    move |source| DatapathError::Io { path: path.to_owned(), what, source: name_limit(source) }
}
