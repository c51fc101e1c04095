//! Conntrack: the state of a flow, the end of a flow and its replacement, and a full table.

use std::net::TcpListener;

use culvert::datapath::Table as _;
use culvert_common::abi::{Action, DropReason, Evictable, Flow, FlowKey, Note, Tuple, kind, seen};
use culvert_tests::packet::{ACK, FIN, Host, RST, SEQ, SYN, V4};

use crate::{
    compare::same,
    lab::Lab,
    ports::Port,
    routed::{
        Began, CREATED, CREATED_ELSEWHERE, Passed, Place, answer, chosen_port, entries, flow,
        inbound, key, outbound, publish, to_gateway,
    },
    run::{Left, note},
    world::{A, GATEWAY, ONE, PEER, SERVER, SERVER2, US, change_endpoint, from_peer},
};

cases!(
    flags_by_direction,
    rst_is_forgotten_when_something_follows,
    rst_and_fin_of_another_sequence_number,
    syn_begins_anew_after_both_fins,
    syn_begins_anew_after_an_rst,
    syn_on_a_port_that_is_the_hosts_by_now,
    syn_does_not_begin_anew_before,
    container_replaced,
    container_replaced_seen_from_outside,
    client_replaced,
    server_gone,
    spoofed_by_another_container,
    server_connects_to_its_clients_port,
    server_connects_to_the_port_of_a_client_on_another_host,
    full,
);

const PORT: u16 = 40_000;

fn from_a1(flags: u8) -> V4 {
    to_gateway(&V4::segment(&ONE, &SERVER, (PORT, 80), flags, &[]))
}

fn left(flags: u8) -> V4 {
    outbound(&V4::segment(&US, &SERVER, (PORT, 80), flags, &[]))
}

fn from_server(flags: u8) -> V4 {
    V4::segment(&SERVER, &US, (80, PORT), flags, &[])
}

fn arrived(flags: u8) -> V4 {
    inbound(&V4::segment(&SERVER, &ONE, (80, PORT), flags, &[]), &GATEWAY)
}

/// Segments in this order; the first begins the flow.
#[track_caller]
fn exchange(lab: &mut Lab, segments: &[(bool, u8)]) {
    for (index, (out, flags)) in segments.iter().enumerate() {
        if *out {
            let notes = if index == 0 { CREATED.as_slice() } else { &[] };
            let run = lab.at_container(Port::A1, &from_a1(*flags).frame());
            run.leaves_as(&left(*flags), notes);
        } else {
            lab.at_underlay(&from_server(*flags).frame()).arrives_as(&arrived(*flags), &[]);
        }
    }
}

/// The `seen` flags of both directions.
fn seen(lab: &Lab) -> (u32, u32) {
    let orig = key(A, &from_a1(SYN));
    let reply = answer(&key(0, &left(SYN)));
    let seen = |key| flow(lab, &key).seen;
    (seen(orig), seen(reply))
}

fn flags_by_direction(lab: &mut Lab) {
    let (s, syn, ack, fin, rst) = (seen::PACKET, seen::SYN, seen::ACK, seen::FIN, seen::RST);
    exchange(lab, &[(true, SYN)]);
    assert_eq!(seen(lab), (s | syn, 0));
    exchange_on(lab, &[(false, SYN | ACK)]);
    assert_eq!(seen(lab), (s | syn, s | syn));
    exchange_on(lab, &[(true, ACK)]);
    assert_eq!(seen(lab), (s | syn | ack, s | syn));
    exchange_on(lab, &[(false, ACK | FIN)]);
    assert_eq!(seen(lab), (s | syn | ack, s | syn | ack | fin));
    exchange_on(lab, &[(true, ACK | FIN), (false, RST)]);
    assert_eq!(seen(lab), (s | syn | ack | fin, s | syn | ack | fin | rst));
}

