//! Clients that may not use published ports. Rules of the host's netfilter do not see their
//! packets.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

use culvert_tests::{
    cluster::SOON,
    docker,
    external::External,
    netns::{on_this_machine, wait_until},
    sock::{self, container},
};
use nix::sys::signal::Signal;

use crate::{
    nat::World,
    ports::{echo, exchange, exchange_at, talk},
};

/// Whether an open connection no longer gets an answer.
fn is_dead(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let _ = stream.write_all(b"ping");
    !matches!(stream.read(&mut [0; 4]), Ok(4))
}

/// Whether a datagram of an open socket is answered. A datagram is sent at once. A TCP connection
/// with unacknowledged data would wait longer with each retransmission.
fn is_answered(socket: &UdpSocket) -> bool {
    // Discards late answers to earlier datagrams.
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 5]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(on_this_machine(Duration::from_secs(1)))).unwrap();
    // An error here is about an earlier datagram.
    let _ = socket.send(b"ping");
    matches!(socket.recv(&mut [0; 5]), Ok(4))
}

/// A denied client gets no answer, not even over an open connection, whatever netfilter's rules
/// are. The host itself and other clients are not affected. The denial holds without the agent and
/// after its restart, and ends when it is removed.
#[test]
#[ignore = "needs root"]
fn a_denied_client_is_kept_out_until_it_is_allowed() {
    let mut world = World::new(1);
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    let (other, other_ip) = world.run("bridge", &[]);
    let vtep = world.host().vtep();
    let servers = ["tcp", "udp"].map(|proto| echo(&container(&name), proto, 80));
    // ufw and firewalld make such rules.
    let iptables = docker::iptables().expect("an iptables that works in this kernel");
    world.host().netns.run(&format!(
        "{iptables} -w -I INPUT -p tcp --dport 8080 -j DROP; {iptables} -w -P FORWARD DROP"
    ));
    let to = SocketAddrV4::new(vtep, 8080);
    let mut stream = sock::within(world.external.host.path(), || sock::open(to, 0)).unwrap();
    talk(&mut stream);
    let datagrams = sock::within(world.external.host.path(), || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to).map(|()| socket)
    });
    let datagrams = datagrams.unwrap();
    wait_until(SOON, "the server to answer datagrams", || is_answered(&datagrams));

    let external = External::IP.to_string();
    world.host().ok(&["ports", "deny", &external, "198.18.0.0/15"]);
    assert!(is_dead(&mut stream), "the connection of a denied client goes on");
    assert!(!is_answered(&datagrams), "the datagrams of a denied client are answered");
    let refused = |world: &World| {
        for proto in ["tcp", "udp"] {
            let outcome = exchange(&world.external.host, proto, vtep, 8080, 10);
            assert_eq!(outcome, "timeout", "{proto}");
        }
    };
    let before = world.host().counter("from_underlay", "denied");
    refused(&world);
    assert!(world.host().counter("from_underlay", "denied") > before);
    for proto in ["tcp", "udp"] {
        for ip in [vtep, Ipv4Addr::LOCALHOST] {
            assert_eq!(exchange(&world.host().netns, proto, ip, 8080, 10), "ok 10", "{proto} {ip}");
        }
        assert_eq!(exchange_at(&container(&other), proto, vtep, 8080, 10), "ok 10", "{proto}");
    }
    let ports = world.host().json(&["ports", "ls"]);
    assert_eq!(ports["denied"], serde_json::json!(["198.18.0.0/15", external]));
    assert_eq!(ports["published"][0]["port"], "0.0.0.0:8080->80/tcp");
    assert!(ports["dropped"].as_u64() > Some(0), "{ports}");
    // A connection that a container begins is not affected.
    let far = echo(world.external.host.path(), "tcp", 90);
    assert_eq!(exchange_at(&container(&other), "tcp", External::IP, 90, 10), "ok 10");
    drop(far);
    // A container of this host is a client as well.
    world.host().ok(&["ports", "deny", &other_ip.to_string()]);
    assert_eq!(exchange_at(&container(&other), "tcp", vtep, 8080, 10), "timeout");
    world.host().ok(&["ports", "allow", &other_ip.to_string()]);
    assert_eq!(exchange_at(&container(&other), "tcp", vtep, 8080, 10), "ok 10");

    let host = &mut world.cluster.hosts[0];
    host.stop_agent(Signal::SIGKILL);
    refused(&world);
    let host = &mut world.cluster.hosts[0];
    host.start_agent(&[]);
    host.wait_ready();
    refused(&world);
    assert!(!is_answered(&datagrams), "the restart has let the denied client in");

    world.host().ok(&["ports", "allow", &external]);
    for proto in ["tcp", "udp"] {
        assert_eq!(exchange(&world.external.host, proto, vtep, 8080, 10), "ok 10", "{proto}");
    }
    assert!(is_answered(&datagrams), "the socket gets no answers any more");
    // Idempotent, because fail2ban may repeat it.
    world.host().ok(&["ports", "allow", &external]);
    let line = world.host().refused(1, &["ports", "allow", "198.18.0.1"]);
    assert!(line.contains("is denied as part of 198.18.0.0/15"), "{line}");
    let line = world.host().refused(1, &["ports", "deny", "2001:db8::1"]);
    assert!(line.contains("is IPv6"), "{line}");
    drop(servers);
}

