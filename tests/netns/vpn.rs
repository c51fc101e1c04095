//! A VPN whose device has no Ethernet header, as those of WireGuard and OpenVPN. It is no uplink,
//! and it has no program of Culvert.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener},
    path::PathBuf,
    thread,
};

use culvert_tests::{
    cluster::{SOON, unique_name},
    external::External,
    netns::{Netns, wait_for, wait_until},
    sock::{self, container},
    tun::Tunnel,
};

use crate::{
    nat::World,
    ports::{echo, exchange, exchange_at},
};

/// Address of the host in the VPN.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// Address of the other end.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// Connects the host to a VPN by the device `wg0`.
fn connect_vpn(world: &World) -> (Netns, Tunnel) {
    let peer = Netns::new("vpn");
    let ends = [(&world.host().netns, "10.78.0.1/24"), (&peer, "10.78.0.2/24")];
    let tunnel = Tunnel::between("wg0", ends);
    peer.run(&format!("ip route add default via {HOST}"));
    world.host().netns.run(&format!("ping -c1 -W9 {PEER}"));
    (peer, tunnel)
}

/// Passes the first connection to `at` on to `to`, as a reverse proxy of the host does.
fn proxy(netns: PathBuf, at: SocketAddrV4, to: SocketAddrV4) {
    let listener = sock::within(&netns, || TcpListener::bind(at)).unwrap();
    thread::spawn(move || -> io::Result<()> {
        let (client, _) = listener.accept()?;
        let server = sock::within(&netns, || sock::open(to, 0))?;
        let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || io::copy(&mut from_server, &mut to_client));
        io::copy(&mut &client, &mut &server)?;
        server.shutdown(Shutdown::Write)
    });
}

/// A client in the VPN does not reach a published port, and `run`, `ps`, `status` and `doctor` say
/// so. It reaches the host's reverse proxy. A container reaches the host at its address in the VPN,
/// and nobody else in the VPN. `status` names the VPN, and no option that the agent would refuse.
#[test]
#[ignore = "needs root"]
fn a_vpn_is_the_hosts_alone() {
    let world = World::new(1);
    let host = world.host();
    let (peer, _tunnel) = connect_vpn(&world);
    // The first published port of the host.
    let name = unique_name("c");
    let run = ["run", "-d", "--name", &name, "--network", "bridge", "-p", "8080:80"];
    let output = host.culvert(&[&run[..], &["--", "sleep", "infinity"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("its published ports are not reached through wg0"), "{said}");
    let ip: Ipv4Addr = host.ip(&name, "bridge").parse().unwrap();
    let shown = host.ok(&["ps"]);
    assert!(shown.contains("0.0.0.0:8080->80/tcp not through wg0"), "{shown}");
    let doctor = host.culvert(&["doctor"]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let told = doctor.lines().find(|line| line.contains("ports are not reached through wg0"));
    assert!(told.is_some_and(|line| line.starts_with("warning")), "{doctor}");
    assert_eq!(host.json(&["status"])["datapath"]["unserved_links"], serde_json::json!(["wg0"]));
    let server = echo(&container(&name), "tcp", 80);
    for address in [HOST, host.vtep()] {
        assert_eq!(exchange(&peer, "tcp", address, 8080, 10), "refused", "{address}");
    }
    assert_eq!(server.seen(), []);
    wait_until(SOON, "the host's address in the VPN to be served to the host", || {
        exchange(&host.netns, "tcp", HOST, 8080, 10) == "ok 10"
    });
    server.take_clients();
    let (at, to) = (SocketAddrV4::new(HOST, 8090), SocketAddrV4::new(ip, 80));
    proxy(host.netns.path().to_owned(), at, to);
    assert_eq!(exchange(&peer, "tcp", HOST, 8090, 10), "ok 10");
    assert_eq!(server.seen().len(), 1);

    let (own, in_vpn) = (echo(host.netns.path(), "tcp", 9090), echo(peer.path(), "tcp", 90));
    assert_eq!(exchange_at(&container(&name), "tcp", HOST, 9090, 10), "ok 10");
    let before = host.counter("from_container", "not_an_uplink");
    assert_eq!(exchange_at(&container(&name), "tcp", PEER, 90, 10), "unreachable");
    assert!(host.counter("from_container", "not_an_uplink") > before);
    let problem = wait_for(SOON, "the status to name the way out", || {
        let status = host.json(&["status"]);
        let problems = status["problems"].as_array()?.iter().filter_map(|line| line.as_str());
        problems.map(str::to_owned).find(|line| line.contains("not_an_uplink"))
    });
    assert!(problem.contains("out of wg0, which is no uplink; wg0 cannot be"), "{problem}");
    assert!(!problem.contains("--uplink"), "{problem}");
    assert_eq!(exchange(&host.netns, "tcp", PEER, 90, 10), "ok 10");
    assert_eq!(in_vpn.take_clients(), [HOST.to_string()]);
    drop(own);
}

/// A VPN takes all routes of the host. Containers then begin no connection to other hosts, until a
/// rule for their subnet leads to the uplink. Clients behind the uplink's router cannot use
/// published ports, because the route back to them leads into the VPN, until a rule for the host's
/// address leads to the uplink.
#[test]
#[ignore = "needs root"]
fn a_vpn_that_covers_everything_ends_external_access() {
    let world = World::new(1);
    let host = world.host();
    let (_peer, _tunnel) = connect_vpn(&world);
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    let _server = echo(&container(&name), "tcp", 80);
    let beyond = echo(world.external.host.path(), "tcp", 90);
    let out = || exchange_at(&container(&name), "tcp", External::IP, 90, 10);
    let into = || exchange(&world.external.host, "tcp", host.vtep(), 8080, 10);
    assert_eq!((out(), into()), ("ok 10".to_owned(), "ok 10".to_owned()));
    beyond.take_clients();

    host.netns.run(&format!(
        "ip route add 0.0.0.0/1 via {PEER} dev wg0 && ip route add 128.0.0.0/1 via {PEER} dev wg0"
    ));
    wait_until(SOON, "external access to end", || out() == "unreachable");
    assert!(host.counter("from_container", "not_an_uplink") > 0);
    assert_ne!(into(), "ok 10");
    // A container reaches its gateway, and the host at its address.
    let own = echo(host.netns.path(), "tcp", 9090);
    assert_eq!(exchange_at(&container(&name), "tcp", host.vtep(), 9090, 10), "ok 10");
    drop(own);

    beyond.take_clients();
    let main = "ip route | sed -n 's/^default.*/& table 77/p' | xargs ip route add";
    host.netns.run(&format!("{main} && ip rule add from 172.17.0.0/16 lookup 77"));
    wait_until(SOON, "external access again", || out() == "ok 10");
    assert_eq!(beyond.take_clients(), [host.vtep().to_string()]);
    // An answer of a published port has the address of the host that the client uses.
    host.netns.run(&format!("ip rule add from {} lookup 77", host.vtep()));
    wait_until(SOON, "the published port again", || into() == "ok 10");
}
