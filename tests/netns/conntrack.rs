//! A full conntrack table: flows that continue, flows that are evicted, and flows that expire.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use culvert_common::abi::DEFAULT_FLOWS;
use culvert_tests::{
    chaos::rounds,
    cluster::SOON,
    external::External,
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, Server, container},
};
use nix::sys::signal::Signal;

use crate::{
    nat::World,
    ports::{any, echo, talk},
};

/// Sends a datagram to each of `count` ports. No port answers.
fn flood(netns: &std::path::Path, first: u16, count: u16) {
    sock::within(netns, || {
        for port in first..first + count {
            // Each datagram has its own socket: an ICMP error does not affect the next datagram.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(b"flood", SocketAddrV4::new(External::IP, port));
        }
    });
}

/// A container that floods a small table breaks no connection and prevents none. This holds for its
/// own connections and for another container's, masqueraded or to a published port. The evicted
/// flows are counted.
#[test]
#[ignore = "needs root"]
fn a_flood_costs_no_connection() {
    let mut world = World::with_agent(&["--conntrack-max", "64"]);
    let host = world.host();
    assert_eq!(host.json(&["status"])["conntrack"]["max"], 64);
    let (flooder, _) = world.run("bridge", &[]);
    let (victim, _) = world.run("bridge", &["-p", "8080:80"]);
    let _far = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let _published = echo(&container(&victim), "tcp", 80);
    let beyond = SocketAddrV4::new(External::IP, 80);
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let open = |netns: &std::path::Path, to| sock::within(netns, || sock::open(to, 0)).unwrap();
    let mut streams = [
        open(&container(&flooder), beyond),
        open(&container(&victim), beyond),
        open(world.external.host.path(), published),
        open(host.netns.path(), published),
    ];
    streams.iter_mut().for_each(talk);
    let netns = container(&flooder);
    for round in 0..5 {
        flood(&netns, 20_000 + round * 300, 300);
        streams.iter_mut().for_each(talk);
        let (out, into) = (container(&victim), world.external.host.path());
        assert_eq!(sock::tcp(&out, beyond, 0, sock::Use::Echo(10)), "ok 10", "round {round}");
        assert_eq!(sock::tcp(into, published, 0, sock::Use::Echo(10)), "ok 10", "round {round}");
        let status = host.json(&["status"])["conntrack"].clone();
        assert!(status["flows"].as_u64() <= Some(64), "{status}");
        assert_eq!(status["refused"], 0, "{status}");
    }
    assert!(host.counter("from_container", "flow_evicted") > 0, "{}", host.ok(&["stats"]));
    streams.iter_mut().for_each(talk);
    let rows = host.json(&["nat", "ls", "--protocol", "tcp"]);
    let established = rows.as_array().into_iter().flatten();
    let established = established.filter(|row| row["state"] == "tcp_established").count();
    assert_eq!(established, 4, "{rows}");

    // An agent with another option keeps the size of the table, and evicts in it, too.
    world.cluster.hosts[0].stop_agent(Signal::SIGTERM);
    world.cluster.hosts[0].start_agent(&["--conntrack-max", "65536"]);
    world.cluster.hosts[0].wait_ready();
    flood(&netns, 30_000, 300);
    streams.iter_mut().for_each(talk);
    let status = world.host().json(&["status"])["conntrack"].clone();
    assert_eq!((&status["max"], &status["refused"]), (&64.into(), &0.into()), "{status}");
}

