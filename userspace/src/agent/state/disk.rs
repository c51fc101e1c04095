//! Whether the state directory can be written.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::statvfs::{FsFlags, statvfs},
};
use tokio_util::sync::CancellationToken;

use super::Problems;
use crate::{
    agent::files::remove_if_there,
    api::types::{ApiError, ErrorKind},
    limits::name_limit,
    private,
};

/// Period of the checks.
const PERIOD: Duration = Duration::from_secs(1);
/// Size of the file that is written to try the directory: a block of most file systems.
const BLOCK: usize = 4096;
/// Key of the problem in `status`.
const PROBLEM: &str = "state-dir";
/// Name of the file that is written to try the directory.
const PROBE: &str = "probe.new";

/// The state directory: a write that fails is a problem in `status` until one succeeds.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    directory: PathBuf,
    problems: Arc<Problems>,
}

impl Disk {
    pub(crate) fn new(directory: PathBuf, problems: Arc<Problems>) -> Self {
        Self { directory, problems }
    }

    /// The refusal of a request that could not write `what`. The problem is in `status` from now
    /// on.
    pub(crate) fn refuse(&self, what: &str, error: io::Error) -> ApiError {
        if let Some(line) = self.line(&error) {
            self.problems.set(PROBLEM, Some(line.clone()));
            // The request is valid, and may succeed later.
            return ApiError::new(ErrorKind::Unavailable, format!("{what}: {line}"));
        }
        ApiError::new(ErrorKind::Internal, format!("{what}: {}", name_limit(error)))
    }

    /// Refuses a request that will write `what`, if the directory cannot be written.
    ///
    /// # Errors
    ///
    /// A write has failed before, and fails now.
    pub(crate) fn writable(&self, what: &str) -> Result<(), ApiError> {
        if !self.problems.has(PROBLEM) {
            return Ok(());
        }
        try_to_write(&self.directory).map_err(|error| self.refuse(what, error))
    }

    /// Refuses a request that will remove a file of `what`, if files cannot be removed. A full disk
    /// does not prevent a removal.
    ///
    /// # Errors
    ///
    /// The file system is read-only.
    pub(crate) fn removable(&self, what: &str) -> Result<(), ApiError> {
        match statvfs(&self.directory) {
            Ok(about) if about.flags().contains(FsFlags::ST_RDONLY) => {
                Err(self.refuse(what, Errno::EROFS.into()))
            }
            _ => Ok(()),
        }
    }

    /// The problem on one line; `None` if the error is not one of the directory's file system.
    fn line(&self, error: &io::Error) -> Option<String> {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull => "free space or files there",
            io::ErrorKind::QuotaExceeded => "raise the quota or free space there",
            io::ErrorKind::ReadOnlyFilesystem => "mount it for reading and writing",
            _ => return None,
        };
        let directory = self.directory.display();
        Some(format!("state directory {directory} cannot be written: {error}: {remedy}"))
    }

    /// Checks the directory. Writes a file only if there are signs of a problem, or if a write has
    /// failed before: a check must not keep an idle disk awake.
    fn check(&self) {
        let doubtful = match statvfs(&self.directory) {
            Ok(about) => {
                about.blocks_available() == 0
                    // A file system without a fixed number of files reports none.
                    || (about.files() > 0 && about.files_available() == 0)
                    || about.flags().contains(FsFlags::ST_RDONLY)
            }
            Err(_) => true,
        };
        if !doubtful && !self.problems.has(PROBLEM) {
            return;
        }
        let line = match try_to_write(&self.directory) {
            Ok(()) => None,
            Err(error) => Some(self.line(&error).unwrap_or_else(|| {
                let directory = self.directory.display();
                format!("state directory {directory} cannot be written: {}", name_limit(error))
            })),
        };
        self.problems.set(PROBLEM, line);
    }

    /// Checks the directory until the agent stops.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let of_check = self.clone();
            // The disk may hang.
            if tokio::task::spawn_blocking(move || of_check.check()).await.is_err() {
                return;
            }
        }
    }
}

/// Writes a file and removes it.
fn try_to_write(directory: &Path) -> io::Result<()> {
    let path = directory.join(PROBE);
    let made = private::create_anew(&path);
    let written = made.and_then(|mut file| file.write_all(&[0; BLOCK]));
    let removed = remove_if_there(&path);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::SmallDisk;

    #[test]
    #[ignore = "needs root"]
    fn a_full_or_read_only_directory_is_a_problem_until_it_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let small = SmallDisk::at(&dir.path().join("state"), "64k");
        let problems = Arc::new(Problems::default());
        let disk = Disk::new(small.path().to_owned(), Arc::clone(&problems));
        disk.check();
        assert!(problems.lines().is_empty());

        small.fill();
        disk.check();
        let lines = problems.lines();
        let expected = format!(
            "state directory {} cannot be written: No space left on device (os error 28): free space or files there",
            small.path().display()
        );
        assert_eq!(lines, [expected]);
        small.empty();
        disk.check();
        assert!(problems.lines().is_empty());

        small.read_only(true);
        disk.check();
        let lines = problems.lines();
        assert!(lines[0].contains("Read-only file system"), "{lines:?}");
        small.read_only(false);
        disk.check();
        assert!(problems.lines().is_empty());
        assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_file_that_is_tried_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "theirs").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(PROBE)).unwrap();
        try_to_write(dir.path()).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_request_that_cannot_write_is_refused_for_the_disk() {
        let problems = Arc::new(Problems::default());
        let disk = Disk::new("/x".into(), Arc::clone(&problems));
        let error = disk.refuse("container 'a'", io::Error::other("bad"));
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Internal, "container 'a': bad")
        );
        assert!(problems.lines().is_empty());
        for (kind, errno) in [
            (nix::libc::EDQUOT, "raise the quota"),
            (nix::libc::ENOSPC, "free space"),
            (nix::libc::EROFS, "for reading and writing"),
        ] {
            let error = disk.refuse("container 'a'", io::Error::from_raw_os_error(kind));
            assert_eq!(error.kind, ErrorKind::Unavailable);
            assert!(error.message.starts_with("container 'a': state directory /x cannot"));
            assert!(error.message.contains(errno), "{error}");
            assert_eq!(problems.lines().len(), 1);
        }
    }
}
