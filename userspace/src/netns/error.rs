//! Errors of operations on a network namespace.

use std::{io, path::PathBuf, time::Duration};

use nix::errno::Errno;

use crate::limits::name_limit;

/// Why an operation on a network namespace failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The name of a namespace to make is in use.
    #[error("sandbox {} exists already: choose another name, or remove it with 'ip netns del'", .0.display())]
    Taken(PathBuf),
    /// The path does not exist.
    #[error("network namespace {} does not exist: a path as in /run/netns/NAME or /proc/PID/ns/net is valid", .0.display())]
    Missing(PathBuf),
    /// The process does not exist.
    #[error("process {0} does not exist: the pid of a running process is valid")]
    DeadProcess(i32),
    /// The file at that path is not a network namespace.
    #[error("{} is not a network namespace: a path as in /run/netns/NAME or /proc/PID/ns/net is valid", .0.display())]
    NotNetns(PathBuf),
    /// The namespace is the host's own.
    #[error("network namespace {} is the host's own: that of a container is valid", .0.display())]
    OfHost(PathBuf),
    /// The process lacks the privilege.
    #[error("{0}: permission denied: run as root, CAP_SYS_ADMIN and CAP_NET_ADMIN are needed")]
    Permission(String),
    /// Another process has held the lock of the directory of named namespaces for all the time that
    /// was waited.
    #[error("{}: another process has held its lock, which 'ip netns' takes, for {} s: 'lslocks' shows the process", .0.display(), .1.as_secs())]
    Locked(PathBuf, Duration),
    /// The kernel refused for another reason.
    #[error("{what}: {source}")]
    Io {
        /// The operation and what it was applied to.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl NetnsError {
    /// An error of the kernel while doing `what`.
    pub(super) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Permission(what),
            _ => Self::Io { what, source: name_limit(source) },
        }
    }
}
