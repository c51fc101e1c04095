//! Published ports: the clients that reach a container by a port of its host, and the address that
//! the container sees.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::Duration,
};

use culvert_tests::{
    cluster::{SOON, unique_name},
    external::External,
    netns::{Netns, on_this_machine, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};

use crate::nat::World;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub(crate) fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// Outcome of an exchange of `len` bytes with a port, as one word.
pub(crate) fn exchange(netns: &Netns, proto: &str, ip: Ipv4Addr, port: u16, len: usize) -> String {
    exchange_at(netns.path(), proto, ip, port, len)
}

pub(crate) fn exchange_at(
    netns: &std::path::Path,
    proto: &str,
    ip: Ipv4Addr,
    port: u16,
    len: usize,
) -> String {
    let to = SocketAddrV4::new(ip, port);
    match proto {
        "tcp" => sock::tcp(netns, to, 0, Use::Echo(len)),
        _ => sock::udp(netns, to, 0, len),
    }
}

/// An echo server for TCP or UDP in a namespace.
pub(crate) fn echo(netns: &std::path::Path, proto: &str, port: u16) -> Server {
    match proto {
        "tcp" => Server::tcp(netns, any(port), Behaviour::Echo),
        _ => Server::udp(netns, any(port)),
    }
}

/// Sends and receives once over an open connection.
pub(crate) fn talk(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(on_this_machine(Duration::from_secs(3)))).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

/// A container of a bridge network and one of an overlay network each publish a port, for TCP and
/// UDP. An external host, the host by each of its addresses, containers of the same and of another
/// network, and the two containers themselves reach the ports with payloads of every size. An
/// external client keeps its address. All other clients appear as the gateway.
#[test]
#[ignore = "needs root"]
fn everybody_reaches_a_published_port() {
    let world = World::new(1);
    let host = world.host();
    host.overlay("over", "10.0.0.0/24", &[]);
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "br"]);
    let (other, _) = world.run("bridge", &[]);
    for (network, gateway, port) in [("over", "10.0.0.1", 8080_u16), ("br", "10.7.0.1", 8081)] {
        let gateway: Ipv4Addr = gateway.parse().unwrap();
        let publish = [format!("{port}:80"), format!("{port}:80/udp")];
        let (server_name, _) = world.run(network, &["-p", &publish[0], "-p", &publish[1]]);
        let (same, _) = world.run(network, &[]);
        for (proto, most) in [("tcp", 200_000), ("udp", 9000)] {
            let server = echo(&container(&server_name), proto, 80);
            let check = |netns: &std::path::Path, ip: Ipv4Addr, client: Ipv4Addr, who: &str| {
                for len in [1, 1400.min(most), most] {
                    let outcome = exchange_at(netns, proto, ip, port, len);
                    assert_eq!(
                        outcome,
                        format!("ok {len}"),
                        "{network}, {proto}: {len} bytes from {who} to {ip}"
                    );
                }
                assert_eq!(server.take_clients(), [client.to_string()], "{who} by {ip}, {proto}");
            };
            check(world.external.host.path(), host.vtep(), External::IP, "an external host");
            for ip in [host.vtep(), LOCALHOST, gateway] {
                check(host.netns.path(), ip, gateway, "the host");
            }
            for (name, who) in
                [(&same, "the same network"), (&other, "another network"), (&server_name, "itself")]
            {
                check(&container(name), host.vtep(), gateway, who);
            }
            for (name, who) in [(&same, "the same network"), (&server_name, "itself")] {
                check(&container(name), gateway, gateway, who);
            }
        }
    }
    // A port without a listener is refused by the container, not by the host.
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 1), "refused");
    assert_eq!(exchange(&world.external.host, "udp", host.vtep(), 8080, 1), "refused");
}

