//! The FDB: local, static and learned entries, ageing, moves.

use culvert::datapath::entry::LearnedEntry;
use culvert::datapath::{Table as _, now_ns};
use culvert_common::abi::{DropReason, FdbKey, Note, RateKey};
use culvert_tests::packet::{Tunnel, V4};

use crate::{
    interfaces::Interface,
    lab::{AGEING, Lab},
    run::{copy, note},
    world::{
        A, B, FAR, FARTHER, NOBODY, ONE, PEER, PEER2, TWO, any_source, from_peer, host, learning,
        local, remote, to_peer, to_peer2,
    },
};

cases!(
    local_endpoint,
    same_interface,
    static_entry_decides_the_vtep,
    learned_from_the_tunnel,
    learned_from_the_tunnel_with_a_broadcast,
    nothing_is_learned_without_learning,
    nothing_is_learned_from_what_is_dropped,
    learned_from_a_container,
    container_with_its_own_address_teaches_nothing,
    learned_entry_is_used,
    learned_local_entry_is_used,
    learned_entry_of_this_port,
    learned_entry_behind_the_tunnel_it_comes_from,
    learned_entry_is_not_used_without_learning,
    aged_entry_is_not_used,
    entry_of_the_last_moment_is_used,
    aged_entry_is_learned_anew,
    fresh_entry_is_left_alone,
    entry_over_a_second_old_is_refreshed,
    static_entry_is_not_displaced,
    static_entry_confirmed_is_not_learned,
    local_entry_is_not_displaced,
    static_entry_hides_a_learned_one,
    group_and_zero_sources_are_never_learned,
    moves_between_vteps,
    moves_from_a_vtep_to_a_port,
    moves_are_limited,
    moves_of_other_networks_are_not,
    new_ones_are_limited,
    new_ones_of_other_networks_are_not,
    learned_entries_belong_to_their_network,
);

fn from(source: [u8; 6]) -> Vec<u8> {
    V4 { eth_src: source, ..V4::udp(&FAR, &ONE, (1, 2), b"hello") }.frame()
}

/// MAC of a host that is not in the store.
const NEW: [u8; 6] = NOBODY.mac;

fn key(mac: [u8; 6]) -> FdbKey {
    FdbKey::new(A, mac)
}

fn behind(vtep: [u8; 4], last_seen_ns: u64) -> LearnedEntry {
    LearnedEntry { last_seen_ns, vtep, ifindex: 0 }
}

/// The time `age` ms before now.
fn ago_ms(age: u64) -> u64 {
    now_ns() - age * 1_000_000
}

const AGEING_MS: u64 = AGEING.as_millis() as u64;

/// VTEP and ifindex of a learned entry.
fn place(lab: &Lab, mac: [u8; 6]) -> Option<([u8; 4], u32)> {
    lab.learned(key(mac)).map(|entry| (entry.vtep, entry.ifindex))
}

#[track_caller]
fn arrives_from(lab: &mut Lab, vtep: [u8; 4], source: [u8; 6], notes: &[Note]) {
    let inner = from(source);
    let outer = Tunnel { src: vtep, ..from_peer() }.wrap(&inner);
    let notes: Vec<_> = notes.iter().map(|what| note(*what)).collect();
    lab.at_underlay(&outer).delivers(&inner, &notes);
}

/// A frame of `A1` to [`NEW`].
fn to_new() -> Vec<u8> {
    V4::udp(&ONE, &NOBODY, (1, 2), b"hello").frame()
}

#[track_caller]
fn is_flooded(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).reaches_everyone(&[]);
}

fn local_endpoint(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    let frame = V4::udp(&TWO, &ONE, (1, 2), b"hello").frame();
    lab.at_container(Interface::A2, &frame).delivers(&frame, &[]);
}

fn same_interface(lab: &mut Lab) {
    let to_self = V4::udp(&ONE, &ONE, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &to_self).drops(DropReason::SameInterface);
    // Another MAC on the same interface.
    lab.tables.fdb.insert(&key(NEW), &local(Interface::A1)).unwrap();
    lab.at_container(Interface::A1, &to_new()).drops(DropReason::SameInterface);
}

