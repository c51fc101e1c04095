//! The starter: a process that starts detached supervisors for the agent.
//!
//! A seccomp filter and `no_new_privs` hold for all programs that a process starts, and cannot be
//! taken back (seccomp(2), prctl(2)). The commands of containers must have neither. So the agent
//! starts this process before it limits itself, as the internal command `culvert __starter`.
//! Orders come as lines of JSON from a socket, which is the starter's standard input. The kernel
//! kills the starter when the agent has ended: an order that is still in the socket must not be
//! carried out then, because the next agent may have started the command already.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{net::UnixStream as StdUnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    time::{ClockId, clock_gettime},
    unistd::{getpid, getppid},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    ExecError, SuperviseSpec,
    detach::{Surroundings, spawn_detached},
};

/// Longest time until the starter begins to carry out an order. A later one is refused: it would
/// end after [`CARRIED_OUT`], when nobody waits any more and the container may have been removed.
const BEGUN: Duration = Duration::from_secs(30);
/// Longest time until the starter has carried out an order. From the beginning it waits at most
/// 60 s for a working directory, and 60 s for the first report of the supervisor.
const CARRIED_OUT: Duration = Duration::from_secs(150);

/// The starter of this process.
static STARTER: OnceLock<Starter> = OnceLock::new();

/// A starter that runs.
struct Starter {
    /// Closed when the starter has ended.
    orders: mpsc::UnboundedSender<PendingOrder>,
    /// Number of the next order.
    next: AtomicU64,
    /// What [`follow_starter`] needs. `None`: it was called.
    link: Mutex<Option<StarterLink>>,
}

/// The process, the agent's end of its socket, and the orders for it.
struct StarterLink {
    process: Child,
    socket: StdUnixStream,
    orders: mpsc::UnboundedReceiver<PendingOrder>,
}

/// An order that waits for its outcome.
struct PendingOrder {
    number: u64,
    /// The order as a line.
    line: Vec<u8>,
    outcome: oneshot::Sender<Result<i32, ExecError>>,
}

/// An order: call [`spawn_detached`] with these arguments.
#[derive(Debug, Serialize, Deserialize)]
struct SpawnOrder {
    number: u64,
    /// When the starter must have begun, as [`now`].
    until: Duration,
    spec: SuperviseSpec,
    arguments: Vec<OsString>,
    surroundings: Surroundings,
}

/// The result of an order.
#[derive(Debug, Serialize, Deserialize)]
struct SpawnOutcome {
    number: u64,
    outcome: Result<i32, ExecError>,
}

/// Starts the starter of this process, with the present privileges of the process. It starts no
/// supervisor before [`follow_starter`] is called. Has no effect if there is a starter already.
///
/// The kernel kills it when the calling thread ends, which must therefore live as long as the
/// process.
///
/// # Errors
/// The kernel refuses.
pub fn start_starter() -> io::Result<()> {
    if STARTER.get().is_some() {
        return Ok(());
    }
    let (socket, its_own) = StdUnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("culvert").arg("__starter");
    // In a group of its own: Ctrl-C asks the agent to end, which may still need its starter.
    command.process_group(0).stdin(OwnedFd::from(its_own)).stdout(Stdio::null());
    let agent = getpid();
    // SAFETY: between fork and exec this makes system calls alone and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // It has no effect if the agent has ended before.
            if getppid() == agent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let process = command.spawn()?;
    let (sender, orders) = mpsc::unbounded_channel();
    let _ = STARTER.set(Starter {
        orders: sender,
        next: AtomicU64::new(0),
        link: Mutex::new(Some(StarterLink { process, socket, orders })),
    });
    Ok(())
}

/// Begins to pass orders to the starter of this process, in a task of its own. Returns a future
/// that is ready when the starter has ended. `None`: this process has no starter. Must be called
/// in a runtime.
pub fn follow_starter() -> Option<impl Future<Output = ()>> {
    let starter = STARTER.get()?;
    let link = starter.link.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(link) = link {
        tokio::spawn(async move {
            let StarterLink { mut process, socket, orders } = link;
            // It drops the receiver of the orders at its end.
            if let Err(error) = pass(socket, orders).await {
                tracing::warn!("starter: {error}");
            }
            // The socket is closed, so the process ends if it has not.
            let _ = spawn_blocking(move || process.wait()).await;
        });
    }
    Some(starter.orders.closed())
}