/// A port of 127.0.0.1 is the host's own. A container does not reach it. A host on the underlay
/// that routes 127.0.0.1 to this host does not reach it either.
#[test]
#[ignore = "needs root"]
fn a_port_of_loopback_is_the_hosts_alone() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) =
        world.run("bridge", &["-p", "127.0.0.1:8080:80", "-p", "127.0.0.1:8080:80/udp"]);
    // A port on every address does not accept external packets to 127.0.0.1 either.
    let (open, _) = world.run("bridge", &["-p", "8081:80", "-p", "8081:80/udp"]);
    let (other, _) = world.run("bridge", &[]);
    let attacker = world.cluster.plain_host(50);
    let own_way = |via: &str| {
        format!(
            "sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.all.rp_filter=0; \
             ip addr flush dev lo; ip route flush table local dev lo; \
             ip route add 127.0.0.1/32 via {via}"
        )
    };
    attacker.run(&format!("{} src 192.0.2.51", own_way(&host.vtep().to_string())));
    host.in_container(&other, &format!("{} src 172.17.0.4", own_way("172.17.0.1")));
    for proto in ["tcp", "udp"] {
        let servers = [&name, &open].map(|name| echo(&container(name), proto, 80));
        assert_eq!(exchange(&host.netns, proto, LOCALHOST, 8080, 100), "ok 100", "{proto}");
        assert_eq!(exchange(&host.netns, proto, LOCALHOST, 8081, 100), "ok 100", "{proto}");
        assert_eq!(servers[0].take_clients(), ["172.17.0.1"]);
        for client in [&world.external.host, &attacker] {
            assert_eq!(exchange(client, proto, host.vtep(), 8081, 100), "ok 100", "{proto}");
            let refused = exchange(client, proto, host.vtep(), 8080, 1);
            assert_eq!(refused, "refused", "{proto}");
        }
        servers[1].take_clients();
        for port in [8080, 8081] {
            let refused = exchange(&attacker, proto, LOCALHOST, port, 1);
            assert_eq!(refused, "timeout", "{proto} {port}");
            let refused = exchange_at(&container(&other), proto, LOCALHOST, port, 1);
            assert_eq!(refused, "timeout", "{proto} {port}");
        }
        let refused = exchange_at(&container(&other), proto, host.vtep(), 8080, 1);
        assert_eq!(refused, "refused", "{proto}");
        for server in servers {
            assert_eq!(server.seen(), [], "{proto}: somebody got in");
        }
    }
    // The attacker's packets have arrived at this host.
    assert!(host.counter("from_container", "unroutable") > 0);
}

/// A port that is published on one address of a host is not published on the host's other address,
/// where a process of the host may use it.
#[test]
#[ignore = "needs root"]
fn a_port_of_one_address_is_of_that_one() {
    let world = World::new(1);
    let host = world.host();
    let second: Ipv4Addr = "192.0.2.200".parse().unwrap();
    host.netns.run(&format!("ip addr add {second}/24 dev up0"));
    // The agent notices the new address, and publishes on it.
    let name = unique_name("c");
    let publish = format!("{second}:8080:80");
    host.run_idle(&name, "bridge", &["-p", &publish]);
    let in_container = echo(&container(&name), "tcp", 80);
    wait_until(SOON, "the new address to be served", || {
        exchange(&world.external.host, "tcp", second, 8080, 10) == "ok 10"
    });
    assert_eq!(exchange(&host.netns, "tcp", second, 8080, 10), "ok 10");
    assert_eq!(in_container.take_clients(), ["172.17.0.1", "198.51.100.9"]);
    for ip in [host.vtep(), LOCALHOST] {
        assert_eq!(exchange(&host.netns, "tcp", ip, 8080, 1), "refused", "{ip}");
    }
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 1), "refused");
    let own = Server::tcp(host.netns.path(), SocketAddrV4::new(host.vtep(), 8080), Behaviour::Echo);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");
    assert_eq!(own.take_clients(), ["198.51.100.9"]);
    assert_eq!(in_container.seen(), []);
    // Another container may publish the same port on the other address.
    drop(own);
    let publish = format!("{}:8080:80", host.vtep());
    let (name, _) = world.run("bridge", &["-p", &publish]);
    let in_other = echo(&container(&name), "tcp", 80);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");
    assert_eq!(exchange(&world.external.host, "tcp", second, 8080, 10), "ok 10");
    assert_eq!((in_other.seen().len(), in_container.seen().len()), (1, 1));
}

