//! Detached programs, which outlive the command line. Their supervisor runs in a session of its
//! own, as the internal command `culvert __supervise SPEC`.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write},
    process::Stdio,
};

use nix::unistd::{dup2_stdout, setsid};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::{
    ExecError, SuperviseSpec,
    exec::{run, unopened},
    log::open_log,
};

/// The supervisor's report to the process that started it: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The program runs.
    Started(i32),
    /// The program does not run.
    Failed(ExecError),
}

/// Starts a detached supervisor. Waits until the program runs and `on_start` of
/// [`supervise_detached`] is done. Returns the program's pid.
///
/// This binary is executed again as `culvert ARGS... __supervise SPEC`, with `SPEC` in JSON; `args`
/// are the global options that it needs.
///
/// # Errors
/// As [`supervise`](super::supervise); also if the specification has no log.
pub async fn spawn_detached(spec: &SuperviseSpec, args: &[OsString]) -> Result<i32, ExecError> {
    let log =
        spec.log.as_deref().ok_or_else(|| ExecError::ours("a detached program needs a log"))?;
    let ours = |error: &dyn std::fmt::Display| {
        ExecError::ours(format!("starting the supervisor of {}: {error}", spec.name))
    };
    let errors = open_log(log).map_err(|error| unopened(log, &error))?;
    let json = serde_json::to_string(spec).map_err(|error| ours(&error))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("culvert")
        .args(args)
        .arg("__supervise")
        .arg(json)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors);
    // SAFETY: between fork and exec this makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
    let mut child = command.spawn().map_err(|error| ours(&error))?;
    let silent = || ours(&format_args!("it ended without a word: see {}", log.display()));
    let stdout = child.stdout.take().ok_or_else(silent)?;
    let line = BufReader::new(stdout).lines().next_line().await.map_err(|error| ours(&error))?;
    match serde_json::from_str(&line.ok_or_else(silent)?).map_err(|error| ours(&error))? {
        Report::Started(pid) => Ok(pid),
        Report::Failed(error) => Err(error),
    }
}

/// Implements `culvert __supervise`: runs the program as [`supervise`](super::supervise) does,
/// writes one report to standard output and closes it. Returns the exit code, once nobody writes to
/// the log any more.
pub async fn supervise_detached(
    spec: &SuperviseSpec,
    on_start: impl AsyncFnOnce(i32),
    on_exit: impl AsyncFnOnce(i32),
) -> i32 {
    let started = async |pid| {
        on_start(pid).await;
        report(&Report::Started(pid));
    };
    match run(spec, true, started, on_exit).await {
        Ok((code, log)) => {
            if let Some(log) = log {
                log.finish().await;
            }
            code
        }
        Err(error) => {
            let code = error.code;
            report(&Report::Failed(error));
            code
        }
    }
}

/// Writes the line and closes the pipe. A write error is ignored: the reader may have ended, and
/// the program runs on.
fn report(report: &Report) {
    let Ok(mut line) = serde_json::to_string(report) else { return };
    line.push('\n');
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        tracing::debug!(%error, "nobody waits for the report");
    }
    let closed = OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .and_then(|null| dup2_stdout(null).map_err(io::Error::from));
    if let Err(error) = closed {
        tracing::debug!(%error, "standard output stays open");
    }
}
