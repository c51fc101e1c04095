//! Packets too big for the path: ICMP errors to the container, and ICMP errors from the underlay
//! (RFC 1191, RFC 8201).

use culvert::datapath::entry::UnderlayPath;
use culvert::datapath::{Table as _, now_ns};
use culvert_common::abi::{Code, Direction, DropReason, FdbKey, Note, RateKey};
use culvert_tests::packet::{Host, Tunnel, V4, V6, ethernet, icmpv6, payload};

use crate::{
    interfaces::Interface,
    lab::Lab,
    run::{Expected, Left, SHORTEST_V4, SHOT, copy, drop, note},
    world::{
        A, FAR, FARTHER, MTU, ONE, OUR_VTEP, PEER, PEER_MAC, PEER2, ROUTER, ROUTER_MAC, STRANGER,
        TO_PEER, UPLINK_MAC, VXLAN_PORT, to_peer,
    },
};

cases!(
    ipv4_fragmentation_needed,
    ipv4_without_df,
    ipv4_with_options,
    ipv4_by_one_byte,
    ipv6_packet_too_big,
    ipv6_by_one_byte,
    not_ip_is_dropped_silently,
    no_error_about_an_error,
    no_error_about_an_icmpv6_error,
    error_about_an_echo_request,
    no_error_about_a_later_fragment,
    no_error_to_an_address_of_no_host,
    errors_are_limited,
    errors_to_another_endpoint_are_not,
    errors_come_in_bursts,
    local_delivery_has_no_limit,
    gso_is_judged_by_its_segments,
    gso_ipv6_is_judged_by_its_segments,
    gso_segments_too_big,
    gso_udp_is_judged_by_its_segments,
    hint_from_the_underlay,
    hint_from_a_router_behind,
    one_hint_at_a_time,
    hints_have_no_effect,
    smaller_and_obeyed,
    smaller_and_expired,
    smaller_is_never_more_than_the_route,
    not_below_the_least,
    ipv6_is_not_stopped,
    old_router_says_nothing,
    larger_mtu_is_refused,
    error_about_a_stranger,
    error_about_another_sender,
    error_about_another_port,
    error_about_another_source_port,
    error_about_a_fragment,
    error_about_a_datagram_with_a_checksum,
    error_about_another_network,
    error_about_another_protocol,
    error_of_another_kind,
    error_in_fragments,
    error_truncated_at_every_byte,
    error_to_another_host,
);

/// Bytes of a packet that an ICMPv4 error quotes.
const QUOTE_V4: usize = 64;
/// Bytes of a packet that an ICMPv6 error quotes.
const QUOTE_V6: usize = 128;

/// "Fragmentation needed" (RFC 1191 §4) about `frame`, from `from`, the destination of `frame`.
fn frag_needed(frame: &[u8], from: &Host, mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let quote = &frame[14..14 + QUOTE_V4];
    let error = V4::icmp(from, &ONE, 3, 4, [0, 0, high, low], quote);
    // RFC 1812 §4.3.2.5: precedence of internetwork control.
    V4 { tos: 0xc0, ttl: 64, id: 0, ..error }.frame()
}

/// "Packet too big" (RFC 4443 §3.2) about `frame`.
fn packet_too_big(frame: &[u8], from: &Host, mtu: u32) -> Vec<u8> {
    let quote = &frame[14..14 + QUOTE_V6];
    let rest = icmpv6((from.v6, ONE.v6), (2, 0), mtu.to_be_bytes(), quote);
    V6 { hop_limit: 64, next_header: 58, rest, ..V6::new(from, &ONE) }.frame()
}

#[track_caller]
fn is_told(lab: &mut Lab, frame: &[u8], error: &[u8]) {
    lab.at_container(Interface::A1, frame).gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[drop(DropReason::PacketTooBig), note(Note::IcmpTooBigSent).bytes(error.len())],
        copies: &[copy(Interface::A1, error)],
    });
}

#[track_caller]
fn is_not_told(lab: &mut Lab, frame: &[u8]) {
    lab.at_container(Interface::A1, frame).drops(DropReason::PacketTooBig);
}

