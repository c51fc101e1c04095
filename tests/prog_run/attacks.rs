//! Attacks on conntrack: senders that do not see the answers, damaged segments, floods, and a
//! container that takes all ports that it can get.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use culvert::datapath::{Options, now_ns, test_run::sk_buff};
use culvert_common::{
    abi::{Action, Code, Direction, DropReason, Note, kind, zone},
    datapath::{
        conntrack::{self, FlowState},
        nat,
    },
};
use culvert_tests::{
    netns::wait_until,
    packet::{ACK, Host, SEQ, SYN, V4, payload},
};

use crate::{
    flows::{begins, exchange, exchange_on},
    interfaces::Interface,
    lab::{Lab, MAX_FLOWS, PORT_SHARE, alone_with},
    routed::{
        CREATED, answer, entries, flow, forget_all, inbound, key, outbound, pass_time, publish,
        to_gateway,
    },
    run::{Count, Left, Program, REDIRECT, SHOT, note, packets, test_run},
    world::{
        A, GATEWAY, GATEWAY_OF_B, ONE, PEER, SERVER, SERVER2, TWO, US, from_peer, incarnation,
    },
};

cases!(
    blind_segments_through_the_tunnel,
    damaged_segments_to_a_published_port,
    damaged_segments_through_the_tunnel,
    blind_pairs_give_way,
    searches_are_short_after_a_refusal,
    short_searches_look_at_the_whole_range,
);

/// The host behind [`PEER`], as containers see it.
const HOST: Host = Host { mac: GATEWAY.mac, v4: PEER, v6: [0; 16] };

/// A SYN in the name of another host, and any segment after it, through the tunnel.
fn blind_segments_through_the_tunnel(lab: &mut Lab) {
    let pass = |lab: &mut Lab, flags: u8, ack: u32, begins: bool| {
        let seq = if flags & SYN == 0 { SEQ } else { SEQ - 1 };
        let inner = V4::numbered(&HOST, &ONE, (5000, 80), flags, (seq, ack), &[]);
        let created: &[Count] = &[note(Note::FlowCreated).bytes(inner.frame().len())];
        let notes = if begins { created } else { &[] };
        let run = lab.at_underlay(&from_peer().wrap(&inner.frame()));
        run.redirects(Action::NatDeliver, Left::Spent, notes);
        let (orig, reply) = (key(zone::TUNNEL, &inner), answer(&key(A, &inner)));
        FlowState::of(6, flow(lab, &orig).seen, flow(lab, &reply).seen)
    };
    assert_eq!(pass(lab, SYN, 0, true), FlowState::TcpSynSent);
    for ack in [0, SEQ - 1, SEQ, SEQ + 1, !SEQ] {
        for flags in [SYN | ACK, ACK] {
            assert_eq!(pass(lab, flags, ack, false), FlowState::TcpSynSent, "{flags:#x} {ack}");
        }
    }
    // The container answers. The answer goes through the tunnel, to the host that was named.
    let answer = to_gateway(&V4::segment(&ONE, &HOST, (80, 5000), SYN | ACK, &[]));
    let outcome = lab.at_container(Interface::A1, &answer.frame()).outcome();
    assert_eq!(outcome.verdict, REDIRECT);
    for ack in [0, SEQ - 1, SEQ + 1, !SEQ] {
        for flags in [SYN | ACK, ACK] {
            assert_eq!(pass(lab, flags, ack, false), FlowState::TcpSynRecv, "{flags:#x} {ack}");
        }
    }
    // Only the named host knows the number.
    assert_eq!(pass(lab, ACK, SEQ, false), FlowState::TcpEstablished);
    assert_eq!(entries(lab), 2);
}

/// The packet with one wrong bit.
fn damaged(mut packet: V4) -> V4 {
    packet.l4.iter_mut().last().into_iter().for_each(|byte| *byte ^= 0x10);
    packet
}

