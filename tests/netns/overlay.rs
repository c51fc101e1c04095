//! Containers of one overlay network on different hosts.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Underlay, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};

use crate::device;

/// A network with one container on each of the first two hosts.
pub(crate) struct Pair {
    pub(crate) cluster: Cluster,
    pub(crate) over1: String,
    pub(crate) over2: String,
}

impl Pair {
    pub(crate) fn new(hosts: u8, options: &[&str]) -> Self {
        let cluster = Cluster::new(hosts);
        cluster.hosts[0].overlay("overlaynet1", "10.0.0.0/24", options);
        cluster.wait_network("overlaynet1");
        let pair = Self { over1: unique_name("over1"), over2: unique_name("over2"), cluster };
        pair.one().run_idle(&pair.over1, "overlaynet1", &["--ip", "10.0.0.2"]);
        pair.two().run_idle(&pair.over2, "overlaynet1", &["--ip", "10.0.0.3"]);
        pair.one().wait_ping(&pair.over1, "10.0.0.3");
        pair
    }

    pub(crate) fn one(&self) -> &Host {
        &self.cluster.hosts[0]
    }

    pub(crate) fn two(&self) -> &Host {
        &self.cluster.hosts[1]
    }
}

/// The article's overlay chapter: a network that was made on one host is seen on the other host,
/// and containers on both hosts reach each other.
#[test]
#[ignore = "needs root"]
fn two_hosts_one_overlay() {
    let cluster = Cluster::new(2);
    let (one, two) = (&cluster.hosts[0], &cluster.hosts[1]);
    let (over1, over2) = (unique_name("over1"), unique_name("over2"));
    let create = ["network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "overlaynet1"];
    let id = one.ok(&create);
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    cluster.wait_network("overlaynet1");

    two.run_idle(&over2, "overlaynet1", &[]);
    one.run_idle(&over1, "overlaynet1", &[]);
    assert_eq!(two.ip(&over2, "overlaynet1"), "10.0.0.2");
    assert_eq!(one.ip(&over1, "overlaynet1"), "10.0.0.3");
    one.wait_ping(&over1, "10.0.0.2");
    two.wait_ping(&over2, "10.0.0.3");

    let addresses = two.in_container(&over2, "ip addr show eth0");
    for expected in [
        "mtu 1450",
        "link/ether 02:42:0a:00:00:02",
        "inet 10.0.0.2/24",
        "inet6 fe80::42:aff:fe00:2/64",
    ] {
        assert!(addresses.contains(expected), "{expected}: {addresses}");
    }
    let routes = two.in_container(&over2, "ip route");
    assert!(routes.contains("10.0.0.0/24 dev eth0"), "{routes}");

    // Both hosts show the same network.
    for host in [one, two] {
        let network = &host.json(&["network", "inspect", "overlaynet1"])[0];
        assert_eq!(network["Id"], id.as_str());
        assert_eq!(network["Driver"], "overlay");
        assert_eq!(network["Scope"], "global");
        assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "10.0.0.0/24");
        wait_until(SOON, "both containers in inspect", || {
            let network = &host.json(&["network", "inspect", "overlaynet1"])[0];
            network["Containers"].as_object().is_some_and(|map| map.len() == 2)
        });
    }

    // The FDB has the entries of the store, and no learned ones.
    let fdb = one.json(&["fdb", "show"]);
    let kind = |mac: &str| {
        let rows = fdb.as_array().cloned().unwrap_or_default();
        rows.iter().find(|row| row["mac"] == mac).map(|row| row["kind"].clone())
    };
    assert_eq!(kind("02:42:0a:00:00:03").as_ref(), Some(&"local".into()), "{fdb}");
    assert_eq!(kind("02:42:0a:00:00:02").as_ref(), Some(&"static".into()), "{fdb}");
    assert_eq!(fdb.as_array().map(Vec::len), Some(2), "{fdb}");

    // A web server on each host is reached from the other host.
    for (server, name, client, client_name, ip) in
        [(one, &over1, two, &over2, "10.0.0.3"), (two, &over2, one, &over1, "10.0.0.2")]
    {
        let _server = server
            .spawn_in_container(name, "python3 -m http.server 80 --directory /proc/self/fdinfo");
        let fetch = format!(
            "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{ip}/\").status)'"
        );
        wait_until(SOON, "HTTP over the overlay", || {
            let output = client.try_in_container(client_name, &fetch);
            String::from_utf8_lossy(&output.stdout).trim() == "200"
        });
    }
}