/// A datagram whose L3 packet has `len` bytes.
fn v4(len: usize) -> V4 {
    V4::udp(&ONE, &FAR, (1000, 2000), &payload(len - 28))
}

fn v6(len: usize) -> V6 {
    V6::udp(&ONE, &FAR, (1000, 2000), &payload(len - 48))
}

fn ipv4_fragmentation_needed(lab: &mut Lab) {
    let frame = v4(1500).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
    let frame = V4::tcp(&ONE, &FARTHER, (1000, 80), &payload(2000)).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FARTHER, MTU));
}

fn ipv4_without_df(lab: &mut Lab) {
    // The programs do not fragment on an overlay link.
    let frame = V4 { df: false, ..v4(1500) }.frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
}

fn ipv4_with_options(lab: &mut Lab) {
    let frame = V4 { options: vec![1; 40], ..v4(1500) }.frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
}

fn ipv4_by_one_byte(lab: &mut Lab) {
    let frame = v4(1450).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    let frame = v4(1451).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
}

fn ipv6_packet_too_big(lab: &mut Lab) {
    let frame = v6(1500).frame();
    is_told(lab, &frame, &packet_too_big(&frame, &FAR, MTU.into()));
    let frame = v6(3000).extended(0, &[0, 1, 4, 0, 0, 0, 0]).frame();
    is_told(lab, &frame, &packet_too_big(&frame, &FAR, MTU.into()));
}

fn ipv6_by_one_byte(lab: &mut Lab) {
    let frame = v6(1450).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    let frame = v6(1451).frame();
    is_told(lab, &frame, &packet_too_big(&frame, &FAR, MTU.into()));
}

fn not_ip_is_dropped_silently(lab: &mut Lab) {
    is_not_told(lab, &ethernet(FAR.mac, ONE.mac, 0x88b5, &payload(1451)));
}

fn no_error_about_an_error(lab: &mut Lab) {
    // RFC 1122 §3.2.2.
    for kind in [3, 4, 5, 11, 12] {
        let frame = V4::icmp(&ONE, &FAR, kind, 0, [0; 4], &payload(1500)).frame();
        is_not_told(lab, &frame);
    }
}

fn no_error_about_an_icmpv6_error(lab: &mut Lab) {
    // RFC 4443 §2.4 (e).
    for kind in [1, 2, 3, 4] {
        let eth = (ONE.mac, FAR.mac);
        let frame = V6::icmp(eth, (ONE.v6, FAR.v6), (kind, 0), [0; 4], &payload(1500)).frame();
        is_not_told(lab, &frame);
    }
}

fn error_about_an_echo_request(lab: &mut Lab) {
    let frame = V4::icmp(&ONE, &FAR, 8, 0, [0, 1, 0, 1], &payload(1500)).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
    let eth = (ONE.mac, FAR.mac);
    let ping = V6::icmp(eth, (ONE.v6, FAR.v6), (128, 0), [0, 1, 0, 1], &payload(1500)).frame();
    is_told(lab, &ping, &packet_too_big(&ping, &FAR, MTU.into()));
}

fn no_error_about_a_later_fragment(lab: &mut Lab) {
    is_not_told(lab, &V4 { df: false, offset: 185, ..v4(1500) }.frame());
}

fn no_error_to_an_address_of_no_host(lab: &mut Lab) {
    for dst in [[255; 4], [224, 0, 0, 1], [127, 0, 0, 1], [0; 4]] {
        is_not_told(lab, &V4 { dst, ..v4(1500) }.frame());
    }
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    is_not_told(lab, &V6 { dst: all_nodes, ..v6(1500) }.frame());
    is_not_told(lab, &V6 { dst: [0; 16], ..v6(1500) }.frame());
}

/// Uses up the limit of ICMP errors to the endpoint at `port` for the next hour.
fn exhausted(lab: &mut Lab, interface: Interface) {
    let limit = RateKey { kind: RateKey::ICMP, id: interface.ifindex() };
    lab.rates.set(limit, now_ns() + 3_600_000_000_000);
}

