//! Decapsulation at tcx: checks of the inner frame, and frames that the kernel has merged.

use culvert_common::abi::DropReason;
use culvert_tests::packet::{Arp, Tunnel, V4, V6, payload};

use crate::{
    decap::{arrives, hello},
    interfaces::Interface,
    lab::Lab,
    run::{Expected, Left, SHOT, drop},
    world::{A, B, FAR, FARTHER, NOBODY, ONE, TWO, any_source, change_network, from_peer},
};

cases!(
    inner_truncated_at_every_byte,
    inner_vlan,
    inner_service_vlan,
    inner_service_vlan_before_802_1ad,
    inner_source_multicast,
    inner_source_zero,
    inner_source_of_a_local_endpoint,
    unknown_destination,
    split_horizon,
    no_local_endpoint_for_a_broadcast,
    merged_datagrams,
    merged_datagrams_of_another_vni,
    merged_datagrams_under_one_inner_header,
    merged_frames_that_are_not_ip,
    merged_inner_flow_is_one_frame,
    merged_inner_flow_with_checksum_is_one_frame,
);

fn inner_truncated_at_every_byte(lab: &mut Lab) {
    // The lengths in the outer headers are those of the truncated frame.
    let v4 = hello();
    for len in 0..14 {
        lab.at_underlay(&from_peer().wrap(&v4[..len])).drops(DropReason::OuterMalformed);
    }
    for len in 14..34 {
        lab.at_underlay(&from_peer().wrap(&v4[..len])).drops(DropReason::Malformed);
    }
    // If the IP header is complete, the container checks the length.
    for len in [34, 40, v4.len() - 1] {
        arrives(lab, &v4[..len]);
    }
    let v6 = V6::udp(&FAR, &ONE, (1, 2), b"hello").frame();
    for len in 14..54 {
        lab.at_underlay(&from_peer().wrap(&v6[..len])).drops(DropReason::Malformed);
    }
    arrives(lab, &v6[..54]);
    // The padding after the datagram is not part of the inner packet: without it the frame is
    // shorter than the kernel accepts. As a source address it is refused before.
    let padded = Tunnel { trailer: vec![0x45; 60], ..from_peer() };
    for len in [14, 20, 29] {
        lab.at_underlay(&padded.wrap(&v4[..len])).drops(DropReason::SpoofedIp);
    }
    for len in [30, 33] {
        let run = lab.at_underlay(&padded.wrap(&v4[..len]));
        run.gives(&Expected {
            verdict: SHOT,
            left: Left::Frame(from_peer().wrap(&v4[..len])),
            counts: &[drop(DropReason::DecapFailed)],
            copies: &[],
        });
    }
}

fn tagged(tag: u16) -> Vec<u8> {
    let mut inner = hello();
    let [high, low] = tag.to_be_bytes();
    inner.splice(12..12, [high, low, 0, 7]);
    inner
}

fn inner_vlan(lab: &mut Lab) {
    // RFC 7348 §6.1.
    let outer = from_peer().wrap(&tagged(0x8100));
    lab.at_underlay(&outer).drops(DropReason::VlanTagged);
}

fn inner_service_vlan(lab: &mut Lab) {
    let outer = from_peer().wrap(&tagged(0x88a8));
    lab.at_underlay(&outer).drops(DropReason::VlanTagged);
}

fn inner_service_vlan_before_802_1ad(lab: &mut Lab) {
    for tag in [0x9100, 0x9200, 0x9300] {
        let outer = from_peer().wrap(&tagged(tag));
        lab.at_underlay(&outer).drops(DropReason::VlanTagged);
    }
}

#[track_caller]
fn source_refused(lab: &mut Lab, eth_src: [u8; 6], reason: DropReason) {
    let inner = V4 { eth_src, ..V4::udp(&FAR, &ONE, (1, 2), b"hello") };
    lab.at_underlay(&from_peer().wrap(&inner.frame())).drops(reason);
}

fn inner_source_multicast(lab: &mut Lab) {
    for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        source_refused(lab, mac, DropReason::InvalidSourceMac);
    }
}

fn inner_source_zero(lab: &mut Lab) {
    source_refused(lab, [0; 6], DropReason::InvalidSourceMac);
}

fn inner_source_of_a_local_endpoint(lab: &mut Lab) {
    source_refused(lab, TWO.mac, DropReason::LocalSourceMac);
    source_refused(lab, ONE.mac, DropReason::LocalSourceMac);
    // An endpoint without `anti_spoof` does not change this: its own MAC from the tunnel is
    // refused.
    any_source(&lab.tables, Interface::A2);
    source_refused(lab, TWO.mac, DropReason::LocalSourceMac);
}

fn unknown_destination(lab: &mut Lab) {
    let inner = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::UnknownDestination);
}

