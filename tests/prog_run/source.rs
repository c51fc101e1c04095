//! Checks of the sender: no frame with another endpoint's addresses, no contradicting headers, no
//! frame that another host would accept as a VTEP's.

use culvert_common::abi::DropReason;
use culvert_tests::packet::{Host, Tunnel, V4, V6, ethernet, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{SHORTEST_V4, SHORTEST_V6},
    world::{
        B, FAR, NOBODY, ONE, OUR_VTEP, PEER, PEER2, STRANGER, TWO, any_source, change_endpoint,
        to_peer,
    },
};

cases!(
    spoofed_mac,
    spoofed_mac_of_other_ethertypes,
    spoofed_ipv4,
    spoofed_ipv6,
    unspecified_ipv6_to_one_host,
    no_ipv4_address,
    any_source_allows,
    any_source_of_no_host,
    vxlan_to_our_vtep,
    vxlan_to_another_vtep,
    vxlan_with_ip_options,
    vxlan_in_a_first_fragment,
    vxlan_where_any_source_may_send,
    vxlan_to_anyone_else,
    other_udp_to_a_vtep,
    vlan_tag,
    service_vlan_tag,
    service_vlan_tag_before_802_1ad,
    ipv4_truncated_at_every_byte,
    ipv4_version,
    ipv4_header_length,
    ipv4_total_length,
    ipv6_truncated_at_every_byte,
    ipv6_version,
    ipv6_payload_length,
    ipv6_extension_headers_truncated,
    runts,
);

#[track_caller]
fn is_refused(lab: &mut Lab, frame: &[u8], reason: DropReason) {
    lab.at_container(Interface::A1, frame).drops(reason);
}

#[track_caller]
fn crosses(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).encaps(to_peer().wrap(frame), &[]);
}

