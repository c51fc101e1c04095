//! Legal frames of each kind, by the program that they come to. The mutations begin with them.

use culvert_tests::packet::{
    ACK, Arp, BROADCAST, FIN, Host, RST, SYN, Tunnel, V4, V6, ethernet, payload,
};

use super::scene::{CONNECTED, NETS, NOWHERE, Net, PUBLISHED};
use crate::{
    interfaces::Interface,
    nd::{ADVERT, OVERRIDE, SOLICITED, TARGET_OPTION, advert, link_layer, message, solicit},
    routed::{echo, fragments},
    run::Program,
    world::{
        CLIENT, FARTHER, IN_B, NOBODY, OUR_VTEP, PEER, PEER2, ROUTER, ROUTER_MAC, SECOND, SERVER,
        SERVER2, SERVICE, STRANGER, US, US_TO_CLIENTS, from_peer, to_peer, to_peer2,
    },
};

/// A multicast group.
const GROUP: Host = Host { mac: [1, 0, 0x5e, 1, 2, 3], v4: [239, 1, 2, 3], v6: [0; 16] };

/// A place that frames come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) program: Program,
    /// The interface of the frames.
    pub(super) ifindex: u32,
    /// The network of the container or of the gateway device.
    pub(super) net: Option<&'static Net>,
    /// The container, and its interface.
    pub(super) container: Option<(Interface, Host)>,
    /// The host forwards the frames.
    pub(super) forwarded: bool,
    /// Legal frames.
    pub(super) frames: Vec<Vec<u8>>,
}

impl Source {
    fn new(program: Program, frames: Vec<Vec<u8>>) -> Self {
        let ifindex = program.ifindex();
        Self { program, ifindex, net: None, container: None, forwarded: false, frames }
    }
}

/// All sources.
pub(super) fn sources() -> Vec<Source> {
    let mut all = Vec::new();
    for net in &NETS {
        let [first, second] = net.interfaces;
        for (interface, me, peer) in [(first, net.one, net.two), (second, net.two, net.one)] {
            let frames = of_container(net, &me, &peer);
            all.push(Source {
                ifindex: interface.ifindex(),
                net: Some(net),
                container: Some((interface, me)),
                ..Source::new(Program::Container, frames)
            });
        }
        let of_host = Source::new(Program::Host, of_host(net));
        all.push(Source { ifindex: net.gateway_ifindex, net: Some(net), ..of_host });
        let of_host = Source::new(Program::Host, forwarded(net));
        all.push(Source {
            ifindex: net.gateway_ifindex,
            net: Some(net),
            forwarded: true,
            ..of_host
        });
        all.push(Source::new(Program::Underlay, of_tunnel(net)));
    }
    let every_outer = NETS.iter().flat_map(of_tunnel).chain(external()).collect();
    all.push(Source::new(Program::UnderlayXdp, every_outer));
    all.push(Source::new(Program::Underlay, external()));
    all.push(Source::new(Program::Loopback, of_loopback()));
    all.push(Source::new(Program::Client, of_client()));
    for forwarded in [false, true] {
        all.push(Source { forwarded, ..Source::new(Program::Out, leaving()) });
    }
    all
}

/// Frames of the container `me`.
fn of_container(net: &Net, me: &Host, peer: &Host) -> Vec<Vec<u8>> {
    let mut all = bridged(net, me, peer);
    all.extend(routed(net, me));
    all
}

