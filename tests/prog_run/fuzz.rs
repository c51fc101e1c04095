//! Mutated frames into every program, by test runs and through the attached programs. The attached
//! programs are those of containers and of the uplink's ingress.
//!
//! The frames begin as legal ones of each kind, and some of their bytes, lengths and headers are
//! changed. For each frame the test checks that it reaches no other network than that of its
//! sender, except through a published port, and that it is counted once: sent = forwarded +
//! dropped, in frames and in bytes. At the end it prints how often each action, drop reason and
//! note was counted, and demands each drop reason except those of [`UNREACHABLE`].
//!
//! A test run shows where copies go, but not where a redirected frame goes. So the networks have
//! different MACs here, and the last frames of each round are sent to the attached programs.
//!
//! `CULVERT_TEST_SEED` repeats the frames. With `CULVERT_TEST_FULL` there are 10 million.

mod frames;
mod judge;
mod mutate;
mod scene;

use std::collections::BTreeMap;

use culvert::datapath::test_run::sk_buff;
use culvert_common::abi::{Action, Code, Counter, Direction, DropReason, Note, stats_index};
use culvert_tests::chaos::{self, Random};

use self::{
    frames::Source,
    judge::{Fate, Judge, Reach},
    mutate::Mutator,
    scene::{STATES, State},
};
use crate::{
    compare::hex,
    interfaces::Interface,
    lab::{self, Lab},
    live::Live,
    random::testable,
    run::{LONGEST_LEFT, Program, test_run_into},
};

/// Test runs of a round. All frames of a round meet one state of the maps.
const RUNS: u64 = 20_000;
/// Frames that are sent to the attached programs after that.
const SENT: u64 = 1_000;
/// Frames in a row from one source. Few enough for the queues of copies.
const BATCH: u64 = 64;
/// Rounds of a short test: 240,000 test runs, in each state of the maps as many.
const ROUNDS: u32 = 12;
/// Rounds of a long test: 10,000,000 test runs.
const MANY_ROUNDS: u32 = 500;

/// Shortest frame that is sent to an attached program: the kernel drops a shorter one before that
/// if it has a VLAN tag.
const SHORTEST: usize = 20;

/// Bytes of frames that wait to be received from an interface.
const BUFFER: i32 = 8 << 20;

/// The drop reasons that the frames do not reach, with the reason. They must reach all others.
const UNREACHABLE: [(DropReason, &str); 1] = [(
    DropReason::HelperFailed,
    "the kernel refuses to rewrite or resize a frame only where it has no memory",
)];

#[test]
#[ignore = "needs root"]
fn no_mutated_frame_reaches_another_network_or_is_lost() {
    lab::alone(|lab| {
        scene::prepare();
        let fuzz = Fuzz { sources: frames::sources(), mutator: Mutator::new(), codes: codes() };
        for interface in Interface::ALL {
            lab.wire(interface).far.receives_up_to(BUFFER);
        }
        let mut random = Random::seeded();
        let mut coverage = BTreeMap::new();
        for round in chaos::each("mutated frames", chaos::rounds(ROUNDS, MANY_ROUNDS)) {
            let state = &STATES[round as usize % STATES.len()];
            scene::begin(lab, state);
            let name = format!("round {round}, {}", state.name);
            let judge = fuzz.run(lab, state, &mut random, &mut coverage, &name);
            fuzz.send(lab, &judge, &mut random, &mut coverage, &name);
        }
        report(&coverage);
    });
}

/// Counted frames by code.
type Coverage = BTreeMap<Code, u64>;

/// Prints the coverage, and fails if it is too small.
fn report(coverage: &Coverage) {
    chaos::say("mutated frames by outcome:");
    for (code, frames) in coverage {
        chaos::say(&format!("{:>12} {} {}", frames, code.verdict(), code.name()));
    }
    let missed: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !coverage.contains_key(&Code::Drop(**reason)))
        .map(|reason| reason.name())
        .collect();
    chaos::say(&format!("not reached: {}", missed.join(", ")));
    for reason in DropReason::ALL {
        let is_reached = coverage.contains_key(&Code::Drop(*reason));
        let why = UNREACHABLE.iter().find(|(unreachable, _)| unreachable == reason);
        assert!(is_reached || why.is_some(), "no frame was dropped as {reason:?}");
    }
}

