//! Addresses that the store does not know, in a network with `anti_spoof=false`: they move between
//! containers by announcements (RFC 5227 §3, RFC 4861 §7.2.6, VRRP), and the host follows.

use culvert::datapath::{Table as _, now_ns};
use culvert_common::abi::{DropReason, FdbKey, HeardEntry, NeighKey, NetworkInfo, Note, RateKey};
use culvert_tests::packet::{Arp, BROADCAST, Host, Tunnel, V4, payload};

use crate::{
    interfaces::Interface,
    lab::{AGEING, Lab},
    run::{Copy, Count, Expected, Left, SHOT, copy, drop, note, tunnelled},
    world::{
        A, FAR, FARTHER, GATEWAY, NOBODY, ONE, PEER, PEER2, TWO, any_source, change_network,
        from_peer, learning, to_peer, to_peer2,
    },
};

cases!(
    a_gratuitous_request_is_flooded,
    a_gratuitous_reply_is_flooded,
    an_announcement_of_its_own_address_is_flooded,
    an_announcement_from_the_tunnel_is_flooded,
    a_request_for_it_is_flooded_and_its_answer_forwarded,
    a_virtual_mac_is_followed,
    the_host_sends_to_it,
    the_host_sends_to_it_behind_a_vtep,
    the_host_follows_when_it_moves,
    the_host_follows_a_virtual_mac,
    the_host_asks_for_it,
    the_host_asks_for_a_large_packet_too,
    the_host_asks_again_when_it_has_aged,
    the_host_asks_again_when_its_container_is_gone,
    the_host_asks_within_a_limit,
    the_host_does_not_ask_in_other_networks,
    an_answer_to_the_host_is_for_all_hosts,
    an_answer_from_the_tunnel_to_the_host_alone_is_heard,
    nothing_else_to_the_gateway_is_heard,
    addresses_of_the_store_are_not_taken_over,
    nothing_is_heard_from_a_probe,
    nothing_is_heard_with_anti_spoofing,
    nothing_is_heard_without_learning,
    what_another_host_asks_is_not_heard,
    what_is_heard_belongs_to_its_network,
    what_is_heard_is_limited,
);

/// The floating address.
const FLOAT: Host = NOBODY;
/// MAC of a virtual router (RFC 5798 §7.3).
const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];

/// Sets `anti_spoof=false` in network A.
fn float(lab: &Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    any_source(&lab.tables, Interface::A2);
}

/// The floating address, on `host`.
fn on(host: &Host) -> Host {
    Host { mac: host.mac, ..FLOAT }
}

/// The announcement of the floating address, on `host`.
fn announcement(host: &Host) -> Vec<u8> {
    Arp::request(&on(host), FLOAT.v4).frame()
}

#[track_caller]
fn is_flooded(lab: &mut Lab, from: Interface, frame: &[u8], notes: &[Note]) {
    let notes: Vec<Count> = notes.iter().map(|what| note(*what)).collect();
    lab.at_container(from, frame).reaches_everyone(&notes);
}

/// `host` announces that it has the floating address.
fn takes(lab: &mut Lab, interface: Interface, host: &Host) {
    is_flooded(lab, interface, &announcement(host), &[Note::NeighbourHeard]);
}

/// A host behind `vtep` announces that it has the floating address.
fn arrives(lab: &mut Lab, vtep: [u8; 4], host: &Host) {
    let inner = announcement(host);
    let outer = Tunnel { src: vtep, ..from_peer() }.wrap(&inner);
    let copies = [copy(Interface::A1, &inner), copy(Interface::A2, &inner)];
    let notes =
        [note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len()), note(Note::NeighbourHeard)];
    lab.at_underlay(&outer).floods(&copies, &notes);
}

fn heard(lab: &Lab) -> Option<[u8; 6]> {
    let entries = lab.tables.heard.dump().unwrap();
    entries.get(&NeighKey::v4(A, FLOAT.v4)).map(|entry| entry.mac)
}

