//! The private namespaces and mounts of a program, besides its network namespace: a PID and an IPC
//! namespace, file systems of its own, and read-only ones (pid_namespaces(7), ipc_namespaces(7),
//! mount_setattr(2)).
//!
//! A program with `CAP_SYS_ADMIN` can undo its mounts.

use std::{
    env,
    ffi::CStr,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::statvfs::{FsFlags, statvfs},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::{Result, SandboxError};
use crate::model::{Isolation, TmpfsMount};

/// Flags of a mount without set-user-ID files, devices and programs.
pub(super) const PLAIN: MsFlags =
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Settings of the kernel in `/proc`, which Docker protects as well. The rest of `/proc` is about
/// processes. It stays writable: a program sets the names of its threads there.
const SETTINGS: [&CStr; 5] =
    [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];
/// Added to the error of [`mount_proc`], which a new process answers as a number. Numbers of errors
/// are smaller (`MAX_ERRNO`, linux/err.h).
const OF_PROC: i32 = 0x1000;

/// The command of a container, whose namespaces a second command enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstCommand {
    /// Process number.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat` (proc(5)), in clock ticks since boot: it tells the command from
    /// a later process with this number. `None`: it is not known.
    pub start_time: Option<u64>,
}

/// Makes the private namespaces: moves the calling thread to a new IPC namespace, and the processes
/// that it starts to a new PID namespace.
///
/// # Errors
/// The kernel refuses.
pub(super) fn separate(isolation: &Isolation) -> Result<()> {
    make_namespaces(
        own_flags(isolation),
        "making namespaces for --pid and --ipc",
        "user.max_pid_namespaces or user.max_ipc_namespaces",
    )
}

/// Makes namespaces of these kinds (unshare(2)). `what` and `limits` are for the error, see
/// [`SandboxError::NamespaceLimit`].
///
/// # Errors
/// The kernel refuses.
pub(super) fn make_namespaces(
    kinds: CloneFlags,
    what: &'static str,
    limits: &'static str,
) -> Result<()> {
    unshare(kinds).map_err(|errno| match errno {
        // It reads as a full disk.
        Errno::ENOSPC => SandboxError::NamespaceLimit { what, limits },
        errno => SandboxError::io(what, errno),
    })
}

/// The private namespaces other than that of mounts.
fn own_flags(isolation: &Isolation) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, isolation.ipc.is_private());
    flags.set(CloneFlags::CLONE_NEWPID, isolation.pid.is_private());
    flags
}

/// Moves the calling thread to the mount namespace and the private namespaces of a command. Sets
/// the working directory of the thread to `/`.
///
/// Only namespaces of the caller's user namespace are entered. In a user namespace of its own any
/// command is root of a mount namespace that it makes there. A program that enters that one, but
/// stays in the caller's user namespace, would believe the files that the command has mounted, and
/// set-user-ID programs would as well.
///
/// # Errors
/// The command has ended, its namespaces are the caller's or those of another user namespace, or
/// the kernel refuses.
pub(super) fn join(command: FirstCommand, isolation: &Isolation) -> Result<()> {
    let pid = command.pid;
    let ended = || SandboxError::CommandEnded(pid);
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => ended(),
        _ => SandboxError::io(format!("entering the namespaces of process {pid}"), error),
    };
    let process = (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or_else(ended)?;
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let own = |kind: &str| fs::metadata(format!("/proc/thread-self/ns/{kind}"));
    let own_user = identity(&own("user").map_err(failed)?);
    let flags = own_flags(isolation).union(CloneFlags::CLONE_NEWNS);
    // The mount namespace last: until then paths lead to the caller's files.
    let kinds = [
        ("pid", CloneFlags::CLONE_NEWPID),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // The descriptors that are judged are entered: the command may move to others meanwhile.
    let mut namespaces = Vec::new();
    for (kind, flag) in kinds.into_iter().filter(|(_, flag)| flags.contains(*flag)) {
        let namespace = File::open(format!("/proc/{pid}/ns/{kind}")).map_err(failed)?;
        let found = identity(&namespace.metadata().map_err(failed)?);
        if identity(&own(kind).map_err(failed)?) == found {
            // A process of the host may have got the number since.
            let is_it = is_still(command, &process).map_err(failed)?;
            return Err(if is_it { SandboxError::NotApart(pid) } else { ended() });
        }
        let is_ours = match owner_of(&namespace) {
            Ok(owner) => identity(&owner.metadata().map_err(failed)?) == own_user,
            // The owner is no descendant of the caller's user namespace (ioctl_nsfs(2)).
            Err(Errno::EPERM) => false,
            Err(errno) => return Err(failed(errno.into())),
        };
        if !is_ours {
            return Err(SandboxError::OtherUserNamespace(pid));
        }
        namespaces.push((namespace, flag));
    }
    if !is_still(command, &process).map_err(failed)? {
        return Err(ended());
    }
    // The kernel lets a thread enter a mount namespace only if it shares its root and working
    // directory with no other one (setns(2)).
    unshare(CloneFlags::CLONE_FS).map_err(|errno| failed(errno.into()))?;
    for (namespace, flag) in &namespaces {
        setns(namespace, *flag).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// What tells a namespace from others: device and inode of its file.
fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// The user namespace that owns a namespace (ioctl_nsfs(2)).
fn owner_of(namespace: &File) -> nix::Result<File> {
    // SAFETY: the descriptor is open, and the request has no argument.
    let owner = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) })?;
    // SAFETY: `Errno::result` has checked that the kernel has opened it; nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(owner) }))
}