fn errors_are_limited(lab: &mut Lab) {
    exhausted(lab, Interface::A1);
    for frame in [v4(1500).frame(), v6(1500).frame()] {
        let run = lab.at_container(Interface::A1, &frame);
        run.drops_noting(DropReason::PacketTooBig, &[note(Note::IcmpTooBigLimited)]);
    }
}

fn errors_to_another_endpoint_are_not(lab: &mut Lab) {
    exhausted(lab, Interface::A2);
    let frame = v4(1500).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, MTU));
}

fn errors_come_in_bursts(lab: &mut Lab) {
    let started = now_ns();
    let frame = v4(1500).frame();
    let (mut sent, mut limited) = (0, 0);
    for _ in 0..48 {
        let outcome = lab.at_container(Interface::A1, &frame).outcome();
        let count = |code| outcome.count(Direction::FromContainer, code);
        assert_eq!(count(Code::Drop(DropReason::PacketTooBig)), 1);
        sent += count(Code::Note(Note::IcmpTooBigSent));
        limited += count(Code::Note(Note::IcmpTooBigLimited));
    }
    assert_eq!(sent + limited, 48);
    // The limit allows 32 errors at once, and one more every 10 ms.
    let earned = (now_ns() - started) / 10_000_000 + 1;
    assert!((32..=32 + earned).contains(&sent), "{sent} errors, the limit is 32 and {earned}");
}

fn local_delivery_has_no_limit(lab: &mut Lab) {
    // Both interfaces have the network's MTU, and their stacks enforce it.
    let frame = V4::udp(&ONE, &crate::world::TWO, (1, 2), &payload(2000)).frame();
    lab.at_container(Interface::A1, &frame).delivers(&frame, &[]);
}

/// A GSO frame whose segments fit is not too big: the program calls the helper that makes room,
/// which fails in a test run, see `encap::gso_refused_by_the_kernel`.
#[track_caller]
fn segments_fit(lab: &mut Lab, frame: &[u8], size: u32) {
    lab.at_container(Interface::A1, frame).gso(size).drops(DropReason::EncapFailed);
}

fn gso_is_judged_by_its_segments(lab: &mut Lab) {
    // Header lengths in bytes: IPv4 20, TCP with timestamps 32.
    let frame = V4::tcp(&ONE, &FAR, (1000, 80), &payload(3000)).frame();
    segments_fit(lab, &frame, 1450 - 52);
    let options = V4 { options: vec![1; 8], ..V4::tcp(&ONE, &FAR, (1, 80), &payload(3000)) };
    segments_fit(lab, &options.frame(), 1450 - 60);
}

fn gso_ipv6_is_judged_by_its_segments(lab: &mut Lab) {
    let packet = V6::tcp(&ONE, &FAR, (1000, 80), &payload(3000));
    segments_fit(lab, &packet.frame(), 1450 - 72);
    let packet = packet.extended(0, &[0, 1, 4, 0, 0, 0, 0]);
    segments_fit(lab, &packet.frame(), 1450 - 80);
}

fn gso_segments_too_big(lab: &mut Lab) {
    let frame = V4::tcp(&ONE, &FAR, (1000, 80), &payload(3000)).frame();
    let outcome = lab.at_container(Interface::A1, &frame).gso(1450 - 51).outcome();
    let count = |code| outcome.count(Direction::FromContainer, code);
    assert_eq!(count(Code::Drop(DropReason::PacketTooBig)), 1);
    assert_eq!(count(Code::Note(Note::IcmpTooBigSent)), 1);
    assert_eq!(outcome.counts.len(), 2);
    let error = frag_needed(&frame, &FAR, MTU);
    assert_eq!(outcome.copies, [(Interface::A1, error)]);

    let packet = V6::tcp(&ONE, &FAR, (1000, 80), &payload(3000));
    let packet = packet.extended(0, &[0, 1, 4, 0, 0, 0, 0]).frame();
    let outcome = lab.at_container(Interface::A1, &packet).gso(1450 - 79).outcome();
    let error = packet_too_big(&packet, &FAR, MTU.into());
    assert_eq!(outcome.copies, [(Interface::A1, error)]);
}

