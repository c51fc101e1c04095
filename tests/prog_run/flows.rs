//! Conntrack: the state of a flow, the end of a flow and its replacement, and a full table.

use std::net::TcpListener;

use culvert::datapath::{Table as _, now_ns};
use culvert_common::{
    abi::{Action, DropReason, Flow, FlowKey, FlowShare, Note, Sealed as _, Tuple, kind, seen},
    datapath::conntrack::FlowState,
};
use culvert_tests::packet::{ACK, FIN, Host, RST, SEQ, SYN, V4, payload};

use crate::{
    compare::same,
    interfaces::Interface,
    lab::{Lab, MAX_FLOWS},
    routed::{
        Began, CREATED, CREATED_ELSEWHERE, Passed, Place, answer, chosen_port, entries, flow,
        inbound, key, outbound, publish, to_gateway,
    },
    run::{Count, Left, note},
    world::{
        A, GATEWAY, ONE, PEER, SERVER, SERVER2, TWO, US, change_endpoint, from_peer, incarnation,
    },
};

cases!(
    flags_by_direction,
    nothing_revives_what_was_reset,
    a_reset_flow_does_not_live_longer,
    blind_segments_establish_nothing,
    blind_segments_to_a_published_port,
    mid_stream_with_gso,
    a_handshake_of_a_new_connection_after_an_unseen_end,
    rst_and_fin_of_another_sequence_number,
    syn_begins_anew_after_both_fins,
    syn_begins_anew_after_an_rst,
    syn_on_a_port_that_is_the_hosts_by_now,
    syn_does_not_begin_anew_before,
    container_replaced,
    container_replaced_seen_by_an_external_host,
    client_replaced,
    server_gone,
    spoofed_by_another_container,
    server_connects_to_its_clients_port,
    server_connects_to_the_port_of_a_client_on_another_host,
    full_of_connections,
    full_of_unanswered,
    a_container_has_its_share,
    a_container_evicts_its_own_flows,
    flows_are_counted_for_their_container,
    full_of_denied,
    full_of_ended_and_others,
    what_has_expired_makes_room,
    what_has_expired_is_no_flow,
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

/// Sends segments in this order. Each is given as whether `A1` sends it, and its flags. The first
/// segment begins the flow.
#[track_caller]
pub(crate) fn exchange(lab: &mut Lab, segments: &[(bool, u8)]) {
    for (index, (out, flags)) in segments.iter().enumerate() {
        if *out {
            let notes = if index == 0 { CREATED.as_slice() } else { &[] };
            let run = lab.at_container(Interface::A1, &from_a1(*flags).frame());
            run.leaves_as(&left(*flags), notes);
        } else {
            lab.at_underlay(&from_server(*flags).frame()).arrives_as(&arrived(*flags), &[]);
        }
    }
}

/// The `seen` flags of both directions that decide the state.
fn seen(lab: &Lab) -> (u32, u32) {
    let [orig, reply] = keys();
    let seen = |key| flow(lab, &key).seen & !(seen::PENDING | seen::AHEAD | seen::AHEAD_FIN);
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
    let all = s | syn | ack | fin | rst;
    assert_eq!(seen(lab), (all, all));
}

/// Sends segments of an existing flow. The arguments are those of [`exchange`].
#[track_caller]
pub(crate) fn exchange_on(lab: &mut Lab, segments: &[(bool, u8)]) {
    for (out, flags) in segments {
        if *out {
            let run = lab.at_container(Interface::A1, &from_a1(*flags).frame());
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
    assert_eq!(seen(lab), (before.0 | seen::RST, before.1 | seen::RST));
}

/// No segment but a SYN changes the state of a connection that was reset.
fn nothing_revives_what_was_reset(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK), (false, RST)]);
    let reset = seen(lab);
    assert_ne!(reset.0 & reset.1 & seen::RST, 0);
    for flags in [ACK, ACK | FIN, SYN | ACK, RST, 0] {
        exchange_on(lab, &[(true, flags), (false, flags)]);
        assert_eq!(seen(lab), reset, "flags {flags:#x}");
    }
    begins_anew(lab);
}

/// The keys of the flow of [`from_a1`].
fn keys() -> [FlowKey; 2] {
    [key(A, &from_a1(SYN)), answer(&key(0, &left(SYN)))]
}

