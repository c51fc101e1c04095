//! Payloads of every kind, and the check that they arrive unchanged.

use std::{
    io::{ErrorKind, IoSliceMut, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use culvert_tests::{
    cluster::SOON,
    netns::wait_for,
    probe,
    sock::{PATIENCE, set_int, within},
};
use nix::{
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
};

/// Ports of [`Servers`].
pub(crate) const TCP: u16 = 80;
/// See [`TCP`].
pub(crate) const UDP: u16 = 90;

/// Start of an error that says that datagrams are missing.
pub(crate) const MISSING: &str = "missing are";

/// Bytes without repetition. They differ for every seed.
pub(crate) fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed << 20 | 0xb5) ^ len as u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Echo servers of a namespace, for TCP and UDP, IPv4 and IPv6.
pub(crate) struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    pub(crate) fn new(netns: &Path) -> Self {
        let any = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let listener = within(netns, || TcpListener::bind(any(TCP))).unwrap();
        let socket = within(netns, || UdpSocket::bind(any(UDP))).unwrap();
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let accept = move || {
            while !tcp.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that gives up reports its own error.
                    Ok((stream, _)) => drop(std::thread::spawn(move || echo(stream))),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        let answer = move || {
            let mut buffer = vec![0; 65_536];
            while !udp.load(Ordering::Relaxed) {
                if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], peer);
                }
            }
        };
        Self { stop, threads: vec![std::thread::spawn(accept), std::thread::spawn(answer)] }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

/// A sender in its own namespace.
#[derive(Clone)]
pub(crate) struct Client {
    /// Namespace.
    pub(crate) netns: PathBuf,
    /// Seed of the payloads, which differ from those of other senders.
    pub(crate) seed: u64,
}

impl Client {
    /// Sends `len` bytes to a TCP server of [`Servers`], and compares the echo.
    pub(crate) fn tcp(&self, to: SocketAddr, len: usize) -> Result<(), String> {
        let sent = payload(self.seed, len);
        let received = within(&self.netns, || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut reader = stream.try_clone()?;
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    stream.write_all(&sent)?;
                    stream.shutdown(Shutdown::Write)
                });
                let mut received = Vec::new();
                reader.read_to_end(&mut received)?;
                writer.join().unwrap().map(|()| received)
            })
        });
        same(&sent, received)
    }

    /// Sends a datagram of `len` bytes to a UDP server of [`Servers`], and compares the echo.
    pub(crate) fn udp(&self, to: SocketAddr, len: usize) -> Result<(), String> {
        let sent = payload(self.seed, len);
        let received = within(&self.netns, || {
            let socket = UdpSocket::bind(any(to))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(&sent)?;
            let mut buffer = vec![0; 65_536];
            let received = socket.recv(&mut buffer)?;
            buffer.truncate(received);
            Ok(buffer)
        });
        same(&sent, received)
    }

    /// Whether the kernel refuses a datagram with DF of `len` bytes for its length.
    pub(crate) fn refused(&self, to: SocketAddr, len: usize) -> Result<bool, String> {
        within(&self.netns, || {
            let socket = UdpSocket::bind(any(to))?;
            set_int(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
            match socket.send_to(&vec![0; len], to) {
                Ok(_) => Ok(false),
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(true),
                Err(error) => Err(error),
            }
        })
        .map_err(|error| error.to_string())
    }

    /// Sends an ICMP echo request with `len` bytes of payload, and compares the reply.
    pub(crate) fn ping(&self, to: IpAddr, len: usize) -> Result<(), String> {
        let outcome = match to {
            IpAddr::V4(to) => probe::ping(&self.netns, to, 0, len, 0),
            IpAddr::V6(to) => {
                let output = Command::new("nsenter")
                    .arg(format!("--net={}", self.netns.display()))
                    .args(["ping", "-6", "-c1", "-W3", "-s", &len.to_string(), &to.to_string()])
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                if output.status.success() && !text.contains("wrong data") {
                    format!("ok {len}")
                } else if text.contains("100% packet loss") {
                    "timeout".to_owned()
                } else {
                    text
                }
            }
        };
        if outcome == format!("ok {len}") { Ok(()) } else { Err(outcome) }
    }

    /// Sends datagrams of `size` bytes, `len` bytes in all, in one call (`UDP_SEGMENT`) to the
    /// address `to`, which leads to `port` of `receiver`. Returns the number of reads by the
    /// receiver. With `gro` (`UDP_GRO`) a read may give several datagrams.
    pub(crate) fn segments(
        &self,
        to: SocketAddr,
        (receiver, port): (&Path, u16),
        (size, len): (u16, usize),
        gro: bool,
    ) -> Result<usize, String> {
        let sent = payload(self.seed, len);
        // A child that another thread has just forked still holds the previous socket for a moment.
        let sink = wait_for(SOON, "the port", || {
            within(receiver, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))).ok()
        });
        sink.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let _ = setsockopt(&sink, sockopt::RcvBufForce, &(1 << 22));
        if gro {
            setsockopt(&sink, sockopt::UdpGroSegment, &true).map_err(|e| e.to_string())?;
        }
        within(&self.netns, || {
            let socket = UdpSocket::bind(any(to))?;
            setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(size))?;
            socket.send_to(&sent, to)
        })
        .map_err(|error| format!("sending: {error}"))?;
        collect(&sink, &sent, usize::from(size))
    }
}

/// Receives datagrams of `size` bytes, of which the last may be shorter, and compares them with
/// `sent`. Each must come once, in any order, because the sender may move to another CPU. Returns
/// the number of reads.
fn collect(sink: &UdpSocket, sent: &[u8], size: usize) -> Result<usize, String> {
    let mut missing: Vec<&[u8]> = sent.chunks(size).collect();
    let mut reads = 0;
    let mut buffer = vec![0; 65_536];
    while !missing.is_empty() {
        let mut control = nix::cmsg_space!(i32);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<()>(sink.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())
                .map_err(|error| format!("{MISSING} {} datagrams: {error}", missing.len()))?;
        let len = message.bytes;
        // Without the control message, the buffer is one datagram.
        let each = message
            .cmsgs()
            .ok()
            .into_iter()
            .flatten()
            .find_map(|message| match message {
                ControlMessageOwned::UdpGroSegments(each) => usize::try_from(each).ok(),
                _ => None,
            })
            .unwrap_or(len);
        for datagram in buffer[..len].chunks(each.max(1)) {
            let place = missing.iter().position(|wanted| *wanted == datagram);
            let Some(place) = place else {
                return Err(format!("{} bytes that were not sent", datagram.len()));
            };
            missing.remove(place);
        }
        reads += 1;
    }
    Ok(reads)
}

fn any(to: SocketAddr) -> SocketAddr {
    let ip = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

fn same(sent: &[u8], received: std::io::Result<Vec<u8>>) -> Result<(), String> {
    match received {
        Ok(received) if received == sent => Ok(()),
        Ok(received) => {
            let at = sent.iter().zip(&received).take_while(|(a, b)| a == b).count();
            Err(format!("{} of {} bytes came back, wrong at {at}", received.len(), sent.len()))
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err("timeout".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}
