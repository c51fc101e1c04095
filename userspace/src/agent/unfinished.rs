//! Sandboxes that are being made or removed: a file `unfinished/NAME` in the state directory for
//! each.
//!
//! A sandbox has its record only once it is complete. If the agent is killed before, or after a
//! record whose file is lost has gone, the file names the namespace that is left behind. It is not
//! synchronised with the disk: a crash of the host takes the namespace with it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::files::UNFINISHED;
use crate::model::Name;

/// The files of one agent.
#[derive(Debug)]
pub(crate) struct Unfinished {
    directory: PathBuf,
    /// Those that nobody carries on with.
    left: Mutex<BTreeSet<Name>>,
}

impl Unfinished {
    /// Reads `STATE_DIR/unfinished`. What is there was left by an earlier agent.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let directory = state_dir.join(UNFINISHED);
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        let left = files.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect();
        Self { directory, left: Mutex::new(left) }
    }

    // A thread that panicked with the lock held left a valid set: it changes in one step.
    fn left_mut(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the sandbox `name` is being made or removed.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub(crate) fn begin(&self, name: &Name) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::write(self.directory.join(name.as_str()), "")
    }

    /// Notes that the sandbox `name` is complete, or gone.
    ///
    /// # Errors
    ///
    /// The file cannot be removed. The next agent finds it.
    pub(crate) fn end(&self, name: &Name) -> io::Result<()> {
        self.left_mut().remove(name);
        match fs::remove_file(self.directory.join(name.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes that nobody carries on with the sandbox `name`.
    pub(crate) fn leave(&self, name: &Name) {
        self.left_mut().insert(name.clone());
    }

    /// Whether nobody carries on with the sandbox `name`.
    pub(crate) fn is_left(&self, name: &Name) -> bool {
        self.left_mut().contains(name)
    }

    /// The sandboxes that nobody carries on with.
    pub(crate) fn left(&self) -> Vec<Name> {
        self.left_mut().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_begun_and_not_ended_is_found_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c]: [Name; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let one = Unfinished::load(dir.path());
        for name in [&a, &b, &b] {
            one.begin(name).unwrap();
        }
        one.end(&b).unwrap();
        one.end(&b).unwrap();
        assert!(one.left().is_empty(), "a request is under way");
        one.leave(&c);
        assert_eq!(one.left(), [c]);
        fs::write(dir.path().join(UNFINISHED).join("not a name"), "").unwrap();
        let next = Unfinished::load(dir.path());
        assert!(next.is_left(&a) && !next.is_left(&b));
        next.end(&a).unwrap();
        assert!(Unfinished::load(dir.path()).left().is_empty());
    }
}
