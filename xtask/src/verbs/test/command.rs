//! The cargo command that compiles and runs the tests.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use culvert_bpf_build::PACKAGE;
use serde_json::Value;

use crate::verbs::build;

/// Path of the profile of the tests and of the tested code, from the root of the repository.
pub(super) const PROFILE: &str = "tests/profile.toml";
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

/// Paths of the test programs `names`, with the long tests, from cargo's messages.
pub(super) fn programs(names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = command(true);
    command.args(["--no-run", "--message-format", "json"]).stderr(Stdio::null());
    let said = command.output().context("cargo: cannot be started")?;
    let text = String::from_utf8_lossy(&said.stdout);
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    names.iter().map(|name| program(&messages, name)).collect()
}

fn program(messages: &[Value], name: &str) -> Result<PathBuf> {
    let is_it = |message: &&Value| {
        let text = |path: &str| message.pointer(path).and_then(Value::as_str);
        text("/target/name") == Some(name)
            && text("/target/kind/0") == Some("test")
            && text("/executable").is_some()
    };
    match messages.iter().find(is_it).and_then(|message| message.get("executable")?.as_str()) {
        Some(file) => Ok(PathBuf::from(file)),
        None => bail!("test program {name}: cargo has not built it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = [
            serde_json::json!({"target": {"name": "netns", "kind": ["lib"]}, "executable": "/t/no"}),
            serde_json::json!({"target": {"name": "netns", "kind": ["test"]}, "executable": null}),
            serde_json::json!({"target": {"name": "netns", "kind": ["test"]}, "executable": "/t/n"}),
        ];
        assert_eq!(program(&messages, "netns").ok(), Some("/t/n".into()));
        assert!(program(&messages, "host").is_err());
    }
}
