//! Encapsulation (RFC 7348 §5): frames of a container to an endpoint on another host.

use std::collections::BTreeSet;

use culvert::datapath::Table as _;
use culvert::datapath::entry::UnderlayPath;
use culvert_common::abi::{DropReason, FdbKey, NetworkInfo};
use culvert_tests::packet::{Arp, Tunnel, V4, V6, ethernet, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    world::{
        A, FAR, FARTHER, NETWORK_A, ONE, OUR_VTEP, PEER, TO_PEER, TWO, change_network, endpoint,
        remote, to_peer, to_peer2,
    },
};

cases!(
    ipv4_udp,
    ipv4_tcp,
    ipv4_icmp,
    ipv4_unknown_protocol,
    ipv4_with_options,
    ipv4_padded,
    ipv6_udp,
    ipv6_tcp,
    ipv6_from_link_local,
    ipv6_hop_by_hop,
    ipv6_no_next_header,
    first_fragment,
    later_fragment,
    ipv6_fragments,
    arp_reply_unicast,
    other_ethertype,
    shortest_frame,
    length_field_instead_of_ethertype,
    largest_packet,
    via_a_router_to_another_port,
    outer_mac_left_to_the_kernel,
    vni_bytes,
    largest_vni,
    dscp_zero_by_default,
    dscp_copied_where_the_network_says,
    dscp_copied_from_ipv6,
    ecn_not_ect,
    ecn_ect0,
    ecn_ect1,
    ecn_ce,
    ecn_of_ipv6,
    entropy_same_flow_same_port,
    entropy_flows_spread,
    entropy_ipv6_flows_spread,
    entropy_fragments_of_a_datagram_stay_together,
    entropy_other_ethertypes_by_mac,
    no_underlay_path,
    no_underlay_neighbour_for_arp,
    unknown_endpoint,
    unknown_network,
    gso_refused_by_the_kernel,
);

#[track_caller]
fn crosses_as_ip(lab: &mut Lab, frame: &[u8]) -> u16 {
    lab.at_container(Interface::A1, frame).encaps(to_peer().wrap(frame), &[])
}

fn ipv4_udp(lab: &mut Lab) {
    crosses_as_ip(lab, &V4::udp(&ONE, &FAR, (1000, 2000), &payload(100)).frame());
}

fn ipv4_tcp(lab: &mut Lab) {
    crosses_as_ip(lab, &V4::tcp(&ONE, &FAR, (1000, 80), &payload(700)).frame());
}

fn ipv4_icmp(lab: &mut Lab) {
    crosses_as_ip(lab, &V4::icmp(&ONE, &FAR, 8, 0, [0, 1, 0, 1], &payload(56)).frame());
}

fn ipv4_unknown_protocol(lab: &mut Lab) {
    crosses_as_ip(lab, &V4 { l4: payload(33), ..V4::new(&ONE, &FAR) }.frame());
}

fn ipv4_with_options(lab: &mut Lab) {
    // A router alert (RFC 2113).
    let options = vec![0x94, 4, 0, 0];
    let packet = V4::udp(&ONE, &FAR, (1, 2), &payload(20));
    crosses_as_ip(lab, &V4 { options, ..packet }.frame());
}

fn ipv4_padded(lab: &mut Lab) {
    // Ethernet's smallest frame is longer than the packet in it.
    let mut frame = V4::udp(&ONE, &FAR, (1, 2), b"x").frame();
    frame.resize(60, 0);
    crosses_as_ip(lab, &frame);
}

fn ipv6_udp(lab: &mut Lab) {
    crosses_as_ip(lab, &V6::udp(&ONE, &FAR, (1000, 2000), &payload(100)).frame());
}

fn ipv6_tcp(lab: &mut Lab) {
    crosses_as_ip(lab, &V6::tcp(&ONE, &FAR, (1000, 80), &payload(700)).frame());
}

fn ipv6_from_link_local(lab: &mut Lab) {
    let packet = V6 { src: ONE.link_local(), dst: FAR.link_local(), ..V6::new(&ONE, &FAR) };
    crosses_as_ip(lab, &packet.frame());
}

