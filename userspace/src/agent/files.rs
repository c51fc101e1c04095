//! Small files in the state directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::store::new_id;

/// Replaces the contents of the file `path`. After a crash the file has the old or the new
/// contents, never a part.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut scratch = path.as_os_str().to_owned();
    scratch.push(".new");
    let scratch = PathBuf::from(scratch);
    let mut file = File::create(&scratch)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&scratch, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
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
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join("lock"))
        .map_err(|error| refused("cannot be locked", error))?;
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

/// The identifier of this installation, made on the first start and kept in the state
/// directory. It tells a restarted agent from another agent with the same node name.
pub(crate) fn instance_id(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.join("node-id");
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
}

/// Mark and revision of the store at `url` as last seen; `None` on a first start.
pub(crate) fn known_store(state_dir: &Path, url: &str) -> Option<(String, i64)> {
    let text = fs::read(state_dir.join(STORE)).ok()?;
    let known: KnownStore = serde_json::from_slice(&text).ok()?;
    (known.url == url).then_some((known.mark, known.revision))
}

/// Writes the identity of the store, for [`known_store`].
pub(crate) fn remember_store(
    state_dir: &Path,
    url: &str,
    mark: &str,
    revision: i64,
) -> io::Result<()> {
    let known = KnownStore { url: url.to_owned(), mark: mark.to_owned(), revision };
    write_atomically(&state_dir.join(STORE), serde_json::to_string(&known)?.as_bytes())
}

/// Path of the file that the operator removes to accept another store.
pub(crate) fn store_mark_path(state_dir: &Path) -> PathBuf {
    state_dir.join(STORE)
}

/// Name of the file that says that this host was purged without the store. The next agent
/// removes the node from the store before anything else.
const PURGED: &str = "purged";

/// Makes the file [`PURGED`].
pub(crate) fn mark_purged(state_dir: &Path) -> io::Result<()> {
    write_atomically(&state_dir.join(PURGED), b"")
}

/// Whether the file [`PURGED`] exists.
pub(crate) fn is_marked_purged(state_dir: &Path) -> bool {
    state_dir.join(PURGED).exists()
}

/// Removes the file [`PURGED`].
pub(crate) fn unmark_purged(state_dir: &Path) -> io::Result<()> {
    fs::remove_file(state_dir.join(PURGED))
}

/// Removes the agent's files from the state directory, and the directory if it is then empty.
/// Errors are ignored: a file that is left does no harm.
pub(crate) fn remove_state(state_dir: &Path) {
    for directory in ["containers", "logs"] {
        let _ = fs::remove_dir_all(state_dir.join(directory));
    }
    for file in ["node-id", "lock"] {
        let _ = fs::remove_file(state_dir.join(file));
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
