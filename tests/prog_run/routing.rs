//! Routes of a container's packet to its gateway, and the ICMP errors for packets without a route.

use culvert::datapath::{Table as _, now_ns};
use culvert_common::abi::{DropReason, NetworkInfo, Note, RateKey};
use culvert_tests::packet::{Arp, Host, SYN, V4, V6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    routed::{
        CREATED, echo, entries, forget_all, fragments, outbound, publish, to_gateway, with_routes,
    },
    run::{Expected, Left, SHOT, copy, drop, note},
    world::{
        A, FAR, GATEWAY, GATEWAY_OF_B, IN_B, ONE, SECOND, SERVER, TWO, US, change_network, to_peer,
    },
};

cases!(
    to_the_gateway_itself,
    to_addresses_of_the_host,
    to_the_host_of_every_protocol,
    to_the_host_from_an_isolated_network,
    to_an_address_the_agent_does_not_know_yet,
    to_nowhere,
    ttl_runs_out,
    ttl_of_two_is_enough,
    too_big,
    too_big_without_df,
    gso_is_judged_by_its_segments,
    internal_network,
    isolated,
    not_an_uplink,
    blackhole_unreachable_prohibited,
    no_error_about_an_error,
    errors_are_limited,
    group_and_loopback_addresses,
    not_ipv4,
    protocol_unsupported,
    network_without_gateway,
    truncated_upper_layer,
    inside_the_network_is_not_routed,
);

const PORT: u16 = 40_000;

fn datagram(dst: &Host) -> V4 {
    to_gateway(&V4::udp(&ONE, dst, (PORT, 53), &payload(40)))
}

/// The ICMP error about `packet` from `A1`'s gateway.
pub(crate) fn error(packet: &V4, kind: u8, code: u8, mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let mut quote = packet.packet();
    quote.truncate(if quote.len() < 64 { 28 } else { 64 });
    let error = V4::icmp(&GATEWAY, &ONE, kind, code, [0, 0, high, low], &quote);
    V4 { tos: 0xc0, ttl: 64, id: 0, ..error }.frame()
}

#[track_caller]
pub(crate) fn is_told(lab: &mut Lab, packet: &V4, reason: DropReason, sent: Note, error: &[u8]) {
    lab.at_container(Interface::A1, &packet.frame()).gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[drop(reason), note(sent).bytes(error.len())],
        copies: &[copy(Interface::A1, error)],
    });
    assert_eq!(entries(lab), 0);
}

fn to_the_gateway_itself(lab: &mut Lab) {
    lab.at_container(Interface::A1, &datagram(&GATEWAY).frame()).begins_to_host();
    lab.at_container(Interface::A1, &datagram(&GATEWAY).frame()).reaches_host();
    assert_eq!(entries(lab), 2);
}

fn to_addresses_of_the_host(lab: &mut Lab) {
    for host in [US, SECOND] {
        lab.at_container(Interface::A1, &datagram(&host).frame()).begins_to_host();
    }
    // The port is published for another protocol, and another port for this protocol.
    publish(lab, [0; 4], 6, 53, Interface::A2, 80);
    publish(lab, [0; 4], 17, 54, Interface::A2, 80);
    lab.at_container(Interface::A1, &datagram(&US).frame()).reaches_host();
    assert_eq!(entries(lab), 4);
}

fn to_the_host_of_every_protocol(lab: &mut Lab) {
    for packet in [
        V4::segment(&ONE, &US, (PORT, 22), SYN, &[]),
        echo(&ONE, &US, 8, 1),
        V4 { ttl: 1, ..V4::udp(&ONE, &US, (1, 2), b"x") },
        V4 { options: vec![1; 8], ..V4::udp(&ONE, &US, (3, 4), b"x") },
    ] {
        lab.at_container(Interface::A1, &to_gateway(&packet).frame()).begins_to_host();
    }
    for packet in [
        echo(&ONE, &US, 0, 1),
        V4::icmp(&ONE, &US, 13, 0, [0; 4], &payload(12)),
        V4 { protocol: 47, l4: payload(30), ..V4::new(&ONE, &US) },
    ] {
        lab.at_container(Interface::A1, &to_gateway(&packet).frame()).reaches_host();
    }
}

