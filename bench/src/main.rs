//! Measurements of Culvert on hosts in network namespaces.

mod arms;
mod create;
mod load;
mod machine;
mod programs;
mod results;
mod run;
mod scale;
mod stats;

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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.what {
        Some(What::Create { rounds, json }) => create::run(rounds, json),
        None => run::main(&cli.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
