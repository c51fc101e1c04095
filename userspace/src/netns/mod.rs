//! Network namespaces: creation, opening, entering and removal.
//!
//! A named namespace is a file below `/run/netns` on which the namespace is mounted, as made by `ip
//! netns`. The mount keeps the namespace alive.

mod error;

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        statfs::{FsType, fstatfs, statfs},
    },
};

pub use self::error::NetnsError;
use crate::model::{Name, NetnsId};

/// Result of this module.
pub type Result<T, E = NetnsError> = std::result::Result<T, E>;

/// Directory in which `ip netns` mounts namespaces.
pub const DIR: &str = "/run/netns";
/// How long the agent waits for the lock of [`DIR`]. `ip netns` holds it for some milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Interval of the attempts to take that lock.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// Magic number of nsfs, the file system of namespace files (linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
/// `NS_GET_NSTYPE` (linux/nsfs.h): `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// An open network namespace. The open file keeps it alive.
#[derive(Debug)]
pub struct Netns {
    netns: File,
    path: PathBuf,
    id: NetnsId,
}

impl Netns {
    /// `/run/netns/NAME`.
    pub fn path_of(name: &Name) -> PathBuf {
        Path::new(DIR).join(name.as_str())
    }

    /// Makes a namespace with the loopback device up, and mounts it on `/run/netns/NAME`. A file of
    /// that name without a mount is left over from a reboot or from `umount`: the namespace is
    /// mounted on that file. `made` is called before the mount, so that there is never a mounted
    /// namespace that it does not know.
    ///
    /// # Errors
    /// [`NetnsError::Taken`] if that namespace exists; [`NetnsError::Permission`];
    /// [`NetnsError::Locked`]; `made` fails.
    pub fn create(
        name: &Name,
        made: impl FnOnce(NetnsId) -> io::Result<()> + Send,
    ) -> Result<Self> {
        let path = Self::path_of(name);
        let _lock = lock_directory()?;
        if path.symlink_metadata().is_ok() && is_nsfs(&path) {
            return Err(NetnsError::Taken(path));
        }
        Self::make_and_open(&path, made)
    }

    /// Opens the namespace `/run/netns/NAME`, or makes it if it does not exist.
    ///
    /// # Errors
    /// [`NetnsError::Permission`], [`NetnsError::Locked`] if it is to be made, or the kernel refuses.
    pub fn ensure(name: &Name) -> Result<Self> {
        let path = Self::path_of(name);
        // Any user can hold the lock: a namespace that exists is opened without it.
        if is_nsfs(&path) {
            return Self::open(&path);
        }
        let _lock = lock_directory()?;
        if is_nsfs(&path) { Self::open(&path) } else { Self::make_and_open(&path, |_| Ok(())) }
    }

    /// Makes a namespace at `path` and opens it. A namespace that cannot be opened, for lack of file
    /// descriptors, is removed again. The caller holds the lock.
    fn make_and_open(
        path: &Path,
        made: impl FnOnce(NetnsId) -> io::Result<()> + Send,
    ) -> Result<Self> {
        make(path, made)?;
        Self::open(path).inspect_err(|_| {
            if let Err(error) = take_away(path) {
                tracing::warn!("{}: left behind: {error}", path.display());
            }
        })
    }

