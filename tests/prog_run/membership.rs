//! Reports of the members of multicast groups (IGMP and MLD): they go to queriers alone. Everything
//! else that is sent to a group is flooded.

use culvert_common::abi::{Action, Note, QuerierKey, VtepId};
use culvert_tests::packet::{Host, V4, V6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{Left, copy, note, tunnelled},
    world::{A, FAR, ONE, TWO, from_peer, host, to_peer},
};

cases!(
    reports_are_absorbed,
    reports_from_the_tunnel_are_absorbed,
    a_port_that_asks_gets_reports,
    a_vtep_that_asks_gets_reports,
    queries_of_both_families_count,
    pim_counts_as_a_query,
    other_networks_do_not_ask,
    reports_of_who_asks_go_nowhere,
    who_is_forgotten_gets_nothing,
    reports_to_no_group_are_flooded,
    everything_else_is_flooded,
);

/// A group of IPv4, as a destination.
const fn group(v4: [u8; 4]) -> Host {
    Host { mac: [1, 0, 0x5e, v4[1] & 0x7f, v4[2], v4[3]], v4, v6: [0; 16] }
}

/// An IGMP message with a router alert (RFC 3376 §4).
fn igmp(kind: u8, from: &Host, to: [u8; 4]) -> Vec<u8> {
    let l4 = [&[kind, 0, 0, 0], [239, 1, 2, 3].as_slice()].concat();
    let options = vec![0x94, 4, 0, 0];
    V4 { protocol: 2, ttl: 1, options, l4, ..V4::new(from, &group(to)) }.frame()
}

/// An address of link scope, `ff02::`.
fn link_scope(last: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = last;
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// An MLD message with a router alert (RFC 3810 §5).
fn mld(kind: u8, from: &Host, last: [u8; 4]) -> Vec<u8> {
    let to = link_scope(last);
    let [a, b, c, d] = last;
    let eth = (from.mac, [0x33, 0x33, a, b, c, d]);
    let message = V6::icmp(eth, (from.link_local(), to), (kind, 0), [0; 4], &[0xff; 16]);
    V6 { hop_limit: 1, ..message }.extended(0, &[0, 5, 2, 0, 0, 1, 0]).frame()
}

/// Each kind of report, and of message of a host that leaves a group.
fn reports(from: &Host) -> Vec<Vec<u8>> {
    vec![
        igmp(0x12, from, [239, 1, 2, 3]),
        igmp(0x16, from, [239, 1, 2, 3]),
        igmp(0x17, from, [224, 0, 0, 2]),
        igmp(0x22, from, [224, 0, 0, 22]),
        mld(131, from, [0xff, 0, 0, 2]),
        mld(132, from, [0, 0, 0, 2]),
        mld(143, from, [0, 0, 0, 0x16]),
    ]
}

fn igmp_query(from: &Host) -> Vec<u8> {
    igmp(0x11, from, [224, 0, 0, 1])
}

fn mld_query(from: &Host) -> Vec<u8> {
    mld(130, from, [0, 0, 0, 1])
}

/// The frame is absorbed, because the network has no querier.
#[track_caller]
fn is_absorbed(lab: &mut Lab, interface: Interface, frame: &[u8]) {
    lab.at_container(interface, frame).absorbs(&[note(Note::ReportAbsorbed)]);
}

/// The frame of `A1` goes to all other endpoints and VTEPs of the network.
#[track_caller]
fn is_flooded(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).reaches_everyone(&[]);
}

/// `A2` sends a query. All other endpoints and VTEPs of the network get it.
#[track_caller]
fn a2_asks(lab: &mut Lab, query: &[u8]) {
    lab.at_container(Interface::A2, query).reaches_everyone(&[]);
}

/// An endpoint behind the first VTEP sends a query. Both local endpoints get it.
#[track_caller]
fn far_asks(lab: &mut Lab, query: &[u8]) {
    let copies = [copy(Interface::A1, query), copy(Interface::A2, query)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * query.len())];
    lab.at_underlay(&from_peer().wrap(query)).floods(&copies, &notes);
}

/// The report of `A1` goes to `A2` alone.
#[track_caller]
fn reaches_a2(lab: &mut Lab, report: &[u8]) {
    let notes = [note(Note::FloodLocalCopy)];
    lab.at_container(Interface::A1, report).floods(&[copy(Interface::A2, report)], &notes);
}

fn reports_are_absorbed(lab: &mut Lab) {
    for report in reports(&ONE) {
        is_absorbed(lab, Interface::A1, &report);
    }
}

fn reports_from_the_tunnel_are_absorbed(lab: &mut Lab) {
    for report in reports(&FAR) {
        let notes = [note(Note::ReportAbsorbed).bytes(report.len())];
        let run = lab.at_underlay(&from_peer().wrap(&report));
        run.goes_nowhere(Action::Absorb, Left::Spent, &notes);
    }
}

fn a_port_that_asks_gets_reports(lab: &mut Lab) {
    a2_asks(lab, &igmp_query(&TWO));
    for report in reports(&ONE) {
        reaches_a2(lab, &report);
    }
    // Reports from the tunnel reach it as well.
    for report in reports(&FAR) {
        let notes = [note(Note::FloodLocalCopy).bytes(report.len())];
        let run = lab.at_underlay(&from_peer().wrap(&report));
        run.floods(&[copy(Interface::A2, &report)], &notes);
    }
}

