//! The connections of the API: how many there may be, and for how long a client may keep one
//! without a request.
//!
//! Members of the socket's group may be other users than the agent's. They must not keep the agent's
//! user from it, nor use up its memory and its open files. So their connections have a bounded
//! share, and a connection that does not send a request ends.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::unistd::geteuid;
use tokio::{
    net::UnixStream,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    accept::Spared,
    peer::Peer,
    types::{ApiConnections, ApiError, ErrorKind},
};

/// Largest header of a request, in bytes. Those of Culvert's client have less than 1 KiB.
const MAX_HEADER: usize = 64 << 10;
/// Number of refusals that are under way at once. Further connections are closed without an answer.
const REFUSALS: usize = 16;
/// Time for a refusal.
const REFUSAL: Duration = Duration::from_secs(1);
/// Least time between two lines of the log about refused connections.
const QUIET: Duration = Duration::from_secs(60);

/// The limits of the connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// Greatest number of connections. Further clients wait until one ends.
    pub(super) all: usize,
    /// Greatest number of connections of all users but `own`, together. Further ones are refused.
    pub(super) others: usize,
    /// The user of the agent.
    pub(super) own: u32,
    /// Time for the header of a request, from the start of the connection or the end of the request
    /// before.
    pub(super) header: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        let own = geteuid().as_raw();
        Self { all: 1024, others: 64, own, header: Duration::from_secs(10) }
    }
}

/// Counts of connections since the start.
#[derive(Debug, Default)]
pub(super) struct ConnectionCounts {
    refused: AtomicU64,
    late: AtomicU64,
}

impl ConnectionCounts {
    /// The present counts.
    pub(super) fn now(&self) -> ApiConnections {
        ApiConnections {
            refused: self.refused.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
        }
    }
}

/// Serves `router` on connections of `listener` until `stopping` is true. Returns when the requests
/// that were open then have ended.
pub(super) async fn serve(
    mut listener: Spared,
    router: Router,
    limits: ConnectionLimits,
    counts: Arc<ConnectionCounts>,
    mut stopping: watch::Receiver<bool>,
) {
    let refusing = Router::new().fallback(move || async move { too_many(limits.others) });
    let all = Arc::new(Semaphore::new(limits.all));
    let others = Arc::new(Semaphore::new(limits.others));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let tasks = TaskTracker::new();
    let mut told: Option<Instant> = None;
    loop {
        let accepted = async {
            // First, so that clients wait in the kernel's backlog. The semaphore is never closed.
            let slot = Arc::clone(&all).acquire_owned().await.ok();
            (listener.accept().await, slot)
        };
        let (stream, slot) = tokio::select! {
            accepted = accepted => accepted,
            () = stopped(&mut stopping) => break,
        };
        let peer = Peer::of(&stream);
        let share = if peer.uid == Some(limits.own) {
            None
        } else {
            let share = Arc::clone(&others).try_acquire_owned().ok();
            if share.is_none() {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                if told.is_none_or(|told| told.elapsed() > QUIET) {
                    told = Some(Instant::now());
                    tracing::warn!("{}", too_many(limits.others));
                }
                if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                    let refusal =
                        connection(stream, peer, refusing.clone(), limits, stopping.clone());
                    tasks.spawn(async move {
                        let _ = timeout(REFUSAL, refusal).await;
                        drop((place, slot));
                    });
                }
                continue;
            }
            share
        };
        let served = connection(stream, peer, router.clone(), limits, stopping.clone());
        let counts = Arc::clone(&counts);
        tasks.spawn(async move {
            if let Err(error) = served.await {
                if error.is_timeout() {
                    counts.late.fetch_add(1, Ordering::Relaxed);
                }
                tracing::debug!("a connection of the API: {error}");
            }
            drop((share, slot));
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The refusal of a connection of another user.
fn too_many(others: usize) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        format!(
            "agent: {others} connections of other users than its own are open, further ones are refused: try again when they have ended"
        ),
    )
}

/// Serves one connection to its end.
///
/// # Errors
/// The client has not sent a header in time, has broken off, or has sent something else than HTTP.
async fn connection(
    stream: UnixStream,
    peer: Peer,
    router: Router,
    limits: ConnectionLimits,
    mut stopping: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header).max_buf_size(MAX_HEADER);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = served.as_mut() => return ended,
        () = stopped(&mut stopping) => {}
    }
    // The request that is under way is answered.
    served.as_mut().graceful_shutdown();
    served.await
}

