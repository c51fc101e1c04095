//! Processes that are killed when their guard is dropped.

#![expect(clippy::panic, reason = "a test whose process cannot be started fails with the cause")]

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigHandler, Signal, kill},
    unistd::Pid,
};

use crate::wait::{POLL, on_this_machine};

/// A process with its output in files, killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    files: tempfile::TempDir,
}

impl Process {
    /// Starts `command` with an empty standard input.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn spawn(mut command: Command) -> Self {
        let mut start = || {
            let files = tempfile::tempdir()?;
            let output = File::create(files.path().join("out"))?;
            let errors = File::create(files.path().join("err"))?;
            // A test run in the background ignores some signals, and its children would inherit
            // these dispositions. SAFETY: signal(2) is async-signal-safe, and sets a default
            // action.
            unsafe {
                command.pre_exec(|| {
                    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                        nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
                    }
                    Ok(())
                })
            };
            let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn()?;
            Ok::<_, std::io::Error>(Self { child, files })
        };
        match start() {
            Ok(process) => process,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Pid of the program: `nsenter` executes it without a fork.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Standard output of the process so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.files.path().join("out")).unwrap_or_default()
    }

    /// Standard error of the process so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.files.path().join("err")).unwrap_or_default()
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, if the process runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            // The pid is still that of the process: only this guard reaps it.
            let _ = kill(self.pid(), signal);
        }
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// When `deadline` has passed, with the standard error of the process.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let (start, deadline) = (Instant::now(), on_this_machine(deadline));
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            if start.elapsed() > deadline {
                panic!("pid {} has not ended within {deadline:?}: {}", self.pid(), self.stderr());
            }
            thread::sleep(POLL);
        }
    }

    /// Sends `signal` and waits for the end of the process.
    ///
    /// # Panics
    /// When `deadline` has passed, with the standard error of the process.
    pub fn stop(&mut self, signal: Signal, deadline: Duration) -> ExitStatus {
        self.signal(signal);
        self.wait(deadline)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code as a shell gives it: 128 + the signal's number if a signal killed the process.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
