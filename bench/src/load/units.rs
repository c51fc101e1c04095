//! Loads of counted units, each timed. On a clock that counts instructions, the time of a unit is
//! its cost. The report takes the middle half of them, so that rare timers have no effect.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use culvert::netns::run_in;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrIn, bind,
    connect as connect_socket, recvmmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{
    Peers, Side, Stop,
    batch::{BATCH, Batches},
    join, spawn,
    tcp::{connect, echo_server, listen_at},
};

/// Bytes of a unit of TCP payload.
const PAYLOAD: usize = 64 * 1024;
/// Payload of a datagram, bytes.
const DATAGRAM: usize = 64;
/// Buffer of a socket, bytes: larger than a unit, so that one thread can serve both ends.
const BUFFER: usize = 4 << 20;
/// How long an end waits for what was sent.
const LIMIT: Duration = Duration::from_secs(4);

/// Runs a tenth of `count` units untimed, then `count` units. Returns the time of each of the
/// latter, ns.
fn each(count: usize, mut unit: impl FnMut() -> Result<()>) -> Result<Vec<u64>> {
    for _ in 0..count.div_ceil(10) {
        unit()?;
    }
    let mut taken = Vec::with_capacity(count);
    let mut last = Instant::now();
    for _ in 0..count {
        unit()?;
        let now = Instant::now();
        taken.push(u64::try_from((now - last).as_nanos())?);
        last = now;
    }
    Ok(taken)
}

/// Round trips of one byte over TCP, between a thread at each end. Returns the time of each, ns.
pub(crate) fn round_trips(peers: &Peers, count: usize) -> Result<Vec<u64>> {
    let server = echo_server(peers, &Stop::default())?;
    let to = peers.clone();
    let client = move || {
        let mut stream = connect(&to)?;
        let mut byte = [1_u8];
        each(count, || {
            stream.write_all(&byte)?;
            Ok(stream.read_exact(&mut byte)?)
        })
    };
    let taken = join(spawn(&peers.client, Side::Client, client)?);
    server.end()?;
    taken
}

/// TCP connections with one byte each way, one after the other. One thread holds both ends. Returns
/// the time of each, from its call of `connect` to the next, ns.
pub(crate) fn connections(peers: &Peers, count: usize) -> Result<Vec<u64>> {
    let listener = listener(peers)?;
    let to = peers.to;
    within(&peers.client, move || {
        // The entry of this thread's namespace. A connection in TIME_WAIT ends within a later unit.
        fs::write(TIME_WAITS, "0").with_context(|| format!("writing {TIME_WAITS}"))?;
        each(count, || connection(&listener, to, None))
    })
}

/// Times of connections of which some may fail.
pub(crate) struct ConnectionTimes {
    /// Time of each connection, ns, in ascending order: from its call of `connect` until both ends
    /// have closed it, or until it has failed.
    pub(crate) sorted: Vec<u64>,
    /// Number of connections that have failed.
    pub(crate) failed: usize,
}

/// Failed connections after which no more are tried: each may take [`LIMIT`] several times.
const MOST_FAILED: usize = 50;

/// Tries TCP connections as [`connections`] makes them, on the server's core. The load ends early
/// only after [`MOST_FAILED`] failed connections.
pub(crate) fn tried_connections(peers: &Peers, count: usize) -> Result<ConnectionTimes> {
    let peers = peers.clone();
    let netns = peers.client.clone();
    join(spawn(&netns, Side::Server, move || {
        fs::write(TIME_WAITS, "0").with_context(|| format!("writing {TIME_WAITS}"))?;
        let mut listener = listener(&peers)?;
        let mut times = ConnectionTimes { sorted: Vec::with_capacity(count), failed: 0 };
        for _ in 0..count {
            let start = Instant::now();
            let made = connection(&listener, peers.to, Some(LIMIT));
            times.sorted.push(u64::try_from(start.elapsed().as_nanos())?);
            if made.is_err() {
                times.failed += 1;
                if times.failed >= MOST_FAILED {
                    break;
                }
                // The next connection does not get the server's end of this one.
                drop(listener);
                listener = self::listener(&peers)?;
            }
        }
        times.sorted.sort_unstable();
        Ok(times)
    })?)
}

