//! Traffic that goes on during faults: exchanges over connections that stay open, and new
//! connections all the time.
//!
//! No packet may be lost, and none may come twice. A UDP datagram that is lost has no answer, and
//! one that comes twice is the wrong answer to the next one. TCP sends a lost segment again, so
//! both ends of each connection are asked for what they have sent again.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use culvert_tests::{
    chaos::say,
    cluster::SOON,
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, Resent, Server, Use},
};

/// Timeout of an answer. The answer counts as lost after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two exchanges over an open connection.
const PAUSE: Duration = Duration::from_millis(4);
/// Pause between two new connections.
const NEXT: Duration = Duration::from_millis(50);
/// Time in which one end of a connection tells the other that it had a segment already.
const TELLING: Duration = Duration::from_secs(1);

/// A message: the number of an exchange.
type Message = [u8; 8];

/// A way that packets take, from a client to a server.
pub(crate) struct Way<'a> {
    /// Name of the way.
    pub(crate) what: &'static str,
    /// Namespace of the client.
    pub(crate) from: &'a Path,
    /// Namespace of the server.
    pub(crate) to: &'a Path,
    /// Address and port to which the client sends.
    pub(crate) at: SocketAddrV4,
    /// Port of the server. Each way has its own.
    pub(crate) port: u16,
}

impl Way<'_> {
    /// Starts the clients: one with an open TCP connection, one with a UDP socket, and one that
    /// makes new TCP connections.
    fn clients(&self, stop: &Arc<AtomicBool>) -> [Client; 3] {
        let (at, timeout) = (self.at, Some(on_this_machine(PATIENCE)));
        let tcp = sock::within(self.from, || sock::open(at, 0)).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(timeout).unwrap();
        let udp = sock::within(self.from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        udp.connect(at).unwrap();
        udp.set_read_timeout(timeout).unwrap();
        [
            self.client("TCP", stop, PAUSE, move |sent, needless| {
                let answer = exchange(&tcp, sent)?;
                needless.fetch_max(needless_only(&tcp)?, Relaxed);
                Ok(answer)
            }),
            self.client("UDP", stop, PAUSE, move |sent, _| {
                udp.send(&sent)?;
                let mut answer = Message::default();
                match udp.recv(&mut answer)? {
                    len if len == answer.len() => Ok(answer),
                    len => Err(io::Error::other(format!("{len} bytes came back"))),
                }
            }),
            self.client("new TCP", stop, NEXT, move |sent, needless| {
                let stream = sock::open(at, 0)?;
                stream.set_read_timeout(timeout)?;
                let answer = exchange(&stream, sent)?;
                // Both ends close in order, so that the last segments are accounted for as well.
                stream.shutdown(Shutdown::Write)?;
                if (&stream).read(&mut [0])? != 0 {
                    return Err(io::Error::other("more came back than was sent"));
                }
                needless.fetch_add(needless_only(&stream)?, Relaxed);
                Ok(answer)
            }),
        ]
    }

    /// Starts a client that sends numbers, one after the other, and reads each one back, until
    /// `stop` is set or an exchange fails. `exchange` runs in the client's namespace. It sends a
    /// number, returns the answer, and counts the segments that were sent again without need.
    fn client(
        &self,
        kind: &str,
        stop: &Arc<AtomicBool>,
        pause: Duration,
        mut exchange: impl FnMut(Message, &AtomicU64) -> io::Result<Message> + Send + 'static,
    ) -> Client {
        let what = format!("{}, {kind}", self.what);
        let (passed, needless) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, again) = (Arc::clone(&passed), Arc::clone(&needless));
        let (netns, stop) = (self.from.to_owned(), Arc::clone(stop));
        let run = move || {
            let mut number = 0_u64;
            while !stop.load(Relaxed) {
                let sent = number.to_be_bytes();
                match exchange(sent, &again) {
                    Ok(answer) if answer == sent => {}
                    Ok(answer) => return Err(format!("number {number}: {answer:?} came back")),
                    Err(error) => return Err(format!("number {number}: {error}")),
                }
                number += 1;
                counted.store(number, Relaxed);
                thread::sleep(pause);
            }
            Ok(())
        };
        let thread = thread::spawn(move || sock::within(&netns, run));
        Client { what, passed, needless, seen: 0, thread: Some(thread) }
    }
}

/// Sends a message over a connection, and reads the answer.
fn exchange(mut stream: &TcpStream, sent: Message) -> io::Result<Message> {
    stream.write_all(&sent)?;
    let mut answer = Message::default();
    stream.read_exact(&mut answer).map(|()| answer)
}

