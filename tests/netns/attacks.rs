//! Attacks by a container or by a host on the underlay.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    time::Duration,
};

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    docker,
    external::External,
    netns::{programs, wait_until},
    packet::{self, Arp, Tunnel, V4},
    sock::{self, Behaviour, PATIENCE, Server, Use, container},
};
use etherparse::PacketBuilder;
use nix::sys::{
    signal::Signal,
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    },
};

use crate::nat::World;

fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// Sends whole IPv4 packets.
pub(crate) fn send_raw(netns: &Path, to: Ipv4Addr, packets: &[Vec<u8>]) {
    sock::within(netns, || {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                .unwrap();
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        for packet in packets {
            sendto(raw.as_raw_fd(), packet, &to, MsgFlags::empty()).unwrap();
        }
    });
}

fn datagram(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64);
    let mut packet = Vec::new();
    builder.udp(from.port(), to.port()).write(&mut packet, b"x").unwrap();
    packet
}

/// A container that has opened flows from every port to a server does not get the
/// answers of the host's own connections to that server.
#[test]
#[ignore = "needs root"]
fn a_container_cannot_take_the_hosts_answers() {
    let world = World::new(1);
    let (name, ip) = world.run("bridge", &[]);
    let server = SocketAddrV4::new(External::IP, 53);
    let _udp = Server::udp(world.external.host.path(), any(53));
    let packets: Vec<_> =
        (32_768..61_000).map(|port| datagram(SocketAddrV4::new(ip, port), server)).collect();
    send_raw(&container(&name), External::IP, &packets);
    assert!(world.host().counter("from_container", "flow_created") > 20_000);
    for _ in 0..10 {
        assert_eq!(sock::udp(world.host().netns.path(), server, 0, 5), "ok 5");
    }
}

/// The server behind a published port cannot open a connection to the next owner of its former
/// client's port on the host's loopback address.
#[test]
#[ignore = "needs root"]
fn a_published_port_opens_no_way_back() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "127.0.0.1:8081:80"]);
    let inside = Server::tcp(&container(&name), any(80), Behaviour::Echo);
    let published = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081);
    assert_eq!(sock::tcp(host.netns.path(), published, 41_234, Use::Abort), "ok aborted");
    drop(inside);
    let secret = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 41_234);
    let secret = Server::tcp(host.netns.path(), secret, Behaviour::Echo);
    let gateway = SocketAddrV4::new([172, 17, 0, 1].into(), 41_234);
    let answer = sock::tcp(&container(&name), gateway, 80, Use::Echo(1));
    assert_eq!(answer, "refused", "the host's own stack answers");
    assert_eq!(secret.seen().len(), 0);
}

/// A host with forwarding enabled does not forward packets into a network.
#[test]
#[ignore = "needs root"]
fn a_router_does_not_open_the_networks() {
    let world = World::new(1);
    let host = world.host();
    let (name, ip) = world.run("bridge", &[]);
    let server = Server::udp(&container(&name), any(7000));
    host.netns.run("sysctl -qw net.ipv4.ip_forward=1");
    world.external.router.run(&format!("ip route add 172.17.0.0/16 via {}", host.vtep()));
    let to = SocketAddrV4::new(ip, 7000);
    assert_eq!(sock::udp(world.external.host.path(), to, 0, 1), "timeout");
    assert_eq!(server.seen().len(), 0);
    assert!(host.counter("from_host", "isolated") > 0);
    // The host itself reaches the container, and gets its ICMP errors.
    assert_eq!(sock::udp(host.netns.path(), to, 0, 1), "ok 1");
    let nobody = SocketAddrV4::new([172, 17, 0, 1].into(), 7001);
    assert_eq!(sock::udp(&container(&name), nobody, 0, 1), "refused");
}

/// If forwarding is switched off on the host, the agent restores it.
#[test]
#[ignore = "needs root"]
fn switching_forwarding_off_is_made_good() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &[]);
    let _server = Server::udp(world.external.host.path(), any(53));
    host.netns.run("sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0");
    let server = SocketAddrV4::new(External::IP, 53);
    wait_until(Duration::from_secs(5), "external access", || {
        sock::udp(&container(&name), server, 0, 1) == "ok 1"
    });
}

