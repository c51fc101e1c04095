//! Fragments of routed packets: they take the ports from the first fragment of their datagram.
//!
//! Fragments that are released come in again on the interface that they came in on,
//! where no program is attached here; the module `live` shows where they end.

use culvert::datapath::now_ns;
use culvert_common::abi::{
    Action, Code, DropReason, FragmentInfo, FragmentKey, HELD_FRAME_LEN, HeldFragment, MAX_HELD,
    Note, Sealed as _,
};
use culvert_tests::packet::{Host, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::Lab,
    routed::{
        CREATED, CREATED_ELSEWHERE, chosen_port, echo, entries, fragments, inbound, outbound,
        publish, to_gateway,
    },
    run::{Expected, Left, Program, SHOT, UNSPEC, action, note},
    world::{A, GATEWAY, GATEWAY_OF_B, ONE, PEER, SECOND, SERVER, SERVER2, TWO, US},
};

cases!(
    in_order,
    in_order_with_another_port,
    echo_in_order,
    answers_in_order,
    summed_by_the_card,
    later_before_first,
    all_later_before_first,
    later_before_first_from_an_external_host,
    too_many,
    too_long,
    first_too_long,
    of_the_host,
    of_the_host_out_of_order,
    of_the_host_from_an_external_host,
    of_the_host_from_an_external_host_out_of_order,
    strays_cost_the_host_nothing,
    a_source_has_a_share,
    a_container_has_a_share,
    of_another_host,
    of_another_datagram,
    expired,
    expired_while_held,
    of_a_protocol_without_ports,
);

const PORT: u16 = 40_000;
const SIZES: [usize; 2] = [1000, 800];

fn datagram(from: &Host, port: u16, to: &Host) -> V4 {
    V4::udp(from, to, (port, 53), &payload(2500))
}

/// Fragments as `A1` sends them, and as they leave from the source port `port`.
fn pairs(port: u16) -> Vec<(V4, V4)> {
    let came = fragments(&to_gateway(&datagram(&ONE, PORT, &SERVER)), &SIZES);
    let went = fragments(&outbound(&datagram(&US, port, &SERVER)), &SIZES);
    came.into_iter().zip(went).collect()
}

/// Key of the datagram that `packet` is a fragment of, in slot `slot`.
fn fragment_key(zone: u32, packet: &V4, slot: u8) -> FragmentKey {
    let ([a, b], protocol) = (packet.id.to_be_bytes(), packet.protocol);
    let (src, dst, id) = (packet.src, packet.dst, [0, 0, a, b]);
    FragmentKey { zone, src, dst, id, protocol, slot, pad: [0; 2] }
}

fn in_order(lab: &mut Lab) {
    for (index, (came, went)) in pairs(PORT).iter().enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_container(Interface::A1, &came.frame()).leaves_as(went, notes);
    }
    assert_eq!(entries(lab), 2);
    let (first, _) = &pairs(PORT)[0];
    let info = lab.fragments.get(fragment_key(A, first, 0)).unwrap();
    let ports = (info.src_port, info.dst_port);
    assert_eq!(ports, (PORT.to_be_bytes(), 53u16.to_be_bytes()));
    assert_eq!(info.owner, FragmentInfo::OF_FLOW);
    // Half a minute, as Linux waits.
    assert!(info.expires_ns > now_ns() + 25_000_000_000);
    assert!(info.expires_ns < now_ns() + 31_000_000_000);
}

fn in_order_with_another_port(lab: &mut Lab) {
    lab.reserve(17, PORT);
    let (first, _) = &pairs(PORT)[0];
    let run = lab.at_container(Interface::A1, &first.frame());
    let frame = run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE).frame;
    let pairs = pairs(chosen_port(&frame));
    same("first", &frame, &pairs[0].1.frame());
    for (came, went) in &pairs[1..] {
        lab.at_container(Interface::A1, &came.frame()).leaves_as(went, &[]);
    }
}

