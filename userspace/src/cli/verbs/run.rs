//! `run` and `exec`: a command in a sandbox, in the foreground or in the background.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{FutureExt, future::join};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    container::{FROM_UNKNOWN, created, find, open_to_all, remove_log, tell_warnings},
    telling::Teller,
};
use crate::{
    api::{
        Backend,
        types::{ContainerCreate, ContainerRow, ContainerState, ErrorKind, Rerun, Supervised},
    },
    cli::{
        accounts,
        args::{ExecArgs, Format, RunArgs},
        failure::{Failure, tell},
        value::LogOpt,
    },
    model::{Isolation, Name, NameOptions, RestartPolicy},
    private,
    sandbox::{
        self, ExecError, FirstCommand, Life, LogLimits, RESOLV_CONF, SuperviseSpec, Surroundings,
    },
};

/// Time for which `run` tries to report the end of a foreground command to an agent that does not
/// answer.
/// Then `run` gives up and returns to the shell. In the background, where no user waits, there is
/// no limit.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(
    backend: &dyn Backend,
    global: Vec<OsString>,
    args: RunArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let privileges = accounts::privileges(args.user.as_ref(), &args.cap_drop, &args.cap_add)?;
    let names = NameOptions::from(args.names);
    check_files(&names)?;
    let isolation = Isolation::from(args.isolation);
    check_directories(&isolation)?;
    let rerun = rerun(args.restart, args.detach, args.rm, limits(&args.log_opt))?;
    // From here on a signal must not leave a container without its command.
    let mut signals = Signals::catch()?;
    // The agent is asked first: if it does not answer, there is nothing to clean up.
    let log = match args.detach {
        true => Some(log_path(&backend.status().await?.agent.state_dir, &args.name)?),
        false => None,
    };
    let network = args.network.clone();
    let mut ips = args.ips.into_iter();
    let mut row = backend
        .container_create(ContainerCreate {
            name: args.name.clone(),
            network: args.network,
            ip: ips.next(),
            more_ips: ips.collect(),
            mac: args.mac,
            ports: args.ports,
            from: args.from.clone(),
            expose: args.expose,
            ifname: None,
            netns: None,
            pid: None,
            auto_remove: args.rm,
            command: args.command.clone(),
            names: names.clone(),
            rerun,
            privileges: privileges.clone(),
            isolation: isolation.clone(),
        })
        .await?;
    tell_warnings(&mut row);
    let unknown = match (&row.etc, names.given()) {
        (None, Some(option)) => Some(option),
        _ if row.restart != args.restart => Some("--restart"),
        // It would start the command again without them.
        _ if row.privileges != privileges => privileges.given(),
        _ if row.isolation != isolation => isolation.given(),
        _ => None,
    };
    if let Some(option) = unknown {
        withdraw(backend, &args.name, None).await;
        return Err(Failure::refusal(format!(
            "{option}: the agent is of an earlier version and does not know it: restart it with this one"
        )));
    }
    if !args.from.is_empty() && open_to_all(&row, &network) {
        withdraw(backend, &args.name, None).await;
        return Err(Failure::refusal(FROM_UNKNOWN));
    }
    let spec = SuperviseSpec {
        log_limits: limits(&args.log_opt),
        restart: args.restart,
        ..spec(&row, args.command, log)
    };
    if let Some(signal) = signals.caught() {
        withdraw(backend, &args.name, spec.log.as_deref()).await;
        return Err(Failure::silent(128 + signal));
    }
    let outcome = if args.detach {
        // The name was free: an existing log is an earlier container's.
        if let Some(log) = &spec.log
            && let Err(failure) = remove_log(log)
        {
            withdraw(backend, &args.name, None).await;
            return Err(failure);
        }
        let mut arguments = global;
        if args.rm {
            arguments.push("--auto-remove".into());
        }
        let inherited = Surroundings::default();
        sandbox::spawn_detached(&spec, &arguments, &inherited).await.map(|pid| {
            row.pid = Some(pid);
            "running".clone_into(&mut row.state);
            row.log = spec.log.as_ref().map(|log| log.display().to_string());
            0
        })
    } else {
        let (sayer, teller) = Teller::new(backend, &args.name, None, args.rm, Some(PATIENCE));
        let supervised = async {
            // Dropped at the end: the teller then tells the last state and ends.
            let sayer = sayer;
            let started = async |pid| {
                sayer.say(running(&spec, pid, 0, None));
                sayer.sent().await;
            };
            let ended =
                async |code| sayer.say(ContainerState::Exited { code, id: spec.id.clone() });
            sandbox::supervise(&spec, started, ended).await
        };
        join(supervised, teller.run()).await.0
    };
    match outcome {
        Ok(code) => {
            if args.detach {
                created(row, format, out)?;
            }
            Ok(exit_code(code))
        }
        Err(error) => {
            withdraw(backend, &args.name, spec.log.as_deref()).await;
            Err(not_run(error))
        }
    }
}

