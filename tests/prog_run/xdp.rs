//! `from_underlay_xdp`: drops frames that `from_underlay` would drop, before the kernel makes an
//! skb, and passes all others to it, uncounted and untouched.

use culvert::datapath::Table as _;
use culvert::datapath::entry::VtepKey;
use culvert_common::abi::{DropReason, UplinkInfo};
use culvert_tests::packet::{Arp, Host, Tunnel, V4, V6, ethernet, payload};

use crate::{
    lab::Lab,
    world::{
        A, B, FAR, NOBODY, ONE, OUR_VTEP, PEER, PEER_MAC, STRANGER, UPLINK, UPLINK_MAC, from_peer,
    },
};

cases!(
    good_vxlan_passes,
    what_tcx_judges_passes,
    other_traffic_passes,
    other_destination_passes,
    icmp_passes,
    runts_pass,
    first_fragment,
    truncated_at_every_byte,
    contradictory_lengths,
    vni_flag_clear,
    unknown_vni,
    unknown_vni_of_another_system,
    unknown_vtep,
    vtep_of_another_network,
    reserved_bits_pass_uncounted,
    full_sized_frames,
);

fn hello() -> Vec<u8> {
    V4::udp(&FAR, &ONE, (1, 2), b"hello").frame()
}

#[track_caller]
fn passes(lab: &mut Lab, frame: &[u8]) {
    lab.at_underlay_xdp(frame).passes(&[]);
}

#[track_caller]
fn is_refused(lab: &mut Lab, frame: &[u8], reason: DropReason) {
    lab.at_underlay_xdp(frame).drops(reason);
}

fn good_vxlan_passes(lab: &mut Lab) {
    passes(lab, &from_peer().wrap(&hello()));
    passes(lab, &from_peer().wrap(&Arp::request(&FAR, ONE.v4).frame()));
    passes(lab, &Tunnel { checksum: true, ..from_peer() }.wrap(&hello()));
}

fn what_tcx_judges_passes(lab: &mut Lab) {
    // tcx checks the inner frame: an unknown destination, a zero source, congestion.
    let unknown = V4::udp(&FAR, &NOBODY, (1, 2), b"hello").frame();
    passes(lab, &from_peer().wrap(&unknown));
    passes(lab, &from_peer().wrap(&[0; 14]));
    passes(lab, &Tunnel { tos: 3, ..from_peer() }.wrap(&hello()));
}

fn other_traffic_passes(lab: &mut Lab) {
    let peer = Host { mac: PEER_MAC, v4: PEER, v6: [0xfe; 16] };
    let us = Host { mac: UPLINK_MAC, v4: OUR_VTEP, v6: [0xfd; 16] };
    passes(lab, &V4::tcp(&peer, &us, (4789, 4789), &payload(99)).frame());
    passes(lab, &V4::udp(&peer, &us, (4789, 53), &payload(99)).frame());
    passes(lab, &V6::udp(&peer, &us, (4789, 4789), &payload(99)).frame());
    passes(lab, &Arp::request(&peer, us.v4).frame());
    passes(lab, &ethernet(us.mac, peer.mac, 0x88b5, &payload(99)));
}

fn other_destination_passes(lab: &mut Lab) {
    passes(lab, &Tunnel { dst: STRANGER, flags: 0, ..from_peer() }.wrap(&hello()));
    passes(lab, &Tunnel { dst_port: 8472, flags: 0, ..from_peer() }.wrap(&hello()));
    passes(lab, &Tunnel { offset: 8, df: false, ..from_peer() }.wrap(&hello()));
    passes(lab, &Tunnel { options: vec![1; 4], ..from_peer() }.wrap(&hello()));
}

fn icmp_passes(lab: &mut Lab) {
    let peer = Host { mac: PEER_MAC, v4: PEER, v6: [0; 16] };
    let us = Host { mac: UPLINK_MAC, v4: OUR_VTEP, v6: [0; 16] };
    let quote = from_peer().wrap(&hello())[14..42].to_vec();
    // The program at tcx judges this error.
    passes(lab, &V4::icmp(&peer, &us, 3, 4, [0, 0, 4, 0], &quote).frame());
    assert!(lab.path_hints().is_empty());
}

fn runts_pass(lab: &mut Lab) {
    for ethertype in [0x0800, 0x0806, 0x86dd, 0x8100] {
        passes(lab, &ethernet(UPLINK_MAC, PEER_MAC, ethertype, &[]));
    }
    passes(lab, &[0; 14]);
}

fn first_fragment(lab: &mut Lab) {
    let frame = Tunnel { df: false, mf: true, ..from_peer() }.wrap(&hello());
    is_refused(lab, &frame, DropReason::OuterFragment);
}

fn truncated_at_every_byte(lab: &mut Lab) {
    let frame = from_peer().wrap(&hello());
    for len in 14..42 {
        passes(lab, &frame[..len]);
    }
    for len in 42..frame.len() {
        is_refused(lab, &frame[..len], DropReason::OuterMalformed);
    }
    // The lengths in the outer headers agree with a frame that has no complete Ethernet header.
    for len in 0..14 {
        is_refused(lab, &from_peer().wrap(&hello()[..len]), DropReason::OuterMalformed);
    }
}

fn contradictory_lengths(lab: &mut Lab) {
    for (at, len) in [(16, 49u16), (16, 0xffff), (38, 29), (38, 0xffff), (38, 0)] {
        let mut frame = from_peer().wrap(&hello());
        frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
        is_refused(lab, &frame, DropReason::OuterMalformed);
    }
}

fn vni_flag_clear(lab: &mut Lab) {
    let frame = Tunnel { flags: 0xf7, ..from_peer() }.wrap(&hello());
    is_refused(lab, &frame, DropReason::VniFlagClear);
}

fn unknown_vni(lab: &mut Lab) {
    for vni in [0, 0x00ff_ffff] {
        let frame = Tunnel { vni, ..from_peer() }.wrap(&hello());
        is_refused(lab, &frame, DropReason::UnknownVni);
    }
}

fn unknown_vni_of_another_system(lab: &mut Lab) {
    let shared = UplinkInfo { flags: UplinkInfo::SHARED_PORT, ..UPLINK };
    // A test run has the loopback device as its ingress interface.
    lab.tables.uplinks.insert(&1, &shared).unwrap();
    passes(lab, &Tunnel { vni: 7, ..from_peer() }.wrap(&hello()));
}

fn unknown_vtep(lab: &mut Lab) {
    let frame = Tunnel { src: STRANGER, ..from_peer() }.wrap(&hello());
    is_refused(lab, &frame, DropReason::UnknownVtep);
    lab.tables.vteps.remove(&VtepKey { vni: A, ip: PEER }).unwrap();
    is_refused(lab, &from_peer().wrap(&hello()), DropReason::UnknownVtep);
}

fn vtep_of_another_network(lab: &mut Lab) {
    let frame = Tunnel { vni: B, ..from_peer() }.wrap(&hello());
    is_refused(lab, &frame, DropReason::UnknownVtep);
}

fn reserved_bits_pass_uncounted(lab: &mut Lab) {
    // tcx counts these frames.
    passes(lab, &Tunnel { flags: 0xff, reserved2: 7, ..from_peer() }.wrap(&hello()));
}

fn full_sized_frames(lab: &mut Lab) {
    let inner = V4::udp(&FAR, &ONE, (1, 2), &payload(1422)).frame();
    passes(lab, &from_peer().wrap(&inner));
    let frame = Tunnel { src: STRANGER, ..from_peer() }.wrap(&inner);
    is_refused(lab, &frame, DropReason::UnknownVtep);
}