fn spoofed_mac(lab: &mut Lab) {
    for eth_src in [TWO.mac, FAR.mac, NOBODY.mac, [0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let v4 = V4 { eth_src, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") };
        is_refused(lab, &v4.frame(), DropReason::SpoofedMac);
        let v6 = V6 { eth_src, ..V6::udp(&ONE, &FAR, (1, 2), b"hello") };
        is_refused(lab, &v6.frame(), DropReason::SpoofedMac);
    }
}

fn spoofed_mac_of_other_ethertypes(lab: &mut Lab) {
    let frame = ethernet(FAR.mac, TWO.mac, 0x88b5, b"hello");
    is_refused(lab, &frame, DropReason::SpoofedMac);
}

fn spoofed_ipv4(lab: &mut Lab) {
    for src in [TWO.v4, FAR.v4, [0; 4], [255; 4], [127, 0, 0, 1], PEER, OUR_VTEP] {
        let to_far = V4 { src, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") };
        is_refused(lab, &to_far.frame(), DropReason::SpoofedIp);
        let to_all = V4 { eth_dst: [0xff; 6], dst: [255; 4], ..to_far };
        is_refused(lab, &to_all.frame(), DropReason::SpoofedIp);
        let fragment = V4 { src, df: false, offset: 9, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") };
        is_refused(lab, &fragment.frame(), DropReason::SpoofedIp);
    }
}

fn spoofed_ipv6(lab: &mut Lab) {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
    let loopback = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for src in [TWO.v6, TWO.link_local(), FAR.v6, mapped, loopback, [0xff; 16]] {
        let packet = V6 { src, ..V6::udp(&ONE, &FAR, (1, 2), b"hello") };
        is_refused(lab, &packet.frame(), DropReason::SpoofedIp);
        let disguised = packet.extended(0, &[0, 1, 4, 0, 0, 0, 0]);
        is_refused(lab, &disguised.frame(), DropReason::SpoofedIp);
    }
}

fn unspecified_ipv6_to_one_host(lab: &mut Lab) {
    let packet = V6 { src: [0; 16], ..V6::udp(&ONE, &FAR, (1, 2), b"hello") };
    is_refused(lab, &packet.frame(), DropReason::SpoofedIp);
}

fn no_ipv4_address(lab: &mut Lab) {
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.ipv4 = [0; 4]);
    let dhcp = V4 { src: [0; 4], ..V4::udp(&ONE, &FAR, (68, 67), b"discover") };
    is_refused(lab, &dhcp.frame(), DropReason::SpoofedIp);
    crosses(lab, &V6::udp(&ONE, &FAR, (1, 2), b"hello").frame());
}

fn any_source_allows(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    crosses(lab, &V4::udp(&NOBODY, &FAR, (1, 2), b"hello").frame());
    crosses(lab, &V4 { src: [0; 4], ..V4::udp(&ONE, &FAR, (68, 67), b"discover") }.frame());
    crosses(lab, &V6::udp(&NOBODY, &FAR, (1, 2), b"hello").frame());
}

fn any_source_of_no_host(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    for eth_src in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        let frame = V4 { eth_src, ..V4::udp(&ONE, &FAR, (1, 2), b"hello") }.frame();
        is_refused(lab, &frame, DropReason::InvalidSourceMac);
    }
}

/// A datagram of `ONE` to `dst` with a VXLAN header and a frame in it, as if it
/// came from a VTEP. It would leave this host if it were routed.
fn forged(dst: [u8; 4]) -> V4 {
    let inner = V4::udp(&FAR, &TWO, (1, 2), b"forged").frame();
    let datagram = [Tunnel::new(ONE.v4, dst, B).vxlan().as_slice(), &inner].concat();
    let router = Host { v4: dst, ..FAR };
    V4::udp(&ONE, &router, (50_000, 4789), &datagram)
}

fn vxlan_to_our_vtep(lab: &mut Lab) {
    is_refused(lab, &forged(OUR_VTEP).frame(), DropReason::VxlanFromContainer);
}

fn vxlan_to_another_vtep(lab: &mut Lab) {
    for dst in [PEER, PEER2] {
        is_refused(lab, &forged(dst).frame(), DropReason::VxlanFromContainer);
    }
}

fn vxlan_with_ip_options(lab: &mut Lab) {
    for words in 1..=10 {
        let frame = V4 { options: vec![1; 4 * words], ..forged(PEER) }.frame();
        is_refused(lab, &frame, DropReason::VxlanFromContainer);
    }
}

fn vxlan_in_a_first_fragment(lab: &mut Lab) {
    let frame = V4 { df: false, mf: true, ..forged(PEER) }.frame();
    is_refused(lab, &frame, DropReason::VxlanFromContainer);
    // A later fragment has no port, and is not sent without the first.
    let frame = V4 { df: false, offset: 2, ..forged(PEER) }.frame();
    crosses(lab, &frame);
}

fn vxlan_where_any_source_may_send(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    let frame = V4 { src: PEER2, ..forged(PEER) }.frame();
    is_refused(lab, &frame, DropReason::VxlanFromContainer);
}

fn vxlan_to_anyone_else(lab: &mut Lab) {
    // A container may run a VXLAN of its own inside its network.
    for dst in [FAR.v4, STRANGER] {
        crosses(lab, &forged(dst).frame());
    }
}

fn other_udp_to_a_vtep(lab: &mut Lab) {
    let peer = Host { v4: PEER, ..FAR };
    crosses(lab, &V4::udp(&ONE, &peer, (4789, 53), &payload(60)).frame());
    crosses(lab, &V4::tcp(&ONE, &peer, (50_000, 4789), &payload(60)).frame());
}

fn tagged(tag: u16, frame: &[u8]) -> Vec<u8> {
    let [high, low] = tag.to_be_bytes();
    let mut frame = frame.to_vec();
    frame.splice(12..12, [high, low, 0, 7]);
    frame
}

fn vlan_tag(lab: &mut Lab) {
    // RFC 7348 §6.1. The headers after the tag are not checked.
    let frame = tagged(0x8100, &V4::udp(&ONE, &FAR, (1, 2), b"hello").frame());
    is_refused(lab, &frame, DropReason::VlanTagged);
    is_refused(lab, &frame[..14], DropReason::VlanTagged);
}

fn service_vlan_tag(lab: &mut Lab) {
    let frame = tagged(0x88a8, &V6::udp(&ONE, &FAR, (1, 2), b"hello").frame());
    is_refused(lab, &frame, DropReason::VlanTagged);
    let frame = tagged(0x88a8, &tagged(0x8100, &ethernet([0xff; 6], ONE.mac, 0x88b5, &[])));
    is_refused(lab, &frame, DropReason::VlanTagged);
}

fn service_vlan_tag_before_802_1ad(lab: &mut Lab) {
    for tag in [0x9100, 0x9200, 0x9300] {
        let frame = tagged(tag, &V4::udp(&ONE, &FAR, (1, 2), b"hello").frame());
        is_refused(lab, &frame, DropReason::VlanTagged);
    }
}

fn ipv4_truncated_at_every_byte(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
    for len in SHORTEST_V4..frame.len() {
        is_refused(lab, &frame[..len], DropReason::Malformed);
    }
}

fn ipv4_version(lab: &mut Lab) {
    for version in [0, 5, 6, 15] {
        let mut frame = V4::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
        frame[14] = version << 4 | 5;
        is_refused(lab, &frame, DropReason::Malformed);
    }
}

fn ipv4_header_length(lab: &mut Lab) {
    // Header lengths that are less than a header, or more than the packet.
    for words in [0, 1, 4, 15] {
        let mut frame = V4::udp(&ONE, &FAR, (1, 2), &payload(3)).frame();
        frame[14] = 0x40 | words;
        is_refused(lab, &frame, DropReason::Malformed);
    }
}

fn ipv4_total_length(lab: &mut Lab) {
    let frame = V4::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
    let len = u16::try_from(frame.len() - 14).unwrap();
    for len in [0, 19, len + 1, u16::MAX] {
        let mut frame = frame.clone();
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        is_refused(lab, &frame, DropReason::Malformed);
    }
}

fn ipv6_truncated_at_every_byte(lab: &mut Lab) {
    let frame = V6::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
    for len in SHORTEST_V6..frame.len() {
        is_refused(lab, &frame[..len], DropReason::Malformed);
    }
}

fn ipv6_version(lab: &mut Lab) {
    for version in [0, 4, 7, 15] {
        let mut frame = V6::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
        frame[14] = version << 4 | frame[14] & 0x0f;
        is_refused(lab, &frame, DropReason::Malformed);
    }
}

fn ipv6_payload_length(lab: &mut Lab) {
    let frame = V6::udp(&ONE, &FAR, (1, 2), &payload(30)).frame();
    for len in [39u16, 40, u16::MAX] {
        let mut frame = frame.clone();
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        is_refused(lab, &frame, DropReason::Malformed);
    }
}

fn ipv6_extension_headers_truncated(lab: &mut Lab) {
    // A header names a next header that is not there, or is longer than the packet.
    let packet = V6 { rest: vec![], next_header: 60, ..V6::new(&ONE, &FAR) };
    is_refused(lab, &packet.frame(), DropReason::Malformed);
    let packet = V6 { rest: vec![43, 0], next_header: 60, ..V6::new(&ONE, &FAR) };
    is_refused(lab, &packet.frame(), DropReason::Malformed);
    let packet = packet.extended(60, &[200, 0, 0, 0, 0, 0, 0]);
    is_refused(lab, &packet.frame(), DropReason::Malformed);
}

fn runts(lab: &mut Lab) {
    // A test run needs at least an Ethernet header.
    let frame = ethernet(FAR.mac, ONE.mac, 0x0806, &[]);
    is_refused(lab, &frame, DropReason::Malformed);
    is_refused(lab, &[0; 14], DropReason::SpoofedMac);
    is_refused(lab, &[0xff; 14], DropReason::SpoofedMac);
}
