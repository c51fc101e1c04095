//! Masquerading: packets of containers to external hosts.

use std::{
    net::{TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use culvert::datapath::Table as _;
use culvert_common::{
    abi::{Action, Code, Direction, DropReason, MappedAddr, Note, kind, seen},
    datapath::nat,
};
use culvert_tests::packet::{Host, SYN, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::{Lab, PORT_SHARE, ip},
    routed::{
        Began, CREATED, CREATED_ELSEWHERE, Passed, Place, chosen_port, echo, entries, inbound,
        outbound, publish, to_gateway, unsummed, with_routes,
    },
    run::{Left, note},
    world::{
        GATEWAY, ONE, PEER2, SECOND, SERVER, SERVER2, TO_PEER2, TWO, UPLINK, US, VXLAN_PORT,
        any_source, incarnation,
    },
};

cases!(
    tcp,
    udp,
    echo_request,
    first_packet_without_payload,
    source_of_the_route,
    on_link_destination,
    known_flow,
    udp_without_checksum,
    udp_checksum_of_zero,
    with_options,
    gso,
    summed_by_the_card,
    checksum_already_wrong_stays_wrong,
    checksums_of_all_lengths,
    checksum_left_to_the_card,
    checksum_of_an_inner_packet_left_to_the_card,
    reserved_port,
    reserved_identifier,
    reserved_for_another_protocol,
    port_of_a_listener,
    port_of_a_udp_socket,
    port_of_another_flow,
    same_port_to_another_peer,
    identifier_zero,
    port_zero,
    echo_reply_of_no_flow,
    ports_exhausted,
    ports_of_a_share_are_left_to_others,
    vxlan_to_the_port_of_any_vtep,
    a_lost_source_ends_a_flow_at_once,
    a_lost_source_ends_a_flow_without_an_agent,
    a_source_that_is_still_ours_stays,
    a_lost_address_ends_the_answers_of_a_port,
);

/// Another address of the host, which [`with_second_source`] has packets leave with.
const OTHER: Host = Host { v4: [192, 0, 2, 9], ..US };

/// Runs a case whose packets to [`SERVER`] leave with the source address [`OTHER`]. `unset` takes
/// the route away, and perhaps the address.
fn with_second_source(lab: &mut Lab, unset: &str, case: impl FnOnce(&mut Lab)) {
    lab.tables.host_addrs.insert(&MappedAddr::v4(OTHER.v4), &0).unwrap();
    let set = "address add 192.0.2.9/32 dev uplink\n\
               route add 203.0.113.7/32 via 192.0.2.254 dev uplink src 192.0.2.9\n";
    with_routes(lab, set, unset, case);
}

const UNSET_ROUTE: &str = "route del 203.0.113.7/32\n";
const UNSET_BOTH: &str = "route del 203.0.113.7/32\naddress del 192.0.2.9/32 dev uplink\n";

/// The datagrams of one flow, and as which they leave from an address of the host.
fn datagram() -> V4 {
    to_gateway(&V4::udp(&ONE, &SERVER, (PORT, 53), b"x"))
}

fn leaving_from(host: &Host) -> V4 {
    outbound(&V4::udp(host, &SERVER, (PORT, 53), b"x"))
}

/// Begins the flow with the source [`OTHER`], and puts its route into the route cache.
fn begin_with_other(lab: &mut Lab) {
    let frame = datagram().frame();
    lab.at_container(Interface::A1, &frame).leaves_as(&leaving_from(&OTHER), &CREATED);
    lab.at_container(Interface::A1, &frame).leaves_as(&leaving_from(&OTHER), &[]);
}

/// The flow has begun anew, with the address that the host still has.
#[track_caller]
fn has_moved(lab: &Lab) {
    assert_eq!(entries(lab), 2, "the former flow is left");
    began(&datagram(), &leaving_from(&US)).has_begun(lab);
}

/// The agent notices that the host has lost the address: the route cache is no longer used.
fn a_lost_source_ends_a_flow_at_once(lab: &mut Lab) {
    with_second_source(lab, UNSET_BOTH, begin_with_other);
    lab.tables.host_addrs.remove(&MappedAddr::v4(OTHER.v4)).unwrap();
    let notes = [note(Note::SourceLost), note(Note::FlowCreated)];
    let run = lab.at_container(Interface::A1, &datagram().frame());
    run.leaves_as(&leaving_from(&US), &notes);
    has_moved(lab);
}

/// No agent runs: the map still has the address that the kernel has lost.
fn a_lost_source_ends_a_flow_without_an_agent(lab: &mut Lab) {
    with_second_source(lab, UNSET_BOTH, begin_with_other);
    let lost = Code::Note(Note::SourceLost);
    let began = Instant::now();
    let left = loop {
        // Until the answer in the route cache is too old.
        let outcome = lab.at_container(Interface::A1, &datagram().frame()).outcome();
        if outcome.count(Direction::FromContainer, lost) == 1 {
            break outcome.frame;
        }
        same("frame of the former flow", &outcome.frame, &leaving_from(&OTHER).frame());
        assert!(began.elapsed() < Duration::from_secs(10), "the flow keeps its lost address");
    };
    same("frame", &left, &leaving_from(&US).frame());
    has_moved(lab);
}

/// The route prefers another address now. A flow holds as long as its own is one of the host's, also
/// if no agent has written that address to the map.
fn a_source_that_is_still_ours_stays(lab: &mut Lab) {
    with_second_source(lab, UNSET_ROUTE, begin_with_other);
    // Another epoch: the route cache is not used.
    lab.tables.uplinks.insert(&Interface::Uplink.ifindex(), &UPLINK).unwrap();
    let run = lab.at_container(Interface::A1, &datagram().frame());
    run.leaves_as(&leaving_from(&OTHER), &[]);
    lab.tables.host_addrs.remove(&MappedAddr::v4(OTHER.v4)).unwrap();
    let run = lab.at_container(Interface::A1, &datagram().frame());
    run.leaves_as(&leaving_from(&OTHER), &[]);
    assert_eq!(entries(lab), 2);
    ip("address del 192.0.2.9/32 dev uplink\n");
}

/// Answers of a published port do not leave with an address that the host has lost.
fn a_lost_address_ends_the_answers_of_a_port(lab: &mut Lab) {
    publish(lab, [0; 4], 17, 8053, Interface::A1, 53);
    let came = V4::udp(&SERVER, &SECOND, (5000, 8053), b"?");
    let went = inbound(&V4::udp(&SERVER, &ONE, (5000, 53), b"?"), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    let answer = to_gateway(&V4::udp(&ONE, &SERVER, (53, 5000), b"!")).frame();
    let left = outbound(&V4::udp(&SECOND, &SERVER, (8053, 5000), b"!"));
    lab.at_container(Interface::A1, &answer).leaves_as(&left, &[]);
    lab.tables.host_addrs.remove(&MappedAddr::v4(SECOND.v4)).unwrap();
    let run = lab.at_container(Interface::A1, &answer);
    run.drops_noting(DropReason::NoFlow, &[note(Note::SourceLost)]);
    assert_eq!(entries(lab), 0);
}

/// The packet would leave with our own VTEP address as its source, which the other host accepts.
fn vxlan_to_the_port_of_any_vtep(lab: &mut Lab) {
    let vtep = Host { v4: PEER2, ..SERVER };
    let port = TO_PEER2.port;
    let datagram = to_gateway(&V4::udp(&ONE, &vtep, (PORT, port), &payload(64)));
    lab.at_container(Interface::A1, &datagram.frame()).drops(DropReason::VxlanFromContainer);
    assert_eq!(entries(lab), 0);

    // Without a path, the port of the VTEP is taken to be this host's. The VTEP may have left the
    // cluster, so other ports are open.
    lab.tables.underlay.remove(&PEER2).unwrap();
    let datagram = to_gateway(&V4::udp(&ONE, &vtep, (PORT, VXLAN_PORT), &payload(64)));
    lab.at_container(Interface::A1, &datagram.frame()).drops(DropReason::VxlanFromContainer);
    let datagram = to_gateway(&V4::udp(&ONE, &vtep, (PORT, 53), &payload(64)));
    let run = lab.at_container(Interface::A1, &datagram.frame());
    run.redirects(Action::NatOut, Left::Spent, &CREATED);
}

/// A packet from `A1` to the server, and a function from the source port to the packet that leaves.
type Pair = (V4, fn(u16) -> V4);

const PORT: u16 = 40_000;

fn kinds() -> [Pair; 3] {
    [
        (V4::segment(&ONE, &SERVER, (PORT, 80), SYN, &[]), |port| {
            V4::segment(&US, &SERVER, (port, 80), SYN, &[])
        }),
        (V4::udp(&ONE, &SERVER, (PORT, 53), &payload(33)), |port| {
            V4::udp(&US, &SERVER, (port, 53), &payload(33))
        }),
        (echo(&ONE, &SERVER, 8, PORT), |id| echo(&US, &SERVER, 8, id)),
    ]
}

/// The flow of a packet of `A1`'s that left as `left`.
fn began<'a>(came: &'a V4, left: &'a V4) -> Began<'a> {
    let (from, to) = (Place::At(Interface::A1), Place::External);
    Began { came, from, went: left, to, kind: kind::MASQUERADE }
}

/// `packet` leaves as `left`, one hop further, and begins a flow.
#[track_caller]
fn begins(lab: &mut Lab, packet: &V4, left: &V4) {
    let (packet, left) = (to_gateway(packet), outbound(left));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
    began(&packet, &left).has_begun(lab);
    assert_eq!(entries(lab), 2);
}

/// `packet` begins a flow with another port than its own. Returns the new port.
#[track_caller]
fn begins_elsewhere(lab: &mut Lab, packet: &V4, left: impl FnOnce(u16) -> V4) -> u16 {
    let packet = to_gateway(packet);
    let run = lab.at_container(Interface::A1, &packet.frame());
    let outcome = run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE);
    let port = chosen_port(&outcome.frame);
    let left = outbound(&left(port));
    same("frame", &outcome.frame, &left.frame());
    began(&packet, &left).has_begun(lab);
    assert!(port >= 1024, "{port} is out of the range");
    port
}

fn tcp(lab: &mut Lab) {
    let (packet, left) = &kinds()[0];
    begins(lab, packet, &left(PORT));
}

fn udp(lab: &mut Lab) {
    let (packet, left) = &kinds()[1];
    begins(lab, packet, &left(PORT));
}

fn echo_request(lab: &mut Lab) {
    let (packet, left) = &kinds()[2];
    begins(lab, packet, &left(PORT));
}

fn first_packet_without_payload(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &SERVER, (PORT, 53), &[]);
    begins(lab, &packet, &V4::udp(&US, &SERVER, (PORT, 53), &[]));
}

fn source_of_the_route(lab: &mut Lab) {
    let ours = Host { v4: [192, 0, 2, 9], ..US };
    with_routes(
        lab,
        "address add 192.0.2.9/32 dev uplink\n\
         route add 203.0.113.7/32 via 192.0.2.254 dev uplink src 192.0.2.9\n",
        "route del 203.0.113.7/32\naddress del 192.0.2.9/32 dev uplink\n",
        |lab| {
            let packet = V4::udp(&ONE, &SERVER, (PORT, 53), b"x");
            begins(lab, &packet, &V4::udp(&ours, &SERVER, (PORT, 53), b"x"));
        },
    );
}

fn on_link_destination(lab: &mut Lab) {
    let near = Host { v4: [192, 0, 2, 40], ..SERVER };
    let packet = V4::udp(&ONE, &near, (PORT, 53), b"x");
    begins(lab, &packet, &V4::udp(&US, &near, (PORT, 53), b"x"));
}

fn known_flow(lab: &mut Lab) {
    let first = to_gateway(&V4::segment(&ONE, &SERVER, (PORT, 80), SYN, &[]));
    let left = outbound(&V4::segment(&US, &SERVER, (PORT, 80), SYN, &[]));
    lab.at_container(Interface::A1, &first.frame()).leaves_as(&left, &CREATED);
    let second = to_gateway(&V4::tcp(&ONE, &SERVER, (PORT, 80), &payload(500)));
    let then = outbound(&V4::tcp(&US, &SERVER, (PORT, 80), &payload(500)));
    lab.at_container(Interface::A1, &second.frame()).leaves_as(&then, &[]);
    // The server has sent nothing that the second one could acknowledge.
    let passed = Passed::frames(&[&first, &second], seen::SYN);
    began(&first, &left).is_tracked(lab, passed, Passed::default());
}

fn udp_without_checksum(lab: &mut Lab) {
    let packet = unsummed(V4::udp(&ONE, &SERVER, (PORT, 53), &payload(9)));
    begins(lab, &packet, &unsummed(V4::udp(&US, &SERVER, (PORT, 53), &payload(9))));
    // The checksum stays absent if the port is changed, too.
    lab.reserve(17, 999);
    let packet = unsummed(V4::udp(&ONE, &SERVER, (999, 53), &payload(9)));
    begins_elsewhere(lab, &packet, |port| unsummed(V4::udp(&US, &SERVER, (port, 53), &payload(9))));
}

fn udp_checksum_of_zero(lab: &mut Lab) {
    // The word is chosen such that the checksum would be 0. A 0 means no checksum, so the datagram
    // has all ones (RFC 768).
    let datagram = |word: u16| V4::udp(&US, &SERVER, (PORT, 53), &word.to_be_bytes());
    let word = (0..=u16::MAX).find(|word| datagram(*word).l4[6..8] == [0xff; 2]).unwrap();
    let packet = V4::udp(&ONE, &SERVER, (PORT, 53), &word.to_be_bytes());
    begins(lab, &packet, &datagram(word));
}

fn with_options(lab: &mut Lab) {
    for (packet, left) in kinds() {
        for options in [vec![1; 4], vec![0x94, 4, 0, 0], vec![1; 40]] {
            let packet = to_gateway(&V4 { options: options.clone(), ..packet.clone() });
            let left = outbound(&V4 { options, ..left(PORT) });
            let notes = if entries(lab) < 2 * flows_of(&packet) { CREATED.as_slice() } else { &[] };
            lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, notes);
        }
    }
    assert_eq!(entries(lab), 6);
}

