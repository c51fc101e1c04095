//! The same connections through Culvert, and through a Linux bridge and iptables as Docker uses
//! them. Each connection has the same outcome on both sides, and its peers see the same addresses.
//! With `CULVERT_TEST_FULL` there are 20 times as many connections, with more than a million
//! packets.

#![expect(clippy::expect_used, reason = "a step that fails ends the test with the error")]

mod plan;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    chaos,
    cluster::{SOON, unique_name},
    docker::{self, Docker},
    external::External,
    netns::Netns,
    probe::{self, Watch},
    sock::{self, Behaviour, Server, container},
};

use self::plan::{
    CONTAINERS, COUNT, Connection, DATAGRAMS, DIRECT, ECHO, From, PUBLISHED, RESET, What,
};
use crate::nat::World;

/// Number of connections at the same time.
const WORKERS: usize = 8;
/// Seed of the plan, unless `CULVERT_SEED` gives another one.
const SEED: u64 = 0x0c01_5e57;

/// Packets of the containers of each side in the long test, at least. A container connects to its
/// own address with one connection in a hundred, whose packets count as well.
const MANY_PACKETS: u64 = 1_050_000;
/// What [`packets`] counts, as in `/proc/net/snmp`.
const COUNTED: [&str; 6] =
    ["InSegs", "OutSegs", "InDatagrams", "OutDatagrams", "InMsgs", "OutMsgs"];

/// One of the two sides: Culvert, or Docker's wiring.
struct Side<'a> {
    iptables: &'static str,
    host: &'a Netns,
    external: &'a External,
    containers: Vec<PathBuf>,
}

/// The name of a server, its clients, and the outcome of their connections.
type Seen = BTreeMap<(String, String), usize>;

/// The observations of a run.
struct Told {
    results: Vec<String>,
    servers: Seen,
    headers: Vec<String>,
    /// Packets of the containers.
    packets: u64,
}

#[test]
#[ignore = "needs root"]
fn the_same_becomes_of_a_thousand_connections() {
    let iptables = docker::iptables().expect("an iptables that can make a NAT rule in this kernel");
    let seed = match std::env::var("CULVERT_SEED") {
        Ok(text) => text.parse().expect("CULVERT_SEED is a number"),
        Err(_) => SEED,
    };
    let plan = plan::draw(seed);
    let world = World::new(1);
    let containers = (0..CONTAINERS).map(|index| run(&world, index)).collect();
    let culvert =
        Side { host: &world.host().netns, external: &world.external, containers, iptables };
    let docker = Docker::new(iptables, CONTAINERS, PUBLISHED);
    let containers = docker.containers.iter().map(|netns| netns.path().to_owned()).collect();
    let linux = Side { host: &docker.host, external: &docker.external, containers, iptables };

    let (culvert, linux) = thread::scope(|scope| {
        let culvert = scope.spawn(|| culvert.go(&plan));
        let linux = linux.go(&plan);
        (culvert.join().expect("Culvert's side"), linux)
    });
    let mut different = Vec::new();
    for ((connection, culvert), linux) in plan.iter().zip(&culvert.results).zip(&linux.results) {
        if culvert != linux {
            different.push(format!("{connection}: '{culvert}', Linux: '{linux}'"));
        }
    }
    for (key @ (server, client), linux) in &linux.servers {
        let culvert = culvert.servers.get(key).unwrap_or(&0);
        if culvert != linux {
            different.push(format!("{server} saw {culvert} times {client}, Linux: {linux}"));
        }
    }
    for (key @ (server, client), count) in &culvert.servers {
        if !linux.servers.contains_key(key) {
            different.push(format!("{server} saw {count} times {client}, Linux: 0"));
        }
    }
    if culvert.headers != linux.headers {
        let (culvert, linux) = (culvert.headers.join("\n  "), linux.headers.join("\n  "));
        different.push(format!("headers at the external host\n  {culvert}\nLinux:\n  {linux}"));
    }
    let count = different.len();
    let stats = world.host().ok(&["stats"]);
    assert!(
        different.is_empty(),
        "CULVERT_SEED={seed}: {count} differences:\n{}\n{stats}",
        different.join("\n")
    );
    // A failure on both sides is not a difference.
    let good = linux.results.iter().filter(|result| result.starts_with("ok")).count();
    assert!(
        good > plan.len() / 2,
        "CULVERT_SEED={seed}: only {good} succeeded: {:?}",
        linux.results
    );
    let (ours, theirs) = (culvert.packets, linux.packets);
    chaos::say(&format!(
        "{} connections: {ours} packets of containers through Culvert, {theirs} through Linux",
        plan.len()
    ));
    assert!(
        !chaos::is_full() || ours.min(theirs) >= MANY_PACKETS,
        "CULVERT_SEED={seed}: {ours} and {theirs} packets"
    );
    let late = linux.results.iter().filter(|result| *result == "timeout").count();
    assert!(late < 10, "CULVERT_SEED={seed}: {late} timed out");
}