/// Direction and code by the index of the counter.
fn codes() -> BTreeMap<u32, (Direction, Code)> {
    let all = |direction: &Direction| {
        let direction = *direction;
        Code::all().map(move |code| (stats_index(direction, code), (direction, code)))
    };
    Direction::ALL.iter().flat_map(all).collect()
}

/// Frames and bytes by what the programs said of them.
type Sums = BTreeMap<(Direction, Fate), Counter>;

fn add(sums: &mut Sums, key: (Direction, Fate), packets: u64, bytes: u64) {
    let sum = sums.entry(key).or_default();
    sum.packets += packets;
    sum.bytes += bytes;
}

/// What does not change from round to round.
struct Fuzz {
    sources: Vec<Source>,
    mutator: Mutator,
    codes: BTreeMap<u32, (Direction, Code)>,
}

impl Fuzz {
    /// Runs the programs on frames in memory.
    fn run(
        &self,
        lab: &mut Lab,
        state: &'static State,
        random: &mut Random,
        coverage: &mut Coverage,
        name: &str,
    ) -> Judge {
        let mut judge = Judge::new(state);
        let mut sums = Sums::new();
        let mut left = vec![0; LONGEST_LEFT];
        let mut frame = Vec::new();
        let mut source = &self.sources[0];
        let mut batch = Batch::default();
        for number in 0..RUNS {
            if number.is_multiple_of(BATCH) {
                source = random.pick(&self.sources);
            }
            self.next(source, random, &mut frame);
            if !testable(source.program, &frame) {
                frame.resize(14 + 40, 0);
            }
            let reach = Reach::of(source, &frame);
            if !batch.goes_on(number, reach) {
                batch.settle(lab, name, &judge);
                batch = Batch::new(number, reach);
            }
            // The kernel cuts copies into segments: few, so that they fit into the queues.
            let gso = if random.below(8) == 0 { 200 + random.below(2800) as u32 } else { 0 };
            let (verdict, len) = test_run(lab, source, &frame, gso, &mut left);
            let judged = judge.run(source, &frame, verdict, &left[..len]);
            let fate = judged.unwrap_or_else(|fault| {
                panic!(
                    "{name}, frame {number}: {fault}\n{:?} on #{}, GSO size {gso}: {}\nleft: {}",
                    source.program,
                    source.ifindex,
                    hex(&frame),
                    hex(&left[..len])
                )
            });
            // XDP counts what it drops; the frames that it passes are counted at tcx.
            if source.program != Program::UnderlayXdp || fate == Fate::Gone {
                add(&mut sums, (source.program.direction(), fate), 1, frame.len() as u64);
            }
        }
        batch.settle(lab, name, &judge);
        let counted = self.counted(&lab.new_counts(), coverage);
        assert_eq!(counted, sums, "{name}: counted instead of sent");
        judge
    }

    /// Sends frames to the attached programs.
    fn send(
        &self,
        lab: &mut Lab,
        judge: &Judge,
        random: &mut Random,
        coverage: &mut Coverage,
        name: &str,
    ) {
        let name = format!("{name}, attached");
        let live = Live::attach(lab);
        let attached: Vec<_> =
            self.sources.iter().filter(|source| wire(source).is_some()).collect();
        let mut frame = Vec::new();
        let mut source = attached[0];
        let mut batch = Batch::default();
        for number in 0..SENT {
            if number.is_multiple_of(BATCH) {
                source = attached[random.index(attached.len())];
            }
            self.next(source, random, &mut frame);
            frame.resize(frame.len().max(SHORTEST), 0);
            let reach = Reach::of(source, &untagged(&frame));
            if !batch.goes_on(number, reach) {
                batch.settle_sent(live.lab, &name, judge);
                batch = Batch { source: Some(source), ..Batch::new(number, reach) };
            }
            let interface = wire(source).unwrap_or(Interface::Uplink);
            live.lab.wire(interface).far.send(&frame);
        }
        batch.settle_sent(live.lab, &name, judge);
        let new = live.lab.new_counts();
        let released = self.released(&new);
        let counted = self.counted(&new, coverage).values().map(|sum| sum.packets).sum::<u64>();
        // A released fragment comes in again.
        assert_eq!(counted, SENT + released, "{name}: counted instead of sent");
    }