fn to_the_host_from_an_isolated_network(lab: &mut Lab) {
    for dst in [US, SECOND, GATEWAY] {
        let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..datagram(&dst) };
        lab.at_container(Interface::B1, &packet.frame()).drops(DropReason::Isolated);
    }
    // External access still works.
    let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..datagram(&SERVER) };
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), &payload(40)));
    lab.at_container(Interface::B1, &packet.frame()).leaves_as(&left, &CREATED);
}

fn to_an_address_the_agent_does_not_know_yet(lab: &mut Lab) {
    let new = Host { v4: [192, 0, 2, 88], ..US };
    with_routes(
        lab,
        "address add 192.0.2.88/32 dev uplink\n",
        "address del 192.0.2.88/32 dev uplink\n",
        |lab| lab.at_container(Interface::A1, &datagram(&new).frame()).reaches_host(),
    );
    assert_eq!(entries(lab), 0);
}

fn to_nowhere(lab: &mut Lab) {
    // The host's stack answers this packet.
    with_routes(
        lab,
        "route del default\n",
        "route add default via 192.0.2.254 dev uplink\n",
        |lab| {
            lab.at_container(Interface::A1, &datagram(&SERVER).frame()).reaches_host();
            let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..datagram(&SERVER) };
            lab.at_container(Interface::B1, &packet.frame()).drops(DropReason::Isolated);
        },
    );
}

fn ttl_runs_out(lab: &mut Lab) {
    for packet in [
        V4 { ttl: 1, ..datagram(&SERVER) },
        V4 { ttl: 0, ..datagram(&SERVER) },
        V4 { ttl: 1, options: vec![1; 8], ..datagram(&SERVER) },
        V4 { ttl: 1, ..to_gateway(&V4::udp(&ONE, &SERVER, (1, 2), b"short")) },
        V4 { ttl: 1, ..to_gateway(&V4::segment(&ONE, &SERVER, (1, 2), SYN, &[])) },
        V4 { ttl: 1, ..to_gateway(&echo(&ONE, &SERVER, 8, 5)) },
    ] {
        let told = error(&packet, 11, 0, 0);
        is_told(lab, &packet, DropReason::TtlExceeded, Note::IcmpTtlSent, &told);
    }
}

fn ttl_of_two_is_enough(lab: &mut Lab) {
    let packet = V4 { ttl: 2, ..datagram(&SERVER) };
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), &payload(40)));
    let run = lab.at_container(Interface::A1, &packet.frame());
    run.leaves_as(&V4 { ttl: 1, ..left }, &CREATED);
}

/// Runs a case with an uplink whose MTU is 1400.
fn small(lab: &mut Lab, case: impl FnOnce(&mut Lab)) {
    with_routes(lab, "link set uplink mtu 1400\n", "link set uplink mtu 9000\n", case);
}

fn too_big(lab: &mut Lab) {
    small(lab, |lab| {
        let fits = to_gateway(&V4::udp(&ONE, &SERVER, (1, 2), &payload(1400 - 28)));
        let left = outbound(&V4::udp(&US, &SERVER, (1, 2), &payload(1400 - 28)));
        lab.at_container(Interface::A1, &fits.frame()).leaves_as(&left, &CREATED);
        forget_all(lab);
        for packet in [
            V4::udp(&ONE, &SERVER, (1, 2), &payload(1401 - 28)),
            V4::tcp(&ONE, &SERVER, (1, 2), &payload(1401 - 52)),
            V4::udp(&ONE, &SERVER, (1, 2), &payload(3000)),
        ] {
            let packet = to_gateway(&packet);
            let told = error(&packet, 3, 4, 1400);
            is_told(lab, &packet, DropReason::PacketTooBig, Note::IcmpTooBigSent, &told);
        }
    });
}

