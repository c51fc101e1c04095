//! The private namespaces and mounts of a program, besides its network namespace: a PID and an IPC
//! namespace, file systems of its own, and read-only ones (pid_namespaces(7), ipc_namespaces(7),
//! mount_setattr(2)).
//!
//! A program with `CAP_SYS_ADMIN` can undo its mounts.

use std::{
    env,
    ffi::CStr,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::statvfs::{FsFlags, statvfs},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Result, SandboxError};
use crate::model::{Isolation, TmpfsMount};

/// Flags of a mount without set-user-ID files, devices and programs.
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Settings of the kernel in `/proc`, which Docker protects as well. The rest of `/proc` is about
/// processes. It stays writable: a program sets the names of its threads there.
const SETTINGS: [&CStr; 5] =
    [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];
/// Added to the error of [`mount_proc`], which a new process answers as a number. Numbers of errors
/// are smaller (`MAX_ERRNO`, linux/err.h).
const OF_PROC: i32 = 0x1000;

/// Makes the private namespaces: moves the calling thread to a new IPC namespace, and the processes
/// that it starts to a new PID namespace.
///
/// # Errors
/// The kernel refuses.
pub(super) fn separate(isolation: &Isolation) -> Result<()> {
    unshare(own(isolation))
        .map_err(|errno| SandboxError::io("making namespaces for --pid and --ipc", errno))
}

/// The private namespaces other than that of mounts.
fn own(isolation: &Isolation) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, isolation.ipc.is_private());
    flags.set(CloneFlags::CLONE_NEWPID, isolation.pid.is_private());
    flags
}

/// Moves the calling thread to the mount namespace and the private namespaces of a process. Sets
/// the working directory of the thread to `/`.
///
/// # Errors
/// The process has ended, or the kernel refuses.
pub(super) fn join(pid: i32, isolation: &Isolation) -> Result<()> {
    let ended = || SandboxError::CommandEnded(pid);
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => ended(),
        _ => SandboxError::io(format!("entering the namespaces of process {pid}"), error),
    };
    let process = (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or_else(ended)?;
    let process = pidfd_open(process, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let flags = own(isolation).union(CloneFlags::CLONE_NEWNS);
    let kinds = [
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
    ];
    for (kind, _) in kinds.into_iter().filter(|(_, flag)| flags.contains(*flag)) {
        let identity = |process: &str| -> io::Result<(u64, u64)> {
            let namespace = fs::metadata(format!("/proc/{process}/ns/{kind}"))?;
            Ok((namespace.dev(), namespace.ino()))
        };
        // The process may have ended, and a process of the host may have its number now.
        if identity("thread-self").map_err(failed)? == identity(&pid.to_string()).map_err(failed)? {
            return Err(ended());
        }
    }
    // The kernel lets a thread enter a mount namespace only if it shares its root and working
    // directory with no other one (setns(2)).
    unshare(CloneFlags::CLONE_FS).map_err(|errno| failed(errno.into()))?;
    setns(&process, flags).map_err(|errno| failed(errno.into()))
}

/// Mounts the program's own file systems. The thread must be in a mount namespace of its own.
/// Returns the directories that stay writable.
///
/// # Errors
/// The kernel refuses, or a directory does not exist.
pub(super) fn mount_own(isolation: &Isolation) -> Result<Vec<PathBuf>> {
    let mut writable = Vec::new();
    if isolation.ipc.is_private() {
        // The C library makes POSIX shared memory in the first one (shm_overview(7)). The second
        // one shows message queues (mq_overview(7)).
        for (kind, path, data) in
            [("tmpfs", "/dev/shm", Some("mode=1777")), ("mqueue", "/dev/mqueue", None)]
        {
            match mount(Some(kind), path, Some(kind), PLAIN, data) {
                Ok(()) => writable.push(PathBuf::from(path)),
                // The host has no such directory, or its kernel no message queues.
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(errno) => return Err(SandboxError::io(format!("mounting {path}"), errno)),
            }
        }
    }
    for tmpfs in &isolation.tmpfs {
        let data = tmpfs.data();
        mount(Some("tmpfs"), tmpfs.path(), Some("tmpfs"), flags(tmpfs), Some(data.as_str()))
            .map_err(|errno| SandboxError::io(format!("--tmpfs {tmpfs}: mounting it"), errno))?;
        if !tmpfs.is_read_only() {
            writable.push(tmpfs.path().to_owned());
        }
    }
    Ok(writable)
}

fn flags(tmpfs: &TmpfsMount) -> MsFlags {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, tmpfs.is_read_only());
    flags.set(MsFlags::MS_NOEXEC, !tmpfs.permits("exec"));
    flags.set(MsFlags::MS_NOSUID, !tmpfs.permits("suid"));
    flags.set(MsFlags::MS_NODEV, !tmpfs.permits("dev"));
    flags
}

/// For `--read-only`: makes all mounts read-only. Exceptions are the directories that [`mount_own`]
/// returns, and `/proc` without the settings of the kernel. The thread must be in a mount namespace
/// of its own to which mounts do not propagate.
///
/// # Errors
/// The kernel refuses.
pub(super) fn protect(isolation: &Isolation, writable: &[PathBuf]) -> Result<()> {
    if !isolation.read_only {
        return Ok(());
    }
    let failed = |errno: Errno| SandboxError::io("--read-only: changing the mounts", errno);
    let proc = statvfs("/proc").map_err(failed)?.flags();
    set_attributes(c"/", libc::AT_RECURSIVE, libc::MOUNT_ATTR_RDONLY, 0).map_err(failed)?;
    for path in writable {
        nix::NixPath::with_nix_path(path, |path| {
            set_attributes(path, 0, 0, libc::MOUNT_ATTR_RDONLY)
        })
        .flatten()
        .map_err(failed)?;
    }
    // A private PID namespace gets a /proc of its own, over this one.
    if !isolation.pid.is_private() && !proc.contains(FsFlags::ST_RDONLY) {
        set_attributes(c"/proc", 0, 0, libc::MOUNT_ATTR_RDONLY).map_err(failed)?;
        protect_settings().map_err(failed)?;
    }
    Ok(())
}

/// Makes a mount read-only through a descriptor that leads to its root.
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
    use std::{fs::File, io::Write, thread};

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
        // This process has the namespaces of the thread.
        for pid in [std::process::id().cast_signed(), i32::MAX, 0] {
            let error = join(pid, &isolation).unwrap_err();
            assert!(matches!(error, SandboxError::CommandEnded(of) if of == pid), "{error}");
        }
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
            let writable = mount_own(&isolation).unwrap();
            assert_eq!(writable, [path.join("own")]);
            protect(&isolation, &writable).unwrap();
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
