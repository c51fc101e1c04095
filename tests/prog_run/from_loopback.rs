//! The host's own connections to its published ports.

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, kind, seen};
use culvert_tests::packet::{ACK, Arp, Host, SYN, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::Lab,
    routed::{
        Began, CREATED, CREATED_ELSEWHERE, Passed, Place, chosen_port, entries, fragments, publish,
    },
    run::Left,
    world::{GATEWAY, GATEWAY_OF_B, ONE, SERVER, US},
};

cases!(
    to_127_0_0_1,
    to_an_address_of_the_host,
    udp,
    answers,
    into_an_isolated_network,
    port_of_the_host,
    exact_address,
    not_published,
    group,
    not_ipv4,
    container_is_gone,
    errors_come_back,
    with_ttl_one,
    in_fragments,
    gso,
);

const PUBLISHED: u16 = 8080;
/// The host on its loopback device, where there are no MACs.
const LOCAL: Host = Host { mac: [0; 6], v4: [127, 0, 0, 1], v6: [0; 16] };

fn syn(from: &Host, to: &Host, ports: (u16, u16)) -> V4 {
    V4::segment(from, to, ports, SYN, &[])
}

/// The packet as a container gets it, from its gateway. The TTL stays, because the loopback device
/// is no hop.
fn arrived(packet: V4, gateway: &Host) -> V4 {
    V4 { eth_src: gateway.mac, ..packet }
}

/// The host connects to `host`, and `A1` gets it.
#[track_caller]
fn connects(lab: &mut Lab, host: &Host) {
    let host = Host { mac: [0; 6], ..*host };
    let came = syn(&host, &host, (5000, PUBLISHED));
    let went = arrived(syn(&GATEWAY, &ONE, (5000, 80)), &GATEWAY);
    lab.at_loopback(&came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::Itself, Place::At(Interface::A1));
    Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
}

fn to_127_0_0_1(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &LOCAL);
}

fn to_an_address_of_the_host(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &US);
}

fn udp(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&LOCAL, &LOCAL, (5000, PUBLISHED), &payload(70));
    let went = arrived(V4::udp(&GATEWAY, &ONE, (5000, 53), &payload(70)), &GATEWAY);
    lab.at_loopback(&came.frame()).arrives_as(&went, &CREATED);
}

fn answers(lab: &mut Lab) {
    for host in [LOCAL, Host { mac: [0; 6], ..US }] {
        crate::routed::forget_all(lab);
        publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
        connects(lab, &host);
        let answer = V4::segment(&ONE, &GATEWAY, (80, 5000), SYN | ACK, &[]);
        let back = V4::segment(&host, &host, (PUBLISHED, 5000), SYN | ACK, &[]);
        let run = lab.at_container(Interface::A1, &answer.frame());
        run.redirects(Action::ToHost, Left::Frame(back.frame()), &[]);
        // The translated answer comes in on the loopback device, where the program passes it.
        lab.at_loopback(&back.frame()).passes(&[]);
        let data = V4::tcp(&host, &host, (5000, PUBLISHED), &payload(3000));
        let went = V4::tcp(&GATEWAY, &ONE, (5000, 80), &payload(3000));
        lab.at_loopback(&data.frame()).arrives_as(&arrived(went, &GATEWAY), &[]);
        let (came, went) = (syn(&host, &host, (5000, PUBLISHED)), syn(&GATEWAY, &ONE, (5000, 80)));
        let (from, to) = (Place::Itself, Place::At(Interface::A1));
        Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.is_tracked(
            lab,
            Passed::frames(&[&came, &data], seen::SYN | seen::ACK),
            Passed::frames(&[&answer], seen::SYN),
        );
    }
}

fn into_an_isolated_network(lab: &mut Lab) {
    // Only the published address, port and protocol match.
    publish(lab, [127, 0, 0, 1], 6, PUBLISHED, Interface::B1, 80);
    let came = syn(&LOCAL, &LOCAL, (5000, PUBLISHED));
    let went = arrived(syn(&GATEWAY_OF_B, &ONE, (5000, 80)), &GATEWAY_OF_B);
    lab.at_loopback(&came.frame()).arrives_as(&went, &CREATED);
    let answer = V4::segment(&ONE, &GATEWAY_OF_B, (80, 5000), SYN | ACK, &[]);
    let back = V4::segment(&LOCAL, &LOCAL, (PUBLISHED, 5000), SYN | ACK, &[]);
    let run = lab.at_container(Interface::B1, &answer.frame());
    run.redirects(Action::ToHost, Left::Frame(back.frame()), &[]);
}

fn port_of_the_host(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    lab.reserve(6, 5000);
    let came = syn(&LOCAL, &LOCAL, (5000, PUBLISHED));
    let run = lab.at_loopback(&came.frame());
    let frame = run.redirects(Action::NatDeliver, Left::Spent, &CREATED_ELSEWHERE).frame;
    let port = chosen_port(&frame);
    assert_ne!(port, 5000);
    same("frame", &frame, &arrived(syn(&GATEWAY, &ONE, (port, 80)), &GATEWAY).frame());
    lab.reserve_all();
    let frame = syn(&LOCAL, &LOCAL, (5001, PUBLISHED)).frame();
    lab.at_loopback(&frame).drops(DropReason::NatPortsExhausted);
}