/// Frames to other endpoints of the network.
fn bridged(net: &Net, me: &Host, peer: &Host) -> Vec<Vec<u8>> {
    let far = &net.far;
    let report = V4 { protocol: 2, ttl: 1, options: vec![0x94, 4, 0, 0], ..V4::new(me, &GROUP) };
    let of_another = message(
        (me.mac, far.mac),
        (me.v6, far.v6),
        (ADVERT, SOLICITED | OVERRIDE),
        me.v6,
        &link_layer(TARGET_OPTION, NOBODY.mac),
    );
    let mut all = vec![
        V4::udp(me, peer, (1, 2), &payload(60)).frame(),
        V4::tcp(me, peer, (1, 2), &payload(60)).frame(),
        V6::tcp(me, peer, (1, 2), &payload(60)).frame(),
        V4::udp(me, far, (1, 2), &payload(60)).frame(),
        V4::tcp(me, far, (1, 2), &payload(600)).frame(),
        V4 { options: vec![1; 12], ..V4::udp(me, far, (1, 2), &payload(60)) }.frame(),
        V6::udp(me, far, (1, 2), &payload(60)).frame(),
        V4::udp(me, far, (1, 2), &payload(1500)).frame(),
        V6::udp(me, far, (1, 2), &payload(1500)).frame(),
        V4::udp(me, &FARTHER, (1, 2), &payload(60)).frame(),
        V4::udp(me, me, (1, 2), &payload(60)).frame(),
        V4::udp(me, &NOBODY, (1, 2), &payload(60)).frame(),
        V6::udp(me, &NOBODY, (1, 2), &payload(9))
            .extended(0, &[0; 7])
            .extended(44, &[0; 7])
            .frame(),
        V4::udp(me, &GROUP, (1, 2), &payload(60)).frame(),
        V4 { l4: vec![0x16, 0, 0, 0, 239, 1, 2, 3], ..report.clone() }.frame(),
        V4 { l4: vec![0x11, 0, 0, 0, 0, 0, 0, 0], ..report }.frame(),
        Arp::request(me, peer.v4).frame(),
        Arp::request(me, far.v4).frame(),
        Arp::request(me, NOBODY.v4).frame(),
        Arp::request(me, net.gateway.v4).frame(),
        Arp::request(me, me.v4).frame(),
        Arp::reply(me, peer).frame(),
        Arp::reply(me, far).frame(),
        solicit(me, peer.v6).frame(),
        solicit(me, far.v6).frame(),
        solicit(me, NOBODY.v6).frame(),
        advert(me, far).frame(),
        of_another.frame(),
        ethernet(BROADCAST, me.mac, 0x88b5, &payload(60)),
        ethernet(far.mac, me.mac, 0x88b5, &payload(60)),
    ];
    let datagram = V4::udp(me, far, (1, 2), &payload(1000));
    all.extend(fragments(&datagram, &[400, 400]).iter().map(V4::frame));
    all
}

/// Frames that a container sends to its gateway.
fn routed(net: &Net, me: &Host) -> Vec<Vec<u8>> {
    let datagram = V4::udp(me, &SERVER, (1000, 53), &payload(60));
    let late = V4 { id: 7, ..V4::udp(me, &SERVER2, (1001, 53), &payload(900)) };
    let vtep = |v4| Host { v4, ..US };
    let gateway = &net.gateway;
    let to = |host: &Host, port| V4::udp(me, host, (1000, port), &payload(60));
    let segment = |host: &Host, ports, flags| V4::segment(me, host, ports, flags, &[]);
    let quoted = V4::udp(&SERVER, me, (53, 1000), &payload(60)).packet();
    let quoted_client = V4::segment(&SERVER, me, (5000, 80), SYN, &[]).packet();
    let mut damaged = segment(&SERVER2, (1003, 80), SYN);
    damaged.l4[16] ^= 0x55;
    // Too long to be held until the first fragment comes.
    let long = V4 { id: 11, protocol: 17, l4: payload(2104), ..V4::new(me, &SERVER) };
    let mut all = vec![
        datagram.clone(),
        V4 { ttl: 1, ..datagram.clone() },
        to(&SERVER2, 4789),
        segment(&SERVER, (1000, 80), SYN),
        segment(&SERVER, (1000, 80), ACK),
        segment(&SERVER, (1000, 80), FIN | ACK),
        segment(&SERVER, (1000, 80), RST),
        damaged,
        V4 { df: false, mf: true, offset: 1, ..long },
        to(&NOWHERE, 53),
        // A server connects to its client's port.
        segment(&SERVER2, (80, CONNECTED), SYN),
        // Answers of published ports.
        segment(&SERVER, (80, 5000), SYN | ACK),
        segment(&CLIENT, (80, 5000), SYN | ACK),
        segment(gateway, (80, 5000), SYN | ACK),
        V4::udp(me, &SERVER, (80, 5000), &payload(60)),
        // Published ports, and the host's own.
        segment(&US, (5000, PUBLISHED), SYN),
        segment(&US, (5000, PUBLISHED), ACK),
        to(&US, PUBLISHED),
        to(&SECOND, PUBLISHED),
        to(gateway, 53),
        to(&SERVICE, 53),
        to(&CLIENT, 53),
        to(&IN_B, 53),
        to(&vtep(PEER), 4789),
        to(&vtep(PEER2), 8472),
        to(&vtep(OUR_VTEP), 4789),
        to(&Host { v4: [224, 0, 0, 1], ..US }, 53),
        to(&Host { v4: [127, 0, 0, 1], ..US }, PUBLISHED),
        echo(me, &SERVER, 8, 77),
        echo(me, &SERVER, 0, 78),
        V4::new(me, &SERVER),
        V4::icmp(me, &SERVER, 3, 1, [0; 4], &quoted),
        V4::icmp(me, &SERVER, 3, 3, [0; 4], &quoted_client),
    ];
    all.extend(fragments(&V4::udp(me, &SERVER, (1002, 53), &payload(900)), &[400]));
    all.extend(fragments(&late, &[304, 304]).into_iter().rev());
    let routed = all.into_iter().map(|packet| V4 { eth_dst: gateway.mac, ..packet }.frame());
    let v6 = V6 { eth_dst: gateway.mac, ..V6::udp(me, &net.far, (1, 2), &payload(60)) };
    // The flags are in the next fragment; what is in their place is padding.
    let syn = V4 { eth_dst: gateway.mac, ..segment(gateway, (1004, 80), SYN) };
    let padded = [fragments(&syn, &[8])[0].frame(), vec![0, 0, 0, 0, 0x50, ACK]].concat();
    routed.chain([v6.frame(), padded]).collect()
}