/// Writes into both entries of a flow when its last packet passed.
fn last_seen_at(lab: &mut Lab, keys: [FlowKey; 2], last_seen_ns: u64) {
    for key in keys {
        let entry = flow(lab, &key);
        lab.flows.set(key, Flow { last_seen_ns, ..entry });
    }
}

/// Segments that follow an RST do not keep the flow: it ends 10 s after the RST.
fn a_reset_flow_does_not_live_longer(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, RST)]);
    let at = now_ns() - 9_000_000_000;
    last_seen_at(lab, keys(), at);
    exchange_on(lab, &[(true, ACK), (false, ACK), (false, RST), (true, FIN | ACK)]);
    for key in keys() {
        assert_eq!(flow(lab, &key).last_seen_ns, at);
    }
    // A second later it has expired.
    last_seen_at(lab, keys(), at - 1_000_000_000);
    lab.at_underlay(&from_server(ACK).frame()).passes(&[]);
    assert_eq!(entries(lab), 0);
}

/// The state of the flow of [`from_a1`].
fn state(lab: &Lab) -> FlowState {
    let (orig, reply) = seen(lab);
    FlowState::of(6, orig, reply)
}

/// A sender that does not see what the other side sends cannot acknowledge it: neither as the
/// server nor as the client.
fn blind_segments_establish_nothing(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    let blind = |lab: &mut Lab, flags, numbers| {
        let ports = (80, PORT);
        let forged = V4::numbered(&SERVER, &US, ports, flags, numbers, &[]);
        let passed = V4::numbered(&SERVER, &ONE, ports, flags, numbers, &[]);
        lab.at_underlay(&forged.frame()).arrives_as(&inbound(&passed, &GATEWAY), &[]);
    };
    for ack in [0, SEQ - 1, SEQ + 1, !SEQ] {
        for flags in [SYN | ACK, ACK, ACK | FIN, RST | ACK] {
            blind(lab, flags, (77, ack));
        }
    }
    // An RST without an acknowledgement has no number that the client expects.
    blind(lab, RST, (SEQ, 0));
    assert_eq!(seen(lab), (seen::PACKET | seen::SYN, 0));
    assert_eq!(state(lab), FlowState::TcpSynSent);

    // The server's own answer comes after that.
    exchange_on(lab, &[(false, SYN | ACK)]);
    assert_eq!(state(lab), FlowState::TcpSynRecv);
    for ack in [0, SEQ - 1, SEQ + 1, !SEQ] {
        let numbered = |from| V4::numbered(from, &SERVER, (PORT, 80), ACK, (SEQ, ack), &[]);
        let run = lab.at_container(Interface::A1, &to_gateway(&numbered(&ONE)).frame());
        run.leaves_as(&outbound(&numbered(&US)), &[]);
        assert_eq!(state(lab), FlowState::TcpSynRecv, "{ack}");
    }
    exchange_on(lab, &[(true, ACK)]);
    assert_eq!(state(lab), FlowState::TcpEstablished);
}

/// A SYN in the name of another machine, and any segment after it, to a published port.
fn blind_segments_to_a_published_port(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    let pass = |lab: &mut Lab, flags: u8, ack: u32, notes: &[Count]| {
        let numbers = (if flags & SYN == 0 { SEQ } else { SEQ - 1 }, ack);
        let came = V4::numbered(&SERVER, &US, (5000, 8080), flags, numbers, &[]);
        let went = V4::numbered(&SERVER, &ONE, (5000, 80), flags, numbers, &[]);
        lab.at_underlay(&came.frame()).arrives_as(&inbound(&went, &GATEWAY), notes);
        let orig = key(0, &came);
        let reply = answer(&key(A, &went));
        FlowState::of(6, flow(lab, &orig).seen, flow(lab, &reply).seen)
    };
    assert_eq!(pass(lab, SYN, 0, &CREATED), FlowState::TcpSynSent);
    assert_eq!(pass(lab, ACK, SEQ, &[]), FlowState::TcpSynSent);
    let answer = |from: &Host, port| V4::segment(from, &SERVER, (port, 5000), SYN | ACK, &[]);
    let run = lab.at_container(Interface::A1, &to_gateway(&answer(&ONE, 80)).frame());
    run.leaves_as(&outbound(&answer(&US, 8080)), &[]);
    for ack in [0, SEQ - 1, SEQ + 1, 0xdead_beef] {
        assert_eq!(pass(lab, ACK, ack, &[]), FlowState::TcpSynRecv, "{ack}");
    }
    assert_eq!(pass(lab, ACK, SEQ, &[]), FlowState::TcpEstablished);
}

