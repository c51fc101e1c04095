//! A small disk for tests.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NONE: Option<&str> = None;

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