/// Number of flows after the one of `packet` has begun, in the order of [`kinds`].
fn flows_of(packet: &V4) -> usize {
    match packet.protocol {
        6 => 1,
        17 => 2,
        _ => 3,
    }
}

fn gso(lab: &mut Lab) {
    let ports = (PORT, 80);
    let packet = to_gateway(&V4::tcp(&ONE, &SERVER, ports, &payload(3000)));
    let left = outbound(&V4::tcp(&US, &SERVER, ports, &payload(3000)));
    lab.at_container(Interface::A1, &packet.frame()).gso(1398).leaves_as(&left, &CREATED);
    let passed = Passed::frames(&[&packet], 0);
    began(&packet, &left).is_tracked(lab, passed, Passed::default());
}

fn summed_by_the_card(lab: &mut Lab) {
    for (packet, left) in kinds() {
        for options in [vec![], vec![1; 8]] {
            let packet = to_gateway(&V4 { options: options.clone(), ..packet.clone() });
            let left = outbound(&V4 { options, ..left(PORT) });
            let before = entries(lab);
            let run = lab.at_container(Interface::A1, &packet.frame()).summed();
            let notes = if before < 2 * flows_of(&packet) { CREATED.as_slice() } else { &[] };
            run.leaves_as(&left, notes);
        }
    }
    // The same with a changed port.
    for protocol in [6, 17, 1] {
        lab.reserve(protocol, 999);
    }
    for packet in [
        V4::segment(&ONE, &SERVER, (999, 80), SYN, &[]),
        V4::udp(&ONE, &SERVER, (999, 53), &payload(33)),
        echo(&ONE, &SERVER, 8, 999),
    ] {
        let packet = to_gateway(&packet);
        let run = lab.at_container(Interface::A1, &packet.frame()).summed();
        run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE);
    }
}