fn echo_in_order(lab: &mut Lab) {
    let came = fragments(&to_gateway(&echo(&ONE, &SERVER, 8, 7)), &[24, 24]);
    let went = fragments(&outbound(&echo(&US, &SERVER, 8, 7)), &[24, 24]);
    for (index, (came, went)) in came.iter().zip(went).enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_container(Interface::A1, &came.frame()).leaves_as(&went, notes);
    }
}

fn answers_in_order(lab: &mut Lab) {
    let question = to_gateway(&V4::udp(&ONE, &SERVER, (PORT, 53), b"?"));
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), b"?"));
    lab.at_container(Interface::A1, &question.frame()).leaves_as(&left, &CREATED);
    let answer = |to: &Host| V4::udp(&SERVER, to, (53, PORT), &payload(2500));
    let came = fragments(&answer(&US), &SIZES);
    let went = fragments(&inbound(&answer(&ONE), &GATEWAY), &SIZES);
    for (came, went) in came.iter().zip(went) {
        lab.at_underlay(&came.frame()).arrives_as(&went, &[]);
    }
}

fn summed_by_the_card(lab: &mut Lab) {
    for (index, (came, went)) in pairs(PORT).iter().enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_container(Interface::A1, &came.frame()).summed().leaves_as(went, notes);
    }
}

/// The frame that is held for a datagram in a slot.
#[track_caller]
fn is_held(lab: &Lab, key: FragmentKey, packet: &V4) {
    let held: HeldFragment = lab.held.get(key).expect("held");
    same("held", &held.bytes[..held.len as usize], &packet.frame());
}

/// Sends the first fragment. The program releases all the fragments in `all`, `first` included.
#[track_caller]
fn releases(lab: &mut Lab, from: Option<Interface>, first: &V4, all: &[&V4]) {
    let bytes = all.iter().map(|packet| packet.frame().len()).sum();
    let frame = first.frame();
    let run = match from {
        Some(interface) => lab.at_container(interface, &frame),
        None => lab.at_underlay(&frame),
    };
    run.gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[
            action(Action::Hold),
            note(Note::FragmentReleased).times(all.len() as u64).bytes(bytes),
        ],
        copies: &[],
    });
    assert_eq!(lab.held.keys().len(), 0);
}

fn later_before_first(lab: &mut Lab) {
    let pairs = pairs(PORT);
    let [(first, left_first), (later, left_later), (last, left_last)] = pairs.as_slice() else {
        panic!("three fragments");
    };
    lab.at_container(Interface::A1, &later.frame()).holds(&[]);
    is_held(lab, fragment_key(A, first, 0), later);
    assert!(lab.fragments.get(fragment_key(A, first, 0)).is_none(), "no ports yet");
    assert_eq!(entries(lab), 0);
    releases(lab, Some(Interface::A1), first, &[first, later]);
    let info = lab.fragments.get(fragment_key(A, first, 0)).unwrap();
    assert_eq!(info.owner, FragmentInfo::OF_FLOW);
    assert_eq!(entries(lab), 0);
    // The released fragments come in again.
    lab.at_container(Interface::A1, &first.frame()).leaves_as(left_first, &CREATED);
    lab.at_container(Interface::A1, &later.frame()).leaves_as(left_later, &[]);
    lab.at_container(Interface::A1, &last.frame()).leaves_as(left_last, &[]);
}

fn all_later_before_first(lab: &mut Lab) {
    let packet = to_gateway(&datagram(&ONE, PORT, &SERVER));
    let all = fragments(&packet, &[48; 40]);
    for (slot, later) in all[1..].iter().rev().enumerate() {
        lab.at_container(Interface::A1, &later.frame()).holds(&[]);
        is_held(lab, fragment_key(A, later, u8::try_from(slot).unwrap()), later);
    }
    let released: Vec<&V4> = all.iter().collect();
    releases(lab, Some(Interface::A1), &all[0], &released);
}