/// A segment from outside with a wrong checksum begins no flow to a published port.
fn damaged_segments_to_a_published_port(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    for (begun, len) in [0_u16, 1, 33, 700].into_iter().enumerate() {
        let ports = |to| (5000 + len, to);
        let data = payload(len.into());
        let came = V4::segment(&SERVER, &US, ports(8080), SYN, &data);
        let wrong = damaged(came.clone()).frame();
        lab.at_underlay(&wrong).drops(DropReason::BadChecksum);
        // The kernel has the sum of the frame, but has not compared it.
        lab.at_underlay(&wrong).summed().drops(DropReason::BadChecksum);
        assert_eq!(entries(lab), 2 * begun, "{len} bytes");
        let went = inbound(&V4::segment(&SERVER, &ONE, ports(80), SYN, &data), &GATEWAY);
        lab.at_underlay(&came.frame()).arrives_as(&went, &CREATED);
    }
}

/// Nor does a segment of another host, through the tunnel.
fn damaged_segments_through_the_tunnel(lab: &mut Lab) {
    let inner = V4::segment(&HOST, &ONE, (5000, 80), SYN, b"data");
    let wrong = damaged(inner.clone()).frame();
    let outcome = lab.at_underlay(&from_peer().wrap(&wrong)).outcome();
    assert_eq!(outcome.verdict, SHOT);
    let bad = Code::Drop(DropReason::BadChecksum);
    assert_eq!(outcome.count(Direction::FromUnderlay, bad), 1);
    assert_eq!(entries(lab), 0);
    let created = note(Note::FlowCreated).bytes(inner.frame().len());
    let run = lab.at_underlay(&from_peer().wrap(&inner.frame()));
    run.redirects(Action::NatDeliver, Left::Spent, &[created]);
    assert_eq!(entries(lab), 2);
}

/// Runs `program` on a frame at the interface `at`, without the checks of [`Run`](crate::run::Run).
/// Returns the verdict.
fn send(lab: &Lab, program: Program, at: Interface, frame: &[u8]) -> i32 {
    let context = sk_buff(program.hook(false), at.ifindex(), 0, frame.len());
    test_run(lab.program_fd(program), frame, Some(&context), 1, 0).0
}

/// The states of all flows.
fn states(lab: &Lab) -> Vec<FlowState> {
    let mut states = Vec::new();
    for key in lab.flows.keys() {
        let orig = flow(lab, &key);
        if orig.kind & kind::ORIG != 0 {
            let reply = flow(lab, &key.other(&orig));
            states.push(FlowState::of_flow(key.protocol, &orig, &reply));
        }
    }
    states
}

/// Pairs of a SYN and an ACK in the names of others fill the table: twice as many flows as it has
/// room for, to published ports of two containers, which together may have all flows. Each of these
/// flows gives way to a new one, and no connection does.
fn blind_pairs_give_way(lab: &mut Lab) {
    exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK)]);
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    publish(lab, [0; 4], 6, 8081, Interface::A2, 80);
    for number in 0..MAX_FLOWS {
        let [.., high, low] = number.to_be_bytes();
        let client = Host { v4: [198, 18, high, low], ..SERVER };
        for port in [8080, 8081] {
            for (flags, seq) in [(SYN, SEQ - 1), (ACK, SEQ)] {
                let numbers = (seq, 0xdead_beef);
                let segment = V4::numbered(&client, &US, (5000, port), flags, numbers, &[]);
                let verdict = send(lab, Program::Underlay, Interface::Uplink, &segment.frame());
                assert_eq!(verdict, REDIRECT, "flags {flags:#x} of client {number} to {port}");
            }
        }
    }
    let counts = lab.new_counts();
    let count = |code| packets(&counts, Direction::FromUnderlay, code);
    assert_eq!(count(Code::Action(Action::NatDeliver)), u64::from(4 * MAX_FLOWS));
    assert_eq!(count(Code::Note(Note::FlowCreated)), u64::from(2 * MAX_FLOWS));
    assert_eq!(entries(lab), 2 * MAX_FLOWS as usize, "the table is full");
    let lasting = states(lab).iter().filter(|state| state.eviction_rank().is_none()).count();
    assert_eq!(lasting, 1, "flows that are never evicted");

    // Others begin flows: from the container that is attacked, and from one of another network.
    for port in 1..=20 {
        begins(lab, port, &[note(Note::FlowEvicted)]);
    }
    for port in 21..=40 {
        let make = |from: &Host| V4::segment(from, &SERVER2, (port, 80), SYN, &[]);
        let packet = V4 { eth_dst: GATEWAY_OF_B.mac, ..make(&ONE) };
        let notes = [note(Note::FlowEvicted), note(Note::FlowCreated)];
        let run = lab.at_container(Interface::B1, &packet.frame());
        run.leaves_as(&outbound(&make(&US)), &notes);
    }
    exchange_on(lab, &[(true, ACK), (false, ACK)]);
}