fn ipv6_hop_by_hop(lab: &mut Lab) {
    let packet = V6::udp(&ONE, &FAR, (1, 2), &payload(9)).extended(0, &[0, 1, 4, 0, 0, 0, 0]);
    crosses_as_ip(lab, &packet.frame());
}

fn ipv6_no_next_header(lab: &mut Lab) {
    crosses_as_ip(lab, &V6::new(&ONE, &FAR).frame());
}

fn first_fragment(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &FAR, (1, 2), &payload(64));
    crosses_as_ip(lab, &V4 { df: false, mf: true, ..packet }.frame());
}

fn later_fragment(lab: &mut Lab) {
    let packet = V4 { protocol: 17, l4: payload(64), ..V4::new(&ONE, &FAR) };
    crosses_as_ip(lab, &V4 { df: false, offset: 9, ..packet }.frame());
}

fn ipv6_fragments(lab: &mut Lab) {
    // RFC 8200 §4.5: reserved, offset and M, identification.
    let first = V6::udp(&ONE, &FAR, (1, 2), &payload(56)).extended(44, &[0, 0, 1, 0, 0, 0, 7]);
    crosses_as_ip(lab, &first.frame());
    let later = V6 { next_header: 17, rest: payload(30), ..V6::new(&ONE, &FAR) };
    crosses_as_ip(lab, &later.extended(44, &[0, 0, 0x40, 0, 0, 0, 7]).frame());
}

