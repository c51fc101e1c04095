//! Random bytes into every program. Each frame gets a known verdict, and is counted once.

use std::cell::RefCell;

use culvert_common::abi::{Action, Code, Direction, stats_index};
use culvert_tests::packet::{Arp, Tunnel, V4, V6, ethernet, payload};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{
    interfaces::Interface,
    lab::Lab,
    routed::{publish, to_gateway},
    run::{Outcome, Program, REDIRECT, SHORTEST_V4, SHORTEST_V6, SHOT, UNSPEC, XDP_DROP, XDP_PASS},
    world::{FAR, NOBODY, ONE, SERVER, TWO, US, any_source, from_peer, learning},
};

cases!(bytes, mutated_frames, mutated_frames_of_a_learning_network, any_inner_frame);

/// Length of the longest frame in bytes.
const LONGEST: usize = 300;

/// Frames that pass most checks. The tests change a few bytes of them.
fn seeds() -> Vec<Vec<u8>> {
    let udp = V4::udp(&ONE, &FAR, (1, 2), &payload(60)).frame();
    let solicit = |target: [u8; 16]| {
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, target[15]];
        let eth = (ONE.mac, [0x33, 0x33, 0xff, 0, 0, target[15]]);
        let option = [1, 1, 2, 0x42, 10, 0, 0, 2];
        V6::icmp(eth, (ONE.v6, group), (135, 0), [0; 4], &[&target, option.as_slice()].concat())
            .frame()
    };
    let from_far = V4::udp(&FAR, &ONE, (1, 2), &payload(60)).frame();
    let quoted = V4::udp(&SERVER, &ONE, (53, 1000), &payload(60)).packet();
    vec![
        udp.clone(),
        V4::tcp(&ONE, &TWO, (1, 2), &payload(60)).frame(),
        V6::udp(&ONE, &FAR, (1, 2), &payload(60)).frame(),
        V6::udp(&ONE, &NOBODY, (1, 2), &payload(9))
            .extended(0, &[0; 7])
            .extended(44, &[0; 7])
            .frame(),
        Arp::request(&ONE, FAR.v4).frame(),
        Arp::request(&ONE, NOBODY.v4).frame(),
        solicit(FAR.v6),
        solicit(NOBODY.v6),
        ethernet([0xff; 6], ONE.mac, 0x88b5, &payload(60)),
        from_peer().wrap(&from_far),
        from_peer().wrap(&V6::udp(&FAR, &ONE, (1, 2), &payload(60)).frame()),
        from_peer().wrap(&Arp::request(&FAR, ONE.v4).frame()),
        Tunnel { tos: 3, checksum: true, ..from_peer() }.wrap(&from_far),
        from_peer().wrap(&udp),
        to_gateway(&V4::udp(&ONE, &SERVER, (1000, 53), &payload(60))).frame(),
        to_gateway(&V4::icmp(&ONE, &SERVER, 8, 0, [0, 7, 0, 1], &payload(30))).frame(),
        to_gateway(&V4::icmp(&ONE, &SERVER, 3, 1, [0; 4], &quoted)).frame(),
        to_gateway(&V4 { df: false, mf: true, ..V4::udp(&ONE, &SERVER, (9, 9), &payload(64)) })
            .frame(),
        to_gateway(&V4 { df: false, offset: 9, ..V4::udp(&ONE, &SERVER, (9, 9), &payload(64)) })
            .frame(),
        V4::udp(&SERVER, &US, (53, 1000), &payload(60)).frame(),
        V4::tcp(&SERVER, &US, (1000, 8080), &payload(60)).frame(),
        V4::udp(&US, &ONE, (1000, 2000), &payload(60)).frame(),
    ]
}

fn programs() -> impl Strategy<Value = Program> {
    proptest::sample::select(Program::ALL.as_slice())
}

fn gso_sizes() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0u32), 1 => 1u32..3000]
}

/// A seed with some bytes changed, and perhaps cut short or extended.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0..LONGEST, any::<u8>()), 0..4);
    let len = prop_oneof![2 => Just(None), 1 => (14..LONGEST).prop_map(Some)];
    (proptest::sample::select(seeds()), changes, len).prop_map(|(mut frame, changes, len)| {
        for (at, value) in changes {
            let at = at % frame.len();
            frame[at] = value;
        }
        if let Some(len) = len {
            frame.resize(len, 0xa5);
        }
        frame
    })
}

