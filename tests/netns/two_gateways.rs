//! Namespaces with their own default route besides the network's.

use std::net::{Ipv4Addr, SocketAddrV4};

use culvert_tests::{
    cluster::unique_name,
    netns::Netns,
    sock::{Server, container},
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
    host.ok(&["network", "create", "-d", "overlay", "--subnet", "10.9.0.0/24", "over"]);
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
        let answer = exchange(&world.outside.host, proto, host.vtep(), 8080, 5000);
        assert_eq!(answer, "ok 5000", "{proto}");
    }
    for server in &servers {
        assert_eq!(server.take_clients(), ["198.51.100.9"]);
    }
    // The 198.51.100.9 behind this router is another machine than the external host.
    let own = echo(router.path(), "tcp", 90);
    let outside = Ipv4Addr::new(198, 51, 100, 9);
    assert_eq!(exchange(&inner, "tcp", outside, 90, 10), "ok 10");
    assert_eq!(own.take_clients(), ["10.66.0.2"]);
    let (neighbour, ip) = world.run("over", &[]);
    let near = echo(&container(&neighbour), "tcp", 91);
    assert_eq!(exchange(&inner, "tcp", ip, 91, 10), "ok 10");
    drop((servers, own, near));

    host.ok(&["detach", &name]);
    assert_eq!(state(), before);
}
