//! The flow cache: that it is used, how long an entry is valid, and that only frames of its pair
//! match it.

use culvert::datapath::Table as _;
use culvert::datapath::entry::{FdbEntry, UnderlayPath, VtepKey};
use culvert_common::abi::{Action, Code, Direction, DropReason, FdbKey, NetworkInfo, Note};
use culvert_tests::packet::{Host, Tunnel, V4, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{SHOT, note},
    world::{
        A, B, FAR, MTU, NOBODY, ONE, PEER, PEER2, STRANGER, TO_PEER, TWO, VXLAN_PORT, any_source,
        change_network, endpoint, from_peer, learning, remote, to_peer, to_peer2,
    },
};

cases!(
    outbound_is_remembered,
    local_is_remembered,
    inbound_is_remembered,
    other_kinds_of_frames_are_judged_each_time,
    a_moved_endpoint_is_followed_at_once,
    a_removed_endpoint_is_gone_at_once,
    a_removed_sender_is_gone_at_once,
    a_sender_s_new_address_holds_at_once,
    a_network_s_change_holds_at_once,
    a_removed_network_is_gone_at_once,
    a_path_s_change_holds_at_once,
    a_vtep_without_the_right_is_refused_at_once,
    a_spoofed_address_is_another_pair,
    the_same_addresses_in_another_network_are_another_pair,
    another_vtep_is_another_pair,
    vxlan_from_a_container_is_refused_every_time,
    lengths_are_checked_every_time,
    where_hosts_learn_known_pairs_are_remembered,
    where_hosts_learn_other_pairs_are_not,
);

fn out() -> Vec<u8> {
    V4::udp(&ONE, &FAR, (1000, 2000), &payload(100)).frame()
}

fn local() -> Vec<u8> {
    V4::udp(&ONE, &TWO, (1000, 2000), &payload(100)).frame()
}

fn back() -> Vec<u8> {
    V4::udp(&FAR, &ONE, (2000, 1000), &payload(100)).frame()
}

/// Fills the flow cache: `encaps` runs the program twice on the frame.
fn warm_out(lab: &mut Lab) {
    lab.at_container(Interface::A1, &out()).encaps(to_peer().wrap(&out()), &[]);
}

fn warm_in(lab: &mut Lab) {
    lab.at_underlay(&from_peer().wrap(&back())).delivers(&back(), &[]);
}

/// Whether the next frame of the pair is sent by the flow cache, although the FDB has no entry.
fn is_encapsulated(lab: &mut Lab) -> bool {
    let outcome = lab.at_container(Interface::A1, &out()).outcome();
    outcome.count(Direction::FromContainer, Code::Action(Action::Encap)) == 1
}

/// A change of a table that does not concern the pair.
fn change_something(lab: &mut Lab) {
    lab.tables.fdb.remove(&FdbKey::new(A, [2, 0, 0, 0, 0, 1])).unwrap();
}

fn outbound_is_remembered(lab: &mut Lab) {
    warm_out(lab);
    lab.untold_fdb.remove(FdbKey::new(A, FAR.mac));
    assert!(is_encapsulated(lab), "the flow cache lacks the pair");
    change_something(lab);
    assert!(!is_encapsulated(lab), "the flow cache has the pair after a change");
}

/// The flow cache also works with `--trace`, so `--trace` can show a fault of the flow cache.
#[test]
#[ignore = "needs root"]
fn pairs_are_remembered_while_tracing() {
    crate::lab::with_trace(outbound_is_remembered);
}

fn local_is_remembered(lab: &mut Lab) {
    lab.at_container(Interface::A1, &local()).delivers(&local(), &[]);
    lab.untold_fdb.remove(FdbKey::new(A, TWO.mac));
    lab.at_container(Interface::A1, &local()).delivers(&local(), &[]);
}

fn inbound_is_remembered(lab: &mut Lab) {
    warm_in(lab);
    lab.untold_fdb.remove(FdbKey::new(A, ONE.mac));
    lab.at_underlay(&from_peer().wrap(&back())).delivers(&back(), &[]);
    change_something(lab);
    lab.at_underlay(&from_peer().wrap(&back())).drops(DropReason::UnknownDestination);
}