fn too_big_without_df(lab: &mut Lab) {
    // The programs do not fragment.
    small(lab, |lab| {
        let packet = to_gateway(&V4::udp(&ONE, &SERVER, (1, 2), &payload(1401 - 28)));
        let packet = V4 { df: false, ..packet };
        let told = error(&packet, 3, 4, 1400);
        is_told(lab, &packet, DropReason::PacketTooBig, Note::IcmpTooBigSent, &told);
    });
}

fn gso_is_judged_by_its_segments(lab: &mut Lab) {
    small(lab, |lab| {
        let packet = to_gateway(&V4::tcp(&ONE, &SERVER, (1, 2), &payload(3000)));
        let left = outbound(&V4::tcp(&US, &SERVER, (1, 2), &payload(3000)));
        let run = lab.at_container(Interface::A1, &packet.frame()).gso(1348);
        run.leaves_as(&left, &CREATED);
        let packet = to_gateway(&V4::tcp(&ONE, &SERVER, (1, 3), &payload(3000)));
        let told = error(&packet, 3, 4, 1400);
        lab.at_container(Interface::A1, &packet.frame()).gso(1349).gives(&Expected {
            verdict: SHOT,
            left: Left::Spent,
            counts: &[drop(DropReason::PacketTooBig), note(Note::IcmpTooBigSent).bytes(told.len())],
            copies: &[copy(Interface::A1, &told)],
        });
    });
}

fn internal_network(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::INTERNAL);
    for dst in [SERVER, US, SECOND, IN_B] {
        let frame = datagram(&dst).frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::InternalNetwork);
    }
    // The packet begins no flow, because the host forwards no answer to it.
    lab.at_container(Interface::A1, &datagram(&GATEWAY).frame()).reaches_host();
    assert_eq!(entries(lab), 0);
}

fn isolated(lab: &mut Lab) {
    lab.at_container(Interface::A1, &datagram(&IN_B).frame()).drops(DropReason::Isolated);
    // The same from network B to network A, where the route leads to A's gateway device.
    let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..datagram(&TWO) };
    lab.at_container(Interface::B1, &packet.frame()).drops(DropReason::Isolated);
    assert_eq!(entries(lab), 0);
}

fn not_an_uplink(lab: &mut Lab) {
    lab.tables.uplinks.remove(&Interface::Uplink.ifindex()).unwrap();
    let packet = datagram(&SERVER);
    let told = error(&packet, 3, 13, 0);
    is_told(lab, &packet, DropReason::NotAnUplink, Note::IcmpUnreachableSent, &told);
    assert_eq!(entries(lab), 0);
}

fn blackhole_unreachable_prohibited(lab: &mut Lab) {
    for (kind, code) in [("blackhole", 1), ("unreachable", 1), ("prohibit", 13)] {
        let set = format!("route add {kind} 203.0.113.7/32\n");
        let unset = format!("route del {kind} 203.0.113.7/32\n");
        with_routes(lab, &set, &unset, |lab| {
            let packet = datagram(&SERVER);
            let told = error(&packet, 3, code, 0);
            is_told(lab, &packet, DropReason::NoRoute, Note::IcmpUnreachableSent, &told);
        });
    }
}

fn no_error_about_an_error(lab: &mut Lab) {
    // RFC 1122 §3.2.2.
    let packet = datagram(&SERVER);
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), &payload(40)));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
    let answer = V4::udp(&SERVER, &ONE, (53, PORT), b"!").packet();
    let error = to_gateway(&V4::icmp(&ONE, &SERVER, 3, 3, [0; 4], &answer[..28]));
    let outcome = lab.at_container(Interface::A1, &V4 { ttl: 1, ..error }.frame()).outcome();
    assert_eq!((outcome.verdict, outcome.copies.len(), outcome.counts.len()), (SHOT, 0, 1));
    // A later fragment causes no error either.
    let [first, later] = fragments(&packet, &[24]).try_into().unwrap();
    let run = lab.at_container(Interface::A1, &first.frame());
    run.redirects(culvert_common::abi::Action::NatOut, Left::Spent, &[]);
    let run = lab.at_container(Interface::A1, &V4 { ttl: 1, ..later }.frame());
    run.drops(DropReason::TtlExceeded);
}