fn gso_udp_is_judged_by_its_segments(lab: &mut Lab) {
    let frame = v4(3000).frame();
    segments_fit(lab, &frame, 1450 - 28);
    let outcome = lab.at_container(Interface::A1, &frame).gso(1450 - 27).outcome();
    assert_eq!(outcome.copies, [(Interface::A1, frag_needed(&frame, &FAR, MTU))]);
}

/// A router of the underlay.
const UNDERLAY_ROUTER: Host = Host { mac: ROUTER_MAC, v4: ROUTER, v6: [0; 16] };
/// This host, on the underlay.
const US: Host = Host { mac: UPLINK_MAC, v4: OUR_VTEP, v6: [0; 16] };

/// A router's quote of a frame that this host has sent: `len` bytes from the IP header on.
fn quoted(frame: &[u8], len: usize) -> Vec<u8> {
    frame[14..14 + len].to_vec()
}

/// The error of a router whose next link has the MTU `mtu`, about a frame that we sent to [`PEER`].
fn error(mtu: u16, quote: &[u8]) -> V4 {
    let [high, low] = mtu.to_be_bytes();
    V4::icmp(&UNDERLAY_ROUTER, &US, 3, 4, [0, 0, high, low], quote)
}

/// The outer frame around `inner`, with a source port that the programs use.
fn wrapped(tunnel: Tunnel, inner: &[u8]) -> Vec<u8> {
    Tunnel { src_port: 50_000, ..tunnel }.wrap(inner)
}

/// A frame that we have sent to [`PEER`].
fn sent() -> Vec<u8> {
    wrapped(to_peer(), &v4(1400).frame())
}

/// The frame is taken as a hint, which the agent would read next.
#[track_caller]
fn is_hint(lab: &mut Lab, frame: &[u8], vtep: [u8; 4], inner_mtu: u32) {
    lab.at_underlay(frame).passes(&[note(Note::PathMtuHint)]);
    assert_eq!(lab.path_hints(), [(vtep, inner_mtu)].into());
    lab.tables.path_hints.remove(&vtep).unwrap();
}

/// The frame is an error about the tunnel that is not believed.
#[track_caller]
fn is_refused(lab: &mut Lab, frame: &[u8]) {
    lab.at_underlay(frame).passes(&[note(Note::PathMtuRefused)]);
    assert!(lab.path_hints().is_empty());
}

/// The frame is left to the kernel.
#[track_caller]
fn is_ignored(lab: &mut Lab, frame: &[u8]) {
    let outcome = lab.at_underlay(frame).passes(&[]);
    for note in [Note::PathMtuHint, Note::PathMtuRefused] {
        assert_eq!(outcome.count(Direction::FromUnderlay, Code::Note(note)), 0, "{note:?}");
    }
    assert!(lab.path_hints().is_empty());
}

fn hint_from_the_underlay(lab: &mut Lab) {
    // The VXLAN header ends at the byte 36. A longer quote is that of RFC 1812 §4.3.2.3.
    for len in [28, 29, 35, 36, 200] {
        is_hint(lab, &error(1400, &quoted(&sent(), len)).frame(), PEER, 1350);
    }
    is_hint(lab, &error(1300, &quoted(&sent(), 200)).frame(), PEER, 1250);
}

fn hint_from_a_router_behind(lab: &mut Lab) {
    let frame = wrapped(crate::world::to_peer2(), &v4(1450).frame());
    is_hint(lab, &error(1476, &quoted(&frame, 28)).frame(), PEER2, 1426);
}

/// Until the agent has read a hint, further errors change nothing.
fn one_hint_at_a_time(lab: &mut Lab) {
    let errors = [1400, 600, 1300].map(|mtu| error(mtu, &quoted(&sent(), 28)).frame());
    lab.at_underlay(&errors[0]).passes(&[note(Note::PathMtuHint)]);
    for frame in &errors {
        lab.at_underlay(frame).passes(&[]);
    }
    assert_eq!(lab.path_hints(), [(PEER, 1350)].into());
}

