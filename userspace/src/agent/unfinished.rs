//! Sandboxes that are being made or removed: a file `unfinished/NAME.json` in the state directory
//! for each.
//!
//! A sandbox has its record only once it is complete. The file names the namespace that is left
//! behind if the agent is killed before the record is written. It also does so while a container is
//! removed that has endpoints and no record: once they are removed, nothing else names the
//! namespace. Another program may since have made a namespace of that name, so the file has device
//! and inode of the one that is meant, and the boot. It is not synchronised with the disk: after a
//! crash of the host the namespace does not exist either.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    containers::{boot, is_past},
    files::{UNFINISHED, remove_if_there, write_unsynced},
};
use crate::{
    model::{Name, NetnsId},
    private,
};

/// `unfinished/NAME.json`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Note {
    /// The boot in which it was written.
    boot: Option<u64>,
    /// The namespace. `None`: it was not made yet.
    namespace: Option<NetnsId>,
    /// Nobody carries on with it.
    #[serde(skip)]
    left: bool,
}

/// The files of one agent.
#[derive(Debug)]
pub(crate) struct Unfinished {
    directory: PathBuf,
    notes: Mutex<BTreeMap<Name, Note>>,
}

impl Unfinished {
    /// Reads `STATE_DIR/unfinished`. What is there was left by an earlier agent. A file that cannot
    /// be read names no namespace.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let directory = state_dir.join(UNFINISHED);
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        let left = files.filter_map(|file| {
            let name = file.file_name();
            let name: Name = name.to_str()?.strip_suffix(".json")?.parse().ok()?;
            let text = fs::read(file.path()).unwrap_or_default();
            let note: Note = serde_json::from_slice(&text).unwrap_or_default();
            Some((name, Note { left: true, ..note }))
        });
        let notes = Mutex::new(left.collect());
        Self { directory, notes }
    }

    // A thread that panicked with the lock held left a valid map: it changes in one step.
    fn notes_mut(&self) -> MutexGuard<'_, BTreeMap<Name, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    fn write(&self, name: &Name, namespace: Option<NetnsId>) -> io::Result<()> {
        let note = Note { boot: boot(), namespace, left: false };
        private::make_dir(&self.directory)?;
        write_unsynced(&self.path(name), &serde_json::to_vec(&note)?)?;
        self.notes_mut().insert(name.clone(), note);
        Ok(())
    }

    /// Notes that the sandbox `name` is going to be made.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub(crate) fn begin(&self, name: &Name) -> io::Result<()> {
        self.write(name, None)
    }

    /// Notes that the sandbox `name` is `namespace`: it is going to have its path, or to be removed.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or written to.
    pub(crate) fn made(&self, name: &Name, namespace: NetnsId) -> io::Result<()> {
        self.write(name, Some(namespace))
    }

    /// Notes that the sandbox `name` is complete, or gone.
    ///
    /// # Errors
    ///
    /// The file cannot be removed. The next agent finds it.
    pub(crate) fn end(&self, name: &Name) -> io::Result<()> {
        self.notes_mut().remove(name);
        remove_if_there(&self.path(name))
    }

    /// Notes that nobody carries on with the sandbox `name`.
    pub(crate) fn leave(&self, name: &Name) {
        self.notes_mut().entry(name.clone()).or_default().left = true;
    }

    /// Whether nobody carries on with the sandbox `name`.
    pub(crate) fn is_left(&self, name: &Name) -> bool {
        self.notes_mut().get(name).is_some_and(|note| note.left)
    }

    /// Whether the namespace that was found at the path of the sandbox `name` is the one that was
    /// noted, and not another program's.
    pub(crate) fn is_meant(&self, name: &Name, found: Option<NetnsId>) -> bool {
        let note = self.notes_mut().get(name).copied().unwrap_or_default();
        found.is_some() && note.namespace == found && !is_past(note.boot)
    }

    /// The sandboxes that nobody carries on with.
    pub(crate) fn left(&self) -> Vec<Name> {
        let notes = self.notes_mut();
        notes.iter().filter(|(_, note)| note.left).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: NetnsId = NetnsId { dev: 4, ino: 9 };

    #[test]
    fn what_has_begun_and_not_ended_is_found_by_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c]: [Name; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let one = Unfinished::load(dir.path());
        for name in [&a, &b, &b] {
            one.begin(name).unwrap();
        }
        one.made(&a, NETNS).unwrap();
        one.end(&b).unwrap();
        one.end(&b).unwrap();
        assert!(one.left().is_empty(), "a request is under way");
        one.leave(&c);
        assert_eq!(one.left(), [c]);
        fs::write(dir.path().join(UNFINISHED).join("not a name.json"), "").unwrap();
        fs::write(dir.path().join(UNFINISHED).join("b.json.new"), "").unwrap();
        let next = Unfinished::load(dir.path());
        assert!(next.is_left(&a) && !next.is_left(&b));
        next.end(&a).unwrap();
        assert!(Unfinished::load(dir.path()).left().is_empty());
    }

    #[test]
    fn a_namespace_is_known_by_its_identity_and_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let [made, begun, torn, past]: [Name; 4] =
            ["made", "begun", "torn", "past"].map(|name| name.parse().unwrap());
        let one = Unfinished::load(dir.path());
        for name in [&made, &begun, &torn, &past] {
            one.begin(name).unwrap();
            assert!(!one.is_meant(name, Some(NETNS)));
        }
        one.made(&made, NETNS).unwrap();
        one.made(&torn, NETNS).unwrap();
        fs::write(one.path(&torn), "").unwrap();
        let note = Note { boot: boot().map(|boot| boot ^ 1), namespace: Some(NETNS), left: false };
        fs::write(one.path(&past), serde_json::to_vec(&note).unwrap()).unwrap();
        let next = Unfinished::load(dir.path());
        assert_eq!(next.left().len(), 4);
        for unfinished in [&one, &next] {
            assert!(unfinished.is_meant(&made, Some(NETNS)));
            assert!(!unfinished.is_meant(&made, Some(NetnsId { ino: 8, ..NETNS })));
            assert!(!unfinished.is_meant(&made, None));
            assert!(!unfinished.is_meant(&begun, Some(NETNS)));
        }
        for name in [&torn, &past] {
            assert!(!next.is_meant(name, Some(NETNS)), "{name}");
        }
    }
}