fn errors_are_limited(lab: &mut Lab) {
    let limit = RateKey { kind: RateKey::ICMP, id: Interface::A1.ifindex() };
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
    let packet = V4 { ttl: 1, ..datagram(&SERVER) };
    let run = lab.at_container(Interface::A1, &packet.frame());
    run.drops_noting(DropReason::TtlExceeded, &[note(Note::IcmpLimited)]);
    let (set, unset) = ("route add blackhole 203.0.113.7/32\n", "route del 203.0.113.7/32\n");
    with_routes(lab, set, unset, |lab| {
        let run = lab.at_container(Interface::A1, &datagram(&SERVER).frame());
        run.drops_noting(DropReason::NoRoute, &[note(Note::IcmpLimited)]);
    });
    small(lab, |lab| {
        let packet = to_gateway(&V4::udp(&ONE, &SERVER, (1, 2), &payload(1500)));
        let run = lab.at_container(Interface::A1, &packet.frame());
        run.drops_noting(DropReason::PacketTooBig, &[note(Note::IcmpTooBigLimited)]);
    });
}

fn group_and_loopback_addresses(lab: &mut Lab) {
    for v4 in [[224, 0, 0, 1], [239, 1, 2, 3], [240, 0, 0, 1], [255; 4], [127, 0, 0, 2], [0; 4]] {
        let frame = datagram(&Host { v4, ..SERVER }).frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::Unroutable);
    }
    assert_eq!(entries(lab), 0);
}

fn not_ipv4(lab: &mut Lab) {
    let frame = V6 { eth_dst: GATEWAY.mac, ..V6::udp(&ONE, &SERVER, (1, 2), b"x") }.frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::Unroutable);
    let frame = Arp::reply(&ONE, &GATEWAY).frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::Unroutable);
}

fn protocol_unsupported(lab: &mut Lab) {
    for packet in [
        V4 { protocol: 47, l4: payload(40), ..V4::new(&ONE, &SERVER) },
        V4 { protocol: 132, l4: payload(40), ..V4::new(&ONE, &SERVER) },
        V4::icmp(&ONE, &SERVER, 13, 0, [0; 4], &payload(12)),
        V4::icmp(&ONE, &SERVER, 5, 0, [0; 4], &payload(28)),
    ] {
        let frame = to_gateway(&packet).frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::ProtocolUnsupported);
    }
}

fn network_without_gateway(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.gateway_ifindex = 0);
    // The gateway's MAC is then like any other MAC.
    let outcome = lab.at_container(Interface::A1, &datagram(&SERVER).frame()).outcome();
    assert_eq!(outcome.verdict, SHOT);
    assert_eq!(entries(lab), 0);
}

fn truncated_upper_layer(lab: &mut Lab) {
    for len in 0..8 {
        let mut packet = V4::new(&ONE, &SERVER);
        (packet.protocol, packet.l4) = (17, payload(len));
        let frame = to_gateway(&packet).frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::ProtocolUnsupported);
    }
    for len in 8..14 {
        let mut packet = V4::segment(&ONE, &SERVER, (1, 2), SYN, &[]);
        packet.l4.truncate(len);
        for options in [vec![], vec![1; 4]] {
            let frame = V4 { options, ..to_gateway(&packet) }.frame();
            let run = lab.at_container(Interface::A1, &frame);
            let outcome = run.outcome();
            assert_eq!(outcome.verdict, SHOT);
        }
    }
    assert_eq!(entries(lab), 0);
}

fn inside_the_network_is_not_routed(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"x").frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    assert_eq!(entries(lab), 0);
}
