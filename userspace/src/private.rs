//! Files and directories for this process's user alone. Command lines, logs and environments of
//! containers often have passwords.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use nix::libc;

/// Mode of a new directory.
const DIRECTORY: u32 = 0o700;
/// Mode of a new file.
const FILE: u32 = 0o600;
/// The permissions of the group and of all other users.
const OTHERS: u32 = 0o077;

/// Options to open a file. A new file is for this process's user alone. A symbolic link in place of
/// the file is an error.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Makes a file, in place of one that is left over from a crash, or that somebody else has put there.
///
/// # Errors
///
/// The kernel refuses.
pub fn create_anew(path: &Path) -> io::Result<File> {
    let _ = fs::remove_file(path);
    options().write(true).create_new(true).open(path)
}

/// Makes a directory that this process's user alone can enter, and its parents. It is no error if
/// the directory exists.
///
/// # Errors
///
/// The kernel refuses.
pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(path)
}

/// Takes all permissions on a file or directory from other users. Symbolic links, and files of
/// other kinds, are left alone. Returns whether other users had a permission.
///
/// # Errors
///
/// The kernel refuses. It is no error if the file does not exist.
pub fn close(path: &Path) -> io::Result<bool> {
    match try_to_close(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        closed => closed,
    }
}

fn try_to_close(path: &Path) -> io::Result<bool> {
    let is_open = |found: &Metadata| {
        let is_ours = found.is_file() || found.is_dir();
        is_ours && found.permissions().mode() & OTHERS != 0
    };
    if !is_open(&fs::symlink_metadata(path)?) {
        return Ok(false);
    }
    // Another file may have taken its place: what is changed is what is looked at. O_NONBLOCK: it
    // may be a FIFO.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !is_open(&found) {
        return Ok(false);
    }
    // The bits above are the kind of the file.
    let mode = found.permissions().mode() & 0o7777 & !OTHERS;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn new_files_and_directories_are_for_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        make_dir(&made).unwrap();
        make_dir(&made).unwrap();
        assert_eq!([mode(&dir.path().join("a")), mode(&made)], [0o700; 2]);
        let file = made.join("file");
        options().write(true).create_new(true).open(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
        let link = made.join("link");
        symlink(&file, &link).unwrap();
        assert!(options().read(true).open(&link).is_err());
        assert!(options().write(true).create(true).truncate(false).open(&link).is_err());
    }

    #[test]
    fn permissions_of_others_are_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, before, after) in [("a", 0o644, 0o600), ("b", 0o640, 0o600), ("c", 0o555, 0o500)]
        {
            fs::write(path(name), "").unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(before)).unwrap();
            assert!(close(&path(name)).unwrap());
            assert_eq!(mode(&path(name)), after, "{name}");
            assert!(!close(&path(name)).unwrap(), "{name}: nothing is left to do");
        }
        fs::create_dir(path("directory")).unwrap();
        fs::set_permissions(path("directory"), Permissions::from_mode(0o2755)).unwrap();
        assert!(close(&path("directory")).unwrap());
        assert_eq!(mode(&path("directory")), 0o2700);

        fs::write(path("other"), "").unwrap();
        fs::set_permissions(path("other"), Permissions::from_mode(0o644)).unwrap();
        symlink(path("other"), path("link")).unwrap();
        assert!(!close(&path("link")).unwrap());
        assert_eq!(mode(&path("other")), 0o644);
        assert!(!close(&path("missing")).unwrap());
    }
}
