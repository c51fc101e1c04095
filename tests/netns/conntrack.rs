//! A full conntrack table: flows that continue, and flows that are refused.

#![expect(clippy::unwrap_used, reason = "a step that cannot be taken fails the test with why")]

use std::net::{SocketAddrV4, UdpSocket};

use culvert_tests::{
    cluster::{Host, SOON},
    netns::wait_until,
    outside::Outside,
    sock::{self, Behaviour, Server, container},
};

use crate::{
    nat::World,
    ports::{any, echo, talk},
};

/// Datagrams to this many ports without an answer.
fn flood(netns: &std::path::Path, first: u16, count: u16) {
    sock::within(netns, || {
        for port in first..first + count {
            // A socket each: the answers, ICMP errors, do not concern the next one.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(b"flood", SocketAddrV4::new(Outside::IP, port));
        }
    });
}

fn pressed(host: &Host) -> u64 {
    host.counter("from_container", "flow_evicted")
        + host.counter("from_container", "conntrack_full")
}

/// A container that floods a small table breaks no connection: neither its own, nor
/// another's, masqueraded or to a published port. The flows that made room and those
/// that found none are counted, and when the flood is over new ones are served again.
#[test]
#[ignore = "needs root"]
fn a_flood_breaks_no_connection() {
    let world =
        World::with_agent(&["--conntrack-max", "64", "--conntrack-timeout", "udp-unreplied=2"]);
    let host = world.host();
    assert_eq!(host.json(&["status"])["conntrack"]["max"], 64);
    let (flooder, _) = world.run("bridge", &[]);
    let (victim, _) = world.run("bridge", &["-p", "8080:80"]);
    let _far = Server::tcp(world.outside.host.path(), any(80), Behaviour::Echo);
    let _published = echo(&container(&victim), "tcp", 80);
    let beyond = SocketAddrV4::new(Outside::IP, 80);
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let open = |netns: &std::path::Path, to| sock::within(netns, || sock::open(to, 0)).unwrap();
    let mut streams = [
        open(&container(&flooder), beyond),
        open(&container(&victim), beyond),
        open(world.outside.host.path(), published),
        open(host.netns.path(), published),
    ];
    streams.iter_mut().for_each(talk);
    let netns = container(&flooder);
    for round in 0..5 {
        flood(&netns, 20_000 + round * 300, 300);
        streams.iter_mut().for_each(talk);
        let status = host.json(&["status"])["conntrack"].clone();
        assert!(status["flows"].as_u64() <= Some(64), "{status}");
    }
    assert!(pressed(host) > 0, "{}", host.ok(&["stats"]));
    assert!(host.counter("from_container", "conntrack_full") > 0, "{}", host.ok(&["stats"]));
    // While the eviction queue has entries, new flows evict old ones.
    wait_until(SOON, "a flow to be evicted", || {
        flood(&netns, 30_000, 60);
        host.counter("from_container", "flow_evicted") > 0
    });
    streams.iter_mut().for_each(talk);
    wait_until(SOON, "new connections to be served", || {
        sock::tcp(&container(&victim), beyond, 0, sock::Use::Echo(10)) == "ok 10"
            && sock::tcp(world.outside.host.path(), published, 0, sock::Use::Echo(10)) == "ok 10"
    });
    streams.iter_mut().for_each(talk);
    let rows = host.json(&["nat", "ls", "--protocol", "tcp"]);
    let established = rows.as_array().into_iter().flatten();
    let established = established.filter(|row| row["state"] == "tcp_established").count();
    assert_eq!(established, 4, "{rows}");
}

/// An external flood: a published UDP port and many clients.
#[test]
#[ignore = "needs root"]
fn a_flood_from_outside_breaks_no_connection() {
    let world = World::with_agent(&["--conntrack-max", "64"]);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8053:53/udp"]);
    let _server = echo(&container(&name), "tcp", 80);
    let sink = sock::within(&container(&name), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    let published = SocketAddrV4::new(host.vtep(), 8080);
    let mut stream = sock::within(world.outside.host.path(), || sock::open(published, 0)).unwrap();
    talk(&mut stream);
    let flood = || {
        sock::within(world.outside.host.path(), || {
            for _ in 0..500 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = socket.send_to(b"flood", SocketAddrV4::new(host.vtep(), 8053));
            }
        });
    };
    let count = |reason: &str| host.counter("from_underlay", reason);
    wait_until(SOON, "flows to be evicted and refused", || {
        flood();
        count("flow_evicted") > 0 && count("conntrack_full") > 0
    });
    talk(&mut stream);
    wait_until(SOON, "status to tell of the refused flows", || {
        host.json(&["status"])["conntrack"]["refused"].as_u64() >= Some(count("conntrack_full"))
    });
    drop(sink);
}
