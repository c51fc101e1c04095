//! External packets to containers: answers to masqueraded flows, and clients of published ports.

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, kind, seen};
use culvert_tests::packet::{ACK, FIN, Host, RST, SYN, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::Lab,
    routed::{
        Began, CREATED, CREATED_ELSEWHERE, Passed, Place, chosen_port, echo, entries, fragments,
        inbound, outbound, publish, to_gateway, unsummed,
    },
    run::Left,
    world::{GATEWAY, GATEWAY_OF_B, ONE, PEER, ROUTER_MAC, SECOND, SERVER, SERVER2, TWO, US},
};

cases!(
    answer_tcp,
    answer_udp,
    answer_echo,
    answer_from_another,
    answer_to_another_port,
    answer_udp_without_checksum,
    answer_with_options,
    answer_summed_by_the_card,
    answer_gso,
    answer_with_ttl_one,
    not_for_our_mac,
    not_ip,
    published_exact_address,
    published_every_address,
    published_exact_before_every,
    published_answers,
    published_udp,
    published_of_another_protocol,
    published_not_of_loopback,
    published_not_of_others,
    published_container_is_gone,
    published_network_is_gone,
    published_begins_with_a_syn,
    published_not_from_addresses_of_ours,
    published_same_client_port_twice,
    published_summed_by_the_card,
    published_fragments,
    published_in_another_network,
    from_another_container,
    hairpin,
    from_a_container_with_ttl_one,
    reserved_for_the_host_not_for_clients,
);

const PORT: u16 = 40_000;
const PUBLISHED: u16 = 8080;

/// `A1` sends `packet`, which leaves as `left`.
#[track_caller]
fn leaves(lab: &mut Lab, packet: &V4, left: &V4) {
    let run = lab.at_container(Interface::A1, &to_gateway(packet).frame());
    run.leaves_as(&outbound(left), &CREATED);
}

/// The external host sends `packet`, which reaches `A1` as `arrived`.
#[track_caller]
fn answers(lab: &mut Lab, packet: &V4, arrived: &V4) {
    lab.at_underlay(&packet.frame()).arrives_as(&inbound(arrived, &GATEWAY), &[]);
}

fn answer_tcp(lab: &mut Lab) {
    let syn = |from: &Host| V4::segment(from, &SERVER, (PORT, 80), SYN, &[]);
    leaves(lab, &syn(&ONE), &syn(&US));
    let answer = |to: &Host| V4::segment(&SERVER, to, (80, PORT), SYN | ACK, &[]);
    answers(lab, &answer(&US), &answer(&ONE));
    let data = |to: &Host| V4::segment(&SERVER, to, (80, PORT), ACK | FIN, &payload(900));
    answers(lab, &data(&US), &data(&ONE));
    let (came, went) = (to_gateway(&syn(&ONE)), outbound(&syn(&US)));
    let (from, to) = (Place::At(Interface::A1), Place::External);
    let began = Began { came: &came, from, went: &went, to, kind: kind::MASQUERADE };
    let seen = seen::SYN | seen::ACK | seen::FIN;
    let reply = Passed::frames(&[&answer(&US), &data(&US)], seen);
    began.is_tracked(lab, Passed::frames(&[&came], seen::SYN), reply);
}

fn answer_udp(lab: &mut Lab) {
    let question = |from: &Host| V4::udp(from, &SERVER, (PORT, 53), b"?");
    leaves(lab, &question(&ONE), &question(&US));
    let answer = |to: &Host| V4::udp(&SERVER, to, (53, PORT), &payload(1200));
    answers(lab, &answer(&US), &answer(&ONE));
    answers(lab, &answer(&US), &answer(&ONE));
}

fn answer_echo(lab: &mut Lab) {
    let question = |from: &Host| echo(from, &SERVER, 8, 7);
    leaves(lab, &question(&ONE), &question(&US));
    answers(lab, &echo(&SERVER, &US, 0, 7), &echo(&SERVER, &ONE, 0, 7));
    // A request with the same identifier is for the host.
    lab.at_underlay(&echo(&SERVER, &US, 8, 7).frame()).passes(&[]);
    lab.at_underlay(&echo(&SERVER, &US, 0, 8).frame()).passes(&[]);
}

