//! Whether the mounts that the agent makes outlive it.
//!
//! The agent mounts network namespaces below `/run/netns`, and a BPF file system for its pins. A
//! mount exists as long as its mount namespace. systemd gives a unit with `PrivateTmp=`,
//! `ProtectSystem=` and the like a mount namespace of its own, from which mounts do not reach the
//! host: when the agent ends, the pins end, and the programs end with them.
//!
//! A mount on a mount `shared:N` is copied to all mounts of the peer group N and to their slaves
//! (mount_namespaces(7)). The numbers of peer groups are the same in all mount namespaces. The
//! mounts of process 1 are taken as the mounts of the host.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc;

use crate::{
    mountinfo::{self, Mount},
    netns,
};

/// Returns those directories of [`netns::DIR`] and `bpffs` whose mounts end with the agent: a
/// directory that is not on a mount of process 1, and from which new mounts do not propagate to a
/// mount of process 1. Also returns an empty list if the mounts cannot be read.
pub fn fleeting_mounts(bpffs: &Path) -> Vec<PathBuf> {
    let Ok(own) = mountinfo::of("self") else { return Vec::new() };
    // A process with fewer privileges than process 1 may not read the mounts of process 1.
    let host = mountinfo::of("1").ok();
    [Path::new(netns::DIR), bpffs]
        .into_iter()
        .filter(|dir| {
            let place = Place::find(dir).ok();
            let place =
                place.and_then(|place| Some((own.iter().find(|m| m.id == place.mount)?, place)));
            place.is_some_and(|(mount, place)| !outlives(mount, &place.path, host.as_deref()))
        })
        .map(Path::to_owned)
        .collect()
}

/// The nearest existing parent of a directory, or the directory itself.
struct Place {
    /// Identifier of the mount that has the path.
    mount: u64,
    /// Path without symbolic links.
    path: PathBuf,
}

impl Place {
    fn find(dir: &Path) -> io::Result<Self> {
        let path = dir.ancestors().find_map(|path| fs::canonicalize(path).ok());
        let path = path.ok_or(io::ErrorKind::NotFound)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_PATH).open(&path)?;
        let mut info = String::new();
        File::open(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?.read_to_string(&mut info)?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let mount = mount.and_then(|id| id.trim().parse().ok());
        Ok(Self { mount: mount.ok_or(io::ErrorKind::InvalidData)?, path })
    }
}

/// Whether a mount at `path` exists without the agent: a new mount of the agent, or a mount that
/// the agent finds there. `mount` is the mount that has the path. `host` are the mounts of process
/// 1; `None`: they cannot be read. Then only a slave of another mount is known to end with the
/// agent.
fn outlives(mount: &Mount, path: &Path, host: Option<&[Mount]>) -> bool {
    let is_bpf = mount.kind == "bpf";
    let Some(host) = host else {
        return is_bpf || mount.master.is_none();
    };
    // A mount is in one mount namespace. Its identifier is unique over all mount namespaces.
    if host.iter().any(|other| other.id == mount.id) {
        return true;
    }
    if is_bpf {
        // The agent pins there and mounts nothing. The file system lives as long as one of its
        // mounts.
        return host.iter().any(|other| other.device == mount.device);
    }
    let Some(group) = mount.shared else { return false };
    let Ok(below) = path.strip_prefix(&mount.point) else { return false };
    let inside = mount.root.join(below);
    host.iter().any(|other| {
        (other.shared == Some(group) || other.master == Some(group))
            && inside.starts_with(&other.root)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether mounts at `path` on the mount with the identifier `id` outlive the agent.
    fn outlives_agent(own: &str, id: u64, path: &str, host: Option<&str>) -> bool {
        let own = mountinfo::parse(own);
        let mount = own.iter().find(|mount| mount.id == id).unwrap();
        outlives(mount, Path::new(path), host.map(mountinfo::parse).as_deref())
    }

    const HOST: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:22 / /run rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
31 22 0:26 / /sys/fs/bpf rw,nosuid shared:15 - bpf bpf rw,mode=700
40 25 0:22 /netns /run/netns rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
";

    #[test]
    fn the_mounts_of_a_unit_of_its_own_end_with_it() {
        // The mounts of a unit with PrivateTmp=yes: slaves of the host's mounts, and shared among
        // themselves.
        let unit = "\
122 121 8:1 / / rw,relatime shared:201 master:1 - ext4 /dev/sda1 rw
125 122 0:22 / /run rw,nosuid,nodev shared:212 master:12 - tmpfs tmpfs rw
131 122 0:26 / /sys/fs/bpf rw,nosuid shared:215 master:15 - bpf bpf rw,mode=700
140 125 0:22 /netns /run/netns rw,nosuid,nodev shared:212 master:12 - tmpfs tmpfs rw
150 125 0:60 / /run/culvert/bpf rw shared:220 - bpf bpf rw,mode=700
";
        for host in [Some(HOST), None] {
            assert!(!outlives_agent(unit, 140, "/run/netns", host), "{host:?}");
            assert!(!outlives_agent(unit, 125, "/run/culvert", host), "{host:?}");
            assert!(
                outlives_agent(unit, 131, "/sys/fs/bpf", host),
                "the host has it as well: {host:?}"
            );
        }
        // A BPF file system that only the unit has.
        assert!(!outlives_agent(unit, 150, "/run/culvert/bpf", Some(HOST)));
    }

    #[test]
    fn mounts_that_propagate_stay() {
        // A namespace that shares the host's peer groups.
        let shared = HOST.replace("\n2", "\n102");
        assert!(outlives_agent(&shared, 1025, "/run", Some(HOST)));
        // The mounts of a container with `-v /run:/run:rshared`.
        let container = "\
300 299 0:50 / / rw,relatime - overlay overlay rw
310 300 0:22 / /run rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
";
        assert!(outlives_agent(container, 310, "/run", Some(HOST)));
        assert!(!outlives_agent(container, 300, "/var", Some(HOST)));
        // The host receives what is mounted here.
        let host = "25 22 0:22 / /run rw shared:90 master:12 - tmpfs tmpfs rw\n";
        assert!(outlives_agent(container, 310, "/run", Some(host)));
        // The host has another part of the file system.
        let host = "25 22 0:22 /netns /run/netns rw shared:12 - tmpfs tmpfs rw\n";
        assert!(outlives_agent(container, 310, "/run/netns", Some(host)));
        assert!(!outlives_agent(container, 310, "/run/culvert", Some(host)));
    }

    #[test]
    fn private_mounts_are_judged_only_if_the_hosts_are_known() {
        let private = "925 922 0:22 / /run rw - tmpfs tmpfs rw\n";
        assert!(!outlives_agent(private, 925, "/run", Some(HOST)));
        assert!(outlives_agent(private, 925, "/run", None));
        // The mount of process 1 itself: no service manager has made it shared.
        let host = format!("{HOST}{private}");
        assert!(outlives_agent(private, 925, "/run", Some(&host)));
    }

    #[test]
    fn a_directory_is_on_a_mount_of_the_list() {
        let own = mountinfo::of("self").unwrap();
        let place = Place::find(Path::new("/nonexistent/x")).unwrap();
        assert!(own.iter().any(|mount| mount.id == place.mount), "{}", place.mount);
    }
}