fn checksum_already_wrong_stays_wrong(lab: &mut Lab) {
    // The receiver checks the checksum: a correct one would hide the error.
    let wrong = |mut packet: V4| {
        packet.l4.iter_mut().last().into_iter().for_each(|byte| *byte ^= 0x40);
        packet
    };
    for (packet, left) in kinds() {
        let damaged = to_gateway(&wrong(packet.clone()));
        // A packet with a wrong checksum begins no flow. UDP is not checked.
        if packet.protocol != 17 {
            lab.at_container(Interface::A1, &damaged.frame()).drops(DropReason::BadChecksum);
        }
        let packet = to_gateway(&packet);
        let run = lab.at_container(Interface::A1, &packet.frame());
        run.leaves_as(&outbound(&left(PORT)), &CREATED);
        let run = lab.at_container(Interface::A1, &damaged.frame());
        run.leaves_as(&outbound(&wrong(left(PORT))), &[]);
    }
}

/// Segments of every length up to that of an MTU of 1500, with a right checksum and with one wrong
/// bit.
fn checksums_of_all_lengths(lab: &mut Lab) {
    for len in (1..140).chain([191, 192, 193, 1000, 1459, 1460]) {
        let ports = (PORT, 2000 + u16::try_from(len).unwrap());
        let right = V4::segment(&ONE, &SERVER, ports, SYN, &payload(len));
        let mut damaged = to_gateway(&right);
        damaged.l4.iter_mut().last().into_iter().for_each(|byte| *byte ^= 0x10);
        let damaged = damaged.frame();
        lab.at_container(Interface::A1, &damaged).drops(DropReason::BadChecksum);
        // The kernel has the sum of the frame, but has not compared it.
        lab.at_container(Interface::A1, &damaged).summed().drops(DropReason::BadChecksum);
        let left = outbound(&V4::segment(&US, &SERVER, ports, SYN, &payload(len)));
        lab.at_container(Interface::A1, &to_gateway(&right).frame()).leaves_as(&left, &CREATED);
    }
    // A longer one is not summed.
    let mut long = to_gateway(&V4::segment(&ONE, &SERVER, (1999, 80), SYN, &payload(1600)));
    long.l4[100] ^= 1;
    let run = lab.at_container(Interface::A1, &long.frame()).outcome();
    assert_eq!(run.count(Direction::FromContainer, Code::Drop(DropReason::BadChecksum)), 0);
}

