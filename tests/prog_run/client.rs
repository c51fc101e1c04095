//! Clients of published ports on a client link.

use culvert::datapath::Table as _;
use culvert_common::abi::{DropReason, kind, seen};
use culvert_tests::packet::{ACK, Arp, Host, SYN, V4, payload};

use crate::{
    interfaces::{CLIENT_LINK, GATEWAY_A, Interface},
    lab::Lab,
    routed::{
        Began, CREATED, Passed, Place, entries, fragments, inbound, outbound, publish, to_gateway,
    },
    world::{CLIENT, FAR, GATEWAY, ONE, SERVER, TWO, US, US_TO_CLIENTS, from_peer},
};

cases!(
    tcp,
    udp_in_fragments,
    port_of_another_address,
    not_published,
    not_for_the_host,
    from_an_address_elsewhere,
    answers_to_masqueraded_flows_are_not_taken,
    clients_of_the_uplink_are_others,
    clients_of_another_link_are_others,
    vxlan_is_not_decapsulated,
    the_link_is_no_client_link_any_more,
    not_ipv4,
);

const PUBLISHED: u16 = 8080;

/// A packet of [`CLIENT`] to an address of the host.
fn syn(to: &Host) -> V4 {
    let to = Host { mac: US_TO_CLIENTS.mac, ..*to };
    V4::segment(&CLIENT, &to, (5000, PUBLISHED), SYN, &[])
}

/// [`CLIENT`] connects to `A1`.
#[track_caller]
fn connects(lab: &mut Lab, to: &Host) {
    let came = syn(to);
    let went = inbound(&V4::segment(&CLIENT, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_client(&came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::Clients, Place::At(Interface::A1));
    Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.has_begun(lab);
}

fn tcp(lab: &mut Lab) {
    for host in [US, US_TO_CLIENTS] {
        crate::routed::forget_all(lab);
        publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
        connects(lab, &host);
        let answer = to_gateway(&V4::segment(&ONE, &CLIENT, (80, 5000), SYN | ACK, &[]));
        let left = outbound(&V4::segment(&host, &CLIENT, (PUBLISHED, 5000), SYN | ACK, &[]));
        lab.at_container(Interface::A1, &answer.frame()).leaves_as(&left, &[]);
        let (came, went) = (syn(&host), V4::segment(&CLIENT, &ONE, (5000, 80), SYN, &[]));
        let (from, to) = (Place::Clients, Place::At(Interface::A1));
        Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED }.is_tracked(
            lab,
            Passed::frames(&[&came], seen::SYN),
            Passed::frames(&[&answer], seen::SYN),
        );
    }
}

fn udp_in_fragments(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&CLIENT, &US_TO_CLIENTS, (5000, PUBLISHED), &payload(900));
    let went = inbound(&V4::udp(&CLIENT, &ONE, (5000, 53), &payload(900)), &GATEWAY);
    let pairs = fragments(&came, &[400]).into_iter().zip(fragments(&went, &[400]));
    for (index, (came, went)) in pairs.enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_client(&came.frame()).arrives_as(&went, notes);
    }
}

fn port_of_another_address(lab: &mut Lab) {
    publish(lab, US.v4, 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [127, 0, 0, 1], 6, PUBLISHED, Interface::A2, 80);
    connects(lab, &US);
    lab.at_client(&syn(&US_TO_CLIENTS).frame()).passes(&[]);
    lab.at_client(&syn(&Host { v4: [127, 0, 0, 1], ..US }).frame()).passes(&[]);
}

fn not_published(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 80);
    lab.at_client(&syn(&US).frame()).passes(&[]);
    assert_eq!(entries(lab), 0);
}

fn not_for_the_host(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    for to in [SERVER, ONE, TWO, CLIENT] {
        lab.at_client(&syn(&to).frame()).passes(&[]);
    }
    // A frame to another MAC address: a bridge has flooded it.
    let frame = V4 { eth_dst: [2; 6], ..syn(&US) }.frame();
    lab.at_client(&frame).passes(&[]);
}

fn from_an_address_elsewhere(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    // The route back to the client leads through the uplink, to a container or nowhere, or the
    // client's address is the host's own.
    for from in [SERVER, ONE, US, Host { v4: [127, 0, 0, 1], ..CLIENT }] {
        let from = Host { v4: from.v4, ..CLIENT };
        let packet = V4::segment(&from, &US_TO_CLIENTS, (5000, PUBLISHED), SYN, &[]);
        lab.at_client(&packet.frame()).passes(&[]);
    }
    assert_eq!(entries(lab), 0);
}

fn answers_to_masqueraded_flows_are_not_taken(lab: &mut Lab) {
    let came = to_gateway(&V4::udp(&ONE, &SERVER, (5000, 53), b"?"));
    let left = outbound(&V4::udp(&US, &SERVER, (5000, 53), b"?"));
    lab.at_container(Interface::A1, &came.frame()).leaves_as(&left, &CREATED);
    let us = Host { mac: US_TO_CLIENTS.mac, ..US };
    let forged = V4::udp(&Host { v4: SERVER.v4, ..CLIENT }, &us, (53, 5000), b"!");
    lab.at_client(&forged.frame()).passes(&[]);
}

fn clients_of_the_uplink_are_others(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &US);
    // The same addresses on the uplink: the route back does not lead through the uplink.
    let forged = V4::tcp(&CLIENT, &US, (5000, PUBLISHED), b"x");
    lab.at_underlay(&forged.frame()).passes(&[]);
    lab.at_underlay(&V4::segment(&CLIENT, &US, (5000, PUBLISHED), SYN, &[]).frame()).passes(&[]);
}

fn clients_of_another_link_are_others(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &US);
    let to = Host { mac: GATEWAY.mac, ..US };
    let forged = V4::tcp(&CLIENT, &to, (5000, PUBLISHED), b"x").frame();
    lab.at_other_client(GATEWAY_A, &forged).passes(&[]);
    let quoted = V4::segment(&US, &CLIENT, (PUBLISHED, 5000), SYN | ACK, &[]).packet();
    let error = V4::icmp(&CLIENT, &to, 3, 1, [0; 4], &quoted[..28]).frame();
    lab.at_other_client(GATEWAY_A, &error).passes(&[]);
    let to = Host { mac: US_TO_CLIENTS.mac, ..US };
    let true_one = V4::tcp(&CLIENT, &to, (5000, PUBLISHED), b"x");
    let went = inbound(&V4::tcp(&CLIENT, &ONE, (5000, 80), b"x"), &GATEWAY);
    lab.at_client(&true_one.frame()).arrives_as(&went, &[]);
}

fn vxlan_is_not_decapsulated(lab: &mut Lab) {
    let inner = V4::udp(&FAR, &ONE, (1, 2), b"x").frame();
    lab.at_client(&from_peer().wrap(&inner)).passes(&[]);
}

fn the_link_is_no_client_link_any_more(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &US);
    lab.tables.client_links.remove(&CLIENT_LINK).unwrap();
    let answer = to_gateway(&V4::segment(&ONE, &CLIENT, (80, 5000), SYN | ACK, &[]));
    lab.at_container(Interface::A1, &answer.frame()).drops(DropReason::NotAnUplink);
}

fn not_ipv4(lab: &mut Lab) {
    lab.at_client(&Arp::request(&CLIENT, US.v4).frame()).passes(&[]);
}