fn split_horizon(lab: &mut Lab) {
    // The destination is behind the VTEP that sent the frame, or behind another VTEP.
    for host in [FAR, FARTHER] {
        let inner = V4::udp(&FAR, &host, (1, 2), b"hello").frame();
        lab.at_underlay(&from_peer().wrap(&inner)).drops(DropReason::SplitHorizon);
    }
}

fn no_local_endpoint_for_a_broadcast(lab: &mut Lab) {
    change_network(&lab.tables, A, |network| network.local_endpoints = 0);
    let inner = Arp::request(&FAR, ONE.v4).frame();
    let run = lab.at_underlay(&from_peer().wrap(&inner));
    run.gives(&Expected {
        verdict: SHOT,
        left: Left::Frame(inner),
        counts: &[drop(DropReason::NoReceiver)],
        copies: &[],
    });
}

/// The frame that the kernel makes of datagrams if it merges them as plain UDP: one outer header,
/// then the payloads.
fn merged(tunnel: &Tunnel, first: &[u8], rest: &[(u32, &[u8])]) -> Vec<u8> {
    let mut content = first.to_vec();
    for (vni, inner) in rest {
        content.extend(Tunnel { vni: *vni, ..from_peer() }.vxlan());
        content.extend_from_slice(inner);
    }
    tunnel.wrap(&content)
}

/// Payload of an outer datagram around `inner`.
fn segment(inner: &[u8]) -> u32 {
    u32::try_from(8 + inner.len()).unwrap()
}

fn merged_datagrams(lab: &mut Lab) {
    let inner = V4::udp(&FAR, &ONE, (1, 2), &payload(500)).frame();
    for checksum in [false, true] {
        let tunnel = Tunnel { checksum, ..from_peer() };
        let outer = merged(&tunnel, &inner, &[(A, &inner), (A, &inner)]);
        lab.at_underlay(&outer).gso(segment(&inner)).drops(DropReason::MergedFrames);
    }
}

fn merged_datagrams_of_another_vni(lab: &mut Lab) {
    let ours = V4::udp(&FAR, &ONE, (1, 2), &payload(500)).frame();
    let theirs = V6::udp(&FAR, &ONE, (1, 2), &payload(480)).frame();
    assert_eq!(ours.len(), theirs.len());
    let tunnel = Tunnel { checksum: true, ..from_peer() };
    for (first, second) in [(&ours, &theirs), (&theirs, &ours)] {
        let outer = merged(&tunnel, first, &[(B, second)]);
        lab.at_underlay(&outer).gso(segment(first)).drops(DropReason::MergedFrames);
    }
}

fn merged_datagrams_under_one_inner_header(lab: &mut Lab) {
    // The first inner header claims all that follows as its own payload.
    let inner = V4::udp(&FAR, &ONE, (1, 2), &payload(500)).frame();
    let tunnel = Tunnel { checksum: true, ..from_peer() };
    let mut outer = merged(&tunnel, &inner, &[(B, &inner)]);
    let claimed = u16::try_from(outer.len() - 64).unwrap();
    outer[66..68].copy_from_slice(&claimed.to_be_bytes());
    lab.at_underlay(&outer).gso(segment(&inner)).drops(DropReason::MergedFrames);
}

fn merged_frames_that_are_not_ip(lab: &mut Lab) {
    let inner = Arp::reply(&FAR, &ONE).frame();
    let outer = merged(&from_peer(), &inner, &[(A, &inner)]);
    lab.at_underlay(&outer).gso(segment(&inner)).drops(DropReason::MergedFrames);
}

/// A test run cannot set the type of a GSO frame, and the kernel removes headers only of a type it
/// knows. So the test can only see that the program calls the helper, which fails.
#[track_caller]
fn taken_for_one(lab: &mut Lab, tunnel: &Tunnel, inner: &[u8], gso_size: u32) {
    lab.at_underlay(&tunnel.wrap(inner)).gso(gso_size).drops(DropReason::DecapFailed);
}

fn merged_inner_flow_is_one_frame(lab: &mut Lab) {
    let inner = V4::tcp(&FAR, &ONE, (80, 2000), &payload(2796)).frame();
    taken_for_one(lab, &from_peer(), &inner, 1398);
    let inner = V6::tcp(&FAR, &ONE, (80, 2000), &payload(2756)).frame();
    taken_for_one(lab, &from_peer(), &inner, 1378);
}

fn merged_inner_flow_with_checksum_is_one_frame(lab: &mut Lab) {
    let inner = V4::tcp(&FAR, &ONE, (80, 2000), &payload(2796)).frame();
    taken_for_one(lab, &Tunnel { checksum: true, ..from_peer() }, &inner, 1398);
}