    /// Opens the namespace at `path`. What is at the path is judged before it is opened: a device
    /// or a FIFO may act when it is opened.
    ///
    /// # Errors
    /// The path does not exist, or is not a network namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let failed =
            |error: io::Error| NetnsError::io(format!("opening {}", path.display()), error);
        // O_PATH finds the file, and opens nothing.
        let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map_err(
            |error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => {
                    NetnsError::Missing(path.to_owned())
                }
                _ => failed(error),
            },
        )?;
        if !is_on_nsfs(found.as_fd()) {
            return Err(NetnsError::NotNetns(path.to_owned()));
        }
        // The file that was judged, even if another one is at the path by now.
        let netns = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(failed)?;
        if !is_netns(netns.as_fd()) {
            return Err(NetnsError::NotNetns(path.to_owned()));
        }
        let meta = netns
            .metadata()
            .map_err(|error| NetnsError::io(format!("reading {}", path.display()), error))?;
        let id = identity(&meta);
        Ok(Self { netns, path: path.to_owned(), id })
    }

    /// The namespace, unless it is one of the host's own, by whatever path it was opened: an
    /// interface of a container must not be made there. The host's own are the namespace of the
    /// calling thread and that of process 1.
    ///
    /// # Errors
    /// [`NetnsError::OfHost`], or `/proc` is not mounted.
    pub fn not_of_host(self) -> Result<Self> {
        let own = "/proc/thread-self/ns/net";
        let own =
            fs::metadata(own).map_err(|error| NetnsError::io(format!("reading {own}"), error))?;
        // In a PID namespace, or without the privilege, process 1 tells nothing.
        let first = fs::metadata("/proc/1/ns/net").ok();
        let is_own = [Some(own), first].iter().flatten().any(|host| identity(host) == self.id);
        if is_own { Err(NetnsError::OfHost(self.path)) } else { Ok(self) }
    }

    /// Opens the namespace of a process.
    ///
    /// # Errors
    /// [`NetnsError::DeadProcess`].
    pub fn from_pid(pid: i32) -> Result<Self> {
        if pid <= 0 {
            return Err(NetnsError::DeadProcess(pid));
        }
        // A zombie has no namespace.
        match Self::open(Path::new(&format!("/proc/{pid}/ns/net"))) {
            Err(NetnsError::Missing(_) | NetnsError::NotNetns(_)) => {
                Err(NetnsError::DeadProcess(pid))
            }
            answer => answer,
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Mounts the namespace of a process on `/run/netns/NAME`. It restores the name of a namespace
    /// whose mount was removed while the process kept it alive. The namespace of the caller gets no
    /// name.
    ///
    /// # Errors
    /// The process has ended or is in the namespace of the caller, or the kernel refuses.
    pub fn rebind(name: &Name, pid: i32) -> Result<()> {
        let path = Self::path_of(name);
        let failed = |error: io::Error| {
            NetnsError::io(format!("mounting network namespace {}", path.display()), error)
        };
        let found = Self::from_pid(pid)?;
        if found.id() == Self::current()?.id() {
            let why = format!("process {pid} is in the network namespace of this process");
            return Err(failed(io::Error::other(why)));
        }
        File::create(&path).map_err(failed)?;
        // What was checked, also if the process has ended since.
        let source = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
        mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| failed(errno.into()))
    }

    /// Whether the namespace `/run/netns/NAME` exists.
    pub fn exists(name: &Name) -> bool {
        is_nsfs(&Self::path_of(name))
    }

    /// Device and inode of the namespace `/run/netns/NAME`; `None` if it does not exist. Needs no
    /// file descriptor.
    pub fn find(name: &Name) -> Option<NetnsId> {
        let path = Self::path_of(name);
        let found = is_nsfs(&path).then(|| fs::metadata(&path).ok()).flatten()?;
        Some(identity(&found))
    }

    /// Removes `/run/netns/NAME`. The namespace itself exists as long as a process is in it or has
    /// it open.
    ///
    /// # Errors
    /// [`NetnsError::Locked`], or the kernel refuses. It is no error if the file does not exist.
    pub fn remove(name: &Name) -> Result<()> {
        let path = Self::path_of(name);
        let failed = |error: io::Error| {
            NetnsError::io(format!("removing sandbox {}", path.display()), error)
        };
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let _lock = lock_directory()?;
        take_away(&path).map_err(failed)
    }

    /// The path by which the namespace was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` in the namespace, see [`run_in`].
    ///
    /// # Errors
    /// As [`run_in`].
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        run_in(self.as_fd(), f)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// The process through which a path leads to a namespace: `/proc/PID/ns/net`, or a symbolic link to
/// such a path. Once the process has ended, the path may lead to the namespace of another one.
/// `None`: the namespace is mounted there.
pub fn process_of(path: &Path) -> Option<i32> {
    let mut path = path.to_owned();
    // The kernel follows at most 40 links (path_resolution(7)).
    for _ in 0..40 {
        let parent = fs::canonicalize(path.parent()?).ok()?;
        if let Ok(below) = parent.strip_prefix("/proc") {
            return below.components().next()?.as_os_str().to_str()?.parse().ok();
        }
        let target = fs::read_link(parent.join(path.file_name()?)).ok()?;
        path = parent.join(target);
    }
    None
}

/// Whether two open files are the same namespace.
///
/// # Errors
/// One of them is not a readable file.
pub fn same_namespace(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Result<bool> {
    let failed = |error| NetnsError::io("comparing network namespaces", error);
    Ok(id_of(a).map_err(failed)? == id_of(b).map_err(failed)?)
}

/// Runs `f` on a new thread in `netns`, and waits for its end. On that thread `/proc/sys/net` shows
/// the settings of `netns`.
///
/// # Errors
/// The namespace cannot be entered, or no thread can be made.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> Result<T> {
    let failed = |error: io::Error| NetnsError::io("entering a network namespace", error);
    on_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        Ok(f())
    })?
}