fn other_kinds_of_frames_are_judged_each_time(lab: &mut Lab) {
    let ping = V4::icmp(&ONE, &FAR, 8, 0, [0, 1, 0, 1], &payload(56)).frame();
    let fragment = V4 { df: false, mf: true, ..V4::udp(&ONE, &FAR, (1, 2), &payload(96)) }.frame();
    for frame in [&ping, &fragment] {
        lab.at_container(Interface::A1, frame).encaps(to_peer().wrap(frame), &[]);
        lab.untold_fdb.remove(FdbKey::new(A, FAR.mac));
        let outcome = lab.at_container(Interface::A1, frame).outcome();
        assert_eq!(outcome.count(Direction::FromContainer, Code::Action(Action::Encap)), 0);
        lab.set_untold(FdbKey::new(A, FAR.mac), FdbEntry { ifindex: 0, vtep: PEER });
    }
}

fn a_moved_endpoint_is_followed_at_once(lab: &mut Lab) {
    warm_out(lab);
    lab.tables.fdb.insert(&FdbKey::new(A, FAR.mac), &remote(PEER2)).unwrap();
    lab.at_container(Interface::A1, &out()).encaps(to_peer2().wrap(&out()), &[]);
}

fn a_removed_endpoint_is_gone_at_once(lab: &mut Lab) {
    warm_out(lab);
    lab.tables.fdb.remove(&FdbKey::new(A, FAR.mac)).unwrap();
    assert!(!is_encapsulated(lab));
    lab.tables.fdb.insert(&FdbKey::new(A, FAR.mac), &remote(PEER)).unwrap();
    warm_in(lab);
    lab.tables.fdb.remove(&FdbKey::new(A, ONE.mac)).unwrap();
    lab.at_underlay(&from_peer().wrap(&back())).drops(DropReason::UnknownDestination);
}

fn a_removed_sender_is_gone_at_once(lab: &mut Lab) {
    warm_out(lab);
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    lab.at_container(Interface::A1, &out()).drops(DropReason::UnknownEndpoint);
}

fn a_sender_s_new_address_holds_at_once(lab: &mut Lab) {
    warm_out(lab);
    lab.tables.endpoints.insert(&Interface::A1.ifindex(), &endpoint(A, &TWO)).unwrap();
    lab.at_container(Interface::A1, &out()).drops(DropReason::SpoofedMac);
}

fn a_network_s_change_holds_at_once(lab: &mut Lab) {
    let frame = V4 { tos: 0xb8, ..V4::udp(&ONE, &FAR, (1000, 2000), &payload(100)) }.frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::COPY_DSCP);
    let marked = Tunnel { tos: 0xb8, ..to_peer() };
    lab.at_container(Interface::A1, &frame).encaps(marked.wrap(&frame), &[]);
}

fn a_removed_network_is_gone_at_once(lab: &mut Lab) {
    warm_out(lab);
    warm_in(lab);
    lab.tables.networks.remove(&A).unwrap();
    lab.at_container(Interface::A1, &out()).drops(DropReason::UnknownNetwork);
    lab.at_underlay(&from_peer().wrap(&back())).drops(DropReason::UnknownVni);
}

fn a_path_s_change_holds_at_once(lab: &mut Lab) {
    warm_out(lab);
    lab.tables.underlay.insert(&PEER, &UnderlayPath { port: 8472, ..TO_PEER }).unwrap();
    let elsewhere = Tunnel { dst_port: 8472, ..to_peer() };
    lab.at_container(Interface::A1, &out()).encaps(elsewhere.wrap(&out()), &[]);
    lab.tables.underlay.remove(&PEER).unwrap();
    lab.at_container(Interface::A1, &out()).drops(DropReason::NoUnderlayPath);
}

fn a_vtep_without_the_right_is_refused_at_once(lab: &mut Lab) {
    warm_in(lab);
    lab.tables.vteps.remove(&VtepKey { vni: A, ip: PEER }).unwrap();
    lab.at_underlay(&from_peer().wrap(&back())).drops(DropReason::UnknownVtep);
}

fn a_spoofed_address_is_another_pair(lab: &mut Lab) {
    warm_out(lab);
    let mac = Host { mac: TWO.mac, ..ONE };
    let frame = V4::udp(&mac, &FAR, (1000, 2000), &payload(100)).frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::SpoofedMac);
    let ip = Host { v4: TWO.v4, ..ONE };
    let frame = V4::udp(&ip, &FAR, (1000, 2000), &payload(100)).frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::SpoofedIp);
    // Every bit of the addresses counts.
    for at in (6..12).chain(26..30) {
        for bit in 0..8 {
            let mut frame = out();
            frame[at] ^= 1 << bit;
            let outcome = lab.at_container(Interface::A1, &frame).outcome();
            assert_eq!(outcome.verdict, SHOT, "byte {at}, bit {bit}");
        }
    }
}

