//! `bench`: hands its arguments to the harness.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{build, setup};
use crate::tools::Need;
use crate::vm::{self, Clock, NS_PER_INSTRUCTION, quoted};
use crate::{paths, privilege, process, ui};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of culvert-bench
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// What asks for [`exact`].
const EXACT: [&str; 2] = ["exact", "--exact"];
/// Beginning of the line with the figures, on the emulated machine's console.
const FIGURES: &str = "culvert-figures: ";

/// Builds the binary and runs the benchmarks with it.
pub(crate) fn main(args: &Args) -> Result<()> {
    privilege::require_root("bench")?;
    privilege::require_kernel()?;
    setup::require(&[Need::Build, Need::Demo, Need::Test])?;
    build()?;
    let help = ["--help", "-h"].iter().any(|help| args.args.iter().any(|arg| arg == help));
    if args.args.iter().any(|arg| EXACT.contains(&arg.as_str())) && !help {
        let others = args.args.iter().filter(|arg| !EXACT.contains(&arg.as_str()));
        return exact(&others.map(String::as_str).collect::<Vec<_>>());
    }
    process::run(Command::new(harness()).args(&args.args))
}

/// Builds the binary and the harness at once, so that they share all they depend on.
fn build() -> Result<()> {
    process::run(build::cargo("build").args(["--release", "--package", "culvert"]).args([
        "--package",
        "culvert-bench",
        "--bins",
    ]))
}

/// The harness.
fn harness() -> PathBuf {
    paths::target().join("release/culvert-bench")
}

/// Measures in the emulated machine, whose clock counts instructions, and shows the figures.
pub(crate) fn exact(args: &[&str]) -> Result<()> {
    setup::require(&[Need::Full])?;
    if args.iter().any(|arg| arg.starts_with("--profile")) {
        setup::require(&[Need::Profile])?;
    }
    build()?;
    let harness = harness();
    // Refused before a machine is started.
    process::run(Command::new(&harness).args(["exact", "--check"]).args(args))?;
    let mut figures = None;
    vm::run(Clock::Instructions, &script(&harness, args)?, |line| {
        match line.strip_prefix(FIGURES) {
            Some(json) => figures = Some(json.to_owned()),
            None => ui::line(line),
        }
    })?;
    // A profile has none: its text is above.
    let Some(figures) = figures else { return Ok(()) };
    let file = paths::vm().join("figures.json");
    fs::write(&file, figures).with_context(|| format!("{}: cannot be written", file.display()))?;
    process::run(Command::new(&harness).args(["exact", "--figures"]).arg(&file).args(args))
}

/// What the emulated machine runs.
fn script(harness: &Path, args: &[&str]) -> Result<String> {
    let words = [harness.to_str().context("the path of the build output is no text")?, "exact"];
    let words: Vec<_> = words.iter().chain(args).map(|word| quoted(word)).collect();
    Ok(format!(
        "export CULVERT_NS_PER_INSTRUCTION={NS_PER_INSTRUCTION} CULVERT_EMULATOR={}\n\
         cd {}\n\
         exec {} 2>&1",
        quoted(&vm::emulator()?),
        quoted(&paths::root().display().to_string()),
        words.join(" ")
    ))
}
