//! Programs of this machine.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Directories of the administrator's programs; a user's `PATH` may lack them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Path of an installed program.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SBIN.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name}: is not installed"))
}

/// Runs a command, and returns its standard output. Its error is one line.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let name = Path::new(&program).file_name().unwrap_or(&program).to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| name.clone())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}", said.trim().lines().last().unwrap_or("failed and says nothing"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