/// Makes a namespace without a name. It ends when its last file descriptor is closed.
///
/// # Errors
/// The kernel refuses, or no thread can be made.
pub fn unnamed_netns() -> io::Result<OwnedFd> {
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    });
    made.map_err(io::Error::other)?
}

/// Runs `f` on a new thread, which ends afterwards, so `f` may change the thread's namespaces.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("culvert-netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|error| NetnsError::io("starting a thread", error))?;
        // A panic of `f` continues in the caller.
        thread.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

/// Removes the mounts on a file, and the file. Needs no file descriptor.
fn take_away(path: &Path) -> io::Result<()> {
    // Several mounts may be stacked on the file, if another program mounted over it.
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // The file is not a mount point, or does not exist.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn id_of(netns: BorrowedFd<'_>) -> io::Result<NetnsId> {
    Ok(identity(&File::from(netns.try_clone_to_owned()?).metadata()?))
}

/// Device and inode of the namespace that a file leads to.
fn identity(file: &fs::Metadata) -> NetnsId {
    NetnsId { dev: file.dev(), ino: file.ino() }
}

fn is_nsfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// As [`is_nsfs`], for a file that is open, also with `O_PATH`.
fn is_on_nsfs(file: BorrowedFd<'_>) -> bool {
    fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

fn is_netns(file: BorrowedFd<'_>) -> bool {
    // The type of the file system is checked first: on a file of another type an unknown ioctl may
    // have any effect.
    if !is_on_nsfs(file) {
        return false;
    }
    // SAFETY: the descriptor is open (borrowed); NS_GET_NSTYPE takes no
    // argument and only returns the CLONE_NEW* flag of the namespace.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// Makes `/run/netns` a shared mount, as `ip netns add` does, so that mounts and unmounts of
/// namespaces there propagate to other mount namespaces. The lock is the one that `ip netns` takes.
fn lock_directory() -> Result<Flock<File>> {
    let failed = |error: io::Error| NetnsError::io(format!("preparing {DIR}"), error);
    fs::create_dir_all(DIR).map_err(failed)?;
    let lock = lock(Path::new(DIR), LOCK_PATIENCE)?;
    let share = || {
        mount(None::<&str>, DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
    };
    match share() {
        // `/run/netns` is not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(DIR), DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .and_then(|()| share())
                .map_err(|errno| failed(errno.into()))?;
        }
        answer => answer.map_err(|errno| failed(errno.into()))?,
    }
    Ok(lock)
}

/// Takes the lock of a directory, and waits for it for `patience` at most: whoever may read the
/// directory can hold the lock for any time.
fn lock(directory: &Path, patience: Duration) -> Result<Flock<File>> {
    let failed =
        |error: io::Error| NetnsError::io(format!("preparing {}", directory.display()), error);
    let mut file = File::open(directory).map_err(failed)?;
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if start.elapsed() < patience => file = again,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(NetnsError::Locked(directory.to_owned(), patience));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        thread::sleep(LOCK_POLL);
    }
}

/// Makes a namespace and mounts it on `path`, under the directory's lock. `made` is called before
/// the mount.
fn make(path: &Path, made: impl FnOnce(NetnsId) -> io::Result<()> + Send) -> Result<()> {
    let failed = |error: io::Error| {
        NetnsError::io(format!("making network namespace {}", path.display()), error)
    };
    let mut options = OpenOptions::new();
    options.read(true).mode(0o0).custom_flags(libc::O_NOFOLLOW);
    let fresh = match options.clone().write(true).create_new(true).open(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
    };
    if !fresh && !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        // `ip netns` and Culvert make regular files only.
        return Err(NetnsError::NotNetns(path.to_owned()));
    }
    let mounted = on_thread(|| {
        let source = "/proc/thread-self/ns/net";
        unshare(CloneFlags::CLONE_NEWNET)?;
        loopback_up()?;
        made(identity(&fs::metadata(source)?))?;
        mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok::<_, io::Error>(())
    })?;
    mounted.map_err(|error| {
        if fresh {
            // Best effort: the error of the mount is the one that is returned.
            let _ = fs::remove_file(path);
        }
        failed(error)
    })
}

