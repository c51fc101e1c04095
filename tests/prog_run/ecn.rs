//! Congestion notification at decapsulation (RFC 6040 §4.2, figure 4).

use culvert_common::abi::{DropReason, Note};
use culvert_tests::packet::{Arp, Tunnel, V4, V6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{Run, copy, note},
    world::{FAR, ONE, from_peer},
};

cases!(
    inner_not_ect,
    inner_ect0,
    inner_ect1,
    inner_ce,
    ipv6_inner_not_ect,
    ipv6_inner_ect0,
    ipv6_inner_ect1,
    ipv6_inner_ce,
    marked_with_the_sum_of_the_card,
    outer_dscp_is_discarded,
    not_ip_knows_no_congestion,
    broadcast_is_marked,
);

const NOT_ECT: u8 = 0b00;
const ECT1: u8 = 0b01;
const ECT0: u8 = 0b10;
const CE: u8 = 0b11;

/// The inner DSCP, AF41, which decapsulation does not change.
const DSCP: u8 = 34 << 2;

/// The figure's row for one inner field: outer field, resulting field (`None`: dropped).
type Row = [(u8, Option<u8>); 4];

fn v4(ecn: u8) -> Vec<u8> {
    V4 { tos: DSCP | ecn, ..V4::tcp(&FAR, &ONE, (80, 2000), &payload(101)) }.frame()
}

fn v6(ecn: u8) -> Vec<u8> {
    V6 { tclass: DSCP | ecn, ..V6::tcp(&FAR, &ONE, (80, 2000), &payload(101)) }.frame()
}

#[track_caller]
fn follows(lab: &mut Lab, packet: fn(u8) -> Vec<u8>, inner: u8, row: Row) {
    for (outer, result) in row {
        for summed in [false, true] {
            let frame = Tunnel { tos: outer, ..from_peer() }.wrap(&packet(inner));
            let run = lab.at_underlay(&frame);
            let run = if summed { run.summed() } else { run };
            match result {
                None => run.drops(DropReason::EcnInvalid),
                Some(result) if result == inner => run.delivers(&packet(inner), &[]),
                Some(result) => marks(run, &packet(result)),
            }
        }
    }
}

/// The frame is delivered as `frame`, and counted as marked.
#[track_caller]
fn marks(run: Run<'_>, frame: &[u8]) {
    run.delivers(frame, &[note(Note::EcnMarked).bytes(frame.len())]);
}

const ROW_NOT_ECT: Row =
    [(NOT_ECT, Some(NOT_ECT)), (ECT0, Some(NOT_ECT)), (ECT1, Some(NOT_ECT)), (CE, None)];
const ROW_ECT0: Row =
    [(NOT_ECT, Some(ECT0)), (ECT0, Some(ECT0)), (ECT1, Some(ECT1)), (CE, Some(CE))];
const ROW_ECT1: Row =
    [(NOT_ECT, Some(ECT1)), (ECT0, Some(ECT1)), (ECT1, Some(ECT1)), (CE, Some(CE))];
const ROW_CE: Row = [(NOT_ECT, Some(CE)), (ECT0, Some(CE)), (ECT1, Some(CE)), (CE, Some(CE))];

fn inner_not_ect(lab: &mut Lab) {
    follows(lab, v4, NOT_ECT, ROW_NOT_ECT);
}

fn inner_ect0(lab: &mut Lab) {
    follows(lab, v4, ECT0, ROW_ECT0);
}

fn inner_ect1(lab: &mut Lab) {
    follows(lab, v4, ECT1, ROW_ECT1);
}

fn inner_ce(lab: &mut Lab) {
    follows(lab, v4, CE, ROW_CE);
}

fn ipv6_inner_not_ect(lab: &mut Lab) {
    follows(lab, v6, NOT_ECT, ROW_NOT_ECT);
}

fn ipv6_inner_ect0(lab: &mut Lab) {
    follows(lab, v6, ECT0, ROW_ECT0);
}

fn ipv6_inner_ect1(lab: &mut Lab) {
    follows(lab, v6, ECT1, ROW_ECT1);
}

fn ipv6_inner_ce(lab: &mut Lab) {
    follows(lab, v6, CE, ROW_CE);
}

fn marked_with_the_sum_of_the_card(lab: &mut Lab) {
    // Every inner DSCP: a wrong incremental checksum shows in some of them.
    for dscp in 0..64 {
        let packet = |ecn| V4 { tos: dscp << 2 | ecn, ..V4::udp(&FAR, &ONE, (1, 2), b"odd") };
        let frame = Tunnel { tos: CE, ..from_peer() }.wrap(&packet(ECT0).frame());
        marks(lab.at_underlay(&frame).summed(), &packet(CE).frame());
    }
}

fn outer_dscp_is_discarded(lab: &mut Lab) {
    // RFC 2983 §3: the pipe model at the exit.
    let frame = Tunnel { tos: 46 << 2 | CE, ..from_peer() }.wrap(&v4(ECT1));
    marks(lab.at_underlay(&frame), &v4(CE));
    let frame = Tunnel { tos: 46 << 2, ..from_peer() }.wrap(&v6(ECT1));
    lab.at_underlay(&frame).delivers(&v6(ECT1), &[]);
}

fn not_ip_knows_no_congestion(lab: &mut Lab) {
    let inner = Arp::reply(&FAR, &ONE).frame();
    let frame = Tunnel { tos: CE, ..from_peer() }.wrap(&inner);
    lab.at_underlay(&frame).delivers(&inner, &[]);
}

fn broadcast_is_marked(lab: &mut Lab) {
    let all = |ecn| V4 { eth_dst: [0xff; 6], tos: ecn, ..V4::udp(&FAR, &ONE, (1, 2), b"all") };
    let frame = Tunnel { tos: CE, ..from_peer() }.wrap(&all(ECT0).frame());
    let marked = all(CE).frame();
    let copies = [copy(Interface::A1, &marked), copy(Interface::A2, &marked)];
    let notes = [
        note(Note::EcnMarked).bytes(marked.len()),
        note(Note::FloodLocalCopy).times(2).bytes(2 * marked.len()),
    ];
    lab.at_underlay(&frame).floods(&copies, &notes);
}
