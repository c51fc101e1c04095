//! Checks for root and for the kernel's features, for the verbs that load BPF programs.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{tools, ui};

/// The first kernel with tcx, the hook that the programs attach to.
const OLDEST_KERNEL: (u32, u32) = (6, 6);

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Continues as root: does nothing if this process is root, starts this program again under sudo if
/// sudo is installed, and otherwise fails with the command to type.
pub(crate) fn become_root(verb: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let Some(sudo) = tools::which("sudo") else {
        bail!("'cargo xtask {verb}' loads programs into the kernel: run it as root");
    };
    ui::line(&ui::dim("Programs are loaded into the kernel as root: going on under sudo."));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(sudo);
    // sudo resets PATH, and xtask finds the repository by CARGO_MANIFEST_DIR.
    command.arg("env").arg(join("PATH=", &path));
    for name in ["CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.arg(join(&format!("{name}="), &value));
        }
    }
    let error = command.arg(own).args(std::env::args_os().skip(1)).exec();
    Err(error).context("sudo: cannot be started")
}

/// Fails with the command to type if this process is not root.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "'cargo xtask {verb}' makes namespaces and loads programs into the kernel: run it as \
             root: sudo -E env \"PATH=$PATH\" cargo xtask {verb}"
        );
    }
    Ok(())
}

/// Fails if this kernel lacks a feature that the BPF programs need. The error names the first one.
pub(crate) fn require_kernel() -> Result<()> {
    let release = nix::sys::utsname::uname().context("uname failed")?;
    let release = release.release().to_string_lossy().into_owned();
    if !new_enough(&release) {
        let (major, minor) = OLDEST_KERNEL;
        bail!("kernel {release}: has no tcx: Culvert needs Linux {major}.{minor} or newer");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("kernel {release}: has no BTF: Culvert needs one with CONFIG_DEBUG_INFO_BTF=y");
    }
    Ok(())
}

/// Whether kernel `release` is at least the oldest supported one. A release that cannot be parsed
/// is accepted: the agent asks the kernel itself.
fn new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_KERNEL,
        _ => true,
    }
}

fn join(prefix: &str, rest: &std::ffi::OsStr) -> std::ffi::OsString {
    let mut whole = std::ffi::OsString::from(prefix);
    whole.push(rest);
    whole
}

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn kernels_are_told_apart_by_number() {
        assert!(new_enough("6.18.44"));
        assert!(new_enough("6.6.0-rc1"));
        assert!(new_enough("10.0"));
        assert!(!new_enough("6.1.0-28-amd64"));
        assert!(!new_enough("5.15"));
        assert!(new_enough("unreadable"));
    }
}
