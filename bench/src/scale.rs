//! The control plane with many endpoints: start of an agent, memory, one change.
//!
//! There is one host, with one endpoint in a network. The store also has records of the network's
//! other endpoints, on fifty hosts that do not exist.

mod flows;
mod maps;
mod seed;

pub(crate) use flows::{FlowMaps, FlowOwner};
pub(crate) use maps::{Fdb, Maps};

use std::{
    fs,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert::netns::run_in;
use culvert_testbed::{
    cluster::{Cluster, Host},
    netns::Netns,
};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::stats::percentile;

/// How long a start or a change may take before the run is given up.
const LIMIT: Duration = Duration::from_secs(120);
/// Interval at which the log and a map are read: the resolution of the figures.
const EVERY: Duration = Duration::from_millis(1);
/// Time between the completion of the maps and the reading of the memory.
const SETTLE: Duration = Duration::from_secs(3);
/// The beginning of the agent's line when the maps hold everything.
const READ: &str = "store read ";
/// Raw reads of the store, of which the fastest counts.
const RAW_READS: u32 = 3;

/// Options of `scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Endpoints in the store, for each start
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    endpoints: Vec<u32>,
    /// Endpoints to add, and to remove again, one after the other, with the most in the store
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// A start of an agent without maps and programs, with this many endpoints of other hosts in etcd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ColdStart {
    /// Endpoints of other hosts.
    pub(crate) endpoints: u32,
    /// Time of one range read of all keys by etcd-client, without parsing, in ms.
    pub(crate) raw_range_ms: f64,
    /// From the beginning of the agent's read of the store until the maps hold
    /// everything, in ms, as the agent reports it.
    pub(crate) snapshot_to_maps_ms: f64,
    /// From the start of the process until the maps hold everything, in ms.
    pub(crate) exec_to_maps_ms: f64,
    /// Memory of the maps (`memlock` of their fdinfo), bytes.
    pub(crate) kernel_bytes: u64,
    /// The agent's resident memory (`VmRSS`), bytes.
    pub(crate) agent_rss_bytes: u64,
}

/// Times to add and to remove an endpoint of another host: from etcd's answer to the transaction
/// until the maps of this host have the change, in ms.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChangeTimes {
    /// Endpoints of other hosts.
    pub(crate) endpoints: u32,
    /// Endpoints added and removed.
    pub(crate) rounds: u32,
    /// Median of the additions.
    pub(crate) added_p50_ms: f64,
    /// 99th percentile of the additions.
    pub(crate) added_p99_ms: f64,
    /// Median of the removals.
    pub(crate) removed_p50_ms: f64,
    /// 99th percentile of the removals.
    pub(crate) removed_p99_ms: f64,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let starts = cold_start(&args.endpoints)?;
    let most = args.endpoints.iter().copied().max();
    let change = match most.filter(|_| args.rounds > 0) {
        Some(most) => Some(change(most, args.rounds)?),
        None => None,
    };
    let per_endpoint = bytes_per_endpoint(&starts);
    if args.json {
        let all = serde_json::json!({
            "cold_start": starts, "bytes_per_endpoint": per_endpoint, "change": change,
        });
        println!("{all}");
        return Ok(());
    }
    println!(
        "{:<10} {:>12} {:>16} {:>13} {:>11} {:>10}",
        "endpoints", "raw read ms", "read to maps ms", "exec to maps", "kernel MiB", "agent MiB"
    );
    for start in &starts {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "{:<10} {:>12.0} {:>16.0} {:>13.0} {:>11.1} {:>10.1}",
            start.endpoints,
            start.raw_range_ms,
            start.snapshot_to_maps_ms,
            start.exec_to_maps_ms,
            mib(start.kernel_bytes),
            mib(start.agent_rss_bytes)
        );
    }
    if let Some(bytes) = per_endpoint {
        println!("bytes per endpoint, kernel and agent: {bytes:.0}");
    }
    if let Some(change) = change {
        println!(
            "one of {} endpoints, ms until in the maps: added p50 {:.1} p99 {:.1}, removed p50 {:.1} p99 {:.1}",
            change.endpoints,
            change.added_p50_ms,
            change.added_p99_ms,
            change.removed_p50_ms,
            change.removed_p99_ms
        );
    }
    Ok(())
}

