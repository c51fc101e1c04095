//! TCP: streams without pauses, connections.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

use super::{LOOK, Peers, Side, Stop, join, observe, rate, spawn};

/// Bytes handed to the kernel at once.
pub(super) const CHUNK: usize = 128 * 1024;
/// How long a connection may take. A lost SYN is sent again after one second.
const CONNECT: Duration = Duration::from_secs(4);

/// A server that hands its connections to `serve`, on the server's core.
pub(super) struct Server {
    thread: JoinHandle<Result<()>>,
    stop: Stop,
}

impl Server {
    /// Listens and hands each connection to `serve`, which may keep it.
    fn start(
        peers: &Peers,
        stop: &Stop,
        mut serve: impl FnMut(TcpStream) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (ready, is_ready) = mpsc::channel();
        let (bind_to, port, stopping) = (peers.bind, peers.port, stop.clone());
        let thread = spawn(&peers.server, Side::Server, move || {
            let listener = listen_at(std::net::SocketAddrV4::new(bind_to, port))?;
            let _ = ready.send(());
            listener.set_nonblocking(false)?;
            loop {
                match listener.accept() {
                    Ok((stream, _)) => serve(stream)?,
                    Err(error) if is_timeout(&error) => {}
                    Err(error) => return Err(error).context("accept"),
                }
                if stopping.stopped() {
                    return Ok(());
                }
            }
        })?;
        if is_ready.recv_timeout(CONNECT).is_err() {
            stop.stop();
            join(thread)?;
            bail!("server: does not listen");
        }
        Ok(Self { thread, stop: stop.clone() })
    }

    /// Stops the server and waits for its thread.
    pub(super) fn end(self) -> Result<()> {
        self.stop.stop();
        join(self.thread)
    }
}

/// A listener whose `accept` gives up after [`LOOK`].
pub(super) fn listen_at(addr: std::net::SocketAddrV4) -> Result<TcpListener> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(addr))
        .with_context(|| format!("{addr}: cannot be listened at"))?;
    listen(&fd, Backlog::new(1024)?)?;
    let wait = nix::sys::time::TimeVal::new(0, i64::from(LOOK.subsec_micros()));
    setsockopt(&fd, sockopt::ReceiveTimeout, &wait)?;
    Ok(TcpListener::from(fd))
}

/// Whether a call has only timed out, or was interrupted.
pub(super) fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

pub(super) fn connect(peers: &Peers) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&peers.to.into(), CONNECT)
        .with_context(|| format!("{}: cannot be reached", peers.to))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Open streams from the client to the server.
pub(crate) struct Streams {
    server: Server,
    readers: Arc<std::sync::Mutex<Vec<JoinHandle<Result<()>>>>>,
    writers: Vec<JoinHandle<Result<()>>>,
    received: Arc<AtomicU64>,
    stop: Stop,
}

impl Streams {
    /// Opens `streams` that send as fast as they can, or together at `pace` bit/s.
    pub(crate) fn open(peers: &Peers, streams: u32, pace: Option<u64>) -> Result<Self> {
        let stop = Stop::default();
        let received = Arc::new(AtomicU64::new(0));
        let readers = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (count, stopping, threads) =
            (Arc::clone(&received), stop.clone(), Arc::clone(&readers));
        let netns = peers.server.clone();
        let server = Server::start(peers, &stop, move |stream| {
            let (count, stopping) = (Arc::clone(&count), stopping.clone());
            let reader = spawn(&netns, Side::Server, move || read_all(stream, &count, &stopping))?;
            threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(reader);
            Ok(())
        })?;
        let mut writers = Vec::new();
        for _ in 0..streams {
            let (to, stopping) = (peers.clone(), stop.clone());
            let pace = pace.map(|bits| bits / u64::from(streams));
            writers.push(spawn(&peers.client, Side::Client, move || {
                write_all(&mut connect(&to)?, pace, &stopping)
            })?);
        }
        Ok(Self { server, readers, writers, received, stop })
    }

    /// Bytes that have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the streams.
    pub(crate) fn close(self) -> Result<()> {
        self.stop.stop();
        let written: Result<()> = self.writers.into_iter().try_for_each(join);
        // If the server has ended, its error is the cause.
        self.server.end()?;
        written?;
        let readers = std::mem::take(
            &mut *self.readers.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for reader in readers {
            join(reader)?;
        }
        Ok(())
    }
}

fn read_all(mut stream: TcpStream, count: &AtomicU64, stop: &Stop) -> Result<()> {
    stream.set_read_timeout(Some(LOOK))?;
    let mut buffer = vec![0; CHUNK];
    while !stop.stopped() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) => {}
            // The writer closes first, while data is in flight.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error).context("stream: read"),
        }
    }
    Ok(())
}

fn write_all(stream: &mut TcpStream, pace: Option<u64>, stop: &Stop) -> Result<()> {
    stream.set_write_timeout(Some(LOOK))?;
    let chunk = vec![0x5a_u8; if pace.is_some() { CHUNK / 2 } else { CHUNK }];
    let start = Instant::now();
    let mut sent = 0_u64;
    while !stop.stopped() {
        match stream.write(&chunk) {
            Ok(written) => sent += written as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
                    && stop.stopped() => {}
            Err(error) => return Err(error).context("stream: write"),
        }
        if let Some(pace) = pace {
            let due = Duration::from_secs_f64(sent as f64 * 8.0 / pace as f64);
            if let Some(early) = due.checked_sub(start.elapsed()) {
                std::thread::sleep(early);
            }
        }
    }
    Ok(())
}

/// Received payload of `streams` together, bit/s.
pub(crate) fn throughput(peers: &Peers, streams: u32, time: Duration) -> Result<f64> {
    let open = Streams::open(peers, streams, None)?;
    let (bytes, elapsed) = observe(time, || open.received());
    open.close()?;
    Ok(rate(bytes * 8, elapsed))
}

/// A server that serves one connection after the other.
pub(super) fn echo_server(peers: &Peers, stop: &Stop) -> Result<Server> {
    let stopping = stop.clone();
    Server::start(peers, stop, move |mut stream| {
        stream.set_nodelay(true)?;
        echo(&mut stream, &stopping)
    })
}

/// Sends back each byte until the other end closes.
fn echo(stream: &mut TcpStream, stop: &Stop) -> Result<()> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&byte)?,
            // Connections inherit the listener's timeout.
            Err(error) if is_timeout(&error) && !stop.stopped() => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Rate of connections, one after the other, each with a byte there and back, 1/s.
pub(crate) fn connections(peers: &Peers, time: Duration) -> Result<f64> {
    let stop = Stop::default();
    let server = echo_server(peers, &stop)?;
    let (to, stopping) = (peers.clone(), stop.clone());
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    let client = spawn(&peers.client, Side::Client, move || {
        while !stopping.stopped() {
            match connect_and_exchange(&to) {
                Ok(()) => count.fetch_add(1, Ordering::Relaxed),
                // The server stops at the same time, so that the last connection may fail.
                Err(_) if stopping.stopped() => break,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    })?;
    let (count, elapsed) = observe(time, || made.load(Ordering::Relaxed));
    stop.stop();
    join(client)?;
    server.end()?;
    Ok(rate(count, elapsed))
}

fn connect_and_exchange(peers: &Peers) -> Result<()> {
    let mut byte = [1_u8];
    let mut stream = connect(peers)?;
    stream.write_all(&byte).context("connection: write")?;
    stream.read_exact(&mut byte).context("connection: read")
}
