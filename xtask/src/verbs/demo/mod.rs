//! `demo`: the five modes on two hosts, with an external host and comments. It is a test as well:
//! every step has expectations, and the demo fails with the first that is not met.

mod modes;
mod script;
mod stage;

use anyhow::{Result, bail};

use super::{build, setup};
use crate::lab::enclosure;
use crate::tools::Need;
use crate::{privilege, signals};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Use the binary that is there instead of building
    #[arg(long)]
    no_build: bool,
}

impl Args {
    /// Options for a caller that has built the binary.
    pub(super) fn without_building() -> Self {
        Self { no_build: true }
    }
}

/// Builds and plays the demo in an enclosure.
pub(crate) fn main(args: &Args) -> Result<()> {
    setup::require(&[Need::Demo])?;
    if !args.no_build {
        build::build()?;
    }
    privilege::become_root("demo")?;
    privilege::require_kernel()?;
    let status = enclosure::run(&["inside", "demo"])?;
    signals::check()?;
    if !status.success() {
        bail!("the demo did not go as it should: the line above says where");
    }
    Ok(())
}

/// Plays the demo; runs inside the enclosure.
pub(crate) fn inside() -> Result<()> {
    script::play()
}
