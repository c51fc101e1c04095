//! Programs that run in a sandbox.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    pin::pin,
    process::{Command, Stdio},
    thread,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, oneshot};

use super::{SandboxError, mounts, signals::Signals};
use crate::netns::Netns;

/// Signal handlers belong to the whole process, so there is one supervisor at a time.
static SUPERVISOR: Mutex<()> = Mutex::const_new(());

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseSpec {
    /// Name of the container, for `/etc/netns/NAME/`.
    pub name: String,
    /// Namespace to run in. `None`: the current one (mode `host`).
    pub netns: Option<PathBuf>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// File to which standard output and error are appended; standard input is then empty. `None`:
    /// all three are inherited.
    pub log: Option<PathBuf>,
}

/// The error when a program did not run: one line, and an exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ExecError {
    /// Exit code as in a shell and Docker: 127 not found, 126 found but not executable, 125 any
    /// other fault.
    pub code: i32,
    /// The message, one line.
    pub message: String,
}

impl ExecError {
    /// An error that is not the program's fault (exit code 125).
    pub(super) fn ours(message: impl Into<String>) -> Self {
        Self { code: 125, message: message.into() }
    }
}

impl From<SandboxError> for ExecError {
    fn from(error: SandboxError) -> Self {
        Self::ours(error.to_string())
    }
}

/// Runs a program to its end. Returns its exit code, or 128 + N if signal N ended it.
///
/// `on_start` is called with the pid once the program runs. `on_exit` is called with the exit code
/// after its end, if it started. The end is noticed only after `on_start` has returned, so
/// `on_start` must be bounded in time; signals are forwarded meanwhile.
///
/// The signals INT, TERM, HUP, QUIT, USR1, USR2 and WINCH that are sent to the supervisor are
/// forwarded to the program. With a terminal the program is in the supervisor's process group, so
/// that Ctrl-C, Ctrl-Z and job control reach it directly; without a terminal it has a process group
/// of its own. If the supervisor is killed, the kernel kills the program too.
///
/// # Errors
/// The program or the namespace does not exist or cannot be entered or executed.
pub async fn supervise(
    spec: &SuperviseSpec,
    on_start: impl AsyncFnOnce(i32),
    on_exit: impl AsyncFnOnce(i32),
) -> Result<i32, ExecError> {
    let _alone = SUPERVISOR.lock().await;
    let signals =
        || Signals::catch().map_err(|error| ExecError::ours(format!("catching signals: {error}")));
    // Signals are caught before the program starts, so that none is lost in between.
    let mut signals = signals()?;
    let (started, is_started) = oneshot::channel();
    let (ended, mut is_ended) = oneshot::channel();
    let owned = spec.clone();
    // The thread that starts the program changes its own namespaces and must
    // outlive the program (PR_SET_PDEATHSIG).
    thread::Builder::new()
        .name("culvert-exec".to_owned())
        .spawn(move || match start(&owned) {
            Ok(pid) => {
                let _ = started.send(Ok(pid));
                let _ = ended.send(wait_for_end(pid));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        })
        .map_err(|error| ExecError::ours(format!("starting a thread: {error}")))?;
    let lost = || ExecError::ours("the thread that runs the program ended");
    let pid = is_started.await.map_err(|_| lost())??;

    {
        let mut told = pin!(on_start(pid.as_raw()));
        let mut is_told = false;
        loop {
            tokio::select! {
                () = &mut told, if !is_told => is_told = true,
                // `on_exit` must not be called before `on_start` has returned.
                end = &mut is_ended, if is_told => {
                    end.map_err(|_| lost())?
                        .map_err(|errno| ExecError::ours(format!("waiting: {errno}")))?;
                    break;
                }
                // The process is not reaped yet, so its pid is not reused.
                Ok(signal) = signals.next() => drop(kill(pid, signal)),
            }
        }
    }
    let code = match waitpid(pid, None) {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        other => return Err(ExecError::ours(format!("waiting for the program: {other:?}"))),
    };
    on_exit(code).await;
    Ok(code)
}

/// Waits for the end of the process without reaping it.
fn wait_for_end(pid: Pid) -> nix::Result<()> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => {}
            answer => return answer.map(drop),
        }
    }
}