/// `A1` sends a query to the server.
fn asked(lab: &mut Lab) {
    let question = |from: &Host| V4::udp(from, &SERVER, (PORT, 53), b"?");
    leaves(lab, &question(&ONE), &question(&US));
}

fn answer_from_another(lab: &mut Lab) {
    asked(lab);
    lab.at_underlay(&V4::udp(&SERVER2, &US, (53, PORT), b"!").frame()).passes(&[]);
    lab.at_underlay(&V4::udp(&SERVER, &US, (54, PORT), b"!").frame()).passes(&[]);
    lab.at_underlay(&V4::tcp(&SERVER, &US, (53, PORT), b"!").frame()).passes(&[]);
}

fn answer_to_another_port(lab: &mut Lab) {
    asked(lab);
    lab.at_underlay(&V4::udp(&SERVER, &US, (53, PORT + 1), b"!").frame()).passes(&[]);
    lab.at_underlay(&V4::udp(&SERVER, &SECOND, (53, PORT), b"!").frame()).passes(&[]);
}

fn answer_udp_without_checksum(lab: &mut Lab) {
    asked(lab);
    let answer = |to: &Host| unsummed(V4::udp(&SERVER, to, (53, PORT), b"!"));
    answers(lab, &answer(&US), &answer(&ONE));
}

fn answer_with_options(lab: &mut Lab) {
    asked(lab);
    for options in [vec![1; 4], vec![1; 40]] {
        let answer =
            |to: &Host| V4 { options: options.clone(), ..V4::udp(&SERVER, to, (53, PORT), b"!") };
        answers(lab, &answer(&US), &answer(&ONE));
    }
}

fn answer_summed_by_the_card(lab: &mut Lab) {
    // The reserved port makes the external port differ from the container's.
    for protocol in [6, 17, 1] {
        lab.reserve(protocol, PORT);
    }
    let asks: [fn(&Host, u16) -> V4; 3] = [
        |from, port| V4::segment(from, &SERVER, (port, 80), SYN, &[]),
        |from, port| V4::udp(from, &SERVER, (port, 80), b"?"),
        |from, port| echo(from, &SERVER, 8, port),
    ];
    let replies: [fn(&Host, u16) -> V4; 3] = [
        |to, port| V4::segment(&SERVER, to, (80, port), SYN | ACK, &[]),
        |to, port| V4::udp(&SERVER, to, (80, port), &payload(77)),
        |to, port| echo(&SERVER, to, 0, port),
    ];
    for (ask, reply) in asks.into_iter().zip(replies) {
        let run = lab.at_container(Interface::A1, &to_gateway(&ask(&ONE, PORT)).frame());
        let left = run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE).frame;
        let port = chosen_port(&left);
        for options in [vec![], vec![1; 12]] {
            let answer = |to: &Host, port| V4 { options: options.clone(), ..reply(to, port) };
            let run = lab.at_underlay(&answer(&US, port).frame()).summed();
            run.arrives_as(&inbound(&answer(&ONE, PORT), &GATEWAY), &[]);
        }
    }
}

fn answer_gso(lab: &mut Lab) {
    let syn = |from: &Host| V4::segment(from, &SERVER, (PORT, 80), SYN, &[]);
    leaves(lab, &syn(&ONE), &syn(&US));
    let data = |to: &Host| V4::tcp(&SERVER, to, (80, PORT), &payload(3500));
    let run = lab.at_underlay(&data(&US).frame()).gso(1400);
    run.arrives_as(&inbound(&data(&ONE), &GATEWAY), &[]);
}

fn answer_with_ttl_one(lab: &mut Lab) {
    asked(lab);
    for ttl in [0, 1] {
        let answer = V4 { ttl, ..V4::udp(&SERVER, &US, (53, PORT), b"!") };
        lab.at_underlay(&answer.frame()).drops(DropReason::TtlExceeded);
    }
    let answer = |to: &Host| V4 { ttl: 2, ..V4::udp(&SERVER, to, (53, PORT), b"!") };
    let arrived = V4 { ttl: 1, ..inbound(&answer(&ONE), &GATEWAY) };
    lab.at_underlay(&answer(&US).frame()).arrives_as(&arrived, &[]);
}

