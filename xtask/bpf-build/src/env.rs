//! Environment variables that a cargo must not inherit if another cargo starts it.

use std::env;
use std::ffi::OsStr;
use std::process::Command;

/// Prefixes of variables that the inner cargo inherits: access to registries and the network,
/// and output to the user.
const KEPT_PREFIXES: [&str; 5] =
    ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_TERM_"];
const KEPT: [&str; 4] = ["CARGO_BUILD_JOBS", "CARGO_HOME", "CARGO_LOG", "CARGO_MAKEFLAGS"];

/// Variables without the `CARGO_` prefix that the outer cargo sets for a build script, or
/// that a user sets for host builds, and that would misdirect a build for BPF.
const DROPPED: [&str; 16] = [
    "CLIPPY_ARGS",
    "DEBUG",
    "HOST",
    "LD_LIBRARY_PATH",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "TARGET",
];

/// Removes from `command` the variables that the outer cargo set, or that the user set for host
/// builds.
pub(crate) fn scrub(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if misdirects(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether variable `name` would change what the inner cargo builds.
fn misdirects(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    if DROPPED.contains(&name) {
        return true;
    }
    let cargos = name == "CARGO" || name.starts_with("CARGO_") || name.starts_with("DEP_");
    cargos && !KEPT.contains(&name) && !KEPT_PREFIXES.iter().any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_selects_a_compiler_or_flags_goes() {
        for name in [
            "CARGO",
            "CARGO_BUILD_RUSTC",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PROFILE_BPF_LTO",
            "CARGO_TARGET_DIR",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
        ] {
            assert!(misdirects(OsStr::new(name)), "{name} should be dropped");
        }
    }

    #[test]
    fn what_reaches_a_registry_stays() {
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY", "PATH", "HOME"] {
            assert!(!misdirects(OsStr::new(name)), "{name} should be kept");
        }
    }
}