/// A connection that is picked up in mid-stream is established once each side has acknowledged what
/// the other one has sent, of which a frame may have many segments.
fn mid_stream_with_gso(lab: &mut Lab) {
    const LEN: u32 = 3000;
    let data = payload(LEN as usize);
    let out = |from: &Host, ack| V4::numbered(from, &SERVER, (PORT, 80), ACK, (SEQ, ack), &data);
    let run = lab.at_container(Interface::A1, &to_gateway(&out(&ONE, SEQ)).frame());
    run.gso(1398).leaves_as(&outbound(&out(&US, SEQ)), &CREATED);
    assert_eq!(state(lab), FlowState::TcpLoose);
    assert_eq!(flow(lab, &keys()[0]).next_seq, SEQ + LEN);
    for (ack, after) in [(SEQ + LEN + 1, 0), (SEQ + LEN, seen::PACKET | seen::ACK)] {
        let back = |to| V4::numbered(&SERVER, to, (80, PORT), ACK, (SEQ, ack), b"ok");
        let run = lab.at_underlay(&back(&US).frame());
        run.arrives_as(&inbound(&back(&ONE), &GATEWAY), &[]);
        assert_eq!(seen(lab), (seen::PACKET, after));
    }
    let run = lab.at_container(Interface::A1, &to_gateway(&out(&ONE, SEQ + 2)).frame());
    run.gso(1398).leaves_as(&outbound(&out(&US, SEQ + 2)), &[]);
    assert_eq!(state(lab), FlowState::TcpEstablished);
}

/// The end of a connection was not seen, and the client connects again from the same port.
fn a_handshake_of_a_new_connection_after_an_unseen_end(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)]);
    let (client, server) = (SEQ ^ 0x4000_0000, SEQ ^ 0x2000_0000);
    let out = |lab: &mut Lab, flags, numbers| {
        let make = |from| V4::numbered(from, &SERVER, (PORT, 80), flags, numbers, &[]);
        let run = lab.at_container(Interface::A1, &to_gateway(&make(&ONE)).frame());
        run.leaves_as(&outbound(&make(&US)), &[]);
    };
    let back = |lab: &mut Lab, flags, numbers| {
        let make = |to| V4::numbered(&SERVER, to, (80, PORT), flags, numbers, &[]);
        lab.at_underlay(&make(&US).frame()).arrives_as(&inbound(&make(&ONE), &GATEWAY), &[]);
    };
    out(lab, SYN, (client, 0));
    assert_eq!(state(lab), FlowState::TcpEstablished);
    back(lab, SYN | ACK, (server, client + 1));
    assert_eq!(state(lab), FlowState::TcpSynRecv);
    out(lab, ACK, (client + 1, server + 1));
    assert_eq!(state(lab), FlowState::TcpEstablished);
    back(lab, RST, (server + 1, 0));
    assert_eq!(state(lab), FlowState::TcpClose);
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
    let (from, to) = (Place::At(Interface::A1), Place::External);
    let began = Began { came: &came, from, went: &went, to, kind: kind::MASQUERADE };
    began.has_begun(lab);
}

/// A connection on the port has ended, and the host has bound the port since. The container's next
/// connection gets another port. Otherwise the host would receive the answers.
fn syn_on_a_port_that_is_the_hosts_by_now(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, RST | ACK)]);
    let _host = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let run = lab.at_container(Interface::A1, &from_a1(SYN).frame());
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
    // A SYN of the server does not end the flow either.
    exchange_on(lab, &[(true, ACK | FIN)]);
    let before = seen(lab);
    exchange_on(lab, &[(false, SYN)]);
    assert_eq!(seen(lab), before);
    exchange_on(lab, &[(true, SYN | ACK)]);
    assert_eq!(seen(lab), before);
}

fn container_replaced(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.incarnation += 1);
    let run = lab.at_container(Interface::A1, &from_a1(ACK).frame());
    run.leaves_as(&left(ACK), &[note(Note::FlowStale), note(Note::FlowCreated)]);
    let (came, went) = (from_a1(ACK), left(ACK));
    let (from, to) = (Place::At(Interface::A1), Place::External);
    let began = Began { came: &came, from, went: &went, to, kind: kind::MASQUERADE };
    began.is_tracked(lab, Passed::frames(&[&came], 0), Passed::default());
}