fn static_entry_decides_the_vtep(lab: &mut Lab) {
    for (vtep, tunnel) in [(PEER, to_peer()), (PEER2, to_peer2())] {
        lab.tables.fdb.insert(&key(NEW), &remote(vtep)).unwrap();
        let frame = to_new();
        lab.at_container(Interface::A1, &frame).encaps(tunnel.wrap(&frame), &[]);
    }
}

fn learned_from_the_tunnel(lab: &mut Lab) {
    learning(&lab.tables);
    let before = now_ns();
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    let entry = lab.learned(key(NEW)).unwrap();
    assert_eq!((entry.vtep, entry.ifindex), (PEER, 0));
    assert!((before..=now_ns()).contains(&entry.last_seen_ns));
    assert_eq!(lab.learned_keys(), [key(NEW)]);
}

fn learned_from_the_tunnel_with_a_broadcast(lab: &mut Lab) {
    learning(&lab.tables);
    let inner = V4 { eth_dst: [0xff; 6], eth_src: NEW, ..V4::udp(&FAR, &ONE, (1, 2), b"all") };
    let inner = inner.frame();
    let copies = [copy(Interface::A1, &inner), copy(Interface::A2, &inner)];
    let notes = [note(Note::Learned), note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len())];
    lab.at_underlay(&from_peer().wrap(&inner)).floods(&copies, &notes);
    assert_eq!(place(lab, NEW), Some((PEER, 0)));
}

fn nothing_is_learned_without_learning(lab: &mut Lab) {
    let outer = from_peer().wrap(&from(NEW));
    lab.at_underlay(&outer).drops(DropReason::ForeignSourceMac);
    any_source(&lab.tables, Interface::A1);
    let frame = V4 { eth_src: NEW, ..V4::udp(&ONE, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    assert_eq!(lab.learned_keys(), []);
}

fn nothing_is_learned_from_what_is_dropped(lab: &mut Lab) {
    learning(&lab.tables);
    let stranger = Tunnel { src: crate::world::STRANGER, ..from_peer() };
    lab.at_underlay(&stranger.wrap(&from(NEW))).drops(DropReason::UnknownVtep);
    let marked = Tunnel { tos: 0b11, ..from_peer() };
    lab.at_underlay(&marked.wrap(&from(NEW))).drops(DropReason::EcnInvalid);
    let spoofed = V4 { eth_src: NEW, ..V4::udp(&ONE, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &spoofed).drops(DropReason::SpoofedMac);
    assert_eq!(lab.learned_keys(), []);
}

fn learned_from_a_container(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    let frame = V4 { eth_src: NEW, ..V4::udp(&NOBODY, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[note(Note::Learned)]);
    assert_eq!(place(lab, NEW), Some(([0; 4], Interface::A1.ifindex())));
}

fn container_with_its_own_address_teaches_nothing(lab: &mut Lab) {
    learning(&lab.tables);
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"").frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    any_source(&lab.tables, Interface::A1);
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    assert_eq!(lab.learned_keys(), []);
}

fn learned_entry_is_used(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(key(NEW), behind(PEER2, now_ns()));
    let frame = to_new();
    lab.at_container(Interface::A1, &frame).encaps(to_peer2().wrap(&frame), &[]);
}

fn learned_local_entry_is_used(lab: &mut Lab) {
    learning(&lab.tables);
    let entry = LearnedEntry { ifindex: Interface::A2.ifindex(), ..behind([0; 4], now_ns()) };
    lab.set_learned(key(NEW), entry);
    let frame = to_new();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    // Frames from the tunnel use the entry, too.
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).delivers(&inner, &[]);
}

fn learned_entry_of_this_port(lab: &mut Lab) {
    learning(&lab.tables);
    let entry = LearnedEntry { ifindex: Interface::A1.ifindex(), ..behind([0; 4], now_ns()) };
    lab.set_learned(key(NEW), entry);
    lab.at_container(Interface::A1, &to_new()).drops(DropReason::SameInterface);
}

fn learned_entry_behind_the_tunnel_it_comes_from(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(key(NEW), behind(PEER2, now_ns()));
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::SplitHorizon);
}

fn learned_entry_is_not_used_without_learning(lab: &mut Lab) {
    // The network has learned until a moment ago.
    lab.set_learned(key(NEW), behind(PEER2, now_ns()));
    is_flooded(lab, &to_new());
}

fn aged_entry_is_not_used(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(key(NEW), behind(PEER2, ago_ms(AGEING_MS)));
    is_flooded(lab, &to_new());
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    let copies = [copy(Interface::A1, &inner), copy(Interface::A2, &inner)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len())];
    lab.at_underlay(&from_peer().wrap(&inner)).floods(&copies, &notes);
}

