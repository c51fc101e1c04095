//! Clients that may not use published ports.

use culvert::datapath::{Prefix, Table as _};
use culvert_common::abi::{
    DropReason, EndpointInfo, Flow, PublishedEntry, Sealed as _, kind, seen,
};
use culvert_tests::packet::{ACK, Host, SYN, V4, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    routed::{
        Began, CREATED, Passed, Place, answer, entries, flow, forget_all, fragments, inbound, key,
        outbound, publish, to_gateway,
    },
    world::{
        A, CLIENT, GATEWAY, GATEWAY_OF_B, ONE, SERVER, SERVER2, TWO, US, US_TO_CLIENTS,
        change_endpoint,
    },
};

cases!(
    an_address,
    the_longest_prefix_is_not_asked,
    udp_in_fragments,
    a_client_of_a_link,
    a_container,
    the_host_itself_is_not_judged,
    a_port_of_the_host_itself,
    what_a_container_begins,
    a_flow_that_was_ended,
    an_error_about_a_flow_that_was_ended,
    allowed_again,
    of_restricted_ports_others,
    of_restricted_ports_the_denied,
    of_restricted_ports_other_containers,
    of_restricted_ports_containers_with_any_address,
    restricted_ports_are_the_hosts_own,
);

const PUBLISHED: u16 = 8080;

/// Refuses clients of published ports whose address is in `prefix`.
pub(crate) fn deny(lab: &Lab, prefix: &str) {
    lab.tables.denied.insert(&Prefix::of_v4(prefix.parse().unwrap()), &0).unwrap();
}

fn allow(lab: &Lab, prefix: &str) {
    lab.tables.denied.remove(&Prefix::of_v4(prefix.parse().unwrap())).unwrap();
}

fn syn(from: &Host) -> V4 {
    V4::segment(from, &US, (5000, PUBLISHED), SYN, &[])
}

/// A client on the uplink connects to `A1`.
#[track_caller]
fn connects(lab: &mut Lab, from: &Host) {
    let went = inbound(&V4::segment(from, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_underlay(&syn(from).frame()).arrives_as(&went, &CREATED);
}

fn an_address(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    deny(lab, "203.0.113.7/32");
    lab.at_underlay(&syn(&SERVER).frame()).drops(DropReason::Denied);
    assert_eq!(entries(lab), 0);
    connects(lab, &SERVER2);
}

fn the_longest_prefix_is_not_asked(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    for prefix in ["203.0.113.0/29", "203.0.0.0/16", "0.0.0.0/0"] {
        deny(lab, prefix);
        lab.at_underlay(&syn(&SERVER).frame()).drops(DropReason::Denied);
        allow(lab, prefix);
        connects(lab, &SERVER);
        forget_all(lab);
    }
    // These prefixes are next to the client's address and do not contain it.
    deny(lab, "203.0.113.8/29");
    deny(lab, "203.0.112.0/24");
    connects(lab, &SERVER);
}

fn udp_in_fragments(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    deny(lab, "203.0.113.0/24");
    let came = V4::udp(&SERVER, &US, (5000, PUBLISHED), &payload(900));
    for part in fragments(&came, &[400]) {
        lab.at_underlay(&part.frame()).drops(DropReason::Denied);
    }
}

fn a_client_of_a_link(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    deny(lab, "172.30.0.2/32");
    let came = V4::segment(&CLIENT, &US_TO_CLIENTS, (5000, PUBLISHED), SYN, &[]);
    lab.at_client(&came.frame()).drops(DropReason::Denied);
}

fn a_container(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let came = to_gateway(&V4::segment(&TWO, &US, (5000, PUBLISHED), SYN, &[]));
    deny(lab, "10.0.0.3/32");
    lab.at_container(Interface::A2, &came.frame()).drops(DropReason::Denied);
    allow(lab, "10.0.0.3/32");
    let went = inbound(&V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Interface::A2, &came.frame()).arrives_as(&went, &CREATED);
}

fn the_host_itself_is_not_judged(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    deny(lab, "0.0.0.0/0");
    from_the_host(lab);
}

/// The host itself connects to `A1`.
#[track_caller]
fn from_the_host(lab: &mut Lab) {
    let host = Host { mac: [0; 6], ..US };
    let came = V4::segment(&host, &host, (5000, PUBLISHED), SYN, &[]);
    // The TTL stays, because the loopback device is no hop.
    let went = V4 { eth_src: GATEWAY.mac, ..V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]) };
    lab.at_loopback(&came.frame()).arrives_as(&went, &CREATED);
}

