//! `inside`: process 1 of an enclosure. Hidden from users.

use anyhow::Result;
use clap::Subcommand;

use super::{article, demo, lab};
use crate::lab::enclosure;

/// Options of `inside`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// Outlive the process that started this one
    #[arg(long, global = true)]
    detached: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The demo
    Demo,
    /// The article's table
    Article(article::Args),
    /// The lab
    Lab {
        /// Number of hosts
        hosts: u8,
    },
}

/// Prepares the enclosure and runs its verb.
pub(crate) fn main(args: &Args) -> Result<()> {
    enclosure::prepare(args.detached)?;
    match &args.what {
        What::Demo => demo::inside(),
        What::Article(args) => article::inside(args),
        What::Lab { hosts } => lab::inside(*hosts),
    }
}