/// Another host on the underlay cannot reach a published port with a source address of this host or
/// of its containers.
#[test]
#[ignore = "needs root"]
fn a_neighbour_speaks_for_itself_only() {
    let world = World::new(1);
    let host = world.host();
    let (name, ip) = world.run("bridge", &["-p", "5353:53/udp"]);
    let server = sock::within(&container(&name), || UdpSocket::bind("0.0.0.0:53")).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let to = SocketAddrV4::new(host.vtep(), 5353);
    let spoofed = [ip, [172, 17, 0, 1].into(), [172, 17, 0, 77].into(), host.vtep()];
    let packets: Vec<_> =
        spoofed.iter().map(|from| datagram(SocketAddrV4::new(*from, 5000), to)).collect();
    send_raw(world.external.router.path(), host.vtep(), &packets);
    let mut buffer = [0; 16];
    assert!(server.recv_from(&mut buffer).is_err(), "a spoofed datagram came through");
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = datagram(SocketAddrV4::new(External::IP, 5000), to);
    send_raw(world.external.host.path(), host.vtep(), &[own]);
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(from.ip(), External::IP);
}

/// An internal network's gateway does not lead to published ports of other networks.
#[test]
#[ignore = "needs root"]
fn an_internal_network_reaches_no_published_port_of_others() {
    let world = World::new(1);
    let host = world.host();
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.8.0.0/24", "--internal", "in"]);
    let (open, _) = world.run("bridge", &["-p", "8080:80"]);
    let server = Server::tcp(&container(&open), any(80), Behaviour::Echo);
    let closed = unique_name("in");
    host.run_idle(&closed, "in", &[]);
    let to = SocketAddrV4::new([10, 8, 0, 1].into(), 8080);
    assert_eq!(sock::tcp(&container(&closed), to, 0, Use::Echo(1)), "timeout");
    assert_eq!(server.seen().len(), 0);
    wait_until(SOON, "the drop to be counted", || {
        host.counter("from_container", "internal_network") > 0
    });
}

/// VXLAN that a member host sends with the frame `inner` as content.
fn through_the_tunnel(from: &Host, to: &Host, vni: u32, inner: &[u8]) -> Vec<u8> {
    let tunnel = Tunnel::new(from.vtep().octets(), to.vtep().octets(), vni);
    // The kernel makes the Ethernet header.
    Tunnel { src_port: 50_000, ..tunnel }.wrap(inner).split_off(14)
}

/// A member host with a hostile root reaches containers only with the sources of its own containers
/// and of itself: not with those of containers of other hosts or of the receiver, of external
/// hosts, or of the gateway.
#[test]
#[ignore = "needs root"]
fn a_member_speaks_for_its_own_containers_only() {
    const VNI: u32 = 700;
    const PORT: u16 = 7000;
    let cluster = Cluster::new(3);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &["--vni", &VNI.to_string()]);
    cluster.wait_network("net");
    let [victim, bad, third] = [0, 1, 2].map(|index| &cluster.hosts[index]);
    let address = |last: u8| packet::Host {
        mac: [0x02, 0x42, 10, 0, 0, last],
        v4: [10, 0, 0, last],
        v6: [0; 16],
    };
    let names = ["one", "other", "own", "foreign"].map(unique_name);
    for (host, name, last) in
        [(victim, &names[0], 2), (victim, &names[1], 3), (bad, &names[2], 4), (third, &names[3], 5)]
    {
        host.run_idle(name, "net", &["--ip", &format!("10.0.0.{last}")]);
    }
    bad.wait_ping(&names[2], "10.0.0.2");
    third.wait_ping(&names[3], "10.0.0.2");
    victim.wait_ping(&names[0], &victim.vtep().to_string());
    let server = Server::udp(&container(&names[0]), any(PORT));
    let one = address(2);
    let send = |inner: &[u8]| {
        let packet = through_the_tunnel(bad, victim, VNI, inner);
        send_raw(bad.netns.path(), victim.vtep(), &[packet]);
    };
    let datagram = |from: &packet::Host| V4::udp(from, &one, (5000, PORT), b"x").frame();
    let own = address(4);
    let gateway = address(1);
    let eight = packet::Host { v4: [8, 8, 8, 8], ..own };
    let as_gateway = packet::Host { v4: gateway.v4, ..own };
    let of_host = packet::Host { mac: gateway.mac, v4: third.vtep().octets(), ..own };
    let attacks: [(&str, Vec<u8>); 9] = [
        ("foreign_source_mac", datagram(&address(5))),
        ("foreign_source_mac", datagram(&address(77))),
        ("local_source_mac", datagram(&address(3))),
        ("spoofed_ip", datagram(&eight)),
        ("spoofed_ip", datagram(&of_host)),
        ("spoofed_arp", Arp::reply(&packet::Host { v4: address(5).v4, ..own }, &one).frame()),
        ("gateway_source", datagram(&as_gateway)),
        ("gateway_source", Arp::reply(&as_gateway, &one).frame()),
        ("gateway_source", Arp::request(&gateway, one.v4).frame()),
    ];
    for (reason, inner) in &attacks {
        let before = victim.counter("from_underlay", reason);
        send(inner);
        wait_until(SOON, &format!("one more {reason}"), || {
            victim.counter("from_underlay", reason) > before
        });
    }
    assert_eq!(server.seen().len(), 0);
    send(&datagram(&own));
    wait_until(SOON, "the datagram of the host's own container", || server.seen().len() == 1);
    // The container still reaches the host through the gateway.
    victim.in_container(&names[0], &format!("ping -c1 -W2 {}", victim.vtep()));
}

