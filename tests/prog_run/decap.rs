//! Decapsulation (RFC 7348 §5) at tcx: checks of the outer headers of frames on the uplink.

use culvert::datapath::Table as _;
use culvert::datapath::entry::{VtepInfo, VtepKey};
use culvert_common::abi::{DropReason, Note, UplinkInfo};
use culvert_tests::packet::{Arp, Host, Tunnel, V4, V6, ethernet, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::Lab,
    run::{SHORTEST_V4, copy, note},
    world::{
        A, B, FAR, FARTHER, NOBODY, ONE, OUR_VTEP, PEER, PEER_MAC, PEER2, STRANGER, TWO, UPLINK,
        UPLINK_MAC, endpoint_behind, from_peer, learning,
    },
};

cases!(
    ipv4_udp,
    ipv4_tcp,
    ipv4_fragments,
    ipv6_udp,
    ipv6_fragment,
    arp_reply,
    other_ethertype,
    other_ethertype_of_few_bytes,
    broadcast_to_every_local_endpoint,
    multicast_to_every_local_endpoint,
    smallest_inner_frame,
    to_each_endpoint,
    with_the_sum_of_the_card,
    padding_is_trimmed,
    trailing_bytes_are_trimmed,
    bytes_behind_the_datagram_are_trimmed,
    udp_checksum_accepted,
    wrong_udp_checksum_accepted,
    reserved_flags_counted,
    reserved_bytes_counted,
    vni_flag_clear,
    unknown_vni,
    unknown_vni_of_another_system,
    vni_of_another_network,
    unknown_vtep,
    vtep_of_another_network,
    foreign_vtep,
    own_address_as_source,
    wrong_destination_passes,
    another_mac_passes,
    a_group_mac_passes,
    other_port_passes,
    tcp_passes,
    other_protocol_passes,
    arp_passes,
    ipv6_passes,
    vlan_on_the_underlay_passes,
    outer_first_fragment,
    outer_later_fragment_passes,
    outer_options_pass,
    outer_truncated_at_every_byte,
    outer_ip_longer_than_the_frame,
    outer_ip_too_short,
    outer_wrong_version,
    outer_ttl_zero,
    outer_udp_longer_than_its_packet,
    outer_udp_too_short,
    runts_pass,
);

/// A frame of [`PEER`] is delivered as it was before the encapsulation.
#[track_caller]
pub(crate) fn arrives(lab: &mut Lab, inner: &[u8]) {
    let outer = from_peer().wrap(inner);
    lab.at_underlay(&outer).delivers(inner, &[]);
}

/// A datagram of `FAR` to `ONE`.
pub(crate) fn hello() -> Vec<u8> {
    V4::udp(&FAR, &ONE, (1000, 2000), b"hello, world").frame()
}

fn ipv4_udp(lab: &mut Lab) {
    arrives(lab, &V4::udp(&FAR, &ONE, (1000, 2000), &payload(1000)).frame());
}

fn ipv4_tcp(lab: &mut Lab) {
    arrives(lab, &V4::tcp(&FAR, &ONE, (80, 2000), &payload(1398)).frame());
}

fn ipv4_fragments(lab: &mut Lab) {
    let first = V4 { df: false, mf: true, ..V4::udp(&FAR, &ONE, (1, 2), &payload(64)) };
    arrives(lab, &first.frame());
    let later = V4 { mf: false, offset: 9, l4: payload(30), ..first };
    arrives(lab, &later.frame());
}

fn ipv6_udp(lab: &mut Lab) {
    arrives(lab, &V6::udp(&FAR, &ONE, (1000, 2000), &payload(1000)).frame());
}

fn ipv6_fragment(lab: &mut Lab) {
    let later = V6 { next_header: 17, rest: payload(30), ..V6::new(&FAR, &ONE) };
    arrives(lab, &later.extended(44, &[0, 0, 0x40, 0, 0, 0, 7]).frame());
}

fn arp_reply(lab: &mut Lab) {
    arrives(lab, &Arp::reply(&FAR, &ONE).frame());
}

fn other_ethertype(lab: &mut Lab) {
    arrives(lab, &ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(200)));
}

