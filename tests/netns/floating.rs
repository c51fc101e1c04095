//! Addresses that move between containers: floating ones, which the containers move themselves
//! (keepalived, VRRP), and additional ones, which the store moves.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::time::Duration;

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::wait_until,
    packet::{self, Arp, V6},
    sock::container,
    wire,
};

/// Time within which all have the new MAC of an address that has moved.
const AT_ONCE: Duration = Duration::from_secs(1);

const FLOAT_V4: [u8; 4] = [10, 0, 0, 100];
const FLOAT_V6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A container and its host.
struct Member<'a> {
    host: &'a Host,
    name: String,
    mac: [u8; 6],
}

impl<'a> Member<'a> {
    fn new(host: &'a Host, network: &str, ip: &str) -> Self {
        let name = unique_name("member");
        host.run_idle(&name, network, &["--ip", ip]);
        let last = ip.rsplit('.').next().and_then(|octet| octet.parse().ok()).unwrap_or_default();
        Self { host, name, mac: [2, 0x42, 10, 0, 0, last] }
    }

    fn run(&self, script: &str) -> String {
        self.host.in_container(&self.name, script)
    }

    fn reaches(&self, ip: &str) -> bool {
        let ping = format!("ping -c1 -W1 {ip}");
        self.host.try_in_container(&self.name, &ping).status.success()
    }

    /// Whether the container's neighbour table has the address at this MAC.
    fn has_neighbour(&self, ip: &str, mac: [u8; 6]) -> bool {
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        self.run(&format!("ip neigh show {ip}")).contains(&mac)
    }

    /// Takes the floating addresses with announcements, as keepalived does.
    fn take(&self) {
        self.run("ip addr add 10.0.0.100/24 dev eth0; ip addr add fd00:1::100/64 dev eth0 nodad");
        let own = packet::Host { mac: self.mac, v4: FLOAT_V4, v6: FLOAT_V6 };
        let option = [&[2, 1], self.mac.as_slice()].concat();
        let advert = V6::icmp(
            (self.mac, [0x33, 0x33, 0, 0, 0, 1]),
            (FLOAT_V6, ALL_NODES),
            (136, 0),
            [0x20, 0, 0, 0],
            &[FLOAT_V6.as_slice(), &option].concat(),
        );
        let eth0 = wire::open(&container(&self.name), "eth0");
        for frame in [Arp::request(&own, FLOAT_V4).frame(), advert.frame()] {
            wire::send(&eth0, &frame).unwrap();
        }
    }

    fn leave(&self) {
        self.run("ip addr del 10.0.0.100/24 dev eth0; ip addr del fd00:1::100/64 dev eth0");
    }
}

fn host_reaches(host: &Host, ip: &str) -> bool {
    host.netns.try_run(&format!("ping -c1 -W1 {ip}")).status.success()
}

/// A floating address moves to a container of the other host and back. Containers and hosts that
/// had the old MAC have the new MAC within a second.
#[test]
#[ignore = "needs root"]
fn a_floating_address_moves_between_hosts() {
    let cluster = Cluster::new(2);
    let [one, two] = [&cluster.hosts[0], &cluster.hosts[1]];
    one.overlay(
        "floating",
        "10.0.0.0/24",
        &["--subnet", "fd00:1::/64", "--opt", "anti_spoof=false"],
    );
    cluster.wait_network("floating");
    let routers =
        [Member::new(one, "floating", "10.0.0.2"), Member::new(two, "floating", "10.0.0.3")];
    let clients =
        [Member::new(one, "floating", "10.0.0.4"), Member::new(two, "floating", "10.0.0.5")];
    for client in &clients {
        client.host.wait_ping(&client.name, "10.0.0.2");
        client.host.wait_ping(&client.name, "10.0.0.3");
    }

    // The address was not announced: clients and hosts must ask for it.
    routers[0].run("ip addr add 10.0.0.100/24 dev eth0; ip addr add fd00:1::100/64 dev eth0 nodad");
    for client in &clients {
        for ip in ["10.0.0.100", "fd00:1::100"] {
            client.host.wait_ping(&client.name, ip);
            assert!(client.has_neighbour(ip, routers[0].mac), "{ip}");
        }
    }
    for host in [one, two] {
        wait_until(SOON, "the host to reach the address", || host_reaches(host, "10.0.0.100"));
        let rows = host.json(&["neigh", "show"]);
        let row = rows.as_array().unwrap().iter().find(|row| row["ip"] == "10.0.0.100").unwrap();
        assert_eq!(
            (row["kind"].as_str(), row["mac"].as_str()),
            (Some("learned"), Some("02:42:0a:00:00:02"))
        );
    }

    for (from, to) in [(0, 1), (1, 0)] {
        routers[from].leave();
        routers[to].take();
        for ip in ["10.0.0.100", "fd00:1::100"] {
            wait_until(AT_ONCE, "the clients to know the new MAC", || {
                clients.iter().all(|client| client.has_neighbour(ip, routers[to].mac))
            });
            for client in &clients {
                assert!(client.reaches(ip), "{ip} from {}", client.host.node);
            }
        }
        for host in [one, two] {
            assert!(host_reaches(host, "10.0.0.100"), "{}", host.node);
        }
        assert!(routers[from].reaches("10.0.0.100"), "the former owner");
    }
}