/// A container does not reach an etcd without authentication, although its packets would leave with
/// the host's address. With `--store-for-containers` it does.
#[test]
#[ignore = "needs root"]
fn a_container_does_not_reach_a_store_without_authentication() {
    let mut world = World::new(1);
    let (name, _) = world.run("bridge", &[]);
    let store: SocketAddrV4 = world.cluster.etcd.endpoint().parse().unwrap();
    let opens = |to: SocketAddrV4| sock::within(&container(&name), || sock::open(to, 0).is_ok());
    assert!(!opens(store));
    wait_until(SOON, "the drop to be counted", || {
        world.host().counter("from_container", "blocked") > 0
    });
    // Another port of the same machine stays open.
    let other = SocketAddrV4::new(*store.ip(), 8000);
    let _server = Server::tcp(world.cluster.switch.path(), other, Behaviour::Echo);
    assert_eq!(sock::tcp(&container(&name), other, 0, Use::Echo(10)), "ok 10");
    let findings = world.host().findings().to_string();
    assert!(findings.contains("the store has no authentication"), "{findings}");

    let host = &mut world.cluster.hosts[0];
    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&["--store-for-containers"]);
    host.wait_ready();
    wait_until(SOON, "the store is open", || opens(store));
}

/// With `block_hosts=true` containers reach neither their own host nor others, which still reach
/// them.
#[test]
#[ignore = "needs root"]
fn containers_of_a_closed_network_reach_no_host() {
    let world = World::new(2);
    let (host, peer) = (world.host(), &world.cluster.hosts[1]);
    host.ok(&["network", "create", "-d", "overlay", "--opt", "block_hosts=true", "closed"]);
    let (name, ip) = world.run("closed", &[]);
    let _servers = [host, peer].map(|on| Server::tcp(on.netns.path(), any(8000), Behaviour::Echo));
    let gateway: Ipv4Addr = {
        let [a, b, c, _] = ip.octets();
        [a, b, c, 1].into()
    };
    for to in [host.vtep(), peer.vtep(), gateway] {
        let to = SocketAddrV4::new(to, 8000);
        assert_eq!(sock::tcp(&container(&name), to, 0, Use::Echo(1)), "unreachable", "{to}");
    }
    assert!(host.counter("from_container", "blocked") >= 3);
    let inside = Server::tcp(&container(&name), any(80), Behaviour::Echo);
    let to = SocketAddrV4::new(ip, 80);
    assert_eq!(sock::tcp(host.netns.path(), to, 0, Use::Echo(100)), "ok 100");
    host.netns.run(&format!("ping -c1 -W9 {ip}"));
    assert_eq!(inside.take_clients().len(), 1);
    // Machines that are no hosts of the cluster stay open.
    let external = SocketAddrV4::new(External::IP, 80);
    let _external = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    assert_eq!(sock::tcp(&container(&name), external, 0, Use::Echo(10)), "ok 10");
}