/// A third host joins and leaves without any change on the other two.
#[test]
#[ignore = "needs root"]
fn a_third_host_joins_and_leaves() {
    let mut pair = Pair::new(3, &[]);
    let over3 = unique_name("over3");
    let three = &pair.cluster.hosts[2];
    three.run_idle(&over3, "overlaynet1", &["--ip", "10.0.0.4"]);
    three.wait_ping(&over3, "10.0.0.2");
    three.wait_ping(&over3, "10.0.0.3");
    pair.two().wait_ping(&pair.over2, "10.0.0.4");

    pair.cluster.hosts[2].ok(&["purge"]);
    wait_until(SOON, "the others to forget the third host", || {
        let fdb = pair.one().json(&["fdb", "show"]);
        let vteps = pair.one().json(&["vtep", "ls"]);
        !fdb.to_string().contains("02:42:0a:00:00:04") && !vteps.to_string().contains("192.0.2.3")
    });
    pair.cluster.hosts[2].stop_agent(nix::sys::signal::Signal::SIGTERM);
    pair.one().in_container(&pair.over1, "ping -c1 -W9 10.0.0.3");
}

/// A packet as large as the MTU passes. The container's own stack refuses one byte more; if the
/// container's MTU was raised, ICMP reports it.
#[test]
#[ignore = "needs root"]
fn mtu_is_told_not_silently_enforced() {
    let pair = Pair::new(2, &[]);
    let (one, over1) = (pair.one(), &pair.over1);
    one.in_container(over1, "ping -c1 -W9 -M do -s 1422 10.0.0.3");
    one.in_container(over1, "ip link set eth0 mtu 1500");
    let output = one.try_in_container(over1, "ping -c2 -i0.2 -W9 -M do -s 1423 10.0.0.3");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("mtu = 1450") || text.contains("mtu=1450"), "{text}");
    assert!(one.counter("from_container", "packet_too_big") >= 1);
    assert!(one.counter("from_container", "icmp_too_big_sent") >= 1);
    // Without DF the container's stack learns to fragment, and gets through.
    wait_until(SOON, "a fragmented ping", || {
        one.try_in_container(over1, "ping -c1 -W1 -M dont -s 4000 10.0.0.3").status.success()
    });
}

