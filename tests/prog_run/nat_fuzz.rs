//! Random sequences of packets between containers and external hosts, compared with a model of the
//! flows: TCP, UDP and ICMP echo in both directions, connections to published ports, packets that
//! belong to no flow, containers that are replaced, and time that passes. The tests demand that
//!
//! - a packet of an external host reaches the container of its flow, or the one that publishes its
//!   port, as it was sent, and no other container;
//! - a packet that answers nothing reaches no container;
//! - no two live flows have the same addresses and ports;
//! - a live flow goes on with the same port, and an established connection even if the table is
//!   full;
//! - a full table refuses no flow while others may be evicted;
//! - each packet is counted once.
//!
//! To let time pass, the test moves the last-packet time of each entry of the table back.
//!
//! `CULVERT_TEST_SEED` repeats the packets, but not the ports that the programs choose at random.
//! With `CULVERT_TEST_FULL` there are about a million packets.

mod model;

use std::collections::VecDeque;

use culvert::datapath::{now_ns, test_run::sk_buff};
use culvert_common::abi::{DropReason, FlowKey, Note, kind, seen, zone};
use culvert_tests::{
    chaos::{self, Random},
    packet::{ACK, FIN, Host, RST, SYN, V4},
};

use self::model::{Inside, Kind, Life, Model, Outside, SECOND, SYN_ACK, Tracked, What};
use crate::{
    compare::hex,
    flows::{fill, filler, left_of},
    interfaces::Interface,
    lab::{self, Lab},
    routed::{chosen_port, echo, inbound, key, outbound, pass_time, publish},
    run::{LONGEST_LEFT, Program, REDIRECT, SHOT, UNSPEC, test_run_into},
    world::{A, B, GATEWAY, GATEWAY_OF_B, ONE, SERVER, SERVER2, TWO, US, change_endpoint},
};

/// Rounds of a short and of a long test. Each begins with an empty table.
const ROUNDS: u32 = 30;
const MANY_ROUNDS: u32 = 900;
/// Steps of a round. A step sends one packet or three, or none.
const STEPS: u32 = 1000;

/// Steps that a failure prints.
const REMEMBERED: usize = 60;

/// A container, and its gateway.
#[derive(Debug)]
struct Container {
    at: Interface,
    vni: u32,
    host: Host,
    gateway: Host,
}

/// The networks have the same addresses.
static CONTAINERS: [Container; 4] = [
    Container { at: Interface::A1, vni: A, host: ONE, gateway: GATEWAY },
    Container { at: Interface::A2, vni: A, host: TWO, gateway: GATEWAY },
    Container { at: Interface::B1, vni: B, host: ONE, gateway: GATEWAY_OF_B },
    Container { at: Interface::B2, vni: B, host: TWO, gateway: GATEWAY_OF_B },
];

/// The external hosts.
const SERVERS: [Host; 2] = [SERVER, SERVER2];
/// Ports of servers and of clients outside.
const REMOTE_PORTS: [u16; 4] = [53, 80, 5000, 5001];
/// Ports of containers. The last one is that of their servers.
const PORTS: [u16; 5] = [1000, 1001, 1002, 40_000, SERVED];
/// The port that the published ports lead to.
const SERVED: u16 = 80;
/// The published ports of TCP and UDP.
const PUBLISHED: [(u16, Interface); 2] = [(8080, Interface::A1), (8081, Interface::A2)];
/// Flags of the segments.
const FLAGS: [u8; 10] = [SYN, SYN, SYN_ACK, ACK, ACK, ACK, ACK, ACK | FIN, RST, RST | ACK];
/// Times that pass in one step, in seconds: around the idle times of the states.
const TIMES: [u64; 10] = [1, 8, 13, 27, 33, 57, 63, 117, 123, 310];

/// Other flows in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pressure {
    /// None.
    Empty,
    /// It is full of flows that may be evicted.
    Evictable,
    /// It is full of established connections, except for [`ROOM`] flows.
    Established,
}

/// Flows for which [`Pressure::Established`] leaves room.
const ROOM: u32 = 40;

#[test]
#[ignore = "needs root"]
fn flows_agree_with_a_model() {
    lab::alone(|lab| {
        let mut random = Random::seeded();
        let mut totals = Totals::default();
        for round in chaos::each("packets of flows", chaos::rounds(ROUNDS, MANY_ROUNDS)) {
            let pressure = [Pressure::Empty, Pressure::Evictable, Pressure::Established];
            let pressure = pressure[round as usize % pressure.len()];
            let mut packets = Sequence::new(&mut *lab, &mut totals, random.fork(), round, pressure);
            for _ in 0..STEPS {
                packets.step();
            }
            packets.end();
        }
        chaos::say(&format!("packets and flows of the model: {totals:?}"));
        totals.are_many();
    });
}

