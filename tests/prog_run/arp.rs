//! ARP of a container: suppression, probes, announcements, spoofing (RFC 826,
//! RFC 5227).

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, NeighKey};
use culvert_tests::packet::{Arp, BROADCAST, Host};

use crate::{
    interfaces::Interface,
    lab::Lab,
    world::{A, FAR, NOBODY, ONE, PEER_MAC, TWO, any_source, change_endpoint, learning, to_peer},
};

cases!(
    known_remote_is_answered,
    known_local_is_answered,
    padded_request_is_answered,
    unicast_request_is_answered,
    answered_in_a_learning_network,
    unknown_is_flooded,
    probe_of_a_taken_address_is_answered,
    probe_of_an_unknown_address_is_flooded,
    probe_of_its_own_address_is_absorbed,
    gratuitous_request_is_absorbed,
    gratuitous_reply_is_absorbed,
    gratuitous_request_is_flooded_where_hosts_learn,
    reply_is_forwarded,
    reply_to_a_local_endpoint_is_delivered,
    spoofed_sender_mac,
    spoofed_sender_ip,
    spoofed_reply,
    spoofed_gratuitous,
    spoofed_frame_source,
    reply_from_nothing,
    endpoint_without_ipv4,
    any_source_may_speak_for_others,
    other_operation,
    other_hardware,
    truncated,
);

fn answer(asker: &Host, target_ip: [u8; 4], mac: [u8; 6]) -> Arp {
    Arp {
        eth_dst: asker.mac,
        eth_src: mac,
        operation: 2,
        sender_mac: mac,
        sender_ip: target_ip,
        target_mac: asker.mac,
        target_ip: asker.v4,
    }
}

#[track_caller]
fn is_answered(lab: &mut Lab, request: &[u8], target: &Host) {
    let reply = answer(&ONE, target.v4, target.mac).frame();
    let left = [&reply, request.get(reply.len()..).unwrap_or_default()].concat();
    lab.at_container(Interface::A1, request).answers(Action::ArpReply, left);
}

#[track_caller]
fn is_flooded(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).reaches_everyone(&[]);
}

#[track_caller]
fn is_absorbed(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).absorbs(&[]);
}

fn known_remote_is_answered(lab: &mut Lab) {
    is_answered(lab, &Arp::request(&ONE, FAR.v4).frame(), &FAR);
}

fn known_local_is_answered(lab: &mut Lab) {
    is_answered(lab, &Arp::request(&ONE, TWO.v4).frame(), &TWO);
}

fn padded_request_is_answered(lab: &mut Lab) {
    let mut request = Arp::request(&ONE, FAR.v4).frame();
    request.resize(60, 0);
    is_answered(lab, &request, &FAR);
}

fn unicast_request_is_answered(lab: &mut Lab) {
    // Linux sends a unicast request before it discards an entry (RFC 1122 §2.3.2.1).
    let request = Arp { eth_dst: FAR.mac, target_mac: FAR.mac, ..Arp::request(&ONE, FAR.v4) };
    is_answered(lab, &request.frame(), &FAR);
}

fn answered_in_a_learning_network(lab: &mut Lab) {
    learning(&lab.tables);
    is_answered(lab, &Arp::request(&ONE, FAR.v4).frame(), &FAR);
}

fn unknown_is_flooded(lab: &mut Lab) {
    is_flooded(lab, &Arp::request(&ONE, NOBODY.v4).frame());
    lab.tables.neighbours.remove(&NeighKey::v4(A, FAR.v4)).unwrap();
    is_flooded(lab, &Arp::request(&ONE, FAR.v4).frame());
}

fn probe_of_a_taken_address_is_answered(lab: &mut Lab) {
    // RFC 5227 §2.1.1: the address is taken. The answer goes to 0.0.0.0.
    let nobody_yet = Host { v4: [0; 4], ..ONE };
    let probe = Arp::request(&nobody_yet, FAR.v4).frame();
    let reply = answer(&nobody_yet, FAR.v4, FAR.mac).frame();
    lab.at_container(Interface::A1, &probe).answers(Action::ArpReply, reply);
}

fn probe_of_an_unknown_address_is_flooded(lab: &mut Lab) {
    is_flooded(lab, &Arp::request(&Host { v4: [0; 4], ..ONE }, NOBODY.v4).frame());
}

fn probe_of_its_own_address_is_absorbed(lab: &mut Lab) {
    // The neighbour map has the address as the endpoint's own. The endpoint would take an answer
    // for an address conflict.
    is_absorbed(lab, &Arp::request(&Host { v4: [0; 4], ..ONE }, ONE.v4).frame());
}

fn gratuitous_request_is_absorbed(lab: &mut Lab) {
    is_absorbed(lab, &Arp::request(&ONE, ONE.v4).frame());
}

