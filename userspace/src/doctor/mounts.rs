//! Whether the mounts that the agent makes outlive it.
//!
//! The agent mounts network namespaces below `/run/netns`, and a BPF file system for its pins. A
//! mount exists as long as its mount namespace. systemd gives a unit with `PrivateTmp=`,
//! `ProtectSystem=` and the like a mount namespace of its own, from which mounts do not reach the
//! host: with the agent the pins end, and the programs with them.
//!
//! A mount on a mount `shared:N` is copied to all mounts of the peer group N and to their slaves
//! (mount_namespaces(7)). The numbers of peer groups are the same in all mount namespaces. The
//! mounts of process 1 stand for those of the host.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc;

use crate::netns;

/// The directories, of those on which an agent mounts, whose mounts end with the agent: its mount
/// namespace is not that of process 1, and mounts there do not propagate. Empty also if neither can
/// be told.
pub fn fleeting_mounts(bpffs: &Path) -> Vec<PathBuf> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (own, host) = (namespace("self"), namespace("1"));
    if own.is_none() || own == host {
        return Vec::new();
    }
    let read = |process: &str| fs::read_to_string(format!("/proc/{process}/mountinfo")).ok();
    let Some(own) = read("self") else { return Vec::new() };
    // Cannot be read by a process with fewer privileges than process 1.
    let host = read("1");
    let (own, host) = (parse(&own), host.as_deref().map(parse));
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

/// A mount, as proc_pid_mountinfo(5) describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// Major and minor number of the file system.
    device: String,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    /// The directory on which it is mounted.
    point: PathBuf,
    /// Peer group.
    shared: Option<u64>,
    /// Peer group from which it receives mounts.
    master: Option<u64>,
    /// Type of the file system.
    kind: String,
}

/// The nearest existing parent of a directory, or the directory itself.
struct Place {
    /// Identifier of the mount that it is on.
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

/// Whether what the agent mounts at `path`, or finds mounted there, is there without the agent.
/// `mount` is the mount that `path` is on, `host` the mounts of process 1. `None`: they cannot be
/// read. Then only a mount that is a copy of another namespace's is known not to propagate.
fn outlives(mount: &Mount, path: &Path, host: Option<&[Mount]>) -> bool {
    let is_bpf = mount.kind == "bpf";
    let Some(host) = host else {
        return is_bpf || mount.master.is_none();
    };
    if is_bpf {
        // The agent pins there and mounts nothing: the file system lives as long as one of its mounts.
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

/// Parses the lines of proc_pid_mountinfo(5). Skips those that are malformed.
fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (fields, kind) = line.split_once(" - ")?;
    let mut fields = fields.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let tags: Vec<&str> = fields.skip(1).collect();
    let group = |tag: &str| tags.iter().find_map(|field| field.strip_prefix(tag)?.parse().ok());
    Some(Mount {
        id,
        device,
        root: root.into(),
        point: point.into(),
        shared: group("shared:"),
        master: group("master:"),
        kind: kind.split(' ').next()?.to_owned(),
    })
}

/// Replaces the octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where mounts at `path` on the mount with that identifier outlive the agent.
    fn judge(own: &str, id: u64, path: &str, host: Option<&str>) -> bool {
        let own = parse(own);
        let mount = own.iter().find(|mount| mount.id == id).unwrap();
        outlives(mount, Path::new(path), host.map(parse).as_deref())
    }

    const HOST: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:22 / /run rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
31 22 0:26 / /sys/fs/bpf rw,nosuid shared:15 - bpf bpf rw,mode=700
40 25 0:22 /netns /run/netns rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
";

    #[test]
    fn the_mounts_of_a_unit_of_its_own_end_with_it() {
        // As systemd makes it for PrivateTmp=yes: slaves of the host, shared among themselves.
        let unit = "\
122 121 8:1 / / rw,relatime shared:201 master:1 - ext4 /dev/sda1 rw
125 122 0:22 / /run rw,nosuid,nodev shared:212 master:12 - tmpfs tmpfs rw
131 122 0:26 / /sys/fs/bpf rw,nosuid shared:215 master:15 - bpf bpf rw,mode=700
140 125 0:22 /netns /run/netns rw,nosuid,nodev shared:212 master:12 - tmpfs tmpfs rw
150 125 0:60 / /run/culvert/bpf rw shared:220 - bpf bpf rw,mode=700
";
        for host in [Some(HOST), None] {
            assert!(!judge(unit, 140, "/run/netns", host), "{host:?}");
            assert!(!judge(unit, 125, "/run/culvert", host), "{host:?}");
            assert!(judge(unit, 131, "/sys/fs/bpf", host), "the host has it as well: {host:?}");
        }
        // A BPF file system that only the unit has.
        assert!(!judge(unit, 150, "/run/culvert/bpf", Some(HOST)));
    }

    #[test]
    fn mounts_that_propagate_stay() {
        // A namespace that shares the host's peer groups.
        let shared = HOST.replace("\n2", "\n102");
        assert!(judge(&shared, 1025, "/run", Some(HOST)));
        // Of a container with `-v /run:/run:rshared`.
        let container = "\
300 299 0:50 / / rw,relatime - overlay overlay rw
310 300 0:22 / /run rw,nosuid,nodev shared:12 - tmpfs tmpfs rw
";
        assert!(judge(container, 310, "/run", Some(HOST)));
        assert!(!judge(container, 300, "/var", Some(HOST)));
        // The host receives what is mounted here.
        let host = "25 22 0:22 / /run rw shared:90 master:12 - tmpfs tmpfs rw\n";
        assert!(judge(container, 310, "/run", Some(host)));
        // The host has another part of the file system.
        let host = "25 22 0:22 /netns /run/netns rw shared:12 - tmpfs tmpfs rw\n";
        assert!(judge(container, 310, "/run/netns", Some(host)));
        assert!(!judge(container, 310, "/run/culvert", Some(host)));
    }

    #[test]
    fn private_mounts_are_judged_only_if_the_hosts_are_known() {
        let private = "25 22 0:22 / /run rw - tmpfs tmpfs rw\n";
        assert!(!judge(private, 25, "/run", Some(HOST)));
        assert!(judge(private, 25, "/run", None));
    }

    #[test]
    fn lines_are_parsed() {
        let line = r"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = parse_line(line).unwrap();
        assert_eq!((mount.id, mount.shared, mount.master), (36, None, Some(1)));
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("98:0", "ext3"));
        assert_eq!(
            (mount.root.as_path(), mount.point.as_path()),
            ("/mnt1".as_ref(), r"/a b\c".as_ref())
        );
        assert!(parse("garbage\n\n1 2 3 - x").is_empty());
        // Of this process, with its root.
        let own = parse(&fs::read_to_string("/proc/self/mountinfo").unwrap());
        let place = Place::find(Path::new("/nonexistent/x")).unwrap();
        assert!(own.iter().any(|mount| mount.id == place.mount), "{}", place.mount);
    }
}