/// A table for 1000 flows, and no agent. In an hour 32,400 flows begin, and expire. Then 10,000 more
/// begin, faster than flows expire. All of them succeed, and a connection that is idle lives.
#[test]
#[ignore = "needs root"]
fn an_hour_of_churn_without_an_agent() {
    const FLOWS: u16 = 1000;
    let small = |options: &mut Options| {
        options.max_flows = FLOWS.into();
        options.flow_share = 100;
    };
    // No flow can have been idle for longer than the machine has run. The new ones expire after 30 s.
    wait_until(Duration::from_secs(60), "the machine to have run for 40 s", || {
        now_ns() > 40_000_000_000
    });
    alone_with(small, |lab| {
        exchange(lab, &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)]);
        let begin = |lab: &Lab, port: u16, to_port: u16| {
            let datagram = to_gateway(&V4::udp(&ONE, &SERVER2, (port, to_port), b"x"));
            let verdict = send(lab, Program::Container, Interface::A1, &datagram.frame());
            assert_eq!(verdict, REDIRECT, "flow {port} to {to_port}");
        };
        let is_complete = |lab: &mut Lab, flows: u64| {
            let counts = lab.new_counts();
            let created = Code::Note(Note::FlowCreated);
            assert_eq!(packets(&counts, Direction::FromContainer, created), flows);
            assert!(entries(lab) <= 2 * usize::from(FLOWS), "{}", entries(lab));
            assert!(states(lab).contains(&FlowState::TcpEstablished));
        };
        // 36 times 100 s.
        for round in 0..36 {
            pass_time(lab, 100);
            (0..900).for_each(|number| begin(lab, 2000 + number, 1000 + round));
        }
        is_complete(lab, 36 * 900);
        (0..10_000).for_each(|number| begin(lab, 2000 + number, 2000));
        is_complete(lab, 10_000);
        assert_eq!(entries(lab), 2 * usize::from(FLOWS), "the table is full");
        exchange_on(lab, &[(true, ACK), (false, ACK)]);
    });
}

/// Ports for masquerading in the tests in which a container takes them.
const PORTS: RangeInclusive<u16> = 50_000..=54_200;

/// A lab with [`PORTS`], and with a table in which one container may have a flow for each of them.
fn with_few_ports(case: impl FnOnce(&mut Lab)) {
    let few = |options: &mut Options| {
        options.nat_ports = (*PORTS.start(), *PORTS.end());
        options.max_flows = 4 * MAX_FLOWS;
        // On a slow machine the first flows would otherwise expire before the last ones begin.
        options.flow_timeouts = conntrack::timeouts(|_| 3_600_000_000_000);
    };
    alone_with(few, case);
}

/// A question of the container at `at` to a server.
fn question(at: Interface, to: &Host, port: u16) -> Vec<u8> {
    let from = if at == Interface::A1 { ONE } else { TWO };
    to_gateway(&V4::udp(&from, to, (port, 53), b"x")).frame()
}

/// `A1` takes all ports towards [`SERVER`] that it can get. Its source ports are each port of
/// [`PORTS`], and many others, again and again. Returns the ports that are taken.
fn take_ports(lab: &Lab) -> BTreeSet<u16> {
    for _ in 0..4 {
        for port in PORTS.chain(20_000..25_000) {
            let question = question(Interface::A1, &SERVER, port);
            send(lab, Program::Container, Interface::A1, &question);
        }
    }
    let keys = lab.flows.keys().into_iter();
    let answers = keys.filter(|key| key.zone == zone::EXTERNAL);
    answers.map(|key| u16::from_be_bytes(key.tuple.dst_port)).collect()
}

