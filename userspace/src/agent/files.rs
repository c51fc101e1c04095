//! Small files in the state directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::etc;
use crate::{
    model::Name,
    store::{Known, OwnWitness, Witness, new_id},
};

/// Replaces the contents of the file `path`. After a crash the file has the old or the new
/// contents, never a part.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_with_mode(path, contents, 0o666, true)
}

/// Replaces the contents of the file `path`. A process that is killed leaves the old or the new
/// contents. Nothing is synchronised with the disk: a crash of the host may leave anything.
pub(crate) fn write_unsynced(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_with_mode(path, contents, 0o666, false)
}

/// As [`write_atomically`]. Only the user of this process can read the file.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_with_mode(path, contents, 0o600, true)
}

/// As [`write_atomically`] or, without `sync`, [`write_unsynced`]; the umask limits `mode`.
fn write_with_mode(path: &Path, contents: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let mut scratch = path.as_os_str().to_owned();
    scratch.push(".new");
    let scratch = PathBuf::from(scratch);
    // One that is left over from a crash may have another mode.
    let _ = fs::remove_file(&scratch);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&scratch)
        .and_then(|mut file| {
            file.write_all(contents)?;
            if sync { file.sync_all() } else { Ok(()) }
        })
        .and_then(|()| fs::rename(&scratch, path));
    if let Err(error) = written {
        // Best effort: on a full disk a part is in the way.
        let _ = fs::remove_file(&scratch);
        return Err(error);
    }
    if let Some(directory) = path.parent().filter(|_| sync) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Removes a file; it is no error if there is none.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the state directory and locks it for this process. Dropping the value unlocks it.
///
/// # Errors
///
/// One line that names the directory.
pub(crate) fn take_state_dir(path: &Path) -> Result<Flock<File>, String> {
    let refused = |what: &str, error: io::Error| {
        format!("state directory {}: {what}: {error}", path.display())
    };
    fs::create_dir_all(path).map_err(|error| refused("cannot be made", error))?;
    let lock = path.join("lock");
    // Read-only, once it exists: the data plane of a host whose disk is read-only is kept, too.
    let file = match File::open(&lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => File::create(&lock),
        opened => opened,
    };
    let file = file.map_err(|error| refused("cannot be locked", error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            format!(
                "state directory {} is in use by another culvert agent: stop it or give another --state-dir",
                path.display()
            )
        } else {
            refused("cannot be locked", errno.into())
        }
    })
}

/// Name of the file with the identifier of this installation.
const NODE_ID: &str = "node-id";

/// The identifier of this installation, made on the first start and kept in the state
/// directory. It tells a restarted agent from another agent with the same node name.
pub(crate) fn instance_id(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join(NODE_ID);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(id.to_owned());
            }
            Err(io::Error::other(format!(
                "{} is malformed: 64 hexadecimal digits are valid; remove it to get a new one",
                path.display()
            )))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = new_id();
            write_atomically(&path, id.as_bytes())?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// Path of the file with the name under which this host was registered.
pub(crate) fn name_path(state_dir: &Path) -> PathBuf {
    state_dir.join("node-name")
}