fn arp_reply_unicast(lab: &mut Lab) {
    let frame = Arp::reply(&ONE, &FAR).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn other_ethertype(lab: &mut Lab) {
    let frame = ethernet(FAR.mac, ONE.mac, 0x88b5, &payload(80));
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn shortest_frame(lab: &mut Lab) {
    let frame = ethernet(FAR.mac, ONE.mac, 0x88b5, &[]);
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn length_field_instead_of_ethertype(lab: &mut Lab) {
    // IEEE 802.3 with LLC, as spanning tree uses it.
    let mut llc = vec![0x42, 0x42, 0x03];
    llc.extend(payload(35));
    let frame = ethernet(FAR.mac, ONE.mac, 38, &llc);
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn largest_packet(lab: &mut Lab) {
    let v4 = V4::udp(&ONE, &FAR, (1, 2), &payload(1450 - 28));
    assert_eq!(v4.packet().len(), 1450);
    crosses_as_ip(lab, &v4.frame());
    let v6 = V6::udp(&ONE, &FAR, (1, 2), &payload(1450 - 48));
    assert_eq!(v6.packet().len(), 1450);
    crosses_as_ip(lab, &v6.frame());
}

fn via_a_router_to_another_port(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &FARTHER, (1, 2), &payload(10)).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer2().wrap(&frame), &[]);
    let frame = Arp::reply(&ONE, &FARTHER).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer2().wrap(&frame), &[]);
}

/// Removes the MAC of the next hop to [`PEER`].
fn unresolved(lab: &Lab) {
    let path = UnderlayPath { next_hop_mac: [0; 6], ..TO_PEER };
    lab.tables.underlay.insert(&PEER, &path).unwrap();
}

fn outer_mac_left_to_the_kernel(lab: &mut Lab) {
    // For an IP frame the agent need not have resolved the next hop. The kernel fills in the MACs,
    // and resolves the next hop if necessary.
    unresolved(lab);
    let by_the_kernel = Tunnel { eth_dst: [0; 6], ..to_peer() };
    for frame in [
        V4::udp(&ONE, &FAR, (1, 2), b"hello").frame(),
        V6::udp(&ONE, &FAR, (1, 2), b"hello").frame(),
    ] {
        lab.at_container(Interface::A1, &frame).encaps(by_the_kernel.wrap(&frame), &[]);
    }
}

#[track_caller]
fn crosses_in(lab: &mut Lab, vni: u32) {
    lab.tables.endpoints.insert(&Interface::A1.ifindex(), &endpoint(vni, &ONE)).unwrap();
    lab.tables.networks.insert(&vni, &NETWORK_A).unwrap();
    lab.tables.fdb.insert(&FdbKey::new(vni, FAR.mac), &remote(PEER)).unwrap();
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    let tunnel = Tunnel { vni, ..to_peer() };
    lab.at_container(Interface::A1, &frame).encaps(tunnel.wrap(&frame), &[]);
}

fn vni_bytes(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    let outcome = lab.at_container(Interface::A1, &frame).outcome();
    // RFC 7348 §5: flags, 24 reserved bits, VNI, 8 reserved bits.
    assert_eq!(outcome.frame[42..50], [0x08, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0]);
    // Before the VXLAN header: UDP length, and checksum 0.
    assert_eq!(outcome.frame[38..42], [0, 16 + 14 + 20 + 8 + 5, 0, 0]);
    // Version and IHL, TOS; DF without offset; TTL, UDP; addresses.
    assert_eq!(outcome.frame[14..16], [0x45, 0]);
    assert_eq!(outcome.frame[20..24], [0x40, 0, 64, 17]);
    assert_eq!(outcome.frame[26..30], OUR_VTEP);
    assert_eq!(outcome.frame[30..34], PEER);
    for vni in [1, 256] {
        crosses_in(lab, vni);
    }
}

fn largest_vni(lab: &mut Lab) {
    crosses_in(lab, 0x00ff_ffff);
}

#[track_caller]
fn outer_tos(lab: &mut Lab, frame: &[u8], tos: u8) {
    let tunnel = Tunnel { tos, ..to_peer() };
    lab.at_container(Interface::A1, frame).encaps(tunnel.wrap(frame), &[]);
}

fn with_tos(tos: u8) -> Vec<u8> {
    V4 { tos, ..V4::udp(&ONE, &FAR, (1, 2), &payload(30)) }.frame()
}

fn with_tclass(tclass: u8) -> Vec<u8> {
    V6 { tclass, ..V6::udp(&ONE, &FAR, (1, 2), &payload(30)) }.frame()
}

/// Expedited forwarding (RFC 3246).
const EF: u8 = 46 << 2;

fn dscp_zero_by_default(lab: &mut Lab) {
    outer_tos(lab, &with_tos(EF), 0);
    outer_tos(lab, &with_tclass(EF), 0);
}

fn dscp_copied_where_the_network_says(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::COPY_DSCP);
    outer_tos(lab, &with_tos(EF), EF);
    outer_tos(lab, &with_tos(EF | 0b10), EF | 0b10);
    // A frame that is not IP has no DSCP.
    let frame = ethernet(FAR.mac, ONE.mac, 0x88b5, &[0xff; 60]);
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn dscp_copied_from_ipv6(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.flags |= NetworkInfo::COPY_DSCP);
    outer_tos(lab, &with_tclass(EF | 0b01), EF | 0b01);
}

// RFC 6040 §4.1, normal mode: the outer field is the inner one.
fn ecn_not_ect(lab: &mut Lab) {
    outer_tos(lab, &with_tos(EF), 0);
}

fn ecn_ect0(lab: &mut Lab) {
    outer_tos(lab, &with_tos(EF | 0b10), 0b10);
}

fn ecn_ect1(lab: &mut Lab) {
    outer_tos(lab, &with_tos(EF | 0b01), 0b01);
}

fn ecn_ce(lab: &mut Lab) {
    outer_tos(lab, &with_tos(EF | 0b11), 0b11);
}

fn ecn_of_ipv6(lab: &mut Lab) {
    for ecn in 0..4 {
        outer_tos(lab, &with_tclass(EF | ecn), ecn);
    }
}

fn entropy_same_flow_same_port(lab: &mut Lab) {
    let ports: BTreeSet<u16> = [1, 10, 500, 1000]
        .map(|len| crosses_as_ip(lab, &V4::tcp(&ONE, &FAR, (1000, 80), &payload(len)).frame()))
        .into();
    assert_eq!(ports.len(), 1, "{ports:?}");
}

/// Least number of different ports of 32 flows. With 2^14 ports, two flows share a port in about
/// one of 33 runs. Nine collisions in a run practically never happen.
const SPREAD: usize = 24;