fn entry_of_the_last_moment_is_used(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(key(NEW), behind(PEER2, ago_ms(AGEING_MS / 2)));
    let frame = to_new();
    lab.at_container(Interface::A1, &frame).encaps(to_peer2().wrap(&frame), &[]);
}

fn aged_entry_is_learned_anew(lab: &mut Lab) {
    learning(&lab.tables);
    // The aged entry has another VTEP, but this is not counted as a move.
    lab.set_learned(key(NEW), behind(PEER2, ago_ms(AGEING_MS)));
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    assert_eq!(place(lab, NEW), Some((PEER, 0)));
    assert!(lab.rates.keys().iter().all(|limit| limit.kind != RateKey::MAC_MOVE));
}

fn fresh_entry_is_left_alone(lab: &mut Lab) {
    learning(&lab.tables);
    // The time is in the future, so it is less than a second ago even on a slow machine.
    let seen = now_ns() + 1_000_000_000_000;
    lab.set_learned(key(NEW), behind(PEER, seen));
    arrives_from(lab, PEER, NEW, &[]);
    assert_eq!(lab.learned(key(NEW)).unwrap().last_seen_ns, seen);
}

fn entry_over_a_second_old_is_refreshed(lab: &mut Lab) {
    learning(&lab.tables);
    let seen = ago_ms(1500);
    lab.set_learned(key(NEW), behind(PEER, seen));
    arrives_from(lab, PEER, NEW, &[]);
    assert!(lab.learned(key(NEW)).unwrap().last_seen_ns > seen);
}

fn static_entry_is_not_displaced(lab: &mut Lab) {
    learning(&lab.tables);
    let claimed = Tunnel { src: PEER2, ..from_peer() }.wrap(&from(FAR.mac));
    lab.at_underlay(&claimed).drops(DropReason::ForeignSourceMac);
    assert_eq!(lab.learned_keys(), []);
    // A container without `anti_spoof` cannot take over a known MAC either.
    any_source(&lab.tables, Interface::A1);
    let frame = V4 { eth_src: FAR.mac, ..V4::udp(&FAR, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[note(Note::LearnRefused)]);
    assert_eq!(lab.learned_keys(), []);
}

fn static_entry_confirmed_is_not_learned(lab: &mut Lab) {
    learning(&lab.tables);
    arrives_from(lab, PEER, FAR.mac, &[]);
    assert_eq!(lab.learned_keys(), []);
}

fn local_entry_is_not_displaced(lab: &mut Lab) {
    learning(&lab.tables);
    let outer = from_peer().wrap(&from(TWO.mac));
    lab.at_underlay(&outer).drops(DropReason::LocalSourceMac);
    any_source(&lab.tables, Interface::A1);
    let frame = V4 { eth_src: TWO.mac, ..V4::udp(&TWO, &FAR, (1, 2), b"") }.frame();
    let refused = [note(Note::LearnRefused)];
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &refused);
    assert_eq!(lab.learned_keys(), []);
}

