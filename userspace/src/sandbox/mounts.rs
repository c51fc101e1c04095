//! The file system of a program in a sandbox. It is the host's, with the two differences that
//! `ip netns exec` makes: `/sys` shows the sandbox's devices, and the files of `/etc/netns/NAME/`
//! are mounted over those in `/etc`. The container's own files are mounted over files of `/etc` in
//! the same way. With `--tmpfs`, `--read-only` and private namespaces there are more differences.

use std::{
    env,
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::CloneFlags,
    sys::statvfs::{FsFlags, statvfs},
};

use super::{
    Result, SandboxError,
    covers::{self, Covers, Sources},
    isolation::{self, FirstCommand},
};
use crate::{
    model::Isolation,
    mountinfo::{self, Mount},
};

/// The names that a program in a sandbox sees.
pub(super) struct Names<'a> {
    /// The container, for `/etc/netns/NAME/`.
    pub(super) name: &'a str,
    /// Directory of the container's files.
    pub(super) etc: Option<&'a Path>,
}

/// What [`separate`] has set up.
#[derive(Default)]
pub(super) struct Separated {
    /// The mounts to keep.
    pub(super) covers: Covers,
    /// The host's `/proc`, opened, with `--pid private`. The program, which is process 1 of the new
    /// PID namespace, mounts the `/proc` of that namespace over it.
    pub(super) proc: Option<File>,
}

/// Moves the calling thread, and the processes that it starts, to all namespaces but the network
/// namespace, and sets up their mounts. `names`: as for [`arrange`]. `joins`: the command whose
/// namespaces are entered; `None` makes new ones.
///
/// # Errors
/// That command has ended or has other namespaces, a directory to mount on does not exist, or the
/// kernel refuses.
pub(super) fn separate(
    names: Option<&Names<'_>>,
    isolation: &Isolation,
    joins: Option<FirstCommand>,
) -> Result<Separated> {
    let directory = env::current_dir().ok();
    if let Some(command) = joins.filter(|_| !isolation.is_default()) {
        isolation::join(command, isolation)?;
        isolation::return_to(directory);
        return Ok(Separated::default());
    }
    if names.is_none() && isolation.is_default() {
        return Ok(Separated::default());
    }
    isolation::separate(isolation)?;
    let covers = arrange(names, isolation)?;
    if !isolation.is_default() {
        // A directory of the host's /proc would show the host's processes.
        let outside = isolation.pid.is_private();
        isolation::return_to(directory.filter(|path| !outside || !path.starts_with("/proc")));
    }
    let proc = isolation.pid.is_private().then(|| covers::open_directory(Path::new("/proc")));
    let proc = proc.transpose().map_err(|error| SandboxError::io("opening /proc", error))?;
    Ok(Separated { covers, proc })
}

/// Moves the calling thread to a mount namespace of its own and sets up its mounts. With
/// `names` the thread must already be in the sandbox's network namespace. Without, it has the
/// host's network, and `/sys` and `/etc` are the host's. If `/sys` cannot be mounted, that is
/// logged only: the program may not need it.
fn arrange(names: Option<&Names<'_>>, isolation: &Isolation) -> Result<Covers> {
    let what = "making a mount namespace";
    isolation::make_namespaces(CloneFlags::CLONE_NEWNS, what, "user.max_mnt_namespaces")?;
    // Mounts made here must not appear on the host. Later mounts and unmounts of the host must
    // appear here, unless all mounts are to be read-only: a later one could be written to.
    let kind = if isolation.read_only { MsFlags::MS_PRIVATE } else { MsFlags::MS_SLAVE };
    mount(None::<&str>, "/", None::<&str>, kind | MsFlags::MS_REC, None::<&str>)
        .map_err(|errno| SandboxError::io(what, errno))?;
    if names.is_some()
        && let Err(error) = remount_sys()
    {
        tracing::debug!(%error, "/sys shows the host's devices");
    }
    // First, so that no path is needed to keep the new ones writable: a user can have replaced a
    // directory on it by a link meanwhile.
    isolation::protect(isolation)?;
    // The program's own file systems may hide the directories of its files.
    let sources = names.map(|Names { name, etc }| Sources::open(name, *etc)).transpose()?;
    // Before the files: one that is hidden need not be covered.
    isolation::mount_own(isolation)?;
    sources.map_or_else(
        || Ok(Covers::default()),
        |sources| Covers::mount(sources, isolation.read_only),
    )
}

/// Mounts a sysfs of this network namespace over `/sys`. Mounts below the old `/sys` (cgroups,
/// bpffs) are bound to the same path in the new one; `ip netns exec` hides them.
fn remount_sys() -> nix::Result<()> {
    let sys = Path::new("/sys");
    let mounts = mountinfo::of("thread-self").unwrap_or_default();
    // The old mounts are opened before the new sysfs covers them.
    let below: Vec<(File, PathBuf)> = outermost(mounts, sys)
        .into_iter()
        .filter_map(|path| {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
                .open(&path)
                .ok()?;
            Some((file, path))
        })
        .collect();
    let mut flags = isolation::PLAIN;
    if statvfs(sys)?.flags().contains(FsFlags::ST_RDONLY) {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some("sysfs"), sys, Some("sysfs"), flags, None::<&str>)?;
    for (file, path) in below {
        let source = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        if let Err(error) = mount(Some(source.as_str()), &path, None::<&str>, bind, None::<&str>) {
            tracing::debug!(path = %path.display(), %error, "not visible in the sandbox");
        }
    }
    Ok(())
}

/// Mount points below `root` that are not below another mount point of the list.
fn outermost(mounts: Vec<Mount>, root: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mounts
        .into_iter()
        .map(|mount| mount.point)
        .filter(|point| point != root && point.starts_with(root))
        .collect();
    points.sort();
    points.dedup();
    let mut kept: Vec<PathBuf> = Vec::new();
    for point in points {
        if !kept.iter().any(|outer| point.starts_with(outer)) {
            kept.push(point);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outermost_mounts_are_bound() {
        let line = |point: &str| format!("1 2 0:3 / {point} rw shared:1 - sysfs sysfs rw\n");
        let info: String =
            ["/", "/sys", "/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/bpf", "/system"]
                .map(line)
                .concat();
        let found = outermost(mountinfo::parse(&info), Path::new("/sys"));
        assert_eq!(found, [Path::new("/sys/fs/bpf"), Path::new("/sys/fs/cgroup")]);
    }
}