/// Whether `process`, which was opened by the number of a command, is that command and still runs.
/// What was read by the number since it was opened is then of this command.
fn is_still(command: FirstCommand, process: &OwnedFd) -> io::Result<bool> {
    if let Some(expected) = command.start_time
        && start_time(command.pid)? != Some(expected)
    {
        return Ok(false);
    }
    // A pidfd is readable once its process has ended (pidfd_open(2)).
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 0)
}

/// Field 22 of `/proc/PID/stat` (proc(5)). `None`: the file is malformed.
fn start_time(pid: i32) -> io::Result<Option<u64>> {
    // The name of a program may be any bytes, and contain spaces and parentheses.
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let stat = String::from_utf8_lossy(&stat);
    // The first field behind the name is field 3.
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest);
    Ok(rest.and_then(|rest| rest.split(' ').nth(19)?.parse().ok()))
}

/// Mounts the program's own file systems. The thread must be in a mount namespace of its own.
///
/// # Errors
/// The kernel refuses, or a directory does not exist.
pub(super) fn mount_own(isolation: &Isolation) -> Result<()> {
    if isolation.ipc.is_private() {
        // The C library makes POSIX shared memory in the first one (shm_overview(7)). The second
        // one shows message queues (mq_overview(7)).
        for (kind, path, data) in
            [("tmpfs", "/dev/shm", Some("mode=1777")), ("mqueue", "/dev/mqueue", None)]
        {
            match mount(Some(kind), path, Some(kind), PLAIN, data) {
                // The host has neither the directory nor what it would show.
                Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(errno) => return Err(SandboxError::io(format!("mounting {path}"), errno)),
            }
        }
    }
    for tmpfs in &isolation.tmpfs {
        let data = tmpfs.data();
        mount(Some("tmpfs"), tmpfs.path(), Some("tmpfs"), flags(tmpfs), Some(data.as_str()))
            .map_err(|errno| SandboxError::io(format!("--tmpfs {tmpfs}: mounting it"), errno))?;
    }
    Ok(())
}

fn flags(tmpfs: &TmpfsMount) -> MsFlags {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, tmpfs.is_read_only());
    flags.set(MsFlags::MS_NOEXEC, !tmpfs.permits("exec"));
    flags.set(MsFlags::MS_NOSUID, !tmpfs.permits("suid"));
    flags.set(MsFlags::MS_NODEV, !tmpfs.permits("dev"));
    flags
}

