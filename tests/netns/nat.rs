//! External access from a network: masquerading, as seen by a host without a route to any
//! container.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    external::External,
    netns::{on_this_machine, wait_for, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};
use nix::sys::signal::Signal;

/// A cluster and an external host.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) external: External,
}

impl World {
    pub(crate) fn new(hosts: u8) -> Self {
        let cluster = Cluster::new(hosts);
        let external = External::of(&cluster);
        Self { cluster, external }
    }

    /// Makes one host, whose agent has `extra` arguments, and an external host.
    pub(crate) fn with_agent(extra: &[&str]) -> Self {
        let mut cluster = Cluster::without_agents(1, 1500);
        cluster.hosts[0].start_agent(extra);
        cluster.hosts[0].wait_ready();
        let external = External::of(&cluster);
        Self { cluster, external }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.cluster.hosts[0]
    }

    /// Starts a container that only sleeps. Returns its name and address.
    pub(crate) fn run(&self, network: &str, options: &[&str]) -> (String, Ipv4Addr) {
        let name = unique_name("c");
        self.host().run_idle(&name, network, options);
        let ip = self.host().ip(&name, network);
        let ip = ip.parse().unwrap_or_else(|error| unreachable!("{name}: {ip}: {error}"));
        (name, ip)
    }
}

fn external(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(External::IP, port)
}

fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// A rule for a container's address: all packets of a flow take the rule's route, not only the
/// first packet.
#[test]
#[ignore = "needs root"]
fn a_route_by_source_holds_for_the_whole_flow() {
    let world = World::new(1);
    let host = world.host();
    let (name, ip) = world.run("bridge", &[]);
    // The rule's table has the default route to the router. The route of the main table is useless.
    let nowhere = "192.0.2.250";
    host.netns.run(&format!(
        "ip route show default | sed 's/$/ table 77/' | xargs ip route add \
         && ip rule add from {ip} lookup 77 && ip route replace default via {nowhere} dev up0 \
         && ip neigh replace {nowhere} lladdr 02:00:00:00:00:fe dev up0 nud permanent"
    ));
    let tcp = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let answer = sock::tcp(&container(&name), external(80), 0, Use::Echo(300_000));
    assert_eq!(answer, "ok 300000");
    assert_eq!(tcp.take_clients(), [host.vtep().to_string()]);
    let udp = Server::udp(world.external.host.path(), any(53));
    for _ in 0..3 {
        assert_eq!(sock::udp(&container(&name), external(53), 4001, 100), "ok 100");
    }
    drop(udp);
}

/// A client keeps a UDP flow alive while the host gets another address. Soon the flow leaves with
/// that one alone, also if no agent runs.
#[test]
#[ignore = "needs root"]
fn a_flow_leaves_by_no_address_that_the_host_has_lost() {
    let mut world = World::new(1);
    let (name, _) = world.run("bridge", &[]);
    let server = Server::udp(world.external.host.path(), any(53));
    let socket = sock::within(&container(&name), || UdpSocket::bind(any(4001))).unwrap();
    socket.connect(external(53)).unwrap();
    // The addresses from which datagrams arrive, one each 20 ms.
    let sources = || {
        server.take_clients();
        for _ in 0..10 {
            let _ = socket.send(b"x");
            std::thread::sleep(Duration::from_millis(20));
        }
        server.take_clients()
    };
    let first = world.host().vtep().to_string();
    wait_until(SOON, "the first address", || sources() == [first.as_str()]);
    // Otherwise the routes of the device go with its first address.
    world.host().netns.run("sysctl -qw net.ipv4.conf.up0.promote_secondaries=1");
    let followed = Duration::from_secs(2);
    for (old, new, runs) in [(&*first, "192.0.2.77", true), ("192.0.2.77", "192.0.2.78", false)] {
        if !runs {
            world.cluster.hosts[0].stop_agent(Signal::SIGKILL);
        }
        let change = format!("ip addr add {new}/24 dev up0 && ip addr del {old}/24 dev up0");
        world.host().netns.run(&change);
        wait_until(followed, &format!("{new} alone"), || sources() == [new]);
    }
}

