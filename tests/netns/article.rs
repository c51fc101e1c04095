//! The experiments of the article that Culvert follows, in the article's order. docs/ARTICLE.md
//! describes the same experiments, and names the test of each.

use std::net::{Ipv4Addr, SocketAddrV4};

use culvert_tests::{
    cluster::{Host, SOON, unique_name},
    external::External,
    netns::{Underlay, wait_for, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};
use serde_json::Value;

use crate::nat::World;

/// The port of the article's web application.
const PORT: u16 = 5001;

fn at(ip: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip, port)
}

fn any(port: u16) -> SocketAddrV4 {
    at(Ipv4Addr::UNSPECIFIED, port)
}

/// Runs `culvert run -d` with these options only. Returns the name.
fn run(host: &Host, hint: &str, options: &[&str]) -> String {
    let name = unique_name(hint);
    let head = ["run", "-d", "--name", &name];
    host.ok(&[&head, options, &["--", "sleep", "infinity"]].concat());
    name
}

/// What a command prints in a container of any mode.
fn exec(host: &Host, name: &str, command: &[&str]) -> String {
    host.ok(&[&["exec", name, "--"], command].concat())
}

/// Names of the devices in an output of `ip -brief link` or `ip -brief address`.
fn devices(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.split([' ', '@']).next()).collect()
}

