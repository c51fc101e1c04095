//! Neighbour discovery of a container: suppression, duplicate address
//! detection, spoofing, disguises (RFC 4861, RFC 4862).

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, NeighKey};
use culvert_tests::packet::{Host, V6};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::SHORTEST_V6,
    world::{A, FAR, NOBODY, ONE, TWO, any_source, change_endpoint, learning, to_peer},
};

cases!(
    known_is_answered,
    link_local_is_answered,
    asked_from_link_local,
    padded_solicitation_is_answered,
    solicitation_without_option_is_answered,
    solicitation_with_a_nonce_is_answered,
    unicast_solicitation_is_answered,
    unknown_is_flooded,
    duplicate_detection_of_its_own_address_is_absorbed,
    duplicate_detection_of_a_taken_address_is_answered,
    duplicate_detection_is_flooded_where_hosts_learn,
    unsolicited_advertisement_is_absorbed,
    unsolicited_advertisement_is_flooded_where_hosts_learn,
    advertisement_is_forwarded,
    spoofed_source,
    spoofed_source_option,
    spoofed_advertisement,
    spoofed_target_option,
    spoofed_router_option,
    second_option,
    long_option,
    router_advertisement,
    redirect,
    router_solicitation_is_flooded,
    router_advertisement_where_any_source_may_send,
    low_hop_limit,
    wrong_code,
    target_multicast_or_unspecified,
    duplicate_detection_to_a_single_host,
    duplicate_detection_with_an_option,
    solicited_advertisement_to_all,
    truncated,
    option_of_no_length,
    disguised_by_hop_by_hop,
    disguised_by_a_fragment_header,
    hidden_in_the_second_fragment,
    first_fragments_with_all_headers_cross,
    hidden_behind_many_headers,
    echo_is_forwarded,
    multicast_listener_report_is_accepted,
);

pub(crate) const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const ALL_ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

const SOLICIT: u8 = 135;
pub(crate) const ADVERT: u8 = 136;
pub(crate) const SOURCE_OPTION: u8 = 1;
pub(crate) const TARGET_OPTION: u8 = 2;
const ROUTER: u8 = 0x80;
pub(crate) const SOLICITED: u8 = 0x40;
pub(crate) const OVERRIDE: u8 = 0x20;

/// Solicited-node group of an address, `ff02::1:ffXX:XXXX` (RFC 4291 §2.7.1).
const fn solicited_node(ip: [u8; 16]) -> [u8; 16] {
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ip[13], ip[14], ip[15]]
}

/// MAC of a multicast group (RFC 2464 §7).
pub(crate) const fn group_mac(ip: [u8; 16]) -> [u8; 6] {
    [0x33, 0x33, ip[12], ip[13], ip[14], ip[15]]
}

pub(crate) fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], mac.as_slice()].concat()
}

/// A neighbour message; what follows `target` is `options`.
pub(crate) fn message(
    eth: ([u8; 6], [u8; 6]),
    ip: ([u8; 16], [u8; 16]),
    (kind, flags): (u8, u8),
    target: [u8; 16],
    options: &[u8],
) -> V6 {
    let body = [target.as_slice(), options].concat();
    V6::icmp(eth, ip, (kind, 0), [flags, 0, 0, 0], &body)
}

/// A multicast solicitation of `from` for `target`.
pub(crate) fn solicit(from: &Host, target: [u8; 16]) -> V6 {
    let group = solicited_node(target);
    let option = link_layer(SOURCE_OPTION, from.mac);
    message((from.mac, group_mac(group)), (from.v6, group), (SOLICIT, 0), target, &option)
}

/// A solicitation of `host` that detects duplicates of `target` (RFC 4862 §5.4.2).
pub(crate) fn detect(host: &Host, target: [u8; 16]) -> V6 {
    let group = solicited_node(target);
    message((host.mac, group_mac(group)), ([0; 16], group), (SOLICIT, 0), target, &[])
}