/// A container of Culvert with its published ports.
fn run(world: &World, index: u8) -> PathBuf {
    let name = unique_name("c");
    let ports: Vec<String> = PUBLISHED
        .iter()
        .filter(|published| published.container == index)
        .map(|published| format!("{}:{}/{}", published.port, published.to, published.protocol))
        .collect();
    let options: Vec<&str> = ports.iter().flat_map(|port| ["-p", port]).collect();
    world.host().run_idle(&name, "bridge", &options);
    assert_eq!(world.host().ip(&name, "bridge"), plan::address(index).to_string());
    container(&name)
}

impl Side<'_> {
    /// Makes the connections of a plan.
    fn go(&self, plan: &[Connection]) -> Told {
        self.prepare();
        let watch = Watch::new(self.external.host.path());
        let servers = self.serve();
        let mut results = vec![String::new(); plan.len()];
        let parts: Vec<Vec<(usize, String)>> = thread::scope(|scope| {
            let work = |worker: usize| {
                let mine = plan.iter().enumerate().skip(worker).step_by(WORKERS);
                let progress = chaos::each("connections of a worker", mine.len() as u32);
                let made = mine.map(|(index, connection)| (index, self.make(connection)));
                made.zip(progress).map(|(made, _)| made).collect()
            };
            let workers: Vec<_> =
                (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
            workers.into_iter().map(|worker| worker.join().expect("worker")).collect()
        });
        for (index, result) in parts.into_iter().flatten() {
            results[index] = result;
        }
        // A server that does not see the end of a connection is reported as a difference.
        let begun = Instant::now();
        while begun.elapsed() < SOON
            && servers.iter().any(|(_, tcp, it)| *tcp && it.ends().len() < it.seen().len())
        {
            thread::sleep(Duration::from_millis(5));
        }
        let mut seen = Seen::new();
        for (name, tcp, server) in &servers {
            let clients: Vec<String> = if *tcp {
                let ends = server.ends();
                ends.iter().map(|(peer, end)| format!("{} {end}", whom(name, peer))).collect()
            } else {
                server.seen().iter().map(|peer| whom(name, peer)).collect()
            };
            for client in clients {
                *seen.entry((name.clone(), client)).or_default() += 1;
            }
        }
        let packets = self.containers.iter().map(|netns| packets(netns)).sum();
        Told { results, servers: seen, headers: watch.seen(), packets }
    }

    /// Settings that both sides have in common.
    fn prepare(&self) {
        let router = &self.external.router;
        // These rules act like an unreachable route. The kernel limits the errors of a route for
        // the whole machine.
        router.run("ip route add 203.0.113.0/24 dev out0");
        for (ip, target) in [
            (plan::UNREACHABLE, "REJECT --reject-with icmp-host-unreachable"),
            (plan::PROHIBITED, "REJECT --reject-with icmp-admin-prohibited"),
            (plan::BLACKHOLE, "DROP"),
        ] {
            router.run(&format!("{} -w -A FORWARD -d {ip} -j {target}", self.iptables));
        }
        // Limits on ICMP errors would make the clients' errors random.
        let open = "cd /proc/sys/net/ipv4; echo 0 > icmp_ratelimit; \
                    for limit in icmp_msgs_per_sec icmp_msgs_burst; do \
                    [ ! -e $limit ] || echo 100000 > $limit; done; \
                    echo '0 2147483647' > ping_group_range";
        let all = self.containers.iter().map(PathBuf::as_path);
        for netns in all.chain([self.host.path(), router.path(), self.external.host.path()]) {
            sock::within(netns, || {
                let status = std::process::Command::new("sh").args(["-c", open]).status();
                assert!(status.expect("sh").success(), "{open}");
            });
        }
    }

    /// The servers, each with its name and whether it is a TCP server.
    fn serve(&self) -> Vec<(String, bool, Server)> {
        let mut servers = Vec::new();
        let mut at = |place: &str, netns: &Path, more: u16| {
            let any = |port: u16| sock_addr(port + more);
            for (what, port, behaviour) in [
                ("echo", ECHO, Behaviour::Echo),
                ("count", COUNT, Behaviour::Count),
                ("reset", RESET, Behaviour::Reset),
            ] {
                let server = Server::tcp(netns, any(port), behaviour);
                servers.push((format!("{place} {what}"), true, server));
            }
            servers.push((format!("{place} udp"), false, Server::udp(netns, any(DATAGRAMS))));
        };
        at("external", self.external.host.path(), 0);
        at("host", self.host.path(), DIRECT);
        for (index, netns) in self.containers.iter().enumerate() {
            at(&format!("container {index} published"), netns, 0);
            at(&format!("container {index}"), netns, DIRECT);
        }
        servers
    }

    fn make(&self, connection: &Connection) -> String {
        let &Connection { from, to, port, what } = connection;
        let netns = match from {
            From::Container(index) => self.containers[usize::from(index)].as_path(),
            From::Host => self.host.path(),
            From::External => self.external.host.path(),
        };
        match what {
            What::Tcp(how) => sock::tcp(netns, to, port, how),
            What::Udp { len, ttl } => probe::udp(netns, to, port, len, ttl),
            What::Ping { len, ttl } => probe::ping(netns, *to.ip(), port, len, ttl),
        }
    }
}

