//! Sockets in network namespaces: servers that record their clients, and clients that return the
//! outcome of a connection as one word.

#![expect(clippy::panic, reason = "a fixture that cannot be made fails the test with the error")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use culvert_testbed::wait::on_this_machine;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long a server keeps an idle connection. The time is longer than an agent needs to restart.
const IDLE: Duration = Duration::from_secs(20);

/// Runs `f` on a thread in a namespace; sockets that it makes stay there.
///
/// # Panics
/// When the namespace cannot be entered.
pub fn within<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> T {
    let file = match std::fs::File::open(netns) {
        Ok(file) => file,
        Err(error) => panic!("{}: {error}", netns.display()),
    };
    match culvert::netns::run_in(file.as_fd(), f) {
        Ok(value) => value,
        Err(error) => panic!("{}: {error}", netns.display()),
    }
}

/// Sets a socket option of type int that nix does not have.
///
/// # Errors
/// Whatever the kernel says.
pub fn set_int(fd: &impl AsFd, level: i32, option: i32, value: i32) -> std::io::Result<()> {
    // SAFETY: the option is an int, whose address and length are given.
    let set = unsafe {
        nix::libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Path of a container's namespace.
pub fn container(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// What a TCP server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Echoes all bytes until the client closes its half.
    Echo,
    /// Reads to the end of the client's half, then sends the number of bytes.
    Count,
    /// Reads once, then resets the connection.
    Reset,
}

/// Segments that one end of a TCP connection has sent more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Segments that the other end has not said to have had already: they were lost.
    pub lost: u32,
    /// Segments that the other end had already, as it has said by a duplicate SACK (RFC 2883). They
    /// were sent again because an answer was slow.
    pub needless: u32,
}

/// What this end of a connection has sent more than once since it was made, the SYN included.
///
/// # Errors
/// Whatever the kernel says.
pub fn resent(stream: &impl AsFd) -> std::io::Result<Resent> {
    // SAFETY: a structure of integers, for which all bytes 0 is a value.
    let mut info: nix::libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as u32;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
    let got = unsafe {
        nix::libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            nix::libc::IPPROTO_TCP,
            nix::libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if got != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let (all, needless) = (info.tcpi_total_retrans, info.tcpi_dsack_dups);
    Ok(Resent { lost: all.saturating_sub(needless), needless })
}

/// Outcomes of the connections that have ended.
#[derive(Debug, Default)]
struct Outcomes {
    /// See [`Server::ends`].
    ends: Vec<(SocketAddr, String)>,
    /// See [`Server::resent`].
    resent: Resent,
}

type Ends = Arc<Mutex<Outcomes>>;

/// A server; it stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Address on which the server listens.
    pub addr: SocketAddrV4,
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    ends: Ends,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A TCP server in a namespace. Port 0 selects a free port.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn tcp(netns: &Path, addr: SocketAddrV4, behaviour: Behaviour) -> Self {
        let listener = match within(netns, || TcpListener::bind(addr)) {
            Ok(listener) => listener,
            Err(error) => panic!("listen on {addr}: {error}"),
        };
        let ends = Ends::default();
        let ended = Arc::clone(&ends);
        Self::start(addr, listener.local_addr().ok(), ends, move |seen, stop| {
            let _ = listener.set_nonblocking(true);
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        note(seen, peer);
                        let ended = Arc::clone(&ended);
                        std::thread::spawn(move || {
                            let end = match serve(&stream, behaviour) {
                                Ok(()) => "closed".to_owned(),
                                Err(error) => word(&error),
                            };
                            let again = resent(&stream).unwrap_or_default();
                            drop(stream);
                            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                            ended.ends.push((peer, end));
                            ended.resent.lost += again.lost;
                            ended.resent.needless += again.needless;
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        })
    }

    /// A UDP echo server in a namespace.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn udp(netns: &Path, addr: SocketAddrV4) -> Self {
        let socket = match within(netns, || UdpSocket::bind(addr)) {
            Ok(socket) => socket,
            Err(error) => panic!("bind to {addr}: {error}"),
        };
        Self::start(addr, socket.local_addr().ok(), Ends::default(), move |seen, stop| {
            let _ = socket.set_read_timeout(Some(Duration::from_millis(50)));
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                    note(seen, peer);
                    let _ = socket.send_to(buffer.get(..len).unwrap_or_default(), peer);
                }
            }
        })
    }

    fn start(
        asked: SocketAddrV4,
        bound: Option<SocketAddr>,
        ends: Ends,
        run: impl FnOnce(&Mutex<Vec<SocketAddr>>, &AtomicBool) + Send + 'static,
    ) -> Self {
        let addr = match bound {
            Some(SocketAddr::V4(addr)) => addr,
            _ => asked,
        };
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = Some(std::thread::spawn(move || run(&noted, &stopped)));
        Self { addr, seen, ends, stop, thread }
    }

    /// Clients so far, in order of arrival: one for each connection or datagram.
    pub fn seen(&self) -> Vec<SocketAddr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The TCP clients whose connection has ended, with the outcome that the server saw: `closed`
    /// for an orderly end, or one word for the error.
    pub fn ends(&self) -> Vec<(SocketAddr, String)> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).ends.clone()
    }

    /// What the server has sent more than once, over all TCP connections that have ended.
    pub fn resent(&self) -> Resent {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).resent
    }

    /// Returns the addresses of the clients so far, each once, and clears the list.
    pub fn take_clients(&self) -> Vec<String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ips: Vec<String> = seen.drain(..).map(|peer| peer.ip().to_string()).collect();
        ips.sort();
        ips.dedup();
        ips
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn note(seen: &Mutex<Vec<SocketAddr>>, peer: SocketAddr) {
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
}