/// A solicited advertisement of `from` to `to`.
pub(crate) fn advert(from: &Host, to: &Host) -> V6 {
    let option = link_layer(TARGET_OPTION, from.mac);
    let flags = SOLICITED | OVERRIDE;
    message((from.mac, to.mac), (from.v6, to.v6), (ADVERT, flags), from.v6, &option)
}

/// An advertisement of `from` to all nodes.
pub(crate) fn announce(from: &Host) -> V6 {
    let option = link_layer(TARGET_OPTION, from.mac);
    let eth = (from.mac, group_mac(ALL_NODES));
    message(eth, (from.v6, ALL_NODES), (ADVERT, OVERRIDE), from.v6, &option)
}

/// The program's answer to `asker`, which sends from `asker_ip`: `target` is at `mac`.
fn answer(asker: &Host, asker_ip: [u8; 16], target: [u8; 16], mac: [u8; 6]) -> Vec<u8> {
    let option = link_layer(TARGET_OPTION, mac);
    let flags = SOLICITED | OVERRIDE;
    message((mac, asker.mac), (target, asker_ip), (ADVERT, flags), target, &option).frame()
}

#[track_caller]
fn is_answered(lab: &mut Lab, question: &[u8], asker_ip: [u8; 16], target: [u8; 16]) {
    let answer = answer(&ONE, asker_ip, target, FAR.mac);
    lab.at_container(Interface::A1, question).answers(Action::NdReply, answer);
}

#[track_caller]
fn is_flooded(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).reaches_everyone(&[]);
}

#[track_caller]
fn is_absorbed(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).absorbs(&[]);
}

#[track_caller]
fn is_refused(lab: &mut Lab, packet: &V6, reason: DropReason) {
    lab.at_container(Interface::A1, &packet.frame()).drops(reason);
}