/// bridge: the default mode. Address, MAC and default route are the same as Docker's, without a
/// bridged interface or iptables.
#[test]
#[ignore = "needs root"]
fn bridge_is_the_default() {
    let world = World::new(1);
    let host = world.host();
    let web = run(host, "web", &[]);
    let address = exec(host, &web, &["ip", "address", "show", "eth0"]);
    for expected in ["mtu 1500", "link/ether 02:42:ac:11:00:02", "inet 172.17.0.2/16"] {
        assert!(address.contains(expected), "{expected}: {address}");
    }
    let routes = exec(host, &web, &["ip", "route"]);
    assert!(routes.contains("default via 172.17.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("172.17.0.0/16 dev eth0"), "{routes}");
    let network = &host.json(&["network", "inspect", "bridge"])[0];
    assert_eq!(network["Driver"], "bridge");
    assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "172.17.0.0/16");
    // The bridge with the gateway's address has no ports. The bridge with ports is down, and
    // forwards nothing.
    for port in host.netns.run("bridge link").lines() {
        assert!(port.contains(" master cvroom0 state disabled "), "{port}");
    }
    assert_eq!(host.netns.run("cat /proc/net/ip_tables_names 2>/dev/null || true"), "");
}

/// bridge: external packets have the host's address, as with Docker's MASQUERADE rule. tcpdump and
/// a server on the external host show it.
#[test]
#[ignore = "needs root"]
fn bridge_snat_as_an_external_host_sees_it() {
    let world = World::new(1);
    let host = world.host();
    let web = run(host, "web", &[]);
    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let dump = world.external.host.spawn("tcpdump", &["-nl", "-c", "2", "-i", "eth0", "icmp"]);
    wait_until(SOON, "tcpdump to listen", || dump.stderr().contains("listening"));
    exec(host, &web, &["ping", "-c1", "-W9", "198.51.100.9"]);
    let vtep = host.vtep();
    for expected in [
        format!("IP {vtep} > {}: ICMP echo request", External::IP),
        format!("IP {} > {vtep}: ICMP echo reply", External::IP),
    ] {
        wait_until(SOON, &expected, || dump.stdout().contains(&expected));
    }
    assert!(!dump.stdout().contains("172.17."), "{}", dump.stdout());
    let echo = sock::tcp(&container(&web), at(External::IP, 80), 0, Use::Echo(1000));
    assert_eq!(echo, "ok 1000");
    assert_eq!(server.take_clients(), [vtep.to_string()]);
    let flows = host.json(&["nat", "ls"]);
    let of_web = |kind: &str| {
        flows.as_array().is_some_and(|rows| {
            rows.iter().any(|row| row["container"] == web.as_str() && row["kind"] == kind)
        })
    };
    assert!(of_web("masquerade"), "{flows}");
}

/// `-p 5001:5001`: the port is reached from an external host, from another host, and on the host by
/// 127.0.0.1. No process listens on the port, unlike docker-proxy.
#[test]
#[ignore = "needs root"]
fn published_port_without_a_proxy() {
    let world = World::new(2);
    let (host, other) = (world.host(), &world.cluster.hosts[1]);
    let web = run(host, "web", &["-p", "5001:5001"]);
    let server = Server::tcp(&container(&web), any(PORT), Behaviour::Echo);
    for (from, to) in [
        (world.external.host.path(), host.vtep()),
        (other.netns.path(), host.vtep()),
        (host.netns.path(), Ipv4Addr::LOCALHOST),
        (host.netns.path(), host.vtep()),
    ] {
        let answer = sock::tcp(from, at(to, PORT), 0, Use::Echo(1000));
        assert_eq!(answer, "ok 1000", "{} to {to}", from.display());
    }
    let clients = server.take_clients();
    assert!(clients.contains(&External::IP.to_string()), "the real client: {clients:?}");
    assert!(clients.contains(&other.vtep().to_string()), "the real client: {clients:?}");
    assert_eq!(host.netns.run("ss -Hltn"), "", "nobody listens on the host");
    let row = &host.json(&["ps"])[0]["networks"][0]["ports"];
    assert_eq!(row, &serde_json::json!(["0.0.0.0:5001->5001/tcp"]));
}

/// host: the container sees the host's devices, and a port of the container is a port of the host.
#[test]
#[ignore = "needs root"]
fn host_mode_shares_the_hosts_devices() {
    let world = World::new(1);
    let host = world.host();
    let hostc1 = run(host, "hostc1", &["--network", "host"]);
    let inside = exec(host, &hostc1, &["ip", "-brief", "address"]);
    assert_eq!(inside, host.netns.run("ip -brief address").trim_end());
    assert!(inside.contains(&format!("{}/24", host.vtep())), "{inside}");
    let namespace = ["readlink", "/proc/self/ns/net"];
    let same = host.netns.run("readlink /proc/self/ns/net");
    assert_eq!(exec(host, &hostc1, &namespace), same.trim_end());
    // The article gives -p here. Docker ignores it with a warning.
    let refusal = ["run", "-d", "--name", "x", "--network", "host", "-p", "5001:5001", "true"];
    assert!(host.refused(1, &refusal).contains("-p does not go with '--network host'"));
}

/// container: both have one eth0, reach each other by 127.0.0.1, and cannot listen on the same
/// port.
#[test]
#[ignore = "needs root"]
fn container_mode_shares_eth0() {
    let world = World::new(1);
    let host = world.host();
    let hostcs1 = run(host, "hostcs1", &["-p", "5001:5001"]);
    let hostcs2 = run(host, "hostcs2", &["--network", &format!("container:{hostcs1}")]);
    let address = ["ip", "-brief", "address"];
    let first = exec(host, &hostcs1, &address);
    assert_eq!(first, exec(host, &hostcs2, &address));
    assert_eq!(devices(&first), ["lo", "eth0"]);
    let listen = "import http.server as h; \
                  h.HTTPServer(('', 5001), h.SimpleHTTPRequestHandler).serve_forever()";
    let _server = host.spawn_in_container(&hostcs1, &format!("python3 -c \"{listen}\""));
    let ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:5001/"];
    let asked = [&["exec", hostcs2.as_str(), "--"], &ask[..]].concat();
    wait_until(SOON, "the other one's web server on 127.0.0.1", || {
        host.culvert(&asked).stdout == b"200"
    });
    let clash = host.culvert(&["exec", &hostcs2, "--", "python3", "-c", listen]);
    let said = String::from_utf8_lossy(&clash.stderr).into_owned();
    assert!(!clash.status.success() && said.contains("Address already in use"), "{said}");
    // The namespace of the two containers is separate from the host's.
    assert!(!host.netns.run("ip -brief address").contains("172.17.0.2/"));
}

/// none: lo and nothing else.
#[test]
#[ignore = "needs root"]
fn none_mode_has_only_lo() {
    let world = World::new(1);
    let host = world.host();
    let hostn1 = run(host, "hostn1", &["--network", "none"]);
    let address = host.in_container(&hostn1, "ip -brief address");
    assert_eq!(devices(&address), ["lo"], "{address}");
    assert!(address.contains("127.0.0.1/8"), "{address}");
    assert_eq!(host.in_container(&hostn1, "ip route"), "");
    exec(host, &hostn1, &["ping", "-c1", "-W9", "127.0.0.1"]);
    let out = sock::tcp(&container(&hostn1), at(External::IP, 80), 0, Use::Echo(1));
    assert_eq!(out, "unreachable");
}

/// Two hosts, the article's overlay network, and a container of the network on each host. As in the
/// article, over2 on the second host is made first.
struct Over {
    world: World,
    id: String,
    over1: String,
    over2: String,
}

impl Over {
    fn new() -> Self {
        let world = World::new(2);
        let [one, two] = [&world.cluster.hosts[0], &world.cluster.hosts[1]];
        let create = ["network", "create", "-d", "overlay", "overlaynet1"];
        let id = one.ok(&[&create[..], &["--subnet", "10.0.0.0/24"]].concat());
        world.cluster.wait_network("overlaynet1");
        let over2 = run(two, "over2", &["--network", "overlaynet1"]);
        let over1 = run(one, "over1", &["--network", "overlaynet1"]);
        Self { world, id, over1, over2 }
    }

    fn one(&self) -> &Host {
        &self.world.cluster.hosts[0]
    }

    fn two(&self) -> &Host {
        &self.world.cluster.hosts[1]
    }
}

/// etcd is healthy, and has the network that one node made.
#[test]
#[ignore = "needs root"]
fn etcd_holds_the_network() {
    let over = Over::new();
    let health = over.one().netns.run("curl -s http://192.0.2.254:2379/health");
    assert!(health.contains("true"), "{health}");
    for host in [over.one(), over.two()] {
        let store = &host.json(&["status"])["store"];
        assert_eq!((&store["kind"], &store["healthy"]), (&"etcd".into(), &true.into()));
    }
    // This request goes to etcd's own HTTP interface. Keys and values are in base64.
    let range = "key=$(printf %s /culvert/v1/networks/overlaynet1 | base64); \
                 curl -s http://192.0.2.254:2379/v3/kv/range -d \"{\\\"key\\\":\\\"$key\\\"}\" | \
                 python3 -c 'import json, sys, base64; \
                 print(base64.b64decode(json.load(sys.stdin)[\"kvs\"][0][\"value\"]).decode())'";
    let record: Value = serde_json::from_str(&over.two().netns.run(range)).unwrap();
    assert_eq!(record["name"], "overlaynet1");
    assert_eq!(record["id"], over.id.as_str());
    assert_eq!(record["driver"], "overlay");
    assert_eq!(record["subnets"][0]["subnet"], "10.0.0.0/24");
}

/// `network inspect` shows the same on both nodes.
#[test]
#[ignore = "needs root"]
fn inspect_is_the_same_on_both_nodes() {
    let over = Over::new();
    let inspect = |host: &Host| host.json(&["network", "inspect", "overlaynet1"]);
    let complete = |host: &Host| {
        wait_for(SOON, "both containers in inspect", || {
            let said = inspect(host);
            let all = said[0]["Containers"].as_object().is_some_and(|map| map.len() == 2);
            (all && said[0]["Peers"].as_array().map(Vec::len) == Some(2)).then_some(said)
        })
    };
    let network = complete(over.one());
    assert_eq!(network, complete(over.two()));
    let network = &network[0];
    for (field, expected) in
        [("Name", "overlaynet1"), ("Id", &over.id), ("Scope", "global"), ("Driver", "overlay")]
    {
        assert_eq!(network[field], expected, "{network}");
    }
    assert_eq!(network["IPAM"]["Config"][0]["Gateway"], "10.0.0.1");
    let rows = network["Containers"].as_object().unwrap();
    let ip = |name: &str| {
        rows.values().find(|row| row["Name"] == name).map(|row| row["IPv4Address"].clone())
    };
    assert_eq!(ip(&over.over2), Some("10.0.0.2/24".into()));
    assert_eq!(ip(&over.over1), Some("10.0.0.3/24".into()));
}

/// The container has one interface with the overlay's MTU, and one default route through it. Docker
/// adds a second interface for external access.
#[test]
#[ignore = "needs root"]
fn overlay_container_has_one_interface_and_its_routes() {
    let over = Over::new();
    let links = exec(over.two(), &over.over2, &["ip", "-brief", "link"]);
    assert_eq!(devices(&links), ["lo", "eth0"]);
    let address = exec(over.two(), &over.over2, &["ip", "address", "show", "eth0"]);
    for expected in ["mtu 1450", "link/ether 02:42:0a:00:00:02", "inet 10.0.0.2/24"] {
        assert!(address.contains(expected), "{expected}: {address}");
    }
    let routes = exec(over.two(), &over.over2, &["ip", "route"]);
    let routes: Vec<_> = routes.lines().map(str::trim_end).collect();
    assert_eq!(
        routes,
        [
            "default via 10.0.0.1 dev eth0",
            "10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.2"
        ]
    );
}

/// The article's containers do not reach each other, because the FDB of the vxlan device lacks the
/// other container's MAC. Culvert's containers do: each host's FDB has the MAC from the store.
#[test]
#[ignore = "needs root"]
fn overlay_containers_reach_each_other() {
    let over = Over::new();
    over.one().wait_ping(&over.over1, "10.0.0.2");
    over.two().wait_ping(&over.over2, "10.0.0.3");
    for (host, mac, vtep) in [
        (over.one(), "02:42:0a:00:00:02", Underlay::address(1)),
        (over.two(), "02:42:0a:00:00:03", Underlay::address(0)),
    ] {
        let fdb = host.json(&["fdb", "show"]);
        let row = fdb.as_array().and_then(|rows| rows.iter().find(|row| row["mac"] == mac));
        let row = row.unwrap();
        assert_eq!((&row["kind"], &row["dst"]), (&"static".into(), &vtep.to_string().into()));
        // The kernel's vxlan device exists for GRO, and carries no packet.
        let vxlan: Value =
            serde_json::from_str(&host.netns.run("ip -s -j link show type vxlan")).unwrap();
        assert_eq!(vxlan.as_array().map(Vec::len), Some(1), "{vxlan}");
        for direction in ["rx", "tx"] {
            assert_eq!(vxlan[0]["stats64"][direction]["packets"], 0, "{vxlan}");
        }
    }
}

/// External packets of an overlay container are masqueraded like those of a bridge container.
#[test]
#[ignore = "needs root"]
fn overlay_container_reaches_an_external_host() {
    let over = Over::new();
    let server = Server::tcp(over.world.external.host.path(), any(80), Behaviour::Echo);
    for (host, name) in [(over.one(), &over.over1), (over.two(), &over.over2)] {
        let echo = sock::tcp(&container(name), at(External::IP, 80), 0, Use::Echo(100_000));
        assert_eq!(echo, "ok 100000", "{name}");
        assert_eq!(server.take_clients(), [host.vtep().to_string()]);
    }
}

/// The article restarts a node and cannot start its container again; here an agent's restart has no
/// effect on the container.
#[test]
#[ignore = "needs root"]
fn a_nodes_restart_keeps_its_containers() {
    let mut over = Over::new();
    over.one().wait_ping(&over.over1, "10.0.0.2");
    over.world.cluster.hosts[0].stop_agent(nix::sys::signal::Signal::SIGKILL);
    over.world.cluster.hosts[0].start_agent(&[]);
    over.world.cluster.hosts[0].wait_ready();
    over.one().wait_ping(&over.over1, "10.0.0.2");
    let again = run(over.one(), "over3", &["--network", "overlaynet1"]);
    over.one().wait_ping(&again, "10.0.0.2");
}

/// The six paths of the article's table carry data unharmed; `cargo xtask article` measures
/// them.
#[test]
#[ignore = "needs root"]
fn six_paths_of_the_table() {
    const LEN: usize = 4_000_000;
    let over = Over::new();
    let (one, two) = (over.one(), over.two());
    over.one().wait_ping(&over.over1, "10.0.0.2");
    let near = run(one, "near", &[]);
    let far = run(two, "far", &["-p", "5001:5001"]);
    let in_host = run(two, "hostc1", &["--network", "host"]);
    let count = |netns: &std::path::Path, port| Server::tcp(netns, any(port), Behaviour::Count);
    let _servers = [
        count(&container(&over.over2), PORT),
        count(&container(&far), PORT),
        count(&container(&near), PORT),
        count(two.netns.path(), 5002),
    ];
    // A container in host mode listens in the host's namespace.
    let listening = exec(two, &in_host, &["ss", "-Hltn"]);
    assert!(listening.contains(":5002"), "{listening}");
    let near_ip: Ipv4Addr = one.ip(&near, "bridge").parse().unwrap();
    for (row, from, to) in [
        ("A", container(&over.over1), at(Ipv4Addr::new(10, 0, 0, 2), PORT)),
        ("B", container(&near), at(two.vtep(), PORT)),
        ("C", one.netns.path().to_owned(), at(two.vtep(), 5002)),
        ("D", one.netns.path().to_owned(), at(two.vtep(), PORT)),
        ("E", one.netns.path().to_owned(), at(near_ip, PORT)),
        ("F", one.netns.path().to_owned(), at(two.vtep(), 5002)),
    ] {
        let said = sock::tcp(&from, to, 0, Use::HalfClose(LEN));
        assert_eq!(said, format!("ok {LEN}"), "row {row}");
    }
}