/// A vxlan device in the container leaves the checksum of the inner packet to the network card. So
/// the sum over the bytes of the datagram is wrong, although its UDP checksum is right.
fn checksum_of_an_inner_packet_left_to_the_card(lab: &mut Lab) {
    let mut packet = V4::udp(&ONE, &SERVER, (PORT, 4790), &payload(100));
    packet.l4[60] ^= 1;
    let run = lab.at_container(Interface::A1, &to_gateway(&packet).frame());
    run.redirects(Action::NatOut, Left::Spent, &CREATED);
}

/// The sender's network card was to add the sum of the payload: the field has that of the pseudo
/// header.
fn checksum_left_to_the_card(lab: &mut Lab) {
    let mut packet = to_gateway(&V4::segment(&ONE, &SERVER, (PORT, 80), SYN, b"abcd"));
    let words = [[10, 0], [0, packet.src[3]], [203, 0], [113, 7], [0, 6], [0, 36]];
    let sum: u32 = words.map(u16::from_be_bytes).map(u32::from).iter().sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet.l4[16..18].copy_from_slice(&folded.to_be_bytes());
    let run = lab.at_container(Interface::A1, &packet.frame());
    run.redirects(Action::NatOut, Left::Spent, &CREATED);
}

fn reserved_port(lab: &mut Lab) {
    for (protocol, (packet, left)) in [6, 17].into_iter().zip(kinds()) {
        lab.reserve(protocol, PORT);
        let port = begins_elsewhere(lab, &packet, left);
        assert_ne!(port, PORT);
    }
}

