//! Datagrams and pings whose outcome includes a received ICMP error, and the IP headers that a host
//! receives.

#![expect(clippy::panic, reason = "a fixture that cannot be made fails the test with the error")]

use std::{
    collections::BTreeSet,
    io::{Error, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, recv,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::sock::{PATIENCE, within, word};

/// ICMP's echo request and reply (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Length of an ICMP echo header.
const ECHO_LEN: usize = 8;

/// Sends a datagram of `len` bytes and returns its outcome: `ok LEN` if it was echoed, `icmp
/// TYPE/CODE from WHOM` for an ICMP error, otherwise a word of [`crate::sock::udp`]. A `ttl` of 0
/// means the system's default.
pub fn udp(netns: &Path, to: SocketAddrV4, local_port: u16, len: usize, ttl: u32) -> String {
    within(netns, || {
        let exchange = || -> std::io::Result<(UdpSocket, Outcome)> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, local_port))?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            if ttl != 0 {
                socket.set_ttl(ttl)?;
            }
            let sent = pattern(len);
            socket.send(&sent)?;
            let mut buffer = vec![0; 65_536];
            let outcome = socket
                .recv(&mut buffer)
                .map(|received| buffer.get(..received) == Some(sent.as_slice()));
            Ok((socket, outcome))
        };
        match exchange() {
            Ok((socket, outcome)) => tell(socket.as_raw_fd(), outcome, len),
            Err(error) => word(&error),
        }
    })
}

/// Sends an ICMP echo request with `len` bytes of payload and returns its outcome, in the words of
/// [`udp`]. An `id` of 0 means any identifier. The namespace's `net.ipv4.ping_group_range` must
/// include the group of this process.
pub fn ping(netns: &Path, to: Ipv4Addr, id: u16, len: usize, ttl: u32) -> String {
    within(netns, || match try_ping(to, id, len, ttl) {
        Ok((socket, outcome)) => tell(socket.as_raw_fd(), outcome, len),
        Err(error) => word(&error),
    })
}

/// Whether the payload was echoed.
type Outcome = std::io::Result<bool>;

fn try_ping(to: Ipv4Addr, id: u16, len: usize, ttl: u32) -> std::io::Result<(OwnedFd, Outcome)> {
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    let fd = socket(AddressFamily::Inet, kind, flags, SockProtocol::Icmp)?;
    setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0))?;
    if ttl != 0 {
        setsockopt(&fd, sockopt::Ipv4Ttl, &ttl.cast_signed())?;
    }
    if id != 0 {
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, id)))?;
    }
    connect(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, 0)))?;
    // The kernel fills in the identifier and the checksum.
    let mut sent = vec![ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 1];
    sent.extend(pattern(len));
    nix::unistd::write(&fd, &sent)?;
    let mut buffer = vec![0; 65_536];
    let outcome = match nix::unistd::read(&fd, &mut buffer) {
        Ok(received) => {
            let answer = buffer.get(..received).unwrap_or_default();
            let same = answer.get(ECHO_LEN..) == sent.get(ECHO_LEN..);
            let sequence = answer.get(6..ECHO_LEN) == sent.get(6..ECHO_LEN);
            Ok(same && sequence && answer.first() == Some(&ECHO_REPLY))
        }
        Err(errno) => Err(errno.into()),
    };
    Ok((fd, outcome))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 241) as u8).collect()
}

fn tell(socket: i32, outcome: Outcome, len: usize) -> String {
    match outcome {
        Ok(true) => format!("ok {len}"),
        Ok(false) => "garbled".to_owned(),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            word(&error)
        }
        Err(error) => icmp_error(socket).unwrap_or_else(|| word(&error)),
    }
}

/// The ICMP error in a socket's error queue (ip(7), `IP_RECVERR`).
fn icmp_error(socket: i32) -> Option<String> {
    /// Data of the control message `IP_RECVERR` (ip(7)).
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Told {
        error: libc::sock_extended_err,
        offender: libc::sockaddr_in,
    }
    let mut control = [0u64; 32];
    // SAFETY: all-zero bytes are a valid `msghdr`: no name, no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message has no buffers except `control`, which outlives the call and has the
    // length that is given.
    if unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_ERRQUEUE) } < 0 {
        return None;
    }
    // SAFETY: the kernel has filled in the message. The loop walks its headers as cmsg(3) says.
    // A header's data is read as `Told` only after its level, type and length are checked.
    let told = unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        loop {
            let here = header.as_ref()?;
            let len = libc::CMSG_LEN(size_of::<Told>() as u32) as usize;
            if (here.cmsg_level, here.cmsg_type) == (libc::IPPROTO_IP, libc::IP_RECVERR)
                && here.cmsg_len >= len
            {
                break libc::CMSG_DATA(header).cast::<Told>().read_unaligned();
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    };
    if told.error.ee_origin != libc::SO_EE_ORIGIN_ICMP {
        return Some(word(&Error::from_raw_os_error(told.error.ee_errno.cast_signed())));
    }
    let from = Ipv4Addr::from_bits(u32::from_be(told.offender.sin_addr.s_addr));
    Some(format!("icmp {}/{} from {from}", told.error.ee_type, told.error.ee_code))
}

/// Records fields of the IP headers that a namespace receives. Stops when it is dropped.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Watches the TCP, UDP and ICMP packets that are for the namespace itself.
    ///
    /// # Panics
    /// When the kernel refuses the sockets.
    pub fn new(netns: &Path) -> Self {
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let threads = [SockProtocol::Icmp, SockProtocol::Tcp, SockProtocol::Udp]
            .into_iter()
            .map(|protocol| {
                let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
                let open = || {
                    let fd = socket(AddressFamily::Inet, kind, flags, protocol)?;
                    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
                    Ok::<_, nix::Error>(fd)
                };
                let socket = match within(netns, open) {
                    Ok(socket) => socket,
                    Err(error) => panic!("raw socket: {error}"),
                };
                let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
                std::thread::spawn(move || watch(&socket, &noted, &stopped))
            })
            .collect();
        Self { seen, stop, threads }
    }

    /// Each combination of protocol, source address, TTL, DF flag and TOS that was received, once.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn watch(socket: &OwnedFd, seen: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    // The buffer is as long as an IPv4 header without options: the kernel drops the rest.
    let mut header = [0; 20];
    while !stop.load(Ordering::Relaxed) {
        let flags = nix::sys::socket::MsgFlags::empty();
        if recv(socket.as_raw_fd(), &mut header, flags) != Ok(header.len()) {
            continue;
        }
        let [_, tos, _, _, _, _, fragment, _, ttl, protocol, _, _, a, b, c, d, ..] = header;
        let (from, df) = (Ipv4Addr::new(a, b, c, d), fragment & 0x40 != 0);
        let line = format!("protocol {protocol} from {from} ttl {ttl} df {df} tos {tos:#x}");
        seen.lock().unwrap_or_else(PoisonError::into_inner).insert(line);
    }
}