fn gratuitous_reply_is_absorbed(lab: &mut Lab) {
    let reply = Arp { eth_dst: BROADCAST, ..Arp::reply(&ONE, &ONE) };
    is_absorbed(lab, &reply.frame());
}

fn gratuitous_request_is_flooded_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    is_flooded(lab, &Arp::request(&ONE, ONE.v4).frame());
    is_flooded(lab, &Arp::request(&Host { v4: [0; 4], ..ONE }, ONE.v4).frame());
}

fn reply_is_forwarded(lab: &mut Lab) {
    let reply = Arp::reply(&ONE, &FAR).frame();
    lab.at_container(Interface::A1, &reply).encaps(to_peer().wrap(&reply), &[]);
}

fn reply_to_a_local_endpoint_is_delivered(lab: &mut Lab) {
    let reply = Arp::reply(&ONE, &TWO).frame();
    lab.at_container(Interface::A1, &reply).delivers(&reply, &[]);
}

#[track_caller]
fn is_refused(lab: &mut Lab, arp: &Arp, reason: DropReason) {
    lab.at_container(Interface::A1, &arp.frame()).drops(reason);
}

fn spoofed_sender_mac(lab: &mut Lab) {
    for sender_mac in [TWO.mac, NOBODY.mac, [0; 6], [0xff; 6], PEER_MAC] {
        let request = Arp { sender_mac, ..Arp::request(&ONE, FAR.v4) };
        is_refused(lab, &request, DropReason::SpoofedArp);
    }
}

fn spoofed_sender_ip(lab: &mut Lab) {
    for sender_ip in [TWO.v4, FAR.v4, NOBODY.v4, [255; 4], [10, 0, 0, 1]] {
        let request = Arp { sender_ip, ..Arp::request(&ONE, FAR.v4) };
        is_refused(lab, &request, DropReason::SpoofedArp);
    }
}

fn spoofed_reply(lab: &mut Lab) {
    let reply = Arp { sender_ip: FAR.v4, ..Arp::reply(&ONE, &TWO) };
    is_refused(lab, &reply, DropReason::SpoofedArp);
    let reply = Arp { sender_mac: FAR.mac, ..Arp::reply(&ONE, &TWO) };
    is_refused(lab, &reply, DropReason::SpoofedArp);
}

fn spoofed_gratuitous(lab: &mut Lab) {
    let taken = Host { v4: TWO.v4, ..ONE };
    is_refused(lab, &Arp::request(&taken, TWO.v4), DropReason::SpoofedArp);
    learning(&lab.tables);
    is_refused(lab, &Arp::request(&taken, TWO.v4), DropReason::SpoofedArp);
}

fn spoofed_frame_source(lab: &mut Lab) {
    let request = Arp { eth_src: TWO.mac, ..Arp::request(&ONE, FAR.v4) };
    is_refused(lab, &request, DropReason::SpoofedMac);
}

fn reply_from_nothing(lab: &mut Lab) {
    // 0.0.0.0 is the sender of a probe, which is a request.
    let reply = Arp { sender_ip: [0; 4], ..Arp::reply(&ONE, &TWO) };
    is_refused(lab, &reply, DropReason::SpoofedArp);
}

fn endpoint_without_ipv4(lab: &mut Lab) {
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.ipv4 = [0; 4]);
    lab.tables.neighbours.remove(&NeighKey::v4(A, ONE.v4)).unwrap();
    is_refused(lab, &Arp::request(&ONE, FAR.v4), DropReason::SpoofedArp);
    let announcement = Arp::reply(&Host { v4: [0; 4], ..ONE }, &TWO);
    is_refused(lab, &announcement, DropReason::SpoofedArp);
}

fn any_source_may_speak_for_others(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    let behind = Host { mac: NOBODY.mac, v4: NOBODY.v4, v6: NOBODY.v6 };
    let request = Arp::request(&behind, FAR.v4).frame();
    let reply = answer(&behind, FAR.v4, FAR.mac).frame();
    lab.at_container(Interface::A1, &request).answers(Action::ArpReply, reply);
}

fn other_operation(lab: &mut Lab) {
    // RARP (3), InARP (8), and operations that are not assigned.
    for operation in [0, 3, 8, 0x0100] {
        let arp = Arp { operation, ..Arp::request(&ONE, FAR.v4) };
        is_refused(lab, &arp, DropReason::Malformed);
    }
}

fn other_hardware(lab: &mut Lab) {
    let good = Arp::request(&ONE, FAR.v4).frame();
    // Hardware type, protocol type, and their lengths.
    for at in [14, 15, 16, 17, 18, 19] {
        let mut frame = good.clone();
        frame[at] ^= 0x10;
        lab.at_container(Interface::A1, &frame).drops(DropReason::Malformed);
    }
}

fn truncated(lab: &mut Lab) {
    let good = Arp::request(&ONE, FAR.v4).frame();
    for len in 14..good.len() {
        lab.at_container(Interface::A1, &good[..len]).drops(DropReason::Malformed);
    }
}