/// A port with `--from` serves these clients and the host itself.
#[test]
#[ignore = "needs root"]
fn a_port_is_for_its_clients_alone() {
    let mut world = World::new(1);
    let net = format!("{}/24", Ipv4Addr::from(u32::from(External::IP) & !0xff));
    let (mine, _) = world.run("bridge", &["-p", "8080:80", "--from", &net]);
    let (others, _) =
        world.run("bridge", &["-p", "8081:80", "--from", "198.18.0.1", "--from", "198.18.1.0/24"]);
    let (third, third_ip) = world.run("bridge", &[]);
    let vtep = world.host().vtep();
    let servers = [&mine, &others].map(|name| echo(&container(name), "tcp", 80));
    let check = |world: &World| {
        assert_eq!(exchange(&world.external.host, "tcp", vtep, 8080, 10), "ok 10");
        assert_eq!(exchange(&world.external.host, "tcp", vtep, 8081, 10), "timeout");
        for port in [8080, 8081] {
            assert_eq!(exchange(&world.host().netns, "tcp", vtep, port, 10), "ok 10", "{port}");
            let outcome = exchange_at(&container(&third), "tcp", vtep, port, 10);
            assert_eq!(outcome, "timeout", "{port}");
        }
    };
    check(&world);
    let rows = world.host().json(&["ps"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == others.as_str()).unwrap();
    let from = serde_json::json!(["198.18.0.1", "198.18.1.0/24"]);
    assert_eq!(row["networks"][0]["from"], from);
    assert!(world.host().ok(&["ports", "ls"]).contains(&net));
    let host = &mut world.cluster.hosts[0];
    host.stop_agent(Signal::SIGTERM);
    check(&world);
    let host = &mut world.cluster.hosts[0];
    host.start_agent(&[]);
    host.wait_ready();
    check(&world);
    // Another container has the same port for another client.
    world.host().ok(&["rm", "-f", &others]);
    let from = third_ip.to_string();
    let (next, _) = world.run("bridge", &["-p", "8081:80", "--from", &from]);
    let server = echo(&container(&next), "tcp", 80);
    wait_until(SOON, "the third container to be served", || {
        exchange_at(&container(&third), "tcp", vtep, 8081, 10) == "ok 10"
    });
    assert_eq!(exchange(&world.external.host, "tcp", vtep, 8081, 10), "timeout");
    drop((servers, server));
}