/// In bridge and overlay networks TCP, UDP and ping reach an external host, which sees the address
/// of the host. The container has one interface and one default route.
#[test]
#[ignore = "needs root"]
fn an_external_host_sees_the_host() {
    let world = World::new(1);
    let host = world.host();
    host.overlay("over", "10.0.0.0/24", &[]);
    host.ok(&["network", "create", "-d", "bridge", "br"]);
    let tcp = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let udp = Server::udp(world.external.host.path(), any(53));
    for network in ["over", "br", "bridge"] {
        let (name, _) = world.run(network, &[]);
        let netns = container(&name);
        assert_eq!(
            sock::tcp(&netns, external(80), 0, Use::Echo(100_000)),
            "ok 100000",
            "{network}"
        );
        for len in [0, 1, 1400, 9000] {
            let expected = format!("ok {len}");
            assert_eq!(sock::udp(&netns, external(53), 0, len), expected, "{network}");
        }
        host.in_container(&name, &format!("ping -c1 -W9 {}", External::IP));
        assert_eq!(tcp.take_clients(), [host.vtep().to_string()], "{network}");
        assert_eq!(udp.take_clients(), [host.vtep().to_string()], "{network}");
        let links = host.in_container(&name, "ip -o link show");
        assert_eq!(links.lines().count(), 2, "lo and one more: {links}");
        let routes = host.in_container(&name, "ip route show default");
        assert_eq!(routes.lines().count(), 1, "{routes}");
    }
}

/// The gateway answers. The host and the containers of one network reach each other. Containers of
/// different networks do not.
#[test]
#[ignore = "needs root"]
fn the_gateway_the_host_and_other_networks() {
    let world = World::new(1);
    let host = world.host();
    host.ok(&["network", "create", "-d", "bridge", "br"]);
    let (one, one_ip) = world.run("bridge", &[]);
    let (two, two_ip) = world.run("bridge", &[]);
    let (other, other_ip) = world.run("br", &[]);
    assert_eq!(
        (one_ip.to_string(), two_ip.to_string()),
        ("172.17.0.2".into(), "172.17.0.3".into())
    );
    assert_eq!(other_ip.to_string(), "172.18.0.2");

    host.in_container(&one, "ping -c1 -W9 172.17.0.1");
    host.in_container(&other, "ping -c1 -W9 172.18.0.1");
    host.in_container(&one, &format!("ping -c1 -W9 {two_ip}"));
    host.in_container(&two, &format!("ping -c1 -W9 {one_ip}"));
    host.netns.run(&format!("ping -c1 -W9 {one_ip}; ping -c1 -W2 {other_ip}"));

    let on_host = Server::tcp(host.netns.path(), any(8000), Behaviour::Echo);
    let in_one = Server::tcp(&container(&one), any(8000), Behaviour::Echo);
    for to in ["172.17.0.1".parse().unwrap(), host.vtep()] {
        let to = SocketAddrV4::new(to, 8000);
        assert_eq!(sock::tcp(&container(&one), to, 0, Use::Echo(10)), "ok 10", "{to}");
    }
    assert_eq!(on_host.take_clients(), [one_ip.to_string()], "the host sees the container itself");
    let to = SocketAddrV4::new(one_ip, 8000);
    assert_eq!(sock::tcp(host.netns.path(), to, 0, Use::Echo(200_000)), "ok 200000");
    assert_eq!(sock::tcp(&container(&two), to, 0, Use::Echo(10)), "ok 10");
    in_one.take_clients();
    assert_eq!(sock::tcp(&container(&other), to, 0, Use::Echo(10)), "timeout");
    assert!(host.counter("from_container", "isolated") > 0);
    assert_eq!(in_one.seen().len(), 0, "another network got through");
}

/// In a network with `--internal` a container reaches the network and the gateway only.
#[test]
#[ignore = "needs root"]
fn an_internal_network_has_no_external_access() {
    let world = World::new(1);
    let host = world.host();
    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    for (driver, name) in [("bridge", "inbr"), ("overlay", "inov")] {
        host.ok(&["network", "create", "-d", driver, "--internal", name]);
        let (one, _) = world.run(name, &[]);
        let (_, two_ip) = world.run(name, &[]);
        host.in_container(&one, &format!("ping -c1 -W9 {two_ip}"));
        assert_eq!(sock::tcp(&container(&one), external(80), 0, Use::Echo(1)), "unreachable");
        // The same result with a route that the container adds.
        let gateway = host.json(&["network", "inspect", name])[0]["IPAM"]["Config"][0]["Gateway"]
            .as_str()
            .unwrap()
            .to_owned();
        host.in_container(&one, &format!("ip route add default via {gateway}"));
        assert_eq!(sock::tcp(&container(&one), external(80), 0, Use::Echo(1)), "timeout");
        assert!(host.counter("from_container", "internal_network") > 0);
        host.in_container(&one, &format!("ping -c1 -W9 {gateway}"));
    }
    assert_eq!(server.seen().len(), 0);
}

