//! A program with a spinner beside it.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{process, ui};

/// Runs `command` with the last line of its output beside a spinner.
pub(super) fn with_spinner(what: &str, command: Command) -> Result<()> {
    with_progress(what, command, |progress, line| {
        progress.message(line);
        true
    })
}

/// Runs `command`. `show` shows a line of its output, and returns whether the line belongs to the
/// text that is quoted if the command fails.
pub(super) fn with_progress(
    what: &str,
    mut command: Command,
    show: impl Fn(&ui::Progress, &str) -> bool,
) -> Result<()> {
    let progress = ui::Progress::start(what);
    let mut text = String::new();
    let status = process::lines(&mut command, |line| {
        if show(&progress, line) {
            text.push_str(line);
            text.push('\n');
        }
    });
    let ok = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    progress.finish(ok);
    let status = status?;
    if !status.success() {
        bail!("{what}: failed ({status}): {}", process::last_lines(&text, 4));
    }
    Ok(())
}
