//! Files of a container, mounted over files of the host in the container's mount namespace.
//!
//! The kernel removes a mount on a file when a process of any mount namespace removes the file or
//! renames another one to its name, and programs that write `/etc/resolv.conf` do that. The thread
//! that waits for the container's program therefore mounts such a file again.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    libc,
    unistd::{Pid, fchdir},
};
use rustix::{
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    process::{PidfdFlags, pidfd_open},
};

use super::{Result, SandboxError, isolation};

/// Sockets of host programs that would answer for names from the host's point of view, past the
/// container's files: nss-resolve(8) and the C library's cache. Where they are covered, the C
/// library reads the files.
const RESOLVERS: [&str; 2] = ["/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket"];
/// Covers a socket: a connection to a file that is no socket is refused.
const NOTHING: &str = "/dev/null";

/// Time from a change of the mounts to the check, in ms. A host that starts many containers has
/// many changes a second.
const CALM_MS: libc::c_int = 100;
/// Time until the next check while a file is missing that was covered before, in ms.
const MISSING_MS: libc::c_int = 5000;

/// Where the calling thread has its entry `thread-self`.
const PROC: &str = "/proc";

/// A file to mount on another one.
#[derive(Clone, Debug)]
struct Source {
    /// Its directory, opened with `O_PATH`: another file system may hide it meanwhile.
    directory: Arc<File>,
    /// Its path before that.
    path: PathBuf,
    /// The mount may fail.
    is_optional: bool,
}

/// The files to mount, by the path that they cover.
pub(super) struct Sources(BTreeMap<PathBuf, Source>);

impl Sources {
    /// The files of the directory `etc`, which cover those of `/etc`. A file of `/etc/netns/NAME/`
    /// takes the place of a file of `etc` with the same name. Must be called in the mount namespace
    /// in which the files are mounted, before other file systems hide these directories.
    ///
    /// # Errors
    /// `etc` cannot be opened.
    pub(super) fn open(name: &str, etc: Option<&Path>) -> Result<Self> {
        let mut wanted = BTreeMap::new();
        if let Some(etc) = etc {
            let files = files_for(Path::new("/etc"), etc, false);
            let opening = || format!("opening {}", etc.display());
            wanted.extend(files.map_err(|error| SandboxError::io(opening(), error))?);
            match nothing() {
                Ok(nothing) => {
                    wanted.extend(RESOLVERS.map(|path| (PathBuf::from(path), nothing.clone())));
                }
                Err(error) => tracing::warn!("opening {NOTHING}: {error}"),
            }
        }
        if let Some(directory) = name_directory(name) {
            match files_for(Path::new("/etc"), &directory, true) {
                Ok(files) => wanted.extend(files),
                Err(error) => tracing::warn!("opening {}: {error}", directory.display()),
            }
        }
        Ok(Self(wanted))
    }
}

/// The files that are mounted.
#[derive(Debug)]
pub(super) struct Covers {
    /// By the path that they cover.
    files: BTreeMap<PathBuf, Source>,
    /// The mounts are read-only.
    read_only: bool,
    /// A path of the `/proc` in which the calling thread is.
    proc: &'static str,
}

impl Default for Covers {
    fn default() -> Self {
        Self { files: BTreeMap::new(), read_only: false, proc: PROC }
    }
}

impl Covers {
    /// Mounts files. A file whose target does not exist is not mounted: there is nothing to mount
    /// it on. `read_only`: the program cannot write to the files either.
    ///
    /// # Errors
    /// The kernel refuses to mount a file of the container. For a file of `/etc/netns/NAME/` and
    /// for [`RESOLVERS`] this is logged only.
    pub(super) fn mount(Sources(wanted): Sources, read_only: bool) -> Result<Self> {
        let mut covers = Self { read_only, ..Self::default() };
        for (target, source) in wanted {
            let what = || format!("mounting {} on {}", source.path.display(), target.display());
            match covers.cover(&target, &source) {
                Ok(()) => drop(covers.files.insert(target, source)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) if source.is_optional => tracing::warn!("{}: {errno}", what()),
                Err(errno) => return Err(SandboxError::io(what(), errno)),
            }
        }
        Ok(covers)
    }