fn serve(mut stream: &TcpStream, behaviour: Behaviour) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(on_this_machine(IDLE)))?;
    let mut buffer = vec![0; 65_536];
    match behaviour {
        Behaviour::Echo => loop {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                return Ok(());
            }
            stream.write_all(buffer.get(..len).unwrap_or_default())?;
        },
        Behaviour::Count => {
            let mut total = 0;
            loop {
                let len = stream.read(&mut buffer)?;
                if len == 0 {
                    return stream.write_all(total.to_string().as_bytes());
                }
                total += len;
            }
        }
        Behaviour::Reset => {
            let _ = stream.read(&mut buffer)?;
            abort(stream);
            Ok(())
        }
    }
}

/// Makes the socket send an RST when it is closed (RFC 9293 §3.6.1): it lingers for 0 s.
fn abort(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(stream, sockopt::Linger, &linger);
}

/// How a client uses a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Sends this number of bytes and reads the same number back.
    Echo(usize),
    /// Sends this number of bytes, closes its half, and reads the answer to its end.
    HalfClose(usize),
    /// Sends a byte, and resets the connection itself.
    Abort,
}

/// Outcome of a TCP connection: `ok ANSWER`, `refused`, `reset`, `timeout`, `unreachable`, or the
/// error.
pub fn tcp(netns: &Path, to: SocketAddrV4, local_port: u16, how: Use) -> String {
    within(netns, || match try_tcp(to, local_port, how) {
        Ok(answer) => format!("ok {answer}"),
        Err(error) => word(&error),
    })
}

/// One word for an error.
pub(crate) fn word(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => error.to_string(),
    }
}

fn try_tcp(to: SocketAddrV4, local_port: u16, how: Use) -> std::io::Result<String> {
    let mut stream = open(to, local_port)?;
    stream.set_read_timeout(Some(on_this_machine(PATIENCE)))?;
    stream.set_write_timeout(Some(on_this_machine(PATIENCE)))?;
    match how {
        Use::Echo(len) => {
            let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut reader = stream.try_clone()?;
            let writing = std::thread::scope(|scope| {
                let writer = scope.spawn(|| stream.write_all(&sent));
                let mut received = vec![0; len];
                let read = reader.read_exact(&mut received);
                let written = writer.join().unwrap_or_else(|_| Err(ErrorKind::Other.into()));
                read.and(written).map(|()| received == sent)
            });
            Ok(if writing? { format!("{len}") } else { "garbled".to_owned() })
        }
        Use::HalfClose(len) => {
            stream.write_all(&vec![7; len])?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        }
        Use::Abort => {
            stream.write_all(b"x")?;
            abort(&stream);
            Ok("aborted".to_owned())
        }
    }
}

/// Connects from the given port; 0 is any port.
///
/// # Errors
/// Whatever the kernel says.
pub fn open(to: SocketAddrV4, local_port: u16) -> std::io::Result<TcpStream> {
    let fd: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::Tcp,
    )?;
    if local_port != 0 {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, local_port);
        bind(fd.as_raw_fd(), &SockaddrIn::from(any))?;
    }
    // The send timeout is also the time limit of connect(2) (socket(7)).
    let seconds = on_this_machine(PATIENCE).as_secs().cast_signed();
    setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(seconds, 0))?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) => {}
        Err(nix::errno::Errno::EINPROGRESS) => return Err(ErrorKind::TimedOut.into()),
        Err(error) => return Err(error.into()),
    }
    // SAFETY: `fd` is a connected TCP socket, and `into_raw_fd` gives up the ownership of it.
    Ok(unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) })
}

/// Outcome of a datagram of `len` bytes: `ok LEN` if it was echoed, otherwise a word of [`tcp`].
pub fn udp(netns: &Path, to: SocketAddrV4, local_port: u16, len: usize) -> String {
    within(netns, || {
        let exchange = || -> std::io::Result<bool> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, local_port))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(on_this_machine(PATIENCE)))?;
            let sent: Vec<u8> = (0..len).map(|i| (i % 241) as u8).collect();
            socket.send(&sent)?;
            let mut buffer = vec![0; 65_536];
            let received = socket.recv(&mut buffer)?;
            Ok(buffer.get(..received) == Some(sent.as_slice()))
        };
        match exchange() {
            Ok(true) => format!("ok {len}"),
            Ok(false) => "garbled".to_owned(),
            Err(error) => word(&error),
        }
    })
}