/// The host's port for the container's port `port`, as `ps` shows it.
fn host_port(world: &World, name: &str, port: u16) -> u16 {
    let rows = world.host().json(&["ps"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
    let ports = row["networks"][0]["ports"].as_array().unwrap();
    let end = format!("->{port}/tcp");
    let line = ports.iter().filter_map(|port| port.as_str()).find(|line| line.ends_with(&end));
    let line = line.unwrap_or_else(|| unreachable!("{ports:?}"));
    line.trim_end_matches(&end).rsplit(':').next().unwrap().parse().unwrap()
}

/// `ps` shows the free ports that the agent chose. They lead to their containers. Port ranges map
/// one to one.
#[test]
#[ignore = "needs root"]
fn free_ports_and_ranges() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "80", "-p", "0:81", "-p", "8000-8003:9000-9003"]);
    let mut chosen = Vec::new();
    for port in [80, 81] {
        let server = echo(&container(&name), "tcp", port);
        let free = host_port(&world, &name, port);
        assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), free, 10), "ok 10");
        assert_eq!(exchange(&host.netns, "tcp", LOCALHOST, free, 10), "ok 10");
        assert_eq!(server.seen().len(), 2);
        chosen.push(free);
    }
    assert_ne!(chosen[0], chosen[1]);
    assert!(host.ok(&["ps"]).contains(&format!("{}->80/tcp", chosen[0])), "{}", host.ok(&["ps"]));
    assert!(host.ok(&["ps"]).contains(":8000-8003->9000-9003/tcp"), "{}", host.ok(&["ps"]));
    for offset in 0..4 {
        let server = echo(&container(&name), "tcp", 9000 + offset);
        let to = 8000 + offset;
        assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), to, 10), "ok 10");
        assert_eq!(server.seen().len(), 1, "{to}");
    }
    for beside in [7999, 8004] {
        assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), beside, 10), "refused");
    }
}

/// A range of very many ports. The agent answers while it is bound, each port leads to its own, and
/// the whole range can be had again at once. A range with all ports of the host's own connections is
/// refused, and nothing is held: the agent still reaches its store.
#[test]
#[ignore = "needs root"]
fn a_range_of_very_many_ports() {
    const RANGE: &str = "2000-11999:2000-11999";
    let world = World::new(1);
    let host = world.host();
    for _ in 0..2 {
        let (name, _) = world.run("bridge", &["-p", RANGE]);
        assert!(host.ok(&["ps"]).contains(":2000-11999->2000-11999/tcp"), "{}", host.ok(&["ps"]));
        for port in [2000, 7000, 11_999] {
            let server = echo(&container(&name), "tcp", port);
            assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), port, 10), "ok 10");
            assert_eq!(server.seen().len(), 1, "{port}");
        }
        host.ok(&["rm", "-f", &name]);
    }
    host.netns.run("sysctl -qw net.ipv4.ip_local_port_range='20000 29999'");
    let name = unique_name("all");
    let all = ["run", "-d", "--name", &name, "-p", "20000-29999:1-10000", "--", "true"];
    let line = host.refused(1, &all);
    assert!(line.contains("(net.ipv4.ip_local_port_range, 20000 to 29999): 8976 at"), "{line}");
    assert_eq!(host.json(&["ps"]).as_array().unwrap().len(), 0);
    world.run("bridge", &["-p", "20000-28975:1-8976"]);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 28_976, 1), "refused");
}

/// An overlay network on two hosts: a port that a container publishes is reached by the address of
/// its host. The clients are an external host, and a container of the same network on the other
/// host. The container's packets leave through its own host.
#[test]
#[ignore = "needs root"]
fn each_host_of_an_overlay_has_its_own_door() {
    let world = World::new(2);
    let hosts = &world.cluster.hosts;
    hosts[0].overlay("net", "10.0.0.0/24", &[]);
    world.cluster.wait_network("net");
    let (first, first_ip) = world.run("net", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let second = unique_name("c");
    hosts[1].run_idle(&second, "net", &[]);
    hosts[1].wait_ping(&second, &first_ip.to_string());
    let (one, two) = (hosts[0].vtep(), hosts[1].vtep());
    for (proto, len) in [("tcp", 200_000), ("udp", 9000)] {
        let server = echo(&container(&first), proto, 80);
        let word = format!("ok {len}");
        let client = &world.external.host;
        assert_eq!(exchange(client, proto, one, 8080, len), word, "{proto}");
        assert_eq!(server.take_clients(), [External::IP.to_string()], "{proto}");
        assert_eq!(exchange(client, proto, two, 8080, 1), "refused", "{proto}");
        // The container is masqueraded by its own host, like an external client.
        assert_eq!(exchange_at(&container(&second), proto, one, 8080, len), word, "{proto}");
        assert_eq!(server.take_clients(), [two.to_string()], "{proto}");
        assert_eq!(exchange(&hosts[1].netns, proto, one, 8080, len), word, "{proto}");
        assert_eq!(server.take_clients(), [two.to_string()], "{proto}");
        assert_eq!(exchange_at(&container(&second), proto, first_ip, 80, len), word, "{proto}");
        server.take_clients();

        let beyond = echo(client.path(), proto, 90);
        for (name, host) in [(&first, one), (&second, two)] {
            let outcome = exchange_at(&container(name), proto, External::IP, 90, len);
            assert_eq!(outcome, word, "{proto}");
            assert_eq!(beyond.take_clients(), [host.to_string()], "{proto}");
        }
    }
}
