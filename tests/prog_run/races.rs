//! Two CPUs at once: test runs of two threads against the tables that the programs write.
//!
//! The kernel gives the memory of a removed element to the next insertion on the same CPU,
//! while a program on another CPU may be reading it.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::{perf_event_attr, perf_sw_ids, perf_type_id};
use culvert::datapath::test_run::{Hook, sk_buff};
use culvert_common::abi::{Code, Direction, FlowKey, Note};
use culvert_tests::packet::{ACK, Host, SYN, V4, payload};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    interfaces::Interface,
    lab::{Lab, MAX_FLOWS},
    routed::{answer, chosen_port, fragments, key, outbound, to_gateway},
    run::{Program, packets, test_run},
    world::{A, ONE, SERVER, TWO, US},
};

cases!(
    a_recycled_flow_is_nobodys,
    a_recycled_datagram_is_nobodys,
    fragments_of_one_datagram_on_two_cpus,
    one_flow_begins_on_two_cpus,
    one_flow_begins_on_two_cpus_in_a_full_table,
);

/// How long two threads race.
const TIME: Duration = Duration::from_secs(2);

/// Keeps the calling thread on the CPU of this number.
fn stay_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("two CPUs");
}

/// Interval of the interrupts of the calling thread, in ns: about the run time of a program.
/// (perf_event_open(2) samples by a timer, and permits 100,000 samples a second.)
const EVERY_NS: u64 = 10_000;

/// Interrupts the calling thread every [`EVERY_NS`] while it runs, until the result is dropped. An
/// interrupt inside a program gives the other CPU time to change an entry that the program has
/// looked up.
fn interrupted() -> OwnedFd {
    // SAFETY: a structure of integers, for which all bytes 0 is a value.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
    attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap();
    attr.config = perf_sw_ids::PERF_COUNT_SW_CPU_CLOCK as u64;
    attr.__bindgen_anon_1.sample_period = EVERY_NS;
    let (this_thread, any_cpu, no_group, no_flags) = (0, -1, -1, 0);
    // SAFETY: `attr.size` is the length of `attr`, which outlives the call.
    let fd = unsafe {
        let attr = &raw const attr;
        libc::syscall(libc::SYS_perf_event_open, attr, this_thread, any_cpu, no_group, no_flags)
    };
    assert!(fd >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
    // SAFETY: the call has returned a file descriptor that is nobody else's.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap()) }
}

/// Container of a source port: `A1` has the even ports.
fn owner(port: u16) -> (Interface, Host) {
    if port.is_multiple_of(2) { (Interface::A1, ONE) } else { (Interface::A2, TWO) }
}

/// One CPU removes flows and inserts others into their memory. The other CPU runs the program on
/// answers to all of the flows. An answer goes to the container of its flow, or to none.
fn a_recycled_flow_is_nobodys(lab: &mut Lab) {
    const PORTS: std::ops::Range<u16> = 40_000..40_008;
    let syn = |port| {
        let (_, host) = owner(port);
        to_gateway(&V4::segment(&host, &SERVER, (port, 80), SYN, &[]))
    };
    let keys: Vec<[FlowKey; 2]> = PORTS
        .map(|port| {
            let left = outbound(&V4::segment(&US, &SERVER, (port, 80), SYN, &[]));
            [key(A, &syn(port)), answer(&key(0, &left))]
        })
        .collect();
    let from_container = lab.program_fd(Program::Container).try_clone().unwrap();
    let from_underlay = lab.program_fd(Program::Underlay).try_clone().unwrap();
    let begin = |port: u16| {
        let frame = syn(port).frame();
        let context = sk_buff(Hook::Ingress, owner(port).0.ifindex(), 0, frame.len());
        test_run(&from_container, &frame, Some(&context), 1, 0);
    };
    PORTS.for_each(begin);
    let mut flows = lab.flows_again();
    let answers: Vec<_> =
        keys.iter().map(|[_, answer]| (*answer, flows.get(*answer).unwrap())).collect();
    flows.remove(answers[0].0);
    let replace = |next: usize, absent: usize| {
        flows.remove(answers[next].0);
        flows.set(answers[absent].0, answers[absent].1);
    };
    race(answers.len(), replace, |seen| {
        for port in PORTS {
            let frame = V4::segment(&SERVER, &US, (80, port), ACK, &[]).frame();
            let context = sk_buff(Hook::Ingress, Interface::Uplink.ifindex(), 0, frame.len());
            let (_, left) = test_run(&from_underlay, &frame, Some(&context), 1, 0);
            if seen.is_delivered(&frame, &left) {
                let (_, host) = owner(port);
                assert_eq!(left[..6], host.mac, "MAC of port {port}");
                assert_eq!(left[30..34], host.v4, "address of port {port}");
                assert_eq!(left[36..38], port.to_be_bytes(), "port {port}");
            }
        }
    });
}

/// Numbers of the frames that the reader of [`race`] has seen.
#[derive(Default)]
struct Seen {
    delivered: u32,
    passed: u32,
}

impl Seen {
    /// Counts a frame, and returns whether the program has changed it: it is delivered then.
    fn is_delivered(&mut self, frame: &[u8], left: &[u8]) -> bool {
        let passed = left == frame;
        *(if passed { &mut self.passed } else { &mut self.delivered }) += 1;
        !passed
    }
}

/// CPU 0 calls `replace` again and again while CPU 1 calls `read`, for [`TIME`]. Of `entries` entries
/// one is always absent, at first number 0. `replace` gets the numbers of the next entry, which it
/// removes, and of the absent entry, which it inserts: it gets the memory of the removed entry.
fn race(
    entries: usize,
    mut replace: impl FnMut(usize, usize) + Send,
    mut read: impl FnMut(&mut Seen) + Send,
) {
    let stop = AtomicBool::new(false);
    let Seen { delivered, passed } = thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(0);
            let mut absent = 0;
            while !stop.load(Ordering::Relaxed) {
                let next = (absent + 1) % entries;
                replace(next, absent);
                absent = next;
            }
        });
        let reader = scope.spawn(|| {
            stay_on(1);
            let _interrupted = interrupted();
            let (mut seen, start) = (Seen::default(), Instant::now());
            while start.elapsed() < TIME {
                read(&mut seen);
            }
            seen
        });
        let seen = reader.join();
        stop.store(true, Ordering::Relaxed);
        seen.unwrap()
    });
    assert!(delivered > 1000 && passed > 10, "no race: {delivered} delivered, {passed} passed");
}