    /// Uses `proc`, an open `/proc` of the host. The `/proc` now mounted over it shows another PID
    /// namespace, which does not contain this thread. Sets the working directory of the calling
    /// thread to `proc`. The thread must not share its working directory (`CLONE_FS`).
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn look_into(&mut self, proc: &File) -> nix::Result<()> {
        fchdir(proc)?;
        self.proc = ".";
        Ok(())
    }

    /// Waits for the end of a process. Mounts each file again whose mount the kernel has removed in
    /// the meantime. Returns early if the kernel does not report these events.
    pub(super) fn keep_until_end(&self, pid: Pid) {
        if self.files.is_empty() {
            return;
        }
        let process = rustix::process::Pid::from_raw(pid.as_raw())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mounts = File::open(format!("{}/thread-self/mountinfo", self.proc));
        let (Some(process), Ok(mounts)) = (process, mounts) else { return };
        let ended = |timeout| is_ready(process.as_raw_fd(), None, timeout);
        let next = |complete| if complete { -1 } else { MISSING_MS };
        // mountinfo reports the changes since it was opened. A file may have been replaced before.
        let mut timeout = next(self.restore());
        // A change of the mounts is an urgent event of mountinfo (proc_pid_mountinfo(5)).
        while let Ok(false) = is_ready(process.as_raw_fd(), Some(mounts.as_raw_fd()), timeout) {
            if !matches!(ended(CALM_MS), Ok(false)) {
                return;
            }
            timeout = next(self.restore());
        }
    }

    /// Mounts each file again whose mount is gone. `false`: a file to mount on does not exist now,
    /// or the kernel refused the mount.
    fn restore(&self) -> bool {
        self.files.iter().fold(true, |complete, (target, source)| match self.is_covered(target) {
            Ok(true) => complete,
            Ok(false) => self.cover(target, source).is_ok() && complete,
            Err(_) => false,
        })
    }

    /// Mounts `source` on `target`. If `target` is a symbolic link, `source` is mounted on the link
    /// itself: the target of the link has other readers, and is replaced more often.
    ///
    /// The mount is read-only before anybody sees it: a program that has opened the file for
    /// writing would keep it from becoming read-only.
    fn cover(&self, target: &Path, source: &Source) -> nix::Result<()> {
        let covered = open(target).map_err(|error| errno(&error))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let name = source.path.file_name().unwrap_or_default();
        let tree = open_tree(&source.directory, name, flags).map_err(from_rustix)?;
        if self.read_only {
            isolation::set_read_only(tree.as_fd())?;
        }
        let both =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, c"", &covered, c"", both).map_err(from_rustix)
    }

    /// Whether anything is mounted on `target`: then `target` is on another mount than its
    /// directory.
    fn is_covered(&self, target: &Path) -> io::Result<bool> {
        let directory = target.parent().unwrap_or(Path::new("/"));
        Ok(self.mount_id(target)? != self.mount_id(directory)?)
    }

    /// The identifier in mountinfo of the mount that has a path.
    fn mount_id(&self, path: &Path) -> io::Result<String> {
        let file = open(path)?;
        let info = format!("{}/thread-self/fdinfo/{}", self.proc, file.as_raw_fd());
        let info = fs::read_to_string(info)?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        id.map(|id| id.trim().to_owned()).ok_or_else(|| io::Error::other("fdinfo has no mnt_id"))
    }
}

/// `/etc/netns/NAME`.
fn name_directory(name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    plain.then(|| Path::new("/etc/netns").join(name))
}

/// The files of the directory `from`, each with the path in `to` that it covers. None if there is
/// no such directory.
///
/// # Errors
/// The directory cannot be opened.
fn files_for(to: &Path, from: &Path, is_optional: bool) -> io::Result<Vec<(PathBuf, Source)>> {
    let directory = match open_directory(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => Arc::new(opened?),
    };
    let entries = fs::read_dir(from).into_iter().flatten().flatten();
    let files = entries.map(|entry| {
        let directory = Arc::clone(&directory);
        (to.join(entry.file_name()), Source { directory, path: entry.path(), is_optional })
    });
    Ok(files.collect())
}