fn later_before_first_from_an_external_host(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8080, Interface::A1, 53);
    let make = |to: &Host, port| V4::udp(&SERVER, to, (5000, port), &payload(2500));
    let came = fragments(&make(&SECOND, 8080), &SIZES);
    let went = fragments(&inbound(&make(&ONE, 53), &GATEWAY), &SIZES);
    lab.at_underlay(&came[2].frame()).passes(&[note(Note::FragmentCopied)]);
    lab.at_underlay(&came[1].frame()).passes(&[note(Note::FragmentCopied)]);
    is_held(lab, fragment_key(0, &came[0], 1), &came[1]);
    releases(lab, None, &came[0], &[&came[0], &came[1], &came[2]]);
    for (index, (came, went)) in came.iter().zip(went).enumerate() {
        let notes = if index == 0 { CREATED.as_slice() } else { &[] };
        lab.at_underlay(&came.frame()).arrives_as(&went, notes);
    }
}

/// Fragment of a datagram of `A1`'s, of `len` bytes, at an offset.
fn at(offset: u16, len: usize) -> V4 {
    let packet = V4 { protocol: 17, l4: payload(len), ..V4::new(&ONE, &SERVER) };
    to_gateway(&V4 { df: false, mf: true, offset, ..packet })
}

fn too_many(lab: &mut Lab) {
    for offset in 1..=u16::from(MAX_HELD) {
        lab.at_container(Interface::A1, &at(offset, 8).frame()).holds(&[]);
    }
    let run = lab.at_container(Interface::A1, &at(u16::from(MAX_HELD) + 1, 8).frame());
    run.drops(DropReason::FragmentUnknown);
    assert_eq!(lab.held.keys().len(), usize::from(MAX_HELD));
    // Another datagram has its own slots.
    lab.at_container(Interface::A1, &V4 { id: 7, ..at(1, 8) }.frame()).holds(&[]);
    // The first fragment releases all the held fragments.
    let mut first = to_gateway(&V4::udp(&ONE, &SERVER, (PORT, 53), &[]));
    (first.df, first.mf) = (false, true);
    let bytes = first.frame().len() + usize::from(MAX_HELD) * at(1, 8).frame().len();
    lab.at_container(Interface::A1, &first.frame()).gives(&Expected {
        verdict: SHOT,
        left: Left::Spent,
        counts: &[
            action(Action::Hold),
            note(Note::FragmentReleased).times(u64::from(MAX_HELD) + 1).bytes(bytes),
        ],
        copies: &[],
    });
    assert_eq!(lab.held.keys().len(), 1);
}

fn too_long(lab: &mut Lab) {
    let longest = HELD_FRAME_LEN - 34;
    lab.at_container(Interface::A1, &at(1, longest).frame()).holds(&[]);
    let frame = at(1, longest + 1).frame();
    lab.at_container(Interface::A1, &frame).drops(DropReason::FragmentUnknown);
    assert_eq!(lab.held.keys().len(), 1);
}

fn first_too_long(lab: &mut Lab) {
    lab.at_container(Interface::A1, &at(300, 8).frame()).holds(&[]);
    let first = to_gateway(&V4::udp(&ONE, &SERVER, (PORT, 53), &payload(2392)));
    let first = V4 { df: false, mf: true, ..first };
    lab.at_container(Interface::A1, &first.frame()).drops(DropReason::FragmentUnknown);
}

fn of_the_host(lab: &mut Lab) {
    for host in [GATEWAY, US] {
        let packet = to_gateway(&datagram(&ONE, PORT, &host));
        for (index, fragment) in fragments(&packet, &SIZES).iter().enumerate() {
            let run = lab.at_container(Interface::A1, &fragment.frame());
            if index == 0 { run.begins_to_host() } else { run.reaches_host() }
        }
        // A network whose containers may not send to the host.
        let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..packet };
        let first = fragments(&packet, &SIZES).remove(0);
        lab.at_container(Interface::B1, &first.frame()).drops(DropReason::Isolated);
    }
}

fn of_the_host_out_of_order(lab: &mut Lab) {
    let packet = to_gateway(&datagram(&ONE, PORT, &SECOND));
    let [first, later] = fragments(&packet, &[1000]).try_into().unwrap();
    lab.at_container(Interface::A1, &later.frame()).holds(&[]);
    releases(lab, Some(Interface::A1), &first, &[&first, &later]);
    lab.at_container(Interface::A1, &first.frame()).begins_to_host();
    lab.at_container(Interface::A1, &later.frame()).reaches_host();
}