/// TCP segments, datagrams and ICMP messages that a container has sent and received (RFC 4022,
/// RFC 4113, RFC 4293). A GSO frame counts as its segments, a fragmented datagram as one.
fn packets(netns: &Path) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp");
    let text = sock::within(netns, read).expect("statistics of a container");
    // Each protocol has a line of names, and below it one of values.
    let is_it = |line: &&str| ["Tcp: ", "Udp: ", "Icmp: "].iter().any(|it| line.starts_with(it));
    let lines: Vec<&str> = text.lines().filter(is_it).collect();
    let mut sum = 0;
    for pair in lines.chunks_exact(2) {
        for (name, value) in pair[0].split_whitespace().zip(pair[1].split_whitespace()) {
            if COUNTED.contains(&name) {
                sum += value.parse::<u64>().expect("a number of packets");
            }
        }
    }
    sum
}

fn sock_addr(port: u16) -> std::net::SocketAddrV4 {
    std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, port)
}

/// The part of a client's address that must be equal on both sides. For an external client: address
/// and port. For another client of a published port: nothing. For any other client: the address.
fn whom(server: &str, peer: &SocketAddr) -> String {
    if peer.ip() == External::IP {
        return peer.to_string();
    }
    if server.contains("published") { "somebody here".to_owned() } else { peer.ip().to_string() }
}
