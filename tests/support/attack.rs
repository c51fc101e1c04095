//! A container that attacks its host: it begins flows of many kinds, as fast as one thread can.

#![expect(clippy::panic, reason = "an attack that cannot begin fails the test with the error")]

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use etherparse::{PacketBuilder, err::packet::BuildWriteError};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{
        AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn,
        sendmmsg, socket,
    },
    unistd::Pid,
};

use crate::sock::within;

/// Destinations that do not answer (RFC 2544). The router of a test discards what goes there.
pub const NOBODY: &str = "198.18.0.0/15";

/// Source ports of the attacker. Each kind of flow has one for each port, and the kinds together
/// are more than the share of one container in a table of the default size.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;
/// A destination that does not answer, to which datagrams come from all ports.
const SINK: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// Window of the attacker's segments.
const WINDOW: u16 = u16::MAX;
/// Length of the longest packet, bytes: 20 of IP and 20 of TCP.
const LONGEST: usize = 40;
/// Packets that one system call sends.
const BATCH: usize = 64;

/// The first and the last core that the calling thread may use.
///
/// # Panics
/// When the kernel does not tell.
pub fn first_and_last_core() -> (usize, usize) {
    let own = match sched_getaffinity(Pid::from_raw(0)) {
        Ok(own) => own,
        Err(error) => panic!("cores of this thread: {error}"),
    };
    let may_use = |core: &usize| matches!(own.is_set(*core), Ok(true));
    let mut cores = (0..CpuSet::count()).filter(may_use);
    let first = cores.next().unwrap_or_default();
    (first, cores.next_back().unwrap_or(first))
}

/// Keeps the calling thread on `core`, and the threads that it begins from then on.
fn pin(core: usize) -> nix::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)
}

/// Keeps a thread, and the threads and processes that it begins, on one core until it is dropped by
/// the same thread.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Keeps the calling thread on `core`.
    ///
    /// # Panics
    /// When the thread may not use the core.
    pub fn to(core: usize) -> Self {
        match sched_getaffinity(Pid::from_raw(0)).and_then(|before| pin(core).map(|()| before)) {
            Ok(before) => Self { before },
            Err(error) => panic!("core {core}: {error}"),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// An attack; it ends when it is dropped.
#[derive(Debug)]
pub struct Attack {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attack {
    /// Attacks from the container with the address `from` in `netns`, on the core `core`, until the
    /// result is dropped. The flows are
    ///
    /// - datagrams to many addresses that do not answer, and from all ports to one of them,
    /// - TCP connections to such addresses, with and without a blind acknowledgement,
    /// - TCP connections from all ports to `server`, which the container resets when it answers,
    /// - echo requests.
    ///
    /// # Panics
    /// When the namespace or the core cannot be used.
    pub fn start(netns: &Path, from: Ipv4Addr, server: SocketAddrV4, core: usize) -> Self {
        let packets = match Packets::make(from, server) {
            Ok(packets) => packets,
            Err(error) => panic!("a packet of the attack: {error}"),
        };
        let raw = || {
            let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
            socket(AddressFamily::Inet, SockType::Raw, flags, protocol)
        };
        let socket = match within(netns, raw) {
            Ok(socket) => socket,
            Err(error) => panic!("raw socket in {}: {error}", netns.display()),
        };
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            // Queues belong to a core: on a core of its own, the attacker fills no queue of others.
            let pinned = pin(core);
            let is_pinned = pinned.is_ok();
            if tell.send(pinned).is_ok() && is_pinned {
                packets.send(&socket, &count, &stopped);
            }
        });
        match told.recv() {
            Ok(Ok(())) => Self { sent, stop, thread: Some(thread) },
            Ok(Err(error)) => panic!("core {core}: {error}"),
            Err(error) => panic!("the attacker's thread: {error}"),
        }
    }

    /// Number of packets so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The packets of an attack, each with its destination. They are built in advance, so that sending
/// is the only work of the attacker.
#[derive(Default)]
struct Packets {
    to: Vec<Option<SockaddrIn>>,
    bytes: Vec<Vec<u8>>,
}

impl Packets {
    fn make(from: Ipv4Addr, server: SocketAddrV4) -> Result<Self, BuildWriteError> {
        let ip = |to: Ipv4Addr| PacketBuilder::ipv4(from.octets(), to.octets(), 64);
        let mut all = Self::default();
        for port in PORTS {
            let [high, low] = port.to_be_bytes();
            let [one, other] = [18, 19].map(|net| Ipv4Addr::new(198, net, high, low));
            all.add(one, |packet| ip(one).udp(port, 53).write(packet, b"x"))?;
            all.add(SINK, |packet| ip(SINK).udp(port, 53).write(packet, b"x"))?;
            let syn = |to, at, packet: &mut Vec<u8>| {
                ip(to).tcp(port, at, 1, WINDOW).syn().write(packet, b"")
            };
            all.add(one, |packet| syn(one, 80, packet))?;
            all.add(other, |packet| syn(other, 80, packet))?;
            // It acknowledges what nobody has sent.
            all.add(other, |packet| ip(other).tcp(port, 80, 2, WINDOW).ack(7).write(packet, b""))?;
            all.add(*server.ip(), |packet| syn(*server.ip(), server.port(), packet))?;
            all.add(one, |packet| ip(one).icmpv4_echo_request(port, 1).write(packet, b""))?;
        }
        Ok(all)
    }

    /// Adds the packet that `write` writes, with the destination `to`.
    fn add(
        &mut self,
        to: Ipv4Addr,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>,
    ) -> Result<(), BuildWriteError> {
        let mut packet = Vec::with_capacity(LONGEST);
        write(&mut packet)?;
        self.to.push(Some(SocketAddrV4::new(to, 0).into()));
        self.bytes.push(packet);
        Ok(())
    }

    /// Sends the packets again and again until `stop` is set.
    fn send(&self, socket: &OwnedFd, sent: &AtomicU64, stop: &AtomicBool) {
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let mut next = 0;
        while !stop.load(Ordering::Relaxed) {
            let to = self.to.get(next..).unwrap_or_default();
            let bytes = self.bytes.get(next..).unwrap_or_default().iter().take(BATCH);
            let slices: Vec<_> = bytes.map(|packet| [IoSlice::new(packet)]).collect();
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
            let done = sendmmsg(fd, &mut headers, &slices, to, [], flags);
            let count = done.map_or(0, Iterator::count);
            sent.fetch_add(count as u64, Ordering::Relaxed);
            // On netkit the kernel refuses a packet that the program drops. The others follow.
            next += count.max(1);
            if next >= self.bytes.len() {
                next = 0;
            }
        }
    }
}
