//! Time of the programs: by the kernel's statistics under traffic, and by test runs on a packet of
//! the same kind.

mod path;
mod test_run;

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::{
    programs::TcAttachType,
    sys::{Stats, enable_stats},
};
use culvert_testbed::underlay::Underlay;

use self::path::{Path, Place, Traffic};
pub(crate) use self::test_run::Known;
use crate::{
    arms::{Arm, Culvert},
    load::{tcp, udp},
    results::ProgramCost,
};

/// Number of runs below which no average is computed: such runs are of other traffic.
const FEW: u64 = 100;

/// Measures the programs on the paths of the overlay, of SNAT, from a host to a container of its own,
/// and from another host to a published port.
pub(crate) fn costs(culvert: &Culvert, arms: &[Arm], time: Duration) -> Result<Vec<ProgramCost>> {
    let mut costs = Vec::new();
    for path in paths(culvert, arms)? {
        for traffic in [Traffic::Udp, Traffic::Tcp] {
            let counted = counted(&path, traffic, time)?;
            // Test runs come after the statistics are off, since the statistics add to the time.
            // The caches then have the entry of the flow from an earlier packet.
            let timed = Known::both(&path, traffic)
                .and_then(|[first, next]| Ok([first.time()?, next.time()?]))
                .with_context(|| format!("{}, {}: test run", path.what, traffic.name()))?;
            costs.extend(counted.into_iter().zip(timed).flat_map(|(counted, ns)| {
                counted.into_iter().map(move |cost| ProgramCost { test_run_ns: Some(ns), ..cost })
            }));
        }
    }
    Ok(costs)
}

/// Hands each program, with a packet of a flow that it knows and the path and traffic as text
/// (`overlay, UDP 64 B`), to `each`.
pub(crate) fn each_alone(
    culvert: &Culvert,
    arms: &[Arm],
    mut each: impl FnMut(&str, &Known<'_>) -> Result<()>,
) -> Result<()> {
    for path in paths(culvert, arms)? {
        for traffic in [Traffic::Udp, Traffic::Tcp] {
            let what = format!("{}, {}", path.what, traffic.name());
            let known = Known::both(&path, traffic);
            let known = known.with_context(|| format!("{what}: test run"))?;
            known.iter().try_for_each(|known| each(&what, known)).with_context(|| what.clone())?;
        }
    }
    Ok(())
}

/// The paths whose programs are measured.
fn paths<'a>(culvert: &'a Culvert, arms: &'a [Arm]) -> Result<Vec<Path<'a>>> {
    let [one, two] = &culvert.hosts;
    let at = |host, device, hook| Place { host, device, hook };
    let uplink = |host| at(host, Underlay::UPLINK.to_owned(), TcAttachType::Ingress);
    let overlay = culvert.overlay[0].host_side(one)?;
    let bridge = culvert.bridge[0].host_side(one)?;
    let gateway = culvert.bridge[0].route_from(one)?;
    let publisher = culvert.bridge[1].host_side(two)?;
    let from = |device| at(&one.netns, device, TcAttachType::Ingress);
    let paths = [
        ("culvert-overlay", "overlay", [from(overlay), uplink(&two.netns)], false),
        // The other end is a plain host without translation.
        ("culvert-snat", "SNAT", [from(bridge.clone()), uplink(&one.netns)], true),
        (
            "culvert-local",
            "own container",
            [at(&one.netns, gateway, TcAttachType::Egress), from(bridge)],
            true,
        ),
        (
            "culvert-published",
            "published port",
            [uplink(&two.netns), at(&two.netns, publisher, TcAttachType::Ingress)],
            true,
        ),
    ];
    Ok(paths
        .into_iter()
        .filter_map(|(id, what, places, answered)| {
            let id = culvert.id(id);
            let arm = arms.iter().find(|arm| arm.info.id == id)?;
            Some(Path { what, peers: &arm.peers, places, answered })
        })
        .collect())
}

/// The kernel's statistics of the programs at each hook under traffic.
fn counted(path: &Path<'_>, traffic: Traffic, time: Duration) -> Result<[Vec<ProgramCost>; 2]> {
    let _stats = enable_stats(Stats::RunTime).context("statistics of BPF programs")?;
    let [first, next] = &path.places;
    let before = [first.programs()?, next.programs()?];
    match traffic {
        Traffic::Udp => udp::datagrams(path.peers, 64, time).map(|_| ())?,
        Traffic::Tcp => tcp::throughput(path.peers, 1, time).map(|_| ())?,
    }
    let after = [first.programs()?, next.programs()?];
    let mut costs = [Vec::new(), Vec::new()];
    for (costs, (before, after)) in costs.iter_mut().zip(before.iter().zip(&after)) {
        for (before, after) in before.iter().zip(after) {
            let runs = after.run_count() - before.run_count();
            if runs < FEW {
                continue;
            }
            let ns = (after.run_time() - before.run_time()).as_nanos() as f64;
            costs.push(ProgramCost {
                program: after.name_as_str().unwrap_or_default().to_owned(),
                traffic: format!("{}, {}", path.what, traffic.name()),
                ns_per_run: ns / runs as f64,
                test_run_ns: None,
                runs,
                verified_instructions: after.verified_instruction_count().map_or(0, u64::from),
                jited_bytes: u64::from(after.size_jitted()),
            });
        }
    }
    Ok(costs)
}
