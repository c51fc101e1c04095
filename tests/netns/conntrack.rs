//! A full conntrack table: flows that continue, flows that are evicted, and flows that expire.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    io::IoSlice,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use culvert_common::abi::DEFAULT_FLOWS;
use culvert_tests::{
    chaos::{is_full, rounds, say},
    cluster::SOON,
    external::External,
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, Server, container},
};
use nix::{
    libc,
    sys::{
        signal::Signal,
        socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
    },
};

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

/// Number of new flows in a second that the flood of the long test must offer.
const OFFERED: u64 = 40_000;
/// Last octets of the addresses that the flood comes from.
const SOURCES: std::ops::Range<u8> = 20..50;

/// Sends datagrams to `to` until `stop` is set, each from another address and port, and counts
/// them.
fn flood_from_everywhere(
    ports: impl Iterator<Item = u16> + Clone,
    to: SocketAddrV4,
    sent: &AtomicU64,
    stop: &AtomicBool,
) {
    let to = SockaddrIn::from(to);
    for port in ports.cycle() {
        // One socket for all addresses: to make a socket takes longer than to send.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        for last in SOURCES {
            let source = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(Ipv4Addr::new(198, 51, 100, last)).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let done = sendmsg(
                socket.as_raw_fd(),
                &[IoSlice::new(b"flood")],
                &[ControlMessage::Ipv4PacketInfo(&source)],
                MsgFlags::empty(),
                Some(&to),
            );
            sent.fetch_add(done.is_ok().into(), Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// A flood that goes on while the table is full: each new connection is made. With
/// `CULVERT_TEST_FULL` the table has its default size, the flood fills it first, and the test fails
/// if this machine cannot send 40,000 new flows in a second: it then shows nothing about such a
/// flood. Otherwise the rate is only printed.
#[test]
#[ignore = "needs root"]
fn connections_are_made_during_a_flood() {
    let max = rounds(1024, DEFAULT_FLOWS).to_string();
    let senders = rounds(1, 2) as usize;
    let world = World::with_agent(&["--conntrack-max", &max]);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8053:53/udp"]);
    let _published = echo(&container(&name), "tcp", 80);
    let _far = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    // This socket receives and does not answer.
    let _sink = sock::within(&container(&name), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let victim = SocketAddrV4::new(host.vtep(), 8053);
    for last in SOURCES {
        world.external.host.run(&format!("ip addr add 198.51.100.{last}/24 dev eth0"));
    }
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let client = world.external.host.path();
    let evicted = || host.counter("from_underlay", "flow_evicted");
    let (seconds, offered, made_room) = std::thread::scope(|scope| {
        for sender in 0..senders {
            let (sent, stop) = (&sent, &stop);
            let ports = (1024..u16::MAX).skip(sender).step_by(senders);
            scope.spawn(move || {
                sock::within(client, || flood_from_everywhere(ports, victim, sent, stop));
            });
        }
        // The senders end also if a step fails.
        let _stop = StopAtEnd(&stop);
        wait_until(on_this_machine(Duration::from_secs(60)), "the table to be full", || {
            evicted() > 0
        });
        let evicted_before = evicted();
        let (start, sent_before) = (Instant::now(), sent.load(Ordering::Relaxed));
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
        let offered = sent.load(Ordering::Relaxed) - sent_before;
        let seconds = start.elapsed().as_secs_f64();
        (seconds, offered, evicted() - evicted_before)
    });
    assert_eq!(host.json(&["status"])["conntrack"]["refused"], 0);
    assert!(made_room > 0, "the flood has not gone on");
    let rate = (offered as f64 / seconds) as u64;
    let line = format!(
        "flood: {rate} new flows/s offered for {seconds:.1} s, {made_room} flows evicted meanwhile"
    );
    say(&line);
    let reached = rate >= OFFERED;
    if !reached {
        say(&format!("flood: fewer than {OFFERED} flows/s: this shows nothing about such a flood"));
    }
    assert!(reached || !is_full(), "{line}: at least {OFFERED} flows/s are needed");
}

/// Sets a flag when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