#[track_caller]
fn crosses(lab: &mut Lab, packet: &V6) {
    let frame = packet.frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn known_is_answered(lab: &mut Lab) {
    is_answered(lab, &solicit(&ONE, FAR.v6).frame(), ONE.v6, FAR.v6);
}

fn link_local_is_answered(lab: &mut Lab) {
    let target = FAR.link_local();
    is_answered(lab, &solicit(&ONE, target).frame(), ONE.v6, target);
}

fn asked_from_link_local(lab: &mut Lab) {
    let asker = Host { v6: ONE.link_local(), ..ONE };
    is_answered(lab, &solicit(&asker, FAR.v6).frame(), asker.v6, FAR.v6);
}

fn padded_solicitation_is_answered(lab: &mut Lab) {
    let mut question = solicit(&ONE, FAR.v6).frame();
    question.extend([0; 40]);
    is_answered(lab, &question, ONE.v6, FAR.v6);
}

fn solicitation_without_option_is_answered(lab: &mut Lab) {
    // The solicitation is shorter than the answer.
    let group = solicited_node(FAR.v6);
    let eth = (ONE.mac, group_mac(group));
    let question = message(eth, (ONE.v6, group), (SOLICIT, 0), FAR.v6, &[]);
    is_answered(lab, &question.frame(), ONE.v6, FAR.v6);
}

fn solicitation_with_a_nonce_is_answered(lab: &mut Lab) {
    // RFC 7527: a nonce, which is option 14 (RFC 3971 §5.3.2).
    let group = solicited_node(FAR.v6);
    let eth = (ONE.mac, group_mac(group));
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let question = message(eth, ([0; 16], group), (SOLICIT, 0), FAR.v6, &nonce);
    let option = link_layer(TARGET_OPTION, FAR.mac);
    let answer = message(
        (FAR.mac, group_mac(ALL_NODES)),
        (FAR.v6, ALL_NODES),
        (ADVERT, OVERRIDE),
        FAR.v6,
        &option,
    )
    .frame();
    lab.at_container(Interface::A1, &question.frame()).answers(Action::NdReply, answer);
}

fn unicast_solicitation_is_answered(lab: &mut Lab) {
    // Unreachability detection (RFC 4861 §7.3.3).
    let option = link_layer(SOURCE_OPTION, ONE.mac);
    let question = message((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (SOLICIT, 0), FAR.v6, &option);
    is_answered(lab, &question.frame(), ONE.v6, FAR.v6);
}

fn unknown_is_flooded(lab: &mut Lab) {
    is_flooded(lab, &solicit(&ONE, NOBODY.v6).frame());
    lab.tables.neighbours.remove(&NeighKey::v6(A, FAR.v6)).unwrap();
    is_flooded(lab, &solicit(&ONE, FAR.v6).frame());
}

fn duplicate_detection_of_its_own_address_is_absorbed(lab: &mut Lab) {
    is_absorbed(lab, &detect(&ONE, ONE.v6).frame());
    is_absorbed(lab, &detect(&ONE, ONE.link_local()).frame());
}

fn duplicate_detection_of_a_taken_address_is_answered(lab: &mut Lab) {
    // RFC 4861 §7.2.4: the answer is unsolicited, and to all nodes.
    let option = link_layer(TARGET_OPTION, FAR.mac);
    let answer = message(
        (FAR.mac, group_mac(ALL_NODES)),
        (FAR.v6, ALL_NODES),
        (ADVERT, OVERRIDE),
        FAR.v6,
        &option,
    )
    .frame();
    let question = detect(&ONE, FAR.v6).frame();
    lab.at_container(Interface::A1, &question).answers(Action::NdReply, answer);
}

fn duplicate_detection_is_flooded_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    is_flooded(lab, &detect(&ONE, ONE.v6).frame());
}

fn unsolicited_advertisement_is_absorbed(lab: &mut Lab) {
    is_absorbed(lab, &announce(&ONE).frame());
}

fn unsolicited_advertisement_is_flooded_where_hosts_learn(lab: &mut Lab) {
    learning(&lab.tables);
    is_flooded(lab, &announce(&ONE).frame());
}

fn advertisement_is_forwarded(lab: &mut Lab) {
    crosses(lab, &advert(&ONE, &FAR));
    let frame = advert(&ONE, &TWO).frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
}

fn spoofed_source(lab: &mut Lab) {
    let asker = Host { v6: TWO.v6, ..ONE };
    is_refused(lab, &solicit(&asker, FAR.v6), DropReason::SpoofedIp);
    is_refused(lab, &advert(&asker, &FAR), DropReason::SpoofedIp);
}

fn spoofed_source_option(lab: &mut Lab) {
    let group = solicited_node(FAR.v6);
    let option = link_layer(SOURCE_OPTION, TWO.mac);
    let eth = (ONE.mac, group_mac(group));
    let question = message(eth, (ONE.v6, group), (SOLICIT, 0), FAR.v6, &option);
    is_refused(lab, &question, DropReason::SpoofedNd);
}

fn spoofed_advertisement(lab: &mut Lab) {
    for target in [TWO.v6, FAR.v6, NOBODY.v6, TWO.link_local()] {
        let option = link_layer(TARGET_OPTION, ONE.mac);
        let packet = message(
            (ONE.mac, FAR.mac),
            (ONE.v6, FAR.v6),
            (ADVERT, SOLICITED | OVERRIDE),
            target,
            &option,
        );
        is_refused(lab, &packet, DropReason::SpoofedNd);
    }
}

fn spoofed_target_option(lab: &mut Lab) {
    let option = link_layer(TARGET_OPTION, TWO.mac);
    let packet = message((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (ADVERT, OVERRIDE), ONE.v6, &option);
    is_refused(lab, &packet, DropReason::SpoofedNd);
}

fn spoofed_router_option(lab: &mut Lab) {
    let option = link_layer(SOURCE_OPTION, TWO.mac);
    let eth = (ONE.mac, group_mac(ALL_ROUTERS));
    let packet = V6::icmp(eth, (ONE.v6, ALL_ROUTERS), (133, 0), [0; 4], &option);
    is_refused(lab, &packet, DropReason::SpoofedNd);
}

fn second_option(lab: &mut Lab) {
    // A check of the first option alone would miss a false second option.
    let options = [link_layer(TARGET_OPTION, ONE.mac), link_layer(TARGET_OPTION, TWO.mac)].concat();
    let packet =
        message((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (ADVERT, OVERRIDE), ONE.v6, &options);
    is_refused(lab, &packet, DropReason::SpoofedNd);
}

fn long_option(lab: &mut Lab) {
    let mut option = link_layer(TARGET_OPTION, ONE.mac);
    option[1] = 2;
    option.extend([0; 8]);
    let packet = message((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (ADVERT, OVERRIDE), ONE.v6, &option);
    is_refused(lab, &packet, DropReason::SpoofedNd);
}

fn from_router(kind: u8, body: &[u8]) -> V6 {
    let eth = (ONE.mac, group_mac(ALL_NODES));
    V6::icmp(eth, (ONE.link_local(), ALL_NODES), (kind, 0), [64, 0, 7, 8], body)
}

fn router_advertisement(lab: &mut Lab) {
    is_refused(lab, &from_router(134, &[0; 8]), DropReason::SpoofedNd);
}

fn redirect(lab: &mut Lab) {
    let body = [FAR.v6, TWO.v6].concat();
    is_refused(lab, &from_router(137, &body), DropReason::SpoofedNd);
}

fn router_solicitation_is_flooded(lab: &mut Lab) {
    let option = link_layer(SOURCE_OPTION, ONE.mac);
    let eth = (ONE.mac, group_mac(ALL_ROUTERS));
    let ip = (ONE.link_local(), ALL_ROUTERS);
    is_flooded(lab, &V6::icmp(eth, ip, (133, 0), [0; 4], &option).frame());
    is_flooded(lab, &V6::icmp(eth, ([0; 16], ALL_ROUTERS), (133, 0), [0; 4], &[]).frame());
}

fn router_advertisement_where_any_source_may_send(lab: &mut Lab) {
    any_source(&lab.tables, Interface::A1);
    is_flooded(lab, &from_router(134, &[0; 8]).frame());
}

fn low_hop_limit(lab: &mut Lab) {
    // RFC 4861 §7.1: a message with another hop limit has come through a router.
    for packet in [solicit(&ONE, FAR.v6), advert(&ONE, &FAR), from_router(134, &[0; 8])] {
        is_refused(lab, &V6 { hop_limit: 254, ..packet }, DropReason::Malformed);
    }
}

fn wrong_code(lab: &mut Lab) {
    let group = solicited_node(FAR.v6);
    let eth = (ONE.mac, group_mac(group));
    let packet = V6::icmp(eth, (ONE.v6, group), (SOLICIT, 1), [0; 4], &FAR.v6);
    is_refused(lab, &packet, DropReason::Malformed);
}

fn target_multicast_or_unspecified(lab: &mut Lab) {
    for target in [ALL_NODES, [0; 16]] {
        is_refused(lab, &solicit(&ONE, target), DropReason::Malformed);
        let option = link_layer(TARGET_OPTION, ONE.mac);
        let packet =
            message((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (ADVERT, OVERRIDE), target, &option);
        is_refused(lab, &packet, DropReason::Malformed);
    }
}

fn duplicate_detection_to_a_single_host(lab: &mut Lab) {
    // A packet from `::` may only go to a group.
    let packet = message((ONE.mac, FAR.mac), ([0; 16], FAR.v6), (SOLICIT, 0), FAR.v6, &[]);
    is_refused(lab, &packet, DropReason::SpoofedIp);
    // The group must be the target's solicited-node group (RFC 4861 §7.1.1).
    let eth = (ONE.mac, group_mac(ALL_NODES));
    let packet = message(eth, ([0; 16], ALL_NODES), (SOLICIT, 0), FAR.v6, &[]);
    is_refused(lab, &packet, DropReason::Malformed);
}

fn duplicate_detection_with_an_option(lab: &mut Lab) {
    // RFC 4861 §7.1.1: a message without a source address has no source link-layer address.
    let group = solicited_node(FAR.v6);
    let eth = (ONE.mac, group_mac(group));
    let option = link_layer(SOURCE_OPTION, ONE.mac);
    let packet = message(eth, ([0; 16], group), (SOLICIT, 0), FAR.v6, &option);
    is_refused(lab, &packet, DropReason::Malformed);
}

fn solicited_advertisement_to_all(lab: &mut Lab) {
    let option = link_layer(TARGET_OPTION, ONE.mac);
    let eth = (ONE.mac, group_mac(ALL_NODES));
    let flags = SOLICITED | OVERRIDE;
    let packet = message(eth, (ONE.v6, ALL_NODES), (ADVERT, flags), ONE.v6, &option);
    is_refused(lab, &packet, DropReason::Malformed);
    // The flag of a router changes nothing by itself: the source is checked.
    let packet = message(
        (ONE.mac, FAR.mac),
        (ONE.v6, FAR.v6),
        (ADVERT, ROUTER | SOLICITED),
        ONE.v6,
        &option,
    );
    crosses(lab, &packet);
}

fn truncated(lab: &mut Lab) {
    let whole = solicit(&ONE, FAR.v6);
    // The length in the IPv6 header is that of the truncated message.
    for len in 0..24 {
        let packet = V6 { rest: whole.rest[..len].to_vec(), ..whole.clone() };
        is_refused(lab, &packet, DropReason::Malformed);
    }
    for len in 25..32 {
        let packet = V6 { rest: whole.rest[..len].to_vec(), ..whole.clone() };
        is_refused(lab, &packet, DropReason::Malformed);
    }
    // The length in the IPv6 header exceeds the truncated frame.
    let frame = whole.frame();
    for len in SHORTEST_V6..frame.len() {
        lab.at_container(Interface::A1, &frame[..len]).drops(DropReason::Malformed);
    }
}

fn option_of_no_length(lab: &mut Lab) {
    // RFC 4861 §4.6: a length of 0 is invalid.
    let mut option = link_layer(SOURCE_OPTION, ONE.mac);
    option[1] = 0;
    let group = solicited_node(FAR.v6);
    let eth = (ONE.mac, group_mac(group));
    let packet = message(eth, (ONE.v6, group), (SOLICIT, 0), FAR.v6, &option);
    is_refused(lab, &packet, DropReason::Malformed);
}

fn disguised_by_hop_by_hop(lab: &mut Lab) {
    let spoofed = advert(&ONE, &TWO).extended(0, &[0, 1, 4, 0, 0, 0, 0]);
    is_refused(lab, &spoofed, DropReason::SpoofedNd);
    let twice = advert(&ONE, &TWO).extended(60, &[0, 1, 4, 0, 0, 0, 0]);
    is_refused(lab, &twice.extended(0, &[0, 1, 4, 0, 0, 0, 0]), DropReason::SpoofedNd);
}

fn disguised_by_a_fragment_header(lab: &mut Lab) {
    // RFC 6980 §5. With `more` 0 the fragment is the only one, with 1 the first one.
    for more in [0, 1] {
        let spoofed = advert(&ONE, &TWO).extended(44, &[0, 0, more, 0, 0, 0, 7]);
        is_refused(lab, &spoofed, DropReason::SpoofedNd);
    }
    // A later fragment may pass, because it is useless without the first one.
    let later = advert(&ONE, &FAR).extended(44, &[0, 0, 0x40, 0, 0, 0, 7]);
    crosses(lab, &later);
    let options = advert(&ONE, &FAR).extended(60, &[0, 1, 4, 0, 0, 0, 0]);
    let first = V6 { rest: options.rest[..8].to_vec(), ..options };
    is_refused(lab, &first.extended(44, &[0, 0, 1, 0, 0, 0, 7]), DropReason::SpoofedNd);
}

/// RFC 7112 §5. The first fragment ends within its destination options. Padding of the frame looks
/// like the rest of these options and a UDP header. The second fragment has other options, and the
/// router advertisement.
fn hidden_in_the_second_fragment(lab: &mut Lab) {
    let first = |next: u8, options: &[u8]| {
        let packet = V6 { rest: options.to_vec(), next_header: next, ..V6::new(&ONE, &FAR) };
        V6 { hop_limit: 255, ..packet }.extended(44, &[0, 0, 1, 0, 0, 0, 7])
    };
    // Options of 16 bytes, of which 8 are in the fragment; UDP follows, or further options that
    // only the padding has.
    for (next, padding) in [(17, vec![0; 16]), (60, [[0; 8], [17, 0, 1, 4, 0, 0, 0, 0]].concat())] {
        let packet = first(60, &[next, 1, 1, 12, 0, 0, 0, 0]);
        is_refused(lab, &packet, DropReason::Malformed);
        let frame = [packet.frame(), padding, vec![0; 8]].concat();
        lab.at_container(Interface::A1, &frame).drops(DropReason::Malformed);
    }
    // The upper-layer header is cut short, or is in the second fragment.
    for (protocol, len) in [(6, 19), (6, 0), (17, 7), (17, 0), (58, 3), (58, 0)] {
        let packet = V6 { hop_limit: 64, ..first(protocol, &vec![0; len]) };
        is_refused(lab, &packet, DropReason::Malformed);
        let frame = [packet.frame(), vec![0; 40]].concat();
        lab.at_container(Interface::A1, &frame).drops(DropReason::Malformed);
    }
}

fn first_fragments_with_all_headers_cross(lab: &mut Lab) {
    for (protocol, len) in [(6u8, 24usize), (17, 8), (58, 8), (132, 0), (59, 0)] {
        let rest = vec![0; len];
        let packet = V6 { rest, next_header: protocol, hop_limit: 64, ..V6::new(&ONE, &FAR) };
        crosses(lab, &packet.clone().extended(44, &[0, 0, 1, 0, 0, 0, 7]));
        let options = packet.extended(60, &[0, 1, 4, 0, 0, 0, 0]);
        crosses(lab, &options.extended(44, &[0, 0, 1, 0, 0, 0, 7]));
    }
    // The last fragment may be as short as it likes.
    let last = V6 { rest: vec![1], next_header: 6, ..V6::new(&ONE, &FAR) };
    crosses(lab, &last.extended(44, &[0, 0, 0x40, 0, 0, 0, 7]));
}

fn hidden_behind_many_headers(lab: &mut Lab) {
    let options = [0, 1, 4, 0, 0, 0, 0];
    let mut packet = V6::udp(&ONE, &FAR, (1, 2), b"hello");
    for _ in 0..6 {
        packet = packet.extended(60, &options);
    }
    crosses(lab, &packet);
    is_refused(lab, &packet.extended(60, &options), DropReason::Malformed);
}

fn echo_is_forwarded(lab: &mut Lab) {
    let echo = V6::icmp((ONE.mac, FAR.mac), (ONE.v6, FAR.v6), (128, 0), [0, 1, 0, 1], &[7; 56]);
    crosses(lab, &V6 { hop_limit: 64, ..echo.clone() });
    crosses(lab, &V6 { hop_limit: 64, ..echo }.extended(0, &[0, 1, 4, 0, 0, 0, 0]));
    let tiny = V6 { rest: vec![128, 0, 0, 0], next_header: 58, ..V6::new(&ONE, &FAR) };
    is_refused(lab, &tiny, DropReason::Malformed);
}

fn multicast_listener_report_is_accepted(lab: &mut Lab) {
    // RFC 3590 §4: a host without an address reports from `::`. The packet has a router alert.
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    let eth = (ONE.mac, group_mac(group));
    let record = [&[4, 0, 0, 0], solicited_node(ONE.v6).as_slice()].concat();
    for src in [[0; 16], ONE.link_local()] {
        let report = V6::icmp(eth, (src, group), (143, 0), [0, 0, 0, 1], &record);
        let report = V6 { hop_limit: 1, ..report }.extended(0, &[0, 5, 2, 0, 0, 1, 0]);
        // Nobody asks for it (`membership`).
        is_absorbed(lab, &report.frame());
    }
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.ipv6 = [0; 16]);
    lab.tables.neighbours.remove(&NeighKey::v6(A, ONE.v6)).unwrap();
    is_refused(lab, &solicit(&ONE, FAR.v6), DropReason::SpoofedIp);
}