/// Calls `run` with the CPU, 0 or 1, and each number from 1 to `rounds` on both CPUs. The two calls
/// with one number begin together, or one of them up to a few µs later, by turns. Ends earlier after
/// `limit`: on a busy machine the CPUs wait for each other. Returns the last number.
fn in_step(rounds: u16, limit: Duration, run: impl Fn(usize, u16) + Sync) -> u16 {
    let reached = [AtomicU64::new(0), AtomicU64::new(0)];
    let last = AtomicU64::new(rounds.into());
    let start = Instant::now();
    let thread = |own: usize| {
        stay_on(own);
        for number in 1..=u64::from(rounds) {
            if own == 0 && start.elapsed() > limit {
                // Before CPU 1 may begin with this number.
                last.store(number, Ordering::SeqCst);
            }
            reached[own].store(number, Ordering::SeqCst);
            while reached[1 - own].load(Ordering::SeqCst) < number {
                std::hint::spin_loop();
            }
            if number % 2 == own as u64 {
                (0..number % 500).for_each(|_| std::hint::spin_loop());
            }
            run(own, number as u16);
            if number >= last.load(Ordering::SeqCst) {
                return;
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| thread(0));
        scope.spawn(|| thread(1));
    });
    last.into_inner() as u16
}

/// One CPU receives the first fragment of a datagram, the other CPU a later fragment. The later
/// fragment is translated at once, or held and released. No fragment stays held.
fn fragments_of_one_datagram_on_two_cpus(lab: &mut Lab) {
    const DATAGRAMS: u16 = 4000;
    let packet = to_gateway(&V4::udp(&ONE, &SERVER, (40_000, 53), &payload(2500)));
    let [first, later, _] = fragments(&packet, &[1000, 1000]).try_into().unwrap();
    let program = lab.program_fd(Program::Container).try_clone().unwrap();
    let run = |packet: &V4, id: u16| {
        let frame = V4 { id, ..packet.clone() }.frame();
        let context = sk_buff(Hook::Ingress, Interface::A1.ifindex(), 0, frame.len());
        test_run(&program, &frame, Some(&context), 1, 0);
    };
    in_step(DATAGRAMS, Duration::MAX, |cpu, id| run(if cpu == 0 { &first } else { &later }, id));
    assert_eq!(lab.held.keys().len(), 0, "fragments are left behind");
}

/// Both CPUs have a SYN with the same ports, as two queues of a network card may have. One CPU
/// begins the flow, and the other CPU uses the target of this flow: both packets leave alike.
/// Returns the number of flows, and how many of them have another source port than their packets: a
/// CPU may find the port held by the other CPU, whose flow then does not begin.
fn begin_on_two_cpus(lab: &mut Lab, most: u16) -> (u16, usize) {
    let program = lab.program_fd(Program::Container).try_clone().unwrap();
    let frames: [Mutex<Vec<Vec<u8>>>; 2] = Default::default();
    let flows = in_step(most, TIME, |cpu, number| {
        let syn = V4::segment(&ONE, &SERVER, (20_000 + number, 80), SYN, &[]);
        let frame = to_gateway(&syn).frame();
        let context = sk_buff(Hook::Ingress, Interface::A1.ifindex(), 0, frame.len());
        let (_, left) = test_run(&program, &frame, Some(&context), 1, 0);
        frames[cpu].lock().unwrap().push(left);
    });
    let [first, second] = frames.map(|frames| frames.into_inner().unwrap());
    let mut changed = 0;
    for (number, (first, second)) in (1..=flows).zip(first.iter().zip(&second)) {
        let (own, port) = (20_000 + number, chosen_port(first));
        let expected = outbound(&V4::segment(&US, &SERVER, (port, 80), SYN, &[])).frame();
        if first != second || *first != expected {
            let counts = lab.new_counts();
            panic!("port {own}: CPU 0 {first:?}, CPU 1 {second:?}, counted {counts:?}");
        }
        changed += usize::from(port != own);
    }
    (flows, changed)
}