/// Whether the starter of this process has ended: no supervisor can be started then. `false` also
/// if this process has no starter.
pub fn starter_has_ended() -> bool {
    STARTER.get().is_some_and(|starter| starter.orders.is_closed())
}

/// As [`spawn_detached`], but the starter of this process calls it, if there is one.
///
/// # Errors
/// As [`spawn_detached`]; also if the starter has ended.
pub async fn spawn_by_starter(
    spec: &SuperviseSpec,
    arguments: &[OsString],
    surroundings: &Surroundings,
) -> Result<i32, ExecError> {
    let Some(starter) = STARTER.get() else {
        return spawn_detached(spec, arguments, surroundings).await;
    };
    let number = starter.next.fetch_add(1, Ordering::Relaxed);
    let order = SpawnOrder {
        number,
        until: now() + BEGUN,
        spec: spec.clone(),
        arguments: arguments.to_vec(),
        surroundings: surroundings.clone(),
    };
    carried_out(&starter.orders, &order).await
}

/// The time since the machine was started, without suspends: the same for all processes of the host
/// (`CLOCK_MONOTONIC`, clock_gettime(2)).
fn now() -> Duration {
    // Linux always has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Sends an order to the starter, and waits for its outcome.
async fn carried_out(
    orders: &mpsc::UnboundedSender<PendingOrder>,
    order: &SpawnOrder,
) -> Result<i32, ExecError> {
    let failed = |why: &dyn std::fmt::Display| {
        ExecError::ours(format!("starting the supervisor of {}: {why}", order.spec.name))
    };
    let gone = || failed(&"the agent's starter process has ended: restart the agent");
    let line = line_of(order).map_err(|error| failed(&error))?;
    let (outcome, answer) = oneshot::channel();
    let pending = PendingOrder { number: order.number, line, outcome };
    orders.send(pending).map_err(|_| gone())?;
    match timeout(CARRIED_OUT, answer).await {
        Ok(answer) => answer.map_err(|_| gone())?,
        Err(_) => {
            let why = format!("no answer of the starter process for {} s", CARRIED_OUT.as_secs());
            Err(failed(&why))
        }
    }
}

/// A value as a line of JSON.
fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// The two halves of a socket, for tasks of the current runtime.
fn halves(socket: StdUnixStream) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    socket.set_nonblocking(true)?;
    Ok(UnixStream::from_std(socket)?.into_split())
}

/// The agent's side: passes orders on and outcomes back, until the starter closes its end. Orders
/// without an outcome fail then, because their senders are dropped.
///
/// # Errors
/// The socket fails, or the starter writes anything but an outcome.
async fn pass(
    socket: StdUnixStream,
    mut orders: mpsc::UnboundedReceiver<PendingOrder>,
) -> io::Result<()> {
    let (reader, mut writer) = halves(socket)?;
    let mut outcomes = BufReader::new(reader).lines();
    let mut waiting = BTreeMap::new();
    loop {
        tokio::select! {
            Some(PendingOrder { number, line, outcome }) = orders.recv() => {
                waiting.insert(number, outcome);
                // The starter goes on reading while it writes, so this does not wait for long.
                writer.write_all(&line).await?;
            }
            line = outcomes.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                let SpawnOutcome { number, outcome } = serde_json::from_str(&line)?;
                if let Some(sender) = waiting.remove(&number) {
                    // An error means that nobody waits any more.
                    let _ = sender.send(outcome);
                }
            }
        }
    }
}

/// Implements `culvert __starter`: carries out the orders that come from standard input, which must
/// be a socket, until it is closed. Supervisors that it has started go on.
///
/// Raises the limit of open files of this process: each order that waits takes files. An order says
/// which limit the supervisor gets.
///
/// # Errors
/// Standard input is no socket, or anything but an order comes from it.
pub async fn serve_starter() -> io::Result<()> {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(errno) = raised {
        tracing::warn!("limit of open files of the starter: {errno}");
    }
    serve(StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?)).await
}