/// A datagram of the host to the floating address, as the kernel gives it to the gateway device.
fn datagram() -> V4 {
    V4 { eth_dst: GATEWAY.mac, ..V4::udp(&GATEWAY, &FLOAT, (1000, 2000), &payload(77)) }
}

/// The frame of [`datagram`] on the network, to `mac`.
fn addressed(mac: [u8; 6]) -> Vec<u8> {
    V4 { eth_dst: mac, eth_src: GATEWAY.mac, ..datagram() }.frame()
}

/// Length in bytes of an ARP request of the host.
const REQUEST: usize = 98;

/// The host's request for the floating address.
fn request() -> Vec<u8> {
    let mut frame = Arp::request(&GATEWAY, FLOAT.v4).frame();
    frame.resize(REQUEST, 0);
    frame
}

/// The host's packet is dropped, and the host asks for its destination.
#[track_caller]
fn asks(lab: &mut Lab, frame: &[u8], gso: u32) {
    let request = request();
    let copies: [Copy; 4] = [
        copy(Interface::A1, &request),
        copy(Interface::A2, &request),
        tunnelled(to_peer().wrap(&request)),
        tunnelled(to_peer2().wrap(&request)),
    ];
    lab.at_host(frame).gso(gso).gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[
            drop(DropReason::UnknownDestination),
            note(Note::FloodLocalCopy).times(2).bytes(2 * REQUEST),
            note(Note::FloodRemoteCopy).times(2).bytes(2 * REQUEST),
            note(Note::NeighbourAsked).bytes(REQUEST),
        ],
        copies: &copies,
    });
}

fn a_gratuitous_request_is_flooded(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A1, &ONE);
    assert_eq!(heard(lab), Some(ONE.mac));
}

fn a_gratuitous_reply_is_flooded(lab: &mut Lab) {
    float(lab);
    let reply = Arp { eth_dst: BROADCAST, ..Arp::reply(&on(&ONE), &on(&ONE)) };
    is_flooded(lab, Interface::A1, &reply.frame(), &[Note::NeighbourHeard]);
    assert_eq!(heard(lab), Some(ONE.mac));
}

fn an_announcement_of_its_own_address_is_flooded(lab: &mut Lab) {
    float(lab);
    is_flooded(lab, Interface::A1, &Arp::request(&ONE, ONE.v4).frame(), &[]);
    // The store already has this address.
    assert!(lab.tables.heard.dump().unwrap().is_empty());
}

fn an_announcement_from_the_tunnel_is_flooded(lab: &mut Lab) {
    float(lab);
    arrives(lab, PEER, &FAR);
    assert_eq!(heard(lab), Some(FAR.mac));
}

