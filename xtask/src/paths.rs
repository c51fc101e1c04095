//! Paths of the repository.

use std::env;
use std::path::PathBuf;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    // cargo sets the variable for `cargo run`. The compiled-in value is for a binary that is
    // started without cargo, such as in the demo's namespaces.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), PathBuf::from)
}

/// cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|v| !v.is_empty()) {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Path of the binary that `cargo xtask build` makes.
pub(crate) fn culvert() -> PathBuf {
    target().join("release").join("culvert")
}

/// Directory of the state and the log of `cargo xtask lab`.
pub(crate) fn lab() -> PathBuf {
    target().join("lab")
}

/// Directory of the files of the emulated machine of `cargo xtask test --full`.
pub(crate) fn vm() -> PathBuf {
    target().join("vm")
}

/// Directory of the sources and objects of `cargo xtask test --full mutants`.
pub(crate) fn mutants() -> PathBuf {
    target().join("mutants")
}

/// cargo's target directory for `cargo xtask test --full guided`.
pub(crate) fn guided() -> PathBuf {
    target().join("guided")
}

/// Directory in which `cargo xtask setup --full` unpacks its kernel.
pub(crate) fn vm_kernel() -> PathBuf {
    vm().join("kernel")
}

/// Directory of everything that `cargo xtask run` makes. `/run` is a tmpfs on every distribution.
/// The path is short enough for a socket; the repository's own path may be too long.
pub(crate) fn run_dir() -> PathBuf {
    PathBuf::from("/run/culvert-xtask")
}