/// [`exchange`] of an existing flow.
#[track_caller]
fn exchange_on(lab: &mut Lab, segments: &[(bool, u8)]) {
    for (out, flags) in segments {
        if *out {
            let run = lab.at_container(Port::A1, &from_a1(*flags).frame());
            run.leaves_as(&left(*flags), &[]);
        } else {
            lab.at_underlay(&from_server(*flags).frame()).arrives_as(&arrived(*flags), &[]);
        }
    }
}

/// A sender that does not know the sequence numbers of a connection cannot end it.
fn rst_and_fin_of_another_sequence_number(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)]);
    let before = seen(lab);
    for (flags, seq) in [(RST, 1), (RST | ACK, SEQ - 1), (FIN | ACK, SEQ + (1 << 22))] {
        let forged = V4::segment_at(&SERVER, &US, (80, PORT), flags, seq, &[]);
        let passed = V4::segment_at(&SERVER, &ONE, (80, PORT), flags, seq, &[]);
        lab.at_underlay(&forged.frame()).arrives_as(&inbound(&passed, &GATEWAY), &[]);
        assert_eq!(seen(lab), before, "flags {flags:#x}, sequence number {seq}");
    }
    exchange_on(lab, &[(false, RST)]);
    assert_eq!(seen(lab), (before.0, before.1 | seen::RST));
}

fn rst_is_forgotten_when_something_follows(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (false, RST | ACK)]);
    assert_eq!(seen(lab).1, seen::PACKET | seen::SYN | seen::RST);
    exchange_on(lab, &[(false, ACK)]);
    assert_eq!(seen(lab).1, seen::PACKET | seen::SYN | seen::ACK);
}

fn syn_begins_anew_after_both_fins(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK | FIN), (false, ACK | FIN)]);
    begins_anew(lab);
}

fn syn_begins_anew_after_an_rst(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, RST | ACK)]);
    begins_anew(lab);
}

/// A SYN begins another flow in the place of one that has ended.
#[track_caller]
fn begins_anew(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    assert_eq!(seen(lab), (seen::PACKET | seen::SYN, 0));
    let (came, went) = (from_a1(SYN), left(SYN));
    let (from, to) = (Place::At(Port::A1), Place::Outside);
    let began = Began { came: &came, from, went: &went, to, kind: kind::MASQUERADE };
    began.has_begun(lab);
}

/// The host uses the port since the connection on it ended. The container's next connection gets
/// another port, or the host would receive its answers.
fn syn_on_a_port_that_is_the_hosts_by_now(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, RST | ACK)]);
    let _host = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let run = lab.at_container(Port::A1, &from_a1(SYN).frame());
    let outcome = run.redirects(Action::NatOut, Left::Spent, &CREATED_ELSEWHERE);
    let port = chosen_port(&outcome.frame);
    assert_ne!(port, PORT);
    let left = outbound(&V4::segment(&US, &SERVER, (port, 80), SYN, &[]));
    same("frame", &outcome.frame, &left.frame());
    assert_eq!(entries(lab), 2);
}

fn syn_does_not_begin_anew_before(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK | FIN)]);
    let before = seen(lab);
    exchange_on(lab, &[(true, SYN)]);
    assert_eq!(seen(lab), before);
    // The other side cannot end it either.
    exchange_on(lab, &[(true, ACK | FIN)]);
    let before = seen(lab);
    exchange_on(lab, &[(false, SYN)]);
    assert_eq!(seen(lab), before);
    exchange_on(lab, &[(true, SYN | ACK)]);
    assert_eq!(seen(lab), before);
}

fn container_replaced(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    change_endpoint(&lab.tables, Port::A1, |entry| entry.incarnation += 1);
    let run = lab.at_container(Port::A1, &from_a1(ACK).frame());
    run.leaves_as(&left(ACK), &[note(Note::FlowStale), note(Note::FlowCreated)]);
    let (came, went) = (from_a1(ACK), left(ACK));
    let (from, to) = (Place::At(Port::A1), Place::Outside);
    let began = Began { came: &came, from, went: &went, to, kind: kind::MASQUERADE };
    began.is_tracked(lab, Passed::frames(&[&came], seen::ACK), Passed::default());
}