fn a_request_for_it_is_flooded_and_its_answer_forwarded(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A2, &TWO);
    // The programs answer only for addresses of the store. The container with the floating address
    // answers the request.
    is_flooded(lab, Interface::A1, &Arp::request(&ONE, FLOAT.v4).frame(), &[]);
    let reply = Arp::reply(&on(&TWO), &ONE).frame();
    lab.at_container(Interface::A2, &reply).delivers(&reply, &[]);
    let frame = V4 { eth_dst: TWO.mac, ..V4::udp(&ONE, &FLOAT, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    let answer = V4 { eth_src: TWO.mac, ..V4::udp(&FLOAT, &ONE, (2, 1), b"hello") }.frame();
    lab.at_container(Interface::A2, &answer).delivers(&answer, &[]);
}

fn a_virtual_mac_is_followed(lab: &mut Lab) {
    float(lab);
    let router = Host { mac: VIRTUAL, ..FLOAT };
    let notes = [Note::NeighbourHeard, Note::Learned];
    is_flooded(lab, Interface::A1, &announcement(&router), &notes);
    let frame = V4 { eth_dst: VIRTUAL, ..V4::udp(&TWO, &FLOAT, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A2, &frame).delivers(&frame, &[]);
    // The other virtual router takes over.
    let inner = announcement(&router);
    let copies = [copy(Interface::A1, &inner), copy(Interface::A2, &inner)];
    let notes = [
        note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len()),
        note(Note::MacMove).bytes(from_peer().wrap(&inner).len()),
    ];
    lab.at_underlay(&from_peer().wrap(&inner)).floods(&copies, &notes);
    lab.at_container(Interface::A2, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn the_host_sends_to_it(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A1, &ONE);
    lab.at_host(&datagram().frame()).delivers(&addressed(ONE.mac), &[]);
}

fn the_host_sends_to_it_behind_a_vtep(lab: &mut Lab) {
    float(lab);
    arrives(lab, PEER2, &FARTHER);
    let wanted = to_peer2().wrap(&addressed(FARTHER.mac));
    lab.at_host(&datagram().frame()).encaps(wanted, &[]);
}

fn the_host_follows_when_it_moves(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A1, &ONE);
    lab.at_host(&datagram().frame()).delivers(&addressed(ONE.mac), &[]);
    arrives(lab, PEER, &FAR);
    lab.at_host(&datagram().frame()).encaps(to_peer().wrap(&addressed(FAR.mac)), &[]);
    takes(lab, Interface::A2, &TWO);
    lab.at_host(&datagram().frame()).delivers(&addressed(TWO.mac), &[]);
}

fn the_host_follows_a_virtual_mac(lab: &mut Lab) {
    float(lab);
    let router = Host { mac: VIRTUAL, ..FLOAT };
    let notes = [Note::NeighbourHeard, Note::Learned];
    is_flooded(lab, Interface::A1, &announcement(&router), &notes);
    lab.at_host(&datagram().frame()).delivers(&addressed(VIRTUAL), &[]);
}

fn the_host_asks_for_it(lab: &mut Lab) {
    float(lab);
    asks(lab, &datagram().frame(), 0);
    // The packet is shorter than the request that replaces it.
    let short = V4 { eth_dst: GATEWAY.mac, ..V4::new(&GATEWAY, &FLOAT) };
    asks(lab, &short.frame(), 0);
    takes(lab, Interface::A1, &ONE);
    lab.at_host(&datagram().frame()).delivers(&addressed(ONE.mac), &[]);
}

fn the_host_asks_for_a_large_packet_too(lab: &mut Lab) {
    float(lab);
    let packet = V4::tcp(&GATEWAY, &FLOAT, (1000, 80), &payload(3000));
    asks(lab, &V4 { eth_dst: GATEWAY.mac, ..packet }.frame(), 1000);
}

fn the_host_asks_again_when_it_has_aged(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A1, &ONE);
    let key = NeighKey::v4(A, FLOAT.v4);
    let aged = HeardEntry {
        last_seen_ns: now_ns() - AGEING.as_nanos() as u64,
        mac: ONE.mac,
        ..HeardEntry::default()
    };
    lab.tables.heard.insert(&key, &aged).unwrap();
    asks(lab, &datagram().frame(), 0);
}

fn the_host_asks_again_when_its_container_is_gone(lab: &mut Lab) {
    float(lab);
    takes(lab, Interface::A1, &ONE);
    lab.tables.fdb.remove(&FdbKey::new(A, ONE.mac)).unwrap();
    asks(lab, &datagram().frame(), 0);
}

fn the_host_asks_within_a_limit(lab: &mut Lab) {
    float(lab);
    asks(lab, &datagram().frame(), 0);
    let limit = RateKey { kind: RateKey::ASK, id: A };
    assert!(lab.rates.get(limit).is_some());
    // No request is allowed for the next hour.
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
    lab.at_host(&datagram().frame()).drops(DropReason::UnknownDestination);
}

