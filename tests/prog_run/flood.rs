//! Broadcast, unknown and multicast frames of a container: local replicas,
//! head-end replication, limits.

use culvert::datapath::Table as _;
use culvert::datapath::entry::{UnderlayPath, VtepInfo, VtepKey};
use culvert_common::abi::{Action, DropReason, FdbKey, FloodKey, NetworkInfo, Note};
use culvert_tests::packet::{Host, Tunnel, V4, V6, ethernet, payload};

use crate::{
    compare::entropy_port,
    interfaces::{Interface, NO_SUCH_INTERFACE},
    lab::Lab,
    run::{Expected, Left, REDIRECT, SHOT, action, copy, drop, note, tunnelled},
    world::{
        A, B, FAR, NOBODY, ONE, PEER, PEER2, ROUTER, STRANGER, TO_PEER, TO_PEER2, TWO,
        change_endpoint, change_network, to_peer, to_peer2,
    },
};

cases!(
    ipv4_broadcast,
    ipv4_multicast,
    ipv6_multicast,
    other_ethertype_broadcast,
    unknown_unicast,
    fragments_are_flooded_alike,
    not_back_to_the_sender,
    dscp_and_ecn_on_the_copies,
    copies_of_one_frame_share_an_entropy_port,
    only_local,
    only_remote,
    nobody_else,
    gap_in_the_local_list,
    gap_in_the_remote_list,
    port_that_has_gone,
    vtep_without_a_path,
    vtep_without_a_neighbour,
    no_copy_gets_away,
    too_big_for_one_of_the_vteps,
    ten_vteps,
    limit_of_the_endpoint,
    limit_of_another_endpoint,
    unicast_is_not_limited,
    answered_requests_are_not_limited,
    kernel_refuses_the_outer_header,
    transmitted,
);

const ALL: Host = Host { mac: [0xff; 6], v4: [10, 0, 0, 255], v6: [0; 16] };

fn broadcast() -> Vec<u8> {
    V4::udp(&ONE, &ALL, (67, 68), &payload(100)).frame()
}

#[track_caller]
fn reaches_everyone(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).reaches_everyone(&[]);
}

fn ipv4_broadcast(lab: &mut Lab) {
    reaches_everyone(lab, &broadcast());
}

fn ipv4_multicast(lab: &mut Lab) {
    let group = Host { mac: [1, 0, 0x5e, 0, 0, 0xfb], v4: [224, 0, 0, 251], ..ALL };
    reaches_everyone(lab, &V4::udp(&ONE, &group, (5353, 5353), &payload(77)).frame());
}

fn ipv6_multicast(lab: &mut Lab) {
    let v6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb];
    let group = Host { mac: [0x33, 0x33, 0, 0, 0, 0xfb], v6, ..ALL };
    reaches_everyone(lab, &V6::udp(&ONE, &group, (5353, 5353), &payload(77)).frame());
}

fn other_ethertype_broadcast(lab: &mut Lab) {
    reaches_everyone(lab, &ethernet([0xff; 6], ONE.mac, 0x88b5, &payload(64)));
    reaches_everyone(lab, &ethernet([1, 0x80, 0xc2, 0, 0, 0], ONE.mac, 38, &payload(38)));
    reaches_everyone(lab, &ethernet([0xff; 6], ONE.mac, 0x88b5, &[]));
}

fn unknown_unicast(lab: &mut Lab) {
    reaches_everyone(lab, &V4::udp(&ONE, &NOBODY, (1, 2), b"anyone?").frame());
    reaches_everyone(lab, &V6::udp(&ONE, &NOBODY, (1, 2), b"anyone?").frame());
    lab.tables.fdb.remove(&FdbKey::new(A, FAR.mac)).unwrap();
    reaches_everyone(lab, &V4::udp(&ONE, &FAR, (1, 2), b"hello").frame());
}

fn fragments_are_flooded_alike(lab: &mut Lab) {
    let first = V4 { df: false, mf: true, ..V4::udp(&ONE, &ALL, (1, 2), &payload(64)) };
    reaches_everyone(lab, &first.frame());
    reaches_everyone(lab, &V4 { mf: false, offset: 9, l4: payload(9), ..first }.frame());
}

fn not_back_to_the_sender(lab: &mut Lab) {
    let frame = V4::udp(&TWO, &ALL, (1, 2), b"from the other one").frame();
    lab.at_container(Interface::A2, &frame).reaches_everyone(&[]);
}

fn dscp_and_ecn_on_the_copies(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::COPY_DSCP);
    let tos = 46 << 2 | 0b10;
    let frame = V4 { tos, ..V4::udp(&ONE, &ALL, (1, 2), b"hello") }.frame();
    let copies = [
        copy(Interface::A2, &frame),
        tunnelled(Tunnel { tos, ..to_peer() }.wrap(&frame)),
        tunnelled(Tunnel { tos, ..to_peer2() }.wrap(&frame)),
    ];
    let notes = [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy).times(2)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