/// The TTL decreases, and a traceroute shows the gateway and the routers.
#[test]
#[ignore = "needs root"]
fn traceroute_shows_the_gateway_and_the_path() {
    let world = World::new(1);
    let (name, _) = world.run("bridge", &[]);
    let hop = |ttl: u32| {
        let ping = format!("ping -n -c1 -W9 -t {ttl} {}", External::IP);
        let output = world.host().try_in_container(&name, &ping);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(hop(1).contains("From 172.17.0.1 icmp_seq=1 Time to live exceeded"), "{}", hop(1));
    assert!(hop(2).contains("From 192.0.2.101 icmp_seq=1 Time to live exceeded"), "{}", hop(2));
    // The host and the router each take one from the TTL.
    assert!(hop(3).contains("ttl=62"), "{}", hop(3));
}

/// ICMP errors return to the container that they concern: about a port without a listener, and
/// about a link with a smaller MTU.
#[test]
#[ignore = "needs root"]
fn icmp_errors_find_their_container() {
    let world = World::new(1);
    let (name, _) = world.run("bridge", &[]);
    let netns = container(&name);
    assert_eq!(sock::udp(&netns, external(9), 0, 10), "refused", "port unreachable");
    assert_eq!(sock::tcp(&netns, external(9), 0, Use::Echo(1)), "refused");

    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    world.external.router.run("ip link set out0 mtu 1200");
    // The far end keeps to the link's MTU, which veth demands of single segments, and announces the
    // MSS of a larger one: the container must learn the MTU from the router.
    let far = &world.external.host;
    far.run("ip route change $(ip -4 route show default) mtu lock 1200 advmss 1460");
    let ping = format!("ping -c1 -W9 -M do -s 1400 {}", External::IP);
    let told = world.host().try_in_container(&name, &ping);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("mtu = 1200") || told.contains("mtu=1200"), "{told}");
    assert_eq!(sock::tcp(&netns, external(80), 0, Use::Echo(500_000)), "ok 500000");
    let cached = world.host().in_container(&name, &format!("ip route get {}", External::IP));
    assert!(cached.contains("mtu 1200"), "{cached}");
    drop(server);
}

/// Two containers use the same source port to one destination: only one of them keeps the port. A
/// port that the host itself uses is never taken.
#[test]
#[ignore = "needs root"]
fn ports_are_kept_where_they_are_free() {
    let world = World::new(1);
    let host = world.host();
    let (one, two) = (world.run("bridge", &[]).0, world.run("bridge", &[]).0);
    let server = Server::udp(world.external.host.path(), any(53));
    let ports = |server: &Server| -> Vec<u16> {
        server.seen().iter().map(std::net::SocketAddr::port).collect()
    };
    assert_eq!(sock::udp(&container(&one), external(53), 4000, 1), "ok 1");
    assert_eq!(sock::udp(&container(&two), external(53), 4000, 1), "ok 1");
    let seen = ports(&server);
    assert_eq!(seen[0], 4000);
    assert_ne!(seen[1], 4000);
    assert!(host.counter("from_container", "port_changed") == 1);

    // The host has a bound UDP socket, a TCP listener, and a TCP connection to the same peer.
    let _bound = Server::udp(host.netns.path(), any(4001));
    let _listening = Server::tcp(host.netns.path(), any(4002), Behaviour::Echo);
    let tcp = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let connected = sock::within(host.netns.path(), || sock::open(external(80), 4003)).unwrap();
    assert_eq!(sock::udp(&container(&one), external(53), 4001, 1), "ok 1");
    assert_ne!(ports(&server)[2], 4001);
    for port in [4002, 4003] {
        assert_eq!(sock::tcp(&container(&one), external(80), port, Use::Echo(5)), "ok 5");
        assert_ne!(tcp.seen().last().map(std::net::SocketAddr::port), Some(port));
    }
    drop(connected);
    // A port of the host that is connected to another peer is not taken either.
    let other = Server::tcp(world.external.host.path(), any(81), Behaviour::Echo);
    let connected = sock::within(host.netns.path(), || sock::open(external(81), 4004)).unwrap();
    // The agent reads the host's sockets once a second.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(sock::tcp(&container(&two), external(80), 4004, Use::Echo(5)), "ok 5");
    assert_ne!(tcp.seen().last().map(std::net::SocketAddr::port), Some(4004));
    drop((connected, other));
}