fn other_ethertype_of_few_bytes(lab: &mut Lab) {
    for len in [20, 45, 46] {
        arrives(lab, &ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(len)));
    }
    // The kernel leaves no frame that is shorter than an IPv4 header. A shorter inner frame is
    // padded, as a network card pads it (IEEE 802.3 §4.2.3.3).
    for len in [0, 1, 19] {
        let inner = ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(len));
        let mut padded = inner.clone();
        padded.resize(60, 0);
        lab.at_underlay(&from_peer().wrap(&inner)).delivers(&padded, &[]);
    }
}

#[track_caller]
fn reaches_everyone(lab: &mut Lab, inner: &[u8]) {
    let outer = from_peer().wrap(inner);
    let copies = [copy(Interface::A1, inner), copy(Interface::A2, inner)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * inner.len())];
    lab.at_underlay(&outer).floods(&copies, &notes);
}

fn broadcast_to_every_local_endpoint(lab: &mut Lab) {
    reaches_everyone(lab, &Arp::request(&FAR, NOBODY.v4).frame());
    let all = Host { mac: [0xff; 6], v4: [255; 4], v6: [0; 16] };
    reaches_everyone(lab, &V4::udp(&FAR, &all, (1, 2), b"anyone?").frame());
}

fn multicast_to_every_local_endpoint(lab: &mut Lab) {
    let group = Host {
        mac: [0x33, 0x33, 0, 0, 0, 0xfb],
        v4: [224, 0, 0, 251],
        v6: [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb],
    };
    reaches_everyone(lab, &V6::udp(&FAR, &group, (5353, 5353), &payload(90)).frame());
    let group = Host { mac: [1, 0, 0x5e, 0, 0, 0xfb], ..group };
    reaches_everyone(lab, &V4::udp(&FAR, &group, (5353, 5353), &payload(90)).frame());
    reaches_everyone(lab, &ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], FAR.mac, 0x88cc, &payload(50)));
}

fn smallest_inner_frame(lab: &mut Lab) {
    arrives(lab, &V4::new(&FAR, &ONE).frame());
    arrives(lab, &V6::new(&FAR, &ONE).frame());
}