/// What has happened in all rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    packets: u64,
    masqueraded: u64,
    published: u64,
    established: u64,
    answers: u64,
    strays: u64,
    conflicts: u64,
    refused: u64,
}

impl Totals {
    /// Otherwise the test would show nothing.
    fn are_many(&self) {
        let Self { packets, masqueraded, published, established, answers, strays, .. } = *self;
        for number in [packets, masqueraded, published, established, answers, strays] {
            assert!(number >= 100, "{self:?}");
        }
        assert!(self.conflicts > 0 && self.refused > 0, "{self:?}");
    }
}

/// The packets of a round.
struct Sequence<'a> {
    lab: &'a mut Lab,
    random: Random,
    round: u32,
    pressure: Pressure,
    /// Flows of [`Pressure`].
    fillers: u32,
    model: Model,
    /// Time at which the round began, in ns.
    begun: u64,
    /// Time that has passed by [`Self::age`], in ns.
    aged: u64,
    /// Packets of the round, and those that were counted.
    sent: u64,
    counted: u64,
    totals: &'a mut Totals,
    buffer: Vec<u8>,
    /// The frame that the last run left behind.
    left: Vec<u8>,
    log: VecDeque<String>,
}

impl<'a> Sequence<'a> {
    fn new(
        lab: &'a mut Lab,
        totals: &'a mut Totals,
        random: Random,
        round: u32,
        pressure: Pressure,
    ) -> Self {
        lab.begin();
        for (port, at) in PUBLISHED {
            for protocol in [6, 17] {
                publish(lab, [0; 4], protocol, port, at, SERVED);
            }
        }
        let fillers = match pressure {
            Pressure::Empty => 0,
            Pressure::Evictable => fill(lab, 17, [seen::PACKET, 0], 0),
            Pressure::Established => {
                let fillers = fill(lab, 6, [seen::ACK; 2], 0);
                for number in 0..ROOM {
                    for (key, _) in filler(number, 6, [seen::ACK; 2], 0) {
                        lab.flows.remove(key);
                    }
                }
                fillers
            }
        };
        Self {
            lab,
            random,
            round,
            pressure,
            fillers,
            model: Model::default(),
            begun: now_ns(),
            aged: 0,
            sent: 0,
            counted: 0,
            totals,
            buffer: vec![0; LONGEST_LEFT],
            left: Vec::new(),
            log: VecDeque::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..25 => {
                let (inside, what) = self.any_inside();
                self.container_sends(inside, what);
            }
            25..45 => {
                if let Some(flow) = self.any_flow() {
                    let what = self.any_of(flow.inside.protocol, What::Ask);
                    self.container_sends(flow.inside, what);
                }
            }
            45..68 => {
                if let Some(flow) = self.any_flow() {
                    let what = self.any_of(flow.outside.protocol, What::Answer);
                    self.outside_sends(flow.outside, what);
                }
            }
            68..78 => {
                let (outside, what) = self.any_outside();
                self.outside_sends(outside, what);
            }
            78..86 => self.connect(),
            86..92 => self.connect_to_published(),
            92..94 => self.ping_the_host(),
            94..97 => self.age(),
            97 => self.replace(),
            _ => {}
        }
    }

    /// Checks the sums of the round.
    fn end(mut self) {
        self.count();
        assert_eq!(self.counted, self.sent, "round {}: counted instead of sent", self.round);
        if self.pressure == Pressure::Established {
            let left = left_of(self.lab, self.fillers, 6);
            assert_eq!(left, self.fillers - ROOM, "round {}: established flows", self.round);
        }
        self.totals.packets += self.sent;
    }

    /// The time of the model in ns.
    fn now(&self) -> u64 {
        now_ns() + self.aged
    }

    /// A packet of this protocol: `echo` if it is ICMP.
    fn any_of(&mut self, protocol: u8, echo: What) -> What {
        match protocol {
            17 => What::Udp,
            6 => What::Tcp(*self.random.pick(&FLAGS)),
            _ => echo,
        }
    }

    fn any_protocol(&mut self) -> u8 {
        *self.random.pick(&[6, 6, 17, 17, 1])
    }

    /// The address of an external host, and a port of it for this protocol.
    fn any_remote(&mut self, protocol: u8) -> ([u8; 4], u16) {
        let remote = self.random.pick(&SERVERS).v4;
        let port = if protocol == 1 { 0 } else { *self.random.pick(&REMOTE_PORTS) };
        (remote, port)
    }