/// Frames that the host itself sends.
fn of_host(net: &Net) -> Vec<Vec<u8>> {
    let gateway = &net.gateway;
    let to = |host: &Host| V4::udp(gateway, host, (1000, 2000), &payload(77));
    vec![
        to(&net.one).frame(),
        to(&net.two).frame(),
        to(&net.far).frame(),
        to(&FARTHER).frame(),
        to(&NOBODY).frame(),
        to(&Host { v4: [224, 0, 0, 1], ..NOBODY }).frame(),
        V4::tcp(gateway, &net.far, (1, 2), &payload(1500)).frame(),
        V4::tcp(gateway, &net.one, (1, 2), &payload(60)).frame(),
        V4 { options: vec![1; 12], ..to(&net.far) }.frame(),
        V6::udp(gateway, &net.one, (1, 2), &payload(60)).frame(),
        Arp::request(gateway, net.one.v4).frame(),
    ]
}

/// Frames that the host forwards to containers.
fn forwarded(net: &Net) -> Vec<Vec<u8>> {
    let quoted = V4::udp(&net.one, &SERVICE, (1000, 53), &payload(60)).packet();
    let mut all = vec![
        V4::udp(&SERVICE, &net.one, (53, 1000), &payload(60)).frame(),
        V4::udp(&SERVICE, &net.two, (53, 1000), &payload(60)).frame(),
        V4::udp(&SERVER, &net.one, (53, 1000), &payload(60)).frame(),
        V4::segment(&CLIENT, &net.one, (5000, 80), SYN, &[]).frame(),
        echo(&CLIENT, &net.two, 8, 9).frame(),
        V4::icmp(&SERVER, &net.one, 3, 1, [0; 4], &quoted).frame(),
        V4::new(&SERVER, &net.one).frame(),
    ];
    let datagram = V4::udp(&SERVER, &net.one, (53, 1000), &payload(900));
    all.extend(fragments(&datagram, &[400]).iter().map(V4::frame));
    all
}

