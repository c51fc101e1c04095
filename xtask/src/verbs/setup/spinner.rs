//! A program with a spinner beside it.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{process, ui};

/// Runs `command` with the last line of its output beside a spinner.
pub(super) fn with_spinner(what: &str, mut command: Command) -> Result<()> {
    let progress = ui::Progress::start(what);
    let mut text = String::new();
    let status = process::lines(&mut command, |line| {
        progress.message(line);
        text.push_str(line);
        text.push('\n');
    });
    let ok = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    progress.finish(ok);
    let status = status?;
    if !status.success() {
        bail!("{what}: failed ({status}): {}", process::last_lines(&text, 3));
    }
    Ok(())
}
