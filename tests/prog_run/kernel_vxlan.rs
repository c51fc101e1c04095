//! Frames between the attached programs and a vxlan device of the kernel. Each frame comes out on
//! the other side as it was sent: what the programs write is what the kernel reads, and the
//! reverse.
//!
//! `CULVERT_TEST_SEED` repeats the frames. With `CULVERT_TEST_FULL` there are a million.

use std::net::Ipv4Addr;

use culvert_tests::{
    chaos::{self, Random},
    packet::{Arp, Host, V4, V6, ethernet, payload},
};

use crate::{
    compare::same,
    interfaces::{Interface, PacketSocket},
    lab::{self, ip, mac},
    live::Live,
    world::{A, FAR, ONE, OUR_VTEP, PEER, PEER_MAC, UPLINK_MAC},
};

/// Index of the vxlan device, in the namespace of the far ends.
const VXLAN: u32 = 150;
/// Frames in a row in one direction. Few enough for the queues.
const BATCH: usize = 32;
/// Rounds of a batch in each direction: 12,800 frames.
const ROUNDS: u32 = 200;
/// 1,000,000 frames.
const MANY_ROUNDS: u32 = 15_625;
const _: () = assert!(2 * BATCH as u32 * MANY_ROUNDS >= 1_000_000);

#[test]
#[ignore = "needs root"]
fn a_kernel_vxlan_device_and_the_programs_read_each_other() {
    lab::alone(|lab| {
        lab.in_far_namespace(|| ip(&device()));
        let device = lab.in_far_namespace(|| PacketSocket::receiving(VXLAN));
        let live = Live::attach(lab);
        let lab = &mut *live.lab;
        let mut random = Random::seeded();
        let mut compared = 0;
        let rounds = chaos::rounds(ROUNDS, MANY_ROUNDS);
        for round in chaos::each("frames of a vxlan device", rounds) {
            let sent = batch(&mut random, &ONE, &FAR);
            for frame in &sent {
                lab.wire(Interface::A1).far.send(frame);
            }
            let came = sent.iter().map(|_| device.receive()).collect();
            compared += compare(&format!("round {round}, to the device"), came, sent);
            // The outer frames, which the kernel has taken as well.
            lab.drain();

            let sent = batch(&mut random, &FAR, &ONE);
            for frame in &sent {
                device.send(frame);
            }
            // The markers of the second look queue behind what the programs have sent.
            let came: Vec<_> = lab.drain().into_iter().chain(lab.drain()).collect();
            assert!(came.iter().all(|(interface, _)| *interface == Interface::A1), "round {round}");
            let came = came.into_iter().map(|(_, frame)| frame).collect();
            compared += compare(&format!("round {round}, from the device"), came, sent);
        }
        chaos::say(&format!("frames of a vxlan device: {compared} were compared"));
    });
}

/// Compares frames in any order: GRO may deliver a frame after the next ones. Returns their number.
fn compare(what: &str, mut came: Vec<Vec<u8>>, mut sent: Vec<Vec<u8>>) -> usize {
    assert_eq!(came.len(), sent.len(), "{what}: frames");
    came.sort();
    sent.sort();
    for (came, sent) in came.iter().zip(&sent) {
        same(what, came, sent);
    }
    sent.len()
}

/// The vxlan device, and what it needs: the address of the VTEP, and the MAC of this host.
fn device() -> String {
    let [peer, us] = [PEER, OUR_VTEP].map(Ipv4Addr::from);
    let (peer_mac, our_mac) = (mac(PEER_MAC), mac(UPLINK_MAC));
    format!(
        "link set far-uplink address {peer_mac}\n\
         address add {peer}/24 dev far-uplink\n\
         neigh replace {us} lladdr {our_mac} dev far-uplink nud permanent\n\
         link add vx index {VXLAN} type vxlan id {A} local {peer} remote {us} dstport 4789 \
         dev far-uplink nolearning\n\
         link set vx up\n"
    )
}

fn batch(random: &mut Random, from: &Host, to: &Host) -> Vec<Vec<u8>> {
    (0..BATCH).map(|_| frame(random, from, to)).collect()
}

/// A frame that an endpoint may send.
fn frame(random: &mut Random, from: &Host, to: &Host) -> Vec<u8> {
    let len = random.below(1300) as usize;
    let content = payload(len);
    let ports = (1 + random.below(4000) as u16, 1 + random.below(4000) as u16);
    let tos = random.below(256) as u8;
    match random.below(10) {
        0 | 1 => V4 { tos, ..V4::udp(from, to, ports, &content) }.frame(),
        2 => V4 { tos, ..V4::tcp(from, to, ports, &content) }.frame(),
        3 => V4 { tos, ..V4::icmp(from, to, 8, 0, [0, 7, 0, 1], &content) }.frame(),
        4 => V4 { options: vec![1; 12], ..V4::udp(from, to, ports, &content) }.frame(),
        5 => V4 { df: false, mf: true, offset: 9, l4: payload(len & !7), ..V4::new(from, to) }
            .frame(),
        6 => V6 { tclass: tos, ..V6::udp(from, to, ports, &content) }.frame(),
        7 => V6 { tclass: tos, ..V6::tcp(from, to, ports, &content) }.frame(),
        8 => Arp::reply(from, to).frame(),
        _ => ethernet(to.mac, from.mac, 0x88b5, &payload(46 + len)),
    }
}
