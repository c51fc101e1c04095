//! The stage: runs commands on hosts, shows their output, and checks expectations.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::HostPlan;
use crate::{process, signals, ui};

/// How long a server may take until it listens.
pub(super) const LISTENING: Duration = Duration::from_secs(15);

/// Deadline for a change on one host to appear on the other.
const SEEN: Duration = Duration::from_secs(5);

/// State of the demo: number of the step, and number of expectations that were met.
#[derive(Debug, Default)]
pub(super) struct Stage {
    step: usize,
    checks: usize,
}

impl Stage {
    /// Begins a step: prints its description.
    pub(super) fn step(&mut self, text: &str) -> Result<()> {
        signals::check()?;
        self.step += 1;
        ui::heading(&format!("{}. {text}", self.step));
        Ok(())
    }

    /// Prints a remark.
    pub(super) fn say(&self, text: &str) {
        ui::line(&ui::dim(&format!("# {text}")));
    }

    /// Shows `line` as it would be typed on `host`.
    pub(super) fn prompt(&self, host: &str, line: &str) {
        ui::line(&format!("{} {}", ui::green(&format!("root@{host}:~#")), ui::bold(line)));
    }

    /// Runs `line` on `host`, shows and returns its output. Fails if `line` fails.
    pub(super) fn type_on(&mut self, host: &HostPlan, line: &str) -> Result<String> {
        let (said, status) = self.try_on(host, line)?;
        if !status.success() {
            bail!("{}: '{line}' failed ({status})", host.node);
        }
        self.checks += 1;
        Ok(said)
    }

    /// Runs `line` on `host` and shows its output, whatever its exit code.
    fn try_on(&mut self, host: &HostPlan, line: &str) -> Result<(String, ExitStatus)> {
        self.prompt(&host.node, line);
        let mut said = String::new();
        let mut command = host.command("sh".as_ref());
        let status = process::lines(command.args(["-c", line]), |line| {
            ui::line(line);
            said.push_str(line);
            said.push('\n');
        })?;
        Ok((said, status))
    }

    /// Checks an expectation of a step; `what` describes it for the reader.
    pub(super) fn expect(&mut self, what: &str, holds: bool) -> Result<()> {
        if !holds {
            bail!("step {}: expected {what}", self.step);
        }
        self.checks += 1;
        ui::line(&format!("{} {what}", ui::green("✓")));
        Ok(())
    }

    /// Number of expectations that were met.
    pub(super) fn checks(&self) -> usize {
        self.checks
    }
}

/// Waits until `line` succeeds on `host` and `shows` holds for its output.
pub(super) fn wait_until(
    host: &HostPlan,
    what: &str,
    line: &str,
    shows: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut last = String::new();
    let deadline = if line.contains("curl") { LISTENING } else { SEEN };
    let result = process::wait_for(what, deadline, || {
        let said = host.shell(line)?;
        let done = said.status.success() && shows(&said.text);
        last = said.text;
        Ok(done.then_some(()))
    });
    result.with_context(|| format!("'{line}' says: {}", process::last_lines(&last, 2)))
}
