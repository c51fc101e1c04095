//! The cargo command that compiles and runs the tests.

use std::io::IsTerminal as _;
use std::process::Command;

use culvert_bpf_build::PACKAGE;

use crate::verbs::build;

/// Path of the profile of the tests and of the tested code, from the root of the repository.
const PROFILE: &str = "tests/profile.toml";
/// Path of what is added to it without the long tests.
const QUICK: &str = "tests/quick.toml";

/// `cargo test` of every package except the BPF programs, which run in the kernel only. `full`: with
/// the long tests.
pub(super) fn command(full: bool) -> Command {
    let mut command = build::cargo("test");
    command.args(["--config", PROFILE]);
    if !full {
        // The last one of two settings applies.
        command.args(["--config", QUICK]);
    }
    command
        .args(["--release", "--workspace", "--exclude", PACKAGE, "--no-fail-fast"])
        .args(["--color", if std::io::stdout().is_terminal() { "always" } else { "never" }]);
    command
}
