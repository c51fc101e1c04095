//! Detached programs, which outlive the command line. Their supervisor runs in a session of its
//! own, as the internal command `culvert __supervise SPEC`.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{dup2_stdout, fchdir, setsid},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use super::{
    ExecError, SuperviseSpec, covers,
    exec::{Ended, Supervisor, open_shared, unopened},
    log::{Pump, open_log},
};
use crate::{limits::name_limit, model::Pauses};

/// Longest time until the first report of a supervisor to its parent. Before that the supervisor
/// reports the start to the agent, which may take 10 s.
const STARTED: Duration = Duration::from_secs(60);

/// The supervisor's report to the process that started it: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The program runs.
    Started(i32),
    /// The program does not run.
    Failed(ExecError),
}

/// What happens to a detached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Runs {
        /// Its pid.
        pid: i32,
        /// How often it was started again.
        restarts: u32,
        /// How its last run ended, if it keeps failing.
        failing: Option<String>,
    },
    /// It has ended or could not be started, and is started again after a pause.
    Waits {
        /// Exit code of the last run.
        code: i32,
        /// How often it was started again, the next time included.
        restarts: u32,
        /// How its last run ended, if it keeps failing.
        failing: Option<String>,
    },
    /// It has ended, and is not started again.
    Ended {
        /// Exit code of the last run.
        code: i32,
    },
}

/// What a supervisor and its program get from another process than the one that starts it. Each
/// `None` is inherited.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Surroundings {
    /// Environment: names and values.
    pub environment: Option<Vec<(String, String)>>,
    /// Working directory.
    pub directory: Option<PathBuf>,
    /// File mode creation mask (umask(2)).
    pub umask: Option<u32>,
    /// Soft limit of open files (getrlimit(2)).
    pub files: Option<u64>,
}

/// Starts a detached supervisor. Waits until the program runs and `tell` of
/// [`supervise_detached`] has reported the start. Returns the program's pid.
///
/// This binary is executed again as `culvert ARGS... __supervise SPEC`, with `SPEC` in JSON; `args`
/// are the global options that it needs.
///
/// # Errors
/// As [`supervise`](super::supervise); also if the specification has no log. A program that is
/// [started again](SuperviseSpec::restarts) is then tried again nevertheless, as its policy says.
pub async fn spawn_detached(
    spec: &SuperviseSpec,
    args: &[OsString],
    surroundings: &Surroundings,
) -> Result<i32, ExecError> {
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
    let Surroundings { environment, directory, umask: mask, files } = surroundings;
    if let Some(environment) = environment {
        command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    }
    let directory = match directory {
        None => None,
        // Opened here, so that the error names the directory.
        Some(path) => Some(open_directory(path, STARTED).await?),
    };
    let mask = mask.map(Mode::from_bits_truncate);
    let files = *files;
    // SAFETY: between fork and exec this makes system calls alone and allocates nothing. The
    // directory is open until the closure, which owns it, is dropped.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if let Some(directory) = &directory {
                fchdir(directory)?;
            }
            if let Some(mask) = mask {
                umask(mask);
            }
            if let Some(soft) = files
                && let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
            {
                // A limit that cannot be changed is no reason not to run.
                let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.min(most), most);
            }
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|error| ours(&name_limit(error)))?;
    let silent = || ours(&format_args!("it ended without a word: see {}", log.display()));
    let stdout = child.stdout.take().ok_or_else(silent)?;
    let mut lines = BufReader::new(stdout).lines();
    let Ok(line) = timeout(STARTED, lines.next_line()).await else {
        // The kernel kills the program with it.
        let _ = child.kill().await;
        let why = format!("no word from it for {} s, it was killed", STARTED.as_secs());
        return Err(ours(&format_args!("{why}: see {}", log.display())));
    };
    let line = line.map_err(|error| ours(&error))?;
    match serde_json::from_str(&line.ok_or_else(silent)?).map_err(|error| ours(&error))? {
        Report::Started(pid) => Ok(pid),
        Report::Failed(error) => Err(error),
    }
}

