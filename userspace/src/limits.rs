//! Limits of the system that are reached, named in errors.

use std::{fs, io};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit},
};

/// Returns the error. If no file descriptor was left, the error names the limit and its value.
#[must_use]
pub fn name_limit(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => {
            let now = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(now, _)| now);
            io::Error::other(format!(
                "too many open files (LimitNOFILE of the agent, now {now}): raise it"
            ))
        }
        Some(Errno::ENFILE) => {
            let now = fs::read_to_string("/proc/sys/fs/file-max").unwrap_or_default();
            let now = if now.is_empty() { "unknown" } else { now.trim() };
            io::Error::other(format!(
                "too many open files on this host (fs.file-max, now {now}): raise it"
            ))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_open_files_is_named_with_its_value() {
        let named = |errno: Errno| name_limit(errno.into()).to_string();
        let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(
            named(Errno::EMFILE),
            format!("too many open files (LimitNOFILE of the agent, now {now}): raise it")
        );
        let line = named(Errno::ENFILE);
        assert!(line.starts_with("too many open files on this host (fs.file-max, now "), "{line}");
        assert_eq!(named(Errno::ENOENT), io::Error::from(Errno::ENOENT).to_string());
    }
}