/// Number of segments that this end of a connection has sent again without need.
///
/// # Errors
///
/// A segment was lost.
fn needless_only(stream: &TcpStream) -> io::Result<u64> {
    let start = Instant::now();
    loop {
        match sock::resent(stream)? {
            Resent { lost: 0, needless } => return Ok(needless.into()),
            // The other end may be about to tell that it had the segment already.
            _ if start.elapsed() < on_this_machine(TELLING) => {
                thread::sleep(Duration::from_millis(1));
            }
            Resent { lost, .. } => return Err(io::Error::other(format!("{lost} segments lost"))),
        }
    }
}

/// A client that sends all the time.
struct Client {
    what: String,
    /// Number of exchanges.
    passed: Arc<AtomicU64>,
    /// Number of TCP segments that were sent again without need.
    needless: Arc<AtomicU64>,
    /// [`Self::passed`] at the last look.
    seen: u64,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Client {
    /// Waits for the end of the client, which must have lost nothing.
    #[track_caller]
    fn ends_well(&mut self) {
        if let Some(thread) = self.thread.take() {
            assert_eq!(thread.join().unwrap(), Ok(()), "{}", self.what);
        }
    }
}

/// The servers of a way.
struct Servers {
    what: &'static str,
    tcp: Server,
    /// What the TCP server had sent again before the clients were started.
    before: Resent,
    _udp: Server,
}

impl Servers {
    /// Whether each connection has ended.
    fn are_idle(&self) -> bool {
        self.tcp.ends().len() == self.tcp.seen().len()
    }
}

/// Clients and servers. All stop when the value is dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<Client>,
    servers: Vec<Servers>,
}

impl Traffic {
    /// Starts servers and clients on each way.
    pub(crate) fn start(ways: &[Way<'_>]) -> Self {
        let mut traffic = Self { stop: Arc::default(), clients: Vec::new(), servers: Vec::new() };
        for way in ways {
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, way.port);
            let mut servers = Servers {
                what: way.what,
                tcp: Server::tcp(way.to, any, Behaviour::Echo),
                before: Resent::default(),
                _udp: Server::udp(way.to, any),
            };
            wait_until(SOON, way.what, || {
                sock::udp(way.from, way.at, 0, 8) == "ok 8"
                    && sock::tcp(way.from, way.at, 0, Use::Echo(8)) == "ok 8"
            });
            wait_until(SOON, "the first connections to end", || servers.are_idle());
            servers.before = servers.tcp.resent();
            traffic.clients.extend(way.clients(&traffic.stop));
            traffic.servers.push(servers);
        }
        traffic
    }

    /// Waits until each client has exchanged something since the last call. So there was a new
    /// connection on each way. Fails if a client has lost something.
    #[track_caller]
    pub(crate) fn moves(&mut self) {
        for client in &mut self.clients {
            let Client { what, passed, seen, thread, .. } = &*client;
            let has_ended = || thread.as_ref().is_none_or(JoinHandle::is_finished);
            wait_until(2 * PATIENCE, what, || has_ended() || passed.load(Relaxed) > *seen);
            if has_ended() {
                client.ends_well();
                unreachable!("{}: the client has stopped by itself", client.what);
            }
            client.seen = client.passed.load(Relaxed);
        }
    }

    /// Stops the traffic. Checks that nothing was lost at either end, that no connection was reset,
    /// and that each client has exchanged more than 10 messages.
    #[track_caller]
    pub(crate) fn nothing_was_lost(mut self) {
        self.stop.store(true, Relaxed);
        let mut exchanges = 0;
        let mut needless = 0;
        for client in &mut self.clients {
            client.ends_well();
            let passed = client.passed.load(Relaxed);
            assert!(passed > 10, "{}: {passed} exchanges", client.what);
            exchanges += passed;
            needless += client.needless.load(Relaxed);
        }
        for servers in &self.servers {
            let Servers { what, tcp, before, .. } = servers;
            wait_until(SOON, "the connections to end", || servers.are_idle());
            let faulty: Vec<_> =
                tcp.ends().into_iter().filter(|(_, end)| end != "closed").collect();
            assert!(faulty.is_empty(), "{what}: {faulty:?}");
            let again = tcp.resent();
            assert_eq!(again.lost, before.lost, "{what}: segments that the server sent were lost");
            needless += u64::from(again.needless - before.needless);
        }
        say(&format!("{exchanges} exchanges, {needless} segments sent again without need"));
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
