//! Time of the programs: by the kernel's statistics under traffic, and by test runs on a packet of
//! the same kind.

mod path;
mod refused;
mod test_run;

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::{
    programs::{ProgramInfo, TcAttachType},
    sys::{Stats, enable_stats},
};
use culvert_testbed::underlay::Underlay;

use self::path::{Path, Place, Traffic};
pub(crate) use self::test_run::Known;
use crate::{
    arms::{Arm, Culvert},
    load::{tcp, udp},
    results::ProgramCost,
    stats::median,
};

/// Number of runs below which no average is computed: such runs are of other traffic.
const FEW: u64 = 100;

/// Measures the programs on the paths of the overlay, of SNAT, from a host to a container of its
/// own, and from another host to a published port; without traffic, on the packets of
/// [`each_leaving`] and [`first_packets`], too.
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
    each_leaving(culvert, arms, |what, known| {
        costs.push(alone(&known.program()?, what, known.time()?));
        Ok(())
    })?;
    let (program, beginnings) = first_packets(culvert, arms, 1)?;
    costs.extend(beginnings.iter().map(|(what, times)| alone(&program, what, median(times))));
    Ok(costs)
}

/// The cost of a program that was measured without traffic. `ns` is the time of a test run.
fn alone(program: &ProgramInfo, what: &str, ns: f64) -> ProgramCost {
    ProgramCost {
        program: program.name_as_str().unwrap_or_default().to_owned(),
        traffic: what.to_owned(),
        ns_per_run: None,
        test_run_ns: Some(ns),
        runs: 0,
        verified_instructions: program.verified_instruction_count().map_or(0, u64::from),
        jited_bytes: u64::from(program.size_jitted()),
    }
}

/// Hands each program, with a packet of a flow that it knows and the path and traffic as text
/// (`overlay, UDP 64 B`), to `each`; then the packets of [`each_leaving`].
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
    each_leaving(culvert, arms, each)
}

/// Calls `each` for each kind of packet that the program at the egress of an uplink passes or
/// drops, with the name of that kind, the program and the packet.
fn each_leaving(
    culvert: &Culvert,
    arms: &[Arm],
    mut each: impl FnMut(&str, &Known<'_>) -> Result<()>,
) -> Result<()> {
    let [one, _] = &culvert.hosts;
    let uplink =
        Place { host: &one.netns, device: Underlay::UPLINK.to_owned(), hook: TcAttachType::Egress };
    let host = arm(culvert, arms, "culvert-host-mode").context("no host mode")?;
    let overlay = path(culvert, arms, "overlay")?;
    let leaving = refused::leaving(&uplink, &host.peers, &overlay).context("egress: test run")?;
    leaving
        .iter()
        .try_for_each(|(what, known)| each(what, known).with_context(|| (*what).to_owned()))
}

/// Times, in ns, of `from_container` on packets that begin a flow or are refused one, each kind
/// with its name (`SNAT, new flow`) and with `rounds` times.
///
/// The search for a flow that may be evicted examines random slots, so these times differ more than
/// those of known flows, and the instructions differ from run to run.
pub(crate) fn first_packets(
    culvert: &Culvert,
    arms: &[Arm],
    rounds: u32,
) -> Result<(ProgramInfo, [refused::Times; 3])> {
    let snat = path(culvert, arms, "SNAT")?;
    refused::beginning(culvert, &snat, rounds).context("first packets: test run")
}

/// The arm with the id `id` on these hosts.
fn arm<'a>(culvert: &Culvert, arms: &'a [Arm], id: &str) -> Option<&'a Arm> {
    let id = culvert.id(id);
    arms.iter().find(|arm| arm.info.id == id)
}

/// The path with the name `what`.
fn path<'a>(culvert: &'a Culvert, arms: &'a [Arm], what: &str) -> Result<Path<'a>> {
    let path = paths(culvert, arms)?.into_iter().find(|path| path.what == what);
    path.with_context(|| format!("{what}: no such path"))
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
            let arm = arm(culvert, arms, id)?;
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
                ns_per_run: Some(ns / runs as f64),
                test_run_ns: None,
                runs,
                verified_instructions: after.verified_instruction_count().map_or(0, u64::from),
                jited_bytes: u64::from(after.size_jitted()),
            });
        }
    }
    Ok(costs)
}
