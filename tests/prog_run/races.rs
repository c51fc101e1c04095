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
use culvert_common::abi::{Code, Direction, FlowKey, Note, stats_index};
use culvert_tests::packet::{ACK, Host, SYN, V4, payload};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    lab::{Lab, MAX_FLOWS},
    ports::Port,
    routed::{answer, chosen_port, fragments, key, outbound, to_gateway},
    run::{Program, test_run},
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
fn owner(port: u16) -> (Port, Host) {
    if port.is_multiple_of(2) { (Port::A1, ONE) } else { (Port::A2, TWO) }
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
    let stop = AtomicBool::new(false);
    let (delivered, passed) = thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(0);
            // One entry is always absent. The absent entry gets the memory of the next entry.
            flows.remove(answers[0].0);
            let mut absent = 0;
            while !stop.load(Ordering::Relaxed) {
                let next = (absent + 1) % answers.len();
                flows.remove(answers[next].0);
                flows.set(answers[absent].0, answers[absent].1);
                absent = next;
            }
        });
        let reader = scope.spawn(|| {
            stay_on(1);
            let _interrupted = interrupted();
            let (mut delivered, mut passed) = (0_u32, 0_u32);
            let start = Instant::now();
            while start.elapsed() < TIME {
                for port in PORTS {
                    let frame = V4::segment(&SERVER, &US, (80, port), ACK, &[]).frame();
                    let context = sk_buff(Hook::Ingress, Port::Uplink.ifindex(), 0, frame.len());
                    let (_, left) = test_run(&from_underlay, &frame, Some(&context), 1, 0);
                    if left == frame {
                        passed += 1;
                        continue;
                    }
                    delivered += 1;
                    let (_, host) = owner(port);
                    assert_eq!(left[..6], host.mac, "MAC of port {port}");
                    assert_eq!(left[30..34], host.v4, "address of port {port}");
                    assert_eq!(left[36..38], port.to_be_bytes(), "port {port}");
                }
            }
            stop.store(true, Ordering::Relaxed);
            (delivered, passed)
        });
        let counts = reader.join();
        stop.store(true, Ordering::Relaxed);
        counts.unwrap()
    });
    assert!(delivered > 1000 && passed > 10, "no race: {delivered} delivered, {passed} passed");
}

/// Calls `run` with the CPU, 0 or 1, and each number from 1 to `rounds` on both CPUs. The two calls
/// with one number begin together, or one of them up to a few µs later, by turns.
fn in_step(rounds: u16, run: impl Fn(usize, u16) + Sync) {
    let reached = [AtomicU64::new(0), AtomicU64::new(0)];
    let thread = |own: usize| {
        stay_on(own);
        for number in 1..=rounds {
            reached[own].store(number.into(), Ordering::SeqCst);
            while reached[1 - own].load(Ordering::SeqCst) < number.into() {
                std::hint::spin_loop();
            }
            if usize::from(number) % 2 == own {
                (0..usize::from(number) % 500).for_each(|_| std::hint::spin_loop());
            }
            run(own, number);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| thread(0));
        scope.spawn(|| thread(1));
    });
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
        let context = sk_buff(Hook::Ingress, Port::A1.ifindex(), 0, frame.len());
        test_run(&program, &frame, Some(&context), 1, 0);
    };
    in_step(DATAGRAMS, |cpu, id| run(if cpu == 0 { &first } else { &later }, id));
    assert_eq!(lab.held.keys().len(), 0, "fragments are left behind");
}

/// Both CPUs have a SYN with the same ports, as two queues of a network card may have. One CPU
/// begins the flow, and the other CPU uses the target of this flow: both packets leave alike.
/// Returns how many flows have another source port than their packets: a CPU may find the port
/// held by the other CPU, whose flow then does not begin.
fn begin_on_two_cpus(lab: &mut Lab, flows: u16) -> usize {
    let program = lab.program_fd(Program::Container).try_clone().unwrap();
    let frames: [Mutex<Vec<Vec<u8>>>; 2] = Default::default();
    in_step(flows, |cpu, number| {
        let syn = V4::segment(&ONE, &SERVER, (20_000 + number, 80), SYN, &[]);
        let frame = to_gateway(&syn).frame();
        let context = sk_buff(Hook::Ingress, Port::A1.ifindex(), 0, frame.len());
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
    changed
}

/// Number of notes that the programs have counted at containers since the last call.
fn noted(lab: &mut Lab) -> impl Fn(Note) -> u64 + use<> {
    let counts = lab.new_counts();
    move |note| {
        let index = stats_index(Direction::FromContainer, Code::Note(note));
        counts.iter().find(|(at, _)| *at == index).map_or(0, |(_, counter)| counter.packets)
    }
}

/// Two CPUs begin one flow. The flow is counted once.
fn one_flow_begins_on_two_cpus(lab: &mut Lab) {
    const FLOWS: u16 = 3000;
    let changed = begin_on_two_cpus(lab, FLOWS);
    assert_eq!(lab.flows.keys().len(), 2 * usize::from(FLOWS));
    let noted = noted(lab);
    assert_eq!(noted(Note::FlowCreated), u64::from(FLOWS));
    assert_eq!(noted(Note::PortChanged), changed as u64);
}

/// Two CPUs begin one flow while each new flow needs the room of another one. No flow is left with
/// one entry only.
fn one_flow_begins_on_two_cpus_in_a_full_table(lab: &mut Lab) {
    const FLOWS: u16 = 10_000;
    begin_on_two_cpus(lab, FLOWS);
    let keys = lab.flows.keys();
    assert!(keys.len() <= 2 * MAX_FLOWS as usize, "{} entries", keys.len());
    for key in keys {
        let flow = lab.flows.get(key).unwrap();
        let other = FlowKey::new(flow.zone, key.protocol, flow.to.reversed());
        assert!(lab.flows.get(other).is_some(), "{key:?} without {other:?}");
    }
    assert!(noted(lab)(Note::FlowEvicted) >= u64::from(FLOWS) - u64::from(MAX_FLOWS));
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
        let context = sk_buff(Hook::Ingress, Port::Uplink.ifindex(), 0, frame.len());
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
    let stop = AtomicBool::new(false);
    let fragments = &mut lab.fragments;
    let (delivered, passed) = thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(0);
            fragments.remove(known[0].0);
            let mut absent = 0;
            while !stop.load(Ordering::Relaxed) {
                let next = (absent + 1) % known.len();
                // An LRU map may have evicted the entry.
                fragments.remove_if_present(known[next].0);
                fragments.set(known[absent].0, known[absent].1);
                absent = next;
            }
        });
        let reader = scope.spawn(|| {
            stay_on(1);
            let _interrupted = interrupted();
            let (mut delivered, mut passed) = (0_u32, 0_u32);
            let start = Instant::now();
            while start.elapsed() < TIME {
                for (id, [_, later]) in IDS.zip(&pieces) {
                    let left = receive(later);
                    if left == *later {
                        passed += 1;
                        continue;
                    }
                    delivered += 1;
                    assert_ne!(port(id), OF_HOST, "the host's datagram {id} is translated");
                    let (_, host) = owner(port(id));
                    assert_eq!(left[..6], host.mac, "MAC of datagram {id}");
                    assert_eq!(left[30..34], host.v4, "address of datagram {id}");
                }
            }
            (delivered, passed)
        });
        let counts = reader.join();
        stop.store(true, Ordering::Relaxed);
        counts.unwrap()
    });
    assert!(delivered > 1000 && passed > 10, "no race: {delivered} delivered, {passed} passed");
}