/// VXLAN of a network.
fn of_tunnel(net: &Net) -> Vec<Vec<u8>> {
    let Net { one, two, far, gateway, .. } = net;
    let tunnel = Tunnel { vni: net.vni, ..from_peer() };
    let behind_router = Tunnel { src: PEER2, eth_src: ROUTER_MAC, ..tunnel.clone() };
    let datagram = V4::udp(far, one, (1, 2), &payload(60)).frame();
    let other_host = Host { mac: gateway.mac, v4: PEER, v6: [0; 16] };
    let this_host = Host { mac: gateway.mac, ..US };
    let as_source = |mac| Host { mac, ..*far };
    let as_gateway = Host { v4: gateway.v4, ..*far };
    // Two datagrams as plain UDP GRO merges them.
    let merged = [datagram.as_slice(), &tunnel.vxlan(), &datagram].concat();
    let mut tagged = datagram.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let mut all: Vec<_> = [
        datagram.clone(),
        V4::tcp(far, two, (1, 2), &payload(600)).frame(),
        V6::udp(far, one, (1, 2), &payload(60)).frame(),
        Arp::request(far, one.v4).frame(),
        Arp::request(far, NOBODY.v4).frame(),
        Arp::reply(far, two).frame(),
        solicit(far, one.v6).frame(),
        advert(far, one).frame(),
        V4::udp(far, &GROUP, (1, 2), &payload(60)).frame(),
        ethernet(one.mac, far.mac, 0x88b5, &payload(60)),
        V4::udp(far, &NOBODY, (1, 2), &payload(60)).frame(),
        V4::udp(far, &FARTHER, (1, 2), &payload(60)).frame(),
        V4::udp(two, one, (1, 2), &payload(60)).frame(),
        V4::udp(&as_source([0; 6]), one, (1, 2), &payload(60)).frame(),
        V4::udp(&as_source([3; 6]), one, (1, 2), &payload(60)).frame(),
        V4::udp(&as_gateway, one, (1, 2), &payload(60)).frame(),
        Arp::request(gateway, one.v4).frame(),
        V4::udp(&other_host, one, (1000, 2000), &payload(60)).frame(),
        V4::segment(&other_host, one, (1000, 80), SYN, &[]).frame(),
        V4::udp(far, &this_host, (1000, 2000), &payload(60)).frame(),
        merged,
        tagged,
    ]
    .iter()
    .map(|inner| tunnel.wrap(inner))
    .collect();
    let outer = [
        behind_router.clone(),
        Tunnel { src: STRANGER, ..tunnel.clone() },
        Tunnel { tos: 3, ..tunnel.clone() },
        Tunnel { checksum: true, ..tunnel.clone() },
        Tunnel { flags: 0, ..tunnel.clone() },
        Tunnel { reserved2: 1, ..tunnel.clone() },
        Tunnel { vni: net.vni + 7, ..tunnel.clone() },
        Tunnel { mf: true, df: false, ..tunnel.clone() },
        Tunnel { trailer: vec![0; 5], ..tunnel.clone() },
    ];
    all.extend(outer.iter().map(|tunnel| tunnel.wrap(&datagram)));
    // Without its padding the frame is shorter than the kernel accepts.
    all.push(Tunnel { trailer: vec![0x45; 60], ..tunnel }.wrap(&datagram[..30]));
    all.push(behind_router.wrap(&V4::udp(&FARTHER, one, (1, 2), &payload(60)).frame()));
    all
}

/// Other frames on the uplink.
fn external() -> Vec<Vec<u8>> {
    let router = Host { v4: ROUTER, ..SERVER };
    let ours = V4::udp(&US, &SERVER, (1000, 53), &payload(60)).packet();
    let tunnelled = V4::udp(&US, &Host { v4: PEER, ..SERVER }, (50_000, 4789), &payload(60));
    let segment = |host: &Host, flags| V4::segment(host, &US, (5000, PUBLISHED), flags, &[]);
    let mut all = vec![
        V4::udp(&SERVER, &US, (53, 1000), &payload(60)).frame(),
        V4::udp(&SERVER2, &US, (53, 1000), &payload(60)).frame(),
        V4::segment(&SERVER, &US, (80, 1000), SYN | ACK, &[]).frame(),
        V4::segment(&SERVER, &US, (80, 1000), ACK, &[]).frame(),
        V4::segment(&SERVER, &US, (80, 1000), RST, &[]).frame(),
        segment(&SERVER, SYN).frame(),
        segment(&SERVER, ACK).frame(),
        segment(&SERVER2, SYN).frame(),
        V4 { ttl: 1, ..segment(&SERVER, SYN) }.frame(),
        V4::udp(&SERVER2, &US, (5000, PUBLISHED), &payload(60)).frame(),
        echo(&SERVER, &US, 0, 77).frame(),
        echo(&SERVER, &US, 8, 77).frame(),
        V4::icmp(&SERVER, &US, 3, 3, [0; 4], &ours).frame(),
        V4::icmp(&router, &US, 3, 4, [0, 0, 5, 0], &ours).frame(),
        V4::icmp(&router, &US, 3, 4, [0, 0, 5, 0], &tunnelled.packet()).frame(),
        V4::new(&SERVER, &US).frame(),
        Arp::request(&router, OUR_VTEP).frame(),
        V6::udp(&SERVER, &US, (1, 2), &payload(60)).frame(),
    ];
    let datagram = V4 { id: 9, ..V4::udp(&SERVER2, &US, (5000, PUBLISHED), &payload(900)) };
    all.extend(fragments(&datagram, &[304, 304]).iter().rev().map(V4::frame));
    let datagram = V4::udp(&SERVER, &US, (53, 1000), &payload(900));
    all.extend(fragments(&datagram, &[400]).iter().map(V4::frame));
    all
}

