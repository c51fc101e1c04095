//! Other systems on the same host that forward and translate packets: Docker's bridge and DNAT,
//! libvirt's network, kube-proxy's services; and a second network card.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a step that fails ends the test with the error"
)]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    time::Duration,
};

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Host, SOON, unique_name},
    docker::{self, Published},
    netns::{Netns, on_this_machine, programs, wait_for, wait_until},
    sock::{self, Server, container},
};
use nix::sys::signal::Signal;

use crate::{
    nat::World,
    ports::{echo, exchange, exchange_at},
};

/// Address of `docker0`.
const DOCKER0: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// The ports that Docker publishes: TCP and UDP port 8081, both to port 80 of its first container.
const PUBLISHED: [Published; 2] = [
    Published { protocol: "tcp", port: 8081, container: 0, to: 80 },
    Published { protocol: "udp", port: 8081, container: 0, to: 80 },
];

/// Makes a Docker container on the host. Returns the iptables program and the container.
fn docker_on(host: &Host) -> (&'static str, Netns) {
    let iptables = docker::iptables().expect("an iptables that can make a NAT rule in this kernel");
    let mut containers = docker::wire(&host.netns, iptables, 1, &PUBLISHED);
    (iptables, containers.remove(0))
}

/// Address of `virbr0`.
const VIRBR0: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 1);
/// Address of libvirt's guest.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 122, 2);

/// The rules of libvirt's network `default`, without those for the MTU and the checksums of DHCP.
const LIBVIRT: [&str; 24] = [
    "-N LIBVIRT_INP",
    "-N LIBVIRT_OUT",
    "-N LIBVIRT_FWI",
    "-N LIBVIRT_FWO",
    "-N LIBVIRT_FWX",
    "-A INPUT -j LIBVIRT_INP",
    "-A OUTPUT -j LIBVIRT_OUT",
    "-A FORWARD -j LIBVIRT_FWX",
    "-A FORWARD -j LIBVIRT_FWI",
    "-A FORWARD -j LIBVIRT_FWO",
    "-A LIBVIRT_INP -i virbr0 -p udp --dport 53 -j ACCEPT",
    "-A LIBVIRT_INP -i virbr0 -p udp --dport 67 -j ACCEPT",
    "-A LIBVIRT_OUT -o virbr0 -p udp --dport 68 -j ACCEPT",
    "-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT",
    "-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED \
     -j ACCEPT",
    "-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable",
    "-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT",
    "-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable",
    "-t nat -N LIBVIRT_PRT",
    "-t nat -A POSTROUTING -j LIBVIRT_PRT",
    "-t nat -A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN",
    "-t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE \
     --to-ports 1024-65535",
    "-t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE \
     --to-ports 1024-65535",
    "-t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE",
];

/// Makes libvirt's network `default` on the host, with one guest. A namespace stands for the guest,
/// and a veth for its tap device. The bridge has no STP, so that its port forwards at once.
fn libvirt_on(host: &Host) -> Netns {
    let iptables = docker::iptables().expect("an iptables that can make a NAT rule in this kernel");
    let guest = Netns::new("guest");
    host.netns.connect("vnet0", &guest, "eth0", 1500);
    host.netns.run(&format!(
        "ip link add virbr0 type bridge stp_state 0 forward_delay 0 && \
         ip addr add {VIRBR0}/24 dev virbr0 && ip link set virbr0 up && \
         ip link set vnet0 master virbr0 && sysctl -qw net.ipv4.ip_forward=1"
    ));
    guest.run(&format!("ip addr add {GUEST}/24 dev eth0 && ip route add default via {VIRBR0}"));
    for rule in LIBVIRT {
        host.netns.run(&format!("{iptables} -w {rule}"));
    }
    guest
}

/// Starts an echo server for TCP and one for UDP.
fn echoes(netns: &Path, port: u16) -> [Server; 2] {
    ["tcp", "udp"].map(|proto| echo(netns, proto, port))
}

/// Waits until the program for clients is attached to an interface, or is not.
fn wait_served(host: &Host, ifname: &str, served: bool) {
    wait_until(SOON, &format!("{ifname} is served: {served}"), || {
        let found = programs(&host.netns, ifname, TcAttachType::Ingress);
        (found == ["from_client"]) == served
    });
}