fn the_same_addresses_in_another_network_are_another_pair(lab: &mut Lab) {
    warm_out(lab);
    lab.at_container(Interface::A1, &local()).delivers(&local(), &[]);
    let outcome = lab.at_container(Interface::B1, &out()).outcome();
    assert_eq!(outcome.count(Direction::FromContainer, Code::Action(Action::Encap)), 0);
    warm_in(lab);
    let of_b = Tunnel { vni: B, ..from_peer() }.wrap(&back());
    lab.at_underlay(&of_b).drops(DropReason::UnknownVtep);
}

fn another_vtep_is_another_pair(lab: &mut Lab) {
    warm_in(lab);
    let stranger = Tunnel { src: STRANGER, ..from_peer() }.wrap(&back());
    lab.at_underlay(&stranger).drops(DropReason::UnknownVtep);
}

fn vxlan_from_a_container_is_refused_every_time(lab: &mut Lab) {
    let vtep = Host { v4: PEER, ..FAR };
    let frame = V4::udp(&ONE, &vtep, (1000, 2000), &payload(100)).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    let forged = V4::udp(&ONE, &vtep, (1000, VXLAN_PORT), &payload(100)).frame();
    lab.at_container(Interface::A1, &forged).drops(DropReason::VxlanFromContainer);
}

fn lengths_are_checked_every_time(lab: &mut Lab) {
    warm_out(lab);
    // A packet whose length field exceeds the frame.
    let mut frame = out();
    frame[16..18].copy_from_slice(&1400_u16.to_be_bytes());
    lab.at_container(Interface::A1, &frame).drops(DropReason::Malformed);
    let big = V4::udp(&ONE, &FAR, (1000, 2000), &payload(usize::from(MTU))).frame();
    let outcome = lab.at_container(Interface::A1, &big).outcome();
    assert_eq!(outcome.count(Direction::FromContainer, Code::Drop(DropReason::PacketTooBig)), 1);
    warm_in(lab);
    let mut wrapped = from_peer().wrap(&back());
    wrapped[16..18].copy_from_slice(&1400_u16.to_be_bytes());
    lab.at_underlay(&wrapped).drops(DropReason::OuterMalformed);
}

fn where_hosts_learn_known_pairs_are_remembered(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    warm_out(lab);
    lab.untold_fdb.remove(FdbKey::new(A, FAR.mac));
    assert!(is_encapsulated(lab), "the flow cache lacks a pair with the own MAC");
    lab.set_untold(FdbKey::new(A, FAR.mac), FdbEntry { ifindex: 0, vtep: PEER });
    warm_in(lab);
    lab.untold_fdb.remove(FdbKey::new(A, ONE.mac));
    lab.at_underlay(&from_peer().wrap(&back())).delivers(&back(), &[]);
}

fn where_hosts_learn_other_pairs_are_not(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    // Each frame must refresh the learned entry of its source.
    let frame = V4 { eth_src: NOBODY.mac, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") }.frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[note(Note::Learned)]);
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    lab.untold_fdb.remove(FdbKey::new(A, FAR.mac));
    let outcome = lab.at_container(Interface::A1, &frame).outcome();
    assert_eq!(outcome.count(Direction::FromContainer, Code::Action(Action::Encap)), 0);
    lab.set_untold(FdbKey::new(A, FAR.mac), FdbEntry { ifindex: 0, vtep: PEER });
    // The source is known, and another VTEP claims it: refused and counted each time.
    let claimed = Tunnel { src: PEER2, ..from_peer() }.wrap(&back());
    for _ in 0..2 {
        lab.at_underlay(&claimed).drops(DropReason::ForeignSourceMac);
    }
    // The entry of a learned destination ages.
    let to_learned = V4 { eth_dst: NOBODY.mac, ..V4::udp(&FAR, &ONE, (2, 1), b"hello") }.frame();
    for _ in 0..2 {
        lab.at_underlay(&from_peer().wrap(&to_learned)).delivers(&to_learned, &[]);
    }
    let learned = FdbKey::new(A, NOBODY.mac);
    lab.tables.learned.remove(&learned).unwrap();
    let outcome = lab.at_underlay(&from_peer().wrap(&to_learned)).outcome();
    assert_eq!(outcome.count(Direction::FromUnderlay, Code::Action(Action::Deliver)), 0);
}
