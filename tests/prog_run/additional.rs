//! Additional addresses of an endpoint: the neighbour map has them at the endpoint's MAC.

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, NeighKey};
use culvert_tests::packet::{Arp, BROADCAST, Host, V4, V6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    world::{A, FAR, GATEWAY, ONE, TWO, host, neighbour, to_peer},
};

cases!(
    the_endpoint_sends_from_it,
    nobody_else_sends_from_it,
    nobody_sends_from_it_as_a_mapped_address,
    the_endpoint_asks_from_it,
    the_endpoint_answers_for_it,
    its_announcement_and_its_probe_are_absorbed,
    its_duplicate_detection_is_absorbed,
    nobody_else_speaks_for_it,
    others_find_it,
    the_host_sends_to_it,
    a_removed_address_is_gone_at_once,
    a_moved_address_is_followed_at_once,
    the_gateway_s_address_is_nobody_s,
);

/// Endpoint `A1` with its additional addresses.
const MORE: Host = Host { mac: ONE.mac, ..host(100) };

fn add(lab: &Lab) {
    neighbour(&lab.tables, A, &MORE, ONE.mac);
}

fn v4() -> Vec<u8> {
    V4::udp(&MORE, &FAR, (1000, 2000), &payload(100)).frame()
}

fn v6() -> Vec<u8> {
    V6::udp(&MORE, &FAR, (1000, 2000), &payload(100)).frame()
}

#[track_caller]
fn is_absorbed(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).absorbs(&[]);
}

fn the_endpoint_sends_from_it(lab: &mut Lab) {
    for frame in [v4(), v6()] {
        lab.at_container(Interface::A1, &frame).drops(DropReason::SpoofedIp);
    }
    add(lab);
    for frame in [v4(), v6()] {
        lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    }
}

fn nobody_else_sends_from_it(lab: &mut Lab) {
    add(lab);
    let with_own_mac = V4 { eth_src: TWO.mac, ..V4::udp(&MORE, &FAR, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A2, &with_own_mac).drops(DropReason::SpoofedIp);
    lab.at_container(Interface::A2, &v4()).drops(DropReason::SpoofedMac);
    // The endpoint of another network has the same MAC.
    lab.at_container(Interface::B1, &v4()).drops(DropReason::SpoofedIp);
    lab.at_container(Interface::B1, &v6()).drops(DropReason::SpoofedIp);
}

fn nobody_sends_from_it_as_a_mapped_address(lab: &mut Lab) {
    add(lab);
    // The neighbour map has IPv4 addresses as mapped ones (RFC 4291 §2.5.5.2).
    let mapped = |v4: [u8; 4]| {
        let mut ip = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        ip[12..].copy_from_slice(&v4);
        ip
    };
    for v4 in [MORE.v4, ONE.v4] {
        let packet = V6 { src: mapped(v4), ..V6::udp(&ONE, &FAR, (1, 2), b"hello") };
        lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::SpoofedIp);
        let disguised = packet.extended(0, &[0, 1, 4, 0, 0, 0, 0]);
        lab.at_container(Interface::A1, &disguised.frame()).drops(DropReason::SpoofedIp);
        // The endpoint may not announce the mapped address either.
        let target = Host { v6: mapped(v4), ..ONE };
        let (eth, ips) = ((ONE.mac, FAR.mac), (ONE.v6, FAR.v6));
        let advert = V6::icmp(eth, ips, (136, 0), [0x60, 0, 0, 0], &target.v6);
        lab.at_container(Interface::A1, &advert.frame()).drops(DropReason::SpoofedNd);
    }
}

fn the_endpoint_asks_from_it(lab: &mut Lab) {
    add(lab);
    let reply = Arp::reply(&FAR, &MORE).frame();
    lab.at_container(Interface::A1, &Arp::request(&MORE, FAR.v4).frame())
        .answers(Action::ArpReply, reply);
}

fn the_endpoint_answers_for_it(lab: &mut Lab) {
    add(lab);
    let reply = Arp::reply(&MORE, &FAR).frame();
    lab.at_container(Interface::A1, &reply).encaps(to_peer().wrap(&reply), &[]);
}

fn its_announcement_and_its_probe_are_absorbed(lab: &mut Lab) {
    add(lab);
    is_absorbed(lab, &Arp::request(&MORE, MORE.v4).frame());
    is_absorbed(lab, &Arp { eth_dst: BROADCAST, ..Arp::reply(&MORE, &MORE) }.frame());
    is_absorbed(lab, &Arp::request(&Host { v4: [0; 4], ..ONE }, MORE.v4).frame());
}

fn its_duplicate_detection_is_absorbed(lab: &mut Lab) {
    add(lab);
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, MORE.v6[15]];
    let eth = (ONE.mac, [0x33, 0x33, 0xff, 0, 0, MORE.v6[15]]);
    let probe = V6::icmp(eth, ([0; 16], group), (135, 0), [0; 4], &MORE.v6);
    is_absorbed(lab, &probe.frame());
}

fn nobody_else_speaks_for_it(lab: &mut Lab) {
    add(lab);
    let thief = Host { mac: TWO.mac, ..MORE };
    for arp in [Arp::request(&thief, MORE.v4), Arp::reply(&thief, &FAR)] {
        lab.at_container(Interface::A2, &arp.frame()).drops(DropReason::SpoofedArp);
    }
}

fn others_find_it(lab: &mut Lab) {
    add(lab);
    let reply = Arp::reply(&MORE, &TWO).frame();
    lab.at_container(Interface::A2, &Arp::request(&TWO, MORE.v4).frame())
        .answers(Action::ArpReply, reply);
    let frame = V4::udp(&TWO, &MORE, (1, 2), b"hello").frame();
    lab.at_container(Interface::A2, &frame).delivers(&frame, &[]);
}

fn the_host_sends_to_it(lab: &mut Lab) {
    add(lab);
    let packet = V4 { eth_dst: GATEWAY.mac, ..V4::udp(&GATEWAY, &MORE, (1, 2), b"hello") };
    let wanted = V4 { eth_dst: ONE.mac, ..packet.clone() }.frame();
    lab.at_host(&packet.frame()).delivers(&wanted, &[]);
}

fn a_removed_address_is_gone_at_once(lab: &mut Lab) {
    add(lab);
    // `encaps` sends the frame twice, so the flow cache has the pair.
    lab.at_container(Interface::A1, &v4()).encaps(to_peer().wrap(&v4()), &[]);
    lab.tables.neighbours.remove(&NeighKey::v4(A, MORE.v4)).unwrap();
    lab.at_container(Interface::A1, &v4()).drops(DropReason::SpoofedIp);
}

fn a_moved_address_is_followed_at_once(lab: &mut Lab) {
    add(lab);
    lab.at_container(Interface::A1, &v4()).encaps(to_peer().wrap(&v4()), &[]);
    neighbour(&lab.tables, A, &MORE, TWO.mac);
    lab.at_container(Interface::A1, &v4()).drops(DropReason::SpoofedIp);
    let frame = V4 { eth_src: TWO.mac, ..V4::udp(&MORE, &FAR, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A2, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn the_gateway_s_address_is_nobody_s(lab: &mut Lab) {
    // The neighbour map has the gateway's address, with the gateway's MAC.
    let frame = V4 { eth_src: ONE.mac, ..V4::udp(&GATEWAY, &FAR, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::SpoofedIp);
}
