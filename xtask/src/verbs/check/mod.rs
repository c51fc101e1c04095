//! `check`: formatting, lints, BPF stack, documentation, rooms, dependencies, licences.

mod dependencies;
mod licences;
mod metadata;
mod rooms;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use culvert_bpf_build::{PACKAGE, PROFILE, Toolchain};

use super::{bench, build, setup, stack};
use crate::tools::{self, Need};
use crate::{paths, privilege, process, ui};

/// One of the checks. It returns a note for the summary, if there is one.
type Check = fn() -> Result<String>;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also compare the instructions per unit of work with those of bench/results/exact.json
    #[arg(long)]
    full: bool,
    /// Only run checks whose name contains this, such as rooms
    filter: Option<String>,
}

/// Runs every check, also after a check has failed, and prints a summary.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::require(&[Need::Build, Need::Check])?;
    let filter = args.filter.as_deref().unwrap_or_default();
    let mut checks: Vec<(&str, Check)> = vec![
        ("format", format),
        ("clippy, host", clippy_host),
        ("clippy, bpf", clippy_bpf),
        ("stack", stack::check),
        ("rustdoc", rustdoc),
        ("rooms", rooms::check),
        ("unused dependencies", unused),
        ("licences and sources", licences),
        ("advisories", advisories),
    ];
    if args.full {
        checks.push(("instructions", instructions));
    }
    let names: Vec<_> = checks.iter().map(|(name, _)| *name).collect();
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (name, check) in checks.into_iter().filter(|(name, _)| name.contains(filter)) {
        ui::heading(name);
        let start = Instant::now();
        let result = check();
        crate::signals::check()?;
        let (state, note) = match result {
            Ok(note) => ("ok", note),
            Err(error) => {
                failed.push(name);
                let text = format!("{error:#}");
                ui::error(&text);
                ("failed", text)
            }
        };
        rows.push(vec![
            name.to_owned(),
            state.to_owned(),
            ui::seconds(start.elapsed()),
            short(&note),
        ]);
    }
    if rows.is_empty() {
        bail!("check '{filter}': unknown: the checks are {}", names.join(", "));
    }
    ui::heading("summary");
    ui::table(&["CHECK", "STATE", "TOOK", "NOTE"], &rows);
    if !failed.is_empty() {
        bail!("{}: failed: the messages are above", failed.join(", "));
    }
    Ok(())
}

/// The beginning of `note`. The full text of a failure is printed above the summary.
fn short(note: &str) -> String {
    const WIDTH: usize = 70;
    let line = note.lines().next().unwrap_or_default();
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH).chain("...".chars()).collect()
}

/// The workspace without the BPF programs, which have another target.
const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", PACKAGE];

fn format() -> Result<String> {
    process::run(build::cargo("fmt").args(["--all", "--check"]))?;
    Ok(String::new())
}

fn clippy_host() -> Result<String> {
    process::run(
        build::cargo("clippy")
            .args(["--release", "--all-targets"])
            .args(HOST_PACKAGES)
            .args(["--", "-D", "warnings"]),
    )?;
    Ok(String::new())
}

fn clippy_bpf() -> Result<String> {
    let toolchain = Toolchain::find()?;
    if toolchain.compiler.clippy().is_none() {
        bail!("no clippy for {}: run 'cargo xtask setup'", toolchain.compiler.describe());
    }
    process::run(
        toolchain
            .command("clippy")
            .current_dir(paths::root())
            .args(["--package", PACKAGE, "--profile", PROFILE, "--target-dir"])
            .arg(paths::target().join("bpf-check"))
            .args(["--", "-D", "warnings"]),
    )?;
    Ok(toolchain.compiler.describe())
}

fn rustdoc() -> Result<String> {
    process::run(
        build::cargo("doc")
            .args(["--release", "--no-deps"])
            .args(HOST_PACKAGES)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(String::new())
}

fn unused() -> Result<String> {
    if tools::which("cargo-machete").is_some() {
        process::run(&mut build::cargo("machete"))?;
        return Ok("by cargo-machete".to_owned());
    }
    let unused = dependencies::unused()?;
    if !unused.is_empty() {
        bail!("{}: named in no source file: remove from Cargo.toml", unused.join(", "));
    }
    Ok("by name in the sources; cargo-machete is not installed".to_owned())
}

fn licences() -> Result<String> {
    if tools::which("cargo-deny").is_some() {
        process::run(build::cargo("deny").args(["check", "licenses", "sources", "bans"]))?;
        return Ok("by cargo-deny".to_owned());
    }
    let count = licences::check()?;
    Ok(format!("{count} packages, by cargo metadata; cargo-deny is not installed"))
}

/// Checks that no figure of an exact run grew by more than 1 %.
fn instructions() -> Result<String> {
    privilege::require_root("check --full")?;
    privilege::require_kernel()?;
    setup::require(&[Need::Demo, Need::Test])?;
    let baseline = paths::root().join("bench/results/exact.json");
    let baseline = baseline.to_str().context("the repository's path is no text")?;
    bench::exact(&["--compare", baseline])?;
    Ok("against bench/results/exact.json".to_owned())
}

fn advisories() -> Result<String> {
    if tools::which("cargo-deny").is_none() {
        return Ok("not checked: needs cargo-deny, and the network for its list".to_owned());
    }
    process::run(build::cargo("deny").args(["check", "advisories"]))?;
    Ok("by cargo-deny".to_owned())
}
