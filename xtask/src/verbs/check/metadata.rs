//! The output of `cargo metadata`.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process;
use crate::verbs::build;

/// The packages of `cargo metadata`: with the dependencies, or without them if `no_deps`.
pub(super) fn packages(no_deps: bool) -> Result<Vec<Value>> {
    let mut command = build::cargo("metadata");
    command.args(["--format-version", "1", "--quiet"]);
    if no_deps {
        command.arg("--no-deps");
    }
    let output = command.output().context("cargo metadata: cannot be started")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("cargo metadata failed ({}): {}", output.status, process::last_lines(&said, 3));
    }
    let mut whole: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata: not JSON")?;
    match whole.get_mut("packages").map(Value::take) {
        Some(Value::Array(packages)) => Ok(packages),
        _ => bail!("cargo metadata: has no packages"),
    }
}

/// The text under `name`; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
