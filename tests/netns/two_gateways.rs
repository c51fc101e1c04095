//! Namespaces with their own default route besides the network's.

use std::net::{Ipv4Addr, SocketAddrV4};

use culvert_tests::{
    cluster::unique_name,
    external::External,
    netns::Netns,
    sock::{self, Server, Use, container},
};

use crate::{
    nat::World,
    ports::{echo, exchange},
};

/// A namespace with its own default route is attached, with a published port. Answers to clients
/// leave through the network. All other packets use the namespace's own default route. `detach`
/// leaves the namespace as it was.
#[test]
#[ignore = "needs root"]
fn an_attached_namespace_answers_by_the_network() {
    let world = World::new(1);
    let host = world.host();
    let (router, inner) = (Netns::new("router"), Netns::new("attached"));
    inner.connect("own0", &router, "peer0", 1500);
    inner.run("ip addr add 10.66.0.2/24 dev own0; ip route add default via 10.66.0.1");
    router.run("ip addr add 10.66.0.1/24 dev peer0; ip addr add 198.51.100.9/32 dev lo");
    let state = || inner.run("ip rule; ip -6 rule; ip route show table all");
    let before = state();
    host.overlay("over", "10.9.0.0/24", &[]);
    let (name, path) = (unique_name("attached"), inner.path().display().to_string());
    let publish = ["-p", "8080:80", "-p", "8080:80/udp"];
    let attach = ["attach", "--name", &name, "--netns", &path, "--network", "over"];
    host.ok(&[&attach[..], &publish].concat());

    let ip: Ipv4Addr = host.ip(&name, "over").parse().unwrap();
    // A UDP server that is bound to every address answers by the main table, because the rule
    // matches the source address.
    let servers =
        [echo(inner.path(), "tcp", 80), Server::udp(inner.path(), SocketAddrV4::new(ip, 80))];
    for proto in ["tcp", "udp"] {
        let answer = exchange(&world.external.host, proto, host.vtep(), 8080, 5000);
        assert_eq!(answer, "ok 5000", "{proto}");
    }
    for server in &servers {
        assert_eq!(server.take_clients(), ["198.51.100.9"]);
    }
    // The 198.51.100.9 behind this router is another machine than the external host.
    let own = echo(router.path(), "tcp", 90);
    let external = Ipv4Addr::new(198, 51, 100, 9);
    assert_eq!(exchange(&inner, "tcp", external, 90, 10), "ok 10");
    assert_eq!(own.take_clients(), ["10.66.0.2"]);
    let (neighbour, ip) = world.run("over", &[]);
    let near = echo(&container(&neighbour), "tcp", 91);
    assert_eq!(exchange(&inner, "tcp", ip, 91, 10), "ok 10");
    drop((servers, own, near));

    host.ok(&["detach", &name]);
    assert_eq!(state(), before);
}

/// A namespace is attached to two networks, and each publishes a port. The default route leads
/// through one of the networks or neither. The answer to a client leaves through the network in
/// which its request came. The namespace's own connections leave by the default route.
#[test]
#[ignore = "needs root"]
fn ports_are_published_through_two_networks() {
    let world = World::new(1);
    let host = world.host();
    host.overlay("over", "10.9.0.0/24", &[]);
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "br"]);
    for own in [false, true] {
        let (router, inner) = (Netns::new("router"), Netns::new("twofold"));
        if own {
            inner.connect("own0", &router, "peer0", 1500);
            inner.run("ip addr add 10.66.0.2/24 dev own0; ip route add default via 10.66.0.1");
            router.run("ip addr add 10.66.0.1/24 dev peer0; ip addr add 203.0.113.9/32 dev lo");
        }
        let before = inner.run("ip rule; ip -4 route show table all");
        let (name, path) = (unique_name("twofold"), inner.path().display().to_string());
        for (network, port) in [("over", 8080), ("br", 8081)] {
            let (tcp, udp) = (format!("{port}:80"), format!("{port}:80/udp"));
            let attach = ["attach", "--name", &name, "--netns", &path, "--network", network];
            host.ok(&[&attach[..], &["-p", &tcp, "-p", &udp]].concat());
        }
        let default = inner.run("ip route show default");
        let via = if own { "via 10.66.0.1" } else { "via 10.9.0.1" };
        assert!(default.lines().count() == 1 && default.contains(via), "{default}");

        let tcp = echo(inner.path(), "tcp", 80);
        for (network, port) in [("br", 8081), ("over", 8080)] {
            let ip: Ipv4Addr = host.ip(&name, network).parse().unwrap();
            // A UDP server on every address answers by the main table.
            let udp = Server::udp(inner.path(), SocketAddrV4::new(ip, 80));
            for proto in ["tcp", "udp"] {
                let answer = exchange(&world.external.host, proto, host.vtep(), port, 5000);
                assert_eq!(answer, "ok 5000", "{proto} by {network}, own default route: {own}");
            }
            for server in [&tcp, &udp] {
                assert_eq!(server.take_clients(), [External::IP.to_string()], "{network}, {own}");
            }
            let answer = exchange(&host.netns, "tcp", host.vtep(), port, 10);
            assert_eq!(answer, "ok 10", "the host by {network}, {own}");
            tcp.take_clients();
        }
        let beyond = if own { router.path() } else { world.external.host.path() };
        let far = echo(beyond, "tcp", 90);
        let (to, client) = if own {
            (Ipv4Addr::new(203, 0, 113, 9), "10.66.0.2".to_owned())
        } else {
            (External::IP, host.vtep().to_string())
        };
        assert_eq!(exchange(&inner, "tcp", to, 90, 10), "ok 10", "{own}");
        assert_eq!(far.take_clients(), [client], "{own}");
        drop((tcp, far));

        host.ok(&["detach", &name]);
        assert_eq!(inner.run("ip rule; ip -4 route show table all"), before, "{own}");
    }
}

/// A container that is connected to a second network keeps its published port.
#[test]
#[ignore = "needs root"]
fn a_second_network_leaves_the_published_port_of_the_first() {
    let world = World::new(1);
    let host = world.host();
    host.overlay("over", "10.9.0.0/24", &[]);
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    host.ok(&["network", "connect", "over", &name]);
    let server = echo(&container(&name), "tcp", 80);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 5000), "ok 5000");
    assert_eq!(server.take_clients(), [External::IP.to_string()]);
    // Both networks are reached from the container, and it from both.
    for network in ["bridge", "over"] {
        let (neighbour, ip) = world.run(network, &[]);
        let near = echo(&container(&neighbour), "tcp", 91);
        let here: Ipv4Addr = host.ip(&name, network).parse().unwrap();
        let answer = sock::tcp(&container(&name), SocketAddrV4::new(ip, 91), 0, Use::Echo(10));
        assert_eq!(answer, "ok 10", "{network}");
        assert_eq!(near.take_clients(), [here.to_string()], "{network}");
        let to = SocketAddrV4::new(here, 80);
        assert_eq!(sock::tcp(&container(&neighbour), to, 0, Use::Echo(10)), "ok 10", "{network}");
    }
}