/// Waits until the server is to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server was dropped.
    let _ = stopping.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use axum::routing::get;
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    struct Served {
        _dir: TempDir,
        socket: PathBuf,
        counts: Arc<ConnectionCounts>,
        stop: watch::Sender<bool>,
        task: tokio::task::JoinHandle<()>,
    }

    fn served(limits: ConnectionLimits) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = Spared::new(UnixListener::bind(&socket).unwrap());
        let router = Router::new().route("/", get(|| async { "here" }));
        let (stop, stopping) = watch::channel(false);
        let counts = Arc::new(ConnectionCounts::default());
        let serving = serve(listener, router, limits, Arc::clone(&counts), stopping);
        let task = tokio::spawn(serving);
        Served { _dir: dir, socket, counts, stop, task }
    }

    impl Served {
        async fn connect(&self) -> UnixStream {
            UnixStream::connect(&self.socket).await.unwrap()
        }

        /// The answer to a request on a connection of its own.
        async fn ask(&self) -> String {
            let mut stream = self.connect().await;
            let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            end(&mut stream).await
        }
    }

    /// What comes until the server ends the connection.
    async fn end(stream: &mut UnixStream) -> String {
        let mut text = String::new();
        let read = timeout(LONG, stream.read_to_string(&mut text)).await;
        // A reset is an end, too.
        let _ = read.expect("the connection ends");
        text
    }

    #[tokio::test]
    async fn a_connection_without_a_request_ends() {
        let limits =
            ConnectionLimits { header: Duration::from_millis(100), ..ConnectionLimits::default() };
        let served = served(limits);
        let mut silent = served.connect().await;
        let mut half = served.connect().await;
        half.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        let began = Instant::now();
        end(&mut silent).await;
        end(&mut half).await;
        assert!(began.elapsed() >= Duration::from_millis(90));
        assert!(served.ask().await.ends_with("here"));
        let deadline = Instant::now() + LONG;
        while served.counts.now().late < 2 {
            assert!(Instant::now() < deadline, "{:?}", served.counts);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn other_users_have_a_share_of_the_connections() {
        let own = geteuid().as_raw();
        let served =
            served(ConnectionLimits { others: 1, own: own ^ 1, ..ConnectionLimits::default() });
        let first = served.connect().await;
        let refused = served.ask().await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("1 connections of other users"), "{refused}");
        assert_eq!(served.counts.now(), ApiConnections { refused: 1, late: 0 });
        drop(first);
        let deadline = Instant::now() + LONG;
        while !served.ask().await.ends_with("here") {
            assert!(Instant::now() < deadline);
        }
    }

    #[tokio::test]
    async fn the_own_user_waits_for_a_connection_and_has_more_than_a_share() {
        let served = served(ConnectionLimits { all: 2, others: 0, ..ConnectionLimits::default() });
        let (first, _second) = (served.connect().await, served.connect().await);
        let mut asked = pin!(served.ask());
        let soon = Duration::from_millis(100);
        assert!(timeout(soon, asked.as_mut()).await.is_err(), "it is not refused, but waits");
        drop(first);
        assert!(timeout(LONG, asked).await.unwrap().ends_with("here"));
        assert_eq!(served.counts.now(), ApiConnections::default());
    }

    #[tokio::test]
    async fn a_server_that_is_to_stop_ends_idle_connections() {
        let Served { _dir, socket, stop, task, .. } = served(ConnectionLimits::default());
        let mut idle = UnixStream::connect(&socket).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 8];
        idle.read_exact(&mut first).await.unwrap();
        stop.send(true).unwrap();
        end(&mut idle).await;
        timeout(LONG, task).await.unwrap().unwrap();
    }
}