/// A container reaches a port that Docker publishes on this host, at every address of the host.
/// Docker sees the container's address. Neither container reaches the other by its own address.
#[test]
#[ignore = "needs root"]
fn a_container_reaches_a_port_of_docker() {
    let world = World::new(1);
    let host = world.host();
    let (_, docker) = docker_on(host);
    let servers = echoes(docker.path(), 80);
    host.overlay("over", "10.9.0.0/24", &[]);
    for network in ["bridge", "over"] {
        let (name, ip) = world.run(network, &[]);
        for address in [host.vtep(), DOCKER0] {
            for (proto, len) in [("tcp", 10), ("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
                let answer = exchange_at(&container(&name), proto, address, 8081, len);
                assert_eq!(answer, format!("ok {len}"), "{network} {address} {proto}");
            }
        }
        for server in &servers {
            let clients = server.take_clients();
            assert!(clients.iter().all(|client| *client == ip.to_string()), "{clients:?}");
        }
        let rows = host.json(&["nat", "ls"]);
        let kinds = rows.as_array().unwrap().iter().map(|row| &row["kind"]);
        assert!(kinds.clone().all(|kind| kind == "host") && kinds.count() > 0, "{rows}");

        let own = echo(&container(&name), "tcp", 80);
        let before = host.counter("from_host", "isolated");
        assert_ne!(exchange(&docker, "tcp", ip, 80, 10), "ok 10");
        assert_eq!(own.seen(), []);
        assert!(host.counter("from_host", "isolated") > before);
        let before = host.counter("from_container", "not_an_uplink");
        let address = docker::address(0);
        assert_eq!(exchange_at(&container(&name), "tcp", address, 80, 10), "unreachable");
        assert!(host.counter("from_container", "not_an_uplink") > before);
        host.ok(&["rm", "-f", &name]);
    }
}

/// A container of Docker reaches a published port at every address that it is published on. The
/// server sees the address of Docker's container. The program is on `docker0` only while a port is
/// published.
#[test]
#[ignore = "needs root"]
fn a_container_of_docker_reaches_a_published_port() {
    let world = World::new(1);
    let host = world.host();
    let named = format!("{}:8083:80", host.vtep());
    let options = ["-p", "8080:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8082:80", "-p", &named];
    // The host's default network would have the same subnet as Docker.
    host.overlay("over", "10.9.0.0/24", &[]);
    let (name, _) = world.run("over", &options);
    let servers = echoes(&container(&name), 80);
    // Docker is started after the agent.
    let (_, docker) = docker_on(host);
    wait_served(host, "docker0", true);
    for address in [host.vtep(), DOCKER0] {
        for (proto, len) in [("tcp", 10), ("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
            let answer = exchange(&docker, proto, address, 8080, len);
            assert_eq!(answer, format!("ok {len}"), "{address} {proto}");
        }
        let answer = exchange(&docker, "tcp", address, 8082, 10);
        assert_eq!(answer, "refused", "{address}: a port of 127.0.0.1");
    }
    assert_eq!(exchange(&docker, "tcp", host.vtep(), 8083, 10), "ok 10");
    assert_eq!(exchange(&docker, "tcp", DOCKER0, 8083, 10), "refused");
    for server in &servers {
        let clients = server.take_clients();
        assert!(clients.iter().all(|client| client == "172.17.0.2"), "{clients:?}");
    }
    drop(servers);
    host.ok(&["rm", "-f", &name]);
    wait_served(host, "docker0", false);
    assert_eq!(exchange(&docker, "tcp", DOCKER0, 8080, 10), "refused");
}

/// A container reaches addresses that netfilter translates, as kube-proxy does: to a container of
/// the host, to the host itself, and to another machine.
#[test]
#[ignore = "needs root"]
fn a_container_reaches_a_service() {
    let world = World::with_agent(&["--service-cidr", "10.96.0.0/16"]);
    let host = world.host();
    let (iptables, docker) = docker_on(host);
    let (name, ip) = world.run("bridge", &[]);
    let external = &world.external.host;
    let far = culvert_tests::external::External::IP;
    for (service, proto, to) in [
        ("10.96.0.10", "tcp", "172.17.0.2:80".to_owned()),
        ("10.96.0.10", "udp", "172.17.0.2:80".to_owned()),
        ("10.96.0.1", "tcp", format!("{}:6443", host.vtep())),
        ("10.96.0.20", "tcp", format!("{far}:80")),
    ] {
        host.netns.run(&format!(
            "{iptables} -w -t nat -A PREROUTING -d {service} -p {proto} --dport 443 \
             -j DNAT --to-destination {to}"
        ));
    }
    // kube-proxy masquerades packets that are not from a pod.
    host.netns.run(&format!("{iptables} -w -t nat -A POSTROUTING -s {ip} -o up0 -j MASQUERADE"));
    let near = echoes(docker.path(), 80);
    let own = echo(host.netns.path(), "tcp", 6443);
    let remote = echo(external.path(), "tcp", 80);
    let at = |service: &str, proto: &str, len| {
        exchange_at(&container(&name), proto, service.parse().unwrap(), 443, len)
    };
    assert_eq!(at("10.96.0.10", "tcp", 300_000), "ok 300000");
    assert_eq!(at("10.96.0.10", "udp", 5000), "ok 5000");
    assert_eq!(at("10.96.0.1", "tcp", 300_000), "ok 300000");
    assert_eq!(at("10.96.0.20", "tcp", 300_000), "ok 300000");
    assert_eq!(near[0].take_clients(), [ip.to_string()]);
    assert_eq!(own.take_clients(), [ip.to_string()]);
    assert_eq!(remote.take_clients(), [host.vtep().to_string()]);
    // An address that is not of a service is still masqueraded by the programs.
    let answer = exchange_at(&container(&name), "tcp", far, 80, 10);
    assert_eq!((answer.as_str(), remote.take_clients()), ("ok 10", vec![host.vtep().to_string()]));
}

/// A UDP socket of a container, and the text that it sends.
struct Speaker {
    socket: UdpSocket,
    word: &'static str,
}

impl Speaker {
    fn new(netns: &Path, port: u16, to: SocketAddrV4, word: &'static str) -> Self {
        let bound = sock::within(netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
        let socket = bound.expect("a free port");
        socket.connect(to).expect("a route to the server");
        let timeout = Some(on_this_machine(Duration::from_secs(2)));
        socket.set_read_timeout(timeout).expect("a timeout");
        Self { socket, word }
    }

    /// Sends the text. The next answer must be the same text.
    #[track_caller]
    fn speak(&self) {
        self.socket.send(self.word.as_bytes()).expect("a datagram is sent");
        let mut answer = [0; 16];
        let len = self.socket.recv(&mut answer);
        let heard = len.map(|len| String::from_utf8_lossy(&answer[..len]).into_owned());
        assert_eq!(heard.as_deref().ok(), Some(self.word), "{heard:?}");
    }
}

/// A container whose packets netfilter masquerades and a container of Culvert use the same source
/// port to the same server. Each must get the answers to its own packets, in either order of the
/// first packets. Netfilter must keep the source ports of `other`.
fn check_same_ports(world: &World, other: &Netns) {
    let host = world.host();
    let far = SocketAddrV4::new(culvert_tests::external::External::IP, 7);
    let servers = echoes(world.external.host.path(), 7);
    let (name, _) = world.run("bridge", &[]);
    let own = container(&name);
    // The agent finds netfilter's conntrack after its first connection.
    assert_eq!(exchange_at(other.path(), "udp", *far.ip(), 7, 10), "ok 10");
    wait_until(SOON, "the agent to see netfilter", || {
        host.agent_log().contains("netfilter tracks connections")
    });
    for (port, other_first) in [(40_000, true), (40_001, false), (5060, true), (5061, false)] {
        let make = |is_other: bool| match is_other {
            true => Speaker::new(other.path(), port, far, "other"),
            false => Speaker::new(&own, port, far, "culvert"),
        };
        let first = make(other_first);
        first.speak();
        let second = make(!other_first);
        for _ in 0..3 {
            second.speak();
            first.speak();
        }
    }
    for (port, other_first) in [(41_000, true), (41_001, false)] {
        let open = |is_other: bool| {
            let netns = if is_other { other.path() } else { own.as_path() };
            let stream = sock::within(netns, || sock::open(far, port)).unwrap();
            stream.set_read_timeout(Some(on_this_machine(Duration::from_secs(2)))).unwrap();
            stream
        };
        let streams = [open(other_first), open(!other_first)];
        for round in 0..3_u8 {
            for (mut stream, number) in streams.iter().zip(0..) {
                stream.write_all(&[round, number]).unwrap();
                let mut answer = [0; 2];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [round, number]);
            }
        }
    }
    // The identifier of a ping takes the place of the port.
    for (id, other_first) in [(4242, true), (4243, false)] {
        let ping = |is_other: bool| {
            let script = format!("ping -c 1 -W 5 -e {id} {}", far.ip());
            let done = match is_other {
                true => other.try_run(&script),
                false => host.try_in_container(&name, &script),
            };
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success(), "{id}, of the other: {is_other}: {said}");
        };
        for _ in 0..2 {
            ping(other_first);
            ping(!other_first);
        }
    }
    let clients = servers[0].take_clients();
    assert_eq!(clients, [host.vtep().to_string()]);
}

/// The findings of one check of `culvert doctor`: the level of each, and its text with the advice.
fn findings(host: &Host, check: &str) -> Vec<(String, String)> {
    let output = host.culvert(&["--format", "json", "doctor"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| unreachable!("{error}: {output:?}"));
    let rows = rows.as_array().unwrap().iter().filter(|row| row["check"] == check);
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.map(|row| (text(row, "level"), format!("{} {}", text(row, "detail"), text(row, "advice"))))
        .collect()
}

/// Docker publishes a port without a process that listens on it. `run` does not take the port from
/// it. `doctor` names a port that Docker takes later.
#[test]
#[ignore = "needs root"]
fn a_port_that_docker_translates_is_left_to_it() {
    let world = World::new(1);
    let host = world.host();
    let (iptables, docker) = docker_on(host);
    let _servers = echoes(docker.path(), 80);
    host.overlay("over", "10.9.0.0/24", &[]);
    let reached = |proto: &str, port| exchange(&world.external.host, proto, host.vtep(), port, 10);
    let name = unique_name("x");
    for port in ["8081:80", "8081:80/udp", "8080-8082:80-82"] {
        let head = ["run", "-d", "--name", &name, "--network", "over", "-p", port];
        let line = host.refused(1, &[&head[..], &["--", "sleep", "9"]].concat());
        assert!(line.contains("port 8081/"), "{line}");
        assert!(line.contains("chain DOCKER of table nat ('iptables-save -t nat')"), "{line}");
    }
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
    for proto in ["tcp", "udp"] {
        assert_eq!(reached(proto, 8081), "ok 10", "{proto}");
    }

    // Its other ports are free.
    let (own, _) = world.run("over", &["-p", "8082:80"]);
    let server = echo(&container(&own), "tcp", 80);
    assert_eq!(reached("tcp", 8082), "ok 10");
    assert_eq!(server.take_clients(), [culvert_tests::external::External::IP.to_string()]);
    let found = findings(host, "translation");
    let [(level, text)] = found.as_slice() else { unreachable!("{found:?}") };
    assert_eq!(level, "ok", "{text}");
    host.netns.run(&format!(
        "{iptables} -w -t nat -A DOCKER -p tcp --dport 8082 -j DNAT --to-destination 172.17.0.2:80"
    ));
    let found = findings(host, "translation");
    let [(level, text)] = found.as_slice() else { unreachable!("{found:?}") };
    assert_eq!(level, "warning", "{text}");
    assert!(text.contains("port 8082/tcp") && text.contains("chain DOCKER"), "{text}");
    assert!(text.contains(&format!("'{own}'")), "{text}");
}

/// The rules of kube-proxy for a service with the address 10.96.0.10 and the port 30080 of the
/// node. Its endpoint is a container of Docker.
const KUBE_PROXY: [&str; 9] = [
    "-N KUBE-SERVICES",
    "-N KUBE-NODEPORTS",
    "-N KUBE-SVC-WEB",
    "-N KUBE-SEP-WEB",
    "-A PREROUTING -j KUBE-SERVICES",
    "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 443 -j KUBE-SVC-WEB",
    "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    "-A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-SVC-WEB",
    "-A KUBE-SVC-WEB -j KUBE-SEP-WEB",
];

/// Without `--service-cidr` no container reaches a service. `doctor` says so, and its advice works.
/// A port of the node is left to kube-proxy.
#[test]
#[ignore = "needs root"]
fn a_service_whose_range_the_agent_does_not_know_is_told() {
    let mut world = World::new(1);
    let (iptables, docker) = docker_on(world.host());
    assert_eq!(findings(world.host(), "services"), []);
    for rule in KUBE_PROXY {
        world.host().netns.run(&format!("{iptables} -w -t nat {rule}"));
    }
    world.host().netns.run(&format!(
        "{iptables} -w -t nat -A KUBE-SEP-WEB -p tcp -j DNAT --to-destination 172.17.0.2:80"
    ));
    let server = echo(docker.path(), "tcp", 80);
    let (name, ip) = world.run("bridge", &[]);
    let reach = || exchange_at(&container(&name), "tcp", Ipv4Addr::new(10, 96, 0, 10), 443, 10);
    assert_ne!(reach(), "ok 10");
    assert_eq!(server.seen(), []);
    let found = findings(world.host(), "services");
    let [(level, text)] = found.as_slice() else { unreachable!("{found:?}") };
    assert_eq!(level, "warning", "{text}");
    for words in ["10.96.0.10", "--service-cidr", "chain KUBE-"] {
        assert!(text.contains(words), "{words}: {text}");
    }

    let host = &mut world.cluster.hosts[0];
    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&["--service-cidr", "10.96.0.0/16"]);
    host.wait_ready();
    wait_until(SOON, "the service", || reach() == "ok 10");
    assert_eq!(server.take_clients(), [ip.to_string()]);
    let found = findings(world.host(), "services");
    let [(level, text)] = found.as_slice() else { unreachable!("{found:?}") };
    assert_eq!(level, "ok", "{text}");

    let next = unique_name("x");
    let refused = ["run", "-d", "--name", &next, "-p", "30080:80", "--", "sleep", "9"];
    let line = world.host().refused(1, &refused);
    assert!(line.contains("30080/tcp") && line.contains("chain KUBE-NODEPORTS"), "{line}");
}

/// A container of Docker and a container of Culvert use the same source port to the same server.
#[test]
#[ignore = "needs root"]
fn a_port_that_docker_masquerades_is_left_to_it() {
    let world = World::new(1);
    let (_, docker) = docker_on(world.host());
    check_same_ports(&world, &docker);
}

/// A guest of libvirt reaches a published port at every address of the host. The server sees the
/// address of the guest. Neither a guest nor a container reaches the other by its own address.
///
/// A Linux bridge would refuse the guest's address to a container of another bridge, too, by the
/// REJECT of `LIBVIRT_FWI`: the container would get an ICMP error at once. Culvert sends one as well,
/// as for every packet whose route leads to an interface that is no uplink.
#[test]
#[ignore = "needs root"]
fn a_guest_of_libvirt_reaches_a_published_port() {
    let world = World::new(1);
    let host = world.host();
    let (name, ip) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let servers = echoes(&container(&name), 80);
    // libvirt is started after the agent.
    let guest = libvirt_on(host);
    wait_served(host, "virbr0", true);
    for address in [host.vtep(), VIRBR0] {
        for (proto, len) in [("tcp", 10), ("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
            let answer = exchange(&guest, proto, address, 8080, len);
            assert_eq!(answer, format!("ok {len}"), "{address} {proto}");
        }
    }
    for server in &servers {
        let clients = server.take_clients();
        assert!(clients.iter().all(|client| *client == GUEST.to_string()), "{clients:?}");
    }

    let before = host.counter("from_host", "isolated");
    assert_ne!(exchange(&guest, "tcp", ip, 80, 10), "ok 10");
    assert!(host.counter("from_host", "isolated") > before);
    assert_eq!(servers[0].take_clients(), [""; 0]);
    let in_guest = echo(guest.path(), "tcp", 80);
    let before = host.counter("from_container", "not_an_uplink");
    assert_eq!(exchange_at(&container(&name), "tcp", GUEST, 80, 10), "unreachable");
    assert!(host.counter("from_container", "not_an_uplink") > before);
    // The host itself reaches the guest.
    assert_eq!(exchange(&host.netns, "tcp", GUEST, 80, 10), "ok 10");
    assert_eq!(in_guest.take_clients(), [VIRBR0.to_string()]);
}

/// A guest of libvirt and a container of Culvert use the same source port to the same server.
#[test]
#[ignore = "needs root"]
fn a_port_that_libvirt_masquerades_is_left_to_it() {
    let world = World::new(1);
    let guest = libvirt_on(world.host());
    check_same_ports(&world, &guest);
}

/// A second network card is not an uplink. Clients reach published ports through it, at its own
/// address and at the uplink's. A tun device becomes a client link as well.
#[test]
#[ignore = "needs root"]
fn published_ports_serve_a_second_network_card() {
    let world = World::new(1);
    let host = world.host();
    let lan = Netns::new("lan");
    host.netns.connect("lan0", &lan, "eth0", 1500);
    host.netns.run("ip addr add 10.77.0.1/24 dev lan0");
    lan.run("ip addr add 10.77.0.2/24 dev eth0 && ip route add default via 10.77.0.1");
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let servers = echoes(&container(&name), 80);
    wait_served(host, "lan0", true);
    wait_until(SOON, "the status to name it", || {
        host.json(&["status"])["datapath"]["client_links"] == serde_json::json!(["lan0"])
    });
    for address in [host.vtep(), Ipv4Addr::new(10, 77, 0, 1)] {
        for (proto, len) in [("tcp", 10), ("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
            let answer = exchange(&lan, proto, address, 8080, len);
            assert_eq!(answer, format!("ok {len}"), "{address} {proto}");
        }
    }
    for server in &servers {
        let clients = server.take_clients();
        assert!(clients.iter().all(|client| client == "10.77.0.2"), "{clients:?}");
    }
    // The clients on the uplink are still served.
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");

    // A source that the host does not reach through this card is not served.
    lan.run("ip addr add 198.51.100.200/32 dev lo; ip route replace default via 10.77.0.1 src 198.51.100.200");
    servers[0].take_clients();
    assert_ne!(exchange(&lan, "tcp", host.vtep(), 8080, 10), "ok 10");
    assert_eq!(servers[0].take_clients(), [""; 0]);

    // Frames bypass a queue and filters on the host side of a pair. `doctor` names them, too.
    let links = host.netns.run("ip -o link show | cut -d: -f2 | cut -d@ -f1");
    let is_side = |name: &&str| name.len() == 14 && name.starts_with("cv");
    let side = links.split_whitespace().find(is_side).unwrap();
    host.netns.run(&format!("tc qdisc add dev {side} root tbf rate 1mbit burst 32kbit latency 1s"));
    let filter = "ingress protocol ip u32 match u32 0 0 flowid 1:1";
    host.netns.run(&format!("tc qdisc add dev {side} clsact && tc filter add dev {side} {filter}"));
    let output = host.culvert(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("tbf on {side} limits nothing")), "{text}");
    assert!(text.contains(&format!("'tc filter' on {side} have no effect")), "{text}");

    host.netns.run("ip tuntap add tun9 mode tun && ip addr add 10.78.0.1/24 dev tun9");
    wait_until(SOON, "the status to name the tunnel", || {
        host.json(&["status"])["datapath"]["client_links"] == serde_json::json!(["lan0", "tun9"])
    });
    assert_eq!(programs(&host.netns, "tun9", TcAttachType::Ingress), ["from_client_l3"]);
}

/// MAC address of a device.
fn mac(host: &Host, ifname: &str) -> String {
    let link = host.netns.run(&format!("ip -j link show {ifname}"));
    let link: serde_json::Value = serde_json::from_str(&link).unwrap();
    link[0]["address"].as_str().unwrap().to_owned()
}

/// Two network cards are in one subnet, and one of them is the uplink. Published ports serve the
/// clients whose packets come in through the card that the route to the subnet leads out of, at the
/// addresses of both cards, and no others.
#[test]
#[ignore = "needs root"]
fn one_of_two_cards_in_one_subnet_serves() {
    let world = World::new(1);
    let host = world.host();
    world.cluster.switch.connect("second", &host.netns, "up1", 1500);
    world.cluster.switch.run("ip link set second master br0");
    let other = Ipv4Addr::new(192, 0, 2, 200);
    // The host's own connections, such as that to the store, may use either card.
    host.netns.run(&format!(
        "for conf in all up0 up1; do sysctl -qw net.ipv4.conf.$conf.rp_filter=0; done; \
         ip addr add {other}/24 dev up1"
    ));
    let client = world.cluster.plain_host(50);
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let servers = echoes(&container(&name), 80);
    wait_served(host, "up1", true);
    let clients = || servers.each_ref().map(Server::take_clients).concat();
    for (serving, idle) in [("up0", "up1"), ("up1", "up0")] {
        if serving == "up1" {
            // The kernel prefers the route that was there first.
            host.netns.run("ip route del 192.0.2.0/24 dev up0");
        }
        // Whichever card answers the client's ARP requests, its packets go to this one.
        let through = |card: &str| {
            let mac = mac(host, card);
            for address in [host.vtep(), other] {
                let entry = format!("{address} lladdr {mac} dev up0 nud permanent");
                client.run(&format!("ip neigh replace {entry}"));
            }
        };
        through(serving);
        for address in [host.vtep(), other] {
            wait_until(SOON, &format!("{serving} to serve {address}"), || {
                exchange(&client, "tcp", address, 8080, 10) == "ok 10"
            });
            for (proto, len) in [("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
                let answer = exchange(&client, proto, address, 8080, len);
                assert_eq!(answer, format!("ok {len}"), "{serving} {address} {proto}");
            }
        }
        assert!(clients().iter().all(|client| client == "192.0.2.51"));
        through(idle);
        for address in [host.vtep(), other] {
            for proto in ["tcp", "udp"] {
                let answer = exchange(&client, proto, address, 8080, 10);
                assert_ne!(answer, "ok 10", "{idle} {address} {proto}");
            }
        }
        assert_eq!(clients(), [""; 0], "{idle}");
    }
}

/// Containers begin connections through an uplink only. `status` and `doctor` name the interface
/// that is none, and the option that makes it one; with that the connection works.
#[test]
#[ignore = "needs root"]
fn a_way_out_that_is_no_uplink_is_told() {
    let mut world = World::new(1);
    let lan = Netns::new("lan");
    world.host().netns.connect("lan0", &lan, "eth0", 1500);
    world.host().netns.run("ip addr add 10.77.0.1/24 dev lan0");
    lan.run("ip addr add 10.77.0.2/24 dev eth0");
    let server = echo(lan.path(), "tcp", 80);
    let (name, _) = world.run("bridge", &[]);
    let reach = || exchange_at(&container(&name), "tcp", Ipv4Addr::new(10, 77, 0, 2), 80, 10);
    let told = |host: &Host| {
        let status = host.json(&["status"]);
        let problems = status["problems"].as_array().unwrap().iter().filter_map(|one| one.as_str());
        problems.map(str::to_owned).find(|line| line.contains("not_an_uplink"))
    };
    assert_eq!(told(world.host()), None);
    // The agent may first read the counter after the first packet.
    let line = wait_for(SOON, "the status to name the interface", || {
        assert_eq!(reach(), "unreachable");
        told(world.host())
    });
    assert!(line.contains("out of lan0, which is no uplink"), "{line}");
    assert!(line.ends_with("start the agent with --uplink up0 --uplink lan0"), "{line}");
    let doctor = findings(world.host(), "agent");
    assert!(doctor.iter().any(|(_, text)| text.contains(&line)), "{doctor:?}");
    assert_eq!(server.seen(), []);

    let host = &mut world.cluster.hosts[0];
    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&["--uplink", "lan0"]);
    host.wait_ready();
    wait_until(SOON, "the way out", || reach() == "ok 10");
    assert_eq!(server.take_clients(), ["10.77.0.1"]);
}
