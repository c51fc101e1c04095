//! `build`: the one binary, with the BPF programs inside.

use std::process::Command;

use anyhow::Result;

use super::setup;
use crate::tools::Need;
use crate::{paths, process, ui};

/// Builds `target/release/culvert` and says where it is.
pub(crate) fn main() -> Result<()> {
    build()?;
    ui::line(&format!("Built {}", paths::culvert().display()));
    Ok(())
}

/// Builds `target/release/culvert`, after installing what is missing for it.
pub(crate) fn build() -> Result<()> {
    setup::require(&[Need::Build])?;
    process::run(cargo("build").args(["--release", "--package", "culvert", "--bin", "culvert"]))
}

/// cargo in the root of the repository.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(verb).current_dir(paths::root());
    // cargo set these variables for this program; the packages to build need other values.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name == "CARGO_MANIFEST_DIR"
                || name == "CARGO_MANIFEST_PATH"
                || name == "LD_LIBRARY_PATH"
                || name.starts_with("CARGO_PKG_")
        }) {
            command.env_remove(name);
        }
    }
    command
}
