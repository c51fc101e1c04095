//! Packets of the host itself to containers, through a network's gateway device.

use culvert::datapath::Table as _;
use culvert_common::abi::{DropReason, FdbKey};
use culvert_tests::packet::{Arp, Host, V4, V6, ethernet, payload};

use crate::{
    interfaces::GATEWAY_A,
    lab::Lab,
    world::{A, FAR, FARTHER, GATEWAY, MTU, NOBODY, ONE, PEER, TWO, to_peer, to_peer2},
};

cases!(
    to_a_local_container,
    to_a_remote_container,
    to_a_remote_container_behind_a_router,
    whatever_the_kernel_wrote_for_macs,
    with_options,
    to_nobody,
    to_a_neighbour_of_no_port,
    to_a_group,
    not_ipv4,
    unknown_gateway,
    unknown_network,
    no_underlay_path,
    too_big,
    gso_is_judged_by_its_segments,
    local_delivery_has_no_limit,
);

/// A datagram as the kernel gives it to the gateway device: to the MAC of the device itself.
fn datagram(dst: &Host) -> V4 {
    V4 { eth_dst: GATEWAY.mac, ..V4::udp(&GATEWAY, dst, (1000, 2000), &payload(77)) }
}

/// The datagram as it is on the network.
fn addressed(packet: &V4, dst: &Host) -> Vec<u8> {
    V4 { eth_dst: dst.mac, eth_src: GATEWAY.mac, ..packet.clone() }.frame()
}

fn to_a_local_container(lab: &mut Lab) {
    for dst in [ONE, TWO] {
        let packet = datagram(&dst);
        lab.at_host(&packet.frame()).delivers(&addressed(&packet, &dst), &[]);
    }
}

fn to_a_remote_container(lab: &mut Lab) {
    let packet = datagram(&FAR);
    let wanted = to_peer().wrap(&addressed(&packet, &FAR));
    lab.at_host(&packet.frame()).encaps(wanted, &[]);
}

fn to_a_remote_container_behind_a_router(lab: &mut Lab) {
    let packet = V4::tcp(&GATEWAY, &FARTHER, (1000, 80), &payload(500));
    let wanted = to_peer2().wrap(&addressed(&packet, &FARTHER));
    lab.at_host(&packet.frame()).encaps(wanted, &[]);
}

fn whatever_the_kernel_wrote_for_macs(lab: &mut Lab) {
    for (eth_dst, eth_src) in [([0; 6], [0; 6]), ([0xff; 6], NOBODY.mac), (TWO.mac, ONE.mac)] {
        let packet = V4 { eth_dst, eth_src, ..datagram(&ONE) };
        lab.at_host(&packet.frame()).delivers(&addressed(&packet, &ONE), &[]);
    }
}

fn with_options(lab: &mut Lab) {
    let packet = V4 { options: vec![1; 12], ..datagram(&ONE) };
    lab.at_host(&packet.frame()).delivers(&addressed(&packet, &ONE), &[]);
    let packet = V4 { options: vec![1; 12], ..datagram(&FAR) };
    let wanted = to_peer().wrap(&addressed(&packet, &FAR));
    lab.at_host(&packet.frame()).encaps(wanted, &[]);
}

fn to_nobody(lab: &mut Lab) {
    let frame = datagram(&NOBODY).frame();
    lab.at_host(&frame).drops(DropReason::UnknownDestination);
}

fn to_a_neighbour_of_no_port(lab: &mut Lab) {
    // The neighbour map has the address, but the FDB does not have the MAC.
    lab.tables.fdb.remove(&FdbKey::new(A, ONE.mac)).unwrap();
    lab.at_host(&datagram(&ONE).frame()).drops(DropReason::UnknownDestination);
}

fn to_a_group(lab: &mut Lab) {
    for v4 in [[224, 0, 0, 22], [239, 255, 255, 250], [255; 4]] {
        let frame = datagram(&Host { v4, ..ONE }).frame();
        lab.at_host(&frame).drops(DropReason::NoReceiver);
    }
}

fn not_ipv4(lab: &mut Lab) {
    for frame in [
        V6::udp(&GATEWAY, &ONE, (1, 2), b"x").frame(),
        Arp::request(&GATEWAY, ONE.v4).frame(),
        ethernet(ONE.mac, GATEWAY.mac, 0x88b5, &payload(50)),
    ] {
        lab.at_host(&frame).drops(DropReason::Unroutable);
    }
}

fn unknown_gateway(lab: &mut Lab) {
    lab.tables.gateways.remove(&GATEWAY_A).unwrap();
    lab.at_host(&datagram(&ONE).frame()).drops(DropReason::UnknownGateway);
}

fn unknown_network(lab: &mut Lab) {
    lab.tables.networks.remove(&A).unwrap();
    lab.at_host(&datagram(&ONE).frame()).drops(DropReason::UnknownNetwork);
}

fn no_underlay_path(lab: &mut Lab) {
    lab.tables.underlay.remove(&PEER).unwrap();
    lab.at_host(&datagram(&FAR).frame()).drops(DropReason::NoUnderlayPath);
}

fn too_big(lab: &mut Lab) {
    let largest = usize::from(MTU) - 28;
    let make = |len| V4::udp(&GATEWAY, &FAR, (1, 2), &payload(len));
    let wanted = to_peer().wrap(&addressed(&make(largest), &FAR));
    lab.at_host(&make(largest).frame()).encaps(wanted, &[]);
    lab.at_host(&make(largest + 1).frame()).drops(DropReason::PacketTooBig);
}

fn gso_is_judged_by_its_segments(lab: &mut Lab) {
    let frame = V4::tcp(&GATEWAY, &FAR, (1, 2), &payload(3000)).frame();
    let largest = u32::from(MTU) - 52;
    lab.at_host(&frame).gso(largest + 1).drops(DropReason::PacketTooBig);
    let frame = V4::udp(&GATEWAY, &FAR, (1, 2), &payload(3000)).frame();
    let largest = u32::from(MTU) - 28;
    lab.at_host(&frame).gso(largest + 1).drops(DropReason::PacketTooBig);
}

fn local_delivery_has_no_limit(lab: &mut Lab) {
    let packet = V4::udp(&GATEWAY, &ONE, (1, 2), &payload(3000));
    lab.at_host(&packet.frame()).delivers(&addressed(&packet, &ONE), &[]);
}
