//! `clean`: removes build output and leftovers.

use anyhow::Result;

use super::{build, lab, run};
use crate::{privilege, process};

/// Stops the lab, removes what a killed `run` left, and empties the target directory.
pub(crate) fn main() -> Result<()> {
    if run::has_leftovers() || lab::is_up() {
        privilege::become_root("clean")?;
    }
    run::remove_leftovers()?;
    lab::down()?;
    process::run(&mut build::cargo("clean"))
}