/// For `--read-only`: makes all present mounts read-only. The exception is `/proc` without the
/// settings of the kernel. The thread must be in a mount namespace of its own to which mounts do not
/// propagate.
///
/// # Errors
/// The kernel refuses.
pub(super) fn protect(isolation: &Isolation) -> Result<()> {
    if !isolation.read_only {
        return Ok(());
    }
    let failed = |errno: Errno| SandboxError::io("--read-only: changing the mounts", errno);
    let proc = statvfs("/proc").map_err(failed)?.flags();
    set_attributes(c"/", libc::AT_RECURSIVE, libc::MOUNT_ATTR_RDONLY, 0).map_err(failed)?;
    // A private PID namespace gets a /proc of its own, over this one.
    if !isolation.pid.is_private() && !proc.contains(FsFlags::ST_RDONLY) {
        set_attributes(c"/proc", 0, 0, libc::MOUNT_ATTR_RDONLY).map_err(failed)?;
        protect_settings().map_err(failed)?;
    }
    Ok(())
}

/// Makes a mount read-only through a descriptor that leads to its root. It may be detached.
pub(super) fn set_read_only(root: BorrowedFd<'_>) -> nix::Result<()> {
    let read_only = libc::MOUNT_ATTR_RDONLY;
    change(root.as_raw_fd(), c"", libc::AT_EMPTY_PATH, read_only, 0)
}

/// Mounts a `/proc` that shows the processes of the calling process's PID namespace over the
/// host's. Makes system calls alone and allocates nothing, as is necessary between fork and exec.
/// The error is for [`proc_error`].
///
/// # Errors
/// The kernel refuses.
pub(super) fn mount_proc(read_only: bool) -> io::Result<()> {
    let proc = Some(c"proc");
    mount(proc, c"/proc", proc, PLAIN, None::<&CStr>)
        .and_then(|()| if read_only { protect_settings() } else { Ok(()) })
        .map_err(|errno| io::Error::from_raw_os_error(OF_PROC + errno as i32))
}

/// The error of [`mount_proc`] in the answer of a new process. `None`: it is another error.
pub(super) fn proc_error(answer: &io::Error) -> Option<Errno> {
    let number = answer.raw_os_error().filter(|number| *number > OF_PROC)?;
    Some(Errno::from_raw(number - OF_PROC))
}