/// Errors with alternating MTUs neither limit packets nor make the flow cache invalid.
fn hints_have_no_effect(lab: &mut Lab) {
    let udp = V4::udp(&ONE, &FAR, (1000, 2000), &payload(1400)).frame();
    lab.at_container(Interface::A1, &udp).encaps(to_peer().wrap(&udp), &[]);
    // Without the flow cache, the look-up would now find no entry.
    lab.untold_fdb.remove(FdbKey::new(A, FAR.mac));
    for mtu in [600, 1400, 552, 1449] {
        let inner = u32::from(mtu) - 50;
        is_hint(lab, &error(mtu, &quoted(&sent(), 28)).frame(), PEER, inner);
        lab.at_container(Interface::A1, &udp).encaps(to_peer().wrap(&udp), &[]);
    }
    lab.set_untold(FdbKey::new(A, FAR.mac), crate::world::remote(PEER));
    for frame in [v4(1450).frame(), v6(1450).frame()] {
        lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    }
}

/// Some minutes from now.
fn later() -> u64 {
    now_ns() + 600_000_000_000
}

fn smaller_and_obeyed(lab: &mut Lab) {
    let frame = v4(1351).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    lab.set_path_mtu(PEER, later(), 1350);
    is_told(lab, &frame, &frag_needed(&frame, &FAR, 1350));
    let frame = v6(1351).frame();
    is_told(lab, &frame, &packet_too_big(&frame, &FAR, 1350));
    for frame in [v4(1350).frame(), v6(1350).frame()] {
        lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    }
    // The path to the other VTEP has the same MTU as before.
    let frame = V4::udp(&ONE, &FARTHER, (1, 2), &payload(1422)).frame();
    let outer = crate::world::to_peer2().wrap(&frame);
    lab.at_container(Interface::A1, &frame).encaps(outer, &[]);
}

fn smaller_and_expired(lab: &mut Lab) {
    lab.set_path_mtu(PEER, now_ns(), 1350);
    let frame = v4(1450).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
}

fn smaller_is_never_more_than_the_route(lab: &mut Lab) {
    // The MTU of the route has decreased since the probe.
    lab.set_path_mtu(PEER, later(), 1400);
    let path = UnderlayPath { inner_mtu: 1300, ..TO_PEER };
    lab.tables.underlay.insert(&PEER, &path).unwrap();
    let frame = v4(1301).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, 1300));
}

fn not_below_the_least(lab: &mut Lab) {
    // Linux's min_pmtu: a smaller value is ignored as an attack.
    for mtu in [1, 68, 551] {
        is_refused(lab, &error(mtu, &quoted(&sent(), 28)).frame());
    }
    is_hint(lab, &error(552, &quoted(&sent(), 28)).frame(), PEER, 502);
    lab.set_path_mtu(PEER, later(), 502);
    let frame = v4(502).frame();
    lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    let frame = v4(503).frame();
    is_told(lab, &frame, &frag_needed(&frame, &FAR, 502));
}

/// RFC 8200 §5: IPv6 works with packets of 1280 bytes, and not with smaller ones.
fn ipv6_is_not_stopped(lab: &mut Lab) {
    lab.set_path_mtu(PEER, later(), 502);
    for len in [503, 1280] {
        let frame = v6(len).frame();
        lab.at_container(Interface::A1, &frame).encaps(to_peer().wrap(&frame), &[]);
    }
    let frame = v6(1281).frame();
    is_told(lab, &frame, &packet_too_big(&frame, &FAR, 1280));
}

fn old_router_says_nothing(lab: &mut Lab) {
    // RFC 1191 §5: an old router sends the MTU 0.
    is_refused(lab, &error(0, &quoted(&sent(), 28)).frame());
}

