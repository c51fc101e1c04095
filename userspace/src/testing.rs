//! Namespaces and a small disk for tests.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

const NONE: Option<&str> = None;

/// Runs a test on a thread with a network namespace and a mount namespace of its own, and with an
/// empty directory on a file system of its own. What the test mounts there goes with the thread.
pub(crate) fn in_namespaces(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let isolated = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        test(dir.path());
    };
    thread::scope(|scope| drop(scope.spawn(isolated)));
}

/// A small tmpfs, unmounted when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts the disk at `path`, and makes that directory. `size` is a size of tmpfs such as
    /// `64k`.
    pub(crate) fn at(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=755");
        let options = Some(options.as_str());
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self(path.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes until there is no space left.
    pub(crate) fn fill(&self) {
        let mut file = fs::File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Removes what [`Self::fill`] has written.
    pub(crate) fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }

    /// Makes the disk read-only if `on`, by a second mount over the first: this works also if files
    /// are open for writing. Otherwise removes the second mount.
    pub(crate) fn read_only(&self, on: bool) {
        if !on {
            return umount2(self.path(), MntFlags::empty()).unwrap();
        }
        mount(Some(self.path()), self.path(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, self.path(), NONE, flags, NONE).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
