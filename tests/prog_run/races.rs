//! Two CPUs at once: test runs of two threads against the tables that the programs write.
//!
//! The kernel gives the memory of a removed element to the next insertion on the same CPU,
//! while a program on another CPU may be reading it.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::{perf_event_attr, perf_sw_ids, perf_type_id};
use culvert::datapath::test_run::{Hook, sk_buff};
use culvert_common::abi::FlowKey;
use culvert_tests::packet::{ACK, Host, SYN, V4, payload};
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    lab::Lab,
    ports::Port,
    routed::{answer, fragments, key, outbound, to_gateway},
    run::{Program, test_run},
    world::{A, ONE, SERVER, TWO, US},
};

cases!(a_recycled_flow_is_nobodys, fragments_of_one_datagram_on_two_cpus);

/// How long two threads race.
const TIME: Duration = Duration::from_secs(2);

/// Keeps the calling thread on the CPU of this number.
fn stay_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("two CPUs");
}

/// Interrupts of the calling thread, ns: about as long as a program runs. (perf_event_open(2) samples
/// by a timer, and permits 100,000 samples a second.)
const EVERY_NS: u64 = 10_000;

/// Interrupts the calling thread while it runs, every [`EVERY_NS`], until the result is dropped: in
/// the middle of a program, too, which gives the other CPU time to change what it has looked up.
fn interrupted() -> OwnedFd {
    // SAFETY: a structure of integers, for which all bytes 0 is a value.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
    attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap();
    attr.config = perf_sw_ids::PERF_COUNT_SW_CPU_CLOCK as u64;
    attr.__bindgen_anon_1.sample_period = EVERY_NS;
    let (this_thread, any_cpu, no_group, no_flags) = (0, -1, -1, 0);
    // SAFETY: `attr` is as long as it says, and outlives the call.
    let fd = unsafe {
        let attr = &raw const attr;
        libc::syscall(libc::SYS_perf_event_open, attr, this_thread, any_cpu, no_group, no_flags)
    };
    assert!(fd >= 0, "perf_event_open: {}", std::io::Error::last_os_error());
    // SAFETY: the call has returned a file descriptor that is nobody else's.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap()) }
}

/// Container of a port: `A1` has the even ones.
fn owner(port: u16) -> (Port, Host) {
    if port.is_multiple_of(2) { (Port::A1, ONE) } else { (Port::A2, TWO) }
}

/// One CPU removes flows and inserts others into their memory; the other one has answers to all
/// of them. An answer goes to the container of its flow, or to none.
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
            // One entry is always absent. The next one is removed, and its memory is the other's.
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

/// One CPU has the first fragment of a datagram, the other a later one. The later one is
/// translated at once, or held and released: none is left behind.
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
    // The datagram that each thread has come to: they start each one together.
    let reached = [AtomicU64::new(0), AtomicU64::new(0)];
    let race = |own: usize, packet: &V4| {
        stay_on(own);
        for id in 1..=DATAGRAMS {
            reached[own].store(id.into(), Ordering::SeqCst);
            while reached[1 - own].load(Ordering::SeqCst) < id.into() {
                std::hint::spin_loop();
            }
            // One of them a little later, by turns.
            if usize::from(id) % 2 == own {
                (0..usize::from(id) % 500).for_each(|_| std::hint::spin_loop());
            }
            run(packet, id);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| race(0, &first));
        scope.spawn(|| race(1, &later));
    });
    assert_eq!(lab.held.keys().len(), 0, "fragments are left behind");
}