fn of_the_host_from_an_external_host(lab: &mut Lab) {
    for fragment in fragments(&V4::udp(&SERVER, &US, (1, 2), &payload(2500)), &SIZES) {
        lab.at_underlay(&fragment.frame()).passes(&[]);
    }
}

/// The host gets all fragments of its own datagram at once, in whatever order, and however many.
fn of_the_host_from_an_external_host_out_of_order(lab: &mut Lab) {
    let packet = V4::udp(&SERVER, &US, (1, 2), &payload(8 * (usize::from(MAX_HELD) + 9)));
    let all = fragments(&packet, &[8; MAX_HELD as usize + 8]);
    assert!(all.len() > usize::from(MAX_HELD) + 1);
    for (held, fragment) in all[1..].iter().rev().enumerate() {
        let kept =
            if held < usize::from(MAX_HELD) { Note::FragmentCopied } else { Note::FragmentLimited };
        lab.at_underlay(&fragment.frame()).passes(&[note(kept)]);
    }
    assert_eq!(lab.held.keys().len(), usize::from(MAX_HELD));
    lab.at_underlay(&all[0].frame()).passes(&[]);
    assert_eq!(lab.held.keys().len(), 0, "copies of the host's datagram");
    // The datagram is known to be the host's.
    lab.at_underlay(&all[1].frame()).passes(&[]);
}

/// Early fragments without a first fragment (strays), from many sources or from one that forges its
/// address, evict no copy of another source: external hosts have one share together.
fn strays_cost_the_host_nothing(lab: &mut Lab) {
    let host = fragments(&V4::udp(&SERVER, &US, (1, 2), &payload(2500)), &SIZES);
    for fragment in host[1..].iter().rev() {
        lab.at_underlay(&fragment.frame()).passes(&[note(Note::FragmentCopied)]);
    }
    let container = to_gateway(&datagram(&ONE, PORT, &SERVER));
    let container = fragments(&container, &SIZES);
    lab.at_container(Interface::A1, &container[1].frame()).holds(&[]);
    for number in 0..600u16 {
        let [high, low] = number.to_be_bytes();
        let src = [198, 18, high, low];
        let packet = V4 { src, id: number, ..V4::udp(&SERVER, &US, (1, 2), &payload(2500)) };
        let stray = fragments(&packet, &SIZES).remove(2);
        let outcome = lab.at_underlay(&stray.frame()).outcome();
        assert_eq!(outcome.verdict, UNSPEC, "the host gets every fragment");
    }
    is_held(lab, fragment_key(A, &container[1], 0), &container[1]);
    assert!(lab.held.keys().len() < 400, "{} strays are held", lab.held.keys().len());
    lab.at_underlay(&host[0].frame()).passes(&[]);
}

/// Sends strays, each of a datagram of its own, until one is counted as `code`. Returns the last.
#[track_caller]
fn use_up(lab: &mut Lab, at: Program, stray: &V4, code: Code) -> V4 {
    // Two datagrams at their most. The share is refilled while the test runs.
    let share = 2 * u16::from(MAX_HELD);
    for id in 0..4 * share {
        let stray = V4 { id, ..stray.clone() };
        let outcome = lab.at(at, &stray.frame()).outcome();
        if outcome.count(at.direction(), code) == 1 {
            assert!(id >= share, "{id} strays are all of the share");
            return stray;
        }
    }
    panic!("the share of a source has no end");
}

fn a_source_has_a_share(lab: &mut Lab) {
    let stray = V4 { protocol: 17, l4: payload(8), ..V4::new(&SERVER, &US) };
    let stray = V4 { df: false, mf: true, offset: 9, ..stray };
    let last = use_up(lab, Program::Underlay, &stray, Code::Note(Note::FragmentLimited));
    let other = V4 { src: SERVER2.v4, ..last.clone() };
    lab.at_underlay(&other.frame()).passes(&[note(Note::FragmentCopied)]);
    // Room is given back when the first fragment has come.
    let first = V4 { id: 0, mf: true, df: false, ..V4::udp(&SERVER, &US, (1, 2), &payload(64)) };
    lab.at_underlay(&first.frame()).passes(&[]);
    lab.at_underlay(&last.frame()).passes(&[note(Note::FragmentCopied)]);
}

