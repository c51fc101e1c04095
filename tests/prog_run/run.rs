//! One frame into one program, and the expected result.

use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use culvert::datapath::test_run::{Hook, sk_buff};
use culvert_common::abi::{
    Action, Code, Counter, Direction, DropReason, Note, programs, stats_index,
};
use culvert_tests::packet::V4;
use nix::libc;
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::{
    compare::{describe, entropy_port, same, same_tunnelled},
    interfaces::{CLIENT_LINK, GATEWAY_A, Interface, LOOPBACK},
    lab::Lab,
    world::{to_peer, to_peer2},
};

/// TC: the frame goes on as if the program were not there.
pub(crate) const UNSPEC: i32 = -1;
/// TC: dropped.
pub(crate) const SHOT: i32 = 2;
/// TC: redirected to the interface that the program chose.
pub(crate) const REDIRECT: i32 = 7;
/// XDP: dropped.
pub(crate) const XDP_DROP: i32 = 1;
/// XDP: passed to the kernel.
pub(crate) const XDP_PASS: i32 = 2;

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` of linux/bpf.h: the frame has a sum from a network card, and
/// the kernel checks that the sum is still right after the program (EBADMSG). aya-obj's bindings
/// lack this flag, and aya's `TestRunOptions` cannot set it.
const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Offset of `mark` in `struct __sk_buff` of linux/bpf.h.
const SK_BUFF_MARK: usize = 8;

/// Shortest frames that a test run of a TC program takes: with the EtherTypes
/// of IP, those with an IP header. The module `live` tries shorter ones.
pub(crate) const SHORTEST_V4: usize = 14 + 20;
pub(crate) const SHORTEST_V6: usize = 14 + 40;

/// Packets and bytes of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    code: Code,
    packets: u64,
    bytes: Option<u64>,
}

impl Count {
    const fn once(code: Code) -> Self {
        Self { code, packets: 1, bytes: None }
    }

    /// The code is counted `packets` times, each with the bytes of the frame.
    pub(crate) const fn times(self, packets: u64) -> Self {
        Self { packets, ..self }
    }

    /// The code is counted with this number of bytes in all instead of the frame's.
    pub(crate) const fn bytes(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes as u64), ..self }
    }
}

/// The action is counted once, with the bytes of the frame.
pub(crate) const fn action(action: Action) -> Count {
    Count::once(Code::Action(action))
}

/// The drop reason is counted once, with the bytes of the frame.
pub(crate) const fn drop(reason: DropReason) -> Count {
    Count::once(Code::Drop(reason))
}

/// The note is counted once, with the bytes of the frame.
pub(crate) const fn note(note: Note) -> Count {
    Count::once(Code::Note(note))
}

/// A frame that leaves an interface while the program runs.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    interface: Interface,
    frame: Vec<u8>,
    tunnelled: bool,
}

/// `frame` to the container at `interface`.
pub(crate) fn copy(interface: Interface, frame: &[u8]) -> Copy {
    Copy { interface, frame: frame.to_vec(), tunnelled: false }
}

/// `frame` to the uplink, with an entropy port.
pub(crate) fn tunnelled(frame: Vec<u8>) -> Copy {
    Copy { interface: Interface::Uplink, frame, tunnelled: true }
}

/// The frame that a program leaves behind.
#[derive(Clone, Debug)]
pub(crate) enum Left {
    /// The frame that came in.
    Unchanged,
    /// This frame.
    Frame(Vec<u8>),
    /// This frame, except for the outer UDP source port, which may be any entropy port.
    Tunnelled(Vec<u8>),
    /// A frame that was dropped after it was copied. Its contents are not checked.
    Spent,
}

/// The expected result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) verdict: i32,
    pub(crate) left: Left,
    pub(crate) counts: &'a [Count],
    pub(crate) copies: &'a [Copy],
}

/// A program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `from_container`.
    Container,
    /// `from_underlay`.
    Underlay,
    /// `from_underlay_xdp`.
    UnderlayXdp,
    /// `from_host`.
    Host,
    /// `from_loopback`.
    Loopback,
    /// `from_client`.
    Client,
    /// `to_underlay`.
    Out,
}

impl Program {
    pub(crate) const ALL: [Self; 7] = [
        Self::Container,
        Self::Underlay,
        Self::UnderlayXdp,
        Self::Host,
        Self::Loopback,
        Self::Client,
        Self::Out,
    ];

    pub(crate) const fn direction(self) -> Direction {
        match self {
            Self::Container => Direction::FromContainer,
            Self::Underlay => Direction::FromUnderlay,
            Self::UnderlayXdp => Direction::FromUnderlayXdp,
            Self::Host => Direction::FromHost,
            Self::Loopback => Direction::FromLoopback,
            Self::Client => Direction::FromClient,
            Self::Out => Direction::ToUnderlay,
        }
    }

    /// Ifindex of the interface that the program's frames are on.
    pub(crate) const fn ifindex(self) -> u32 {
        match self {
            Self::Container => Interface::A1.ifindex(),
            Self::Underlay | Self::UnderlayXdp | Self::Out => Interface::Uplink.ifindex(),
            Self::Host => GATEWAY_A,
            Self::Loopback => LOOPBACK,
            Self::Client => CLIENT_LINK,
        }
    }

    /// Direction of a frame at the program's hook. A frame that the host has forwarded has an
    /// `ingress_ifindex`, as all frames have at ingress.
    pub(crate) const fn hook(self, forwarded: bool) -> Hook {
        match self {
            Self::Host | Self::Out if !forwarded => Hook::Egress,
            _ => Hook::Ingress,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Container => programs::FROM_CONTAINER,
            Self::Underlay => programs::FROM_UNDERLAY,
            Self::UnderlayXdp => programs::FROM_UNDERLAY_XDP,
            Self::Host => programs::FROM_HOST,
            Self::Loopback => programs::FROM_LOOPBACK,
            Self::Client => programs::FROM_CLIENT,
            Self::Out => programs::TO_UNDERLAY,
        }
    }
}

/// A frame as input of a program.
pub(crate) struct Run<'a> {
    lab: &'a mut Lab,
    program: Program,
    ifindex: u32,
    frame: Vec<u8>,
    gso_size: u32,
    flags: u32,
    repeat: u32,
    transmitted: bool,
    forwarded: bool,
    mark: u32,
}

impl Lab {
    /// A frame that the container behind `interface` sends.
    pub(crate) fn at_container(&mut self, interface: Interface, frame: &[u8]) -> Run<'_> {
        Run::new(self, Program::Container, interface.ifindex(), frame)
    }

    /// A frame that arrives on the uplink, at tcx.
    pub(crate) fn at_underlay(&mut self, frame: &[u8]) -> Run<'_> {
        Run::new(self, Program::Underlay, Interface::Uplink.ifindex(), frame)
    }

    /// A frame that arrives on the uplink, at XDP.
    pub(crate) fn at_underlay_xdp(&mut self, frame: &[u8]) -> Run<'_> {
        Run::new(self, Program::UnderlayXdp, Interface::Uplink.ifindex(), frame)
    }

    /// A frame that the host sends to network A.
    pub(crate) fn at_host(&mut self, frame: &[u8]) -> Run<'_> {
        self.at(Program::Host, frame)
    }

    /// A frame that the host sends to the network behind a gateway device.
    pub(crate) fn at_gateway(&mut self, ifindex: u32, frame: &[u8]) -> Run<'_> {
        Run::new(self, Program::Host, ifindex, frame)
    }

    /// A frame that arrives on the client link.
    pub(crate) fn at_client(&mut self, frame: &[u8]) -> Run<'_> {
        self.at(Program::Client, frame)
    }

    /// A frame that arrives on another client link.
    pub(crate) fn at_other_client(&mut self, ifindex: u32, frame: &[u8]) -> Run<'_> {
        Run::new(self, Program::Client, ifindex, frame)
    }

    /// A frame on the loopback device.
    pub(crate) fn at_loopback(&mut self, frame: &[u8]) -> Run<'_> {
        self.at(Program::Loopback, frame)
    }

    /// A frame for any of the programs.
    pub(crate) fn at(&mut self, program: Program, frame: &[u8]) -> Run<'_> {
        Run::new(self, program, program.ifindex(), frame)
    }

    pub(crate) fn program_fd(&self, program: Program) -> &ProgramFd {
        let loaded = self.ebpf.program(program.name()).unwrap();
        match program {
            Program::UnderlayXdp => <&Xdp>::try_from(loaded).unwrap().fd().unwrap(),
            _ => <&SchedClassifier>::try_from(loaded).unwrap().fd().unwrap(),
        }
    }

    /// Increases of the counters since the last call, by index.
    pub(crate) fn new_counts(&mut self) -> Vec<(u32, Counter)> {
        let now = self.read_counters();
        let before = std::mem::replace(&mut self.counters, now);
        let new: Vec<(u32, Counter)> = (0u32..)
            .zip(self.counters.iter().zip(before))
            .map(|(index, (now, before))| {
                let packets = now.packets - before.packets;
                (index, Counter { packets, bytes: now.bytes - before.bytes })
            })
            .filter(|(_, counter)| *counter != Counter::default())
            .collect();
        self.counted.extend(new.iter().map(|(index, _)| index));
        new
    }
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: i32,
    pub(crate) frame: Vec<u8>,
    pub(crate) counts: Vec<(u32, Counter)>,
    pub(crate) copies: Vec<(Interface, Vec<u8>)>,
}

/// Number of packets that `counts` has for `code`.
pub(crate) fn packets(counts: &[(u32, Counter)], direction: Direction, code: Code) -> u64 {
    let index = stats_index(direction, code);
    counts.iter().find(|(at, _)| *at == index).map_or(0, |(_, counter)| counter.packets)
}

impl Outcome {
    /// How often `code` was counted.
    pub(crate) fn count(&self, direction: Direction, code: Code) -> u64 {
        packets(&self.counts, direction, code)
    }

    /// The outer UDP source port of the frame left behind.
    pub(crate) fn entropy_port(&self) -> u16 {
        entropy_port(&self.frame)
    }
}

/// Runs a program `repeat` times on a frame with its `__sk_buff`. Returns the verdict and the
/// frame that is left behind.
pub(crate) fn test_run(
    program: &ProgramFd,
    frame: &[u8],
    context: Option<&[u8]>,
    repeat: u32,
    flags: u32,
) -> (i32, Vec<u8>) {
    let mut left = vec![0; LONGEST_LEFT];
    let (verdict, len) = test_run_into(program, frame, context, (repeat, flags), &mut left);
    left.truncate(len);
    (verdict, left)
}

/// Length in bytes of the longest frame that a program may leave behind.
pub(crate) const LONGEST_LEFT: usize = 2 * 4096;

/// Like [`test_run`], with the times and the flags in a tuple. Writes the frame that is left behind
/// to the beginning of `left`, and returns the verdict and the length of that frame.
pub(crate) fn test_run_into(
    program: &ProgramFd,
    frame: &[u8],
    context: Option<&[u8]>,
    (repeat, flags): (u32, u32),
    left: &mut [u8],
) -> (i32, usize) {
    // SAFETY: a union of structures of integers, for which all bytes 0 is a value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.test.prog_fd = program.as_fd().as_raw_fd().try_into().unwrap();
    attr.test.data_size_in = frame.len().try_into().unwrap();
    attr.test.data_size_out = left.len().try_into().unwrap();
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_out = left.as_mut_ptr() as u64;
    attr.test.repeat = repeat;
    attr.test.flags = flags;
    if let Some(context) = context {
        attr.test.ctx_size_in = context.len() as u32;
        attr.test.ctx_in = context.as_ptr() as u64;
    }
    let command = bpf_cmd::BPF_PROG_TEST_RUN as libc::c_long;
    // SAFETY: the attributes are those of the command. The buffers they point to have the lengths
    // that are given, and outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "test run: {error}");
    // SAFETY: the kernel has succeeded with `BPF_PROG_TEST_RUN`, whose member is `test`.
    let test = unsafe { attr.test };
    (test.retval.cast_signed(), test.data_size_out as usize)
}

/// The last note that every case asserts, present or not. A note that is added later is
/// asserted where a case names it, so that it does not break the others.
const LAST_ASSERTED: Note = Note::FragmentReleased;

/// Whether every case asserts the counter at `index`: all actions and drop reasons, and the
/// notes up to [`LAST_ASSERTED`].
fn is_asserted(index: u32) -> bool {
    index & 0xff <= LAST_ASSERTED.code().into()
}

impl Outcome {
    /// Checks that every frame is counted under one action or one drop reason. `frames` is the
    /// number of frames that went in.
    #[track_caller]
    fn conserves(&self, frames: Option<u64>) {
        const FIRST_NOTE: u32 = 192;
        let counted = self.counts.iter().filter(|(index, _)| index & 0xff < FIRST_NOTE);
        let counted: u64 = counted.map(|(_, counter)| counter.packets).sum();
        if let Some(frames) = frames {
            assert_eq!(counted, frames, "sent = forwarded + dropped");
        }
    }
}

impl<'a> Run<'a> {
    fn new(lab: &'a mut Lab, program: Program, ifindex: u32, frame: &[u8]) -> Self {
        let frame = frame.to_vec();
        let (transmitted, forwarded) = (false, false);
        Self {
            lab,
            program,
            ifindex,
            frame,
            gso_size: 0,
            flags: 0,
            repeat: 1,
            transmitted,
            forwarded,
            mark: 0,
        }
    }

    /// The host forwards the frame, which came in on another interface.
    pub(crate) fn forwarded(self) -> Self {
        Self { forwarded: true, ..self }
    }

    /// The program runs while the container transmits the frame, on a netkit device.
    pub(crate) fn transmitted(self) -> Self {
        Self { transmitted: true, ..self }
    }

    /// The frame has a mark (`skb->mark`).
    pub(crate) fn marked(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    /// Makes the frame a GSO frame with segments of `size` bytes of payload.
    pub(crate) fn gso(self, size: u32) -> Self {
        Self { gso_size: size, ..self }
    }

    /// The frame comes with a checksum from the network card.
    pub(crate) fn summed(self) -> Self {
        Self { flags: CHECKSUM_COMPLETE, ..self }
    }

    /// Runs the program `times` times in a row.
    pub(crate) fn repeat(self, times: u32) -> Self {
        Self { repeat: times, ..self }
    }

    /// Runs the program without a check of the result.
    pub(crate) fn outcome(self) -> Outcome {
        let hook = if self.transmitted && !self.forwarded {
            Hook::Egress
        } else {
            self.program.hook(self.forwarded)
        };
        let mut context = sk_buff(hook, self.ifindex, self.gso_size, self.frame.len());
        context[SK_BUFF_MARK..SK_BUFF_MARK + 4].copy_from_slice(&self.mark.to_ne_bytes());
        let context = (self.program != Program::UnderlayXdp).then_some(&context[..]);
        let program = self.lab.program_fd(self.program);
        let (verdict, left) = test_run(program, &self.frame, context, self.repeat, self.flags);
        Outcome { verdict, frame: left, counts: self.lab.new_counts(), copies: self.lab.drain() }
    }

    /// Runs the program and checks all that it does.
    #[track_caller]
    pub(crate) fn gives(self, expected: &Expected<'_>) -> Outcome {
        let (frame, direction) = (self.frame.clone(), self.program.direction());
        let frames = match self.program {
            // tcx counts the frames that XDP passes.
            Program::UnderlayXdp => None,
            _ => Some(u64::from(self.repeat)),
        };
        let outcome = self.outcome();
        let named: Vec<u32> =
            expected.counts.iter().map(|count| stats_index(direction, count.code)).collect();
        let counted: Vec<String> = outcome
            .counts
            .iter()
            .filter(|(index, _)| is_asserted(*index) || named.contains(index))
            .map(|(index, counter)| describe(*index, *counter))
            .collect();
        outcome.conserves(frames);
        let mut counts: Vec<(u32, Counter)> = expected
            .counts
            .iter()
            .map(|count| {
                let bytes = count.bytes.unwrap_or(count.packets * frame.len() as u64);
                let counter = Counter { packets: count.packets, bytes };
                (stats_index(direction, count.code), counter)
            })
            .collect();
        counts.sort_by_key(|(index, _)| *index);
        let wanted: Vec<String> =
            counts.iter().map(|(index, counter)| describe(*index, *counter)).collect();
        assert_eq!(counted, wanted, "counters");
        assert_eq!(outcome.verdict, expected.verdict, "verdict; counted {counted:?}");
        match &expected.left {
            Left::Unchanged => same("frame left behind", &outcome.frame, &frame),
            Left::Frame(frame) => same("frame left behind", &outcome.frame, frame),
            Left::Tunnelled(frame) => same_tunnelled("frame left behind", &outcome.frame, frame),
            Left::Spent => {}
        }
        let all = |copies: &mut dyn Iterator<Item = Interface>| copies.collect::<Vec<_>>();
        assert_eq!(
            all(&mut outcome.copies.iter().map(|(interface, _)| *interface)),
            all(&mut expected.copies.iter().map(|copy| copy.interface)),
            "interfaces of the copies"
        );
        for ((interface, actual), copy) in outcome.copies.iter().zip(expected.copies) {
            let what = format!("copy to {interface:?}");
            if copy.tunnelled {
                same_tunnelled(&what, actual, &copy.frame);
            } else {
                same(&what, actual, &copy.frame);
            }
        }
        outcome
    }

    /// The frame is left to the kernel, unchanged.
    #[track_caller]
    pub(crate) fn passes(self, notes: &[Count]) -> Outcome {
        let verdict = match self.program {
            Program::UnderlayXdp => XDP_PASS,
            _ => UNSPEC,
        };
        // tcx counts the frames that XDP passes.
        let counts = match self.program {
            Program::UnderlayXdp => notes.to_vec(),
            _ => [&[action(Action::Pass)], notes].concat(),
        };
        self.gives(&Expected { verdict, left: Left::Unchanged, counts: &counts, copies: &[] })
    }

    /// The frame is dropped, unchanged, and nothing is sent.
    #[track_caller]
    pub(crate) fn drops(self, reason: DropReason) {
        self.drops_noting(reason, &[]);
    }

    /// The frame is dropped, unchanged, with these notes.
    #[track_caller]
    pub(crate) fn drops_noting(self, reason: DropReason, notes: &[Count]) {
        let verdict = match self.program {
            Program::UnderlayXdp => XDP_DROP,
            _ => SHOT,
        };
        let counts = [&[drop(reason)], notes].concat();
        self.gives(&Expected { verdict, left: Left::Unchanged, counts: &counts, copies: &[] });
    }

    /// The frame goes to a local endpoint as `frame`.
    #[track_caller]
    pub(crate) fn delivers(self, frame: &[u8], notes: &[Count]) {
        self.redirects(Action::Deliver, Left::Frame(frame.to_vec()), notes);
    }

    /// The frame is encapsulated into `frame` with any entropy port. Returns the port.
    #[track_caller]
    pub(crate) fn encaps(self, frame: Vec<u8>, notes: &[Count]) -> u16 {
        self.redirects(Action::Encap, Left::Tunnelled(frame), notes).entropy_port()
    }

    /// The program answers the container with `frame`.
    #[track_caller]
    pub(crate) fn answers(self, what: Action, frame: Vec<u8>) {
        self.redirects(what, Left::Frame(frame), &[]);
    }

    /// The frame goes to the host's stack, unchanged.
    #[track_caller]
    pub(crate) fn reaches_host(self) {
        self.redirects(Action::ToHost, Left::Unchanged, &[]);
    }

    /// The frame goes to the host's stack, unchanged, and begins a flow.
    #[track_caller]
    pub(crate) fn begins_to_host(self) {
        self.redirects(Action::ToHost, Left::Unchanged, &crate::routed::CREATED);
    }

    /// The frame leaves through an uplink as `packet`.
    #[track_caller]
    pub(crate) fn leaves_as(self, packet: &V4, notes: &[Count]) {
        self.redirects(Action::NatOut, Left::Frame(packet.frame()), notes);
    }

    /// The frame is translated, and goes to a container as `packet`.
    #[track_caller]
    pub(crate) fn arrives_as(self, packet: &V4, notes: &[Count]) {
        self.redirects(Action::NatDeliver, Left::Frame(packet.frame()), notes);
    }

    /// The frame is a fragment, and is held unchanged.
    #[track_caller]
    pub(crate) fn holds(self, notes: &[Count]) {
        self.goes_nowhere(Action::Hold, Left::Unchanged, notes);
    }

    /// The frame is taken unchanged, and nobody gets it.
    #[track_caller]
    pub(crate) fn absorbs(self, notes: &[Count]) {
        self.goes_nowhere(Action::Absorb, Left::Unchanged, notes);
    }

    /// The frame is taken and goes nowhere, although it was not dropped.
    #[track_caller]
    pub(crate) fn goes_nowhere(self, what: Action, left: Left, notes: &[Count]) {
        let counts = [&[action(what)], notes].concat();
        self.gives(&Expected { verdict: SHOT, left, counts: &counts, copies: &[] });
    }

    /// The frame is forwarded. It is then run again, and must give the same bytes: through the flow
    /// cache, if the cache keeps such frames.
    #[track_caller]
    pub(crate) fn redirects(self, what: Action, left: Left, notes: &[Count]) -> Outcome {
        let counts = [&[action(what)], notes].concat();
        let expected = Expected { verdict: REDIRECT, left, counts: &counts, copies: &[] };
        let Run { lab, frame, .. } = self;
        let first = Run { lab: &mut *lab, frame: frame.clone(), ..self }.gives(&expected);
        if matches!(what, Action::Encap | Action::Deliver) && notes.is_empty() {
            let again = Run { lab, frame, ..self }.gives(&expected);
            same("frame left behind when it came again", &again.frame, &first.frame);
        }
        first
    }

    /// The frame is flooded: `copies` are sent, in the order of [`Interface`], and counted with `notes`.
    #[track_caller]
    pub(crate) fn floods(self, copies: &[Copy], notes: &[Count]) -> Outcome {
        let counts = [&[action(Action::Flood)], notes].concat();
        self.gives(&Expected { verdict: SHOT, left: Left::Spent, counts: &counts, copies })
    }

    /// The frame of an endpoint of network A is flooded to all other endpoints and VTEPs of the
    /// network, and counted with `notes` besides.
    #[track_caller]
    pub(crate) fn reaches_everyone(self, notes: &[Count]) {
        let from_a1 = self.ifindex == Interface::A1.ifindex();
        let other = if from_a1 { Interface::A2 } else { Interface::A1 };
        let frame = self.frame.as_slice();
        let copies = [
            copy(other, frame),
            tunnelled(to_peer().wrap(frame)),
            tunnelled(to_peer2().wrap(frame)),
        ];
        let flooded = [note(Note::FloodLocalCopy), note(Note::FloodRemoteCopy).times(2)];
        self.floods(&copies, &[&flooded, notes].concat());
    }
}