fn copies_of_one_frame_share_an_entropy_port(lab: &mut Lab) {
    let outcome = lab.at_container(Interface::A1, &broadcast()).outcome();
    let ports: Vec<u16> = outcome
        .copies
        .iter()
        .filter(|(interface, _)| *interface == Interface::Uplink)
        .map(|(_, frame)| entropy_port(frame))
        .collect();
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0], ports[1]);
}

fn only_local(lab: &mut Lab) {
    let frame = broadcast();
    let copies = [copy(Interface::B2, &frame)];
    lab.at_container(Interface::B1, &frame).floods(&copies, &[note(Note::FloodLocalCopy)]);
}

fn only_remote(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.local_endpoints = 1);
    let frame = broadcast();
    let copies = [tunnelled(to_peer().wrap(&frame)), tunnelled(to_peer2().wrap(&frame))];
    let notes = [note(Note::FloodRemoteCopy).times(2)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

fn nobody_else(lab: &mut Lab) {
    change_network(&lab.tables, B, |network| network.local_endpoints = 1);
    lab.at_container(Interface::B1, &broadcast()).drops(DropReason::NoReceiver);
    let unknown = V4::udp(&ONE, &NOBODY, (1, 2), b"anyone?").frame();
    lab.at_container(Interface::B1, &unknown).drops(DropReason::NoReceiver);
}

fn gap_in_the_local_list(lab: &mut Lab) {
    // The state during an update by the agent: slot 1 is removed, slot 2 is not counted yet.
    lab.tables.flood_local.remove(&FloodKey { vni: A, index: 1 }).unwrap();
    lab.tables
        .flood_local
        .insert(&FloodKey { vni: A, index: 2 }, &Interface::A2.ifindex())
        .unwrap();
    let frame = broadcast();
    let remote = [tunnelled(to_peer().wrap(&frame)), tunnelled(to_peer2().wrap(&frame))];
    let notes = [note(Note::FloodRemoteCopy).times(2)];
    lab.at_container(Interface::A1, &frame).floods(&remote, &notes);
    change_network(&lab.tables, A, |network| network.local_endpoints = 3);
    reaches_everyone(lab, &frame);
}

fn gap_in_the_remote_list(lab: &mut Lab) {
    lab.tables.flood_remote.remove(&FloodKey { vni: A, index: 0 }).unwrap();
    let frame = broadcast();
    let copies = [copy(Interface::A2, &frame), tunnelled(to_peer2().wrap(&frame))];
    let notes = [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

fn port_that_has_gone(lab: &mut Lab) {
    lab.tables.flood_local.insert(&FloodKey { vni: A, index: 1 }, &NO_SUCH_INTERFACE).unwrap();
    let frame = broadcast();
    let copies = [tunnelled(to_peer().wrap(&frame)), tunnelled(to_peer2().wrap(&frame))];
    let notes = [note(Note::FloodCopyFailed), note(Note::FloodRemoteCopy).times(2)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

/// The copy to the first VTEP fails, the other copies do not.
#[track_caller]
fn reaches_all_but_the_first_vtep(lab: &mut Lab) {
    let frame = broadcast();
    let copies = [copy(Interface::A2, &frame), tunnelled(to_peer2().wrap(&frame))];
    let notes =
        [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy), note(Note::FloodCopyFailed)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

fn vtep_without_a_path(lab: &mut Lab) {
    lab.tables.underlay.remove(&PEER).unwrap();
    reaches_all_but_the_first_vtep(lab);
}

fn vtep_without_a_neighbour(lab: &mut Lab) {
    let unresolved = UnderlayPath { next_hop_mac: [0; 6], ..TO_PEER };
    lab.tables.underlay.insert(&PEER, &unresolved).unwrap();
    reaches_all_but_the_first_vtep(lab);
}

fn no_copy_gets_away(lab: &mut Lab) {
    lab.tables.underlay.remove(&PEER).unwrap();
    let gone = UnderlayPath { ifindex: NO_SUCH_INTERFACE, ..TO_PEER2 };
    lab.tables.underlay.insert(&PEER2, &gone).unwrap();
    change_network(&lab.tables, A, |network| network.local_endpoints = 0);
    lab.at_container(Interface::A1, &broadcast()).gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[drop(DropReason::NoReceiver), note(Note::FloodCopyFailed).times(2)],
        copies: &[],
    });
}

fn too_big_for_one_of_the_vteps(lab: &mut Lab) {
    lab.tables.underlay.insert(&PEER, &UnderlayPath { inner_mtu: 127, ..TO_PEER }).unwrap();
    assert_eq!(broadcast().len(), 14 + 128);
    reaches_all_but_the_first_vtep(lab);
    lab.tables.underlay.insert(&PEER, &UnderlayPath { inner_mtu: 128, ..TO_PEER }).unwrap();
    reaches_everyone(lab, &broadcast());
}

fn ten_vteps(lab: &mut Lab) {
    let frame = broadcast();
    let mut copies = vec![copy(Interface::A2, &frame)];
    for n in 0..10 {
        let vtep = [203, 0, 113, n];
        lab.tables.vteps.insert(&VtepKey { vni: A, ip: vtep }, &VtepInfo { foreign: 0 }).unwrap();
        let path = UnderlayPath { next_hop: ROUTER, ..TO_PEER };
        lab.tables.underlay.insert(&vtep, &path).unwrap();
        lab.tables.flood_remote.insert(&FloodKey { vni: A, index: n.into() }, &vtep).unwrap();
        copies.push(tunnelled(Tunnel { dst: vtep, ..to_peer() }.wrap(&frame)));
    }
    // No entry of network B's list is used.
    lab.tables.flood_remote.insert(&FloodKey { vni: B, index: 0 }, &STRANGER).unwrap();
    change_network(&lab.tables, A, |network| network.remote_vteps = 10);
    let notes = [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy).times(10)];
    lab.at_container(Interface::A1, &frame).floods(&copies, &notes);
}

/// Limits the endpoint at `port` to a burst of three frames, and one more frame every second.
fn limited(lab: &Lab, interface: Interface) {
    change_endpoint(&lab.tables, interface, |entry| {
        entry.bum_rate = 1;
        entry.bum_burst = 3;
    });
}

fn limit_of_the_endpoint(lab: &mut Lab) {
    limited(lab, Interface::B1);
    let frame = broadcast();
    // All runs are within one system call, in less than the second after which a fourth frame may
    // pass.
    let copies = vec![copy(Interface::B2, &frame); 3];
    lab.at_container(Interface::B1, &frame).repeat(20).gives(&Expected {
        verdict: SHOT,
        left: Left::Unchanged,
        counts: &[
            action(Action::Flood).times(3),
            note(Note::FloodLocalCopy).times(3),
            drop(DropReason::BumRateLimited).times(17),
        ],
        copies: &copies,
    });
}

fn limit_of_another_endpoint(lab: &mut Lab) {
    limited(lab, Interface::B1);
    let frame = broadcast();
    lab.at_container(Interface::B1, &frame).repeat(20).outcome();
    let from_two = V4::udp(&TWO, &ALL, (1, 2), b"hello").frame();
    let copies = [copy(Interface::B1, &from_two)];
    lab.at_container(Interface::B2, &from_two).floods(&copies, &[note(Note::FloodLocalCopy)]);
    // The endpoint with the same address in another network is not limited either.
    reaches_everyone(lab, &frame);
}

fn unicast_is_not_limited(lab: &mut Lab) {
    limited(lab, Interface::B1);
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"hello").frame();
    lab.at_container(Interface::B1, &frame).repeat(20).gives(&Expected {
        verdict: REDIRECT,
        left: Left::Unchanged,
        counts: &[action(Action::Deliver).times(20)],
        copies: &[],
    });
}

fn answered_requests_are_not_limited(lab: &mut Lab) {
    limited(lab, Interface::B1);
    let frame = culvert_tests::packet::Arp::request(&ONE, TWO.v4).frame();
    for _ in 0..5 {
        let outcome = lab.at_container(Interface::B1, &frame).outcome();
        assert_eq!(outcome.verdict, REDIRECT);
    }
    assert_eq!(lab.rates.keys().len(), 0);
}

fn kernel_refuses_the_outer_header(lab: &mut Lab) {
    // The kernel does not know the type of this GSO frame, see `encap::gso_refused_by_the_kernel`.
    change_network(&lab.tables, A, |network| network.local_endpoints = 1);
    let frame = V4 { eth_dst: ALL.mac, ..V4::udp(&ONE, &FAR, (1, 2), &payload(1000)) }.frame();
    lab.at_container(Interface::A1, &frame).gso(500).drops(DropReason::EncapFailed);
}

/// On a netkit device, the container would get an error if the program dropped the flooded frame.
fn transmitted(lab: &mut Lab) {
    let frame = broadcast();
    let copies = [
        copy(Interface::A2, &frame),
        tunnelled(to_peer().wrap(&frame)),
        tunnelled(to_peer2().wrap(&frame)),
    ];
    let counts =
        [action(Action::Flood), note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy).times(2)];
    let expected =
        Expected { verdict: REDIRECT, left: Left::Spent, counts: &counts, copies: &copies };
    lab.at_container(Interface::A1, &frame).transmitted().gives(&expected);
    let spoofed = V4::udp(&TWO, &FAR, (1, 2), b"spoofed").frame();
    lab.at_container(Interface::A1, &spoofed).transmitted().drops(DropReason::SpoofedMac);
}
