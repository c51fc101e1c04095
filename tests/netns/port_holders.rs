//! Published ports: the holder of a port, its release, and the reports about it.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Host, SOON, unique_name},
    external::External,
    netns::{programs, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    nat::World,
    ports::{any, echo, exchange, exchange_at, talk},
};

/// The error line if a port is published that is taken.
fn taken(host: &Host, publish: &str) -> String {
    let name = unique_name("no");
    let line = host.refused(1, &["run", "-d", "--name", &name, "-p", publish, "--", "true"]);
    assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} was left");
    line
}

/// Whether no process of the host can listen on a port.
fn held(host: &Host, port: u16) -> bool {
    [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, host.vtep()].into_iter().all(|ip| {
        let bound = sock::within(host.netns.path(), || TcpListener::bind((ip, port)));
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    })
}

/// A port belongs to one container or one process. A refusal names the holder, and the port is free
/// when the holder is gone.
#[test]
#[ignore = "needs root"]
fn a_port_is_taken_once() {
    let world = World::new(1);
    let host = world.host();
    let (first, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    for publish in ["8080:1", "127.0.0.1:8080:1", "8079-8081:1-3", "8080:1/udp"] {
        let line = taken(host, publish);
        assert!(line.contains("8080") && line.contains(&format!("'{first}'")), "{line}");
    }
    assert!(held(host, 8080));
    for port in [8079, 8081] {
        assert!(!held(host, port), "{port} was left held by a refused range");
    }
    let udp = sock::within(host.netns.path(), || std::net::UdpSocket::bind("0.0.0.0:8080"));
    assert!(udp.is_err());

    // A process listens on every address, and on 127.0.0.1 alone.
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    let process = format!("'{}' (pid {})", own.trim_end(), std::process::id());
    let wild = Server::tcp(host.netns.path(), any(9000), Behaviour::Echo);
    let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9001);
    let local = Server::tcp(host.netns.path(), local, Behaviour::Echo);
    let datagrams = Server::udp(host.netns.path(), any(9002));
    for publish in ["9000:80", "127.0.0.1:9000:80", "192.0.2.1:9000:80", "9001:80", "9002:80/udp"] {
        let line = taken(host, publish);
        assert!(line.contains(&process), "{publish}: {line}");
    }
    // The port is free on another address and for another protocol.
    world.run("bridge", &["-p", "192.0.2.1:9001:80", "-p", "9002:80"]);
    drop((wild, local, datagrams));
    let (second, _) = world.run("bridge", &["-p", "9000:80"]);

    // The port is free again when the container is gone: for a process and for a container.
    host.ok(&["rm", "-f", &second]);
    let again = Server::tcp(host.netns.path(), any(9000), Behaviour::Echo);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 9000, 10), "ok 10");
    assert_eq!(again.take_clients(), [External::IP.to_string()]);
    drop(again);
    host.ok(&["rm", "-f", &first]);
    world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
}

/// Existing and new connections work while no agent runs. The next agent holds the port again.
#[test]
#[ignore = "needs root"]
fn publishing_outlives_the_agent() {
    let mut world = World::new(1);
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let (vtep, netns) = (world.host().vtep(), container(&name));
    let _servers = [echo(&netns, "tcp", 80), echo(&netns, "udp", 80)];
    let open = |netns| sock::within(netns, || sock::open(SocketAddrV4::new(vtep, 8080), 0));
    let mut streams = [
        open(world.external.host.path()).unwrap(),
        open(world.cluster.hosts[0].netns.path()).unwrap(),
        open(&netns).unwrap(),
    ];
    let mut everything = |world: &World| {
        streams.iter_mut().for_each(talk);
        for proto in ["tcp", "udp"] {
            for netns in [world.external.host.path(), world.host().netns.path(), &netns] {
                assert_eq!(exchange_at(netns, proto, vtep, 8080, 1000), "ok 1000", "{proto}");
            }
            let outcome = exchange(&world.host().netns, proto, Ipv4Addr::LOCALHOST, 8080, 10);
            assert_eq!(outcome, "ok 10", "{proto}");
        }
    };
    everything(&world);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        world.cluster.hosts[0].stop_agent(signal);
        everything(&world);
        world.cluster.hosts[0].start_agent(&[]);
        world.cluster.hosts[0].wait_ready();
        everything(&world);
        wait_until(SOON, "the port to be held again", || held(world.host(), 8080));
        assert!(taken(world.host(), "8080:80").contains(&name));
    }
}