/// Sets `lo` of the calling thread's namespace up (netdevice(7)).
fn loopback_up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let name = CString::from(c"lo");
    // SAFETY: ifreq is plain old data, for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the socket is open and the request is a valid ifreq with a
    // terminated name, which the kernel fills in.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    })?;
    // SAFETY: SIOCGIFFLAGS has just written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above; the request is only read.
    Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_the_caller_gets_no_name() {
        let name = "culvert-test-own".parse().unwrap();
        let refused = Netns::rebind(&name, std::process::id().cast_signed()).unwrap_err();
        assert!(refused.to_string().contains("namespace of this process"), "{refused}");
        assert!(Netns::path_of(&name).symlink_metadata().is_err());
    }

    #[test]
    fn nobody_waits_for_ever_for_the_lock_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), Duration::ZERO).unwrap();
        let refused = lock(dir.path(), Duration::from_millis(10)).unwrap_err();
        assert!(refused.to_string().contains("'lslocks' shows the process"), "{refused}");
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(dir.path(), Duration::from_secs(20)).map(drop));
            thread::sleep(Duration::from_millis(20));
            drop(held);
            waiting.join().unwrap()
        });
        waiting.unwrap();
    }

    #[test]
    fn the_hosts_own_namespace_is_refused_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
        let own = format!("/proc/{}/ns/net", std::process::id());
        let paths = [Path::new("/proc/self/ns/net"), Path::new(&own), link.as_path()];
        for path in paths {
            let opened = Netns::open(path).unwrap();
            let refused = opened.not_of_host().unwrap_err();
            assert!(matches!(&refused, NetnsError::OfHost(named) if named == path), "{refused}");
            assert!(refused.to_string().contains("is the host's own"), "{refused}");
        }
    }

    #[test]
    fn a_path_through_a_process_is_told_from_a_mount() {
        let own = std::process::id().cast_signed();
        let path = PathBuf::from(format!("/proc/{own}/ns/net"));
        assert_eq!(process_of(&path), Some(own));
        assert_eq!(process_of(Path::new("/proc/self/ns/net")), Some(own));
        let dir = tempfile::tempdir().unwrap();
        let (link, second) = (dir.path().join("link"), dir.path().join("second"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::os::unix::fs::symlink("link", &second).unwrap();
        assert_eq!(process_of(&second), Some(own));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for other in [file.as_path(), Path::new("/proc/version"), Path::new("/nowhere/x")] {
            assert_eq!(process_of(other), None, "{}", other.display());
        }
        let circle = dir.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert_eq!(process_of(&circle), None);
    }
}
