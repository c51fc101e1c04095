//! Measurements of Culvert on hosts in network namespaces.
//!
//! Without a subcommand: every arm, round after round, and the report. `create`: the time from the
//! creation of an endpoint on one host to the first packet from another host's container.
//! `scale`: start, memory and changes with many endpoints in the store. `exact`: instructions per
//! unit of work, in an emulated machine. `report`: shows what an earlier run measured. `sample`,
//! hidden: the page of a made-up run.

#![warn(clippy::indexing_slicing)]

mod arms;
mod attack;
mod create;
mod exact;
mod filled;
mod listing;
mod load;
mod machine;
mod programs;
mod report;
mod results;
mod run;
mod scale;
mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Culvert against the bare host, kernel vxlan, and Linux bridges with iptables.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    run: run::Options,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Endpoint create → first packet from another host.
    Create {
        /// Endpoints to make, one after the other.
        #[arg(long, default_value_t = 50)]
        rounds: u32,
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Cold start, memory and a change with many endpoints in the store.
    Scale(scale::Args),
    /// Instructions per unit of work, in an emulated machine; '--exact' is the same.
    Exact(exact::Args),
    /// Show what an earlier run measured.
    Report {
        /// The file that '--json FILE' wrote.
        #[arg(long, value_name = "FILE")]
        json: PathBuf,
        #[command(flatten)]
        show: run::Show,
    },
    /// Write the page of a made-up run, to look at while the page is changed.
    #[command(hide = true)]
    Sample {
        /// Directory for sample.json and sample.html.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    // The harness uses the hosts of the tests, which panic if something cannot be made. The panic
    // unwinds, and so everything that was made is removed.
    std::panic::set_hook(Box::new(|info| {
        let why = info.payload_as_str().unwrap_or("no reason given");
        eprintln!("bench: {}", why.lines().next().unwrap_or_default());
    }));
    match std::panic::catch_unwind(|| run(Cli::parse())) {
        Ok(Ok(false)) => ExitCode::SUCCESS,
        Ok(Ok(true)) | Err(_) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the subcommand. Returns true if a figure got worse than in the earlier run.
fn run(cli: Cli) -> anyhow::Result<bool> {
    match cli.what {
        Some(What::Create { rounds, json }) => create::run(rounds, json).map(|()| false),
        Some(What::Scale(args)) => scale::run(&args).map(|()| false),
        Some(What::Exact(args)) => exact::main(&args),
        Some(What::Report { json, show }) => {
            let output = show.output(None)?;
            report::show(&report::load(&json)?, &output)
        }
        Some(What::Sample { directory }) => report::sample(&directory).map(|()| false),
        None => run::main(&cli.run),
    }
}
