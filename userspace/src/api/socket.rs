//! The agent's socket. At most one agent listens on it, and its mode limits which users can
//! connect.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, getsockopt, listen,
            socket, sockopt::PeerCredentials,
        },
        stat::{Mode, fchmod},
    },
};

use crate::private;

/// Mode of the socket: root and the socket's group have access. root may change the group.
const MODE: u32 = 0o660;

/// The error of [`bind`]. Each displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent listens on the socket, or is starting to.
    #[error("socket {} is in use by culvert agent{}: stop it or give another --socket",
        path.display(), pid.map(|pid| format!(" pid {pid}")).unwrap_or_default())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Pid of that agent; `None` if it is in another PID namespace.
        pid: Option<i32>,
    },
    /// The path exists and is not a socket.
    #[error("socket {} is a file of another kind: remove it or give another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refused an operation.
    #[error("socket {} cannot be made: {action}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The operation that was refused.
        action: &'static str,
        /// The kernel's error.
        error: io::Error,
    },
}

/// A bound socket. When dropped, it removes its file and releases the lock on the path.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    guard: Guard,
}

impl Listener {
    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.guard.path
    }

    /// The listener for tokio, and the guard that keeps the lock on the path. Fails outside a tokio
    /// runtime's context.
    pub(super) fn into_tokio(self) -> io::Result<(tokio::net::UnixListener, Guard)> {
        Ok((tokio::net::UnixListener::from_std(self.socket)?, self.guard))
    }
}

/// Holds the lock on a path; removes the socket when dropped.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    lock: PathBuf,
    _held: Flock<File>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Best effort: a file that is left is stale, and the next `bind` removes it. The lock file
        // is removed last and while the lock is held, so that the holder of a lock on this path
        // always holds the lock of the visible file.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Binds the agent's socket at `path`. Makes the parent directory if it does not exist. A stale
/// socket is removed; a socket with a listener is kept.
///
/// An exclusive lock on `PATH.lock` protects the path: if two agents start at the same time,
/// exactly one gets it.
pub fn bind(path: &Path) -> Result<Listener, BindError> {
    let refused =
        |action| move |error: io::Error| BindError::Io { path: path.to_owned(), action, error };
    // The path is checked first, so that an invalid one leaves no directory behind.
    let address =
        UnixAddr::new(path).map_err(|errno| refused("name")(explain_address(errno, path)))?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(refused("make its directory"))?;
    }
    let guard = lock(path).map_err(refused("lock"))?;
    let guard = match guard {
        Ok(guard) => guard,
        Err(owner) => {
            let pid = listening(&address).ok().flatten().flatten().or(owner);
            return Err(BindError::InUse { path: path.to_owned(), pid });
        }
    };
    // If an error occurs from here on, the guard must not remove the socket of another process;
    // `give_up` prevents it.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(guard.give_up(refused("examine it")(error))),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(guard.give_up(BindError::NotASocket(path.to_owned())));
        }
        Ok(_) => match listening(&address) {
            Ok(Some(pid)) => {
                return Err(guard.give_up(BindError::InUse { path: path.to_owned(), pid }));
            }
            Ok(None) => {
                fs::remove_file(path).map_err(refused("remove the stale socket"))?;
            }
            Err(error) => return Err(guard.give_up(refused("connect to it")(error.into()))),
        },
    }
    let socket = listen_at(&address, path).map_err(refused("bind"))?;
    Ok(Listener { socket, guard })
}

impl Guard {
    /// Releases the lock on the path, but keeps the file at the path.
    fn give_up(mut self, error: BindError) -> BindError {
        self.path = PathBuf::new();
        error
    }
}

fn explain_address(errno: Errno, path: &Path) -> io::Error {
    if errno == Errno::ENAMETOOLONG {
        io::Error::other(format!(
            "the path has {} bytes: at most 107 are valid",
            path.as_os_str().len()
        ))
    } else {
        errno.into()
    }
}

/// Takes the lock of `path`. If it is taken, returns the pid that the lock file names. A symbolic link
/// in place of the lock is an error: its target would be overwritten.
fn lock(path: &Path) -> io::Result<Result<Guard, Option<i32>>> {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    loop {
        let file =
            private::options().read(true).write(true).create(true).truncate(false).open(&lock)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // The previous holder may have removed the file between our open and our lock. A
                // lock on a removed file excludes no other process.
                if !same_file(&held, &lock)? {
                    continue;
                }
                held.set_len(0)?;
                held.rewind()?;
                writeln!(held, "{}", std::process::id())?;
                return Ok(Ok(Guard { path: path.to_owned(), lock, _held: held }));
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let read = file.read_to_string(&mut text);
                return Ok(Err(read.ok().and_then(|_| text.trim().parse().ok())));
            }
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

fn same_file(held: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = held.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok(found.dev() == held.dev() && found.ino() == held.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The pid of the process that listens at `address`. `None`: no process listens. `Some(None)`: a
/// process listens, but its pid is not known.
fn listening(address: &UnixAddr) -> Result<Option<Option<i32>>, Errno> {
    let probe = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match connect(probe.as_raw_fd(), address) {
        Ok(()) => {
            let pid = getsockopt(&probe, PeerCredentials).ok().map(|peer| peer.pid());
            Ok(Some(pid.filter(|pid| *pid > 0)))
        }
        // The backlog is full, so a process listens.
        Err(Errno::EAGAIN) => Ok(Some(None)),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Makes the listening socket. Its mode is in force before it accepts connections.
fn listen_at(address: &UnixAddr, path: &Path) -> io::Result<UnixListener> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // unix(7): the file gets the mode of the socket less the umask.
    fchmod(&socket, Mode::from_bits_truncate(MODE))?;
    nix::sys::socket::bind(socket.as_raw_fd(), address)?;
    // Adds the permissions that the umask removed.
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_the_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, victim) = (dir.path().join("socket"), dir.path().join("victim"));
        fs::write(&victim, "theirs").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("socket.lock")).unwrap();
        let line = bind(&socket).unwrap_err().to_string();
        assert!(line.contains("cannot be made: lock: "), "{line}");
        assert_eq!(line.lines().count(), 1);
        assert_eq!(fs::read(&victim).unwrap(), b"theirs");
        assert!(!socket.exists());
    }
}