fn exact_address(lab: &mut Lab) {
    publish(lab, [127, 0, 0, 1], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &LOCAL);
    let us = Host { mac: [0; 6], ..US };
    lab.at_loopback(&syn(&us, &us, (5000, PUBLISHED)).frame()).passes(&[]);
}

fn not_published(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 80);
    for packet in [
        syn(&LOCAL, &LOCAL, (5000, PUBLISHED)),
        V4::udp(&LOCAL, &LOCAL, (5000, PUBLISHED + 1), b"x"),
        V4::udp(&LOCAL, &LOCAL, (PUBLISHED, 5000), b"x"),
        V4::icmp(&LOCAL, &LOCAL, 8, 0, [0, 1, 0, 1], &payload(56)),
        V4 { protocol: 47, l4: payload(20), ..V4::new(&LOCAL, &LOCAL) },
    ] {
        lab.at_loopback(&packet.frame()).passes(&[]);
    }
    assert_eq!(entries(lab), 0);
}

fn group(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 80);
    let group = Host { v4: [224, 0, 0, 251], ..LOCAL };
    lab.at_loopback(&V4::udp(&LOCAL, &group, (5000, PUBLISHED), b"x").frame()).passes(&[]);
}

fn not_ipv4(lab: &mut Lab) {
    lab.at_loopback(&Arp::request(&LOCAL, ONE.v4).frame()).passes(&[]);
}

fn container_is_gone(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    let frame = syn(&LOCAL, &LOCAL, (5000, PUBLISHED)).frame();
    lab.at_loopback(&frame).drops(DropReason::UnknownEndpoint);
}

fn errors_come_back(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&LOCAL, &LOCAL, (5000, PUBLISHED), b"?");
    let went = V4::udp(&GATEWAY, &ONE, (5000, 53), b"?");
    lab.at_loopback(&came.frame()).arrives_as(&arrived(went.clone(), &GATEWAY), &CREATED);
    let error = V4::icmp(&ONE, &GATEWAY, 3, 3, [0; 4], &went.packet()[..28]);
    let back = V4::icmp(&LOCAL, &LOCAL, 3, 3, [0; 4], &came.packet()[..28]);
    let run = lab.at_container(Interface::A1, &error.frame());
    run.redirects(Action::ToHost, Left::Frame(back.frame()), &[]);
    // On the loopback device the error matches no flow, and passes.
    lab.at_loopback(&back.frame()).passes(&[]);
    // The host's error about the container's answer goes to the container.
    let of_container = V4::udp(&ONE, &GATEWAY, (53, 5000), b"!");
    let of_host = V4::udp(&LOCAL, &LOCAL, (PUBLISHED, 5000), b"!");
    let error = V4::icmp(&LOCAL, &LOCAL, 3, 3, [0; 4], &of_host.packet()[..28]);
    let went = V4::icmp(&GATEWAY, &ONE, 3, 3, [0; 4], &of_container.packet()[..28]);
    lab.at_loopback(&error.frame()).arrives_as(&arrived(went, &GATEWAY), &[]);
}

fn with_ttl_one(lab: &mut Lab) {
    // The host connects to itself: no router is between.
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let came = V4 { ttl: 1, ..syn(&LOCAL, &LOCAL, (5000, PUBLISHED)) };
    let went = V4 { ttl: 1, ..arrived(syn(&GATEWAY, &ONE, (5000, 80)), &GATEWAY) };
    lab.at_loopback(&came.frame()).arrives_as(&went, &CREATED);
}

fn in_fragments(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&LOCAL, &LOCAL, (5000, PUBLISHED), &payload(900));
    let went = arrived(V4::udp(&GATEWAY, &ONE, (5000, 53), &payload(900)), &GATEWAY);
    let pairs = fragments(&came, &[400]).into_iter().zip(fragments(&went, &[400]));
    for (index, (came, went)) in pairs.enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_loopback(&came.frame()).arrives_as(&went, notes);
    }
    // A fragment without its first fragment passes to the host.
    let other = V4::udp(&LOCAL, &SERVER, (1, 2), &payload(900));
    for fragment in fragments(&other, &[400]).iter().rev() {
        lab.at_loopback(&fragment.frame()).passes(&[]);
    }
}

fn gso(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let opening = V4::segment(&LOCAL, &LOCAL, (5000, PUBLISHED), SYN, &[]);
    let opened = V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]);
    lab.at_loopback(&opening.frame()).arrives_as(&arrived(opened, &GATEWAY), &CREATED);
    let came = V4::tcp(&LOCAL, &LOCAL, (5000, PUBLISHED), &payload(3500));
    let went = V4::tcp(&GATEWAY, &ONE, (5000, 80), &payload(3500));
    lab.at_loopback(&came.frame()).gso(1400).arrives_as(&arrived(went, &GATEWAY), &[]);
}