/// Starts the program from the calling thread. It inherits the thread's namespaces.
fn start(spec: &SuperviseSpec) -> Result<Pid, ExecError> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(ExecError::ours("no command is given: put one behind '--'"));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(path) = &spec.log {
        let (output, errors) = open_log(path)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
    }
    if let Some(path) = &spec.netns {
        let sandbox = Netns::open(path).map_err(SandboxError::from)?;
        setns(&sandbox, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            SandboxError::io(format!("entering network namespace {}", path.display()), errno)
        })?;
        mounts::arrange(&spec.name)?;
    }
    if File::open("/dev/tty").is_err() {
        command.process_group(0);
    }
    // SAFETY: between fork and exec this makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let child = command.spawn().map_err(|error| refusal(program, &error))?;
    // A pid fits into pid_t; the standard library returns it unsigned.
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Opens a log twice, for standard output and standard error.
pub(super) fn open_log(path: &Path) -> Result<(File, File), ExecError> {
    let open = || -> io::Result<(File, File)> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        Ok((file.try_clone()?, file))
    };
    open().map_err(|error| ExecError::ours(format!("opening log {}: {error}", path.display())))
}

/// The message and exit code of a shell for a program that cannot be executed.
fn refusal(program: &str, error: &io::Error) -> ExecError {
    let (code, why) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if program.contains('/') && Path::new(program).exists() => {
            (126, "its interpreter does not exist: see its first line".to_owned())
        }
        Some(Errno::ENOENT) => (127, "command not found".to_owned()),
        Some(Errno::EACCES) => (126, "permission denied: not an executable file".to_owned()),
        Some(Errno::ENOEXEC) => (126, "not a program of this machine's format".to_owned()),
        _ if error.kind() == io::ErrorKind::InvalidInput => {
            (126, "an argument contains a NUL byte".to_owned())
        }
        _ => (126, error.to_string()),
    };
    ExecError { code, message: format!("{program}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str]) -> SuperviseSpec {
        SuperviseSpec {
            name: "test".to_owned(),
            netns: None,
            command: command.iter().map(|&part| part.to_owned()).collect(),
            log: None,
        }
    }

    async fn run(command: &[&str]) -> Result<i32, ExecError> {
        let mut told = None;
        let mut pid = 0;
        let result =
            supervise(&spec(command), async |id| pid = id, async |code| told = Some(code)).await;
        assert_eq!(told, result.as_ref().ok().copied());
        assert_eq!(pid > 0, result.is_ok());
        result
    }

    #[tokio::test]
    async fn exit_codes_pass_through() {
        assert_eq!(run(&["true"]).await, Ok(0));
        assert_eq!(run(&["sh", "-c", "exit 42"]).await, Ok(42));
        assert_eq!(run(&["sh", "-c", "kill -KILL $$"]).await, Ok(137));
    }

    #[tokio::test]
    async fn what_cannot_run_is_named_with_a_shell_s_exit_code() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::write(&plain, "not executable").unwrap();
        let script = directory.path().join("script");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).mode(0o755).open(&script).unwrap();
        io::Write::write_all(&mut file, b"#!/nonexistent/interpreter\n").unwrap();
        drop(file);
        let (plain, script) = (plain.to_str().unwrap(), script.to_str().unwrap());
        for (command, code, words) in [
            (vec!["culvert-no-such-command"], 127, "command not found"),
            (vec!["/nonexistent/command"], 127, "command not found"),
            (vec![plain], 126, "not an executable file"),
            (vec!["/etc"], 126, "not an executable file"),
            (vec![script], 126, "interpreter"),
            (vec!["true", "a\0b"], 126, "NUL"),
            (vec![], 125, "no command"),
        ] {
            let error = run(&command).await.unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(words), "{error}");
            assert_eq!(error.message.lines().count(), 1, "{error}");
        }
    }

    #[tokio::test]
    async fn a_namespace_that_is_none_is_refused() {
        let mut wrong = spec(&["true"]);
        for (path, words) in [("/nonexistent/netns", "does not exist"), ("/etc/passwd", "is not")] {
            wrong.netns = Some(path.into());
            let error = supervise(&wrong, async |_| {}, async |_| {}).await.unwrap_err();
            assert_eq!(error.code, 125);
            assert!(error.message.contains(path) && error.message.contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn output_goes_to_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("deep/log");
        let mut logged = spec(&["sh", "-c", "cat; echo out; echo err >&2"]);
        logged.log = Some(log.clone());
        for _ in 0..2 {
            assert_eq!(supervise(&logged, async |_| {}, async |_| {}).await, Ok(0));
        }
        assert_eq!(fs::read_to_string(log).unwrap(), "out\nerr\nout\nerr\n");
    }
}
