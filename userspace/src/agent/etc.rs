//! The files that commands of a container see in `/etc`: resolv.conf, hosts and hostname, in the
//! directory `etc/NAME` of the state directory.
//!
//! The files are mounted over the host's files, so they are changed in place: a running command
//! would not see a new file of the same name.

use std::{
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::private;
use crate::{
    model::Name,
    sandbox::{self, ResolvConf},
};

/// Name of the directory in the state directory.
pub(crate) const DIRECTORY: &str = "etc";

/// Name of the file of hosts(5).
const HOSTS: &str = "hosts";
/// Name of the file of hostname(5).
const HOSTNAME: &str = "hostname";
/// Name of the file of resolv.conf(5).
const RESOLV_CONF: &str = "resolv.conf";
/// Longest part of a resolv.conf that is read, in bytes: the container can write anything into it.
const MOST: u64 = 1 << 16;

/// The contents of the files of a new container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EtcFiles {
    /// Names of the container, the host name first.
    pub(crate) names: Vec<String>,
    /// Addresses of the container.
    pub(crate) addresses: Vec<IpAddr>,
    /// Further entries of the hosts file: names with their addresses.
    pub(crate) entries: Vec<(String, IpAddr)>,
    /// Contents of resolv.conf.
    pub(crate) resolver: ResolvConf,
}

/// The directory of a container's files.
pub(crate) fn directory(state_dir: &Path, name: &Name) -> PathBuf {
    state_dir.join(DIRECTORY).join(name.as_str())
}

impl EtcFiles {
    /// Writes the files, in place of the files of an earlier container with the same name.
    ///
    /// # Errors
    ///
    /// The directory cannot be written to.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        remove(directory)?;
        private::make_dir(directory)?;
        let hostname = self.names.first().map(String::as_str).unwrap_or_default();
        let hosts = sandbox::hosts(&self.names, &self.addresses, &self.entries);
        for (name, text) in [
            (RESOLV_CONF, self.resolver.to_string()),
            (HOSTNAME, format!("{hostname}\n")),
            (HOSTS, hosts),
        ] {
            let path = directory.join(name);
            let mut file = private::options().write(true).create_new(true).open(path)?;
            file.write_all(text.as_bytes())?;
            // Every user in the container must be able to read the file where it is mounted. In
            // the state directory nobody else reaches it.
            file.set_permissions(Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

/// Writes the addresses of a container into its hosts file. It is no error if there is no file.
///
/// # Errors
///
/// The file cannot be read or written to.
pub(crate) fn readdress(
    directory: &Path,
    names: &[String],
    addresses: &[IpAddr],
) -> io::Result<()> {
    let path = directory.join(HOSTS);
    let before = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let before = String::from_utf8_lossy(&before);
    let after = sandbox::readdressed(&before, names, addresses);
    if after == before {
        return Ok(());
    }
    let mut file = private::options().write(true).truncate(true).open(&path)?;
    file.write_all(after.as_bytes())
}

/// The resolv.conf of a container, at most its first [`MOST`] bytes. `None`: there is none.
///
/// # Errors
///
/// The file cannot be read.
pub(crate) fn resolv_conf(directory: &Path) -> io::Result<Option<String>> {
    let file = match private::options().read(true).open(directory.join(RESOLV_CONF)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Whether `found`, the contents of a container's resolv.conf, is what the agent has made together
/// with the container: the file has the agent's form, and is not newer than the hostname file, which
/// [`EtcFiles::write`] writes next and nothing writes again.
///
/// # Errors
///
/// The files cannot be looked at.
pub(crate) fn is_as_made(directory: &Path, found: &str) -> io::Result<bool> {
    let written = |name: &str| fs::symlink_metadata(directory.join(name))?.modified();
    let hostname = match written(HOSTNAME) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read?,
    };
    let has_form = is_same(&ResolvConf::parse(found).to_string(), found);
    Ok(has_form && written(RESOLV_CONF)? <= hostname)
}

/// Whether two contents of resolv.conf are equal. Empty lines at the end do not count: an agent
/// that was killed in [`rewrite_resolv_conf`] leaves some.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    one.trim_end() == other.trim_end()
}

/// Replaces `before`, the contents of a container's resolv.conf, in place.
///
/// # Errors
///
/// The file cannot be written to.
pub(crate) fn rewrite_resolv_conf(directory: &Path, before: &str, text: &str) -> io::Result<()> {
    let mut file = private::options().write(true).open(directory.join(RESOLV_CONF))?;
    // A program that reads the file meanwhile finds the new lines, and at no time an empty file:
    // what is left of longer contents becomes empty lines, which are then cut off.
    let mut padded = text.as_bytes().to_vec();
    padded.resize(padded.len().max(before.len()), b'\n');
    file.write_all(&padded)?;
    file.set_len(text.len() as u64)
}

/// Removes the files of a container; it is no error if there are none.
///
/// # Errors
///
/// The directory cannot be removed.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn files_are_made_changed_in_place_and_removed() {
        let state = tempfile::tempdir().unwrap();
        let directory = directory(state.path(), &"web".parse().unwrap());
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let files = EtcFiles {
            names: vec!["www".to_owned(), "web".to_owned()],
            addresses: vec!["10.0.0.2".parse().unwrap()],
            entries: Vec::new(),
            resolver: ResolvConf::parse("nameserver 10.0.0.1\n"),
        };
        readdress(&directory, &files.names, &[]).unwrap();
        assert!(!directory.exists());
        files.write(&directory).unwrap();
        assert_eq!(
            (read("resolv.conf").as_str(), read("hostname").as_str()),
            ("nameserver 10.0.0.1\n", "www\n")
        );
        assert!(read("hosts").ends_with("\n10.0.0.2\twww web\n"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("hosts"))), (0o700, 0o644));
        let inode = || fs::metadata(directory.join("hosts")).unwrap().ino();
        let before = inode();
        readdress(&directory, &files.names, &["10.1.0.2".parse().unwrap()]).unwrap();
        assert!(read("hosts").ends_with("ip6-allrouters\n10.1.0.2\twww web\n"));
        assert_eq!(inode(), before);

        let is_made = |text: &str| is_as_made(&directory, text).unwrap();
        assert!(is_made("nameserver 10.0.0.1\n") && !is_made("nameserver 10.0.0.1 # mine\n"));
        let file = fs::File::options().write(true).open(directory.join("resolv.conf")).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.set_modified(later).unwrap();
        assert!(!is_made("nameserver 10.0.0.1\n"));

        let inode = || fs::metadata(directory.join("resolv.conf")).unwrap().ino();
        let before = inode();
        for text in ["nameserver 9.9.9.9\n", "nameserver 10.10.10.10\nsearch lan\n", ""] {
            let now = resolv_conf(&directory).unwrap().unwrap();
            rewrite_resolv_conf(&directory, &now, text).unwrap();
            assert_eq!((read("resolv.conf").as_str(), inode()), (text, before));
        }
        assert!(is_same("nameserver 9.9.9.9\n", "nameserver 9.9.9.9\n\n\n"));
        assert!(!is_same("nameserver 9.9.9.9\n", "nameserver 9.9.9.9 # mine\n"));
        fs::write(directory.join("resolv.conf"), vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(resolv_conf(&directory).unwrap().unwrap().len() as u64, MOST);

        fs::write(directory.join("stale"), "").unwrap();
        files.write(&directory).unwrap();
        assert!(!directory.join("stale").exists());
        remove(&directory).unwrap();
        remove(&directory).unwrap();
        assert!(!directory.exists());
        assert_eq!(resolv_conf(&directory).unwrap(), None);
    }
}