    fn any_inside(&mut self) -> (Inside, What) {
        let protocol = self.any_protocol();
        let what = self.any_of(protocol, What::Ask);
        let at = self.random.pick(&CONTAINERS).at;
        let port = *self.random.pick(&PORTS);
        let (remote, remote_port) = self.any_remote(protocol);
        (Inside { at, protocol, port, remote, remote_port }, what)
    }

    /// A packet that may belong to no flow.
    fn any_outside(&mut self) -> (Outside, What) {
        let protocol = self.any_protocol();
        let what = self.any_of(protocol, What::Answer);
        let (remote, remote_port) = self.any_remote(protocol);
        let ports = [PORTS.as_slice(), &PUBLISHED.map(|(port, _)| port)].concat();
        let port = *self.random.pick(&ports);
        (Outside { protocol, port, remote, remote_port }, what)
    }

    /// A flow of the model, which may have expired.
    fn any_flow(&mut self) -> Option<Tracked> {
        if self.model.flows.is_empty() {
            return None;
        }
        Some(*self.random.pick(&self.model.flows))
    }

    /// A container connects to a server.
    fn connect(&mut self) {
        let at = self.random.pick(&CONTAINERS).at;
        let port = *self.random.pick(&PORTS);
        let remote = self.random.pick(&SERVERS).v4;
        let inside = Inside { at, protocol: 6, port, remote, remote_port: 80 };
        self.container_sends(inside, What::Tcp(SYN));
        let Some((index, _)) = self.model.of_inside(&inside, self.now()) else { return };
        let outside = self.model.flows[index].outside;
        self.outside_sends(outside, What::Tcp(SYN_ACK));
        self.container_sends(inside, What::Tcp(ACK));
        self.note_established(&inside);
    }

    /// An external host connects to a published port.
    fn connect_to_published(&mut self) {
        let remote = self.random.pick(&SERVERS).v4;
        let remote_port = *self.random.pick(&REMOTE_PORTS);
        let (port, _) = *self.random.pick(&PUBLISHED);
        let outside = Outside { protocol: 6, port, remote, remote_port };
        self.outside_sends(outside, What::Tcp(SYN));
        let Some((index, _)) = self.model.of_outside(&outside, self.now()) else { return };
        let inside = self.model.flows[index].inside;
        self.container_sends(inside, What::Tcp(SYN_ACK));
        self.outside_sends(outside, What::Tcp(ACK));
        self.note_established(&inside);
    }

    fn note_established(&mut self, inside: &Inside) {
        let flow = self.model.of_inside(inside, self.now());
        let is_it = flow.is_some_and(|(index, _)| self.model.flows[index].is_established());
        self.totals.established += u64::from(is_it);
    }

    /// An echo request to the host, with an identifier that a flow may have.
    fn ping_the_host(&mut self) {
        let server = *self.random.pick(&SERVERS);
        let id = *self.random.pick(&PORTS);
        let frame = echo(&server, &US, 8, id).frame();
        self.remember(format!("{:?} pings the host with {id}", server.v4));
        if self.run(Program::Underlay, Interface::Uplink, &frame) != UNSPEC || self.left != frame {
            self.fail("the host does not get an echo request");
        }
    }

    /// Time passes.
    fn age(&mut self) {
        // In a full table this takes longer than many packets.
        if self.pressure != Pressure::Empty && self.random.below(4) != 0 {
            return;
        }
        let seconds = *self.random.pick(&TIMES);
        let ns = seconds * SECOND;
        // No entry gets a time before the start of the machine.
        if self.aged + ns >= self.begun {
            return;
        }
        self.remember(format!("{seconds} s pass"));
        pass_time(self.lab, seconds);
        self.aged += ns;
    }

    /// Another container takes the place of one, with the same addresses.
    fn replace(&mut self) {
        let at = self.random.pick(&CONTAINERS).at;
        self.remember(format!("the container at {at:?} is replaced"));
        // Numbers that no other endpoint has or gets.
        let incarnation = 0x7000_0000 + self.random.below(1 << 24) as u32;
        change_endpoint(&self.lab.tables, at, |entry| entry.incarnation = incarnation);
        self.model.replaces(at);
    }

    /// Runs a program on a frame, and stores the frame that it leaves behind. Returns the verdict.
    fn run(&mut self, program: Program, interface: Interface, frame: &[u8]) -> i32 {
        let context = sk_buff(program.hook(false), interface.ifindex(), 0, frame.len());
        let fd = self.lab.program_fd(program);
        let (verdict, len) = test_run_into(fd, frame, Some(&context[..]), (1, 0), &mut self.buffer);
        self.left.clear();
        self.left.extend_from_slice(&self.buffer[..len]);
        self.sent += 1;
        verdict
    }

