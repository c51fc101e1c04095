//! `bench`: hands its arguments to the harness.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

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

/// Beginning of the line with the figures, on the emulated machine's console.
const FIGURES: &str = "culvert-figures: ";

/// Builds the binary and runs the benchmarks with it.
pub(crate) fn main(args: &Args) -> Result<()> {
    privilege::require_root("bench")?;
    privilege::require_kernel()?;
    setup::require(&[Need::Build, Need::Demo, Need::Test])?;
    build()?;
    let Some(options) = exact_options(&args.args) else {
        return process::run(Command::new(harness()).args(&args.args));
    };
    if options.iter().any(|option| ["--help", "-h"].contains(option)) {
        return process::run(Command::new(harness()).arg("exact").args(options));
    }
    exact(&options)
}

/// The options of [`exact`]. None unless `exact` is the first argument, or `--exact` is one of
/// `args`.
fn exact_options(args: &[String]) -> Option<Vec<&str>> {
    let first = args.first().is_some_and(|first| first == "exact").then_some(0);
    let at = first.or_else(|| args.iter().position(|arg| arg == "--exact"))?;
    let others = args.iter().enumerate().filter(|(index, _)| *index != at);
    Some(others.map(|(_, arg)| arg.as_str()).collect())
}

/// Builds the binary and the harness with one cargo command, so that they share their compiled
/// dependencies.
fn build() -> Result<()> {
    process::run(build::cargo("build").args(["--release", "--package", "culvert"]).args([
        "--package",
        "culvert-bench",
        "--bins",
    ]))
}

/// Path of the harness.
fn harness() -> PathBuf {
    paths::target().join("release/culvert-bench")
}

/// Measures in the emulated machine, whose clock counts instructions, and shows the figures.
pub(crate) fn exact(args: &[&str]) -> Result<()> {
    setup::require(&[Need::Full])?;
    let profile = args.iter().any(|arg| arg.starts_with("--profile"));
    if profile {
        setup::require(&[Need::Profile])?;
    }
    build()?;
    let harness = harness();
    // Wrong options are refused before a machine is started.
    process::run(Command::new(&harness).args(["exact", "--check"]).args(args))?;
    let mut figures = None;
    vm::run(Clock::Instructions, &script(&harness, args)?, |line| {
        match line.strip_prefix(FIGURES) {
            Some(json) => figures = Some(json.to_owned()),
            None => ui::line(line),
        }
    })?;
    // A profile run has no figures. It has already printed its text.
    let Some(figures) = figures else {
        ensure!(profile, "the emulated machine has printed no figures");
        return Ok(());
    };
    let file = paths::vm().join("figures.json");
    fs::write(&file, figures).with_context(|| format!("{}: cannot be written", file.display()))?;
    process::run(Command::new(&harness).args(["exact", "--figures"]).arg(&file).args(args))
}

/// The shell script of the emulated machine.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_is_asked_for_by_a_verb_or_an_option() {
        let options = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            exact_options(&words).map(|options| options.join(" "))
        };
        assert_eq!(options("exact --rounds 1").as_deref(), Some("--rounds 1"));
        assert_eq!(options("--json exact --exact").as_deref(), Some("--json exact"));
        assert_eq!(options("report --json exact"), None);
        assert_eq!(options("--quick"), None);
    }
}