fn reserved_identifier(lab: &mut Lab) {
    let [_, _, (packet, left)] = kinds();
    lab.reserve(1, PORT);
    assert_ne!(begins_elsewhere(lab, &packet, left), PORT);
}

fn reserved_for_another_protocol(lab: &mut Lab) {
    lab.reserve(6, PORT);
    lab.reserve(17, PORT + 1);
    let [_, (packet, left), _] = kinds();
    begins(lab, &packet, &left(PORT));
}

fn port_of_a_listener(lab: &mut Lab) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let packet = V4::segment(&ONE, &SERVER, (port, 80), SYN, &[]);
    let other =
        begins_elsewhere(lab, &packet, |port| V4::segment(&US, &SERVER, (port, 80), SYN, &[]));
    assert_ne!(other, port);
    // The port is free for UDP.
    let packet = to_gateway(&V4::udp(&ONE, &SERVER, (port, 53), b"x"));
    let left = outbound(&V4::udp(&US, &SERVER, (port, 53), b"x"));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
}

fn port_of_a_udp_socket(lab: &mut Lab) {
    for (address, to) in [("0.0.0.0:0", None), ("192.0.2.1:0", Some("203.0.113.7:53"))] {
        let socket = UdpSocket::bind(address).unwrap();
        if let Some(to) = to {
            socket.connect(to).unwrap();
        }
        let port = socket.local_addr().unwrap().port();
        let packet = V4::udp(&ONE, &SERVER, (port, 53), b"x");
        let other = begins_elsewhere(lab, &packet, |port| V4::udp(&US, &SERVER, (port, 53), b"x"));
        assert_ne!(other, port);
    }
    // A socket that is connected to another peer does not matter.
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.connect("203.0.113.8:53").unwrap();
    let port = socket.local_addr().unwrap().port();
    let packet = to_gateway(&V4::udp(&ONE, &SERVER, (port, 53), b"x"));
    let left = outbound(&V4::udp(&US, &SERVER, (port, 53), b"x"));
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
}

