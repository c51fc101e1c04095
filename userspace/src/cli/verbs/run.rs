//! `run` and `exec`: a command in a sandbox, in the foreground or in the background.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};

use super::container::{FROM_UNKNOWN, created, find, open_to_all, remove_log, tell_warnings};
use crate::{
    api::{
        Backend,
        types::{ContainerCreate, ContainerRow, ContainerState, ErrorKind},
    },
    cli::{
        args::{ExecArgs, Format, RunArgs},
        failure::{Failure, tell},
        value::LogOpt,
    },
    model::{Name, NameOptions},
    sandbox::{self, ExecError, LogLimits, RESOLV_CONF, SuperviseSpec},
};

/// Time for which the end of a command in the foreground is reported again to an agent that
/// does not answer. Then `run` gives up and returns to the shell.
const PATIENCE_FOREGROUND: Duration = Duration::from_secs(10);
/// The time for a command in the background, where no user waits.
const PATIENCE_BACKGROUND: Duration = Duration::from_secs(600);

pub(crate) async fn run(
    backend: &dyn Backend,
    global: Vec<OsString>,
    args: RunArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let names = NameOptions::from(args.names);
    check_files(&names)?;
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
        })
        .await?;
    tell_warnings(&mut row);
    if let (None, Some(option)) = (&row.etc, names.given()) {
        withdraw(backend, &args.name, None).await;
        return Err(Failure::refusal(format!(
            "{option}: the agent is of an earlier version and does not know it: restart it with this one"
        )));
    }
    if !args.from.is_empty() && open_to_all(&row, &network) {
        withdraw(backend, &args.name, None).await;
        return Err(Failure::refusal(FROM_UNKNOWN));
    }
    let spec = SuperviseSpec { log_limits: limits(&args.log_opt), ..spec(&row, args.command, log) };
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
        sandbox::spawn_detached(&spec, &arguments).await.map(|pid| {
            row.pid = Some(pid);
            row.log = spec.log.as_ref().map(|log| log.display().to_string());
            0
        })
    } else {
        let report = Report {
            backend,
            name: &args.name,
            log: None,
            remove: args.rm,
            patience: PATIENCE_FOREGROUND,
        };
        sandbox::supervise(&spec, report.started(), report.ended()).await
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
        .map_err(|error| Failure::usage(format!("__supervise is culvert's own: {error}")))?;
    let name: Name =
        spec.name.parse().map_err(|error| Failure::usage(format!("__supervise: {error}")))?;
    let report = Report {
        backend,
        name: &name,
        log: spec.log.clone(),
        remove,
        patience: PATIENCE_BACKGROUND,
    };
    let code = sandbox::supervise_detached(&spec, report.started(), report.ended()).await;
    Ok(exit_code(code))
}

pub(crate) async fn exec(backend: &dyn Backend, args: ExecArgs) -> Result<u8, Failure> {
    let row = find(backend, &args.name).await?;
    let spec = spec(&row, args.command, None);
    match sandbox::supervise(&spec, async |_| {}, async |_| {}).await {
        Ok(code) => Ok(exit_code(code)),
        Err(error) => Err(not_run(error)),
    }
}

fn spec(row: &ContainerRow, command: Vec<String>, log: Option<PathBuf>) -> SuperviseSpec {
    let netns = (row.mode != "host").then(|| PathBuf::from(&row.netns));
    SuperviseSpec {
        name: row.name.clone(),
        netns,
        hostname: row.hostname.clone(),
        etc: row.etc.as_ref().map(PathBuf::from),
        command,
        log,
        log_limits: LogLimits::default(),
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

/// The limits of a log. The last of several options of one name counts.
fn limits(options: &[LogOpt]) -> LogLimits {
    options.iter().fold(LogLimits::default(), |limits, option| match *option {
        LogOpt::MaxSize(max_size) => LogLimits { max_size, ..limits },
        LogOpt::MaxFile(max_files) => LogLimits { max_files, ..limits },
    })
}

/// Path of the log of a detached container. Makes its directory.
fn log_path(state_dir: &str, name: &Name) -> Result<PathBuf, Failure> {
    let directory = Path::new(state_dir).join("logs");
    fs::create_dir_all(&directory).map_err(|error| {
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

/// Reports the start and the end of the command to the agent.
struct Report<'a> {
    backend: &'a dyn Backend,
    name: &'a Name,
    log: Option<PathBuf>,
    remove: bool,
    patience: Duration,
}

impl Report<'_> {
    fn started(&self) -> impl AsyncFnOnce(i32) {
        async |pid| {
            let state = ContainerState::Running { pid, log: self.log.clone() };
            if let Err(error) = self.backend.container_state(self.name, state).await {
                tell(&format!("container {} runs, but the agent was not told: {error}", self.name));
            }
        }
    }

    fn ended(&self) -> impl AsyncFnOnce(i32) {
        async |code| {
            let state = ContainerState::Exited { code };
            let told = self
                .insist(async || self.backend.container_state(self.name, state.clone()).await)
                .await;
            let told = match told {
                Ok(()) if self.remove => {
                    self.insist(async || self.backend.container_remove(self.name, true).await).await
                }
                told => told,
            };
            match told {
                Err(error) if error.kind != ErrorKind::NotFound => {
                    tell(&format!("container {} ended, but: {error}", self.name));
                }
                // Not found: the container was removed while it ran, by 'rm -f' or 'purge'.
                _ => {}
            }
            if self.remove
                && let Some(Err(Failure { line: Some(line), .. })) =
                    self.log.as_deref().map(remove_log)
            {
                tell(&line);
            }
        }
    }

    /// Repeats `request` while the agent or its store does not answer, as during an upgrade.
    async fn insist<T>(
        &self,
        mut request: impl AsyncFnMut() -> Result<T, crate::api::types::ApiError>,
    ) -> Result<T, crate::api::types::ApiError> {
        let deadline = Instant::now() + self.patience;
        let mut pause = Duration::from_millis(50);
        loop {
            match request().await {
                Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < deadline => {
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                done => return done,
            }
        }
    }
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