fn a_container_has_a_share(lab: &mut Lab) {
    let unknown = Code::Drop(DropReason::FragmentUnknown);
    let last = use_up(lab, Program::Container, &at(9, 8), unknown);
    let other = V4 { eth_src: TWO.mac, src: TWO.v4, ..last };
    lab.at_container(Interface::A2, &other.frame()).holds(&[]);
}

fn of_another_host(lab: &mut Lab) {
    // The kernel may forward these fragments.
    let other = Host { v4: PEER, ..US };
    let packet = V4::udp(&SERVER, &other, (1, 2), &payload(2500));
    for fragment in fragments(&packet, &SIZES).iter().rev() {
        lab.at_underlay(&fragment.frame()).passes(&[]);
    }
    assert_eq!(lab.held.keys().len(), 0);
}

fn of_another_datagram(lab: &mut Lab) {
    let pairs = pairs(PORT);
    let ((first, left), (later, _)) = (&pairs[0], &pairs[1]);
    lab.at_container(Interface::A1, &first.frame()).leaves_as(left, &CREATED);
    for other in [
        V4 { id: 99, ..later.clone() },
        V4 { protocol: 6, ..later.clone() },
        V4 { dst: [203, 0, 113, 99], ..later.clone() },
    ] {
        lab.at_container(Interface::A1, &other.frame()).holds(&[]);
    }
    // Another network has the same addresses, but the fragment is of another datagram.
    let other = V4 { eth_dst: GATEWAY_OF_B.mac, ..later.clone() };
    lab.at_container(Interface::B1, &other.frame()).holds(&[]);
}

fn expired(lab: &mut Lab) {
    let pairs = pairs(PORT);
    let ((first, left), (later, _)) = (&pairs[0], &pairs[1]);
    lab.at_container(Interface::A1, &first.frame()).leaves_as(left, &CREATED);
    let key = fragment_key(A, first, 0);
    let info = lab.fragments.get(key).unwrap();
    lab.fragments.set(key, FragmentInfo { expires_ns: 1, ..info }.sealed(&key));
    lab.at_container(Interface::A1, &later.frame()).holds(&[]);
    is_held(lab, key, later);
}

fn expired_while_held(lab: &mut Lab) {
    let pairs = pairs(PORT);
    let ((first, left), (later, left_later)) = (&pairs[0], &pairs[1]);
    lab.at_container(Interface::A1, &later.frame()).holds(&[]);
    let key = fragment_key(A, first, 0);
    let held = lab.held.get(key).unwrap();
    lab.held.set(key, HeldFragment { expires_ns: 1, ..held });
    // The held fragment has expired, so it counts as a fragment of another datagram.
    lab.at_container(Interface::A1, &first.frame()).leaves_as(left, &CREATED);
    lab.at_container(Interface::A1, &later.frame()).leaves_as(left_later, &[]);
}

fn of_a_protocol_without_ports(lab: &mut Lab) {
    // Fragments of this protocol are not held. Those for the host pass to the host.
    let make = |dst: &Host| V4 { protocol: 47, l4: payload(2000), ..V4::new(&ONE, dst) };
    for fragment in fragments(&to_gateway(&make(&SERVER)), &[1000]).iter().rev() {
        let frame = fragment.frame();
        lab.at_container(Interface::A1, &frame).drops(DropReason::ProtocolUnsupported);
    }
    for fragment in fragments(&to_gateway(&make(&US)), &[1000]).iter().rev() {
        lab.at_container(Interface::A1, &fragment.frame()).reaches_host();
    }
    let tunnelled = V4 { protocol: 47, l4: payload(2000), ..V4::new(&SERVER, &US) };
    for fragment in fragments(&tunnelled, &[1000]).iter().rev() {
        lab.at_underlay(&fragment.frame()).passes(&[]);
    }
    assert_eq!(lab.held.keys().len(), 0);
}
