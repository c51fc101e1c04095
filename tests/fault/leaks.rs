//! What the agents use, and what is left on the hosts and in the store when all containers are
//! gone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    cluster::{Cluster, Host},
    netns::on_this_machine,
};

use crate::store;

/// Open files that an agent may have more than before the faults: connections to further members of
/// the store, requests that are under way.
const MORE_FILES: usize = 16;
/// Memory that an agent may have more than before the faults, in KiB.
const MORE_KIB: u64 = 32 << 10;
/// Time in which everything must be gone: longer than a lease, which has 10 s, and than the
/// timeouts of the flows.
const GONE: Duration = Duration::from_secs(60);
/// Devices that a host has also without containers.
const ASSISTANTS: [&str; 2] = ["cvgro0", "cvroom0"];
/// Directories of the state directory that have a file or a directory for each container.
const OF_CONTAINERS: [&str; 6] = ["attempts", "containers", "etc", "logs", "reruns", "unfinished"];

/// What the process of an agent uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Open files.
    files: usize,
    /// Memory in KiB (`VmRSS`).
    kib: u64,
}

impl Usage {
    /// What the agent of a host uses.
    pub(crate) fn of(host: &Host) -> Self {
        let pid = host.agent.as_ref().unwrap().pid();
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self { files, kib: resident.trim().trim_end_matches(" kB").parse().unwrap() }
    }

    /// Checks that the use has grown within its bounds.
    #[track_caller]
    pub(crate) fn has_bounds(self, before: Self) {
        assert!(self.files <= before.files + MORE_FILES, "open files: {before:?}, now {self:?}");
        assert!(self.kib <= before.kib + MORE_KIB, "memory: {before:?}, now {self:?}");
    }
}

/// Hosts and store without networks and containers.
pub(crate) struct Empty {
    keys: BTreeSet<String>,
    pins: Vec<BTreeSet<PathBuf>>,
}

impl Empty {
    /// The present state, which has no network and no container.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self { keys: store::keys(cluster), pins: cluster.hosts.iter().map(pins).collect() }
    }

    /// Waits until hosts and store are as empty again. The names of all containers begin with
    /// `tag`.
    #[track_caller]
    pub(crate) fn comes_back(&self, cluster: &Cluster, tag: &str) {
        let start = Instant::now();
        loop {
            let left = self.left(cluster, tag);
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < on_this_machine(GONE), "left: {left:#?}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Everything that is left, a line each.
    fn left(&self, cluster: &Cluster, tag: &str) -> Vec<String> {
        let keys = store::keys(cluster);
        let mut left: Vec<String> = keys.symmetric_difference(&self.keys).cloned().collect();
        let leases = store::leases(cluster);
        if leases > cluster.hosts.len() {
            left.push(format!("{leases} leases"));
        }
        for (host, pins_before) in cluster.hosts.iter().zip(&self.pins) {
            let lines = [
                status(host),
                devices(host),
                files(host),
                pins(host).difference(pins_before).map(|pin| pin.display().to_string()).collect(),
            ];
            left.extend(lines.concat().iter().map(|line| format!("{}: {line}", host.node)));
        }
        let namespaces = entries(Path::new("/run/netns"));
        left.extend(namespaces.into_iter().filter(|name| name.starts_with(tag)));
        left
    }
}

/// Waits until the agents count no flow.
pub(crate) fn flows_expire(cluster: &Cluster) {
    let start = Instant::now();
    loop {
        let flows: Vec<_> = cluster
            .hosts
            .iter()
            .map(|host| host.json(&["status"])["conntrack"].clone())
            .filter(|conntrack| conntrack["flows"] != 0 || conntrack["estimated"] == true)
            .collect();
        if flows.is_empty() {
            return;
        }
        assert!(start.elapsed() < on_this_machine(GONE), "flows are left: {flows:?}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What the agent counts, and its problems.
fn status(host: &Host) -> Vec<String> {
    let status = host.json(&["status"]);
    let counts = ["endpoints", "fdb", "neighbours"].map(|key| (key, status["counts"][key].clone()));
    let counted = counts.into_iter().chain([("flows", status["conntrack"]["flows"].clone())]);
    let lines =
        counted.filter(|(_, count)| *count != 0).map(|(key, count)| format!("{count} {key}"));
    let problems = status["problems"].as_array().unwrap().iter();
    lines.chain(problems.map(ToString::to_string)).collect()
}

/// Devices of Culvert that only a host with containers has.
fn devices(host: &Host) -> Vec<String> {
    let links = host.netns.run("ip -o link show | cut -d: -f2 | cut -d@ -f1");
    let ours = links.split_whitespace().filter(|name| name.starts_with("cv"));
    ours.filter(|name| !ASSISTANTS.contains(name)).map(str::to_owned).collect()
}

/// Files about containers in the state directory. A process that is killed may leave a file of
/// which it has written a part: its name ends in `.new`, and no agent reads it.
fn files(host: &Host) -> Vec<String> {
    let state = host.dir().join("state");
    let below = OF_CONTAINERS.iter().flat_map(|directory| {
        entries(&state.join(directory)).into_iter().map(move |name| format!("{directory}/{name}"))
    });
    below.filter(|name| !name.ends_with(".new")).collect()
}

/// The pins of a host, without the links of its uplinks.
fn pins(host: &Host) -> BTreeSet<PathBuf> {
    fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
        for name in entries(directory) {
            let path = directory.join(&name);
            if path.is_dir() {
                walk(&path, found);
            } else if !name.starts_with("uplink-") {
                found.insert(path);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&host.bpffs(), &mut found);
    found
}

/// Names in a directory; none if there is no such directory.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