fn container_replaced_seen_by_an_external_host(lab: &mut Lab) {
    exchange(lab, &[(true, SYN)]);
    change_endpoint(&lab.tables, Interface::A1, |entry| entry.incarnation += 1);
    lab.at_underlay(&from_server(ACK).frame()).passes(&[note(Note::FlowStale)]);
    assert_eq!(entries(lab), 0);
    lab.at_underlay(&from_server(ACK).frame()).passes(&[]);
}

/// `A2` connects to a published port of `A1`.
fn connected(lab: &mut Lab) -> (V4, V4) {
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    let came = to_gateway(&V4::segment(&TWO, &US, (5000, 8080), SYN, &[]));
    let went = inbound(&V4::segment(&GATEWAY, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_container(Interface::A2, &came.frame()).arrives_as(&went, &CREATED);
    (came, went)
}

fn client_replaced(lab: &mut Lab) {
    connected(lab);
    change_endpoint(&lab.tables, Interface::A2, |entry| entry.incarnation += 1);
    let answer = V4::segment(&ONE, &GATEWAY, (80, 5000), SYN | ACK, &[]);
    let run = lab.at_container(Interface::A1, &answer.frame());
    let notes = [note(Note::FlowStale)];
    run.redirects(Action::ToHost, Left::Unchanged, &notes);
    assert_eq!(entries(lab), 0);
}

fn server_gone(lab: &mut Lab) {
    let (came, _) = connected(lab);
    lab.tables.endpoints.remove(&Interface::A1.ifindex()).unwrap();
    let run = lab.at_container(Interface::A2, &came.frame());
    run.drops_noting(DropReason::UnknownEndpoint, &[note(Note::FlowStale)]);
    assert_eq!(entries(lab), 0);
}

fn spoofed_by_another_container(lab: &mut Lab) {
    // With `anti_spoof=false`, `A2` can send as `A1`. `A2` takes over the flow: `A1` must begin
    // again, and no answer goes to the wrong container.
    exchange(lab, &[(true, SYN)]);
    crate::world::any_source(&lab.tables, Interface::A2);
    let run = lab.at_container(Interface::A2, &from_a1(ACK).frame());
    run.leaves_as(&left(ACK), &[note(Note::FlowStale), note(Note::FlowCreated)]);
    let reply = flow(lab, &answer(&key(0, &left(ACK))));
    assert_eq!(reply.dest, Interface::A2.ifindex());
}

/// A published port's server sends a SYN to the client's own port. The SYN begins no flow, because
/// its addresses and ports are those of an answer to the client.
fn server_connects_to_its_clients_port(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    let came = V4::segment(&SERVER, &US, (5000, 8080), SYN, &[]);
    let went = inbound(&V4::segment(&SERVER, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    let (from, to) = (Place::External, Place::At(Interface::A1));
    let began = Began { came: &came, from, went: &went, to, kind: kind::PUBLISHED };

    let against = to_gateway(&V4::segment(&ONE, &SERVER, (80, 5000), SYN, &[]));
    lab.at_container(Interface::A1, &against.frame()).drops(DropReason::FlowConflict);
    began.has_begun(lab);
    assert_eq!(entries(lab), 2);
}

/// The client is another host itself. Its flow leads into the tunnel, and the server's SYN must not
/// leave through an uplink.
fn server_connects_to_the_port_of_a_client_on_another_host(lab: &mut Lab) {
    let host = Host { mac: GATEWAY.mac, v4: PEER, ..SERVER };
    let inner = V4 { eth_dst: ONE.mac, ..V4::segment(&host, &ONE, (5000, 80), SYN, &[]) };
    let wrapped = from_peer().wrap(&inner.frame());
    let created = note(Note::FlowCreated).bytes(inner.frame().len());
    lab.at_underlay(&wrapped).redirects(Action::NatDeliver, Left::Spent, &[created]);
    assert_eq!(entries(lab), 2);

    let client = Host { v4: PEER, ..SERVER };
    let against = to_gateway(&V4::segment(&ONE, &client, (80, 5000), SYN, &[]));
    lab.at_container(Interface::A1, &against.frame()).drops(DropReason::FlowConflict);
    assert_eq!(entries(lab), 2);
}

/// The two entries of the flow `number` of `protocol`, to which no packet of a test belongs. Its
/// directions have the flags `seen`, and its last packet passed `idle_s` seconds ago.
pub(crate) fn filler(
    number: u32,
    protocol: u8,
    seen: [u32; 2],
    idle_s: u64,
) -> [(FlowKey, Flow); 2] {
    let tuple = Tuple { src: number.to_be_bytes(), ..Tuple::default() };
    let key = FlowKey::new(0x00ff_fff0, protocol, tuple);
    let last_seen_ns = now_ns() - idle_s * 1_000_000_000;
    let half = |kind, seen| Flow { kind, seen, last_seen_ns, ..Flow::default() };
    let orig = Flow { to: tuple, zone: 0x00ff_fff1, ..half(kind::ORIG, seen[0]) };
    let orig = orig.sealed(&key);
    let reply_key = key.other(&orig);
    let reply = Flow { to: tuple.reversed(), zone: key.zone, ..half(0, seen[1]) };
    [(key, orig), (reply_key, reply.sealed(&reply_key))]
}

/// Fills the rest of the table with flows of [`filler`], each in its own slot. Returns how many.
pub(crate) fn fill(lab: &mut Lab, protocol: u8, seen: [u32; 2], idle_s: u64) -> u32 {
    let room = MAX_FLOWS - u32::try_from(entries(lab) / 2).unwrap();
    for number in 0..room {
        let [(key, orig), (reply_key, reply)] = filler(number, protocol, seen, idle_s);
        lab.set_slot(number, key, orig);
        lab.flows.set(reply_key, reply);
    }
    room
}

/// Number of the flows of [`filler`] that are left. Checks that each has both entries or none.
#[track_caller]
pub(crate) fn left_of(lab: &Lab, fillers: u32, protocol: u8) -> u32 {
    let both = |number: u32| {
        let there =
            filler(number, protocol, [0; 2], 0).map(|(key, _)| lab.flows.get(key).is_some());
        assert_eq!(there[0], there[1], "half of flow {number}");
        there[0]
    };
    (0..fillers).map(|number| u32::from(both(number))).sum()
}

/// A segment of `A1` to another server: as `A1` sends it, and as it leaves.
fn another(port: u16) -> (V4, V4) {
    let make = |from: &Host| V4::segment(from, &SERVER2, (port, 80), SYN, &[]);
    (to_gateway(&make(&ONE)), outbound(&make(&US)))
}

/// The segment of [`another`] is dropped, and leaves no entry behind.
#[track_caller]
fn refused(lab: &mut Lab, port: u16) {
    let (packet, went) = another(port);
    lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::ConntrackFull);
    assert_eq!(lab.flows.get(key(A, &packet)), None, "orig");
    assert_eq!(lab.flows.get(answer(&key(0, &went))), None, "reply");
}

/// The segment of [`another`] begins a flow. `notes` are counted before the note of the new flow.
#[track_caller]
pub(crate) fn begins(lab: &mut Lab, port: u16, notes: &[Count]) {
    let (packet, went) = another(port);
    let notes: Vec<_> = notes.iter().copied().chain([note(Note::FlowCreated)]).collect();
    lab.at_container(Interface::A1, &packet.frame()).leaves_as(&went, &notes);
    let (from, to) = (Place::At(Interface::A1), Place::External);
    Began { came: &packet, from, went: &went, to, kind: kind::MASQUERADE }.has_begun(lab);
}

/// A table full of established connections: none is evicted for a new flow.
fn full_of_connections(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK)]);
    let fillers = fill(lab, 6, [seen::ACK; 2], 0);
    for port in 1..10 {
        refused(lab, port);
    }
    assert_eq!(left_of(lab, fillers, 6), fillers);
    // A packet to the host itself needs no flow.
    let to_host = to_gateway(&V4::segment(&ONE, &US, (1, 22), SYN, &[]));
    let run = lab.at_container(Interface::A1, &to_host.frame());
    run.redirects(Action::ToHost, Left::Unchanged, &[note(Note::FlowRefused)]);
    // Existing flows continue.
    exchange_on(lab, &[(true, ACK)]);

    // Room for one entry is not enough.
    let [(_, _), (reply, _)] = filler(0, 6, [0; 2], 0);
    lab.flows.remove(reply);
    refused(lab, 1);
}

