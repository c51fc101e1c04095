//! `bench`: hands its arguments to the harness.

use anyhow::Result;

use super::{build, setup};
use crate::tools::Need;
use crate::{privilege, process};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of culvert-bench
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Builds the binary and runs the benchmarks with it.
pub(crate) fn main(args: &Args) -> Result<()> {
    privilege::require_root("bench")?;
    privilege::require_kernel()?;
    setup::require(&[Need::Build, Need::Demo, Need::Test])?;
    build::build()?;
    process::run(
        build::cargo("run")
            .args(["--release", "--package", "culvert-bench", "--"])
            .args(&args.args),
    )
}
