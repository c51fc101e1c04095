//! Networks with the same addresses are isolated.

use culvert::datapath::entry::{LearnedEntry, VtepInfo, VtepKey};
use culvert::datapath::{Table as _, now_ns};
use culvert_common::abi::{Action, DropReason, FdbKey, NeighKey, Note};
use culvert_tests::packet::{Arp, Tunnel, V4};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{copy, note},
    world::{
        A, B, FAR, NOBODY, ONE, PEER, TWO, change_network, endpoint_behind, from_peer, learning,
        local, neighbour, remote,
    },
};

cases!(
    same_addresses_in_two_networks,
    broadcast_stays_in_its_network,
    broadcast_from_the_tunnel_stays_in_its_network,
    local_endpoint_of_another_network_is_unknown,
    remote_endpoint_of_another_network_is_unknown,
    destination_of_another_network_is_unknown,
    source_mac_of_another_network_is_no_conflict,
    neighbours_of_another_network_are_unknown,
    neighbours_differ_by_network,
    learned_entry_of_another_network_is_unknown,
    vni_decides_where_a_frame_goes,
);

fn same_addresses_in_two_networks(lab: &mut Lab) {
    // The module `live` checks the target of the redirect.
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    lab.at_container(Interface::B1, &frame).delivers(&frame, &[]);
}

fn broadcast_stays_in_its_network(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.remote_vteps = 0);
    let frame = Arp::request(&ONE, NOBODY.v4).frame();
    for (from, to) in [(Interface::A1, Interface::A2), (Interface::B1, Interface::B2)] {
        let copies = [copy(to, &frame)];
        lab.at_container(from, &frame).floods(&copies, &[note(Note::FloodLocalCopy)]);
    }
}

fn broadcast_from_the_tunnel_stays_in_its_network(lab: &mut Lab) {
    lab.tables.vteps.insert(&VtepKey { vni: B, ip: PEER }, &VtepInfo { foreign: 0 }).unwrap();
    endpoint_behind(&lab.tables, B, &FAR, PEER);
    let inner = Arp::request(&FAR, NOBODY.v4).frame();
    for (vni, ports) in [(A, [Interface::A1, Interface::A2]), (B, [Interface::B1, Interface::B2])] {
        let outer = Tunnel { vni, ..from_peer() }.wrap(&inner);
        let copies = ports.map(|port| copy(port, &inner));
        let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len())];
        lab.at_underlay(&outer).floods(&copies, &notes);
    }
}

fn local_endpoint_of_another_network_is_unknown(lab: &mut Lab) {
    lab.tables.fdb.insert(&FdbKey::new(A, NOBODY.mac), &local(Interface::A2)).unwrap();
    let frame = V4::udp(&ONE, &NOBODY, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
    let copies = [copy(Interface::B2, &frame)];
    lab.at_container(Interface::B1, &frame).floods(&copies, &[note(Note::FloodLocalCopy)]);
}

fn remote_endpoint_of_another_network_is_unknown(lab: &mut Lab) {
    // A has an entry for FAR; B has none, and no remote VTEP to flood to.
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    let copies = [copy(Interface::B2, &frame)];
    lab.at_container(Interface::B1, &frame).floods(&copies, &[note(Note::FloodLocalCopy)]);
    change_network(&lab.tables, B, |network| network.local_endpoints = 1);
    lab.at_container(Interface::B1, &frame).drops(DropReason::NoReceiver);
}

fn destination_of_another_network_is_unknown(lab: &mut Lab) {
    lab.tables.fdb.insert(&FdbKey::new(B, NOBODY.mac), &local(Interface::B2)).unwrap();
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::UnknownDestination);
}

fn source_mac_of_another_network_is_no_conflict(lab: &mut Lab) {
    lab.tables.fdb.insert(&FdbKey::new(B, NOBODY.mac), &local(Interface::B2)).unwrap();
    endpoint_behind(&lab.tables, A, &NOBODY, PEER);
    let inner = V4::udp(&NOBODY, &ONE, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).delivers(&inner, &[]);
    lab.tables.fdb.insert(&FdbKey::new(A, NOBODY.mac), &local(Interface::A2)).unwrap();
    lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::LocalSourceMac);
}

fn neighbours_of_another_network_are_unknown(lab: &mut Lab) {
    let request = Arp::request(&ONE, FAR.v4).frame();
    let copies = [copy(Interface::B2, &request)];
    lab.at_container(Interface::B1, &request).floods(&copies, &[note(Note::FloodLocalCopy)]);
}

fn neighbours_differ_by_network(lab: &mut Lab) {
    neighbour(&lab.tables, B, &FAR, NOBODY.mac);
    let request = Arp::request(&ONE, FAR.v4).frame();
    for (port, mac) in [(Interface::A1, FAR.mac), (Interface::B1, NOBODY.mac)] {
        let reply = Arp {
            eth_dst: ONE.mac,
            eth_src: mac,
            operation: 2,
            sender_mac: mac,
            sender_ip: FAR.v4,
            target_mac: ONE.mac,
            target_ip: ONE.v4,
        };
        lab.at_container(port, &request).answers(Action::ArpReply, reply.frame());
    }
    lab.tables.neighbours.remove(&NeighKey::v4(B, FAR.v4)).unwrap();
    let copies = [copy(Interface::B2, &request)];
    lab.at_container(Interface::B1, &request).floods(&copies, &[note(Note::FloodLocalCopy)]);
}

fn learned_entry_of_another_network_is_unknown(lab: &mut Lab) {
    learning(&lab.tables);
    let entry = LearnedEntry { last_seen_ns: now_ns(), vtep: PEER, ifindex: 0 };
    lab.set_learned(FdbKey::new(A, NOBODY.mac), entry);
    let frame = V4::udp(&ONE, &NOBODY, (1, 2), b"hello").frame();
    let copies = [copy(Interface::B2, &frame)];
    lab.at_container(Interface::B1, &frame).floods(&copies, &[note(Note::FloodLocalCopy)]);
}

fn vni_decides_where_a_frame_goes(lab: &mut Lab) {
    // In network A the destination is behind a VTEP, in network B it is an endpoint of this host.
    lab.tables.vteps.insert(&VtepKey { vni: B, ip: PEER }, &VtepInfo { foreign: 0 }).unwrap();
    endpoint_behind(&lab.tables, B, &FAR, PEER);
    lab.tables.fdb.insert(&FdbKey::new(A, NOBODY.mac), &remote(PEER)).unwrap();
    lab.tables.fdb.insert(&FdbKey::new(B, NOBODY.mac), &local(Interface::B1)).unwrap();
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::SplitHorizon);
    let outer = Tunnel { vni: B, ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}
