//! Measurements of Culvert on hosts in network namespaces.
//!
//! `create`: how long after an endpoint is made on one host a packet from
//! another host's container reaches it.
//! `scale`: start, memory and changes with many endpoints in the store.

mod create;
mod scale;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measurements of Culvert on hosts in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    what: What,
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
    /// Start, memory and changes with many endpoints in the store.
    Scale(scale::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Create { rounds, json } => create::run(rounds, json),
        What::Scale(args) => scale::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