/// One container opens all that it can towards one server. Another container then gets each flow
/// that it asks for.
#[test]
#[ignore = "needs root"]
fn a_container_that_takes_all_ports_leaves_others_enough() {
    with_few_ports(|lab| {
        let [one, two] =
            [Interface::A1, Interface::A2].map(|interface| incarnation(&lab.tables, interface));
        let taken = take_ports(lab);
        assert!(taken.iter().all(|port| PORTS.contains(port)));
        let is_in_share = |port, owner| nat::is_in_share(port, owner, nat::port_share(PORT_SHARE));
        let free = PORTS.filter(|port| is_in_share(*port, one) && !taken.contains(port));
        assert_eq!(free.count(), 0, "ports of its share that the container has not got");
        let counts = lab.new_counts();
        let exhausted = Code::Drop(DropReason::NatPortsExhausted);
        let refused = packets(&counts, Direction::FromContainer, exhausted);
        assert!(refused > 1000, "{refused}");
        let share = lab.shares.get(one).unwrap();
        assert_eq!((share.refused, u64::from(share.without_port)), (refused, refused));

        for port in 30_000..30_200 {
            let question = question(Interface::A2, &SERVER, port);
            let verdict = send(lab, Program::Container, Interface::A2, &question);
            assert_eq!(verdict, REDIRECT, "port {port}; {} ports were taken", taken.len());
        }
        let share = lab.shares.get(two).unwrap();
        assert_eq!((share.flows, share.refused, share.without_port), (200, 0, 0));
        // The first container has ports towards another server.
        let question = question(Interface::A1, &SERVER2, *PORTS.start());
        assert_eq!(send(lab, Program::Container, Interface::A1, &question), REDIRECT);
        lab.new_counts();
    });
}

/// Number of questions for which no port is free, of 200 to as many ports of a server. Before each
/// of them the programs have refused the container `owner` a flow, until the time in ns, if
/// `refusal` has both.
fn refused_of_200(lab: &mut Lab, at: Interface, from: &Host, refusal: Option<(u32, u64)>) -> usize {
    let refuses = |to_port: &u16| {
        if let Some((owner, until_ns)) = refusal {
            lab.set_refusal(owner, until_ns);
        }
        is_refused(lab, at, from, *to_port)
    };
    (1000..1200).filter(refuses).count()
}

/// Whether no port is free for a question to this port of a server.
fn is_refused(lab: &Lab, at: Interface, from: &Host, to_port: u16) -> bool {
    let datagram = to_gateway(&V4::udp(from, &SERVER, (1, to_port), b"x"));
    send(lab, Program::Container, at, &datagram.frame()) == SHOT
}

/// A time in ns that does not come during a test.
fn in_an_hour() -> u64 {
    now_ns() + 3_600_000_000_000
}

/// After a refusal the programs try few ports for the same container, and many ports for others.
fn searches_are_short_after_a_refusal(lab: &mut Lab) {
    let [one, two] =
        [Interface::A1, Interface::A2].map(|interface| incarnation(&lab.tables, interface));
    // A quarter of the ports is free. Port 1, from which the containers send, is not.
    for port in (1..=u16::MAX).filter(|port| port.wrapping_mul(40_503) >> 14 != 0) {
        lab.reserve(17, port);
    }
    assert_eq!(refused_of_200(lab, Interface::A1, &ONE, None), 0);
    assert_eq!(lab.refused_until(one), 0);
    forget_all(lab);
    let long = in_an_hour();
    let refused = refused_of_200(lab, Interface::A1, &ONE, Some((one, long)));
    assert!((5..195).contains(&refused), "{refused}");
    // Each refusal counts for a short time.
    lab.set_refusal(one, long);
    let refused = (2000..4000).find(|to_port| is_refused(lab, Interface::A1, &ONE, *to_port));
    let until = lab.refused_until(one);
    assert!(until != 0 && until < long - 3_000_000_000_000, "{until}, question {refused:?}");
    assert_eq!(refused_of_200(lab, Interface::A2, &TWO, None), 0);
    assert_eq!(lab.refused_until(two), 0);
    lab.new_counts();
}

/// Netfilter has three quarters of the ports, so that all free ones are next to each other. A short
/// search finds one of them nearly always.
fn short_searches_look_at_the_whole_range(lab: &mut Lab) {
    let one = incarnation(&lab.tables, Interface::A1);
    for port in (1..=u16::MAX).filter(|port| port >> 14 != 1) {
        lab.reserve(17, port);
    }
    let refused = refused_of_200(lab, Interface::A1, &ONE, Some((one, in_an_hour())));
    assert!(refused < 10, "{refused}");
    lab.new_counts();
}
