//! Translated packets in special cases: in fragments, without offloads, and through the second
//! uplink of a host.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
};

use culvert_tests::{
    cluster::{Cluster, SOON},
    external::External,
    netns::{Netns, Underlay, wait_until},
    sock::{self, Behaviour, PATIENCE, Server, Use, container},
};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::nat::World;

fn external(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(External::IP, port)
}

fn any(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
}

/// Sends a UDP datagram in fragments of 1,000 bytes of IP payload, in the order `order`.
fn send_fragments(
    netns: &Path,
    from: SocketAddrV4,
    to: SocketAddrV4,
    data: &[u8],
    order: &[usize],
) {
    // Each datagram has its own identification, so the fragments of two datagrams never mix.
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let identification = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut udp = Vec::new();
    for word in [from.port(), to.port(), u16::try_from(8 + data.len()).unwrap(), 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(data);
    let parts: Vec<&[u8]> = udp.chunks(1000).collect();
    sock::within(netns, || {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                .unwrap();
        for &index in order {
            let part = parts[index];
            let mut header = Ipv4Header::new(
                u16::try_from(part.len()).unwrap(),
                64,
                IpNumber::UDP,
                from.ip().octets(),
                to.ip().octets(),
            )
            .unwrap();
            header.identification = identification;
            header.dont_fragment = false;
            header.more_fragments = index + 1 < parts.len();
            header.fragment_offset =
                IpFragOffset::try_new(u16::try_from(index * 125).unwrap()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            let packet = [&header.to_bytes()[..], part].concat();
            sendto(raw.as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty()).unwrap();
        }
    });
}

/// Fragments are translated like the first fragment of their datagram, in any order of arrival,
/// outbound and inbound.
#[test]
#[ignore = "needs root"]
fn fragments_arrive_in_any_order() {
    let world = World::new(1);
    let host = world.host();
    let (name, ip) = world.run("bridge", &["-p", "5300:53/udp"]);
    let netns = container(&name);
    let external_netns = world.external.host.path();
    let data: Vec<u8> = (0..3500_u16).map(|i| (i % 239) as u8).collect();
    let orders: [&[usize]; 4] = [&[0, 1, 2, 3], &[3, 2, 1, 0], &[1, 0, 3, 2], &[2, 3, 1, 0]];

    let server = Server::udp(external_netns, any(53));
    let client = sock::within(&netns, || UdpSocket::bind("0.0.0.0:4000")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 65_536];
    for order in orders {
        send_fragments(&netns, SocketAddrV4::new(ip, 4000), external(53), &data, order);
        let len = client.recv(&mut buffer).unwrap_or(0);
        assert_eq!(buffer[..len], data, "out in the order {order:?}");
    }
    assert_eq!(server.take_clients(), [host.vtep().to_string()]);
    drop(server);

    let inside = Server::udp(&netns, any(53));
    let client = sock::within(external_netns, || UdpSocket::bind("0.0.0.0:4001")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = SocketAddrV4::new(host.vtep(), 5300);
    for order in orders {
        send_fragments(external_netns, SocketAddrV4::new(External::IP, 4001), to, &data, order);
        let len = client.recv(&mut buffer).unwrap_or(0);
        assert_eq!(buffer[..len], data, "in, in the order {order:?}");
    }
    assert_eq!(inside.take_clients(), [External::IP.to_string()]);

    // Fragments of the host itself pass to the host.
    let on_host = Server::udp(host.netns.path(), any(5400));
    let to = SocketAddrV4::new(host.vtep(), 5400);
    for order in orders {
        send_fragments(external_netns, SocketAddrV4::new(External::IP, 4001), to, &data, order);
        let len = client.recv(&mut buffer).unwrap_or(0);
        assert_eq!(buffer[..len], data, "to the host, in the order {order:?}");
    }
    drop(on_host);
    for direction in ["from_container", "from_underlay"] {
        assert!(host.counter(direction, "fragment_released") > 0, "{direction}");
    }
}

/// Checksums are right with every setting of the devices' offloads: outbound, inbound, and to a
/// published port.
#[test]
#[ignore = "needs root"]
fn every_combination_of_offloads() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &["-p", "8000:80", "-p", "5300:53/udp"]);
    let netns = container(&name);
    let out_tcp = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let out_udp = Server::udp(world.external.host.path(), any(53));
    let in_tcp = Server::tcp(&netns, any(80), Behaviour::Echo);
    let in_udp = Server::udp(&netns, any(53));
    let set = |features: &str| {
        host.in_container(&name, &format!("ethtool -K eth0 {features}"));
        host.netns.run(&format!("ethtool -K up0 {features}"));
        world
            .external
            .router
            .run(&format!("ethtool -K up0 {features}; ethtool -K out0 {features}"));
        world.external.host.run(&format!("ethtool -K eth0 {features}"));
    };
    for features in [
        "tx on rx on tso on gso on gro on",
        "tx on rx on tso off gso off gro on",
        "tx on rx on tso off gso off gro off",
        "tx off rx on tso off gso on gro on",
        "tx off rx off tso off gso off gro off",
    ] {
        set(features);
        let published = SocketAddrV4::new(host.vtep(), 8000);
        for (from, to) in [
            (netns.as_path(), external(80)),
            (world.external.host.path(), published),
            (host.netns.path(), published),
            (host.netns.path(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8000)),
            (netns.as_path(), published),
        ] {
            let answer = sock::tcp(from, to, 0, Use::Echo(300_000));
            assert_eq!(answer, "ok 300000", "{features}: {} to {to}", from.display());
        }
        let published = SocketAddrV4::new(host.vtep(), 5300);
        for (from, to) in [
            (netns.as_path(), external(53)),
            (world.external.host.path(), published),
            (host.netns.path(), published),
            (netns.as_path(), published),
        ] {
            for len in [1, 1000, 5000] {
                let answer = sock::udp(from, to, 0, len);
                assert_eq!(answer, format!("ok {len}"), "{features}: {} to {to}", from.display());
            }
        }
    }
    // No packet was dropped for its checksum.
    for (netns, what) in [(world.external.host.path(), "external"), (netns.as_path(), "container")]
    {
        let snmp = sock::within(netns, || std::fs::read_to_string("/proc/thread-self/net/snmp"));
        let errors = checksum_errors(&snmp.unwrap());
        assert_eq!(errors, 0, "{what}");
    }
    drop((out_tcp, out_udp, in_tcp, in_udp));
}

/// Sum of `InCsumErrors` of TCP, UDP and ICMP in `/proc/net/snmp`.
fn checksum_errors(snmp: &str) -> u64 {
    let mut sum = 0;
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks(2) {
        let [names, values] = pair else { continue };
        let row = names.split(' ').zip(values.split(' '));
        sum += row
            .filter(|(name, _)| *name == "InCsumErrors")
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum::<u64>();
    }
    sum
}

/// The gateway reports the MTU of the host's route to a container that sends larger packets. Only a
/// locked MTU counts, as in Linux's own forwarding.
#[test]
#[ignore = "needs root"]
fn the_mtu_of_a_route_is_told() {
    let world = World::new(1);
    let host = world.host();
    let (name, _) = world.run("bridge", &[]);
    let router = Underlay::address(100);
    host.netns.run(&format!("ip route add {}/32 via {router} mtu lock 1300", External::IP));
    let ping = format!("ping -c1 -W9 -M do -s 1400 {}", External::IP);
    let told = host.try_in_container(&name, &ping);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("From 172.17.0.1") && told.contains("mtu = 1300"), "{told}");
    host.in_container(&name, &format!("ping -c1 -W2 -M do -s 1272 {}", External::IP));
    let server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let answer = sock::tcp(&container(&name), external(80), 0, Use::Echo(200_000));
    assert_eq!(answer, "ok 200000");
    drop(server);
}