fn not_for_our_mac(lab: &mut Lab) {
    asked(lab);
    let answer = V4::udp(&SERVER, &US, (53, PORT), b"!");
    for eth_dst in [ROUTER_MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        lab.at_underlay(&V4 { eth_dst, ..answer.clone() }.frame()).passes(&[]);
    }
}

fn not_ip(lab: &mut Lab) {
    asked(lab);
    let mut frame = V4::udp(&SERVER, &US, (53, PORT), b"!").frame();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    lab.at_underlay(&frame).passes(&[]);
}

/// A client's SYN to a published port of `to`.
fn syn(from: &Host, to: &Host, ports: (u16, u16)) -> V4 {
    V4::segment(from, to, ports, SYN, &[])
}

/// A client connects to `to`, and `A1` gets it.
#[track_caller]
fn reaches_a1(lab: &mut Lab, to: &Host) {
    reaches_a1_from(lab, 5000, to);
}

/// A client connects from `port` to `to`, and `A1` gets the packet.
#[track_caller]
fn reaches_a1_from(lab: &mut Lab, port: u16, to: &Host) {
    let came = syn(&SERVER, to, (port, PUBLISHED));
    let went = inbound(&syn(&SERVER, &ONE, (port, 80)), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::External, Place::At(Interface::A1));
    Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
}

fn published_exact_address(lab: &mut Lab) {
    publish(lab, US.v4, 6, PUBLISHED, Interface::A1, 80);
    reaches_a1(lab, &US);
    lab.at_underlay(&syn(&SERVER, &SECOND, (5000, PUBLISHED)).frame()).passes(&[]);
    lab.at_underlay(&syn(&SERVER, &US, (5000, PUBLISHED + 1)).frame()).passes(&[]);
}

fn published_every_address(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    reaches_a1(lab, &US);
    reaches_a1_from(lab, 5001, &SECOND);
    assert_eq!(entries(lab), 4);
}

fn published_exact_before_every(lab: &mut Lab) {
    publish(lab, US.v4, 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A2, 80);
    reaches_a1(lab, &US);
    let came = syn(&SERVER, &SECOND, (5000, PUBLISHED));
    let went = inbound(&syn(&SERVER, &TWO, (5000, 80)), &GATEWAY);
    let run = lab.at_underlay(&came.frame());
    // Both flows keep the client's port, because they lead to different containers.
    run.arrives_as(&went, &CREATED);
}

fn published_answers(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    reaches_a1(lab, &US);
    let answer = |from: &Host, port| V4::segment(from, &SERVER, (port, 5000), SYN | ACK, &[]);
    let packet = to_gateway(&answer(&ONE, 80));
    let run = lab.at_container(Interface::A1, &packet.frame());
    run.leaves_as(&outbound(&answer(&US, PUBLISHED)), &[]);
    let data = |to: &Host, port| V4::tcp(&SERVER, to, (5000, port), &payload(300));
    let run = lab.at_underlay(&data(&US, PUBLISHED).frame());
    run.arrives_as(&inbound(&data(&ONE, 80), &GATEWAY), &[]);
}

fn published_udp(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&SERVER, &US, (5000, PUBLISHED), b"?");
    let went = inbound(&V4::udp(&SERVER, &ONE, (5000, 53), b"?"), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    let answer = to_gateway(&V4::udp(&ONE, &SERVER, (53, 5000), b"!"));
    let left = outbound(&V4::udp(&US, &SERVER, (PUBLISHED, 5000), b"!"));
    lab.at_container(Interface::A1, &answer.frame()).leaves_as(&left, &[]);
}

fn published_of_another_protocol(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 80);
    lab.at_underlay(&syn(&SERVER, &US, (5000, PUBLISHED)).frame()).passes(&[]);
}