/// Two CPUs begin one flow. The flow is counted once. All flows are within the container's share.
fn one_flow_begins_on_two_cpus(lab: &mut Lab) {
    let (flows, changed) = begin_on_two_cpus(lab, 1900);
    assert_eq!(lab.flows.keys().len(), 2 * usize::from(flows));
    let counts = lab.new_counts();
    let noted = |note| packets(&counts, Direction::FromContainer, Code::Note(note));
    assert_eq!(noted(Note::FlowCreated), u64::from(flows));
    assert_eq!(noted(Note::PortChanged), changed as u64);
}

/// Two CPUs begin one flow while each new flow needs the room of another one. No flow is left with
/// one entry only.
fn one_flow_begins_on_two_cpus_in_a_full_table(lab: &mut Lab) {
    let (flows, _) = begin_on_two_cpus(lab, 10_000);
    let keys = lab.flows.keys();
    assert!(keys.len() <= 2 * MAX_FLOWS as usize, "{} entries", keys.len());
    for key in keys {
        let flow = lab.flows.get(key).unwrap();
        let other = key.other(&flow);
        assert!(lab.flows.get(other).is_some(), "{key:?} without {other:?}");
    }
    // On a busy machine the table may not become full within the time.
    let counts = lab.new_counts();
    let evicted = packets(&counts, Direction::FromContainer, Code::Note(Note::FlowEvicted));
    assert!(evicted > 0 || u32::from(flows) <= MAX_FLOWS);
}

/// One CPU removes the entries of datagrams and inserts others into their memory. The other CPU
/// runs the program on later fragments of all these datagrams. A fragment goes to the container
/// of its datagram, to the host if the datagram is the host's, or to nobody.
fn a_recycled_datagram_is_nobodys(lab: &mut Lab) {
    const IDS: std::ops::Range<u16> = 1..10;
    /// Source port of a datagram whose flow is the host's.
    const OF_HOST: u16 = 9;
    let port = |id: u16| [40_000, 40_001, OF_HOST][usize::from(id % 3)];
    let from_container = lab.program_fd(Program::Container).try_clone().unwrap();
    let from_underlay = lab.program_fd(Program::Underlay).try_clone().unwrap();
    for port in [40_000, 40_001] {
        let (at, host) = owner(port);
        let frame = to_gateway(&V4::udp(&host, &SERVER, (port, 53), &[])).frame();
        let context = sk_buff(Hook::Ingress, at.ifindex(), 0, frame.len());
        test_run(&from_container, &frame, Some(&context), 1, 0);
    }
    let pieces: Vec<[Vec<u8>; 2]> = IDS
        .map(|id| {
            let packet = V4 { id, ..V4::udp(&SERVER, &US, (53, port(id)), &payload(2500)) };
            let [first, later, _] = fragments(&packet, &[1000, 1000]).try_into().unwrap();
            [first.frame(), later.frame()]
        })
        .collect();
    let receive = |frame: &[u8]| {
        let context = sk_buff(Hook::Ingress, Interface::Uplink.ifindex(), 0, frame.len());
        test_run(&from_underlay, frame, Some(&context), 1, 0).1
    };
    for [first, _] in &pieces {
        receive(first);
    }
    let known: Vec<_> = lab
        .fragments
        .keys()
        .into_iter()
        .map(|key| (key, lab.fragments.get(key).unwrap()))
        .collect();
    assert_eq!(known.len(), IDS.len());
    let fragments = &mut lab.fragments;
    fragments.remove(known[0].0);
    let replace = |next: usize, absent: usize| {
        // An LRU map may have evicted the entry.
        fragments.remove_if_present(known[next].0);
        fragments.set(known[absent].0, known[absent].1);
    };
    race(known.len(), replace, |seen| {
        for (id, [_, later]) in IDS.zip(&pieces) {
            let left = receive(later);
            if seen.is_delivered(later, &left) {
                assert_ne!(port(id), OF_HOST, "the host's datagram {id} is translated");
                let (_, host) = owner(port(id));
                assert_eq!(left[..6], host.mac, "MAC of datagram {id}");
                assert_eq!(left[30..34], host.v4, "address of datagram {id}");
            }
        }
    });
}