/// Makes a connection from this thread's namespace to `listener`, which is at `to`, with one byte
/// each way, and ends it. With a `limit`, `connect` fails after this time.
fn connection(listener: &TcpListener, to: SocketAddrV4, limit: Option<Duration>) -> Result<()> {
    let mut byte = [1_u8];
    let mut client = connect_from_next_port(to, limit)?;
    let (mut server, _) = listener.accept().context("connection: accept")?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(LIMIT))?;
    }
    client.write_all(&byte).context("connection: write")?;
    server.read_exact(&mut byte).context("connection: read")?;
    server.write_all(&byte).context("connection: answer")?;
    client.read_exact(&mut byte).context("connection: read the answer")?;
    // The client closes first, and each end sees that the other has closed: both directions
    // end by a FIN, and TIME_WAIT would be at the client's end.
    client.shutdown(Shutdown::Write).context("connection: close")?;
    ensure!(server.read(&mut byte)? == 0, "connection: the server was sent too much");
    drop(server);
    ensure!(client.read(&mut byte)? == 0, "connection: the client was sent too much");
    Ok(())
}

/// Number of connections in TIME_WAIT that a namespace keeps (Documentation/networking/ip-sysctl.rst).
const TIME_WAITS: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";

/// Source ports of clients. The kernel's own choice of a port takes longer, the more connections
/// are in TIME_WAIT.
const PORTS: std::ops::Range<u16> = 20_000..60_000;

/// The next of [`PORTS`].
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start)
}

/// Connects from the next free port of [`PORTS`], in this thread's namespace. Fails after `limit`.
fn connect_from_next_port(to: SocketAddrV4, limit: Option<Duration>) -> Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if let Some(limit) = limit {
        // The send timeout is also the time limit of connect(2) (socket(7)).
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(limit.as_secs().cast_signed()))?;
    }
    loop {
        let port = next_port();
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        match bind(fd.as_raw_fd(), &SockaddrIn::from(from)) {
            Ok(()) => break,
            // Another connection has the port, such as that of the agent to its store.
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => return Err(errno).with_context(|| format!("port {port}")),
        }
    }
    connect_socket(fd.as_raw_fd(), &SockaddrIn::from(to))
        .with_context(|| format!("{to}: cannot be reached"))?;
    Ok(TcpStream::from(fd))
}

/// Units of 64 KB of TCP payload to the server, and one byte back, which acknowledges them. One
/// thread holds both ends, so that its scheduling is no part of the cost. Returns the time of each
/// unit, ns.
pub(crate) fn payloads(peers: &Peers, count: usize) -> Result<Vec<u64>> {
    let listener = listener(peers)?;
    let to = peers.clone();
    let mut client = within(&peers.client, move || connect(&to))?;
    let (mut server, _) = listener.accept().context("accept")?;
    for end in [&client, &server] {
        prepare(end)?;
    }
    let sent = vec![0x5a_u8; PAYLOAD];
    let mut received = vec![0_u8; PAYLOAD];
    each(count, || {
        let mut byte = [1_u8];
        client.write_all(&sent).context("64 KB: send")?;
        server.read_exact(&mut received).context("64 KB: receive")?;
        server.write_all(&byte).context("64 KB: answer")?;
        client.read_exact(&mut byte).context("64 KB: receive the answer")
    })
}

/// A listener at the server's end. Its `accept` gives up after [`LIMIT`], and connections inherit
/// this timeout of their reads.
pub(super) fn listener(peers: &Peers) -> Result<TcpListener> {
    let at = SocketAddrV4::new(peers.bind, peers.port);
    let listener = within(&peers.server, move || listen_at(at))?;
    // The receive timeout also limits the wait of `accept` (socket(7)).
    let wait = TimeVal::seconds(LIMIT.as_secs().cast_signed());
    setsockopt(&listener, sockopt::ReceiveTimeout, &wait)?;
    Ok(listener)
}

