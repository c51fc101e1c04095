//! Flows of containers to the host's stack, and the answers that the host forwards.

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, MappedAddr, NetworkInfo, Note, kind, seen};
use culvert_tests::packet::{ACK, Host, SYN, V4, payload};

use crate::{
    interfaces::{GATEWAY_B, Interface},
    lab::Lab,
    routed::{
        Began, CREATED, Passed, Place, echo, entries, fragments, inbound, key, outbound, publish,
        to_gateway,
    },
    run::{Left, note},
    world::{A, B, GATEWAY, ONE, SECOND, SERVER, SERVICE, TWO, US, change_network},
};

cases!(
    tcp,
    udp,
    ping,
    vxlan,
    a_service,
    a_service_from_an_isolated_network,
    only_what_opens_a_connection,
    access_is_withdrawn,
    answers_of_nobody,
    a_connection_in_the_direction_of_the_answers,
    an_answer_into_another_network,
    published_since,
    the_host_has_lost_the_address,
    the_port_is_never_changed,
    an_error_about_the_request,
    an_error_about_nothing,
    answers_in_fragments,
    the_container_is_gone,
    gso,
);

/// A packet of the container `A1` that goes to the host's stack, unchanged, and begins a flow.
#[track_caller]
fn begins(lab: &mut Lab, packet: &V4) {
    let came = to_gateway(packet);
    lab.at_container(Interface::A1, &came.frame()).begins_to_host();
    began(&came).has_begun(lab);
}

/// The flow that `came` begins.
fn began(came: &V4) -> Began<'_> {
    Began { came, from: Place::At(Interface::A1), went: came, to: Place::Stack, kind: kind::HOST }
}

/// The kernel's VXLAN socket may be that of another system, and receives at each address of the host.
fn vxlan(lab: &mut Lab) {
    for to in [GATEWAY, SECOND, US] {
        let packet = to_gateway(&V4::udp(&ONE, &to, (50_000, 4789), &payload(60)));
        lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::VxlanFromContainer);
    }
    let other = V4::udp(&ONE, &GATEWAY, (4789, 53), &payload(60));
    begins(lab, &other);
}

/// The host forwards `packet`, and `A1` gets it with the MACs of the network.
#[track_caller]
fn arrives(lab: &mut Lab, packet: &V4) {
    let arrived = V4 { eth_dst: ONE.mac, eth_src: GATEWAY.mac, ..packet.clone() };
    lab.at_host(&packet.frame()).forwarded().arrives_as(&arrived, &[]);
}

/// `host` with an arbitrary MAC, because the kernel may write any MAC.
const fn far(host: Host) -> Host {
    Host { mac: [9; 6], ..host }
}

fn tcp(lab: &mut Lab) {
    let opening = V4::segment(&ONE, &US, (5000, 8081), SYN, &[]);
    begins(lab, &opening);
    let accepting = V4::segment(&far(US), &ONE, (8081, 5000), SYN | ACK, &[]);
    arrives(lab, &accepting);
    let data = to_gateway(&V4::tcp(&ONE, &US, (5000, 8081), &payload(900)));
    lab.at_container(Interface::A1, &data.frame()).reaches_host();
    let opening = to_gateway(&opening);
    began(&opening).is_tracked(
        lab,
        Passed::frames(&[&opening, &data], seen::SYN | seen::ACK),
        Passed::frames(&[&accepting], seen::SYN),
    );
}

fn udp(lab: &mut Lab) {
    begins(lab, &V4::udp(&ONE, &SECOND, (5000, 53), b"?"));
    // The host has decremented the TTL.
    arrives(lab, &V4 { ttl: 1, ..V4::udp(&far(SECOND), &ONE, (53, 5000), b"!") });
}

fn ping(lab: &mut Lab) {
    begins(lab, &echo(&ONE, &SECOND, 8, 0));
    begins(lab, &echo(&ONE, &US, 8, 7));
    arrives(lab, &echo(&far(US), &ONE, 0, 7));
    let other = echo(&far(US), &ONE, 0, 8);
    lab.at_host(&other.frame()).forwarded().drops(DropReason::Isolated);
}

fn a_service(lab: &mut Lab) {
    begins(lab, &V4::segment(&ONE, &SERVICE, (5000, 443), SYN, &[]));
    arrives(lab, &V4::segment(&far(SERVICE), &ONE, (443, 5000), SYN | ACK, &[]));
}

fn a_service_from_an_isolated_network(lab: &mut Lab) {
    let gateway = crate::world::GATEWAY_OF_B.mac;
    let packet = V4 { eth_dst: gateway, ..V4::udp(&ONE, &SERVICE, (1, 2), b"x") };
    lab.at_container(Interface::B1, &packet.frame()).drops(DropReason::Isolated);
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::INTERNAL);
    let packet = to_gateway(&V4::udp(&ONE, &SERVICE, (1, 2), b"x"));
    lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::InternalNetwork);
}

fn only_what_opens_a_connection(lab: &mut Lab) {
    for packet in [
        V4::segment(&ONE, &US, (80, 5000), SYN | ACK, &[]),
        V4::tcp(&ONE, &US, (80, 5000), &payload(50)),
        echo(&ONE, &US, 0, 7),
    ] {
        lab.at_container(Interface::A1, &to_gateway(&packet).frame()).reaches_host();
    }
    assert_eq!(entries(lab), 0);
}

fn access_is_withdrawn(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &US, (5000, 53), b"?");
    begins(lab, &packet);
    change_network(&lab.tables, A, |network| network.flags &= !NetworkInfo::HOST_ACCESS);
    lab.at_container(Interface::A1, &to_gateway(&packet).frame()).drops(DropReason::Isolated);
}