/// Makes three quarters of the table flows of `A1` like those of [`filler`], and counts them in its
/// share, which is half of the table. Returns their number.
pub(crate) fn own(lab: &mut Lab, protocol: u8, seen: [u32; 2]) -> u32 {
    let flows = MAX_FLOWS / 4 * 3;
    let owner = incarnation(&lab.tables, Interface::A1);
    for number in 0..flows {
        let [(key, orig), (reply_key, reply)] = filler(number, protocol, seen, 0);
        lab.set_slot(number, key, Flow { from_incarnation: owner, ..orig }.sealed(&key));
        let reply = Flow { to_incarnation: owner, ..reply }.sealed(&reply_key);
        lab.flows.set(reply_key, reply);
    }
    lab.shares.set(owner, FlowShare { flows, begun: flows.into(), ..FlowShare::default() });
    flows
}

/// A container with connections for more than its share begins no flow. Others do.
fn a_container_has_its_share(lab: &mut Lab) {
    let fillers = own(lab, 6, [seen::ACK; 2]);
    let owner = incarnation(&lab.tables, Interface::A1);
    for port in 1..10 {
        let (packet, _) = another(port);
        lab.at_container(Interface::A1, &packet.frame()).drops(DropReason::ShareExceeded);
        assert_eq!(lab.shares.get(owner).unwrap().refused, u64::from(port));
    }
    assert_eq!(left_of(lab, fillers, 6), fillers);
    assert_eq!(entries(lab), 2 * fillers as usize);
    // A packet to the host itself needs no flow.
    let to_host = to_gateway(&V4::segment(&ONE, &US, (1, 22), SYN, &[]));
    let run = lab.at_container(Interface::A1, &to_host.frame());
    run.redirects(Action::ToHost, Left::Unchanged, &[note(Note::FlowRefused)]);

    let make = |from: &Host| V4::segment(from, &SERVER2, (1, 80), SYN, &[]);
    let run = lab.at_container(Interface::A2, &to_gateway(&make(&TWO)).frame());
    run.leaves_as(&outbound(&make(&US)), &CREATED);
    // So does a client of the other container's port, but not of the port of the first one.
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    publish(lab, [0; 4], 6, 8081, Interface::A2, 80);
    let came = |port| V4::segment(&SERVER, &US, (5000, port), SYN, &[]);
    lab.at_underlay(&came(8080).frame()).drops(DropReason::ShareExceeded);
    let went = inbound(&V4::segment(&SERVER, &TWO, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_underlay(&came(8081).frame()).arrives_as(&went, &CREATED);
}

/// A container with more than its share loses its own flows first, even if the table has room.
fn a_container_evicts_its_own_flows(lab: &mut Lab) {
    let fillers = own(lab, 17, [seen::PACKET, 0]);
    let owner = incarnation(&lab.tables, Interface::A1);
    for port in 1..=50 {
        begins(lab, port, &[note(Note::FlowEvicted)]);
    }
    assert!(left_of(lab, fillers, 17) >= fillers - 50);
    assert_eq!(entries(lab), 2 * fillers as usize);
    let share = lab.shares.get(owner).unwrap();
    assert_eq!((share.flows, share.refused), (fillers, 0));
    assert_eq!(share.begun, u64::from(fillers) + 50);
}

/// A flow counts for the container that began it, else for the one that it goes to, until it is
/// removed.
fn flows_are_counted_for_their_container(lab: &mut Lab) {
    let [one, two] = [Interface::A1, Interface::A2].map(|of| incarnation(&lab.tables, of));
    assert_ne!(one, two);
    let flows = |lab: &Lab, owner| lab.shares.get(owner).map_or(0, |share| share.flows);
    exchange(lab, &[(true, SYN)]);
    assert_eq!((flows(lab, one), flows(lab, two)), (1, 0));
    connected(lab);
    assert_eq!((flows(lab, one), flows(lab, two)), (1, 1));
    let came = V4::segment(&SERVER, &US, (5000, 8080), SYN, &[]);
    let went = inbound(&V4::segment(&SERVER, &ONE, (5000, 80), SYN, &[]), &GATEWAY);
    lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    assert_eq!((flows(lab, one), flows(lab, two)), (2, 1));
    // The first flow ends, and a new one takes its place.
    exchange_on(lab, &[(false, RST | ACK)]);
    exchange(lab, &[(true, SYN)]);
    assert_eq!((flows(lab, one), flows(lab, two)), (2, 1));
    // It expires.
    last_seen_at(lab, keys(), now_ns() - 121_000_000_000);
    lab.at_underlay(&from_server(SYN | ACK).frame()).passes(&[]);
    assert_eq!((flows(lab, one), flows(lab, two)), (1, 1));
}

/// In a full table a new flow takes the place of one that may be evicted.
fn full_of_unanswered(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK)]);
    let fillers = fill(lab, 17, [seen::PACKET, 0], 0);
    for port in 1..=50 {
        begins(lab, port, &[note(Note::FlowEvicted)]);
    }
    // An eviction may also remove one of the 50 new flows, but it prefers the oldest of the four
    // flows that it examines.
    assert!(left_of(lab, fillers, 17) >= fillers - 50);
    assert_eq!(entries(lab), 2 * MAX_FLOWS as usize);
    exchange_on(lab, &[(true, ACK)]);
}