/// Opens a working directory, on a thread of its own: the server of a network file system may be
/// away. Permission to list the directory is not needed.
async fn open_directory(path: &Path, limit: Duration) -> Result<File, ExecError> {
    let refused = |why: &dyn std::fmt::Display| {
        ExecError::ours(format!("working directory {}: {why}", path.display()))
    };
    let owned = path.to_owned();
    let open = move || covers::open_directory(&owned);
    match timeout(limit, spawn_blocking(open)).await {
        Ok(Ok(opened)) => opened.map_err(|error| refused(&error)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => {
            let why = format!("it has not been opened for {} s", limit.as_secs());
            Err(refused(&why))
        }
    }
}

/// Implements `culvert __supervise`: runs the program as [`supervise`](super::supervise) does,
/// writes one report to standard output and closes it. Starts the program again as its policy says,
/// unless a signal has asked it to end. Returns the last exit code, once no process writes to the
/// log any more.
///
/// `tell` is called at each change. The end of the program is noticed only after it has returned,
/// so it must be bounded in time. `false`: the program is not started again.
pub async fn supervise_detached(
    spec: &SuperviseSpec,
    mut tell: impl AsyncFnMut(Life) -> bool,
) -> i32 {
    let opened = async {
        let path = spec.log.as_deref();
        let path = path.ok_or_else(|| ExecError::ours("a detached program needs a log"))?;
        let log = open_shared(path, spec.log_limits, true)?;
        Ok::<_, ExecError>((log, Supervisor::new().await?))
    };
    let (log, mut supervisor) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            let code = error.code;
            report(&Report::Failed(error));
            return code;
        }
    };
    let mut restarts = spec.restarts.unwrap_or(0);
    // The process that has started this one waits for the first report.
    let mut awaited = true;
    let mut pauses = Pauses::default();
    let mut failing: Option<String> = None;
    let mut pumps: Vec<Pump> = Vec::new();
    let code = loop {
        let began = Instant::now();
        let started = async |pid| {
            tell(Life::Runs { pid, restarts, failing: failing.clone() }).await;
            if awaited {
                report(&Report::Started(pid));
            }
        };
        let run = supervisor.run(spec, Some(log.clone()), started).await;
        let (code, asked, how) = match run {
            Ok(Ended { code, asked, pump }) => {
                pumps.retain(|pump| !pump.is_finished());
                pumps.extend(pump);
                (code, asked, format!("exit code {code}"))
            }
            // `run -d` fails with this.
            Err(error) if awaited && spec.restarts.is_none() => {
                let code = error.code;
                report(&Report::Failed(error));
                return code;
            }
            Err(error) => {
                log.write(format!("culvert: {error}\n").as_bytes());
                if awaited {
                    report(&Report::Failed(error.clone()));
                }
                (error.code, false, error.message)
            }
        };
        awaited = false;
        if asked || !spec.restart.again(Some(code), restarts) {
            break code;
        }
        let pause = pauses.after(began.elapsed());
        failing = pauses.failing().then_some(how);
        restarts = restarts.saturating_add(1);
        if !tell(Life::Waits { code, restarts, failing: failing.clone() }).await {
            break code;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = supervisor.asked() => break code,
        }
    };
    tell(Life::Ended { code }).await;
    for pump in pumps {
        pump.finish().await;
    }
    code
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_working_directory_is_opened_or_named() {
        let limit = Duration::from_secs(10);
        let directory = tempfile::tempdir().unwrap();
        assert!(
            open_directory(directory.path(), limit).await.unwrap().metadata().unwrap().is_dir()
        );
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [file, directory.path().join("missing")] {
            let error = open_directory(&path, limit).await.unwrap_err();
            let start = format!("working directory {}: ", path.display());
            assert!(error.message.starts_with(&start), "{error}");
        }
    }
}