/// A host with jumbo frames and one without: each uses the smaller MTU of both ends. The containers are
/// told by ICMP, nothing is lost without a word, and `status` on both hosts names the other one.
#[test]
#[ignore = "needs root"]
fn hosts_with_unlike_mtus_use_the_smaller_one() {
    let mut cluster = Cluster::without_agents(2, 1500);
    // The switch drops what is too long for the second host, as a real one does.
    cluster.switch.run("ip link set p0 mtu 9000");
    cluster.hosts[0].netns.run(&format!("ip link set {} mtu 9000", Underlay::UPLINK));
    for host in &mut cluster.hosts {
        host.start_agent(&[]);
    }
    for host in &mut cluster.hosts {
        host.wait_ready();
    }
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    one.overlay("net", "10.0.0.0/24", &["--mtu", "8950"]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("jumbo"), unique_name("plain"));
    one.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    two.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    one.wait_ping(&first, "10.0.0.3");

    for (host, other, theirs, ours) in [(one, two, 1500, 9000), (two, one, 9000, 1500)] {
        let line = format!(
            "VTEP {}: its MTU is {theirs} bytes, and that of the path from here {ours} bytes: \
             packets over 1450 bytes do not pass",
            other.vtep()
        );
        wait_until(SOON, &format!("{line:?} in the status of {}", host.node), || {
            host.json(&["status"])["problems"].to_string().contains(&line)
        });
    }
    for (host, name, ip) in [(one, &first, "10.0.0.3"), (two, &second, "10.0.0.2")] {
        let mtu = host.in_container(name, "ip link show eth0");
        assert!(mtu.contains("mtu 8950"), "{mtu}");
        host.in_container(name, &format!("ping -c1 -W2 -M do -s 1422 {ip}"));
        let output = host.try_in_container(name, &format!("ping -c2 -i0.2 -W1 -M do -s 1423 {ip}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains("mtu = 1450") || text.contains("mtu=1450"), "{text}");
        for reason in ["packet_too_big", "icmp_too_big_sent"] {
            assert!(host.counter("from_container", reason) >= 1, "{}: {reason}", host.node);
        }
        // What a container has learnt must not help the connections below.
        host.in_container(name, "ip route flush cache");
    }
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 80);
    for offload in ["on", "off"] {
        for (host, name) in [(one, &first), (two, &second)] {
            host.in_container(name, &format!("ethtool -K eth0 tso {offload} gso {offload}"));
        }
        for (from, to, ip) in
            [(&first, &second, [10_u8, 0, 0, 3]), (&second, &first, [10, 0, 0, 2])]
        {
            let _server = Server::tcp(&container(to), any, Behaviour::Echo);
            let at = SocketAddrV4::new(ip.into(), 80);
            let answer = sock::tcp(&container(from), at, 0, Use::Echo(1 << 20));
            assert_eq!(answer, "ok 1048576", "{from} to {to}, offload {offload}");
        }
    }
}

/// Bytes arrive as they were sent, in both directions, over TCP and UDP, with GSO frames and
/// without GSO.
#[test]
#[ignore = "needs root"]
fn bulk_data_arrives_intact() {
    let pair = Pair::new(2, &[]);
    let receive = "timeout 30 python3 -c 'import socket,hashlib; l=socket.create_server((\"\",9000)); \
        print(\"up\",flush=True); c,_=l.accept(); h=hashlib.sha256(); n=0\nwhile True:\n \
        b=c.recv(1<<20)\n if not b: break\n h.update(b); n+=len(b)\nprint(n,h.hexdigest())'";
    let send = |ip: &str| {
        format!(
            "timeout 30 python3 -c 'import socket,hashlib,random; random.seed(7); d=random.randbytes(1<<20); \
             s=socket.create_connection((\"{ip}\",9000)); h=hashlib.sha256()\nfor i in range(32):\n \
             s.sendall(d); h.update(d)\ns.close(); print(32<<20,h.hexdigest())'"
        )
    };
    for offload in ["on", "off"] {
        let features = format!("ethtool -K eth0 tso {offload} gso {offload} gro {offload}");
        pair.one().in_container(&pair.over1, &features);
        pair.two().in_container(&pair.over2, &features);
        for (server, server_name, ip, client, client_name) in [
            (pair.two(), &pair.over2, "10.0.0.3", pair.one(), &pair.over1),
            (pair.one(), &pair.over1, "10.0.0.2", pair.two(), &pair.over2),
        ] {
            let netns = format!("--net=/run/netns/{server_name}");
            let mut command = std::process::Command::new("nsenter");
            command.args([&netns, "sh", "-c", receive]);
            let mut receiver = culvert_tests::netns::Process::spawn(command);
            wait_until(SOON, "the receiver to listen", || receiver.stdout().starts_with("up"));
            let sent = client.in_container(client_name, &send(ip));
            receiver.wait(SOON);
            let received = receiver.stdout();
            assert_eq!(received.lines().last(), Some(sent.trim()), "offload {offload}");
            let _ = server;
        }
    }
}

/// IPv6 subnets: addresses, neighbour discovery, link-local addresses, and both families together.
#[test]
#[ignore = "needs root"]
fn ipv6_over_the_overlay() {
    let pair = Pair::new(2, &["--subnet", "fd00:10::/64"]);
    pair.one().in_container(&pair.over1, "ip -6 addr show eth0 | grep -q fd00:10::");
    let ip6 = |host: &Host, name: &str| {
        host.in_container(
            name,
            "ip -6 -o addr show eth0 scope global | awk '{print $4}' | cut -d/ -f1",
        )
        .trim()
        .to_owned()
    };
    let (first, second) = (ip6(pair.one(), &pair.over1), ip6(pair.two(), &pair.over2));
    assert_ne!(first, second);
    pair.one().wait_ping(&pair.over1, &second);
    pair.two().wait_ping(&pair.over2, &first);
    pair.one().in_container(&pair.over1, "ping -c1 -W2 fe80::42:aff:fe00:3%eth0");
    assert!(pair.one().counter("from_container", "nd_reply") >= 1);
}

/// Requests for addresses in the neighbour map never cross the tunnel; broadcast and multicast
/// reach every container of the network, and no other.
#[test]
#[ignore = "needs root"]
fn arp_is_suppressed_and_broadcast_is_not() {
    let pair = Pair::new(3, &[]);
    let three = &pair.cluster.hosts[2];
    let over3 = unique_name("over3");
    three.overlay("other", "10.1.0.0/24", &[]);
    pair.cluster.wait_network("other");
    three.run_idle(&over3, "other", &[]);

    // The container on the other host would see a request that crossed the tunnel.
    let mut watch = pair.two().spawn_in_container(
        &pair.over2,
        "tcpdump -l -n -i eth0 arp and ether src 02:42:0a:00:00:02",
    );
    wait_until(SOON, "tcpdump to listen", || watch.stderr().contains("listening on"));
    pair.one().in_container(&pair.over1, "ip neigh flush dev eth0; ping -c1 -W2 10.0.0.3");
    watch.stop(nix::sys::signal::Signal::SIGINT, SOON);
    assert_eq!(watch.stdout().trim(), "", "ARP crossed the tunnel");
    assert!(pair.one().counter("from_container", "arp_reply") >= 1);

    let received = pair.two().counter("from_underlay", "flood");
    pair.one().try_in_container(&pair.over1, "ping -b -c1 -W1 10.0.0.255");
    pair.one().try_in_container(&pair.over1, "ping -c1 -W1 -I eth0 224.0.0.1");
    wait_until(SOON, "broadcast and multicast on the second host", || {
        pair.two().counter("from_underlay", "flood") >= received + 2
    });
    // Head-end replication sends only to the VTEPs with endpoints in the VNI.
    assert_eq!(three.counter("from_underlay", "unknown_vni"), 0);
    assert_eq!(three.counter("from_underlay", "flood"), 0);
}

/// A container sends with its own addresses only.
#[test]
#[ignore = "needs root"]
fn spoofed_frames_go_nowhere() {
    let pair = Pair::new(2, &[]);
    let one = pair.one();
    let send = |frame: &str| {
        let sent = one.try_in_container(
            &pair.over1,
            &format!(
                "python3 -c 'import socket; s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); \
                 s.bind((\"eth0\",0)); s.send(bytes.fromhex(\"{frame}\"))'"
            ),
        );
        // On a netkit device the sender gets an error at once if the frame is dropped.
        let errors = String::from_utf8_lossy(&sent.stderr);
        let told = device::told(one) == "netkit" && errors.contains("No buffer space available");
        assert!(sent.status.success() || told, "{errors}");
    };
    let delivered = pair.two().counter("from_underlay", "deliver");
    let payload = "00".repeat(26);
    for (reason, frame) in [
        ("spoofed_mac", format!("02420a000003 0242deadbeef 0800 4500002e00000000 4011 0000 0a000002 0a000003{payload}")),
        ("spoofed_ip", format!("02420a000003 02420a000002 0800 4500002e00000000 4011 0000 0a000063 0a000003{payload}")),
        ("spoofed_arp", "ffffffffffff 02420a000002 0806 0001080006040002 02420a000002 0a000001 ffffffffffff 0a000003".to_owned()),
        ("vlan_tagged", format!("02420a000003 02420a000002 81000001 0800{payload}")),
        ("malformed", "02420a000003 02420a000002 0800 4500".to_owned()),
    ] {
        let before = one.counter("from_container", reason);
        send(&frame.replace(' ', ""));
        wait_until(SOON, reason, || one.counter("from_container", reason) == before + 1);
    }
    assert_eq!(pair.two().counter("from_underlay", "deliver"), delivered);
}

/// Forged VXLAN, from a container or from a host that is not a VTEP of the network, is not
/// accepted.
#[test]
#[ignore = "needs root"]
fn forged_vxlan_is_refused() {
    let pair = Pair::new(2, &[]);
    let stranger = pair.cluster.plain_host(8);
    let inner = "02420a000003 02420a000002 0800 4500001c00000000 4001 0000 0a000002 0a000003 0800f7ff00000000";
    let script = |vni: u32| {
        format!(
            "python3 -c 'import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); \
             s.sendto(bytes.fromhex(\"08000000{vni:06x}00{}\"),(\"192.0.2.2\",4789))'",
            inner.replace(' ', "")
        )
    };
    let delivered = pair.two().counter("from_underlay", "deliver");
    stranger.run(&script(256));
    wait_until(SOON, "the stranger's VXLAN to be dropped", || {
        pair.two().counter("from_underlay", "unknown_vtep") == 1
    });
    // The sender is a known VTEP, but the VNI does not exist.
    pair.one().netns.run(&script(999));
    wait_until(SOON, "an unknown VNI to be dropped", || {
        pair.two().counter("from_underlay", "unknown_vni") == 1
    });
    assert_eq!(pair.two().counter("from_underlay", "deliver"), delivered);
}

/// Networks are isolated, even with the same subnet and the same addresses.
#[test]
#[ignore = "needs root"]
fn overlapping_networks_never_meet() {
    let cluster = Cluster::new(2);
    for network in ["red", "blue"] {
        cluster.hosts[0].overlay(network, "10.9.0.0/24", &["--opt", "allow_overlap=true"]);
        cluster.wait_network(network);
    }
    let name = |network: &str, host: usize| unique_name(&format!("{network}{host}"));
    let names: Vec<[String; 2]> =
        ["red", "blue"].iter().map(|network| [name(network, 1), name(network, 2)]).collect();
    for (network, names) in ["red", "blue"].iter().zip(&names) {
        cluster.hosts[0].run_idle(&names[0], network, &["--ip", "10.9.0.2"]);
        cluster.hosts[1].run_idle(&names[1], network, &["--ip", "10.9.0.3"]);
    }
    let mut servers = Vec::new();
    for (network, names) in ["red", "blue"].iter().zip(&names) {
        cluster.hosts[0].wait_ping(&names[0], "10.9.0.3");
        // Only the server in the client's own network answers.
        let serve = format!(
            "python3 -c 'import socket; l=socket.create_server((\"\",7)); \
             \nwhile True:\n c,_=l.accept(); c.sendall(b\"{network}\"); c.close()'"
        );
        servers.push(cluster.hosts[1].spawn_in_container(&names[1], &serve));
    }
    for (network, names) in ["red", "blue"].iter().zip(&names) {
        let ask = "python3 -c 'import socket; print(socket.create_connection((\"10.9.0.3\",7),5).recv(9).decode())'";
        wait_until(SOON, "an answer of the own network", || {
            let output = cluster.hosts[0].try_in_container(&names[0], ask);
            let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert!(answer.is_empty() || answer == *network, "{network} heard {answer}");
            answer == *network
        });
    }
    // Without the option on both networks, the second one is refused.
    let line = cluster.hosts[0]
        .refused(1, &["network", "create", "-d", "overlay", "--subnet", "10.9.0.0/25", "green"]);
    assert!(line.contains("green") || line.contains("10.9.0.0/25"), "{line}");
}

/// Containers on one host reach each other without a frame on the underlay.
#[test]
#[ignore = "needs root"]
fn same_host_stays_on_the_host() {
    let pair = Pair::new(2, &[]);
    let over4 = unique_name("over4");
    pair.one().run_idle(&over4, "overlaynet1", &["--ip", "10.0.0.9"]);
    let sent = pair.one().counter("from_container", "encap");
    pair.one().in_container(&pair.over1, "ping -c3 -i0.2 -W1 10.0.0.9");
    assert_eq!(pair.one().counter("from_container", "encap"), sent);
    assert!(pair.one().counter("from_container", "deliver") >= 6);
}

/// A plain kernel vxlan device, added by `vtep add`, exchanges traffic in both directions with a
/// learning network. The hosts find each other by learning alone.
#[test]
#[ignore = "needs root"]
fn kernel_vxlan_interoperates_by_learning() {
    let pair = Pair::new(2, &["--learning"]);
    let plain = pair.cluster.plain_host(5);
    plain.run(&format!(
        "ip link add vx0 type vxlan id 256 dstport 4789 local 192.0.2.6 dev {up}; \
         ip link set vx0 mtu 1450 up; ip addr add 10.0.0.50/24 dev vx0; \
         bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.1; \
         bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.2",
        up = Underlay::UPLINK
    ));
    // The device's frames are dropped until `vtep add`.
    assert!(!plain.succeeds("ping -c1 -W1 10.0.0.2"));
    assert!(pair.one().counter("from_underlay", "unknown_vtep") >= 1);
    pair.one().ok(&["vtep", "add", "192.0.2.6", "--network", "overlaynet1"]);
    wait_until(SOON, "the plain host to reach both", || {
        plain.succeeds("ping -c1 -W1 10.0.0.2") && plain.succeeds("ping -c1 -W1 10.0.0.3")
    });
    pair.one().wait_ping(&pair.over1, "10.0.0.50");
    pair.two().wait_ping(&pair.over2, "10.0.0.50");
    let fdb = pair.one().json(&["fdb", "show"]);
    let learned = fdb
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["kind"] == "learned")
        .cloned()
        .unwrap_or_default();
    assert_eq!(learned["dst"], "192.0.2.6", "{fdb}");
    assert!(learned["age_s"].as_u64().is_some_and(|age| age < 300), "{fdb}");

    pair.one().ok(&["vtep", "rm", "192.0.2.6", "--network", "overlaynet1"]);
    wait_until(SOON, "the plain host to be cut off", || !plain.succeeds("ping -c1 -W1 10.0.0.2"));
}

/// A learned entry ages.
#[test]
#[ignore = "needs root"]
fn learned_entries_age() {
    let mut cluster = Cluster::without_agents(1, 1500);
    cluster.hosts[0].start_agent(&["--ageing", "2"]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &["--learning"]);
    let name = unique_name("over1");
    host.run_idle(&name, "net", &["--ip", "10.0.0.2"]);
    host.ok(&["vtep", "add", "192.0.2.6", "--network", "net"]);
    let plain = cluster.plain_host(5);
    plain.run(&format!(
        "ip link add vx0 type vxlan id 256 dstport 4789 local 192.0.2.6 dev {}; \
         ip link set vx0 mtu 1450 up; ip addr add 10.0.0.50/24 dev vx0; \
         bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.1",
        Underlay::UPLINK
    ));
    wait_until(SOON, "the plain host to get through", || plain.succeeds("ping -c1 -W1 10.0.0.2"));
    assert!(host.json(&["fdb", "show"]).to_string().contains("learned"));
    plain.run("ip link set vx0 down");
    wait_until(Duration::from_secs(30), "the learned entry to go", || {
        !host.json(&["fdb", "show"]).to_string().contains("learned")
    });
}