/// Runs the supervisor of `run -d`.
pub(crate) async fn supervise_detached(
    backend: &dyn Backend,
    spec: &str,
    remove: bool,
) -> Result<u8, Failure> {
    let spec: SuperviseSpec = serde_json::from_str(spec)
        .map_err(|error| Failure::usage(format!("__supervise is an internal command: {error}")))?;
    let name: Name =
        spec.name.parse().map_err(|error| Failure::usage(format!("__supervise: {error}")))?;
    let (sayer, teller) = Teller::new(backend, &name, spec.log.clone(), remove, None);
    let supervised = async {
        // Dropped at the end: the teller then tells the last state and ends.
        let sayer = sayer;
        let mut first = true;
        let tell = async |life| match life {
            Life::Runs { pid, restarts, failing } => {
                sayer.say(running(&spec, pid, restarts, failing));
                if std::mem::take(&mut first) {
                    sayer.sent().await;
                }
                true
            }
            Life::Waits { code, restarts, failing } => {
                let supervisor = supervised(restarts, failing);
                let (log, id) = (spec.log.clone(), spec.id.clone());
                sayer.say(ContainerState::Restarting { code, log, supervisor, id });
                !sayer.is_gone()
            }
            Life::Ended { code } => {
                sayer.say(ContainerState::Exited { code, id: spec.id.clone() });
                true
            }
        };
        sandbox::supervise_detached(&spec, tell).await
    };
    let (code, ()) = join(supervised, teller.run()).await;
    Ok(exit_code(code))
}

/// The report that a command runs.
fn running(
    spec: &SuperviseSpec,
    pid: i32,
    restarts: u32,
    failing: Option<String>,
) -> ContainerState {
    ContainerState::Running {
        pid,
        log: spec.log.clone(),
        supervisor: Some(supervised(restarts, failing)),
        id: spec.id.clone(),
    }
}

/// This process, which supervises a command.
fn supervised(restarts: u32, failing: Option<String>) -> Supervised {
    Supervised { pid: std::process::id().cast_signed(), restarts, failing }
}

pub(crate) async fn exec(backend: &dyn Backend, args: ExecArgs) -> Result<u8, Failure> {
    let row = find(backend, &args.name).await?;
    // Where the first command runs, the second one has its file systems and namespaces.
    let joins = row.pid.map(|pid| FirstCommand { pid, start_time: row.start_time });
    let spec = SuperviseSpec { joins, ..spec(&row, args.command, None) };
    match sandbox::supervise(&spec, async |_| {}, async |_| {}).await {
        Ok(code) => Ok(exit_code(code)),
        Err(error) => Err(not_run(error)),
    }
}

fn spec(row: &ContainerRow, command: Vec<String>, log: Option<PathBuf>) -> SuperviseSpec {
    let netns = (row.mode != "host").then(|| PathBuf::from(&row.netns));
    SuperviseSpec {
        name: row.name.clone(),
        id: row.id.clone(),
        netns,
        hostname: row.hostname.clone(),
        etc: row.etc.as_ref().map(PathBuf::from),
        command,
        log,
        log_limits: LogLimits::default(),
        restart: RestartPolicy::No,
        restarts: None,
        privileges: row.privileges.clone(),
        isolation: row.isolation.clone(),
        joins: None,
    }
}

/// Refuses options that would have no effect: a container's file is mounted over the host's, which
/// has to exist.
fn check_files(names: &NameOptions) -> Result<(), Failure> {
    let hosts = (!names.hosts.is_empty()).then_some("--add-host");
    for (option, file) in [(names.given_for_resolver(), RESOLV_CONF), (hosts, "/etc/hosts")] {
        if let Some(option) = option
            && Path::new(file).symlink_metadata().is_err()
        {
            return Err(Failure::refusal(format!(
                "{option}: this host has no {file} to mount the container's over: make that file, it may be empty"
            )));
        }
    }
    Ok(())
}