fn a_port_of_the_host_itself(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    deny(lab, "0.0.0.0/0");
    // The port is not published: netfilter decides.
    lab.at_underlay(&V4::segment(&SERVER, &US, (5000, 22), SYN, &[]).frame()).passes(&[]);
    // The port is published, but the packet does not begin a connection.
    lab.at_underlay(&V4::tcp(&SERVER, &US, (5000, PUBLISHED), b"x").frame()).passes(&[]);
}

fn what_a_container_begins(lab: &mut Lab) {
    deny(lab, "203.0.113.7/32");
    let came = to_gateway(&V4::udp(&ONE, &SERVER, (5000, 53), b"?"));
    let left = outbound(&V4::udp(&US, &SERVER, (5000, 53), b"?"));
    lab.at_container(Interface::A1, &came.frame()).leaves_as(&left, &CREATED);
    let came = V4::udp(&SERVER, &US, (53, 5000), b"!");
    let went = inbound(&V4::udp(&SERVER, &ONE, (53, 5000), b"!"), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &[]);
}

/// Ends the flow that `packet` has begun, as the agent does.
fn end(lab: &mut Lab, packet: &V4) {
    let orig = key(0, packet);
    let Flow { zone, to, .. } = flow(lab, &orig);
    let reply = answer(&culvert_common::abi::FlowKey::new(zone, orig.protocol, to));
    for key in [orig, reply] {
        let entry = flow(lab, &key);
        let entry = Flow { kind: entry.kind | kind::DENIED, ..entry }.sealed(&key);
        lab.flows.set(key, entry);
    }
}

fn a_flow_that_was_ended(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    connects(lab, &SERVER);
    deny(lab, "203.0.113.7/32");
    // The agent has not ended the flow yet.
    let answer = to_gateway(&V4::segment(&ONE, &SERVER, (80, 5000), SYN | ACK, &[]));
    let left = outbound(&V4::segment(&US, &SERVER, (PUBLISHED, 5000), SYN | ACK, &[]));
    lab.at_container(Interface::A1, &answer.frame()).leaves_as(&left, &[]);
    end(lab, &syn(&SERVER));
    for packet in [syn(&SERVER), V4::tcp(&SERVER, &US, (5000, PUBLISHED), b"x")] {
        lab.at_underlay(&packet.frame()).drops(DropReason::Denied);
    }
    // A packet of the server begins no masqueraded flow, and the denied flow's entries stay.
    let data = to_gateway(&V4::tcp(&ONE, &SERVER, (80, 5000), b"x"));
    lab.at_container(Interface::A1, &data.frame()).drops(DropReason::Denied);
    assert_eq!(entries(lab), 2);
    let (came, went) = (syn(&SERVER), V4::segment(&SERVER, &ONE, (5000, 80), SYN, &[]));
    let kind = kind::PUBLISHED | kind::DENIED;
    Began { came: &came, from: Place::External, went: &went, to: Place::At(Interface::A1), kind }
        .is_tracked(
            lab,
            Passed::frames(&[&came], seen::SYN),
            Passed::frames(&[&answer], seen::SYN),
        );
}