    /// Puts the next frame of `source` into `frame`.
    fn next(&self, source: &Source, random: &mut Random, frame: &mut Vec<u8>) {
        let legal = random.pick(&source.frames);
        frame.clear();
        frame.extend_from_slice(legal);
        self.mutator.mutate(random, frame);
    }

    /// Sums up the counters by what the programs said of the frames, and adds them to `coverage`.
    fn counted(&self, counts: &[(u32, Counter)], coverage: &mut Coverage) -> Sums {
        let mut sums = Sums::new();
        for (index, counter) in counts {
            let code = self.codes.get(index);
            let (direction, code) = *code.unwrap_or_else(|| panic!("counted #{index}"));
            *coverage.entry(code).or_default() += counter.packets;
            let fate = match code {
                Code::Action(Action::Pass) => Fate::Passed,
                Code::Action(Action::Flood | Action::Absorb | Action::Hold) => Fate::Gone,
                Code::Drop(_) => Fate::Gone,
                Code::Action(_) => Fate::Redirected,
                Code::Note(_) => continue,
            };
            add(&mut sums, (direction, fate), counter.packets, counter.bytes);
        }
        sums
    }

    /// Number of fragments that were sent to the ingress again.
    fn released(&self, counts: &[(u32, Counter)]) -> u64 {
        let is_note = |index: &u32| {
            matches!(self.codes.get(index), Some((_, Code::Note(Note::FragmentReleased))))
        };
        counts.iter().filter(|(index, _)| is_note(index)).map(|(_, sum)| sum.packets).sum()
    }
}

/// The interface at whose far end the frames of `source` are sent to an attached program.
fn wire(source: &Source) -> Option<Interface> {
    match source.program {
        Program::Container => source.container.map(|(interface, _)| interface),
        Program::Underlay => Some(Interface::Uplink),
        _ => None,
    }
}

/// The frame without a VLAN tag, which the kernel removes before the programs run.
fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) {
        frame.drain(12..16);
    }
    frame
}

fn test_run(lab: &Lab, source: &Source, frame: &[u8], gso: u32, left: &mut [u8]) -> (i32, usize) {
    let hook = source.program.hook(source.forwarded);
    let context = sk_buff(hook, source.ifindex, gso, frame.len());
    let context = (source.program != Program::UnderlayXdp).then_some(&context[..]);
    test_run_into(lab.program_fd(source.program), frame, context, (1, 0), left)
}

/// Consecutive frames with the same reach. The copies that they made are judged together, because
/// a look at the interfaces takes longer than many frames.
#[derive(Clone, Copy, Default)]
struct Batch<'a> {
    first: u64,
    reach: Reach,
    source: Option<&'a Source>,
}

impl Batch<'_> {
    fn new(first: u64, reach: Reach) -> Self {
        Self { first, reach, source: None }
    }

    /// Whether the frame `number` belongs to the batch.
    fn goes_on(&self, number: u64, reach: Reach) -> bool {
        !number.is_multiple_of(BATCH) && reach == self.reach
    }

    /// Judges the frames that have come out of the interfaces.
    fn settle(&self, lab: &mut Lab, name: &str, judge: &Judge) {
        for (interface, frame) in lab.drain() {
            let judged = match self.source {
                Some(source) => judge.came_out(source, self.reach, interface, &frame),
                None => judge.copy(self.reach, interface, &frame),
            };
            if let Err(fault) = judged {
                let first = self.first;
                panic!("{name}, frame {first} or one of the next: {fault}: {}", hex(&frame));
            }
        }
    }

    /// Judges the frames that have come out of the interfaces while the programs are attached.
    fn settle_sent(&self, lab: &mut Lab, name: &str, judge: &Judge) {
        // The markers of each look queue behind what the frames of the last one caused: a fragment
        // is held, comes in again, and is sent.
        for _ in 0..3 {
            self.settle(lab, name, judge);
        }
    }
}