/// A container reaches the host neither at the gateway of another network nor at the broadcast address
/// of the LAN.
#[test]
#[ignore = "needs root"]
fn other_gateways_and_the_lans_broadcast_address_are_closed() {
    let world = World::new(1);
    let host = world.host();
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.8.0.0/24", "br"]);
    let (name, _) = world.run("bridge", &[]);
    let (other, _) = world.run("br", &[]);
    let server = Server::udp(host.netns.path(), any(8000));
    let send = |to: Ipv4Addr| {
        sock::within(&container(&name), || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_broadcast(true).unwrap();
            // The address is of no subnet of the container, so it is sent to the gateway.
            socket.send_to(b"x", SocketAddrV4::new(to, 8000)).unwrap();
        });
    };
    let counted = |reason: &str| host.counter("from_container", reason);
    let (isolated, unroutable) = (counted("isolated"), counted("unroutable"));
    send([10, 8, 0, 1].into());
    wait_until(SOON, "the gateway is closed", || counted("isolated") > isolated);
    send([192, 0, 2, 255].into());
    wait_until(SOON, "the broadcast address is closed", || counted("unroutable") > unroutable);
    assert_eq!(server.seen().len(), 0);
    // Each network reaches its own gateway.
    let own = SocketAddrV4::new([10, 8, 0, 1].into(), 8000);
    assert_eq!(sock::udp(&container(&other), own, 0, 5), "ok 5");
}

/// Other hosts take VXLAN for a host's by its address alone. Neither another user of the host, nor a
/// container of another engine whose packets the host masquerades, can send it. Root can.
#[test]
#[ignore = "needs root"]
fn no_one_but_root_sends_vxlan_from_a_host() {
    let world = World::new(2);
    let (host, peer) = (world.host(), &world.cluster.hosts[1]);
    host.overlay("shared", "10.9.0.0/24", &[]);
    let (name, _) = world.run("shared", &[]);
    let far = unique_name("far");
    peer.run_idle(&far, "shared", &[]);
    let far = peer.ip(&far, "shared");
    wait_until(SOON, "the program at the egress", || {
        programs(&host.netns, "up0", TcAttachType::Egress) == ["to_underlay"]
    });
    host.in_container(&name, &format!("ping -c3 -W9 {far}"));

    // A datagram with a VNI that no network has.
    let mut datagram = vec![8, 0, 0, 0, 0xff, 0xff, 0xff, 0];
    datagram.resize(8 + 60, 0);
    let datagram: String = datagram.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let send = format!("printf '{datagram}' > /dev/udp/{}/4789", peer.vtep());
    let arrived = || peer.counter("from_underlay", "unknown_vni");
    let dropped = || host.counter("to_underlay", "vxlan_not_ours");
    assert_eq!((arrived(), dropped()), (0, 0));
    host.netns.run(&format!("bash -c \"{send}\""));
    wait_until(SOON, "the datagram of root", || arrived() == 1);

    // The user whose number the kernel also gives for no user.
    for user in [1000, 65_534] {
        let before = dropped();
        let other = format!("setpriv --reuid {user} --regid {user} --clear-groups bash -c");
        // The kernel tells the sender that the frame was dropped, or not.
        host.netns.try_run(&format!("{other} \"{send}\""));
        wait_until(SOON, "the drop to be counted", || dropped() == before + 1);
    }
    let iptables = docker::iptables().unwrap();
    let containers = docker::wire(&host.netns, iptables, 1, &[]);
    let before = dropped();
    containers[0].run(&format!("bash -c \"{send}\""));
    wait_until(SOON, "the drop to be counted", || dropped() == before + 1);
    // What was dropped does not come late: a datagram of root overtakes nothing.
    host.netns.run(&format!("bash -c \"{send}\""));
    wait_until(SOON, "the second datagram of root", || arrived() == 2);
    host.in_container(&name, &format!("ping -c3 -W9 {far}"));
}