/// On a host with two uplinks, a flow leaves with the address that the route selects. A packet to
/// an interface that is no uplink is refused with its own reason.
#[test]
#[ignore = "needs root"]
fn the_route_chooses_the_source_address() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &cluster.hosts[0];
    let (second, third) = (Netns::new("second"), Netns::new("third"));
    for (ifname, other, net) in [("up1", &second, "203.0.113"), ("lan0", &third, "100.64.0")] {
        host.netns.connect(ifname, other, "eth0", 1500);
        host.netns.run(&format!("ip addr add {net}.1/24 dev {ifname}"));
        other.run(&format!("ip addr add {net}.2/24 dev eth0"));
    }
    cluster.hosts[0].start_agent(&["--uplink", "up1"]);
    cluster.hosts[0].wait_ready();
    let beyond = External::of(&cluster);
    let world = World { cluster, external: beyond };
    let host = world.host();
    let (name, _) = world.run("bridge", &[]);
    let netns = container(&name);
    let first = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    let other = Server::tcp(second.path(), any(80), Behaviour::Echo);
    assert_eq!(sock::tcp(&netns, external(80), 0, Use::Echo(10)), "ok 10");
    let to = SocketAddrV4::new([203, 0, 113, 2].into(), 80);
    assert_eq!(sock::tcp(&netns, to, 0, Use::Echo(10)), "ok 10");
    assert_eq!(first.take_clients(), [host.vtep().to_string()]);
    assert_eq!(other.take_clients(), ["203.0.113.1"]);
    // The route prefers a source address.
    host.netns.run(
        "ip addr add 203.0.113.7/24 dev up1; ip route add 203.0.113.2/32 dev up1 src 203.0.113.7",
    );
    wait_until(SOON, "the other source address", || {
        sock::tcp(&netns, to, 0, Use::Echo(10)) == "ok 10"
            && other.take_clients() == ["203.0.113.7"]
    });
    let lan = SocketAddrV4::new([100, 64, 0, 2].into(), 80);
    assert_eq!(sock::tcp(&netns, lan, 0, Use::Echo(10)), "unreachable");
    assert!(host.counter("from_container", "not_an_uplink") > 0);
}