/// The hosts of a network without `anti_spoof=false` record no addresses from ARP.
#[test]
#[ignore = "needs root"]
fn an_address_does_not_float_with_anti_spoofing() {
    let cluster = Cluster::new(1);
    let one = &cluster.hosts[0];
    one.overlay("fixed", "10.0.0.0/24", &[]);
    let router = Member::new(one, "fixed", "10.0.0.2");
    let client = Member::new(one, "fixed", "10.0.0.4");
    one.wait_ping(&client.name, "10.0.0.2");
    router.run("ip addr add 10.0.0.100/24 dev eth0");
    assert!(!client.reaches("10.0.0.100"));
    assert!(!host_reaches(one, "10.0.0.100"));
    assert!(one.counter("from_container", "spoofed_arp") > 0);
    assert_eq!(one.counter("from_host", "neighbour_asked"), 0);
}

/// A container has all its addresses. Other containers and hosts reach it at each of them. No other
/// container can use them.
#[test]
#[ignore = "needs root"]
fn a_container_has_several_addresses() {
    let cluster = Cluster::new(2);
    let [one, two] = [&cluster.hosts[0], &cluster.hosts[1]];
    one.overlay("several", "10.0.0.0/24", &["--subnet", "fd00:1::/64"]);
    cluster.wait_network("several");
    let client = Member::new(two, "several", "10.0.0.5");
    let name = unique_name("server");
    let ips = ["10.0.0.2", "10.0.0.20", "fd00:1::20", "10.0.0.21", "fd00:1::21"];
    let options: Vec<&str> = ips.iter().flat_map(|ip| ["--ip", *ip]).collect();
    one.run_idle(&name, "several", &options);
    for ip in ips {
        two.wait_ping(&client.name, ip);
    }
    for ip in ["10.0.0.2", "10.0.0.20", "10.0.0.21"] {
        for host in [one, two] {
            wait_until(SOON, "the host to reach the container", || host_reaches(host, ip));
        }
        // The container also sends from each address.
        one.in_container(&name, &format!("ping -c1 -W9 -I {ip} 10.0.0.5"));
    }
    one.in_container(&name, "ping -c1 -W9 -I fd00:1::21 fd00:1::2");
    // By default the container sends from its primary address.
    let route = one.in_container(&name, "ip route get 10.0.0.5; ip -6 route get fd00:1::2");
    assert!(route.contains("src 10.0.0.2 ") && route.contains("src fd00:1::20 "), "{route}");
    let network = &one.json(&["network", "inspect", "several"])[0];
    let shown = network["Containers"].to_string();
    for words in ["10.0.0.2/24", "10.0.0.20/24", "fd00:1::21/64"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let line = two.refused(
        1,
        &["run", "--name", "x", "--network", "several", "--ip", "10.0.0.21", "--", "true"],
    );
    assert!(line.contains("10.0.0.21 is taken"), "{line}");
    one.ok(&["rm", "-f", &name]);
    let again = unique_name("again");
    wait_until(SOON, "the addresses to be free", || {
        let run = [
            "run",
            "-d",
            "--name",
            &again,
            "--network",
            "several",
            "--ip",
            "10.0.0.21",
            "--",
            "sleep",
            "infinity",
        ];
        two.culvert(&run).status.success()
    });
}

/// An additional address moves to another container while both run. A client of the first container
/// reaches the second container within a second.
#[test]
#[ignore = "needs root"]
fn an_additional_address_moves_between_containers() {
    let cluster = Cluster::new(2);
    let [one, two] = [&cluster.hosts[0], &cluster.hosts[1]];
    one.overlay("moving", "10.0.0.0/24", &["--subnet", "fd00:1::/64"]);
    cluster.wait_network("moving");
    let servers = [Member::new(one, "moving", "10.0.0.2"), Member::new(two, "moving", "10.0.0.3")];
    let clients = [Member::new(one, "moving", "10.0.0.4"), Member::new(two, "moving", "10.0.0.5")];
    let change = |server: &Member<'_>, verb: &str| {
        for ip in ["10.0.0.100", "fd00:1::100"] {
            server.host.ok(&["network", "address", verb, "moving", &server.name, ip]);
        }
    };
    change(&servers[0], "add");
    let shown = servers[0].run("ip addr show dev eth0");
    assert!(shown.contains("10.0.0.100/24") && shown.contains("fd00:1::100/64"), "{shown}");
    for client in &clients {
        for ip in ["10.0.0.100", "fd00:1::100"] {
            client.host.wait_ping(&client.name, ip);
            assert!(client.has_neighbour(ip, servers[0].mac));
        }
    }
    let line =
        two.refused(1, &["network", "address", "add", "moving", &servers[1].name, "10.0.0.100"]);
    assert!(line.contains("is taken by container"), "{line}");

    change(&servers[0], "rm");
    let shown = servers[0].run("ip addr show dev eth0");
    assert!(!shown.contains("10.0.0.100") && !shown.contains("fd00:1::100"), "{shown}");
    change(&servers[1], "add");
    for ip in ["10.0.0.100", "fd00:1::100"] {
        wait_until(AT_ONCE, "the clients to know the new MAC", || {
            clients.iter().all(|client| client.has_neighbour(ip, servers[1].mac))
        });
        for client in &clients {
            assert!(client.reaches(ip), "{ip} from {}", client.host.node);
        }
    }
    for host in [one, two] {
        wait_until(AT_ONCE, "the host to reach the address", || host_reaches(host, "10.0.0.100"));
    }
    // The agent does not remove an address that a user has added.
    servers[1].run("ip addr add 10.7.7.7/32 dev eth0");
    change(&servers[1], "rm");
    let shown = servers[1].run("ip addr show dev eth0");
    assert!(shown.contains("10.7.7.7/32") && !shown.contains("10.0.0.100"), "{shown}");
    let line =
        two.refused(1, &["network", "address", "rm", "moving", &servers[1].name, "10.0.0.3"]);
    assert!(line.contains("is the primary one"), "{line}");
}
