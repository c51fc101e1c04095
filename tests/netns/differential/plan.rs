//! The connections that both sides make, drawn from a seed.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use culvert_tests::{
    chaos::{self, Random},
    docker::Published,
    external::External,
    sock::Use,
};

/// Number of containers on each side.
pub(super) const CONTAINERS: u8 = 4;
/// The host's address on the underlay, and its address as the containers' gateway.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 101);
/// Addresses that the router refuses: as unreachable, as prohibited, and without an error.
pub(super) const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const PROHIBITED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const BLACKHOLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);

/// Ports of the servers, which are the same on the external host, on the host and in containers.
pub(super) const ECHO: u16 = 80;
pub(super) const COUNT: u16 = 81;
pub(super) const RESET: u16 = 82;
pub(super) const DATAGRAMS: u16 = 53;
/// A port without a listener.
const CLOSED: u16 = 9;
/// Offset of the ports for clients that reach a server without a published port. The addresses that
/// such servers see may differ from those of published ports.
pub(super) const DIRECT: u16 = 1000;

/// The ports that the hosts publish.
pub(super) const PUBLISHED: &[Published] = &[
    Published { protocol: "tcp", port: 8080, container: 0, to: ECHO },
    Published { protocol: "tcp", port: 8081, container: 0, to: COUNT },
    Published { protocol: "tcp", port: 8082, container: 0, to: RESET },
    Published { protocol: "tcp", port: 8089, container: 0, to: CLOSED },
    Published { protocol: "tcp", port: 8180, container: 1, to: ECHO },
    Published { protocol: "udp", port: 5353, container: 0, to: DATAGRAMS },
    Published { protocol: "udp", port: 5399, container: 0, to: CLOSED },
    Published { protocol: "udp", port: 5453, container: 1, to: DATAGRAMS },
];

/// The client of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Container(u8),
    Host,
    External,
}

/// The kind of exchange.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Tcp(Use),
    Udp { len: usize, ttl: u32 },
    Ping { len: usize, ttl: u32 },
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) from: From,
    pub(super) to: SocketAddrV4,
    /// Source port, or ICMP identifier; 0 means any.
    pub(super) port: u16,
    pub(super) what: What,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, port, what } = self;
        write!(f, "{from:?} port {port} to {to}: {what:?}")
    }
}

/// Address of a container.
pub(super) fn address(container: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 17, 0, container + 2)
}

/// Draws a plan.
pub(super) fn draw(seed: u64) -> Vec<Connection> {
    // A connection has two packets, hundreds, or thousands.
    let connections = chaos::rounds(1000, 20_000) as usize;
    let mut plan = Planner { random: Random::new(seed), next_port: 10_000, made: Vec::new() };
    plan.few();
    while plan.made.len() < connections {
        plan.more();
    }
    plan.made.truncate(connections);
    plan.random.shuffle(&mut plan.made);
    plan.made
}

struct Planner {
    random: Random,
    next_port: u16,
    made: Vec<Connection>,
}

impl Planner {
    fn add(&mut self, from: From, (ip, to_port): (Ipv4Addr, u16), port: u16, what: What) {
        let to = SocketAddrV4::new(ip, to_port);
        self.made.push(Connection { from, to, port, what });
    }

    /// A source port that nothing else of the plan uses.
    fn own_port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// A source port that nothing else of the plan uses, or 0 in half of the calls.
    fn maybe_own_port(&mut self) -> u16 {
        if self.random.below(2) == 0 { 0 } else { self.own_port() }
    }

    fn container(&mut self) -> u8 {
        self.random.index(CONTAINERS.into()) as u8
    }

    fn len(&mut self) -> usize {
        // 1472 fills a packet. The longer ones need 2, 3 and 7 fragments.
        *self.random.pick(&[0, 1, 12, 100, 511, 1000, 1471, 1472, 1473, 2961, 9000])
    }

    /// Rare kinds of connections. They wait for timeouts, or the ICMP errors about them are
    /// rate-limited.
    fn few(&mut self) {
        for container in 0..CONTAINERS {
            let from = From::Container(container);
            // Linux reports the error after a retransmission of the SYN.
            self.add(from, (UNREACHABLE, ECHO), 0, What::Tcp(Use::Echo(1)));
            self.add(from, (PROHIBITED, ECHO), 0, What::Tcp(Use::Echo(1)));
            let waits = What::Udp { len: 10, ttl: 0 };
            self.add(from, (BLACKHOLE, DATAGRAMS), 0, waits);
            // The TTL expires at the host with 1, at the router with 2, and not with 3.
            for ttl in [1, 2, 3] {
                let id = self.own_port();
                self.add(from, (External::IP, DATAGRAMS), 0, What::Udp { len: 20, ttl });
                self.add(from, (External::IP, 0), id, What::Ping { len: 20, ttl });
                self.add(from, (External::IP, 0), 0, What::Ping { len: 200, ttl });
            }
            for to in [UNREACHABLE, PROHIBITED] {
                for len in [0, 30, 700] {
                    self.add(from, (to, DATAGRAMS), 0, What::Udp { len, ttl: 0 });
                    self.add(from, (to, 0), 0, What::Ping { len, ttl: 0 });
                }
            }
        }
    }

