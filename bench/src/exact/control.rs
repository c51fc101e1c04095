//! Cost of the agent's work: its processor time, which the emulated machine's clock counts in
//! instructions.

use std::{thread, time::Duration};

use anyhow::Result;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::scale::World;

/// Endpoints of other hosts at the two starts that are compared.
const AT_START: (u32, u32) = (200, 5_200);
/// Number of starts with each number of endpoints.
const STARTS: u32 = 3;
/// Number of endpoints that are added and removed.
const CHANGES: u32 = 60;

/// Time after a change in which the agent's work is part of the cost of the change.
const AFTERWARDS: Duration = Duration::from_millis(20);

/// Processor time of a process and all its threads, those that have ended included, ns.
fn processor_time(pid: Pid) -> Result<f64> {
    let clock: ClockId = clock_getcpuclockid(pid)?;
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// The least of several times. The agent's periodic work adds to some of them.
fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Processor times of several agents from the answer of the store with `count` endpoints to the
/// maps, ns.
fn times(count: u32, starts: u32) -> Result<Vec<f64>> {
    let time = |_| World::read(count, processor_time).map(|(_, _, [from, to])| to - from);
    (0..starts).map(time).collect()
}

/// Name of each figure, and the agent's processor time, ns.
pub(super) fn costs() -> Result<[(&'static str, f64); 3]> {
    let (few, many) = AT_START;
    let few_time = least(&times(few, STARTS)?);
    let mut many_times = times(many, STARTS - 1)?;
    // The last of the starts is also the one that the changes follow.
    let (world, maps, [from, to]) = World::read(many, processor_time)?;
    many_times.push(to - from);
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let mut last = to;
    let mut took = || {
        // The agent works on after the maps have the change, such as on the next watch. This work
        // is a part of the cost.
        thread::sleep(AFTERWARDS);
        let now = processor_time(world.agent()?)?;
        Ok::<_, anyhow::Error>(now - std::mem::replace(&mut last, now))
    };
    for number in 0..CHANGES {
        world.add(&maps, number)?;
        added.push(took()?);
        world.remove(&maps, number)?;
        removed.push(took()?);
    }
    Ok([
        (
            "one endpoint of many at a start, from the read of the store to the maps",
            (least(&many_times) - few_time) / f64::from(many - few),
        ),
        ("one endpoint added on another host, from the event to the maps", least(&added)),
        ("one endpoint removed on another host, from the event to the maps", least(&removed)),
    ])
}