fn prepare(end: &TcpStream) -> Result<()> {
    end.set_nodelay(true)?;
    end.set_read_timeout(Some(LIMIT))?;
    setsockopt(end, sockopt::SndBufForce, &BUFFER)?;
    Ok(setsockopt(end, sockopt::RcvBufForce, &BUFFER)?)
}

/// UDP datagrams of 64 bytes, in batches that one thread sends and then receives. Returns the time
/// of each datagram, ns, as the mean of its batch.
pub(crate) fn datagrams(peers: &Peers, batches: usize) -> Result<Vec<u64>> {
    let at = (peers.bind, peers.port);
    let server = within(&peers.server, move || Ok(UdpSocket::bind(at)?))?;
    setsockopt(&server, sockopt::RcvBufForce, &BUFFER)?;
    let to = peers.to;
    let client = within(&peers.client, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    let sent = vec![[0x5a_u8; DATAGRAM]; BATCH];
    let mut space = vec![[0_u8; DATAGRAM]; BATCH];
    let mut out = Batches::new();
    let mut back = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let taken = each(batches, || {
        let count = out.send(&client, &sent)?;
        ensure!(count == BATCH, "UDP: {count} of {BATCH} datagrams were sent");
        let mut slices: Vec<_> =
            space.iter_mut().map(|it| [std::io::IoSliceMut::new(it)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let count = recvmmsg(server.as_raw_fd(), &mut back, slices.iter_mut(), flags, None)
            .context("UDP: receive")?
            .count();
        ensure!(count == BATCH, "UDP: {count} of {BATCH} datagrams have arrived");
        Ok(())
    })?;
    Ok(per_piece(&taken))
}

/// Divides the time of each batch by the number of its datagrams or frames.
fn per_piece(batches: &[u64]) -> Vec<u64> {
    batches.iter().map(|time| time / BATCH as u64).collect()
}

/// Sends batches of frames, each by `send`. Returns the time of each frame, ns, as the mean of its
/// batch.
pub(super) fn batches<'a, T>(
    all: &'a [T],
    mut send: impl FnMut(&'a [T]) -> Result<()>,
) -> Result<Vec<u64>> {
    let mut batches = all.chunks_exact(BATCH);
    let count = batches.len() * 10 / 11;
    let taken = each(count.saturating_sub(1), || send(batches.next().context("no batch left")?))?;
    Ok(per_piece(&taken))
}

/// Runs `open` in a namespace.
pub(super) fn within<T: Send>(netns: &Path, open: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("{}: no namespace", netns.display()))?;
    run_in(file.as_fd(), open)?
}

#[cfg(test)]
mod tests {
    use culvert_testbed::underlay::Underlay;

    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn connections_that_fail_are_counted() {
        let hosts = Underlay::direct(1500).hosts;
        let to = Underlay::address(1);
        let peers = Peers::direct(hosts[0].path(), hosts[1].path(), to);
        let made = tried_connections(&peers, 20).expect("tried");
        assert_eq!((made.sorted.len(), made.failed), (20, 0));
        assert!(made.sorted.is_sorted());
        let nobody = SocketAddrV4::new(to, peers.port + 1);
        let refused = tried_connections(&Peers { to: nobody, ..peers }, 99).expect("tried");
        assert_eq!((refused.sorted.len(), refused.failed), (MOST_FAILED, MOST_FAILED));
    }

    #[test]
    fn every_batch_is_sent_once_and_the_first_tenth_is_not_timed() {
        let all: Vec<u32> = (0..BATCH as u32 * 22).collect();
        let mut sent = Vec::new();
        let taken = batches(&all, |batch| {
            sent.extend_from_slice(batch);
            Ok(())
        })
        .expect("sent");
        assert!(all.starts_with(&sent), "{sent:?}");
        assert_eq!((taken.len(), sent.len()), (19, 21 * BATCH));
        assert!(batches(&all[..BATCH], |_| Ok(())).expect("none").is_empty());
    }
}