fn larger_mtu_is_refused(lab: &mut Lab) {
    for mtu in [1450, 1500, 1501, 9000, u16::MAX] {
        is_refused(lab, &error(mtu, &quoted(&sent(), 28)).frame());
    }
}

/// An error whose quote is modified by `change`.
fn misquoted(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut quote = quoted(&sent(), 28);
    change(&mut quote);
    error(1400, &quote).frame()
}

fn error_about_a_stranger(lab: &mut Lab) {
    is_refused(lab, &misquoted(|quote| quote[16..20].copy_from_slice(&STRANGER)));
    // To a stranger's other port it is about a socket of the host.
    is_ignored(
        lab,
        &misquoted(|quote| {
            quote[16..20].copy_from_slice(&STRANGER);
            quote[22..24].copy_from_slice(&[0, 53]);
        }),
    );
}

fn error_about_another_sender(lab: &mut Lab) {
    is_ignored(lab, &misquoted(|quote| quote[12..16].copy_from_slice(&STRANGER)));
}

fn error_about_another_port(lab: &mut Lab) {
    for port in [VXLAN_PORT + 1, 53] {
        let frame = misquoted(|quote| quote[22..24].copy_from_slice(&port.to_be_bytes()));
        is_ignored(lab, &frame);
    }
}

fn error_about_another_source_port(lab: &mut Lab) {
    for port in [0, 4789, 49_151_u16] {
        let frame = misquoted(|quote| quote[20..22].copy_from_slice(&port.to_be_bytes()));
        is_refused(lab, &frame);
    }
}

fn error_about_a_fragment(lab: &mut Lab) {
    is_refused(lab, &misquoted(|quote| quote[6] = 0x20));
    is_refused(lab, &misquoted(|quote| quote[7] = 1));
}

/// The programs send no checksum. A socket of the host does, also the agent's probe.
fn error_about_a_datagram_with_a_checksum(lab: &mut Lab) {
    is_ignored(lab, &misquoted(|quote| quote[27] = 1));
}

fn error_about_another_network(lab: &mut Lab) {
    for (at, value) in [(28, 0), (28, 0x88), (29, 1), (32, 0x55), (34, 0x55), (35, 1)] {
        let mut quote = quoted(&sent(), 100);
        quote[at] = value;
        is_refused(lab, &error(1400, &quote).frame());
    }
}

fn error_about_another_protocol(lab: &mut Lab) {
    is_ignored(lab, &misquoted(|quote| quote[9] = 6));
    // With options in the quote the port is elsewhere.
    is_ignored(lab, &misquoted(|quote| quote[0] = 0x46));
}

fn error_of_another_kind(lab: &mut Lab) {
    let quote = quoted(&sent(), 28);
    for (kind, code) in [(3, 3), (3, 0), (4, 0), (11, 0), (5, 4), (8, 4)] {
        let error = V4::icmp(&UNDERLAY_ROUTER, &US, kind, code, [0, 0, 5, 0], &quote);
        is_ignored(lab, &error.frame());
    }
}

fn error_in_fragments(lab: &mut Lab) {
    let whole = error(1400, &quoted(&sent(), 28));
    is_ignored(lab, &V4 { df: false, mf: true, ..whole.clone() }.frame());
    let later = V4 { df: false, offset: 1, ..whole.clone() }.frame();
    lab.at_underlay(&later).passes(&[note(Note::FragmentCopied)]);
    is_ignored(lab, &V4 { options: vec![1; 4], ..whole }.frame());
}

fn error_truncated_at_every_byte(lab: &mut Lab) {
    let whole = error(1400, &quoted(&sent(), 28)).frame();
    for len in SHORTEST_V4..whole.len() {
        is_ignored(lab, &whole[..len]);
    }
}

fn error_to_another_host(lab: &mut Lab) {
    let other = Host { mac: PEER_MAC, v4: PEER, ..US };
    let quote = quoted(&sent(), 28);
    let error = V4::icmp(&UNDERLAY_ROUTER, &other, 3, 4, [0, 0, 5, 0], &quote);
    is_ignored(lab, &error.frame());
}