/// Refuses directories of `--tmpfs` that cannot be mounted.
fn check_directories(isolation: &Isolation) -> Result<(), Failure> {
    isolation.check().map_err(|invalid| Failure::usage(invalid.to_string()))?;
    match isolation.tmpfs.iter().find(|tmpfs| !tmpfs.path().is_dir()) {
        None => Ok(()),
        Some(tmpfs) => Err(Failure::refusal(format!(
            "--tmpfs {tmpfs}: this host has no such directory: create it"
        ))),
    }
}

/// The limits of a log. The last of several options of one name counts.
fn limits(options: &[LogOpt]) -> LogLimits {
    options.iter().fold(LogLimits::default(), |limits, option| match *option {
        LogOpt::MaxSize(max_size) => LogLimits { max_size, ..limits },
        LogOpt::MaxFile(max_files) => LogLimits { max_files, ..limits },
    })
}

/// Path of the log of a detached container. Makes its directory, for this process's user alone.
fn log_path(state_dir: &str, name: &Name) -> Result<PathBuf, Failure> {
    let directory = Path::new(state_dir).join("logs");
    private::make_dir(&directory).map_err(|error| {
        Failure::refusal(format!("log directory {} cannot be made: {error}", directory.display()))
    })?;
    Ok(directory.join(format!("{name}.log")))
}

/// Removes a container whose command did not start.
async fn withdraw(backend: &dyn Backend, name: &Name, log: Option<&Path>) {
    match backend.container_remove(name, true).await {
        Err(error) if error.kind != ErrorKind::NotFound => {
            tell(&format!("container {name} is left without its command: {error}"));
        }
        _ => {}
    }
    if let Some(Err(Failure { line: Some(line), .. })) = log.map(remove_log) {
        tell(&line);
    }
}

/// The failure of a command that did not start: the shell's exit codes 126 and 127, or a refusal.
fn not_run(error: ExecError) -> Failure {
    let code = if matches!(error.code, 126 | 127) { exit_code(error.code) } else { 1 };
    Failure { code, ..Failure::refusal(error.message) }
}

fn exit_code(code: i32) -> u8 {
    // A command's code is one byte already (wait(2)), 128 + signal at most 192.
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// What the agent needs to start the command again. `None`: it does not.
fn rerun(
    restart: RestartPolicy,
    detach: bool,
    remove: bool,
    log: LogLimits,
) -> Result<Option<Rerun>, Failure> {
    if restart.is_no() {
        return Ok(None);
    }
    if remove {
        return Err(Failure::usage(format!(
            "--restart {restart}: it does not go with --rm, which removes the container: leave out one of both"
        )));
    }
    if !detach {
        return Err(Failure::usage(format!(
            "--restart {restart}: only a command in the background is started again: add -d"
        )));
    }
    let text = |what: &str, value: OsString| {
        value.into_string().map_err(|value| {
            Failure::refusal(format!(
                "--restart {restart}: {what} {} is not UTF-8 and cannot be kept: change it",
                value.to_string_lossy()
            ))
        })
    };
    let environment = env::vars_os()
        .map(|(name, value)| {
            let name = text("environment variable", name)?;
            // The value may be secret.
            let value = value.into_string().map_err(|_| {
                Failure::refusal(format!(
                    "--restart {restart}: the value of environment variable {name} is not UTF-8 and cannot be kept: change it"
                ))
            })?;
            Ok((name, value))
        })
        .collect::<Result<_, Failure>>()?;
    let directory = env::current_dir().map_err(|error| {
        Failure::refusal(format!("--restart {restart}: the working directory is lost: {error}"))
    })?;
    text("working directory", directory.clone().into())?;
    let LogLimits { max_size: log_max_size, max_files: log_max_files } = log;
    Ok(Some(Rerun { restart, environment, directory, umask: umask(), log_max_size, log_max_files }))
}

/// The file mode creation mask of this process, from proc(5): umask(2) cannot read it without
/// setting it.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// The signals that would end this process, caught while a container is being made.
struct Signals(Vec<(u8, Signal)>);

impl Signals {
    fn catch() -> Result<Self, Failure> {
        [(1, SignalKind::hangup()), (2, SignalKind::interrupt()), (15, SignalKind::terminate())]
            .into_iter()
            .map(|(number, kind)| Ok((number, signal(kind)?)))
            .collect::<std::io::Result<_>>()
            .map(Self)
            .map_err(|error| Failure::refusal(format!("signals cannot be caught: {error}")))
    }

    /// The signal that was caught, if any.
    fn caught(&mut self) -> Option<u8> {
        self.0
            .iter_mut()
            .find_map(|(number, signal)| signal.recv().now_or_never().flatten().map(|()| *number))
    }
}