fn entropy_flows_spread(lab: &mut Lab) {
    let ports: BTreeSet<u16> = (0..32)
        .map(|n| crosses_as_ip(lab, &V4::udp(&ONE, &FAR, (1000 + n, 80), b"").frame()))
        .collect();
    assert!(ports.len() >= SPREAD, "{ports:?}");
}

fn entropy_ipv6_flows_spread(lab: &mut Lab) {
    let ports: BTreeSet<u16> = (0..32)
        .map(|n| crosses_as_ip(lab, &V6::udp(&ONE, &FAR, (1000 + n, 80), b"").frame()))
        .collect();
    assert!(ports.len() >= SPREAD, "{ports:?}");
    // The flow label alone selects the port (RFC 6437 §3), so fragments of a flow stay together.
    let labelled =
        |flow_label, port| V6 { flow_label, ..V6::udp(&ONE, &FAR, (port, 80), b"hello") };
    let ports: BTreeSet<u16> =
        (1..33).map(|label| crosses_as_ip(lab, &labelled(label, 1000).frame())).collect();
    assert!(ports.len() >= SPREAD, "{ports:?}");
}

fn entropy_fragments_of_a_datagram_stay_together(lab: &mut Lab) {
    let first = V4 { df: false, mf: true, ..V4::udp(&ONE, &FAR, (1000, 80), &payload(64)) };
    let later = V4 { df: false, offset: 9, protocol: 17, l4: payload(64), ..first.clone() };
    let last = V4 { mf: false, offset: 17, l4: payload(7), ..later.clone() };
    let later = V4 { mf: true, ..later };
    let ports: BTreeSet<u16> =
        [first, later, last].map(|fragment| crosses_as_ip(lab, &fragment.frame())).into();
    assert_eq!(ports.len(), 1, "{ports:?}");
}

fn entropy_other_ethertypes_by_mac(lab: &mut Lab) {
    let mut port = |src: [u8; 6], content: &[u8]| {
        crate::world::change_endpoint(&lab.tables, Interface::A1, |entry| entry.mac = src);
        let frame = ethernet(FAR.mac, src, 0x88b5, content);
        lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[])
    };
    assert_eq!(port(ONE.mac, b"one"), port(ONE.mac, b"another"));
    let ports: BTreeSet<u16> = (0..32).map(|n| port([2, 0, 0, 0, 1, n], b"")).collect();
    assert!(ports.len() >= SPREAD, "{ports:?}");
}

fn no_underlay_path(lab: &mut Lab) {
    lab.tables.underlay.remove(&PEER).unwrap();
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::NoUnderlayPath);
}

fn no_underlay_neighbour_for_arp(lab: &mut Lab) {
    unresolved(lab);
    let frame = Arp::reply(&ONE, &FAR).frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::NoUnderlayNeighbour);
}

fn unknown_endpoint(lab: &mut Lab) {
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::UnknownEndpoint);
    // Another endpoint of the network still sends.
    let other = V4::udp(&TWO, &FAR, (1, 2), b"").frame();
    lab.at_container(Interface::A2, &other).encaps(to_peer().wrap(&other), &[]);
    // An interface that never had an endpoint.
    lab.at_container(Interface::Uplink, &frame).drops(DropReason::UnknownEndpoint);
}

fn unknown_network(lab: &mut Lab) {
    lab.tables.networks.remove(&A).unwrap();
    let frame = V4::udp(&ONE, &FAR, (1, 2), b"hello").frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::UnknownNetwork);
    // Network B is not affected.
    let frame = V4::udp(&ONE, &TWO, (1, 2), b"hello").frame();
    lab.at_container(Interface::B1, &frame).delivers(&frame, &[]);
}

fn gso_refused_by_the_kernel(lab: &mut Lab) {
    // A test run cannot set the type of a GSO frame, and the kernel makes room only in frames of a
    // type that it knows. The segments of this frame are not too long.
    let frame = V4::tcp(&ONE, &FAR, (1000, 80), &payload(3000)).frame();
    lab.at_container(Interface::A1, &frame).gso(1398).drops(DropReason::EncapFailed);
}