    /// The flow `known`, as it was at the time `before`, and the time after a program has run. A flow
    /// may have expired while the machine stood still before the program read its clock.
    fn is_still_known(
        &self,
        known: Option<(usize, Life)>,
        before: u64,
    ) -> (Option<(usize, Life)>, u64) {
        let after = self.now();
        let known = known.map(|(index, life)| {
            let is_slow = life == Life::Certain && after - before > SECOND;
            (index, if is_slow { Life::Doubtful } else { life })
        });
        (known, after)
    }

    /// Whether the packet under `key`, for which the program has returned `verdict`, has begun a
    /// flow. For a new flow, also for one that is refused, others may have been evicted.
    fn has_begun(&mut self, key: FlowKey, verdict: i32) -> bool {
        let flow = self.lab.flows.get(key);
        let has = flow.is_some_and(|flow| flow.kind & kind::ORIG != 0 && flow.packets == 1);
        if (has || verdict == SHOT) && self.pressure != Pressure::Empty {
            self.model.evicts();
        }
        has
    }

    /// Adds up the new counts. Returns the drop reasons among them.
    fn count(&mut self) -> Vec<DropReason> {
        let new = self.lab.new_counts();
        // The low byte of an index is the number of its code.
        let fates = new.iter().filter(|(index, _)| Note::from_code(*index as u8).is_none());
        self.counted += fates.map(|(_, counter)| counter.packets).sum::<u64>();
        let reasons = new.iter().filter_map(|(index, _)| DropReason::from_code(*index as u8));
        reasons.collect()
    }

    /// The packet `what` did not pass by the flow `known`, to which it belongs: the flow has been
    /// lost, or has ended, and the packet begins another one. A live flow must not be lost.
    fn is_lost(&mut self, known: Option<(usize, Life)>, what: What, from_outside: bool) {
        let Some((index, life)) = known else { return };
        let flow = self.model.flows[index];
        if life == Life::Certain && !flow.may_begin_anew(what, from_outside) {
            self.fail(&format!("a live flow was lost: {flow:?}"));
        }
        self.model.flows.remove(index);
    }

    /// A container sends a packet.
    fn container_sends(&mut self, inside: Inside, what: What) {
        let container = container(inside.at);
        let remote = Host { v4: inside.remote, ..SERVER };
        let ports = (inside.port, inside.remote_port);
        let gateway = container.gateway.mac;
        let came = V4 { eth_dst: gateway, ..packet(what, &container.host, &remote, ports) };
        self.remember(format!("from {inside:?}: {what:?}"));
        let now = self.now();
        let known = self.model.of_inside(&inside, now);
        let verdict = self.run(Program::Container, inside.at, &came.frame());
        let (known, after) = self.is_still_known(known, now);
        let has_begun = self.has_begun(key(container.vni, &came), verdict);
        match verdict {
            REDIRECT if has_begun => {
                self.is_lost(known, what, false);
                let Inside { protocol, remote: address, remote_port, .. } = inside;
                let port = chosen_port(&self.left);
                self.is_left(&outbound(&packet(what, &US, &remote, (port, remote_port))));
                let outside = Outside { protocol, port, remote: address, remote_port };
                self.begin(
                    Tracked::new(inside, outside, Kind::Masquerade, what, (now, after)),
                    after,
                );
                self.totals.masqueraded += 1;
            }
            REDIRECT => {
                let Some((index, _)) = known else { self.fail("left without a flow") };
                let flow = self.model.flows[index];
                if flow.kind == Kind::Published && what.opens() {
                    self.fail("a server has connected to the port of its client");
                }
                let ports = (flow.outside.port, flow.outside.remote_port);
                self.is_left(&outbound(&packet(what, &US, &remote, ports)));
                self.model.flows[index].passes(what, false, (now, after));
            }
            SHOT => {
                let is_of_server = known.is_some_and(|(index, _)| {
                    self.model.flows[index].kind == Kind::Published && what.opens()
                });
                match self.count().as_slice() {
                    [DropReason::FlowConflict] if is_of_server => self.totals.conflicts += 1,
                    // The program looks for room first. The flow of the client stays.
                    [DropReason::ConntrackFull] if is_of_server => {
                        self.is_refused(None, what, false);
                    }
                    [DropReason::ConntrackFull] => self.is_refused(known, what, false),
                    other => self.fail(&format!("dropped: {other:?}")),
                }
            }
            other => self.fail(&format!("verdict {other}")),
        }
    }