/// The name under which this host was registered. `None`: it never was, or was purged since.
pub(crate) fn kept_name(state_dir: &Path) -> io::Result<Option<Name>> {
    match fs::read_to_string(name_path(state_dir)) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the name under which this host is registered, for [`kept_name`].
pub(crate) fn keep_name(state_dir: &Path, name: &Name) -> io::Result<()> {
    if kept_name(state_dir).ok().flatten().as_ref() == Some(name) {
        return Ok(());
    }
    write_atomically(&name_path(state_dir), name.as_str().as_bytes())
}

/// Name of the file with the identity of the store that this agent has followed. With it a
/// restarted agent notices that the store was wiped.
const STORE: &str = "store-mark";

/// The contents of [`STORE`].
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct KnownStore {
    /// Value of `--store`. If it changes, the operator has chosen another store.
    url: String,
    /// Mark of the store.
    mark: String,
    /// A revision that the store had.
    revision: i64,
    /// A write in its history.
    #[serde(default)]
    witness: Option<Witness>,
    /// The last write of this host's own key.
    #[serde(default)]
    own: Option<OwnWitness>,
    /// Why the store was called replaced, if it was.
    #[serde(default)]
    replaced: Option<String>,
}

/// The store at `url` as last seen; `None` on a first start.
pub(crate) fn known_store(state_dir: &Path, url: &str) -> Option<Known> {
    let text = fs::read(state_dir.join(STORE)).ok()?;
    let known: KnownStore = serde_json::from_slice(&text).ok()?;
    let KnownStore { mark, revision, witness, own, replaced, .. } = known;
    (known.url == url).then_some(Known { mark, revision, witness, own, replaced })
}

/// Writes the identity of the store, for [`known_store`].
pub(crate) fn remember_store(state_dir: &Path, url: &str, known: Known) -> io::Result<()> {
    let Known { mark, revision, witness, own, replaced } = known;
    let known = KnownStore { url: url.to_owned(), mark, revision, witness, own, replaced };
    write_atomically(&state_dir.join(STORE), serde_json::to_string(&known)?.as_bytes())
}

/// Path of the file with the identity of the store.
pub(crate) fn store_mark_path(state_dir: &Path) -> PathBuf {
    state_dir.join(STORE)
}

/// Name of the file that says that this host was purged without the store: the identifier of its
/// node. The next agent removes that node from the store before anything else.
const PURGED: &str = "purged";

/// Makes the file [`PURGED`], and gives up identifier and name: the next agent is another one. If
/// this state directory is a copy, the node in the store is not this host's, but only the next
/// agent can see that.
pub(crate) fn mark_purged(state_dir: &Path) -> io::Result<()> {
    // An earlier purge that is not finished goes first: the identifier of today was never registered.
    if purged_id(state_dir).is_none_or(|before| before.is_empty()) {
        let id = fs::read(state_dir.join(NODE_ID)).unwrap_or_default();
        write_atomically(&state_dir.join(PURGED), &id)?;
    }
    for path in [state_dir.join(NODE_ID), name_path(state_dir)] {
        remove_if_there(&path)?;
    }
    Ok(())
}

/// The identifier in the file [`PURGED`]. `None`: there is no such file. The file of an earlier
/// version is empty, and the identifier is still the agent's.
pub(crate) fn purged_id(state_dir: &Path) -> Option<String> {
    fs::read_to_string(state_dir.join(PURGED)).ok().map(|id| id.trim().to_owned())
}

/// Removes the file [`PURGED`].
pub(crate) fn unmark_purged(state_dir: &Path) -> io::Result<()> {
    fs::remove_file(state_dir.join(PURGED))
}

/// Directory of [`reruns`](super::reruns) in the state directory.
pub(crate) const RERUNS: &str = "reruns";
/// Directory of [`unfinished`](super::unfinished) in the state directory.
pub(crate) const UNFINISHED: &str = "unfinished";
/// Directory of [`attempts`](super::attempts) in the state directory.
pub(crate) const ATTEMPTS: &str = "attempts";

/// Name of the file with the clients that may not use published ports: a line for each address or
/// prefix.
pub(crate) const DENIED: &str = "denied";

/// Name of the file with the paths of the certificates of the connection to the store.
pub(crate) const CERTIFICATES: &str = "store-certificates";

/// Directories of the state directory: records, logs and files of containers, what their commands
/// are started again with, what was not finished.
const DIRECTORIES: [&str; 6] = ["containers", "logs", etc::DIRECTORY, RERUNS, UNFINISHED, ATTEMPTS];

/// Files that an agent leaves, other than those that say which agent it is.
const FILES: [&str; 3] = [CERTIFICATES, DENIED, "probe.new"];

/// Removes what every purge removes from the state directory. Errors are ignored: a file that is
/// left does no harm.
pub(crate) fn remove_files(state_dir: &Path) {
    for directory in DIRECTORIES {
        let _ = fs::remove_dir_all(state_dir.join(directory));
    }
    for file in FILES {
        let _ = fs::remove_file(state_dir.join(file));
    }
}

/// Removes the agent's files from the state directory, and the directory if it is then empty.
/// Errors are ignored: a file that is left does no harm.
pub(crate) fn remove_state(state_dir: &Path) {
    remove_files(state_dir);
    for file in [state_dir.join(NODE_ID), state_dir.join("lock"), name_path(state_dir)] {
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir(state_dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_keeps_its_identifier() {
        let dir = tempfile::tempdir().unwrap();
        let id = instance_id(dir.path()).unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(instance_id(dir.path()).unwrap(), id);
        fs::write(dir.path().join("node-id"), "x").unwrap();
        assert!(instance_id(dir.path()).unwrap_err().to_string().contains("malformed"));
    }

    #[test]
    fn the_name_is_kept_and_a_purge_gives_up_name_and_identifier() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = ("one".parse().unwrap(), "two".parse().unwrap());
        assert_eq!(kept_name(dir.path()).unwrap(), None);
        keep_name(dir.path(), &one).unwrap();
        keep_name(dir.path(), &two).unwrap();
        assert_eq!(kept_name(dir.path()).unwrap(), Some(two));
        fs::write(name_path(dir.path()), "a b").unwrap();
        assert!(kept_name(dir.path()).unwrap_err().to_string().contains("malformed"));

        let id = instance_id(dir.path()).unwrap();
        assert_eq!(purged_id(dir.path()), None);
        // A second purge before the first one is finished in the store does not replace it.
        for _ in 0..2 {
            mark_purged(dir.path()).unwrap();
            assert_eq!(purged_id(dir.path()), Some(id.clone()));
            assert_eq!(kept_name(dir.path()).unwrap(), None);
            assert_ne!(instance_id(dir.path()).unwrap(), id);
        }
        unmark_purged(dir.path()).unwrap();
        assert_eq!(purged_id(dir.path()), None);
    }

    #[test]
    fn both_purges_remove_the_same_files() {
        let purges: [fn(&Path); 2] = [remove_state, |dir| {
            remove_files(dir);
            mark_purged(dir).unwrap();
        }];
        for purge in purges {
            let dir = tempfile::tempdir().unwrap();
            let state_dir = dir.path().join("state");
            drop(take_state_dir(&state_dir).unwrap());
            instance_id(&state_dir).unwrap();
            keep_name(&state_dir, &"one".parse().unwrap()).unwrap();
            for directory in DIRECTORIES {
                fs::create_dir(state_dir.join(directory)).unwrap();
                fs::write(state_dir.join(directory).join("x"), "x").unwrap();
            }
            for file in [CERTIFICATES, DENIED] {
                fs::write(state_dir.join(file), "x").unwrap();
            }
            purge(&state_dir);
            let left = fs::read_dir(&state_dir).into_iter().flatten();
            let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            // Of the purge without the store: the file with the identifier, and the lock of an
            // agent that may be the purging process.
            assert!(left.iter().all(|name| name == PURGED || name == "lock"), "{left:?}");
        }
    }

    #[test]
    fn a_state_directory_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let held = take_state_dir(&path).unwrap();
        let refused = take_state_dir(&path).unwrap_err();
        assert!(refused.contains("in use by another culvert agent"), "{refused}");
        drop(held);
        take_state_dir(&path).unwrap();
    }
}