fn a_vtep_that_asks_gets_reports(lab: &mut Lab) {
    far_asks(lab, &mld_query(&FAR));
    for report in reports(&ONE) {
        let copies = [tunnelled(to_peer().wrap(&report))];
        let run = lab.at_container(Interface::A1, &report);
        run.floods(&copies, &[note(Note::FloodRemoteCopy)]);
    }
    // A report from the tunnel is absorbed: no local endpoint is a querier.
    let report = igmp(0x22, &FAR, [224, 0, 0, 22]);
    lab.at_underlay(&from_peer().wrap(&report)).goes_nowhere(Action::Absorb, Left::Spent, &[]);
    // With two queriers, each gets a copy.
    a2_asks(lab, &mld_query(&TWO));
    let report = mld(143, &ONE, [0, 0, 0, 0x16]);
    let copies = [copy(Interface::A2, &report), tunnelled(to_peer().wrap(&report))];
    let notes = [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy)];
    lab.at_container(Interface::A1, &report).floods(&copies, &notes);
}

/// A router may send queries of one family alone. A switch behind it that forwards by group needs
/// the reports of both families.
fn queries_of_both_families_count(lab: &mut Lab) {
    let report = mld(143, &ONE, [0, 0, 0, 0x16]);
    is_absorbed(lab, Interface::A1, &report);
    a2_asks(lab, &mld_query(&TWO));
    reaches_a2(lab, &report);
    reaches_a2(lab, &igmp(0x16, &ONE, [239, 1, 2, 3]));
}

/// Of several routers only one sends queries. The others send PIM (RFC 4541 §2.1.1).
fn pim_counts_as_a_query(lab: &mut Lab) {
    let to = group([224, 0, 0, 13]);
    let hello = V4 { protocol: 103, ttl: 1, l4: payload(26), ..V4::new(&TWO, &to) };
    a2_asks(lab, &hello.frame());
    reaches_a2(lab, &igmp(0x22, &ONE, [224, 0, 0, 22]));
}

fn other_networks_do_not_ask(lab: &mut Lab) {
    a2_asks(lab, &igmp_query(&TWO));
    is_absorbed(lab, Interface::B1, &igmp(0x22, &ONE, [224, 0, 0, 22]));
}

/// A querier that is a member of groups sends reports, too. None comes back to it.
fn reports_of_who_asks_go_nowhere(lab: &mut Lab) {
    a2_asks(lab, &igmp_query(&TWO));
    let report = igmp(0x22, &TWO, [224, 0, 0, 22]);
    lab.at_container(Interface::A2, &report).goes_nowhere(Action::Absorb, Left::Spent, &[]);
}

/// The LRU map of the queriers was full, and the kernel has removed an entry.
fn who_is_forgotten_gets_nothing(lab: &mut Lab) {
    a2_asks(lab, &igmp_query(&TWO));
    let report = igmp(0x22, &ONE, [224, 0, 0, 22]);
    reaches_a2(lab, &report);
    let asked = QuerierKey { vni: A, ifindex: Interface::A2.ifindex(), vtep: VtepId::NONE };
    let anybody = QuerierKey { ifindex: 0, ..asked };
    let mut keys = lab.queriers.keys();
    keys.sort_unstable();
    assert_eq!(keys, [anybody, asked]);
    lab.queriers.remove(asked);
    lab.at_container(Interface::A1, &report).goes_nowhere(Action::Absorb, Left::Spent, &[]);
    lab.queriers.remove(anybody);
    is_absorbed(lab, Interface::A1, &report);
}

/// The MAC decides whether a frame is for a group, from a container and from the tunnel.
fn reports_to_no_group_are_flooded(lab: &mut Lab) {
    let report = |from: &Host| {
        let to = Host { mac: [0xff; 6], ..group([224, 0, 0, 22]) };
        let l4 = vec![0x22, 0, 0, 0, 239, 1, 2, 3];
        V4 { protocol: 2, ttl: 1, l4, ..V4::new(from, &to) }.frame()
    };
    is_flooded(lab, &report(&ONE));
    let frame = report(&FAR);
    let copies = [copy(Interface::A1, &frame), copy(Interface::A2, &frame)];
    let notes = [note(Note::FloodLocalCopy).times(2).bytes(2 * frame.len())];
    lab.at_underlay(&from_peer().wrap(&frame)).floods(&copies, &notes);
}

/// Groups of link scope too: nobody has to ask for them, and nobody reports their members.
fn everything_else_is_flooded(lab: &mut Lab) {
    let vrrp = group([224, 0, 0, 18]);
    is_flooded(lab, &V4 { protocol: 112, ..V4::udp(&ONE, &vrrp, (1, 2), &payload(20)) }.frame());
    let mdns = group([224, 0, 0, 251]);
    is_flooded(lab, &V4::udp(&ONE, &mdns, (5353, 5353), &payload(60)).frame());
    // A solicitation for an address that nobody has.
    let unknown = host(77);
    let solicited = link_scope([0xff, 0, 0, 77]);
    let eth = (ONE.mac, [0x33, 0x33, 0xff, 0, 0, 77]);
    let source = [&[1, 1], ONE.mac.as_slice()].concat();
    let target = [unknown.v6.as_slice(), &source].concat();
    let solicitation = V6::icmp(eth, (ONE.v6, solicited), (135, 0), [0; 4], &target);
    is_flooded(lab, &solicitation.frame());
    // Not of a report: another type (DVMRP), a later fragment, and one that ends too early.
    is_flooded(lab, &igmp(0x13, &ONE, [224, 0, 0, 4]));
    let to = group([224, 0, 0, 22]);
    let later = V4 { protocol: 2, offset: 9, df: false, l4: vec![0x22; 8], ..V4::new(&ONE, &to) };
    is_flooded(lab, &later.frame());
    is_flooded(lab, &V4 { protocol: 2, l4: vec![], ..V4::new(&ONE, &to) }.frame());
}