    /// One frequent connection, or a group of them.
    fn more(&mut self) {
        let container = From::Container(self.container());
        match self.random.below(100) {
            0..34 => self.outgoing(container),
            34..48 => self.same_port(),
            48..70 => self.incoming(From::External, HOST),
            70..80 => self.incoming(container, HOST),
            80..85 => {
                let to = *self.random.pick(&[HOST, Ipv4Addr::LOCALHOST]);
                self.incoming(From::Host, to);
            }
            85..95 => self.direct(container),
            _ => {
                let what = What::Ping { len: self.len(), ttl: 0 };
                self.add(From::External, (HOST, 0), 0, what);
            }
        }
    }

    fn tcp_use(&mut self, port: u16) -> Use {
        match port {
            COUNT => Use::HalfClose(*self.random.pick(&[0, 1, 5000, 200_000])),
            ECHO if self.random.below(5) == 0 => Use::Abort,
            ECHO if self.random.below(6) == 0 => {
                // Most packets are those of long transfers.
                let times = if chaos::is_full() { 3 } else { 1 };
                Use::Echo(times * *self.random.pick(&[200_000, 500_000, 1_000_000]))
            }
            _ => Use::Echo(*self.random.pick(&[1, 10, 100, 1460, 3000, 20_000])),
        }
    }

    fn outgoing(&mut self, from: From) {
        let to_port = *self.random.pick(&[ECHO, ECHO, ECHO, COUNT, RESET, CLOSED]);
        let udp_port = *self.random.pick(&[DATAGRAMS, DATAGRAMS, DATAGRAMS, CLOSED]);
        let port = self.maybe_own_port();
        let len = self.len();
        match self.random.below(8) {
            0..4 => {
                let what = What::Tcp(self.tcp_use(to_port));
                self.add(from, (External::IP, to_port), port, what);
            }
            4..6 => self.add(from, (External::IP, udp_port), port, What::Udp { len, ttl: 0 }),
            6 => self.add(from, (External::IP, 0), port, What::Ping { len, ttl: 0 }),
            _ => self.add(from, (ROUTER, 0), port, What::Ping { len, ttl: 0 }),
        }
    }

    /// A connection of every container to one destination, from the same source port.
    fn same_port(&mut self) {
        let (port, len, kind) = (self.own_port(), self.len(), self.random.below(3));
        let tcp_port = *self.random.pick(&[ECHO, ECHO, COUNT, RESET, CLOSED]);
        let udp_port = *self.random.pick(&[DATAGRAMS, DATAGRAMS, CLOSED]);
        for container in 0..CONTAINERS {
            let from = From::Container(container);
            match kind {
                0 => {
                    let what = What::Tcp(self.tcp_use(tcp_port));
                    self.add(from, (External::IP, tcp_port), port, what);
                }
                1 => self.add(from, (External::IP, udp_port), port, What::Udp { len, ttl: 0 }),
                _ => self.add(from, (External::IP, 0), port, What::Ping { len, ttl: 0 }),
            }
        }
    }

    /// A connection to a published port, or to another port of the host.
    fn incoming(&mut self, from: From, to: Ipv4Addr) {
        // Each connection has its own source port, because the container may see the client's port.
        let port = self.own_port();
        let choice = self.random.index(PUBLISHED.len() + 1);
        let Some(&Published { protocol, port: to_port, to: server, .. }) = PUBLISHED.get(choice)
        else {
            self.add(from, (to, CLOSED), port, What::Tcp(Use::Echo(1)));
            return;
        };
        let what = match protocol {
            "tcp" => What::Tcp(self.tcp_use(server)),
            // Culvert drops packets of the host itself that are longer than a container's MTU: it
            // cannot fragment packets from the loopback device.
            _ if from == From::Host => What::Udp { len: self.len().min(1472), ttl: 0 },
            _ => What::Udp { len: self.len(), ttl: 0 },
        };
        self.add(from, (to, to_port), port, what);
    }

    /// A connection to another container, or to the host.
    fn direct(&mut self, from: From) {
        let other = address(self.container());
        let ip = *self.random.pick(&[other, other, GATEWAY, HOST]);
        let (to_port, len) = (*self.random.pick(&[ECHO, COUNT, RESET]), self.len());
        let what = match self.random.below(4) {
            0..2 => What::Tcp(self.tcp_use(to_port)),
            2 => What::Udp { len, ttl: 0 },
            _ => What::Ping { len, ttl: 0 },
        };
        let to = match what {
            What::Tcp(_) => (ip, to_port + DIRECT),
            // The answer to a datagram has the address that the host's route selects: the
            // gateway's.
            What::Udp { .. } if ip == HOST => (GATEWAY, DATAGRAMS + DIRECT),
            What::Udp { .. } => (ip, DATAGRAMS + DIRECT),
            What::Ping { .. } => (ip, 0),
        };
        self.add(from, to, 0, what);
    }
}