fn static_entry_hides_a_learned_one(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(key(FAR.mac), behind(PEER2, now_ns()));
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn group_and_zero_sources_are_never_learned(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let outer = from_peer().wrap(&from(mac));
        lab.at_underlay(&outer).drops(DropReason::InvalidSourceMac);
        let frame = V4 { eth_src: mac, ..V4::udp(&ONE, &TWO, (1, 2), b"") }.frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::InvalidSourceMac);
    }
    assert_eq!(lab.learned_keys(), []);
}

fn moves_between_vteps(lab: &mut Lab) {
    learning(&lab.tables);
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    arrives_from(lab, PEER2, NEW, &[Note::MacMove]);
    assert_eq!(place(lab, NEW), Some((PEER2, 0)));
    arrives_from(lab, PEER, NEW, &[Note::MacMove]);
    assert_eq!(place(lab, NEW), Some((PEER, 0)));
}

fn moves_from_a_vtep_to_a_port(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    let frame = V4 { eth_src: NEW, ..V4::udp(&NOBODY, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[note(Note::MacMove)]);
    assert_eq!(place(lab, NEW), Some(([0; 4], Interface::A1.ifindex())));
}

fn moves_are_limited(lab: &mut Lab) {
    learning(&lab.tables);
    // The limit allows sixteen moves at once.
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    for n in 0..16 {
        let vtep = if n % 2 == 0 { PEER2 } else { PEER };
        arrives_from(lab, vtep, NEW, &[Note::MacMove]);
    }
    // A slow machine may allow more meanwhile. This sets the limit to no move in the next hour.
    let limit = RateKey { kind: RateKey::MAC_MOVE, id: A };
    assert!(lab.rates.get(limit).is_some());
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
    arrives_from(lab, PEER2, NEW, &[Note::MacMoveLimited]);
    assert_eq!(place(lab, NEW), Some((PEER, 0)));
    // A MAC that does not move is still refreshed, and new MACs are learned.
    arrives_from(lab, PEER, NEW, &[]);
    arrives_from(lab, PEER, host(98).mac, &[Note::Learned]);
}

fn moves_of_other_networks_are_not(lab: &mut Lab) {
    learning(&lab.tables);
    let limit = RateKey { kind: RateKey::MAC_MOVE, id: B };
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    arrives_from(lab, PEER2, NEW, &[Note::MacMove]);
}

/// Uses up the limit of new MACs of network `vni` for the next hour.
fn learn_no_more(lab: &mut Lab, vni: u32) {
    let limit = RateKey { kind: RateKey::LEARN, id: vni };
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
}

fn new_ones_are_limited(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    assert!(lab.rates.get(RateKey { kind: RateKey::LEARN, id: A }).is_some());
    learn_no_more(lab, A);
    // The MAC is learned neither from the tunnel nor from a container. The frames are forwarded.
    let other = host(98).mac;
    arrives_from(lab, PEER, other, &[Note::LearnLimited]);
    let frame = V4 { eth_src: other, ..V4::udp(&NOBODY, &TWO, (1, 2), b"") }.frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[note(Note::LearnLimited)]);
    assert_eq!(lab.learned_keys(), [key(NEW)]);
    // A known MAC is still refreshed, and may move.
    arrives_from(lab, PEER, NEW, &[]);
    arrives_from(lab, PEER2, NEW, &[Note::MacMove]);
    assert_eq!(place(lab, NEW), Some((PEER2, 0)));
}

fn new_ones_of_other_networks_are_not(lab: &mut Lab) {
    learning(&lab.tables);
    learn_no_more(lab, B);
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
}

fn learned_entries_belong_to_their_network(lab: &mut Lab) {
    learning(&lab.tables);
    lab.set_learned(FdbKey::new(B, NEW), behind(PEER2, now_ns()));
    is_flooded(lab, &to_new());
    arrives_from(lab, PEER, NEW, &[Note::Learned]);
    assert_eq!(lab.learned(FdbKey::new(B, NEW)).unwrap().vtep, PEER2);
    // The store has this MAC at another VTEP of the network.
    let claimed = from_peer().wrap(&from(FARTHER.mac));
    lab.at_underlay(&claimed).drops(DropReason::ForeignSourceMac);
}