/// The starter's side: carries out orders until the agent closes its end.
///
/// # Errors
/// As [`serve_starter`].
async fn serve(socket: StdUnixStream) -> io::Result<()> {
    let (reader, mut writer) = halves(socket)?;
    let (sender, mut outcomes) = mpsc::unbounded_channel::<SpawnOutcome>();
    let writing = async {
        while let Some(outcome) = outcomes.recv().await {
            writer.write_all(&line_of(&outcome)?).await?;
        }
        Ok::<(), io::Error>(())
    };
    let reading = async {
        let mut orders = BufReader::new(reader).lines();
        while let Some(line) = orders.next_line().await? {
            let SpawnOrder { number, until, spec, arguments, surroundings } =
                serde_json::from_str(&line)?;
            let sender = sender.clone();
            tokio::spawn(async move {
                let outcome = match now() <= until {
                    true => spawn_detached(&spec, &arguments, &surroundings).await,
                    false => Err(too_late(&spec.name)),
                };
                // An error means that the agent has ended.
                let _ = sender.send(SpawnOutcome { number, outcome });
            });
        }
        Ok::<(), io::Error>(())
    };
    let ended = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    match ended {
        // The agent has ended while an order was carried out.
        Err(error) if is_closed(&error) => Ok(()),
        ended => ended,
    }
}

/// Whether an error says that the other side of a socket has closed it.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// The outcome of an order that the starter has got too late.
fn too_late(name: &str) -> ExecError {
    let limit = BEGUN.as_secs();
    ExecError::ours(format!(
        "starting the supervisor of {name}: the starter process did not begin within {limit} s"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Isolation, Privileges, RestartPolicy},
        sandbox::LogLimits,
    };

    /// An order that is refused without a process: it has no log.
    fn order(number: u64, name: &str) -> SpawnOrder {
        let spec = SuperviseSpec {
            name: name.to_owned(),
            id: None,
            netns: None,
            hostname: None,
            etc: None,
            command: vec!["true".to_owned()],
            log: None,
            log_limits: LogLimits::default(),
            restart: RestartPolicy::Always,
            restarts: Some(1),
            privileges: Privileges::default(),
            isolation: Isolation::default(),
            joins: None,
        };
        let surroundings = Surroundings {
            environment: Some(vec![("A".to_owned(), "line 1\nline 2".to_owned())]),
            directory: Some("/".into()),
            umask: Some(0o027),
            files: None,
        };
        let arguments = vec!["--socket".into(), "/s".into()];
        SpawnOrder { number, until: now() + BEGUN, spec, arguments, surroundings }
    }

    #[tokio::test]
    async fn each_order_gets_its_outcome_until_one_side_ends() {
        let (socket, its_own) = StdUnixStream::pair().unwrap();
        let serving = tokio::spawn(serve(its_own));
        let (orders, received) = mpsc::unbounded_channel();
        let passing = tokio::spawn(pass(socket, received));
        let (first, second) = (order(1, "web"), order(2, "db"));
        let (first, second) =
            tokio::join!(carried_out(&orders, &first), carried_out(&orders, &second));
        for refused in [first.unwrap_err(), second.unwrap_err()] {
            assert_eq!(refused, ExecError::ours("a detached program needs a log"));
        }
        // As of a starter that was stopped for a while.
        let late =
            SpawnOrder { until: now().saturating_sub(Duration::from_millis(1)), ..order(3, "web") };
        assert_eq!(carried_out(&orders, &late).await, Err(too_late("web")));

        // The starter ends: whoever waits or asks learns it.
        serving.abort();
        passing.await.unwrap().unwrap();
        let refused = carried_out(&orders, &order(4, "web")).await.unwrap_err();
        assert_eq!(
            refused.message,
            "starting the supervisor of web: the agent's starter process has ended: restart the agent"
        );
    }

    #[tokio::test]
    async fn the_starter_ends_with_the_agent_and_takes_orders_alone() {
        let (socket, its_own) = StdUnixStream::pair().unwrap();
        let serving = tokio::spawn(serve(its_own));
        drop(socket);
        serving.await.unwrap().unwrap();

        // The agent has ended while an order was carried out.
        let (mut socket, its_own) = StdUnixStream::pair().unwrap();
        io::Write::write_all(&mut socket, &line_of(&order(1, "web")).unwrap()).unwrap();
        drop(socket);
        serve(its_own).await.unwrap();

        let (mut socket, its_own) = StdUnixStream::pair().unwrap();
        io::Write::write_all(&mut socket, b"{\"number\":1}\n").unwrap();
        assert!(serve(its_own).await.is_err());
    }

    /// What an order says is what the starter does.
    #[test]
    fn an_order_is_one_line_and_keeps_everything() {
        let order = order(7, "web");
        let line = line_of(&order).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: SpawnOrder = serde_json::from_slice(&line).unwrap();
        assert_eq!(format!("{read:?}"), format!("{order:?}"));
    }
}
