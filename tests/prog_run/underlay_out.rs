//! `to_underlay`: VXLAN that leaves by the uplink, and that another host would take for this host's.
//!
//! The socket of a frame in a test run is root's. The module `attacks` of the tests in namespaces has
//! the sockets of others.

use culvert::datapath::Table as _;
use culvert_common::abi::{DropReason, ENCAPSULATED_MARK, UplinkInfo};
use culvert_tests::packet::{Arp, Host, Tunnel, V4, V6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{Program, SHORTEST_V4},
    world::{FAR, ONE, PEER, PEER_MAC, SERVER, STRANGER, UPLINK, US, to_peer, to_peer2},
};

cases!(
    what_the_programs_encapsulate,
    of_root,
    forwarded,
    forwarded_where_another_system_has_the_port,
    beside_programs_of_an_earlier_version,
    forwarded_from_another_source,
    to_no_vtep,
    to_another_port,
    to_the_port_of_each_vtep,
    what_no_host_takes_for_vxlan,
    other_protocols,
    truncated_at_every_byte,
);

fn hello() -> Vec<u8> {
    V4::udp(&ONE, &FAR, (1, 2), b"hello").frame()
}

/// The host forwards the frame, whose source it has masqueraded.
#[track_caller]
fn is_refused(lab: &mut Lab, frame: &[u8]) {
    lab.at(Program::Out, frame).forwarded().drops(DropReason::VxlanNotOurs);
}

#[track_caller]
fn passes(lab: &mut Lab, frame: &[u8]) {
    lab.at(Program::Out, frame).passes(&[]);
    lab.at(Program::Out, frame).forwarded().passes(&[]);
}

fn what_the_programs_encapsulate(lab: &mut Lab) {
    let frame = to_peer().wrap(&hello());
    lab.at(Program::Out, &frame).forwarded().marked(ENCAPSULATED_MARK).passes(&[]);
    lab.at(Program::Out, &frame)
        .forwarded()
        .marked(ENCAPSULATED_MARK ^ 1)
        .drops(DropReason::VxlanNotOurs);
}

fn of_root(lab: &mut Lab) {
    lab.at(Program::Out, &to_peer().wrap(&hello())).passes(&[]);
}

fn forwarded(lab: &mut Lab) {
    is_refused(lab, &to_peer().wrap(&hello()));
    is_refused(lab, &Tunnel { checksum: true, src_port: 40_000, ..to_peer() }.wrap(&hello()));
    // Whatever is in it.
    is_refused(lab, &V4::udp(&US, &peer(), (5000, 4789), b"x").frame());
}

fn forwarded_where_another_system_has_the_port(lab: &mut Lab) {
    let flags = UPLINK.flags | UplinkInfo::SHARED_PORT;
    let shared = UplinkInfo { flags, ..UPLINK };
    lab.tables.uplinks.insert(&Interface::Uplink.ifindex(), &shared).unwrap();
    is_refused(lab, &to_peer().wrap(&hello()));
}

/// They do not mark what they encapsulate.
fn beside_programs_of_an_earlier_version(lab: &mut Lab) {
    let unguarded = UplinkInfo { flags: 0, ..UPLINK };
    lab.tables.uplinks.insert(&Interface::Uplink.ifindex(), &unguarded).unwrap();
    passes(lab, &to_peer().wrap(&hello()));
}

fn peer() -> Host {
    Host { mac: PEER_MAC, v4: PEER, v6: [0; 16] }
}

fn forwarded_from_another_source(lab: &mut Lab) {
    // Another host takes no VXLAN from such an address.
    passes(lab, &Tunnel { src: STRANGER, ..to_peer() }.wrap(&hello()));
}

fn to_no_vtep(lab: &mut Lab) {
    passes(lab, &Tunnel { dst: STRANGER, ..to_peer() }.wrap(&hello()));
    passes(lab, &V4::udp(&US, &SERVER, (5000, 4789), b"x").frame());
}

fn to_another_port(lab: &mut Lab) {
    for dst_port in [53, 4788, 8472, 0] {
        passes(lab, &Tunnel { dst_port, ..to_peer() }.wrap(&hello()));
    }
    passes(lab, &Tunnel { src_port: 4789, dst_port: 53, ..to_peer() }.wrap(&hello()));
}

fn to_the_port_of_each_vtep(lab: &mut Lab) {
    is_refused(lab, &to_peer2().wrap(&hello()));
    passes(lab, &Tunnel { dst_port: 4789, ..to_peer2() }.wrap(&hello()));
}

fn what_no_host_takes_for_vxlan(lab: &mut Lab) {
    passes(lab, &Tunnel { options: vec![1, 1, 1, 0], ..to_peer() }.wrap(&hello()));
    passes(lab, &Tunnel { df: false, offset: 8, ..to_peer() }.wrap(&hello()));
}

fn other_protocols(lab: &mut Lab) {
    passes(lab, &V4::tcp(&US, &peer(), (5000, 4789), &payload(60)).frame());
    passes(lab, &V4::icmp(&US, &peer(), 8, 0, [0, 1, 0, 1], &payload(56)).frame());
    passes(lab, &V6::udp(&US, &peer(), (5000, 4789), &payload(60)).frame());
    passes(lab, &Arp::request(&US, PEER).frame());
}

fn truncated_at_every_byte(lab: &mut Lab) {
    let frame = to_peer().wrap(&hello());
    for len in SHORTEST_V4..42 {
        passes(lab, &frame[..len]);
    }
    is_refused(lab, &frame[..42]);
}
