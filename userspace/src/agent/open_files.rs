//! The limit of open files of this process (getrlimit(2)).

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit before it was raised.
static BEFORE: OnceLock<u64> = OnceLock::new();

/// Raises the limit of open files to its maximum: each published port takes a file.
pub(super) fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, most)| {
        let _ = BEFORE.set(soft);
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
    });
    if let Err(errno) = raised {
        tracing::warn!("limit of open files: {errno}");
    }
}

/// The soft limit before it was raised, for programs that the agent starts.
pub(super) fn before() -> Option<u64> {
    BEFORE.get().copied()
}