/// Frames on the loopback device.
fn of_loopback() -> Vec<Vec<u8>> {
    let local = Host { mac: [0; 6], v4: [127, 0, 0, 1], v6: [0; 16] };
    let us = Host { mac: [0; 6], ..US };
    let quoted = V4::udp(&local, &local, (PUBLISHED, 5000), &payload(60)).packet();
    vec![
        V4::segment(&local, &local, (5000, PUBLISHED), SYN, &[]).frame(),
        V4::segment(&local, &local, (5000, PUBLISHED), ACK, &[]).frame(),
        V4::segment(&us, &us, (5001, PUBLISHED), SYN, &[]).frame(),
        V4::udp(&us, &us, (5000, PUBLISHED), &payload(60)).frame(),
        V4::udp(&local, &local, (5000, 53), &payload(60)).frame(),
        V4::icmp(&local, &local, 3, 3, [0; 4], &quoted).frame(),
        echo(&local, &local, 8, 7).frame(),
        Arp::request(&local, local.v4).frame(),
    ]
}

/// Frames on the client link.
fn of_client() -> Vec<Vec<u8>> {
    let to_us = Host { mac: US_TO_CLIENTS.mac, ..US };
    let stranger = Host { v4: SERVER.v4, ..CLIENT };
    let mut all = vec![
        V4::segment(&CLIENT, &US_TO_CLIENTS, (5000, PUBLISHED), SYN, &[]).frame(),
        V4::segment(&CLIENT, &US_TO_CLIENTS, (5000, PUBLISHED), ACK, &[]).frame(),
        V4::segment(&CLIENT, &to_us, (5001, PUBLISHED), SYN, &[]).frame(),
        V4::segment(&stranger, &US_TO_CLIENTS, (5000, PUBLISHED), SYN, &[]).frame(),
        V4::udp(&CLIENT, &US_TO_CLIENTS, (5000, PUBLISHED), &payload(60)).frame(),
        V4::udp(&CLIENT, &US_TO_CLIENTS, (53, 1000), &payload(60)).frame(),
        Tunnel { eth_dst: US_TO_CLIENTS.mac, eth_src: CLIENT.mac, ..from_peer() }
            .wrap(&V4::udp(&NETS[0].far, &NETS[0].one, (1, 2), &payload(60)).frame()),
        Arp::request(&CLIENT, US_TO_CLIENTS.v4).frame(),
    ];
    let datagram = V4::udp(&CLIENT, &US_TO_CLIENTS, (5002, PUBLISHED), &payload(900));
    all.extend(fragments(&datagram, &[400]).iter().map(V4::frame));
    all
}

/// Frames that leave by the uplink: what Culvert sends, and what others send.
fn leaving() -> Vec<Vec<u8>> {
    let peer = Host { v4: PEER, ..SERVER };
    let datagram = V4::udp(&NETS[0].one, &NETS[0].far, (1, 2), &payload(60)).frame();
    let tunnels = [
        to_peer(),
        to_peer2(),
        Tunnel { vni: NETS[1].vni, ..to_peer() },
        Tunnel { checksum: true, src_port: 40_000, ..to_peer() },
        Tunnel { mf: true, df: false, ..to_peer() },
        Tunnel { options: vec![1, 1, 1, 0], ..to_peer() },
        Tunnel { src: STRANGER, ..to_peer() },
        Tunnel { dst: STRANGER, ..to_peer() },
        Tunnel { dst_port: 4789, ..to_peer2() },
    ];
    let mut all: Vec<_> = tunnels.iter().map(|tunnel| tunnel.wrap(&datagram)).collect();
    all.extend([
        V4::udp(&US, &peer, (5000, 4789), b"x").frame(),
        V4::udp(&US, &SERVER, (1000, 53), &payload(60)).frame(),
        V4::tcp(&US, &peer, (5000, 4789), &payload(60)).frame(),
        echo(&US, &peer, 8, 7).frame(),
        V6::udp(&US, &peer, (5000, 4789), &payload(60)).frame(),
        Arp::request(&US, PEER).frame(),
    ]);
    all
}
