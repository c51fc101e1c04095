//! Programs that run in a sandbox.

use std::{
    fs::{self, File},
    io::{self, PipeReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    pin::pin,
    process::{Command, Stdio},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, sethostname, setsid},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, oneshot};

use super::{
    SandboxError,
    covers::Covers,
    isolation::{self, FirstCommand},
    log::{LogLimits, LogWriter, Pump, SharedLog},
    mounts::{self, Names, Separated},
    privileges,
    signals::{Caught, Signals},
};
use crate::{
    model::{Isolation, Privileges, RestartPolicy},
    netns::Netns,
};

/// Signal handlers belong to the whole process, so there is one supervisor at a time.
static SUPERVISOR: Mutex<()> = Mutex::const_new(());

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseSpec {
    /// Name of the container, for `/etc/netns/NAME/`.
    pub name: String,
    /// Identifier of the container, which tells it from a later one of this name. `None`: it has
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Namespace to run in. `None`: the current one (mode `host`).
    pub netns: Option<PathBuf>,
    /// Host name, in a UTS namespace of the program's own. `None`: the host's. Without `netns` it
    /// has no effect.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Directory of files to mount over those of the same name in `/etc`. `None`: the host's are
    /// seen. Without `netns` it has no effect.
    #[serde(default)]
    pub etc: Option<PathBuf>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// File to which standard output and error are appended; standard input is then empty. `None`:
    /// all three are inherited.
    pub log: Option<PathBuf>,
    /// Size of the log.
    #[serde(default)]
    pub log_limits: LogLimits,
    /// When a detached program is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Its earlier supervisor has gone: the number of times that the program was started again,
    /// this time included. `None`: it is started for the first time.
    #[serde(default)]
    pub restarts: Option<u32>,
    /// User and capabilities of the program.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub privileges: Privileges,
    /// What the program has apart from the host.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// The command with these namespaces and file systems, which the program enters. `None`: they
    /// are made for it. Without `isolation` it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<FirstCommand>,
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
/// of its own. A program with less privileges than the supervisor that could type into the terminal
/// has a session of its own, without a terminal; the supervisor forwards Ctrl-C to its process group.
/// If the supervisor is killed, the kernel kills the program too.
///
/// # Errors
/// The program or the namespace does not exist or cannot be entered or executed.
pub async fn supervise(
    spec: &SuperviseSpec,
    on_start: impl AsyncFnOnce(i32),
    on_exit: impl AsyncFnOnce(i32),
) -> Result<i32, ExecError> {
    let log = match &spec.log {
        None => None,
        Some(path) => Some(open_shared(path, spec.log_limits, false)?),
    };
    // Signals are caught until `on_exit` has reported the end.
    let mut supervisor = Supervisor::new().await?;
    let Ended { code, .. } = supervisor.run(spec, log, on_start).await?;
    on_exit(code).await;
    Ok(code)
}

/// Opens a log to write what programs print.
pub(super) fn open_shared(
    path: &Path,
    limits: LogLimits,
    with_stderr: bool,
) -> Result<SharedLog, ExecError> {
    let log = LogWriter::open(path, limits, with_stderr);
    log.map(SharedLog::new).map_err(|error| unopened(path, &error))
}

/// The end of a program.
pub(super) struct Ended {
    /// Exit code, or 128 + N if signal N ended it.
    pub(super) code: i32,
    /// A signal that asks programs to end was forwarded to it.
    pub(super) asked: bool,
    /// The task that writes its log.
    pub(super) pump: Option<Pump>,
}

/// Catches the signals that are forwarded to programs, until it is dropped.
pub(super) struct Supervisor {
    _alone: MutexGuard<'static, ()>,
    signals: Signals,
}

impl Supervisor {
    /// Waits until there is no other one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn new() -> Result<Self, ExecError> {
        let alone = SUPERVISOR.lock().await;
        let signals = Signals::catch()
            .map_err(|error| ExecError::ours(format!("catching signals: {error}")))?;
        Ok(Self { _alone: alone, signals })
    }

    /// Waits for a signal that asks programs to end. Others that come meanwhile are lost: there is
    /// no program to forward them to.
    pub(super) async fn asked(&mut self) {
        loop {
            match self.signals.next().await {
                Ok(Caught { signal, by_terminal: false })
                    if asks(signal) || signal == Signal::SIGHUP =>
                {
                    return;
                }
                Ok(_) => {}
                // The pipe of the signals is never closed.
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }

    /// Runs a program as [`supervise`]. Its output goes to `log`.
    ///
    /// # Errors
    /// As [`supervise`].
    pub(super) async fn run(
        &mut self,
        spec: &SuperviseSpec,
        log: Option<SharedLog>,
        on_start: impl AsyncFnOnce(i32),
    ) -> Result<Ended, ExecError> {
        let (started, is_started) = oneshot::channel();
        let (ended, mut is_ended) = oneshot::channel();
        let owned = spec.clone();
        let logged = log.is_some();
        // The thread that starts the program changes its own namespaces and must
        // outlive the program (PR_SET_PDEATHSIG).
        thread::Builder::new()
            .name("culvert-exec".to_owned())
            .spawn(move || match start(&owned, logged) {
                Ok(Spawned { pid, covers, printed, is_apart }) => {
                    let _ = started.send(Ok((pid, printed, is_apart)));
                    covers.keep_until_end(pid);
                    let _ = ended.send(wait_for_end(pid));
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(|error| ExecError::ours(format!("starting a thread: {error}")))?;
        let lost = || ExecError::ours("the thread that runs the program ended");
        let (pid, printed, is_apart) = is_started.await.map_err(|_| lost())??;
        let mut pump = match printed.zip(log) {
            None => None,
            Some((pipe, log)) => Some(Pump::start(pipe, log).map_err(|error| {
                // The program's next line would end it.
                let _ = kill(pid, Signal::SIGKILL);
                ExecError::ours(format!("reading what the program prints: {error}"))
            })?),
        };

        let mut asked = false;
        {
            let mut told = pin!(on_start(pid.as_raw()));
            let mut is_told = false;
            loop {
                tokio::select! {
                    () = &mut told, if !is_told => is_told = true,
                    // The end must not be reported before `on_start` has returned.
                    end = &mut is_ended, if is_told => {
                        end.map_err(|_| lost())?
                            .map_err(|errno| ExecError::ours(format!("waiting: {errno}")))?;
                        break;
                    }
                    // The process is not reaped yet, so its pid is not reused.
                    Ok(Caught { signal, by_terminal }) = self.signals.next() => {
                        if !by_terminal {
                            asked |= asks(signal);
                            let _ = kill(pid, signal);
                        } else if is_apart {
                            let _ = killpg(pid, signal);
                        }
                    }
                }
            }
        }
        let code = match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            other => return Err(ExecError::ours(format!("waiting for the program: {other:?}"))),
        };
        if let Some(pump) = &mut pump {
            pump.drain().await;
        }
        Ok(Ended { code, asked, pump })
    }
}

/// Whether a signal asks a program to end. SIGHUP asks many to read their configuration again.
fn asks(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)
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

/// A program that was started.
struct Spawned {
    pid: Pid,
    /// The mounts to keep.
    covers: Covers,
    /// What it prints, if that is logged.
    printed: Option<PipeReader>,
    /// It has a session of its own, though the supervisor has a terminal.
    is_apart: bool,
}

/// The file that tells whether [`takes_input`].
const LEGACY_TIOCSTI: &str = "/proc/sys/dev/tty/legacy_tiocsti";

/// Whether the kernel lets a program without CAP_SYS_ADMIN put characters into the input of its
/// controlling terminal, as if somebody had typed them (`TIOCSTI`, ioctl_tty(2)). `setting`: the
/// contents of [`LEGACY_TIOCSTI`], which Linux before 6.2 does not have.
fn takes_input(setting: Option<&str>) -> bool {
    setting.is_none_or(|setting| setting.trim() != "0")
}

/// Starts the program from the calling thread. It inherits the thread's namespaces. If `logged`,
/// what it prints is returned.
fn start(spec: &SuperviseSpec, logged: bool) -> Result<Spawned, ExecError> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(ExecError::ours("no command is given: put one behind '--'"));
    };
    // Of this thread, which starts no other program.
    let identity = privileges::confine(&spec.privileges).map_err(ExecError::ours)?;
    let mut command = Command::new(program);
    command.args(arguments);
    let mut printed = None;
    if logged {
        let failed = |error: io::Error| ExecError::ours(format!("making a pipe: {error}"));
        let (reader, output) = io::pipe().map_err(failed)?;
        if let Some(identity) = &identity {
            identity.own(&output);
        }
        let errors = output.try_clone().map_err(failed)?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        printed = Some(reader);
    }
    if let Some(path) = &spec.netns {
        let sandbox = Netns::open(path).map_err(SandboxError::from)?;
        setns(&sandbox, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            SandboxError::io(format!("entering network namespace {}", path.display()), errno)
        })?;
        if let Some(hostname) = &spec.hostname {
            unshare(CloneFlags::CLONE_NEWUTS).and_then(|()| sethostname(hostname)).map_err(
                |errno| SandboxError::io(format!("setting host name {hostname}"), errno),
            )?;
        }
    }
    // Read before the mounts change: a container's command may have mounted files of its own over
    // these.
    let has_terminal = File::open("/dev/tty").is_ok();
    if !has_terminal {
        command.process_group(0);
    }
    // What a program with less privileges types into the terminal, the user's shell carries out.
    let is_apart = has_terminal
        && !spec.privileges.is_default()
        && takes_input(fs::read_to_string(LEGACY_TIOCSTI).ok().as_deref());
    let names = Names { name: &spec.name, etc: spec.etc.as_deref() };
    let names = spec.netns.is_some().then_some(&names);
    let Separated { mut covers, proc } = mounts::separate(names, &spec.isolation, spec.joins)?;
    let (mounts_proc, read_only) = (proc.is_some(), spec.isolation.read_only);
    // SAFETY: between fork and exec this makes system calls alone and allocates nothing: the groups
    // are in a vector of `identity`, which the closure owns.
    unsafe {
        command.pre_exec(move || {
            if is_apart {
                setsid()?;
            }
            // Only a process of the new PID namespace can mount its /proc. Must come before the
            // identity is taken: mounting needs `CAP_SYS_ADMIN`.
            if mounts_proc {
                isolation::mount_proc(read_only)?;
            }
            if let Some(identity) = &identity {
                identity.take()?;
            }
            // Last: the kernel forgets the signal when a process changes its user (prctl(2)).
            Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
        });
    }
    let child = command.spawn().map_err(|error| match isolation::proc_error(&error) {
        Some(errno) => ExecError::from(SandboxError::io("--pid private: mounting /proc", errno)),
        None => refusal(program, &error),
    })?;
    if let Some(proc) = &proc
        && let Err(error) = covers.look_into(proc)
    {
        tracing::warn!(%error, "the program sees files of /etc that the host replaces");
    }
    // A pid fits into pid_t; the standard library returns it unsigned.
    Ok(Spawned { pid: Pid::from_raw(child.id().cast_signed()), covers, printed, is_apart })
}

/// The error of a log that cannot be opened.
pub(super) fn unopened(log: &Path, error: &io::Error) -> ExecError {
    ExecError::ours(format!("opening log {}: {error}", log.display()))
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
    use std::{
        fs::{self, OpenOptions},
        os::unix::fs::OpenOptionsExt as _,
    };

    use super::*;

    fn spec(command: &[&str]) -> SuperviseSpec {
        SuperviseSpec {
            name: "test".to_owned(),
            id: None,
            netns: None,
            hostname: None,
            etc: None,
            command: command.iter().map(|&part| part.to_owned()).collect(),
            log: None,
            log_limits: LogLimits::default(),
            restart: RestartPolicy::No,
            restarts: None,
            privileges: Privileges::default(),
            isolation: Isolation::default(),
            joins: None,
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

    #[test]
    fn a_terminal_takes_no_input_from_programs_where_the_kernel_says_so() {
        assert!(takes_input(None) && takes_input(Some("1\n")) && !takes_input(Some("0\n")));
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

    /// Everything that the program itself has printed is in the log at its end, even if a child
    /// keeps the pipe; and a child that prints later is not killed for it.
    #[tokio::test]
    async fn output_of_a_child_that_stays_goes_to_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let (log, release) = (directory.path().join("log"), directory.path().join("release"));
        let script = "(while [ ! -e $0 ]; do sleep 0.01; done; echo late; echo later) & \
                      seq 20000; exit 3";
        let mut logged = spec(&["sh", "-c", script, release.to_str().unwrap()]);
        logged.log = Some(log.clone());
        let (code, pump) = run_with(&logged).await;
        assert_eq!(code, 3);
        let numbers: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(fs::read_to_string(&log).unwrap(), numbers);
        fs::write(release, "").unwrap();
        pump.unwrap().finish().await;
        assert_eq!(fs::read_to_string(&log).unwrap(), format!("{numbers}late\nlater\n"));
    }

    async fn run_with(spec: &SuperviseSpec) -> (i32, Option<Pump>) {
        let log = open_shared(spec.log.as_deref().unwrap(), spec.log_limits, false).unwrap();
        let mut supervisor = Supervisor::new().await.unwrap();
        let ended = supervisor.run(spec, Some(log), async |_| {}).await.unwrap();
        (ended.code, ended.pump)
    }
}
