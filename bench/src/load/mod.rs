//! Load: sockets in two namespaces, one thread at each end.
//!
//! Every load has a warm-up that is not counted, so that the steady state is measured. Its result
//! is the traffic that arrived.

mod batch;
pub(crate) mod cpu;
pub(crate) mod flows;
pub(crate) mod slices;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod units;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

/// Warm-up of a load, which is not counted.
const WARM_UP: Duration = Duration::from_millis(60);
/// Port at which servers listen in their own namespace.
pub(crate) const PORT: u16 = 7000;
/// Interval at which a blocked end checks the stop flag.
const LOOK: Duration = Duration::from_millis(20);

/// A client and a server.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    /// Namespace of the client.
    pub(crate) client: PathBuf,
    /// Namespace of the server.
    pub(crate) server: PathBuf,
    /// Address that the client connects to: the server's own, or a published one.
    pub(crate) to: SocketAddrV4,
    /// Address that the server binds.
    pub(crate) bind: Ipv4Addr,
    /// Port that the server binds.
    pub(crate) port: u16,
}

impl Peers {
    /// A path to a server at its own address.
    pub(crate) fn direct(client: &Path, server: &Path, ip: Ipv4Addr) -> Self {
        Self {
            client: client.to_owned(),
            server: server.to_owned(),
            to: SocketAddrV4::new(ip, PORT),
            bind: ip,
            port: PORT,
        }
    }

    /// A path to a server's published port.
    pub(crate) fn published(client: &Path, server: &Path, to: SocketAddrV4) -> Self {
        Self {
            client: client.to_owned(),
            server: server.to_owned(),
            to,
            bind: Ipv4Addr::UNSPECIFIED,
            port: PORT,
        }
    }
}

/// Which core an end runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// The first core.
    Client,
    /// The last core.
    Server,
}

impl Side {
    /// Index of the core.
    pub(crate) fn core(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => cores().saturating_sub(1),
        }
    }
}

/// Number of cores of this machine.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Stands for the calling thread in [`pin`].
pub(crate) const OWN_THREAD: i32 = 0;

/// Puts a thread on one core.
pub(crate) fn pin(thread: i32, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(thread), &set)
        .with_context(|| format!("thread {thread}: core {core}"))
}

/// Runs `work` on a thread of its own in a namespace, on the core of `side`.
pub(crate) fn spawn<T: Send + 'static>(
    netns: &Path,
    side: Side,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let file =
        std::fs::File::open(netns).with_context(|| format!("{}: no namespace", netns.display()))?;
    Ok(thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
        // A thread inherits the affinity of its parent: set it each time.
        pin(OWN_THREAD, side.core())?;
        work()
    }))
}

/// Waits for a thread and returns its result.
pub(crate) fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the load ended early"))?
}

/// Flag that asks both ends of a load to stop. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks both ends to stop.
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::stop`] was called.
    pub(crate) fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Calls `read` before and after `time`, after the warm-up. Returns the increase and how long it
/// took.
fn observe(time: Duration, read: impl Fn() -> u64) -> (u64, Duration) {
    thread::sleep(WARM_UP);
    let (begin, start) = (read(), Instant::now());
    thread::sleep(time);
    (read() - begin, start.elapsed())
}

/// `count` in `elapsed`, as a rate per second.
fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}