/// Starts an agent without state, once for each number of endpoints.
pub(crate) fn cold_start(counts: &[u32]) -> anyhow::Result<Vec<ColdStart>> {
    counts.iter().map(|count| World::new(*count)?.start()).collect()
}

/// Memory for each further endpoint, kernel and agent together, bytes: the difference between the
/// fewest and the most endpoints. `None` unless there are two sizes.
pub(crate) fn bytes_per_endpoint(starts: &[ColdStart]) -> Option<f64> {
    let least = starts.iter().min_by_key(|start| start.endpoints)?;
    let most = starts.iter().max_by_key(|start| start.endpoints)?;
    let more = most.endpoints.checked_sub(least.endpoints).filter(|more| *more > 0)?;
    let bytes = |start: &ColdStart| (start.kernel_bytes + start.agent_rss_bytes) as f64;
    Some((bytes(most) - bytes(least)) / f64::from(more))
}

/// Adds and removes single endpoints of another host beside `count` others.
pub(crate) fn change(count: u32, rounds: u32) -> anyhow::Result<ChangeTimes> {
    ensure!(rounds > 0, "--rounds 0 measures nothing: 1 or more is valid");
    let (world, maps) = World::started(count)?;
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        added.push(world.add(&maps, round)?);
        removed.push(world.remove(&maps, round)?);
    }
    added.sort_unstable();
    removed.sort_unstable();
    Ok(ChangeTimes {
        endpoints: count,
        rounds,
        added_p50_ms: ms(percentile(&added, 0.5)),
        added_p99_ms: ms(percentile(&added, 0.99)),
        removed_p50_ms: ms(percentile(&removed, 0.5)),
        removed_p99_ms: ms(percentile(&removed, 0.99)),
    })
}

/// A host, and a store with the records of a large network.
pub(crate) struct World {
    // Field order: the host's agent ends before the store.
    host: Host,
    cluster: Cluster,
    count: u32,
    /// Namespace of the host's own endpoint.
    _sandbox: Netns,
}

