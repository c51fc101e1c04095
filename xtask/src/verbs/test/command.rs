//! How the tests are compiled.

use std::io::IsTerminal as _;
use std::process::Command;

use culvert_bpf_build::PACKAGE;

use crate::verbs::build;

/// The profile of the tests and of what they test, from the root of the repository.
const PROFILE: &str = "tests/profile.toml";

/// `cargo test` of every package but the programs', which run in the kernel only.
pub(super) fn command() -> Command {
    let mut command = build::cargo("test");
    command
        .args(["--config", PROFILE])
        .args(["--release", "--workspace", "--exclude", PACKAGE, "--no-fail-fast"])
        .args(["--color", if std::io::stdout().is_terminal() { "always" } else { "never" }]);
    command
}
