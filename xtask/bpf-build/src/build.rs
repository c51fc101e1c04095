//! Builds the programs into one object file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::probe::{Missing, Toolchain, target_triple};

/// The package that holds the programs.
pub const PACKAGE: &str = "culvert-ebpf";

/// The cargo profile that the programs are built with.
pub const PROFILE: &str = "bpf";

/// The object's file name in cargo's target directory.
pub const OBJECT_NAME: &str = "culvert-ebpf";

/// Reason why there is no object file. Its [`Display`](fmt::Display) is one line.
#[derive(Debug)]
pub enum BuildError {
    /// A tool is not installed.
    Missing(Missing),
    /// cargo could not be started.
    Start(io::Error),
    /// cargo ran and failed. Its messages are on standard error.
    Failed(ExitStatus),
    /// cargo succeeded, but there is no object file at this path.
    NoObject(PathBuf),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(missing) => missing.fmt(f),
            Self::Start(error) => {
                write!(f, "cannot start cargo for the BPF programs: {error}: is cargo on PATH?")
            }
            Self::Failed(status) => write!(
                f,
                "building the BPF programs failed ({status}): the compiler's message is above; if \
                 a tool is at fault, run 'cargo xtask setup --check'"
            ),
            Self::NoObject(path) => write!(
                f,
                "the build of the BPF programs left no {}: remove that target directory and build \
                 again",
                path.display()
            ),
        }
    }
}

impl std::error::Error for BuildError {}

/// Builds the programs of the workspace at `workspace_root` and returns the path of the
/// object file.
///
/// `target_dir` must differ from the outer cargo's target directory. The outer cargo holds the
/// lock of its directory, and the inner cargo would wait for that lock.
///
/// # Errors
///
/// [`BuildError`]; the compiler's own messages go to standard error.
pub fn build_programs(workspace_root: &Path, target_dir: &Path) -> Result<PathBuf, BuildError> {
    let toolchain = Toolchain::find().map_err(BuildError::Missing)?;
    let status = toolchain
        .command("build")
        .current_dir(workspace_root)
        .args(["--package", PACKAGE, "--bin", OBJECT_NAME, "--profile", PROFILE, "--target-dir"])
        .arg(target_dir)
        .status()
        .map_err(BuildError::Start)?;
    if !status.success() {
        return Err(BuildError::Failed(status));
    }
    let object = target_dir.join(target_triple()).join(PROFILE).join(OBJECT_NAME);
    if !object.is_file() {
        return Err(BuildError::NoObject(object));
    }
    Ok(object)
}