/// The host's settings for published ports: the program on its loopback device, and the device's
/// sysctls.
fn loopback(host: &Host) -> (bool, String) {
    let programs = programs(&host.netns, "lo", TcAttachType::Ingress);
    let switches = "sysctl -n net.ipv4.conf.lo.route_localnet net.ipv4.conf.lo.accept_local";
    (programs == ["from_loopback"], host.netns.run(switches).replace('\n', " "))
}

/// When a container is removed, its port is released: connections end, and new ones are refused.
/// With the last port, the program on the loopback device is removed, too.
#[test]
#[ignore = "needs root"]
fn the_last_port_leaves_nothing() {
    let world = World::new(1);
    let host = world.host();
    let none = (false, "0 0 ".to_owned());
    assert_eq!(loopback(host), none);
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let (other, _) = world.run("bridge", &["-p", "8081:80"]);
    assert_eq!(loopback(host), (true, "67 67 ".to_owned()));
    let server = echo(&container(&name), "tcp", 80);
    let to = SocketAddrV4::new(host.vtep(), 8080);
    let mut stream = sock::within(world.external.host.path(), || sock::open(to, 0)).unwrap();
    talk(&mut stream);
    assert_eq!(exchange(&host.netns, "tcp", host.vtep(), 8080, 10), "ok 10");
    drop(server);
    host.ok(&["rm", "-f", &name]);
    assert_eq!(loopback(host), (true, "67 67 ".to_owned()), "another container has a port");
    for proto in ["tcp", "udp"] {
        for netns in [&world.external.host, &host.netns] {
            assert_eq!(exchange(netns, proto, host.vtep(), 8080, 1), "refused", "{proto}");
        }
    }
    {
        use std::io::{Read as _, Write as _};
        stream.set_read_timeout(Some(sock::PATIENCE)).unwrap();
        let _ = stream.write_all(b"late");
        let answer = stream.read(&mut [0; 4]);
        assert!(!matches!(answer, Ok(1..)), "somebody answered for a container that is gone");
    }
    let own = Server::tcp(host.netns.path(), any(8080), Behaviour::Echo);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");
    assert_eq!(own.seen().len(), 1);
    host.ok(&["rm", "-f", &other]);
    wait_until(SOON, "the loopback device to be as before", || loopback(host) == none);
}

/// What the administrator has turned on stays on when the last port goes, and when a host is purged
/// whose agent was killed. What Culvert has turned on is turned off.
#[test]
#[ignore = "needs root"]
fn settings_of_the_host_stay_as_they_were() {
    let mut world = World::new(1);
    world.host().netns.run("sysctl -qw net.ipv4.conf.lo.route_localnet=1");
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    assert_eq!(loopback(world.host()), (true, "1 67 ".to_owned()));
    world.host().ok(&["rm", "-f", &name]);
    let before = (false, "1 0 ".to_owned());
    wait_until(SOON, "the loopback device as before", || loopback(world.host()) == before);

    world.run("bridge", &["-p", "8080:80"]);
    assert_eq!(loopback(world.host()), (true, "1 67 ".to_owned()));
    world.cluster.hosts[0].stop_agent(Signal::SIGKILL);
    let host = world.host();
    let state = host.dir().join("state").display().to_string();
    host.ok(&["purge", "--state-dir", &state, "--bpffs", &host.bpffs().display().to_string()]);
    assert_eq!(loopback(host), before);

    // Turned on while Culvert has it on.
    world.cluster.hosts[0].start_agent(&[]);
    world.cluster.hosts[0].wait_ready();
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    host.netns.run("sysctl -qw net.ipv4.conf.lo.accept_local=1");
    host.ok(&["rm", "-f", &name]);
    let now = (false, "1 1 ".to_owned());
    wait_until(SOON, "the loopback device without the program", || loopback(host) == now);
}