fn an_error_about_a_flow_that_was_ended(lab: &mut Lab) {
    publish(lab, [0; 4], 17, PUBLISHED, Interface::A1, 53);
    let came = V4::udp(&SERVER, &US, (5000, PUBLISHED), &payload(100));
    let went = inbound(&V4::udp(&SERVER, &ONE, (5000, 53), &payload(100)), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    end(lab, &came);
    let quoted = &went.packet()[..28];
    let error = to_gateway(&V4::icmp(&ONE, &SERVER, 3, 3, [0; 4], quoted));
    lab.at_container(Interface::A1, &error.frame()).drops(DropReason::NoFlow);
    let answered = V4::udp(&US, &SERVER, (PUBLISHED, 5000), &payload(100));
    let error = V4::icmp(&SERVER, &US, 3, 3, [0; 4], &answered.packet()[..28]);
    lab.at_underlay(&error.frame()).passes(&[]);
}

fn allowed_again(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    deny(lab, "203.0.113.7/32");
    lab.at_underlay(&syn(&SERVER).frame()).drops(DropReason::Denied);
    allow(lab, "203.0.113.7/32");
    connects(lab, &SERVER);
}

/// Restricts the published ports of the container at `interface`.
fn restrict(lab: &Lab, interface: Interface, prefixes: &[&str]) {
    for prefix in prefixes {
        let clients = Prefix::of_clients(interface.ifindex(), prefix.parse().unwrap());
        lab.tables.sources.insert(&clients, &A).unwrap();
    }
    for (key, mut entry) in lab.tables.published.dump().unwrap() {
        if entry.ifindex == interface.ifindex() {
            entry.flags = PublishedEntry::RESTRICTED;
            lab.tables.published.insert(&key, &entry).unwrap();
        }
    }
}

fn of_restricted_ports_others(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    publish(lab, [0; 4], 6, 8081, Interface::A2, 80);
    restrict(lab, Interface::A1, &["198.51.100.0/24", "203.0.113.8/32"]);
    restrict(lab, Interface::A2, &[]);
    lab.at_underlay(&syn(&SERVER).frame()).drops(DropReason::Denied);
    assert_eq!(entries(lab), 0);
    connects(lab, &SERVER2);
    // The clients of one container may not use the port of another.
    let other = V4::segment(&SERVER2, &US, (5000, 8081), SYN, &[]);
    lab.at_underlay(&other.frame()).drops(DropReason::Denied);
    // Packets of an existing flow are not checked again.
    for prefix in lab.tables.sources.dump().unwrap().keys() {
        lab.tables.sources.remove(prefix).unwrap();
    }
    let went = inbound(&V4::tcp(&SERVER2, &ONE, (5000, 80), b"x"), &GATEWAY);
    lab.at_underlay(&V4::tcp(&SERVER2, &US, (5000, PUBLISHED), b"x").frame())
        .arrives_as(&went, &[]);
}

fn of_restricted_ports_the_denied(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    restrict(lab, Interface::A1, &["203.0.113.0/24"]);
    deny(lab, "203.0.113.7/32");
    lab.at_underlay(&syn(&SERVER).frame()).drops(DropReason::Denied);
    connects(lab, &SERVER2);
}

fn of_restricted_ports_other_containers(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    restrict(lab, Interface::A1, &["203.0.113.0/24"]);
    let came = to_gateway(&V4::segment(&TWO, &US, (5000, PUBLISHED), SYN, &[]));
    lab.at_container(Interface::A2, &came.frame()).drops(DropReason::Denied);
    restrict(lab, Interface::A1, &["10.0.0.3/32"]);
    let went = inbound(&V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Interface::A2, &came.frame()).arrives_as(&went, &CREATED);
}

fn of_restricted_ports_containers_with_any_address(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    restrict(lab, Interface::A1, &["0.0.0.0/0"]);
    // The client is in network B, whose addresses another network has, too.
    let came = V4::segment(&TWO, &US, (5000, PUBLISHED), SYN, &[]);
    let to_b = V4 { eth_dst: GATEWAY_OF_B.mac, ..came.clone() };
    lab.at_container(Interface::B2, &to_b.frame()).drops(DropReason::Denied);
    // `A2` may send from any address.
    change_endpoint(&lab.tables, Interface::A2, |ep| ep.flags |= EndpointInfo::ALLOW_ANY_SOURCE);
    lab.at_container(Interface::A2, &to_gateway(&came).frame()).drops(DropReason::Denied);
    // These containers may also use a port without restriction.
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    let went = inbound(&V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Interface::B2, &to_b.frame()).arrives_as(&went, &CREATED);
}

fn restricted_ports_are_the_hosts_own(lab: &mut Lab) {
    publish(lab, [0; 4], 6, PUBLISHED, Interface::A1, 80);
    restrict(lab, Interface::A1, &["203.0.113.0/24"]);
    from_the_host(lab);
}
