//! UDP: as many datagrams as one thread can send.

use std::{
    io::IoSliceMut,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, setsockopt, sockopt},
};

use super::{
    Peers, Side, Stop,
    batch::{BATCH, Batches},
    join, observe, rate, spawn,
};

/// Buffer of the receiving socket, bytes: it holds the datagrams that arrive while the receiver
/// does not run.
const BUFFER: usize = 4 << 20;
/// Iterations between two reads of an empty queue. A read takes the lock of the queue, which the
/// sender takes, too.
const PAUSE: u32 = 500;
/// Largest payload of a datagram, bytes.
const LARGEST: usize = 1472;

/// Rate and loss of datagrams.
pub(crate) struct Datagrams {
    /// Datagrams that arrived, 1/s.
    pub(crate) per_second: f64,
    /// Share of the datagrams sent in the same time that did not arrive, per cent.
    pub(crate) lost: f64,
}

/// Sends datagrams with `len` bytes of payload as fast as one thread can. Returns their rate and
/// loss.
pub(crate) fn datagrams(peers: &Peers, len: usize, time: Duration) -> Result<Datagrams> {
    if len > LARGEST {
        bail!("UDP: {len} bytes are too many: {LARGEST} is the most");
    }
    let stop = Stop::default();
    let received = Arc::new(AtomicU64::new(0));
    let (ready, is_ready) = mpsc::channel();
    let (at, port, stopping, count) = (peers.bind, peers.port, stop.clone(), Arc::clone(&received));
    let server = spawn(&peers.server, Side::Server, move || {
        let socket = UdpSocket::bind((at, port)).context("UDP: bind")?;
        // SO_RCVBUFFORCE, as root: the system's limit does not apply (socket(7)).
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        let _ = ready.send(());
        receive_all(&socket, &count, &stopping)
    })?;
    if is_ready.recv_timeout(Duration::from_secs(4)).is_err() {
        stop.stop();
        join(server)?;
        bail!("UDP: the server does not listen");
    }
    let sent = Arc::new(AtomicU64::new(0));
    let (to, stopping, count) = (peers.to, stop.clone(), Arc::clone(&sent));
    let client = spawn(&peers.client, Side::Client, move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        send_all(&socket, len, &count, &stopping)
    })?;
    let read = || (received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
    let ((arrived, elapsed), sent) = {
        std::thread::sleep(super::WARM_UP);
        let before = read();
        let start = std::time::Instant::now();
        std::thread::sleep(time);
        let after = read();
        ((after.0 - before.0, start.elapsed()), after.1 - before.1)
    };
    stop.stop();
    join(client)?;
    join(server)?;
    let lost =
        if sent == 0 { 0.0 } else { 100.0 * (1.0 - (arrived as f64 / sent as f64).min(1.0)) };
    Ok(Datagrams { per_second: rate(arrived, elapsed), lost })
}

fn receive_all(socket: &UdpSocket, count: &AtomicU64, stop: &Stop) -> Result<()> {
    let mut space = vec![[0_u8; LARGEST]; BATCH];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    while !stop.stopped() {
        let mut slices: Vec<_> = space.iter_mut().map(|it| [IoSliceMut::new(it)]).collect();
        // The receiver does not sleep: a wake-up is expensive on a virtual machine, and costs time
        // on the sender's core.
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                count.fetch_add(messages.count() as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => (0..PAUSE).for_each(|_| std::hint::spin_loop()),
            Err(errno) => return Err(errno).context("UDP: receive"),
        }
    }
    Ok(())
}

fn send_all(socket: &UdpSocket, len: usize, count: &AtomicU64, stop: &Stop) -> Result<()> {
    let payload = vec![0x5a_u8; len];
    let all = vec![payload.as_slice(); BATCH];
    let mut out = Batches::new();
    while !stop.stopped() {
        match out.send(socket, &all) {
            Ok(sent) => {
                count.fetch_add(sent as u64, Ordering::Relaxed);
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(errno).context("UDP: send"),
        }
    }
    Ok(())
}

/// Rate of the datagrams that `read` counts, 1/s, for datagrams that no socket receives.
pub(crate) fn counted(time: Duration, read: impl Fn() -> u64) -> f64 {
    let (count, elapsed) = observe(time, read);
    rate(count, elapsed)
}
