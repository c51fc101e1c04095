//! `article`: measures the six paths of the article's table of throughputs on two lab hosts,
//! and prints the table that docs/ARTICLE.md has.

mod measure;
mod table;

use std::fs;

use anyhow::{Context as _, Result, bail};

use super::{build, setup};
use crate::lab::enclosure;
use crate::tools::Need;
use crate::{paths, privilege, signals, ui};

/// Options of `article`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Measurements of each path; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Length of each measurement, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Put the table into docs/ARTICLE.md
    #[arg(long)]
    write: bool,
    /// Use the binary that is there instead of building
    #[arg(long)]
    no_build: bool,
}

/// Builds, and measures in an enclosure.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::require(&[Need::Demo])?;
    if !args.no_build {
        build::build()?;
    }
    privilege::become_root("article")?;
    privilege::require_kernel()?;
    let (rounds, seconds) = (args.rounds.to_string(), args.seconds.to_string());
    let mut words = vec!["inside", "article", "--rounds", &rounds, "--seconds", &seconds];
    if args.write {
        words.push("--write");
    }
    let status = enclosure::run(&words)?;
    signals::check()?;
    if !status.success() {
        bail!("nothing was measured: the line above says why");
    }
    Ok(())
}

/// Measures, prints and writes the table; runs inside the enclosure.
pub(crate) fn inside(args: &Args) -> Result<()> {
    let file = paths::root().join("docs").join("ARTICLE.md");
    // The file is checked before the measurements, which take a minute.
    let text = if args.write {
        let text = fs::read_to_string(&file).context("docs/ARTICLE.md: cannot be read")?;
        table::replace(&text, "")?;
        Some(text)
    } else {
        None
    };
    let machine = table::Machine::here()?;
    let results = measure::all(args.rounds, args.seconds)?;
    let table = table::render(&machine, &table::load()?, args.rounds, args.seconds, &results);
    ui::line(&format!("\n{table}"));
    if let Some(text) = text {
        fs::write(&file, table::replace(&text, &table)?)
            .context("docs/ARTICLE.md: cannot be written")?;
        ui::line("The table is in docs/ARTICLE.md.");
    }
    Ok(())
}