/// Makes [`SETTINGS`] read-only. Makes system calls alone and allocates nothing.
fn protect_settings() -> nix::Result<()> {
    for path in SETTINGS {
        match mount(
            Some(path),
            path,
            None::<&CStr>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&CStr>,
        ) {
            Ok(()) => set_attributes(path, 0, libc::MOUNT_ATTR_RDONLY, 0)?,
            // This kernel has no such settings.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Sets and clears attributes of the mount whose root is at `path`; with `AT_RECURSIVE` also of all
/// mounts below it, or of none of them.
fn set_attributes(path: &CStr, flags: libc::c_int, set: u64, clear: u64) -> nix::Result<()> {
    change(libc::AT_FDCWD, path, flags, set, clear)
}

/// mount_setattr(2).
fn change(
    directory: libc::c_int,
    path: &CStr,
    flags: libc::c_int,
    set: u64,
    clear: u64,
) -> nix::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: the path ends in NUL, and the attributes have the stated length. Both live until the
    // call returns, which only reads them.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(answer).map(drop)
}

/// Changes the working directory of the calling thread to `directory`, in case a file system was
/// mounted above it. Changes it to `/` if that path does not exist. The thread must not share its
/// working directory (`CLONE_FS`).
pub(super) fn return_to(directory: Option<PathBuf>) {
    let returned = directory.is_some_and(|path| env::set_current_dir(path).is_ok());
    if !returned && let Err(error) = env::set_current_dir("/") {
        tracing::debug!(%error, "the working directory could not be changed to / after mounting");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Child, Command},
        thread,
        time::{Duration, Instant},
    };

    use nix::unistd::gettid;

    use super::*;
    use crate::model::NamespaceMode;

    #[test]
    fn errors_of_proc_are_told_from_others() {
        for errno in [Errno::EPERM, Errno::ENOENT, Errno::EHWPOISON] {
            let answer = io::Error::from_raw_os_error(OF_PROC + errno as i32);
            assert_eq!(proc_error(&answer), Some(errno));
            assert_eq!(proc_error(&io::Error::from(errno)), None);
        }
        assert_eq!(proc_error(&io::Error::other("x")), None);
    }

    #[test]
    fn processes_without_the_namespaces_are_not_joined() {
        let isolation = Isolation { pid: NamespaceMode::Private, ..Isolation::default() };
        let join = |pid: i32, start_time: Option<u64>| {
            join(FirstCommand { pid, start_time }, &isolation).unwrap_err()
        };
        let own = std::process::id().cast_signed();
        let began = start_time(own).unwrap();
        assert!(began.is_some());
        // This process has the namespaces of the thread.
        for start_time in [None, began] {
            let error = join(own, start_time);
            assert!(matches!(error, SandboxError::NotApart(of) if of == own), "{error}");
        }
        // The number is another process's.
        let later = began.map(|began| began + 1);
        for (pid, start_time) in [(own, later), (i32::MAX, None), (0, None)] {
            let error = join(pid, start_time);
            assert!(matches!(error, SandboxError::CommandEnded(of) if of == pid), "{error}");
        }
    }

    /// A child process that is killed and reaped on drop.
    struct Program(Child);

    impl Program {
        /// Starts `unshare` of util-linux, and waits until it executes the next program.
        fn apart(options: &[&str]) -> Self {
            let mut command = Command::new("unshare");
            let child = command.args(options).args(["sleep", "1000"]).spawn().unwrap();
            let program = Self(child);
            let comm = format!("/proc/{}/comm", program.pid());
            let deadline = Instant::now() + Duration::from_secs(10);
            while fs::read_to_string(&comm).unwrap() != "sleep\n" {
                assert!(Instant::now() < deadline, "{options:?}");
                thread::sleep(Duration::from_millis(5));
            }
            program
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        /// Whether a thread enters its mount namespace.
        fn is_joined(&self) -> Result<bool> {
            let pid = self.pid();
            let command = FirstCommand { pid, start_time: start_time(pid).unwrap() };
            let isolation = Isolation { read_only: true, ..Isolation::default() };
            let joining = thread::spawn(move || -> Result<bool> {
                let of = |process: &str| {
                    identity(&fs::metadata(format!("/proc/{process}/ns/mnt")).unwrap())
                };
                let its_own = of(&pid.to_string());
                join(command, &isolation)?;
                Ok(of("thread-self") == its_own)
            });
            joining.join().unwrap()
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// In a user namespace of its own any command can mount its files over those of the host.
    #[test]
    #[ignore = "needs root"]
    fn mounts_that_a_command_has_made_in_its_own_user_namespace_are_not_entered() {
        assert!(Program::apart(&["--mount"]).is_joined().unwrap());
        let own = Program::apart(&["--user", "--map-root-user", "--mount"]);
        let error = own.is_joined().unwrap_err();
        assert!(
            matches!(error, SandboxError::OtherUserNamespace(of) if of == own.pid()),
            "{error}"
        );
    }

    #[test]
    #[ignore = "needs root"]
    fn all_mounts_are_read_only_but_those_of_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let path = dir.path().to_owned();
        let isolation = Isolation {
            read_only: true,
            tmpfs: vec![format!("{}:size=64k", own.display()).parse().unwrap()],
            ..Isolation::default()
        };
        let sees = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            protect(&isolation).unwrap();
            mount_own(&isolation).unwrap();
            let why = |path: PathBuf| {
                let written = File::options().create(true).append(true).open(path);
                written.and_then(|mut file| file.write_all(b"0")).err()?.raw_os_error()
            };
            assert_eq!(why(path.join("theirs")), Some(libc::EROFS));
            assert_eq!(why("/dev/shm/culvert-test".into()), Some(libc::EROFS));
            assert_eq!(why(path.join("own/file")), None);
            assert_eq!(why("/dev/null".into()), None);
            let setting = File::options().write(true).open("/proc/sys/kernel/hostname");
            assert_eq!(setting.unwrap_err().raw_os_error(), Some(libc::EROFS));
            let own = format!("/proc/{}/comm", gettid());
            File::options().write(true).open(own).unwrap();
        });
        sees.join().unwrap();
        // The host sees nothing of that.
        fs::write(dir.path().join("theirs"), "").unwrap();
        assert!(!own.join("file").exists());
    }
}