impl World {
    /// Makes the host and the records. No agent runs yet.
    fn new(count: u32) -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "needs root to make network namespaces");
        let mut cluster = Cluster::without_agents(1, 1500);
        let host = cluster.hosts.pop().context("cluster: no host")?;
        let sandbox = Netns::new("scale");
        let path = sandbox.path().to_owned();
        let world = Self { host, cluster, count, _sandbox: sandbox };
        // The route makes the other hosts' VTEPs reachable through a router.
        world.host.netns.run(&format!("ip route add default via {}", Cluster::ETCD));
        let node = world.host.node.clone();
        world.in_switch(|url| seed::fill(url, count, &node, &path))?;
        seed::agree(&world.host.dir().join("state"), &path)?;
        Ok(world)
    }

    /// Makes a world, and starts the agent until its maps hold everything. Returns the maps, too.
    pub(crate) fn started(count: u32) -> anyhow::Result<(Self, Maps)> {
        let mut world = Self::new(count)?;
        world.start()?;
        let maps = Maps::open(&world.host.bpffs())?;
        Ok((world, maps))
    }

    /// Makes a world, and starts the agent until its maps hold everything. Calls `at` with the
    /// agent's process twice: when the agent has done all that does not depend on the store, and
    /// when the maps hold everything.
    pub(crate) fn read<T>(
        count: u32,
        at: impl Fn(Pid) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Self, Maps, [T; 2])> {
        let mut world = Self::new(count)?;
        world.cluster.etcd.freeze()?;
        world.host.start_agent(&[]);
        let before = world.store_is_missed().and_then(|_| at(world.agent()?));
        world.cluster.etcd.thaw()?;
        let before = before?;
        world.log_has(READ)?;
        let after = at(world.agent()?)?;
        let maps = Maps::open(&world.host.bpffs())?;
        Ok((world, maps, [before, after]))
    }

    /// Waits until the agent says in its status why it cannot read the store.
    fn store_is_missed(&self) -> anyhow::Result<Instant> {
        until(|| {
            // The agent does not answer until it has its socket.
            let output = self.host.culvert(&["--format", "json", "status"]);
            let status: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_default();
            Ok(status.pointer("/store/error").is_some_and(serde_json::Value::is_string))
        })
        .with_context(|| self.host.agent_log())
    }

    /// Waits until the agent's log has `words`.
    fn log_has(&self, words: &str) -> anyhow::Result<Instant> {
        until(|| Ok(self.host.agent_log().contains(words))).with_context(|| self.host.agent_log())
    }

    /// The agent's process.
    pub(crate) fn agent(&self) -> anyhow::Result<Pid> {
        Ok(self.host.agent.as_ref().context("no agent")?.pid())
    }

    /// Adds an endpoint of another host. Returns how long after etcd's answer the maps have it.
    pub(crate) fn add(&self, maps: &Maps, number: u32) -> anyhow::Result<Duration> {
        let remote = seed::Remote::new(self.count + 1 + number);
        let key = remote.fdb_key();
        let answered = self.in_switch(|url| seed::commit(url, remote.put()?))?;
        Ok(until(|| maps.fdb_has(&key))?.saturating_duration_since(answered))
    }

    /// Removes what [`Self::add`] has added. Returns how long after etcd's answer the maps follow.
    pub(crate) fn remove(&self, maps: &Maps, number: u32) -> anyhow::Result<Duration> {
        let remote = seed::Remote::new(self.count + 1 + number);
        let key = remote.fdb_key();
        let answered = self.in_switch(|url| seed::commit(url, remote.delete()))?;
        Ok(until(|| Ok(!maps.fdb_has(&key)?))?.saturating_duration_since(answered))
    }

    /// Runs `work` in the namespace in which etcd can be reached, with etcd's endpoint.
    fn in_switch<T: Send>(
        &self,
        work: impl FnOnce(&str) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let netns = fs::File::open(self.cluster.switch.path())?;
        let endpoint = self.cluster.etcd.endpoint();
        run_in(netns.as_fd(), || work(&endpoint))?
    }

    /// Starts the agent and measures until the maps hold everything.
    fn start(&mut self) -> anyhow::Result<ColdStart> {
        let raw = self.in_switch(|url| {
            let reads = (0..RAW_READS).map(|_| seed::raw_read(url));
            let reads = reads.collect::<anyhow::Result<Vec<_>>>()?;
            reads.into_iter().min().context("no raw read")
        })?;
        let executed = Instant::now();
        self.host.start_agent(&[]);
        let complete = self.log_has(READ)?;
        let host = &self.host;
        let maps = Maps::open(&host.bpffs())?;
        // The host's own endpoint is not counted: it may not be plugged yet.
        let (fdb, neighbours) = maps.entries()?;
        let wanted = self.count as usize;
        ensure!(fdb >= wanted && neighbours >= wanted, "maps: {fdb} FDB, {neighbours} neighbours");
        // Within this time the agent returns the memory that only the read needed.
        thread::sleep(SETTLE);
        let agent_rss_bytes = resident(self.agent()?)?;
        let status = host.json(&["status"]);
        let read = status.pointer("/store/last_read/maps_ms").and_then(serde_json::Value::as_f64);
        Ok(ColdStart {
            endpoints: self.count,
            raw_range_ms: ms(raw),
            snapshot_to_maps_ms: read.with_context(|| format!("status: {status}"))?,
            exec_to_maps_ms: ms(complete.duration_since(executed)),
            kernel_bytes: maps.memory()?,
            agent_rss_bytes,
        })
    }
}

/// Polls until the condition holds; returns the time at which it held.
fn until(mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Instant> {
    let start = Instant::now();
    loop {
        let found = holds()?;
        let now = Instant::now();
        if found {
            return Ok(now);
        }
        ensure!(now - start < LIMIT, "not within {LIMIT:?}");
        thread::sleep(EVERY);
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: Pid) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

/// The largest resident memory that a process has had since it was executed, in bytes.
pub(crate) fn peak(pid: Pid) -> anyhow::Result<u64> {
    memory(pid, "VmHWM:")
}

/// A size of a process's memory, in bytes.
fn memory(pid: Pid, name: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kilobytes(&status, name).map(|kb| kb * 1024)
}

/// The number after `name` in a file of /proc, in kB.
fn kilobytes(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root and etcd"]
    fn an_agent_is_observed_before_and_after_its_read_of_the_store() -> anyhow::Result<()> {
        let (world, maps, [before, after]) = World::read(3, |_| Ok(Instant::now()))?;
        assert!(before < after);
        world.add(&maps, 0)?;
        world.remove(&maps, 0)?;
        Ok(())
    }
}