/// A connection survives the end of the agent, by a signal and by a crash.
#[test]
#[ignore = "needs root"]
fn flows_outlive_the_agent() {
    let mut world = World::new(1);
    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let (name, _) = world.run("bridge", &[]);
    let netns = container(&name);
    let mut stream = sock::within(&netns, || sock::open(external(80), 0)).unwrap();
    let mut talk = || {
        use std::io::{Read as _, Write as _};
        stream.set_read_timeout(Some(on_this_machine(Duration::from_secs(3)))).unwrap();
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
    };
    talk();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        world.cluster.hosts[0].stop_agent(signal);
        talk();
        // A new connection works, too: the programs need no running agent.
        assert_eq!(sock::tcp(&netns, external(80), 0, Use::Echo(10)), "ok 10");
        world.cluster.hosts[0].start_agent(&[]);
        world.cluster.hosts[0].wait_ready();
        talk();
    }
    assert_eq!(server.take_clients(), [world.host().vtep().to_string()]);
}

/// A new container with the address of an old one does not get the old one's packets.
#[test]
#[ignore = "needs root"]
fn flows_die_with_their_container() {
    let world = World::new(1);
    let host = world.host();
    let server = Server::udp(world.external.host.path(), any(53));
    let (old, ip) = world.run("bridge", &["--ip", "172.17.0.9"]);
    assert_eq!(sock::udp(&container(&old), external(53), 4000, 1), "ok 1");
    let client = server.seen()[0];
    host.ok(&["rm", "-f", &old]);
    let (new, again) = world.run("bridge", &["--ip", "172.17.0.9"]);
    assert_eq!(ip, again);
    // A peer that still sends to the old container.
    let listener = sock::within(&container(&new), || UdpSocket::bind("0.0.0.0:4000"));
    let listener = listener.unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    drop(server);
    sock::within(world.external.host.path(), || {
        // A child process that another test forks at this moment holds the server's socket until it
        // executes its program.
        let bind = || UdpSocket::bind("0.0.0.0:53").ok();
        let socket = wait_for(SOON, "the port to be free", bind);
        for _ in 0..3 {
            socket.send_to(b"late", client).unwrap();
        }
    });
    let mut buffer = [0; 16];
    assert!(listener.recv(&mut buffer).is_err(), "the new container got an old answer");
}

/// A running container joins a second network and leaves the first. As with Docker, the default
/// route is in the first network, and then moves to the network that remains.
#[test]
#[ignore = "needs root"]
fn the_default_route_moves_to_the_network_that_is_left() {
    let world = World::new(1);
    let host = world.host();
    host.ok(&["network", "create", "-d", "bridge", "br"]);
    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let (name, _) = world.run("bridge", &[]);
    host.ok(&["network", "connect", "br", &name]);
    assert!(host.in_container(&name, "ip -o -4 addr show eth1").contains("172.18.0.2/16"));
    let default = || host.in_container(&name, "ip route show default");
    assert!(default().contains("via 172.17.0.1 dev eth0"), "{}", default());
    assert_eq!(sock::tcp(&container(&name), external(80), 0, Use::Echo(10)), "ok 10");
    host.ok(&["network", "disconnect", "bridge", &name]);
    wait_until(SOON, "the other default route", || default().contains("via 172.18.0.1 dev eth1"));
    assert_eq!(sock::tcp(&container(&name), external(80), 0, Use::Echo(10)), "ok 10");
    assert_eq!(server.take_clients(), [host.vtep().to_string()]);
}

/// When no port is left, a new flow is refused, counted and reported; existing flows continue.
#[test]
#[ignore = "needs root"]
fn exhaustion_refuses_new_flows_only() {
    let world = World::with_agent(&["--nat-ports", "40000-40003"]);
    let host = world.host();
    let server = Server::udp(world.external.host.path(), any(53));
    let (name, _) = world.run("bridge", &[]);
    let netns = container(&name);
    for port in 5000..5004 {
        assert_eq!(sock::udp(&netns, external(53), port, 1), "ok 1", "{port}");
    }
    assert_eq!(sock::udp(&netns, external(53), 5004, 1), "timeout");
    assert_eq!(sock::udp(&netns, external(53), 5000, 1), "ok 1", "an existing flow");
    let used: Vec<u16> = server.seen().iter().map(std::net::SocketAddr::port).collect();
    assert!(used.iter().all(|port| (40000..40004).contains(port)), "{used:?}");
    assert!(host.counter("from_container", "nat_ports_exhausted") >= 1);
    wait_until(SOON, "status to report it", || {
        host.json(&["status"])["conntrack"]["refused"].as_u64() >= Some(1)
    });
    // The same ports are free for another server.
    let _other = Server::udp(world.external.host.path(), any(54));
    assert_eq!(sock::udp(&netns, external(54), 5004, 1), "ok 1");
}
