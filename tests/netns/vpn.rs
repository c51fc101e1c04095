//! A VPN whose device has no Ethernet header, as those of WireGuard and OpenVPN. It is no uplink.
//! Its members are clients of published ports.

use std::net::Ipv4Addr;

use culvert_tests::{
    cluster::SOON,
    external::External,
    netns::{Netns, wait_for, wait_until},
    sock::container,
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

/// A client in the VPN uses published ports at every address of the host, with payloads of every
/// size: the container sees the client's own address. The host's own traffic with the VPN goes on,
/// in fragments, too. A client that may not use the port does not reach it.
#[test]
#[ignore = "needs root"]
fn a_client_in_a_vpn_reaches_a_published_port() {
    let world = World::new(1);
    let host = world.host();
    let (peer, _tunnel) = connect_vpn(&world);
    let (name, _) = world.run("bridge", &["-p", "8080:80", "-p", "8080:80/udp"]);
    wait_until(SOON, "the status to name it", || {
        host.json(&["status"])["datapath"]["client_links"] == serde_json::json!(["wg0"])
    });
    assert_eq!(host.json(&["status"])["datapath"]["unserved_links"], serde_json::json!([]));
    let servers = ["tcp", "udp"].map(|proto| echo(&container(&name), proto, 80));
    wait_until(SOON, "the address in the VPN to be served", || {
        exchange(&peer, "tcp", HOST, 8080, 10) == "ok 10"
    });
    // The fragments of the container's first answer are as long as the MTU of its network, and too
    // long for the VPN.
    wait_until(SOON, "the container to know the MTU of the VPN", || {
        exchange(&peer, "udp", HOST, 8080, 5000) == "ok 5000"
    });
    for address in [HOST, host.vtep()] {
        // 5000 bytes of UDP are four fragments in each direction.
        for (proto, len) in
            [("tcp", 10), ("tcp", 300_000), ("udp", 10), ("udp", 1390), ("udp", 5000)]
        {
            let answer = exchange(&peer, proto, address, 8080, len);
            assert_eq!(answer, format!("ok {len}"), "{address} {proto}");
        }
    }
    for server in &servers {
        let clients = server.take_clients();
        assert!(clients.iter().all(|client| *client == PEER.to_string()), "{clients:?}");
    }

    // The packets of the host itself.
    let own = ["tcp", "udp"].map(|proto| echo(host.netns.path(), proto, 9090));
    for (proto, len) in [("tcp", 300_000), ("udp", 10), ("udp", 5000)] {
        assert_eq!(exchange(&peer, proto, HOST, 9090, len), format!("ok {len}"), "{proto}");
    }
    peer.run(&format!("ping -c1 -W9 {HOST}"));
    assert_eq!(exchange(&peer, "tcp", HOST, 8081, 1), "refused");
    drop(own);

    // A source to which the host has another route is not served.
    peer.run("ip addr add 192.0.2.222/32 dev lo");
    peer.run(&format!("ip route replace {}/32 via {HOST} src 192.0.2.222", host.vtep()));
    assert_ne!(exchange(&peer, "tcp", host.vtep(), 8080, 10), "ok 10");
    host.ok(&["ports", "deny", &PEER.to_string()]);
    let before = host.counter("from_client", "denied");
    assert_eq!(exchange(&peer, "tcp", HOST, 8080, 10), "timeout");
    assert!(host.counter("from_client", "denied") > before);
    assert_eq!(servers[0].take_clients(), [""; 0]);
}

/// A container reaches the host at its address in the VPN, and nobody else in the VPN. `status`
/// names the VPN, and no option that the agent would refuse.
#[test]
#[ignore = "needs root"]
fn containers_begin_no_connection_into_a_vpn() {
    let world = World::new(1);
    let host = world.host();
    let (peer, _tunnel) = connect_vpn(&world);
    let (name, _) = world.run("bridge", &[]);
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