/// `nat ls` has a row for each flow, with its addresses before and after translation, and its
/// origin. Each filter shows the rows that match. `stats` counts the flows by state.
#[test]
#[ignore = "needs root"]
fn nat_ls_tells_the_flows() {
    let world = World::new(1);
    let host = world.host();
    let (web, web_ip) = world.run("bridge", &["-p", "8080:80", "-p", "8053:53/udp"]);
    let (db, db_ip) = world.run("bridge", &[]);
    let _servers = [echo(&container(&web), "tcp", 80), echo(&container(&web), "udp", 53)];
    let _far = Server::tcp(world.external.host.path(), any(443), Behaviour::Echo);
    let vtep = host.vtep();
    let published = SocketAddrV4::new(vtep, 8080);
    let beyond = SocketAddrV4::new(External::IP, 443);
    let open = |netns: &std::path::Path, to, port| {
        let mut stream = sock::within(netns, || sock::open(to, port)).unwrap();
        talk(&mut stream);
        stream
    };
    let _streams = [
        open(world.external.host.path(), published, 4001),
        open(host.netns.path(), published, 4002),
        open(&container(&db), published, 4003),
        open(&container(&db), beyond, 4004),
    ];
    let datagram = sock::udp(world.external.host.path(), SocketAddrV4::new(vtep, 8053), 4005, 10);
    assert_eq!(datagram, "ok 10");

    let list = |options: &[&str]| -> Vec<Value> {
        let rows = host.json(&[&["nat", "ls"], options].concat());
        rows.as_array().cloned().unwrap_or_default()
    };
    let all = list(&[]);
    assert_eq!(all.len(), 5, "{all:?}");
    let far = External::IP.to_string();
    let (gateway, vtep) = ("172.17.0.1".to_owned(), vtep.to_string());
    let (web_ip, db_ip) = (web_ip.to_string(), db_ip.to_string());
    for (port, kind, proto, container, from, [src, dst, nat_src, nat_dst], [to, nat_to]) in [
        (4001, "published", "tcp", &web, "external", [&far, &vtep, &far, &web_ip], [8080, 80]),
        (4002, "published", "tcp", &web, "host", [&vtep, &vtep, &gateway, &web_ip], [8080, 80]),
        (4003, "published", "tcp", &web, &db, [&db_ip, &vtep, &gateway, &web_ip], [8080, 80]),
        (4004, "masquerade", "tcp", &db, &db, [&db_ip, &far, &vtep, &far], [443, 443]),
        (4005, "published", "udp", &web, "external", [&far, &vtep, &far, &web_ip], [8053, 53]),
    ] {
        let row = all.iter().find(|row| row["src_port"] == port);
        let row = row.unwrap_or_else(|| unreachable!("no row of port {port}: {all:?}"));
        for (field, value) in [
            ("kind", kind),
            ("protocol", proto),
            ("container", container.as_str()),
            ("from", from),
            ("network", "bridge"),
            ("src", src.as_str()),
            ("dst", dst),
            ("nat_src", nat_src),
            ("nat_dst", nat_dst),
            ("state", if proto == "tcp" { "tcp_established" } else { "udp_stream" }),
        ] {
            assert_eq!(row[field], value, "{field}: {row}");
        }
        assert_eq!((&row["dst_port"], &row["nat_dst_port"]), (&to.into(), &nat_to.into()));
        assert!(row["orig_packets"].as_u64() > Some(0), "{row}");
        assert!(row["reply_bytes"].as_u64() > Some(0), "{row}");
    }
    let ports = |options: &[&str]| -> Vec<u64> {
        let mut ports: Vec<_> =
            list(options).iter().filter_map(|row| row["src_port"].as_u64()).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(&["--container", &web]), [4001, 4002, 4003, 4005]);
    assert_eq!(ports(&["--container", &db]), [4003, 4004]);
    assert_eq!(ports(&["--protocol", "udp"]), [4005]);
    assert_eq!(ports(&["--protocol", "icmp"]), [0; 0]);
    assert_eq!(ports(&["--address", &db_ip]), [4003, 4004]);
    assert_eq!(ports(&["--address", &gateway]), [4002, 4003]);
    assert_eq!(ports(&["--address", "203.0.113.1"]), [0; 0]);
    assert_eq!(ports(&["--container", &db, "--address", &far, "--protocol", "tcp"]), [4004]);
    let table = host.ok(&["nat", "ls", "--container", &web, "--protocol", "udp"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains(&format!("{far}:4005→{vtep}:8053")), "{table}");
    assert!(table.contains(&format!("{far}:4005→{web_ip}:53")), "{table}");
    wait_until(SOON, "stats to count the flows", || {
        host.counter("conntrack", "tcp_established") == 4
            && host.counter("conntrack", "udp_stream") == 1
    });
    // The flow of a closed connection has the state of a closed connection.
    assert_eq!(
        sock::tcp(world.external.host.path(), published, 4006, Use::HalfClose(1)),
        "ok \u{7}"
    );
    let row = list(&[]).into_iter().find(|row| row["src_port"] == 4006).unwrap();
    assert_eq!(row["state"], "tcp_time_wait", "{row}");
}