    /// An external host sends a packet to this host.
    fn outside_sends(&mut self, outside: Outside, what: What) {
        let Outside { protocol, port, remote: address, remote_port } = outside;
        let remote = Host { v4: address, ..SERVER };
        let came = packet(what, &remote, &US, (remote_port, port));
        self.remember(format!("from outside, {outside:?}: {what:?}"));
        let now = self.now();
        let known = self.model.of_outside(&outside, now);
        let target =
            PUBLISHED.into_iter().find(|(published, _)| protocol != 1 && *published == port);
        let verdict = self.run(Program::Underlay, Interface::Uplink, &came.frame());
        let (known, after) = self.is_still_known(known, now);
        let has_begun = self.has_begun(key(zone::EXTERNAL, &came), verdict);
        match verdict {
            REDIRECT if has_begun => {
                self.is_lost(known, what, true);
                let Some((_, at)) = target else { self.fail("a stray began a flow") };
                let to = container(at);
                let client_port = chosen_port(&self.left);
                let went = packet(what, &remote, &to.host, (client_port, SERVED));
                self.is_left(&inbound(&went, &to.gateway));
                let (port, remote_port) = (SERVED, client_port);
                let inside = Inside { at, protocol, port, remote: address, remote_port };
                self.begin(
                    Tracked::new(inside, outside, Kind::Published, what, (now, after)),
                    after,
                );
                self.totals.published += 1;
            }
            REDIRECT => {
                let Some((index, _)) = known else {
                    self.fail("reached a container, although it answers nothing")
                };
                let flow = self.model.flows[index];
                let to = container(flow.inside.at);
                let ports = (flow.inside.remote_port, flow.inside.port);
                self.is_left(&inbound(&packet(what, &remote, &to.host, ports), &to.gateway));
                self.model.flows[index].passes(what, true, (now, after));
                self.totals.answers += 1;
            }
            UNSPEC => {
                self.is_lost(known, what, true);
                if target.is_some() && (what == What::Udp || what.opens()) {
                    self.fail("a published port gets no packet");
                }
                if self.left != came.frame() {
                    self.fail("changed, although it is the host's");
                }
                self.totals.strays += 1;
            }
            SHOT => match self.count().as_slice() {
                [DropReason::ConntrackFull] if target.is_some() => {
                    self.is_refused(known, what, true);
                }
                other => self.fail(&format!("dropped: {other:?}")),
            },
            other => self.fail(&format!("verdict {other}")),
        }
    }

    /// The table is full, and the packet belongs to no flow.
    fn is_refused(&mut self, known: Option<(usize, Life)>, what: What, from_outside: bool) {
        if self.pressure != Pressure::Established {
            self.fail("refused, although other flows may be evicted");
        }
        self.is_lost(known, what, from_outside);
        self.totals.refused += 1;
    }

    fn begin(&mut self, new: Tracked, now: u64) {
        if let Err(fault) = self.model.begin(new, now) {
            self.fail(&fault);
        }
    }

    /// The program has left this packet behind.
    fn is_left(&self, wanted: &V4) {
        let wanted = wanted.frame();
        if self.left != wanted {
            self.fail(&format!("left {}\ninstead of {}", hex(&self.left), hex(&wanted)));
        }
    }

    /// Notes a step for [`Self::fail`].
    fn remember(&mut self, step: String) {
        if self.log.len() == REMEMBERED {
            self.log.pop_front();
        }
        self.log.push_back(step);
    }

    fn fail(&self, fault: &str) -> ! {
        let Self { round, pressure, .. } = self;
        let number = self.sent;
        let steps = Vec::from_iter(self.log.iter().map(String::as_str)).join("\n");
        panic!("round {round}, {pressure:?}, packet {number}: {fault}\nthe last steps:\n{steps}")
    }
}

/// The container at an interface.
fn container(at: Interface) -> &'static Container {
    CONTAINERS.iter().find(|container| container.at == at).unwrap()
}

/// A packet with these source and destination ports. Of an ICMP echo, one is the identifier and the
/// other is 0.
fn packet(what: What, from: &Host, to: &Host, (src, dst): (u16, u16)) -> V4 {
    match what {
        What::Udp => V4::udp(from, to, (src, dst), b"x"),
        What::Tcp(flags) => V4::segment(from, to, (src, dst), flags, &[]),
        What::Ask => echo(from, to, 8, src),
        What::Answer => echo(from, to, 0, dst),
    }
}