/// The other container sends the same packet as `A1`.
fn after_another(lab: &mut Lab, make: fn(&Host, u16) -> V4) {
    let packet = V4 { eth_src: TWO.mac, ..to_gateway(&make(&TWO, PORT)) };
    let run = lab.at_container(Interface::A2, &packet.frame());
    run.leaves_as(&outbound(&make(&US, PORT)), &CREATED);
    let other = begins_elsewhere(lab, &make(&ONE, PORT), |port| make(&US, port));
    assert_ne!(other, PORT);
    assert_eq!(entries(lab) % 4, 0);
}

fn port_of_another_flow(lab: &mut Lab) {
    after_another(lab, |host, port| V4::segment(host, &SERVER, (port, 80), SYN, &[]));
    after_another(lab, |host, port| V4::udp(host, &SERVER, (port, 53), b"x"));
    after_another(lab, |host, port| echo(host, &SERVER, 8, port));
}

fn same_port_to_another_peer(lab: &mut Lab) {
    let first = to_gateway(&V4::udp(&TWO, &SERVER, (PORT, 53), b"x"));
    let left = outbound(&V4::udp(&US, &SERVER, (PORT, 53), b"x"));
    lab.at_container(Interface::A2, &first.frame()).leaves_as(&left, &CREATED);
    for (peer, port) in [(SERVER2, 53), (SERVER, 54)] {
        let packet = to_gateway(&V4::udp(&ONE, &peer, (PORT, port), b"x"));
        let left = outbound(&V4::udp(&US, &peer, (PORT, port), b"x"));
        lab.at_container(Interface::A1, &packet.frame()).leaves_as(&left, &CREATED);
        began(&packet, &left).has_begun(lab);
    }
}

fn identifier_zero(lab: &mut Lab) {
    // In a flow key 0 stands for the port that an echo does not have.
    let packet = echo(&ONE, &SERVER, 8, 0);
    assert_ne!(begins_elsewhere(lab, &packet, |id| echo(&US, &SERVER, 8, id)), 0);
}

fn port_zero(lab: &mut Lab) {
    let packet = V4::udp(&ONE, &SERVER, (0, 53), b"x");
    begins_elsewhere(lab, &packet, |port| V4::udp(&US, &SERVER, (port, 53), b"x"));
}

fn echo_reply_of_no_flow(lab: &mut Lab) {
    // No echo request preceded this reply.
    any_source(&lab.tables, Interface::A1);
    let packet = to_gateway(&echo(&ONE, &SERVER, 0, 77));
    lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::NoFlow);
    assert_eq!(entries(lab), 0);
}

/// All ports that `A1` may always take are taken: it gets none, and `A2` gets one.
fn ports_of_a_share_are_left_to_others(lab: &mut Lab) {
    let [one, two] = [Interface::A1, Interface::A2].map(|at| incarnation(&lab.tables, at));
    let ports = 1024..=u16::MAX;
    let is_in_share = |port, owner| nat::is_in_share(port, owner, nat::port_share(PORT_SHARE));
    for port in ports.clone().filter(|port| is_in_share(*port, one)) {
        lab.reserve(17, port);
    }
    let mine = ports.clone().find(|port| is_in_share(*port, one)).unwrap();
    let packet = to_gateway(&V4::udp(&ONE, &SERVER, (mine, 53), b"x"));
    for _ in 0..20 {
        lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::NatPortsExhausted);
    }
    let other = ports.clone().find(|port| is_in_share(*port, two) && !is_in_share(*port, one));
    for (port, notes) in
        [(other.unwrap(), CREATED.as_slice()), (mine, CREATED_ELSEWHERE.as_slice())]
    {
        let packet = to_gateway(&V4::udp(&TWO, &SERVER, (port, 53), b"x"));
        let run = lab.at_container(Interface::A2, &packet.frame());
        let outcome = run.redirects(Action::NatOut, Left::Spent, notes);
        let chosen = chosen_port(&outcome.frame);
        assert!(is_in_share(chosen, two) && !is_in_share(chosen, one), "{chosen}");
        assert!(chosen == port || port == mine, "{chosen}");
    }
}

fn ports_exhausted(lab: &mut Lab) {
    lab.reserve_all();
    for (packet, _) in kinds() {
        let packet = to_gateway(&packet);
        lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::NatPortsExhausted);
    }
    assert_eq!(entries(lab), 0);
}