fn published_not_of_loopback(lab: &mut Lab) {
    let loopback = Host { v4: [127, 0, 0, 1], ..US };
    publish(lab, loopback.v4, 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [0; 4], 6, PUBLISHED + 1, Interface::A1, 80);
    for port in [PUBLISHED, PUBLISHED + 1] {
        lab.at_underlay(&syn(&SERVER, &loopback, (5000, port)).frame()).passes(&[]);
    }
    // The port is not published on the other addresses either.
    lab.at_underlay(&syn(&SERVER, &US, (5000, PUBLISHED)).frame()).passes(&[]);
}

fn published_not_of_others(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let other = Host { v4: PEER, ..US };
    lab.at_underlay(&syn(&SERVER, &other, (5000, PUBLISHED)).frame()).passes(&[]);
    assert_eq!(entries(lab), 0);
}

fn published_container_is_gone(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    let frame = syn(&SERVER, &US, (5000, PUBLISHED)).frame();
    lab.at_underlay(&frame).drops(DropReason::UnknownEndpoint);
    let frame = to_gateway(&syn(&TWO, &US, (5000, PUBLISHED))).frame();
    lab.at_container(Interface::A2, &frame).drops(DropReason::UnknownEndpoint);
    assert_eq!(entries(lab), 0);
}

fn published_network_is_gone(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    lab.tables.networks.remove(&crate::world::A).unwrap();
    let frame = syn(&SERVER, &US, (5000, PUBLISHED)).frame();
    lab.at_underlay(&frame).drops(DropReason::UnknownNetwork);
}

/// A segment that does not open a connection passes to the host, which answers.
fn published_begins_with_a_syn(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    for flags in [0, ACK, FIN, ACK | FIN, RST, SYN | ACK, SYN | RST] {
        let segment = V4::segment(&SERVER, &US, (5000, PUBLISHED), flags, &[]);
        lab.at_underlay(&segment.frame()).passes(&[]);
    }
    assert_eq!(entries(lab), 0);
}

/// A neighbour cannot use the address of the host or of a container, or an invalid one, as its
/// source.
fn published_not_from_addresses_of_ours(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    for v4 in [US.v4, TWO.v4, GATEWAY.v4, [127, 0, 0, 1], [0; 4], [224, 0, 0, 1], [255; 4]] {
        let client = Host { v4, ..SERVER };
        let datagram = V4::udp(&client, &US, (5000, PUBLISHED), &payload(9));
        lab.at_underlay(&datagram.frame()).passes(&[]);
    }
    assert_eq!(entries(lab), 0);
}

fn published_same_client_port_twice(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [0; 4], 6, PUBLISHED + 1, Interface::A1, 80);
    reaches_a1(lab, &US);
    let came = syn(&SERVER, &US, (5000, PUBLISHED + 1));
    let run = lab.at_underlay(&came.frame());
    let frame = run.redirects(Action::NatDeliver, Left::Spent, &CREATED_ELSEWHERE).frame;
    let port = chosen_port(&frame);
    assert_ne!(port, 5000);
    let went = inbound(&syn(&SERVER, &ONE, (port, 80)), &GATEWAY);
    same("frame", &frame, &went.frame());
    let (from, to) = (Place::External, Place::At(Interface::A1));
    Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
    let answer = |from: &Host, ports| V4::segment(from, &SERVER, ports, SYN | ACK, &[]);
    let run = lab.at_container(Interface::A1, &to_gateway(&answer(&ONE, (80, port))).frame());
    run.leaves_as(&outbound(&answer(&US, (PUBLISHED + 1, 5000))), &[]);
}

fn published_summed_by_the_card(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 80);
    let makes: [fn(&Host, u16) -> V4; 2] = [
        |to, port| syn(&SERVER, to, (5000, port)),
        |to, port| V4::udp(&SERVER, to, (5000, port), &payload(99)),
    ];
    for make in makes {
        let run = lab.at_underlay(&make(&US, PUBLISHED).frame()).summed();
        run.arrives_as(&inbound(&make(&ONE, 80), &GATEWAY), &CREATED);
    }
}

fn published_fragments(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&SERVER, &US, (5000, PUBLISHED), &payload(2000));
    let went = inbound(&V4::udp(&SERVER, &ONE, (5000, 53), &payload(2000)), &GATEWAY);
    let all = fragments(&came, &[1480]).into_iter().zip(fragments(&went, &[1480]));
    for (index, (came, went)) in all.enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_underlay(&came.frame()).arrives_as(&went, notes);
    }
}