/// Whether a test run accepts the frame.
pub(crate) fn testable(program: Program, frame: &[u8]) -> bool {
    let least = match frame[12..14] {
        _ if program == Program::UnderlayXdp => 14,
        [0x08, 0x00] => SHORTEST_V4,
        [0x86, 0xdd] => SHORTEST_V6,
        _ => 14,
    };
    frame.len() >= least
}

/// Checks that a frame is counted once, under a code that fits its verdict, with all its bytes.
fn counted_once(program: Program, frame: &[u8], outcome: &Outcome) -> Result<(), TestCaseError> {
    let direction = program.direction();
    let mut fates = Vec::new();
    for (index, counter) in &outcome.counts {
        let code = Code::all().find(|code| stats_index(direction, *code) == *index);
        let code = code.ok_or_else(|| TestCaseError::fail(format!("counted #{index}")))?;
        if !matches!(code, Code::Note(_)) {
            prop_assert_eq!(counter.packets, 1, "{:?}", code);
            prop_assert_eq!(counter.bytes, frame.len() as u64, "{:?}", code);
            fates.push(code);
        }
    }
    if direction == Direction::FromUnderlayXdp {
        match fates.as_slice() {
            [] => prop_assert_eq!(outcome.verdict, XDP_PASS),
            [Code::Drop(_)] => prop_assert_eq!(outcome.verdict, XDP_DROP),
            _ => prop_assert!(false, "{:?}", fates),
        }
        prop_assert_eq!(&outcome.frame, frame);
        return Ok(());
    }
    let [fate] = fates.as_slice() else {
        return Err(TestCaseError::fail(format!("counted as {fates:?}")));
    };
    let verdict = match fate {
        Code::Action(Action::Pass) => UNSPEC,
        Code::Action(Action::Flood | Action::Absorb | Action::Hold) | Code::Drop(_) => SHOT,
        Code::Action(_) => REDIRECT,
        Code::Note(_) => unreachable!("no fate"),
    };
    prop_assert_eq!(outcome.verdict, verdict, "{:?}", fate);
    if *fate == Code::Action(Action::Pass) {
        prop_assert_eq!(&outcome.frame, frame);
        prop_assert_eq!(outcome.copies.len(), 0);
    }
    Ok(())
}

/// Tries frames of a kind in every program.
fn holds(lab: &mut Lab, cases: u32, frames: impl Strategy<Value = Vec<u8>>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let lab = RefCell::new(lab);
    TestRunner::new(config)
        .run(&(programs(), frames, gso_sizes()), |(program, frame, gso)| {
            prop_assume!(testable(program, &frame));
            let mut lab = lab.borrow_mut();
            let outcome = lab.at(program, &frame).gso(gso).outcome();
            counted_once(program, &frame, &outcome)
        })
        .unwrap();
}

fn bytes(lab: &mut Lab) {
    holds(lab, 300, prop::collection::vec(any::<u8>(), 14..LONGEST));
}

fn mutated_frames(lab: &mut Lab) {
    publish(lab, [0; 4], 6, 8080, Interface::A1, 80);
    holds(lab, 1200, mutated());
}

fn mutated_frames_of_a_learning_network(lab: &mut Lab) {
    learning(&lab.tables);
    any_source(&lab.tables, Interface::A1);
    holds(lab, 600, mutated());
}

fn any_inner_frame(lab: &mut Lab) {
    // The outer headers are valid, so that the program reaches the inner frame.
    let inner = prop::collection::vec(any::<u8>(), 14..LONGEST);
    let to_one = (inner, any::<u8>()).prop_map(|(mut inner, kind)| {
        inner[..6].copy_from_slice(&ONE.mac);
        inner[6] &= 0xfe;
        match kind % 3 {
            0 => inner[12..14].copy_from_slice(&[0x08, 0x00]),
            1 => inner[12..14].copy_from_slice(&[0x86, 0xdd]),
            _ => {}
        }
        Tunnel { tos: kind >> 4, ..from_peer() }.wrap(&inner)
    });
    holds(lab, 600, to_one);
}
