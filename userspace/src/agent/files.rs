//! Small files in the state directory.

use std::{
    fs::{self, DirEntry, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::etc;
use crate::private;
use crate::{
    model::Name,
    store::{Known, OwnWitness, Witness, new_id},
};

/// Replaces the contents of the file `path`. After a crash the file has the old or the new
/// contents, never a part. Only the user of this process can read the file.
pub(crate) fn write_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace(path, contents, true)
}

/// Replaces the contents of the file `path`. A process that is killed leaves the old or the new
/// contents. Nothing is synchronised with the disk: a crash of the host may leave anything. Only the
/// user of this process can read the file.
pub(crate) fn write_unsynced(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace(path, contents, false)
}

/// As [`write_atomically`] or, without `sync`, [`write_unsynced`].
fn replace(path: &Path, contents: &[u8], sync: bool) -> io::Result<()> {
    let mut scratch = path.as_os_str().to_owned();
    scratch.push(".new");
    let scratch = PathBuf::from(scratch);
    let written = private::create_anew(&scratch)
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

/// Name of the file that the agent which uses the directory holds locked.
const LOCK: &str = "lock";

/// Makes the state directory and locks it for this process. Dropping the value unlocks it. A
/// symbolic link in place of the lock is refused.
///
/// # Errors
///
/// One line that names the directory.
pub(crate) fn take_state_dir(path: &Path) -> Result<Flock<File>, String> {
    let refused = |what: &str, error: io::Error| {
        format!("state directory {}: {what}: {error}", path.display())
    };
    private::make_dir(path).map_err(|error| refused("cannot be made", error))?;
    let lock = path.join(LOCK);
    // Read-only, once it exists: the data plane of a host whose disk is read-only is kept, too.
    let file = match private::options().read(true).open(&lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private::options().write(true).create(true).truncate(false).open(&lock)
        }
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

/// Name of the file with the name under which this host was registered.
const NODE_NAME: &str = "node-name";

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
    state_dir.join(NODE_NAME)
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

/// Names of what else may be in the state directory and is not somebody else's: the embedded store
/// at its default place, and the directory of a file system's own.
const NEIGHBOURS: [&str; 2] = ["store", "lost+found"];

/// The permissions that [`tighten`] has taken from other users.
#[derive(Debug, Default)]
pub(crate) struct Tightened {
    /// Number of files and directories.
    pub(crate) number: u64,
    /// A file whose permissions cannot be changed, and why, on one line.
    pub(crate) failed: Option<String>,
}

impl Tightened {
    fn close(&mut self, path: &Path) {
        match private::close(path) {
            Ok(was_open) => self.number += u64::from(was_open),
            Err(error) => {
                let line = format!(
                    "state directory: other users can read {}, and its mode cannot be changed: {error}",
                    path.display()
                );
                self.failed.get_or_insert(line);
            }
        }
    }
}

/// Takes the permissions on the state directory and its files from other users: an earlier version
/// has left it readable. The files of [`etc`] stay readable in a directory that is not: commands of
/// any user read them, where they are mounted.
///
/// What is not Culvert's stays as it is, and so does the mode of a state directory that has
/// anything else in it.
pub(crate) fn tighten(state_dir: &Path) -> Tightened {
    let mut tightened = Tightened::default();
    let mut only_ours = true;
    for entry in entries(state_dir) {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_str().unwrap_or_default();
        if NEIGHBOURS.contains(&name) {
            continue;
        }
        let is_directory = DIRECTORIES.contains(&name);
        let file = name.strip_suffix(".new").unwrap_or(name);
        let own = [LOCK, NODE_ID, NODE_NAME, STORE, PURGED];
        if !is_directory && !own.contains(&file) && !FILES.contains(&name) && !FILES.contains(&file)
        {
            only_ours = false;
            continue;
        }
        tightened.close(&path);
        // Not through a symbolic link, to a directory that may have other files.
        if is_directory && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for below in entries(&path) {
                tightened.close(&below.path());
            }
        }
    }
    if only_ours {
        tightened.close(state_dir);
    }
    tightened
}

/// The entries of a directory; none if it cannot be read.
fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

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
    for file in [state_dir.join(NODE_ID), state_dir.join(LOCK), name_path(state_dir)] {
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir(state_dir);
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn no_other_user_can_read_what_the_agent_writes() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        drop(take_state_dir(&state_dir).unwrap());
        assert_eq!(mode(&state_dir), 0o700);
        instance_id(&state_dir).unwrap();
        keep_name(&state_dir, &"one".parse().unwrap()).unwrap();
        let unsynced = state_dir.join("unsynced");
        write_unsynced(&unsynced, b"x").unwrap();
        for file in [LOCK, NODE_ID, NODE_NAME, "unsynced"] {
            assert_eq!(mode(&state_dir.join(file)), 0o600, "{file}");
        }
        // A part that is left over has the mode of an earlier version.
        fs::write(state_dir.join("unsynced.new"), "part").unwrap();
        write_atomically(&unsynced, b"y").unwrap();
        assert_eq!((mode(&unsynced), fs::read(&unsynced).unwrap()), (0o600, b"y".to_vec()));
    }

    #[test]
    fn a_link_in_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, file) = (dir.path().join("victim"), dir.path().join("file"));
        fs::write(&victim, "theirs").unwrap();
        symlink(&victim, dir.path().join("file.new")).unwrap();
        write_atomically(&file, b"ours").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"ours");
        symlink(&victim, dir.path().join(LOCK)).unwrap();
        let refused = take_state_dir(dir.path()).unwrap_err();
        assert!(refused.contains("cannot be locked"), "{refused}");
        assert_eq!(refused.lines().count(), 1);
        assert_eq!(fs::read(&victim).unwrap(), b"theirs");
    }

    /// The state directory of an earlier version: each directory and file in it.
    fn earlier(state_dir: &Path) {
        fs::create_dir(state_dir).unwrap();
        for directory in [".", "containers", "logs", "etc", "etc/web", "store"] {
            let path = state_dir.join(directory);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        for file in
            [LOCK, NODE_ID, STORE, DENIED, "containers/web.json", "logs/web.log", "etc/web/hosts"]
        {
            fs::write(state_dir.join(file), "x").unwrap();
            fs::set_permissions(state_dir.join(file), Permissions::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn what_an_earlier_version_left_readable_is_tightened_once() {
        let dir = tempfile::tempdir().unwrap();
        let (state_dir, outside) = (dir.path().join("state"), dir.path().join("outside"));
        earlier(&state_dir);
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o644)).unwrap();
        symlink(&outside, state_dir.join("logs/db.log")).unwrap();

        let Tightened { number, failed } = tighten(&state_dir);
        // The directory, four of its directories, and six files.
        assert_eq!((number, failed), (11, None));
        for directory in [".", "containers", "logs", "etc", "etc/web"] {
            assert_eq!(mode(&state_dir.join(directory)), 0o700, "{directory}");
        }
        for file in [LOCK, NODE_ID, STORE, DENIED, "containers/web.json", "logs/web.log"] {
            assert_eq!(mode(&state_dir.join(file)), 0o600, "{file}");
        }
        let others = [(state_dir.join("etc/web/hosts"), 0o644), (outside, 0o644)];
        for (path, expected) in others {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        assert_eq!(tighten(&state_dir).number, 0);
    }

    #[test]
    fn a_directory_with_files_of_others_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        earlier(&state_dir);
        let theirs = state_dir.join("theirs");
        fs::write(&theirs, "x").unwrap();
        fs::set_permissions(&theirs, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(tighten(&state_dir).number, 10);
        assert_eq!((mode(&state_dir), mode(&theirs)), (0o755, 0o644));
        assert_eq!(mode(&state_dir.join("containers")), 0o700);
    }

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