/// Flows of a denied client are not evicted. Without them the container's packets would begin
/// masqueraded flows to the client.
fn full_of_denied(lab: &mut Lab) {
    let fillers = fill(lab, 17, [seen::PACKET; 2], 0);
    for number in 0..fillers {
        for (key, _) in filler(number, 17, [0; 2], 0) {
            let entry = flow(lab, &key);
            lab.flows.set(key, Flow { kind: entry.kind | kind::DENIED, ..entry }.sealed(&key));
        }
    }
    for port in 1..10 {
        refused(lab, port);
    }
    assert_eq!(left_of(lab, fillers, 17), fillers);
}

/// Ended flows are evicted before others.
fn full_of_ended_and_others(lab: &mut Lab) {
    let fillers = fill(lab, 6, [seen::ACK | seen::FIN; 2], 0);
    // Every second flow is half closed. A half-closed flow is evicted after an ended one.
    for number in (0..fillers).step_by(2) {
        let [(key, orig), _] = filler(number, 6, [seen::ACK | seen::FIN, 0], 0);
        let [_, (reply_key, reply)] = filler(number, 6, [0, seen::ACK], 0);
        lab.set_slot(number, key, orig);
        lab.flows.set(reply_key, reply);
    }
    for port in 1..=64 {
        begins(lab, port, &[note(Note::FlowEvicted)]);
    }
    let open = (0..fillers).step_by(2);
    let open = open.filter(|number| {
        let [(key, _), _] = filler(*number, 6, [0; 2], 0);
        lab.flows.get(key).is_some()
    });
    // An eviction examines four flows. On average 4 of 64 evictions examine four half-closed
    // flows; 24 never do by chance.
    assert!(open.count() as u32 > fillers / 2 - 24);
}