fn the_host_does_not_ask_in_other_networks(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    lab.at_host(&datagram().frame()).drops(DropReason::UnknownDestination);
    // The store has this endpoint, but the FDB of this host does not: no container would answer.
    learning(&lab.tables);
    lab.tables.fdb.remove(&FdbKey::new(A, FAR.mac)).unwrap();
    let known = V4 { eth_dst: GATEWAY.mac, ..V4::udp(&GATEWAY, &FAR, (1, 2), b"hello") };
    lab.at_host(&known.frame()).drops(DropReason::UnknownDestination);
}

fn an_answer_to_the_host_is_for_all_hosts(lab: &mut Lab) {
    float(lab);
    let reply = Arp::reply(&on(&ONE), &GATEWAY);
    let flooded = Arp { eth_dst: BROADCAST, ..reply }.frame();
    let copies = [
        copy(Interface::A2, &flooded),
        tunnelled(to_peer().wrap(&flooded)),
        tunnelled(to_peer2().wrap(&flooded)),
    ];
    let notes = [
        note(Note::FloodLocalCopy),
        note(Note::FloodRemoteCopy).times(2),
        note(Note::NeighbourHeard),
    ];
    lab.at_container(Interface::A1, &reply.frame()).floods(&copies, &notes);
    lab.at_host(&datagram().frame()).delivers(&addressed(ONE.mac), &[]);
    // In a network without learning, the store has all addresses and the host sends no requests.
    change_network(&lab.tables, A, |network| network.flags &= !NetworkInfo::LEARNING);
    lab.at_container(Interface::A1, &reply.frame()).drops(DropReason::Unroutable);
}

/// An ARP reply of `host` to the gateway's MAC, from the tunnel.
fn answer(host: &Host) -> Vec<u8> {
    from_peer().wrap(&Arp::reply(&on(host), &GATEWAY).frame())
}

#[track_caller]
fn is_absorbed(lab: &mut Lab, frame: &[u8], notes: &[Note]) {
    let notes: Vec<Count> = notes.iter().map(|what| note(*what)).collect();
    lab.at_underlay(frame).absorbs(&notes);
}

fn an_answer_from_the_tunnel_to_the_host_alone_is_heard(lab: &mut Lab) {
    float(lab);
    asks(lab, &datagram().frame(), 0);
    // The sending VTEP has not changed the reply to a broadcast.
    is_absorbed(lab, &answer(&FAR), &[Note::NeighbourHeard]);
    assert_eq!(heard(lab), Some(FAR.mac));
    lab.at_host(&datagram().frame()).encaps(to_peer().wrap(&addressed(FAR.mac)), &[]);
    is_absorbed(lab, &answer(&FAR), &[]);
    // A reply whose MAC is not in the store.
    let router = Host { mac: VIRTUAL, ..FLOAT };
    is_absorbed(lab, &answer(&router), &[Note::NeighbourHeard, Note::Learned]);
    lab.at_host(&datagram().frame()).encaps(to_peer().wrap(&addressed(VIRTUAL)), &[]);
}

fn nothing_else_to_the_gateway_is_heard(lab: &mut Lab) {
    lab.at_underlay(&answer(&FAR)).drops(DropReason::SpoofedArp);
    float(lab);
    // A reply for an address of the store, and a packet that is not ARP. Their MACs are not learned
    // either.
    let known = Arp::reply(&Host { mac: VIRTUAL, ..TWO }, &GATEWAY).frame();
    lab.at_underlay(&from_peer().wrap(&known)).drops(DropReason::UnknownDestination);
    let router = Host { mac: VIRTUAL, ..FLOAT };
    let other = V4::udp(&router, &GATEWAY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&other)).drops(DropReason::UnknownDestination);
    assert_eq!(heard(lab), None);
    assert_eq!(lab.learned_keys(), []);
}

