//! The lock of a store's directory: one process at a time.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use crate::{private, store::StoreError};

/// The lock on a store's directory. The kernel releases it when the process ends.
pub(super) struct DirLock {
    _file: Flock<File>,
}

impl DirLock {
    /// Makes the directory if it does not exist, and locks it. A symbolic link in place of the
    /// lock is refused.
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let name = dir.display();
        let refused = |what: &str, error: &dyn std::fmt::Display| {
            StoreError::Refused(format!("file:{name} cannot be {what}: {error}"))
        };
        private::make_dir(dir).map_err(|error| refused("made", &error))?;
        let file = private::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(|error| refused("opened", &error))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(StoreError::Unavailable(format!(
                    "file:{name} is in use by {}: stop that one, or use another directory",
                    holder(&mut file)
                )));
            }
            Err((_, error)) => return Err(refused("locked", &error)),
        };
        // Content of the lock file: the pid, for the error message of another process.
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(|error| refused("written to", &error))?;
        Ok(Self { _file: file })
    }
}

/// The process that holds the lock, as far as the lock file names it.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let pid = match file.read_to_string(&mut text).map(|_| text.trim().parse::<u32>()) {
        Ok(Ok(pid)) => pid,
        _ => return "another process".to_owned(),
    };
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}