fn published_in_another_network(lab: &mut Lab) {
    // B1 has the address of A1: the entry alone decides between the two.
    publish(lab, [0; 4], 6, PUBLISHED, Interface::B1, 80);
    let came = to_gateway(&syn(&ONE, &US, (5000, PUBLISHED)));
    let went = inbound(&syn(&GATEWAY, &ONE, (5000, 80)), &GATEWAY_OF_B);
    lab.at_container(Interface::A1, &came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::At(Interface::A1), Place::At(Interface::B1));
    Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
    let answer = V4::segment(&ONE, &GATEWAY_OF_B, (80, 5000), SYN | ACK, &[]);
    let arrived = inbound(&V4::segment(&US, &ONE, (PUBLISHED, 5000), SYN | ACK, &[]), &GATEWAY);
    lab.at_container(Interface::B1, &answer.frame()).arrives_as(&arrived, &[]);
}

fn from_another_container(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    for host in [US, SECOND, GATEWAY] {
        let before = entries(lab);
        let came = to_gateway(&syn(&TWO, &host, (5000, PUBLISHED)));
        let run = lab.at_container(Interface::A2, &came.frame());
        // Only the first flow keeps the client's port: all have the gateway's address as source.
        let notes = if before == 0 { CREATED.as_slice() } else { &CREATED_ELSEWHERE };
        let frame = run.redirects(Action::NatDeliver, Left::Spent, notes).frame;
        let port = chosen_port(&frame);
        let went = inbound(&syn(&GATEWAY, &ONE, (port, 80)), &GATEWAY);
        same("frame", &frame, &went.frame());
        let (from, to) = (Place::At(Interface::A2), Place::At(Interface::A1));
        Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
        let answer = V4::segment(&ONE, &GATEWAY, (80, port), SYN | ACK, &[]);
        let arrived = V4::segment(&host, &TWO, (PUBLISHED, 5000), SYN | ACK, &[]);
        let run = lab.at_container(Interface::A1, &answer.frame());
        run.arrives_as(&inbound(&arrived, &GATEWAY), &[]);
    }
}

fn hairpin(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let came = to_gateway(&syn(&ONE, &US, (5000, PUBLISHED)));
    let went = inbound(&syn(&GATEWAY, &ONE, (5000, 80)), &GATEWAY);
    lab.at_container(Interface::A1, &came.frame()).arrives_as(&went, &CREATED);
    let answer = V4::segment(&ONE, &GATEWAY, (80, 5000), SYN | ACK, &[]);
    let arrived = V4::segment(&US, &ONE, (PUBLISHED, 5000), SYN | ACK, &[]);
    let run = lab.at_container(Interface::A1, &answer.frame());
    run.arrives_as(&inbound(&arrived, &GATEWAY), &[]);
}

fn from_a_container_with_ttl_one(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let came = V4 { ttl: 1, ..to_gateway(&syn(&TWO, &US, (5000, PUBLISHED))) };
    let outcome = lab.at_container(Interface::A2, &came.frame()).outcome();
    assert_eq!(outcome.verdict, crate::run::SHOT);
    let [(interface, error)] = outcome.copies.as_slice() else { panic!("{:?}", outcome.copies) };
    assert_eq!(*interface, Interface::A2);
    let quote = came.packet();
    let wanted = V4::icmp(&GATEWAY, &TWO, 11, 0, [0; 4], &quote[..quote.len().min(28)]);
    same("error", error, &V4 { tos: 0xc0, ttl: 64, id: 0, ..wanted }.frame());
}

fn reserved_for_the_host_not_for_clients(lab: &mut Lab) {
    // The source port of an external client need not be free on the host.
    lab.reserve_all();
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    reaches_a1(lab, &US);
    // The source port of a container must be, because the flow gets the gateway's address.
    let came = to_gateway(&syn(&TWO, &US, (5000, PUBLISHED)));
    lab.at_container(Interface::A2, &came.frame()).drops(DropReason::NatPortsExhausted);
}
