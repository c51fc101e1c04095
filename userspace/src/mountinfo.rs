//! The mounts of a mount namespace.

use std::{fs, io, path::PathBuf};

/// A mount, as proc_pid_mountinfo(5) describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Identifier of the mount, unique over all mount namespaces.
    pub id: u64,
    /// Major and minor number of the file system.
    pub device: String,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// The directory on which it is mounted.
    pub point: PathBuf,
    /// Peer group.
    pub shared: Option<u64>,
    /// Peer group from which it receives mounts.
    pub master: Option<u64>,
    /// Type of the file system.
    pub kind: String,
}

/// The mounts of the mount namespace of a process. `process` is its name in `/proc`: a number,
/// `self` or `thread-self`.
///
/// # Errors
///
/// If the process is gone, or the calling process may not read its mounts.
pub fn of(process: &str) -> io::Result<Vec<Mount>> {
    // A path need not be UTF-8. Such a path is decoded wrongly; the other paths are right.
    let text = fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Parses the lines of proc_pid_mountinfo(5). Skips malformed lines.
pub fn parse(text: &str) -> Vec<Mount> {
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
        // The mounts of this process have one at the root.
        let own = of("self").unwrap();
        assert!(own.iter().any(|mount| mount.point.as_os_str() == "/"), "{own:?}");
        assert!(of("nobody").is_err());
    }
}