fn addresses_of_the_store_are_not_taken_over(lab: &mut Lab) {
    float(lab);
    let taken = Host { mac: ONE.mac, ..FAR };
    is_flooded(lab, Interface::A1, &Arp::request(&taken, FAR.v4).frame(), &[]);
    let inner = Arp::request(&Host { mac: FAR.mac, ..TWO }, TWO.v4).frame();
    lab.at_underlay(&from_peer().wrap(&inner)).outcome();
    assert!(lab.tables.heard.dump().unwrap().is_empty());
    let packet = V4 { eth_dst: GATEWAY.mac, ..V4::udp(&GATEWAY, &FAR, (1, 2), b"hello") };
    let wanted = V4 { eth_dst: FAR.mac, ..packet.clone() }.frame();
    lab.at_host(&packet.frame()).encaps(to_peer().wrap(&wanted), &[]);
}

fn nothing_is_heard_from_a_probe(lab: &mut Lab) {
    float(lab);
    let probe = Arp::request(&Host { v4: [0; 4], ..ONE }, FLOAT.v4).frame();
    is_flooded(lab, Interface::A1, &probe, &[]);
    let group = Arp { sender_mac: [0xff; 6], ..Arp::request(&on(&ONE), FLOAT.v4) };
    is_flooded(lab, Interface::A1, &group.frame(), &[]);
    assert!(lab.tables.heard.dump().unwrap().is_empty());
}

fn nothing_is_heard_with_anti_spoofing(lab: &mut Lab) {
    learning(&lab.tables);
    lab.at_container(Interface::A1, &announcement(&ONE)).drops(DropReason::SpoofedArp);
    assert_eq!(heard(lab), None);
}

fn nothing_is_heard_without_learning(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    lab.at_container(Interface::A1, &announcement(&ONE)).outcome();
    lab.at_underlay(&from_peer().wrap(&announcement(&FAR))).outcome();
    assert_eq!(heard(lab), None);
}

fn what_another_host_asks_is_not_heard(lab: &mut Lab) {
    float(lab);
    // The request has the gateway's MAC, which is on every host.
    let inner = request();
    let copies = [copy(Interface::A1, &inner), copy(Interface::A2, &inner)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * REQUEST)];
    lab.at_underlay(&from_peer().wrap(&inner)).floods(&copies, &notes);
    let claims = announcement(&GATEWAY);
    lab.at_underlay(&from_peer().wrap(&claims)).drops(DropReason::GatewaySource);
    assert!(lab.tables.heard.dump().unwrap().is_empty());
}

fn what_is_heard_belongs_to_its_network(lab: &mut Lab) {
    float(lab);
    let key = NeighKey::v4(A + 1, FLOAT.v4);
    let entry = HeardEntry { last_seen_ns: now_ns(), mac: ONE.mac, ..HeardEntry::default() };
    lab.tables.heard.insert(&key, &entry).unwrap();
    asks(lab, &datagram().frame(), 0);
}

fn what_is_heard_is_limited(lab: &mut Lab) {
    float(lab);
    let limit = |vni: u32| RateKey { kind: RateKey::HEAR, id: vni };
    // The limit of another network does not count.
    let used_up = now_ns() + 3_600_000_000_000;
    lab.rates.set(limit(A + 1), used_up);
    takes(lab, Interface::A1, &ONE);
    assert!(lab.rates.get(limit(A)).is_some());
    // Nothing is recorded for the next hour: no move and no other address, neither from a container
    // nor from the tunnel.
    lab.rates.set(limit(A), used_up);
    is_flooded(lab, Interface::A2, &announcement(&TWO), &[Note::NeighbourLimited]);
    let other = Host { v4: [10, 0, 0, 98], ..ONE };
    is_flooded(
        lab,
        Interface::A1,
        &Arp::request(&other, other.v4).frame(),
        &[Note::NeighbourLimited],
    );
    let limited = [note(Note::NeighbourLimited)];
    lab.at_underlay(&answer(&FAR)).drops_noting(DropReason::UnknownDestination, &limited);
    // A repeated announcement of the recorded MAC is not limited.
    is_flooded(lab, Interface::A1, &announcement(&ONE), &[]);
    assert_eq!(heard(lab), Some(ONE.mac));
    assert_eq!(lab.tables.heard.dump().unwrap().len(), 1);
}
