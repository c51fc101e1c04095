//! The connections and threads of an open path.

use std::{
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::gettid;

use super::{slice::LIMIT, watch::Watched};
use crate::load::{
    OWN_THREAD, Peers, Side, join, pin,
    tcp::connect,
    units::{listener, within},
};

/// Both ends of a connection.
pub(super) struct Connection {
    /// The client's end.
    pub(super) client: TcpStream,
    /// The server's end.
    pub(super) server: TcpStream,
}

/// Opens connections. Neither end has a timeout: the threads of an arm whose turn it is not must
/// not wake up. The listener is closed, so that another arm can listen at the same address.
pub(super) fn connections(peers: &Peers, count: u32) -> Result<Vec<Connection>> {
    let listener = listener(peers)?;
    let open = |_: u32| -> Result<Connection> {
        let to = peers.clone();
        let client = within(&peers.client, move || connect(&to))?;
        let (server, _) = listener.accept().context("accept")?;
        // Connections inherit the listener's timeout.
        server.set_read_timeout(None)?;
        server.set_nodelay(true)?;
        Ok(Connection { client, server })
    };
    (0..count).map(open).collect()
}

/// The threads of a path, and the connections that they serve.
#[derive(Default)]
pub(super) struct Threads {
    running: Vec<JoinHandle<Result<()>>>,
    streams: Vec<TcpStream>,
    /// The threads, for their context switches.
    pub(super) watched: Watched,
}

impl Threads {
    /// Keeps the connection, to shut it down at the end.
    pub(super) fn keep(&mut self, connection: &Connection) -> Result<()> {
        for end in [&connection.client, &connection.server] {
            self.streams.push(end.try_clone()?);
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own, on the core of `side`. A socket stays in the namespace
    /// in which it was made, so the thread does not enter it.
    pub(super) fn start(
        &mut self,
        side: Side,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (tell, told) = mpsc::channel();
        self.running.push(thread::spawn(move || {
            pin(OWN_THREAD, side.core())?;
            let _ = tell.send(gettid().as_raw());
            work()
        }));
        self.watched.add(report(&told)?);
        Ok(())
    }

    /// Ends the connections and waits for the threads. The threads that wait for an order have to
    /// be released before. Returns the first error of a thread.
    pub(super) fn end(&mut self) -> Result<()> {
        for stream in self.streams.drain(..) {
            // The error is ignored: the other end may have closed the connection.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let ended: Vec<_> = self.running.drain(..).map(join).collect();
        ended.into_iter().collect()
    }
}

/// Waits for what a thread reports.
pub(super) fn report<T>(reports: &Receiver<T>) -> Result<T> {
    match reports.recv_timeout(LIMIT) {
        Ok(report) => Ok(report),
        Err(RecvTimeoutError::Timeout) => bail!("a slice has not ended after {LIMIT:?}"),
        Err(RecvTimeoutError::Disconnected) => bail!("a thread of the load ended early"),
    }
}