fn container_replaced_seen_from_outside(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    change_endpoint(&lab.tables, Port::A1, |entry| entry.incarnation += 1);
    lab.at_underlay(&from_server(ACK).frame()).passes(&[note(Note::FlowStale)]);
    assert_eq!(entries(lab), 0);
    lab.at_underlay(&from_server(ACK).frame()).passes(&[]);
}

/// `A2` connects to a port of `A1`'s.
fn connected(lab: &mut Lab) -> (V4, V4) {
    publish(lab, [0; 4], 6, 8080, Port::A1, 80);
    let came = to_gateway(&V4::segment(&crate::world::TWO, &US, (5000, 8080), SYN, &[]));
    let went = inbound(&V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Port::A2, &came.frame()).arrives_as(&went, &CREATED);
    (came, went)
}

fn client_replaced(lab: &mut Lab) {
    connected(lab);
    change_endpoint(&lab.tables, Port::A2, |entry| entry.incarnation += 1);
    let answer = V4::segment(&ONE, &GATEWAY, (80, 5000), SYN | ACK, &[]);
    let run = lab.at_container(Port::A1, &answer.frame());
    let notes = [note(Note::FlowStale)];
    run.redirects(Action::ToHost, Left::Unchanged, &notes);
    assert_eq!(entries(lab), 0);
}

fn server_gone(lab: &mut Lab) {
    let (came, _) = connected(lab);
    lab.tables.endpoints.remove(&Port::A1.ifindex()).unwrap();
    let run = lab.at_container(Port::A2, &came.frame());
    run.drops_noting(DropReason::UnknownEndpoint, &[note(Note::FlowStale)]);
    assert_eq!(entries(lab), 0);
}

fn spoofed_by_another_container(lab: &mut Lab) {
    // With `anti_spoof=false` it can send as `A1`. It takes the flow over: the other container must
    // begin again, and no answer goes to the wrong container.
    exchange(lab, &[(true, SYN)]);
    crate::world::any_source(&lab.tables, Port::A2);
    let run = lab.at_container(Port::A2, &from_a1(ACK).frame());
    run.leaves_as(&left(ACK), &[note(Note::FlowStale), note(Note::FlowCreated)]);
    let reply = flow(lab, &answer(&key(0, &left(ACK))));
    assert_eq!(reply.dest, Port::A2.ifindex());
}

/// A SYN of a published port's server to the very port of its client begins no flow: its
/// addresses and ports are those of the answers of one.
fn server_connects_to_its_clients_port(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Port::A1, 80);
    let came = V4::segment(&SERVER, &US, (5000, 8080), SYN, &[]);
    let went = inbound(&V4::segment(&SERVER, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::Outside, Place::At(Port::A1));
    let began = Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED };

    let against = to_gateway(&V4::segment(&ONE, &SERVER, (80, 5000), SYN, &[]));
    lab.at_container(Port::A1, &against.frame()).drops(DropReason::FlowConflict);
    began.has_begun(lab);
    assert_eq!(entries(lab), 2);
}

/// The client is another host itself: its flow leads into the tunnel, and the SYN does not leave by
/// an uplink.
fn server_connects_to_the_port_of_a_client_on_another_host(lab: &mut Lab) {
    let host = Host { mac: GATEWAY.mac, v4: PEER, ..SERVER };
    let inner = V4 { eth_dst: ONE.mac, ..V4::segment(&host, &ONE, (5000, 80), SYN, &[]) };
    let wrapped = from_peer().wrap(&inner.frame());
    let created = note(Note::FlowCreated).bytes(inner.frame().len());
    lab.at_underlay(&wrapped).redirects(Action::NatDeliver, Left::Spent, &[created]);
    assert_eq!(entries(lab), 2);

    let client = Host { v4: PEER, ..SERVER };
    let against = to_gateway(&V4::segment(&ONE, &client, (80, 5000), SYN, &[]));
    lab.at_container(Port::A1, &against.frame()).drops(DropReason::FlowConflict);
    assert_eq!(entries(lab), 2);
}