/// New flows remove expired flows, without an agent and before the table is full.
fn what_has_expired_makes_room(lab: &mut Lab) {
    let fillers = fill(lab, 17, [seen::PACKET, 0], 31);
    for number in 0..100 {
        for (key, _) in filler(number, 17, [0; 2], 0) {
            lab.flows.remove(key);
        }
    }
    for port in 1..=64 {
        begins(lab, port, &[]);
    }
    // Half of the slots are free, so about every second slot that is examined has a flow.
    let left = left_of(lab, fillers, 17);
    assert!(left < fillers - 110, "{left} of {fillers}");
}

/// An expired flow does not translate packets, and its port is free.
fn what_has_expired_is_no_flow(lab: &mut Lab) {
    let asks = |port| V4::udp(&ONE, &SERVER, (port, 53), b"?");
    let went = |port| outbound(&V4::udp(&US, &SERVER, (port, 53), b"?"));
    let question = to_gateway(&asks(PORT));
    lab.at_container(Interface::A1, &question.frame()).leaves_as(&went(PORT), &CREATED);
    let (orig, reply) = (key(A, &question), answer(&key(0, &went(PORT))));
    let long_ago = now_ns() - 31_000_000_000;
    last_seen_at(lab, [orig, reply], long_ago);
    // The host gets the late answer, because it belongs to no container.
    let late = V4::udp(&SERVER, &US, (53, PORT), b"!");
    lab.at_underlay(&late.frame()).passes(&[]);
    assert_eq!(entries(lab), 0);

    // Another container's new flow takes over the port of an expired flow.
    lab.at_container(Interface::A1, &question.frame()).leaves_as(&went(PORT), &CREATED);
    last_seen_at(lab, [orig, reply], long_ago);
    let other = to_gateway(&V4::udp(&TWO, &SERVER, (PORT, 53), b"?"));
    lab.at_container(Interface::A2, &other.frame()).leaves_as(&went(PORT), &CREATED);
    assert_eq!(entries(lab), 2);
    assert_eq!(flow(lab, &reply).dest, Interface::A2.ifindex());
}
