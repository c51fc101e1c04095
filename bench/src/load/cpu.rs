//! CPU time of a load, from the time left for threads that run only in idle time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::libc;

use super::{OWN_THREAD, Peers, Stop, cores, join, pin, tcp::Streams};

/// Rate of the load, bit/s.
const PACE: u64 = 4_000_000_000;
/// Length of the measurement of the idle machine before the load.
const CALIBRATION: Duration = Duration::from_millis(120);

/// CPU time for one Gbit of TCP payload.
pub(crate) struct CpuCost {
    /// Sum of the time that each core was not idle, ms.
    pub(crate) busy_ms: f64,
    /// Part of `busy_ms` in softirq, by the kernel's clock tick, ms.
    pub(crate) softirq_ms: f64,
}

/// Threads that count while their core is otherwise idle.
struct Soakers {
    counts: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<Result<()>>>,
    stop: Stop,
}

impl Soakers {
    fn start() -> Self {
        let stop = Stop::default();
        let counts: Vec<_> = (0..cores()).map(|_| Arc::new(AtomicU64::new(0))).collect();
        let threads = counts
            .iter()
            .enumerate()
            .map(|(core, count)| {
                let (count, stop) = (Arc::clone(count), stop.clone());
                thread::spawn(move || soak(core, &count, &stop))
            })
            .collect();
        Self { counts, threads, stop }
    }

    /// The count of each core.
    fn read(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn end(self) -> Result<()> {
        self.stop.stop();
        self.threads.into_iter().try_for_each(join)
    }
}

fn soak(core: usize, count: &AtomicU64, stop: &Stop) -> Result<()> {
    pin(OWN_THREAD, core)?;
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` lives until the call returns, and the kernel only reads it. SCHED_IDLE takes
    // priority 0 (sched(7)).
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    nix::errno::Errno::result(result).context("sched_setscheduler")?;
    while !stop.stopped() {
        let mut spin = 0_u32;
        while spin < 500 {
            spin = std::hint::black_box(spin + 1);
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Measures the CPU time for one Gbit by a TCP stream at a fixed rate.
pub(crate) fn per_gbit(peers: &Peers, time: Duration) -> Result<CpuCost> {
    let soakers = Soakers::start();
    thread::sleep(super::WARM_UP);
    let (before, start) = (soakers.read(), Instant::now());
    thread::sleep(CALIBRATION);
    let idle: Vec<f64> = per_second(&before, &soakers.read(), start.elapsed());

    let cost = (|| {
        let streams = Streams::open(peers, 1, Some(PACE))?;
        thread::sleep(super::WARM_UP);
        let (count, bytes, ticks) = (soakers.read(), streams.received(), softirq_ms()?);
        let start = Instant::now();
        thread::sleep(time);
        let (elapsed, after) = (start.elapsed(), soakers.read());
        let gbits = (streams.received() - bytes) as f64 * 8.0 / 1e9;
        let softirq = softirq_ms()? - ticks;
        streams.close()?;
        let busy: f64 = per_second(&count, &after, elapsed)
            .iter()
            .zip(&idle)
            .map(|(left, whole)| (1.0 - left / whole) * elapsed.as_secs_f64() * 1e3)
            .sum();
        Ok(CpuCost { busy_ms: busy / gbits, softirq_ms: softirq / gbits })
    })();
    soakers.end()?;
    cost
}

fn per_second(before: &[u64], after: &[u64], elapsed: Duration) -> Vec<f64> {
    before.iter().zip(after).map(|(b, a)| (a - b) as f64 / elapsed.as_secs_f64()).collect()
}

/// Time that all cores have spent in softirq, ms (proc(5), `/proc/stat`).
fn softirq_ms() -> Result<f64> {
    const TICK_MS: f64 = 10.0;
    let text = std::fs::read_to_string("/proc/stat")?;
    let ticks = text.lines().next().and_then(|line| line.split_whitespace().nth(7)?.parse().ok());
    ticks.map(|ticks: f64| ticks * TICK_MS).context("/proc/stat: not as expected")
}