/// Ports for masquerading become free while no agent runs.
#[test]
#[ignore = "needs root"]
fn flows_expire_while_no_agent_runs() {
    let mut world = World::with_agent(&[
        "--nat-ports",
        "40000-40003",
        "--conntrack-timeout",
        "udp-unreplied=1",
    ]);
    let (name, _) = world.run("bridge", &[]);
    let netns = container(&name);
    world.cluster.hosts[0].stop_agent(Signal::SIGKILL);
    let server =
        sock::within(world.external.host.path(), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    server.set_nonblocking(true).unwrap();
    let arrived = || {
        let arrives = || server.recv(&mut [0; 16]).ok();
        std::iter::from_fn(arrives).count()
    };
    let send = |count: usize| {
        sock::within(&netns, || {
            for _ in 0..count {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = socket.send_to(b"question", SocketAddrV4::new(External::IP, 53));
            }
        });
    };
    // There are four ports. The fifth flow is refused until the others have expired.
    send(6);
    wait_until(SOON, "four questions", || arrived() > 0);
    let mut more = 0;
    wait_until(SOON, "ports to come free", || {
        send(1);
        std::thread::sleep(Duration::from_millis(50));
        more += arrived();
        more >= 12
    });
}

/// An external flood: a published UDP port and many clients.
#[test]
#[ignore = "needs root"]
fn an_external_flood_costs_no_connection() {
    let world = World::with_agent(&["--conntrack-max", "64"]);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8053:53/udp"]);
    let _server = echo(&container(&name), "tcp", 80);
    let sink = sock::within(&container(&name), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let mut stream = sock::within(world.external.host.path(), || sock::open(published, 0)).unwrap();
    talk(&mut stream);
    let flood = || {
        sock::within(world.external.host.path(), || {
            for _ in 0..500 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = socket.send_to(b"flood", SocketAddrV4::new(host.vtep(), 8053));
            }
        });
    };
    let count = |reason: &str| host.counter("from_underlay", reason);
    for round in 0..10 {
        flood();
        let client = world.external.host.path();
        assert_eq!(sock::tcp(client, published, 0, sock::Use::Echo(10)), "ok 10", "round {round}");
    }
    talk(&mut stream);
    assert!(count("flow_evicted") > 0, "{}", host.ok(&["stats"]));
    assert_eq!(count("conntrack_full"), 0, "{}", host.ok(&["stats"]));
    drop(sink);
}

/// A flood that goes on while the table is full: each new connection is made. With
/// `CULVERT_TEST_FULL` the table has its default size, and the flood fills it first.
#[test]
#[ignore = "needs root"]
fn connections_are_made_during_a_flood() {
    let max = rounds(1024, DEFAULT_FLOWS).to_string();
    let world = World::with_agent(&["--conntrack-max", &max]);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8053:53/udp"]);
    let _published = echo(&container(&name), "tcp", 80);
    let _far = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    // This socket receives and does not answer.
    let _sink = sock::within(&container(&name), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let victim = SocketAddrV4::new(host.vtep(), 8053);
    let addresses = 20..50_u8;
    for last in addresses.clone() {
        world.external.host.run(&format!("ip addr add 198.51.100.{last}/24 dev eth0"));
    }
    let (stop, client) = (AtomicBool::new(false), world.external.host.path());
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            sock::within(client, || {
                // Each datagram has its own source address and port.
                let ports = (1024..u16::MAX)
                    .flat_map(|port| addresses.clone().map(move |last| (last, port)));
                let sources = ports.cycle().take_while(|_| !stop.load(Ordering::Relaxed));
                let send = |(last, port)| {
                    let from = (Ipv4Addr::new(198, 51, 100, last), port);
                    let socket = UdpSocket::bind(from).unwrap();
                    u64::from(socket.send_to(b"flood", victim).is_ok())
                };
                sources.map(send).sum::<u64>()
            })
        });
        let evicted = || host.counter("from_underlay", "flow_evicted");
        wait_until(on_this_machine(Duration::from_secs(60)), "the table to be full", || {
            evicted() > 0
        });
        for round in 0..50 {
            let into = sock::tcp(client, published, 0, sock::Use::Echo(10));
            let out = sock::tcp(
                &container(&name),
                SocketAddrV4::new(External::IP, 80),
                0,
                sock::Use::Echo(10),
            );
            assert_eq!((into.as_str(), out.as_str()), ("ok 10", "ok 10"), "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{} datagrams, {} flows evicted", flood.join().unwrap(), evicted());
    });
    assert_eq!(host.json(&["status"])["conntrack"]["refused"], 0);
}