fn to_each_endpoint(lab: &mut Lab) {
    arrives(lab, &V4::udp(&FAR, &TWO, (1, 2), b"two").frame());
    let inner = V4::udp(&FARTHER, &TWO, (1, 2), b"two").frame();
    let outer = Tunnel { src: PEER2, ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn with_the_sum_of_the_card(lab: &mut Lab) {
    for inner in [
        hello(),
        V4::udp(&FAR, &ONE, (1, 2), &payload(1001)).frame(),
        V6::udp(&FAR, &ONE, (1, 2), &payload(777)).frame(),
        Arp::reply(&FAR, &ONE).frame(),
        ethernet(ONE.mac, FAR.mac, 0x88b5, &payload(61)),
    ] {
        let outer = from_peer().wrap(&inner);
        lab.at_underlay(&outer).summed().delivers(&inner, &[]);
    }
}

fn padding_is_trimmed(lab: &mut Lab) {
    // The padding is not of a network card, which sends at least 60 bytes, but of a device between.
    let inner = V4::new(&FAR, &ONE).frame();
    let outer = Tunnel { trailer: vec![0; 6], ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn trailing_bytes_are_trimmed(lab: &mut Lab) {
    let inner = hello();
    let outer = Tunnel { trailer: payload(400), ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
    let inner = Arp::reply(&FAR, &ONE).frame();
    let outer = Tunnel { trailer: payload(3), ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn bytes_behind_the_datagram_are_trimmed(lab: &mut Lab) {
    // The bytes are in the IP packet, but not in the UDP datagram.
    let inner = hello();
    let long = [inner.as_slice(), &[0xaa; 12]].concat();
    let mut outer = from_peer().wrap(&long);
    let udp_len = u16::from_be_bytes([outer[38], outer[39]]) - 12;
    outer[38..40].copy_from_slice(&udp_len.to_be_bytes());
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn udp_checksum_accepted(lab: &mut Lab) {
    let inner = hello();
    let outer = Tunnel { checksum: true, ..from_peer() }.wrap(&inner);
    assert_ne!(outer[40..42], [0, 0]);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn wrong_udp_checksum_accepted(lab: &mut Lab) {
    // RFC 7348 §5: a receiver may verify the outer UDP checksum. Culvert does not, because the
    // inner checksum protects the data.
    let inner = hello();
    let mut outer = from_peer().wrap(&inner);
    outer[40..42].copy_from_slice(&[0xba, 0xad]);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

#[track_caller]
fn arrives_noting_reserved_bits(lab: &mut Lab, tunnel: Tunnel) {
    let inner = hello();
    let outer = tunnel.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[note(Note::ReservedBits)]);
}

fn reserved_flags_counted(lab: &mut Lab) {
    for bit in [0x01, 0x02, 0x04, 0x10, 0x20, 0x40, 0x80, 0xf7] {
        arrives_noting_reserved_bits(lab, Tunnel { flags: 0x08 | bit, ..from_peer() });
    }
}

fn reserved_bytes_counted(lab: &mut Lab) {
    for reserved1 in [[0x80, 0, 0], [0, 1, 0], [0, 0, 1]] {
        arrives_noting_reserved_bits(lab, Tunnel { reserved1, ..from_peer() });
    }
    for reserved2 in [1, 0x80, 0xff] {
        arrives_noting_reserved_bits(lab, Tunnel { reserved2, ..from_peer() });
    }
}

#[track_caller]
fn refused(lab: &mut Lab, tunnel: Tunnel, reason: DropReason) {
    lab.at_underlay(&tunnel.wrap(&hello())).drops(reason);
}

fn vni_flag_clear(lab: &mut Lab) {
    for flags in [0, 0xf7] {
        refused(lab, Tunnel { flags, ..from_peer() }, DropReason::VniFlagClear);
    }
}

fn unknown_vni(lab: &mut Lab) {
    for vni in [0, 1, A ^ 1, 0x00ff_ffff] {
        refused(lab, Tunnel { vni, ..from_peer() }, DropReason::UnknownVni);
    }
    // The network has been removed.
    lab.tables.networks.remove(&A).unwrap();
    refused(lab, from_peer(), DropReason::UnknownVni);
}

fn unknown_vni_of_another_system(lab: &mut Lab) {
    let shared = UplinkInfo { flags: UplinkInfo::SHARED_PORT, ..UPLINK };
    lab.tables.uplinks.insert(&Interface::Uplink.ifindex(), &shared).unwrap();
    let mut passed_on = |tunnel: Tunnel| {
        lab.at_underlay(&tunnel.wrap(&hello())).passes(&[note(Note::ForeignVxlan)]);
    };
    passed_on(Tunnel { vni: A ^ 1, ..from_peer() });
    passed_on(Tunnel { vni: 7, src: STRANGER, ..from_peer() });
    // VXLAN-GPE, for example.
    passed_on(Tunnel { flags: 0x04, ..from_peer() });
    // Culvert does not pass on a frame with a VNI of its own, or with that of its vxlan device.
    refused(lab, Tunnel { vni: 0, ..from_peer() }, DropReason::UnknownVni);
    refused(lab, Tunnel { src: STRANGER, ..from_peer() }, DropReason::UnknownVtep);
    lab.at_underlay(&from_peer().wrap(&hello())).delivers(&hello(), &[]);
}

fn vni_of_another_network(lab: &mut Lab) {
    // The VNI is known here, but the sender is not a VTEP of it.
    refused(lab, Tunnel { vni: B, ..from_peer() }, DropReason::UnknownVtep);
}

fn unknown_vtep(lab: &mut Lab) {
    refused(lab, Tunnel { src: STRANGER, ..from_peer() }, DropReason::UnknownVtep);
    lab.tables.vteps.remove(&VtepKey { vni: A, ip: PEER }).unwrap();
    refused(lab, from_peer(), DropReason::UnknownVtep);
}

fn vtep_of_another_network(lab: &mut Lab) {
    lab.tables.vteps.remove(&VtepKey { vni: A, ip: PEER }).unwrap();
    lab.tables.vteps.insert(&VtepKey { vni: B, ip: PEER }, &VtepInfo { foreign: 0 }).unwrap();
    endpoint_behind(&lab.tables, B, &FAR, PEER);
    refused(lab, from_peer(), DropReason::UnknownVtep);
    let inner = hello();
    let outer = Tunnel { vni: B, ..from_peer() }.wrap(&inner);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn foreign_vtep(lab: &mut Lab) {
    lab.tables.vteps.insert(&VtepKey { vni: A, ip: STRANGER }, &VtepInfo { foreign: 1 }).unwrap();
    let inner = V4::udp(&NOBODY, &ONE, (1000, 2000), b"hello, world").frame();
    let outer = Tunnel { src: STRANGER, ..from_peer() }.wrap(&inner);
    // The store does not have the hosts behind such a VTEP, so the network must learn them.
    lab.at_underlay(&outer).drops(DropReason::ForeignSourceMac);
    learning(&lab.tables);
    lab.at_underlay(&outer).delivers(&inner, &[note(Note::Learned)]);
    lab.at_underlay(&outer).delivers(&inner, &[]);
}

fn own_address_as_source(lab: &mut Lab) {
    refused(lab, Tunnel { src: OUR_VTEP, ..from_peer() }, DropReason::UnknownVtep);
}

/// A frame that is not for this host passes to the kernel.
#[track_caller]
fn passes(lab: &mut Lab, frame: &[u8]) {
    lab.at_underlay(frame).passes(&[]);
}

fn wrong_destination_passes(lab: &mut Lab) {
    for dst in [STRANGER, PEER, [255; 4], [224, 0, 0, 1]] {
        passes(lab, &Tunnel { dst, ..from_peer() }.wrap(&hello()));
    }
}

/// Frames that the link delivers to all hosts, or that a switch floods, are not for this VTEP. The
/// flow cache has the pair.
#[track_caller]
fn passes_to_mac(lab: &mut Lab, eth_dst: [u8; 6]) {
    arrives(lab, &hello());
    passes(lab, &Tunnel { eth_dst, ..from_peer() }.wrap(&hello()));
    let unknown = Tunnel { eth_dst, src: STRANGER, ..from_peer() };
    passes(lab, &unknown.wrap(&hello()));
}

fn another_mac_passes(lab: &mut Lab) {
    passes_to_mac(lab, PEER_MAC);
    passes_to_mac(lab, [0; 6]);
}

fn a_group_mac_passes(lab: &mut Lab) {
    passes_to_mac(lab, [0xff; 6]);
    passes_to_mac(lab, [1, 0, 0x5e, 0, 0, 1]);
}

fn other_port_passes(lab: &mut Lab) {
    for dst_port in [4788, 8472, 0, 0xb512] {
        passes(lab, &Tunnel { dst_port, ..from_peer() }.wrap(&hello()));
    }
    // The VXLAN port as source port does not make the frame VXLAN.
    passes(lab, &Tunnel { src_port: 4789, dst_port: 53, ..from_peer() }.wrap(&hello()));
}

/// The two hosts on the underlay, for packets that are not VXLAN.
fn peer_and_us() -> (Host, Host) {
    let peer = Host { mac: PEER_MAC, v4: PEER, v6: [0xfe; 16] };
    (peer, Host { mac: UPLINK_MAC, v4: OUR_VTEP, v6: [0xfd; 16] })
}

fn tcp_passes(lab: &mut Lab) {
    let (peer, us) = peer_and_us();
    passes(lab, &V4::tcp(&peer, &us, (4789, 4789), &payload(100)).frame());
}

fn other_protocol_passes(lab: &mut Lab) {
    let (peer, us) = peer_and_us();
    // An echo request, GRE, and a protocol for experiments.
    passes(lab, &V4::icmp(&peer, &us, 8, 0, [0, 1, 0, 1], &payload(56)).frame());
    passes(lab, &V4 { protocol: 47, l4: payload(40), ..V4::new(&peer, &us) }.frame());
    passes(lab, &V4::new(&peer, &us).frame());
}

fn arp_passes(lab: &mut Lab) {
    let (peer, us) = peer_and_us();
    passes(lab, &Arp::request(&peer, us.v4).frame());
}

fn ipv6_passes(lab: &mut Lab) {
    let (peer, us) = peer_and_us();
    passes(lab, &V6::udp(&peer, &us, (50_000, 4789), &payload(100)).frame());
}

fn vlan_on_the_underlay_passes(lab: &mut Lab) {
    let mut frame = from_peer().wrap(&hello());
    frame.splice(12..12, [0x81, 0, 0, 7]);
    passes(lab, &frame);
}

fn outer_first_fragment(lab: &mut Lab) {
    refused(lab, Tunnel { df: false, mf: true, ..from_peer() }, DropReason::OuterFragment);
}

fn outer_later_fragment_passes(lab: &mut Lab) {
    // The fragment has no port. The host's stack never gets its first fragment, which is dropped.
    let tunnel = Tunnel { df: false, offset: 8, ..from_peer() };
    lab.at_underlay(&tunnel.wrap(&hello())).passes(&[note(Note::FragmentCopied)]);
}

fn outer_options_pass(lab: &mut Lab) {
    // The kernel discards the frame, because it has no socket for the frame.
    let tunnel = Tunnel { options: vec![1, 1, 1, 0], ..from_peer() };
    passes(lab, &tunnel.wrap(&hello()));
}

fn outer_truncated_at_every_byte(lab: &mut Lab) {
    let outer = from_peer().wrap(&hello());
    // A frame too short for its port passes. A VXLAN frame whose header length exceeds the frame is
    // malformed.
    for len in SHORTEST_V4..42 {
        passes(lab, &outer[..len]);
    }
    for len in 42..outer.len() {
        lab.at_underlay(&outer[..len]).drops(DropReason::OuterMalformed);
    }
}

fn with_total_len(mut outer: Vec<u8>, len: u16) -> Vec<u8> {
    outer[16..18].copy_from_slice(&len.to_be_bytes());
    outer
}

fn outer_ip_longer_than_the_frame(lab: &mut Lab) {
    let outer = from_peer().wrap(&hello());
    let len = u16::try_from(outer.len() - 14).unwrap();
    for len in [len + 1, u16::MAX] {
        let frame = with_total_len(outer.clone(), len);
        lab.at_underlay(&frame).drops(DropReason::OuterMalformed);
    }
}

fn outer_ip_too_short(lab: &mut Lab) {
    let outer = from_peer().wrap(&hello());
    // Too short for the UDP, VXLAN and Ethernet headers, or for the IP header itself.
    for len in [49, 28, 20, 19, 0] {
        let frame = with_total_len(outer.clone(), len);
        lab.at_underlay(&frame).drops(DropReason::OuterMalformed);
    }
}

fn outer_wrong_version(lab: &mut Lab) {
    let mut outer = from_peer().wrap(&hello());
    outer[14] = 0x65;
    lab.at_underlay(&outer).drops(DropReason::OuterMalformed);
}

fn outer_ttl_zero(lab: &mut Lab) {
    arrives(lab, &hello());
    let mut outer = from_peer().wrap(&hello());
    outer[22] = 0;
    lab.at_underlay(&outer).drops(DropReason::OuterMalformed);
    lab.at_underlay_xdp(&outer).drops(DropReason::OuterMalformed);
    outer[22] = 1;
    lab.at_underlay(&outer).delivers(&hello(), &[]);
}

fn outer_udp_longer_than_its_packet(lab: &mut Lab) {
    let outer = from_peer().wrap(&hello());
    let len = u16::from_be_bytes([outer[38], outer[39]]);
    for len in [len + 1, u16::MAX] {
        let mut outer = outer.clone();
        outer[38..40].copy_from_slice(&len.to_be_bytes());
        lab.at_underlay(&outer).drops(DropReason::OuterMalformed);
    }
}

fn outer_udp_too_short(lab: &mut Lab) {
    for len in [29u16, 16, 8, 7, 0] {
        let mut outer = from_peer().wrap(&hello());
        outer[38..40].copy_from_slice(&len.to_be_bytes());
        lab.at_underlay(&outer).drops(DropReason::OuterMalformed);
    }
}

fn runts_pass(lab: &mut Lab) {
    // A test run needs at least an Ethernet header.
    for ethertype in [0x0806, 0x8100, 0x88b5, 0, 0xffff] {
        passes(lab, &ethernet(UPLINK_MAC, [2, 0, 0, 0, 0, 9], ethertype, &[]));
    }
    let zeros = [0; 14];
    let outcome = lab.at_underlay(&zeros).outcome();
    same("frame left behind", &outcome.frame, &zeros);
}