/// [`NOTHING`] as a source.
fn nothing() -> io::Result<Source> {
    let path = PathBuf::from(NOTHING);
    let directory = open_directory(path.parent().unwrap_or(Path::new("/")))?;
    Ok(Source { directory: Arc::new(directory), path, is_optional: true })
}

/// Opens a path with `O_PATH`. A symbolic link at its end is not followed.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

/// Opens a directory with `O_PATH`.
pub(super) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn from_rustix(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Waits until the process of a pidfd ends (`true`), or until the time is over or `urgent` has an
/// urgent event (`false`). `timeout` is in ms; -1 waits for ever.
fn is_ready(process: RawFd, urgent: Option<RawFd>, timeout: libc::c_int) -> nix::Result<bool> {
    // poll(2) skips a negative descriptor.
    let mut fds = [(process, libc::POLLIN), (urgent.unwrap_or(-1), libc::POLLPRI)]
        .map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    loop {
        // SAFETY: the pointer leads to two pollfd, which live until the call returns.
        match Errno::result(unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout) }) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => {
                let [process, _] = fds;
                return Ok(process.revents != 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{
            fs::{FileTypeExt, symlink},
            net::{UnixListener, UnixStream},
        },
        process::{Child, Command},
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
        unistd::gettid,
    };

    use super::*;

    #[test]
    fn files_cover_those_of_their_name() {
        let from = tempfile::tempdir().unwrap();
        fs::write(from.path().join("hosts"), "").unwrap();
        let files = |from: &Path| files_for(Path::new("/etc"), from, false).unwrap();
        let found = files(from.path()).into_iter().map(|(target, source)| (target, source.path));
        let expected = (PathBuf::from("/etc/hosts"), from.path().join("hosts"));
        assert_eq!(found.collect::<Vec<_>>(), [expected]);
        assert!(files(Path::new("/nonexistent")).is_empty());
        assert_eq!(name_directory("web"), Some("/etc/netns/web".into()));
        for outside in ["", ".", "..", "../x", "a/b"] {
            assert_eq!(name_directory(outside), None, "{outside}");
        }
    }

    /// Moves the calling thread to a mount namespace that gets no mounts of others.
    fn apart() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    }

    /// A file of the calling thread's mount namespace.
    fn source_of(path: &Path) -> Source {
        let directory = Arc::new(open_directory(path.parent().unwrap()).unwrap());
        Source { directory, path: path.to_owned(), is_optional: false }
    }

    /// As with `--tmpfs` on a directory above that of the files.
    #[test]
    #[ignore = "needs root"]
    fn a_file_is_mounted_although_its_directory_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, state) = (dir.path().join("etc"), dir.path().join("state"));
        for directory in [&etc, &state] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("hosts"), directory.to_str().unwrap()).unwrap();
        }
        let seen = thread::spawn(move || {
            apart();
            let files = files_for(&etc, &state, false).unwrap().into_iter().collect();
            let none = MsFlags::empty();
            mount(Some("tmpfs"), &state, Some("tmpfs"), none, None::<&str>).unwrap();
            assert!(!state.join("hosts").exists());
            let covers = Covers::mount(Sources(files), true).unwrap();
            assert!(covers.restore());
            assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), state.to_str().unwrap());
            // Also when the host has replaced the file.
            nix::mount::umount(&etc.join("hosts")).unwrap();
            assert!(covers.restore());
            assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), state.to_str().unwrap());
            let error = fs::write(etc.join("hosts"), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        });
        seen.join().unwrap();
    }

    /// A child process that is killed and reaped on drop.
    struct Program(Child);

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Whether the thread `tid` sees a device at `path`; [`NOTHING`] is a device.
    fn is_device(tid: Pid, path: &Path) -> bool {
        let seen = fs::metadata(format!("/proc/{tid}/root{}", path.display()));
        seen.is_ok_and(|meta| meta.file_type().is_char_device())
    }

    #[test]
    #[ignore = "needs root"]
    fn what_the_host_replaces_is_covered_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("theirs"), "theirs").unwrap();
        fs::write(path("ours"), "ours").unwrap();
        fs::write(path("plain"), "theirs").unwrap();
        symlink(path("theirs"), path("link")).unwrap();
        symlink(path("nowhere"), path("dangling")).unwrap();
        let targets = ["plain", "link", "dangling"];

        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let program = Program(child);
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let root = dir.path().to_owned();
        let keeper = thread::spawn(move || {
            apart();
            let ours = source_of(&root.join("ours"));
            let files = targets.map(|name| (root.join(name), ours.clone())).into();
            let covers = Covers { files, ..Covers::default() };
            for (target, source) in &covers.files {
                assert!(!covers.is_covered(target).unwrap());
                covers.cover(target, source).unwrap();
                assert!(covers.is_covered(target).unwrap());
            }
            // Other readers of the link's target still read their own file.
            assert_eq!(fs::read(root.join("theirs")).unwrap(), b"theirs");
            tell.send(gettid()).unwrap();
            gone.recv().unwrap();
            covers.keep_until_end(pid);
        });
        let tid = told.recv().unwrap();
        let inside = |name: &str| {
            let seen = format!("/proc/{tid}/root{}", path(name).display());
            fs::read_to_string(seen).unwrap_or_default()
        };
        // The first one is replaced before the mounts are watched.
        for target in targets {
            assert_eq!(inside(target), "ours", "{target}");
            fs::write(path("new"), "replaced").unwrap();
            fs::rename(path("new"), path(target)).unwrap();
            let _ = go.send(());
            let deadline = Instant::now() + Duration::from_secs(10);
            while inside(target) != "ours" {
                assert!(Instant::now() < deadline, "{target}: {}", inside(target));
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(fs::read_to_string(path(target)).unwrap(), "replaced");
        }
        drop(program);
        keeper.join().unwrap();
    }

    #[test]
    #[ignore = "needs root"]
    fn a_socket_that_is_away_for_a_while_is_covered_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("socket");
        let socket = UnixListener::bind(&at).unwrap();
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let target = at.clone();
        let keeper = thread::spawn(move || {
            apart();
            let files = [(target.clone(), nothing().unwrap())].into();
            let covers = Covers { files, ..Covers::default() };
            assert!(covers.restore());
            let error = UnixStream::connect(&target).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            for complete in [true, false, true] {
                assert_eq!(covers.restore(), complete);
                tell.send(gettid()).unwrap();
                gone.recv().unwrap();
            }
        });
        let tid = told.recv().unwrap();
        assert!(is_device(tid, &at));
        drop(socket);
        fs::remove_file(&at).unwrap();
        go.send(()).unwrap();
        told.recv().unwrap();
        let _socket = UnixListener::bind(&at).unwrap();
        assert!(!is_device(tid, &at));
        go.send(()).unwrap();
        told.recv().unwrap();
        assert!(is_device(tid, &at));
        go.send(()).unwrap();
        keeper.join().unwrap();
    }

    /// As in a private PID namespace with `--read-only`.
    #[test]
    #[ignore = "needs root"]
    fn a_file_is_covered_again_past_another_proc_and_stays_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (target, source) = (dir.path().join("theirs"), dir.path().join("ours"));
        fs::write(&target, "theirs").unwrap();
        fs::write(&source, "ours").unwrap();
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let (covered, ours) = (target.clone(), source.clone());
        let keeper = thread::spawn(move || {
            apart();
            let files = [(covered.clone(), source_of(&ours))].into();
            let mut covers = Covers { files, read_only: true, ..Covers::default() };
            assert!(covers.restore());
            let proc = open(Path::new("/proc")).unwrap();
            let none = MsFlags::empty();
            mount(Some("tmpfs"), "/proc", Some("tmpfs"), none, None::<&str>).unwrap();
            assert!(!covers.restore(), "this /proc does not have the thread");
            covers.look_into(&proc).unwrap();
            tell.send(()).unwrap();
            gone.recv().unwrap();
            assert!(!covers.is_covered(&covered).unwrap());
            assert!(covers.restore() && covers.is_covered(&covered).unwrap());
            assert_eq!(fs::read(&covered).unwrap(), b"ours");
            let error = fs::write(&covered, "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        });
        told.recv().unwrap();
        let new = dir.path().join("new");
        fs::write(&new, "replaced").unwrap();
        fs::rename(&new, &target).unwrap();
        go.send(()).unwrap();
        keeper.join().unwrap();
        // The host's mounts are as before.
        fs::write(&source, "ours again").unwrap();
    }
}