fn answers_of_nobody(lab: &mut Lab) {
    begins(lab, &V4::udp(&ONE, &US, (5000, 53), b"?"));
    for packet in [
        V4::udp(&far(US), &ONE, (54, 5000), b"!"),
        V4::udp(&far(US), &ONE, (53, 5001), b"!"),
        V4::udp(&far(US), &TWO, (53, 5000), b"!"),
        V4::udp(&far(SERVER), &ONE, (53, 5000), b"!"),
        V4::tcp(&far(US), &ONE, (53, 5000), b"!"),
        V4 { protocol: 47, l4: payload(30), ..V4::new(&far(US), &ONE) },
    ] {
        lab.at_host(&packet.frame()).forwarded().drops(DropReason::Isolated);
    }
}

fn a_connection_in_the_direction_of_the_answers(lab: &mut Lab) {
    begins(lab, &V4::segment(&ONE, &US, (5000, 8081), SYN, &[]));
    let packet = V4::segment(&far(US), &ONE, (8081, 5000), SYN, &[]);
    lab.at_host(&packet.frame()).forwarded().drops(DropReason::Isolated);
}

fn an_answer_into_another_network(lab: &mut Lab) {
    begins(lab, &V4::udp(&ONE, &US, (5000, 53), b"?"));
    let answer = V4::udp(&far(US), &ONE, (53, 5000), b"!").frame();
    lab.tables.gateways.insert(&GATEWAY_B, &B).unwrap();
    lab.at_gateway(GATEWAY_B, &answer).forwarded().drops(DropReason::Isolated);
}

fn published_since(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &US, (5000, 514), b"x");
    begins(lab, &packet);
    publish(lab, [0; 4], 17, 514, Interface::A2, 80);
    let went = inbound(&V4::udp(&GATEWAY, &TWO, (5000, 80), b"x"), &GATEWAY);
    lab.at_container(Interface::A1, &to_gateway(&packet).frame()).arrives_as(&went, &CREATED);
    assert_eq!(entries(lab), 2);
    // A port that is published on every address is not published on a service's address.
    let service = V4::udp(&ONE, &SERVICE, (5000, 514), b"x");
    begins(lab, &service);
    lab.at_container(Interface::A1, &to_gateway(&service).frame()).reaches_host();
}

fn the_host_has_lost_the_address(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &SECOND, (5000, 53), b"x");
    begins(lab, &packet);
    lab.tables.host_addrs.remove(&MappedAddr::v4(SECOND.v4)).unwrap();
    let left = outbound(&V4::udp(&US, &SECOND, (5000, 53), b"x"));
    lab.at_container(Interface::A1, &to_gateway(&packet).frame()).leaves_as(&left, &CREATED);
}

fn the_port_is_never_changed(lab: &mut Lab) {
    // Only the answer's entry exists: another CPU is about to write the other entry.
    let packet = to_gateway(&V4::udp(&ONE, &US, (5000, 53), b"x"));
    begins(lab, &packet);
    lab.flows.remove(key(A, &packet));
    let run = lab.at_container(Interface::A1, &packet.frame());
    run.redirects(Action::ToHost, Left::Unchanged, &[note(Note::FlowRefused)]);
}

fn an_error_about_the_request(lab: &mut Lab) {
    let request = V4::udp(&ONE, &US, (5000, 53), &payload(100));
    begins(lab, &request);
    let quoted = &to_gateway(&request).packet()[..28];
    for from in [US, SERVER] {
        arrives(lab, &V4::icmp(&far(from), &ONE, 3, 3, [0; 4], quoted));
    }
}

fn an_error_about_nothing(lab: &mut Lab) {
    let quoted = &V4::udp(&ONE, &US, (5000, 53), &payload(100)).packet()[..28];
    let error = V4::icmp(&far(US), &ONE, 3, 3, [0; 4], quoted);
    lab.at_host(&error.frame()).forwarded().drops(DropReason::Isolated);
}

fn answers_in_fragments(lab: &mut Lab) {
    begins(lab, &V4::udp(&ONE, &US, (5000, 53), b"?"));
    let answer = V4::udp(&far(US), &ONE, (53, 5000), &payload(900));
    let parts = fragments(&answer, &[400]);
    for part in &parts {
        arrives(lab, part);
    }
    // The last fragment comes before the first. The host's conntrack does not send in this order.
    let other = V4 { id: answer.id.wrapping_add(1), ..answer };
    let last = fragments(&other, &[400]).remove(1);
    lab.at_host(&last.frame()).forwarded().drops(DropReason::FragmentUnknown);
}

fn the_container_is_gone(lab: &mut Lab) {
    begins(lab, &V4::udp(&ONE, &US, (5000, 53), b"?"));
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    let answer = V4::udp(&far(US), &ONE, (53, 5000), b"!");
    let run = lab.at_host(&answer.frame()).forwarded();
    run.drops_noting(DropReason::Isolated, &[note(Note::FlowStale)]);
}

fn gso(lab: &mut Lab) {
    begins(lab, &V4::segment(&ONE, &US, (5000, 8081), SYN, &[]));
    let packet = V4::tcp(&far(US), &ONE, (8081, 5000), &payload(3500));
    let arrived = V4 { eth_dst: ONE.mac, eth_src: GATEWAY.mac, ..packet.clone() };
    lab.at_host(&packet.frame()).forwarded().gso(1400).arrives_as(&arrived, &[]);
}
