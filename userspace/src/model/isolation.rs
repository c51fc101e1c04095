//! `--pid`, `--ipc`, `--read-only` and `--tmpfs`: which processes, shared memory and files of the
//! host the command of a container sees, and where it may write. Names and values are those of
//! Docker where the meaning is the same.

use std::{
    fmt,
    path::{Component, Path},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Value of `--pid` and `--ipc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// The namespace of `run`.
    #[default]
    Host,
    /// A new one.
    Private,
}

impl NamespaceMode {
    /// Whether it is the namespace of `run`.
    pub fn is_host(&self) -> bool {
        *self == Self::Host
    }

    /// Whether it is a new one.
    pub fn is_private(self) -> bool {
        self == Self::Private
    }
}

impl FromStr for NamespaceMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "host" => Ok(Self::Host),
            "private" => Ok(Self::Private),
            _ => Err(Invalid(format!("namespace {text:?} is unknown: host or private is valid"))),
        }
    }
}

impl fmt::Display for NamespaceMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Private => "private",
        })
    }
}

/// Options of [`TmpfsMount`] without a value. By default such a file system is `rw`, `noexec`,
/// `nosuid` and `nodev`.
const FLAGS: [&str; 8] = ["rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev"];

/// Value of `--tmpfs`, `PATH[:OPTION,...]`: a directory on which an empty file system in memory is
/// mounted. The options are those of mount(8) and tmpfs(5). As text it is as on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TmpfsMount {
    path: String,
    options: Vec<String>,
}

impl TmpfsMount {
    /// The directory.
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// Whether nothing can be written to it (`ro`).
    pub fn is_read_only(&self) -> bool {
        let last = self.options.iter().rev().find(|option| ["ro", "rw"].contains(&option.as_str()));
        last.is_some_and(|option| option == "ro")
    }

    /// Whether `exec`, `suid` or `dev` is given. The last one of `exec` and `noexec` counts.
    pub fn permits(&self, option: &str) -> bool {
        let is_about = |given: &&String| given.strip_prefix("no").unwrap_or(given) == option;
        self.options.iter().rev().find(is_about).is_some_and(|given| given == option)
    }

    /// The options for the file system itself, as the kernel takes them.
    pub fn data(&self) -> String {
        let valued = self.options.iter().filter(|option| option.contains('='));
        valued.map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// Whether `--tmpfs` may hide this directory. The command needs the files in the refused ones.
fn is_place(path: &str) -> bool {
    let path = Path::new(path);
    path.is_absolute()
        && path.components().all(|component| component != Component::ParentDir)
        && ["/", "/dev"].iter().all(|taken| path != Path::new(taken))
        && ["/proc", "/sys"].iter().all(|taken| !path.starts_with(taken))
}

/// Whether the kernel takes an option.
fn is_option(option: &str) -> bool {
    let is_number = |text: &str| {
        (1..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    match option.split_once('=') {
        None => FLAGS.contains(&option),
        Some(("size", size)) => {
            is_number(size.strip_suffix(['k', 'm', 'g', 'K', 'M', 'G', '%']).unwrap_or(size))
        }
        Some(("nr_inodes", count)) => {
            is_number(count.strip_suffix(['k', 'm', 'g', 'K', 'M', 'G']).unwrap_or(count))
        }
        Some(("mode", mode)) => {
            (1..=4).contains(&mode.len())
                && mode.bytes().all(|digit| (b'0'..=b'7').contains(&digit))
        }
        // The greatest number stands for no user.
        Some(("uid" | "gid", number)) => {
            is_number(number) && number.parse().is_ok_and(|number: u32| number != u32::MAX)
        }
        Some(_) => false,
    }
}

impl FromStr for TmpfsMount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (path, options) = match text.split_once(':') {
            None => (text, None),
            Some((path, options)) => (path, Some(options)),
        };
        if text.contains('\0') || !is_place(path) {
            return Err(Invalid(format!(
                "tmpfs directory {path:?} is not allowed: an absolute path without .., other than / and /dev, and outside of /proc and /sys, is valid"
            )));
        }
        let options: Vec<_> = options.iter().flat_map(|options| options.split(',')).collect();
        if let Some(bad) = options.iter().find(|option| !is_option(option)) {
            return Err(Invalid(format!(
                "tmpfs option {bad:?} is unknown or malformed: ro, exec, suid, dev, size=64m, nr_inodes=1k, mode=1777, uid=N or gid=N is valid"
            )));
        }
        let options = options.into_iter().map(str::to_owned).collect();
        Ok(Self { path: path.to_owned(), options })
    }
}

impl fmt::Display for TmpfsMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        match self.options.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", self.options.join(",")),
        }
    }
}

impl TryFrom<String> for TmpfsMount {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<TmpfsMount> for String {
    fn from(mount: TmpfsMount) -> Self {
        mount.to_string()
    }
}

/// The private namespaces and mounts of the command of a container, besides its network namespace.
/// By default it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Isolation {
    /// `--pid`: its PID namespace.
    #[serde(skip_serializing_if = "NamespaceMode::is_host")]
    pub pid: NamespaceMode,
    /// `--ipc`: its IPC namespace: shared memory, semaphores and message queues.
    #[serde(skip_serializing_if = "NamespaceMode::is_host")]
    pub ipc: NamespaceMode,
    /// `--read-only`: it cannot write to the host's file systems.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// `--tmpfs`: file systems of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<TmpfsMount>,
}

impl Isolation {
    /// Whether no option is given.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The first option that is given, as the command line spells it.
    pub fn given(&self) -> Option<&'static str> {
        let options = [
            ("--pid", self.pid.is_private()),
            ("--ipc", self.ipc.is_private()),
            ("--read-only", self.read_only),
            ("--tmpfs", !self.tmpfs.is_empty()),
        ];
        options.into_iter().find_map(|(option, given)| given.then_some(option))
    }

    /// Checks the options together.
    ///
    /// # Errors
    /// One line: a directory of `--tmpfs` is inside another one, in which it does not exist.
    pub fn check(&self) -> Result<(), Invalid> {
        for (index, inner) in self.tmpfs.iter().enumerate() {
            let mut others = self.tmpfs.iter().enumerate().filter(|(other, _)| *other != index);
            if let Some((_, outer)) = others.find(|(_, it)| inner.path().starts_with(it.path())) {
                return Err(Invalid(format!(
                    "--tmpfs {inner}: it is inside --tmpfs {}, which is empty: leave out one of the two",
                    outer.path().display()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(text: &str) -> TmpfsMount {
        text.parse().unwrap()
    }

    #[test]
    fn namespaces_are_read() {
        for mode in [NamespaceMode::Host, NamespaceMode::Private] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!((mode.is_host(), mode.is_private()), (!mode.is_private(), !mode.is_host()));
        }
        for bad in ["", "Host", "shareable", "container:web"] {
            let line = bad.parse::<NamespaceMode>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("namespace {bad:?} is unknown: ")), "{line}");
        }
    }

    #[test]
    fn file_systems_in_memory_are_read() {
        let plain = tmpfs("/tmp");
        assert_eq!((plain.path(), plain.data().as_str()), (Path::new("/tmp"), ""));
        assert!(!plain.is_read_only() && !plain.permits("exec") && !plain.permits("suid"));
        // The last one of two counts.
        let many = tmpfs("/run:ro,size=64m,exec,nosuid,dev,nodev,mode=0755,uid=1000,rw");
        assert_eq!(many.data(), "size=64m,mode=0755,uid=1000");
        assert!(!many.is_read_only() && many.permits("exec"));
        assert!(!many.permits("suid") && !many.permits("dev"));
        assert!(tmpfs("/run:rw,ro").is_read_only());
        for text in ["/dev/shm:size=50%,nr_inodes=10k,gid=0", "/a b:mode=7", "/var/tmp"] {
            assert_eq!(tmpfs(text).to_string(), text);
        }
        for bad in ["", "tmp", "/", "//", "/./", "/dev/", "/proc", "/sys/fs", "/a/../proc", "/\0"] {
            let line = bad.parse::<TmpfsMount>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("tmpfs directory {bad:?} is ")), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
        let bad = ["", "size", "size=", "size=1t", "size=-1", "mode=8", "mode=01777", "uid=root"];
        for bad in bad.into_iter().chain(["uid=4294967295", "huge=always", "EXEC", "size=1m=2"]) {
            let line = format!("/tmp:{bad}").parse::<TmpfsMount>().unwrap_err().to_string();
            assert!(line.starts_with(&format!("tmpfs option {bad:?} is ")), "{line}");
        }
    }

    #[test]
    fn isolation_is_kept() {
        let none = Isolation::default();
        assert_eq!(serde_json::to_string(&none).unwrap(), "{}");
        assert!(none.is_default() && none.given().is_none());
        let all = Isolation {
            pid: NamespaceMode::Private,
            ipc: NamespaceMode::Private,
            read_only: true,
            tmpfs: vec![tmpfs("/tmp:size=1m")],
        };
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(
            json,
            r#"{"pid":"private","ipc":"private","read_only":true,"tmpfs":["/tmp:size=1m"]}"#
        );
        assert_eq!(serde_json::from_str::<Isolation>(&json).unwrap(), all);
        for (options, given) in [
            (all.clone(), "--pid"),
            (Isolation { pid: NamespaceMode::Host, ..all.clone() }, "--ipc"),
            (Isolation { read_only: true, ..none.clone() }, "--read-only"),
            (Isolation { tmpfs: all.tmpfs.clone(), ..none }, "--tmpfs"),
        ] {
            assert_eq!(options.given(), Some(given));
            assert!(!options.is_default());
        }
        assert!(serde_json::from_str::<Isolation>(r#"{"tmpfs":["/proc"]}"#).is_err());
    }

    #[test]
    fn file_systems_in_memory_are_not_in_one_another() {
        let check = |texts: &[&str]| {
            let tmpfs = texts.iter().map(|text| tmpfs(text)).collect();
            Isolation { tmpfs, ..Isolation::default() }.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(&["/tmp", "/run:ro", "/tmpfs"]), Ok(()));
        let line = "--tmpfs /run/a:ro: it is inside --tmpfs /run, which is empty: \
                    leave out one of the two";
        for both in [["/run", "/run/a:ro"], ["/run/a:ro", "/run"]] {
            assert_eq!(check(&both), Err(line.to_owned()));
        }
        assert!(check(&["/tmp", "/tmp/"]).is_err());
    }
}