/// A key that no packet has.
fn filler(number: u32) -> FlowKey {
    let tuple = Tuple { src: number.to_be_bytes(), ..Tuple::default() };
    FlowKey { zone: 0xffff_fff0, tuple, protocol: 255, pad: [0; 3] }
}

/// A segment of `A1`'s to another server, and what leaves.
fn another(port: u16) -> (V4, V4) {
    let make = |from: &Host| V4::segment(from, &SERVER2, (port, 80), SYN, &[]);
    (to_gateway(&make(&ONE)), outbound(&make(&US)))
}

/// That segment is dropped, and leaves nothing behind.
#[track_caller]
fn refused(lab: &mut Lab, port: u16) {
    let (packet, went) = another(port);
    lab.at_container(Port::A1, &packet.frame()).drops(DropReason::ConntrackFull);
    assert_eq!(lab.flows.get(key(A, &packet)), None, "orig");
    assert_eq!(lab.flows.get(answer(&key(0, &went))), None, "reply");
}

/// That segment takes the place of an idle flow.
#[track_caller]
fn replaces(lab: &mut Lab, port: u16) {
    let (packet, went) = another(port);
    let notes = [note(Note::FlowEvicted), note(Note::FlowCreated)];
    lab.at_container(Port::A1, &packet.frame()).leaves_as(&went, &notes);
    let (from, to) = (Place::At(Port::A1), Place::Outside);
    Began { came: &packet, from, went: &went, to, kind: kind::MASQUERADE }.has_begun(lab);
}

/// One case for all that takes a full table: filling it takes a second.
fn full(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK)]);
    let orig = key(A, &from_a1(SYN));
    let reply = answer(&key(0, &left(SYN)));
    let filled = lab.flows.fill(|number| (filler(number), Flow::default()));

    // No flow may be evicted.
    refused(lab, 1);
    // The host itself answers without a flow.
    let to_host = to_gateway(&V4::segment(&ONE, &US, (1, 22), SYN, &[]));
    let run = lab.at_container(Port::A1, &to_host.frame());
    run.redirects(Action::ToHost, Left::Unchanged, &[note(Note::FlowRefused)]);
    // Existing flows continue.
    exchange_on(lab, &[(true, ACK)]);

    // Flows used since they were queued, in one direction or the other, and a removed flow.
    let last = flow(lab, &orig).last_seen_ns.max(flow(lab, &reply).last_seen_ns);
    let offer = |last_seen_ns, key| Evictable { last_seen_ns, key, pad: 0 };
    lab.offer(offer(last - 1, orig));
    lab.offer(offer(last, filler(u32::MAX)));
    refused(lab, 1);
    assert!(lab.next_evictable().is_none(), "they are not tried again");
    let touched = Flow { last_seen_ns: last + 1, ..flow(lab, &reply) };
    lab.flows.set(reply, touched);
    lab.offer(offer(last, orig));
    refused(lab, 1);
    assert_eq!(flow(lab, &reply), touched);

    // Idle: both entries make room for both of the new flow. The next flow of the queue stays.
    lab.offer(offer(last + 1, orig));
    lab.offer(offer(u64::MAX, filler(0)));
    replaces(lab, 1);
    assert_eq!((lab.flows.get(orig), lab.flows.get(reply)), (None, None));
    assert_eq!(lab.next_evictable().map(|next| next.key), Some(filler(0)));

    // Room for one entry is not enough.
    lab.flows.remove(filler(0));
    refused(lab, 2);
    let (idle, _) = another(1);
    lab.offer(offer(u64::MAX, key(A, &idle)));
    replaces(lab, 2);

    for number in 1..filled {
        lab.flows.remove(filler(number));
    }
}
