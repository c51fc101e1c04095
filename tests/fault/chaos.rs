//! Faults in random order while traffic flows: agents that are killed, agents that are replaced,
//! and a store that fails.

use std::{net::SocketAddrV4, time::Duration};

use culvert_tests::{
    chaos::{Random, each, rounds},
    cluster::{Cluster, Host, unique_name},
    etcd::EtcdServer,
    external::External,
    netns::wait_until,
    sock::container,
};
use nix::sys::signal::Signal;

use crate::{
    leaks::{Empty, Usage, flows_expire},
    store,
    traffic::{Traffic, Way},
};

/// Options of the agents. Flows that have ended expire soon, so that the test can wait for it. A
/// flow whose client waits for an answer does not.
const OPTIONS: [&str; 8] = [
    "--conntrack-timeout",
    "tcp-fin-wait=6",
    "--conntrack-timeout",
    "tcp-time-wait=3",
    "--conntrack-timeout",
    "udp-stream=6",
    "--conntrack-timeout",
    "udp-unreplied=6",
];
/// Deadline of agents that have lost the store.
const RECOVERY: Duration = Duration::from_secs(60);

/// Two hosts and an external host, with traffic in an overlay network, in a bridge network, out of
/// a network and to a published port.
struct World {
    traffic: Traffic,
    cluster: Cluster,
    _external: External,
    /// Start of the names of all containers.
    tag: String,
    empty: Empty,
    used: Vec<Usage>,
}

impl World {
    /// Starts the agents of two hosts, the containers and the traffic.
    fn new(mut cluster: Cluster) -> Self {
        let external = External::of(&cluster);
        for host in &mut cluster.hosts {
            host.start_agent(&OPTIONS);
        }
        for host in &mut cluster.hosts {
            host.wait_ready();
        }
        let empty = Empty::of(&cluster);
        let tag = unique_name("chaos");
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|letter| format!("{tag}-{letter}"));
        let [one, two] = &cluster.hosts[..] else { unreachable!() };
        one.overlay("net", "10.0.0.0/24", &[]);
        one.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "br"]);
        cluster.wait_network("net");
        one.run_idle(&a, "net", &["--ip", "10.0.0.2"]);
        let publish = ["--ip", "10.0.0.3", "-p", "8000:7002", "-p", "8000:7002/udp"];
        two.run_idle(&b, "net", &publish);
        one.run_idle(&c, "br", &["--ip", "10.7.0.2"]);
        one.run_idle(&d, "br", &["--ip", "10.7.0.3"]);
        let is_claim = |key: &&String| key.starts_with("ipam/");
        assert_eq!(store::keys(&cluster).iter().filter(is_claim).count(), 4);

        let [a, b, c, d] = [a, b, c, d].map(|name| container(&name));
        let at = |ip: &str, port| SocketAddrV4::new(ip.parse().unwrap(), port);
        let out = SocketAddrV4::new(External::IP, 7001);
        let published = SocketAddrV4::new(two.vtep(), 8000);
        let beyond = external.host.path();
        let ways = [
            Way { what: "overlay", from: &a, to: &b, at: at("10.0.0.3", 7000), port: 7000 },
            Way { what: "masqueraded", from: &a, to: beyond, at: out, port: 7001 },
            Way { what: "published port", from: beyond, to: &b, at: published, port: 7002 },
            Way { what: "bridge", from: &c, to: &d, at: at("10.7.0.3", 7003), port: 7003 },
        ];
        let mut traffic = Traffic::start(&ways);
        traffic.moves();
        let used = cluster.hosts.iter().map(Usage::of).collect();
        Self { traffic, cluster, _external: external, tag, empty, used }
    }

    /// Makes a container on a host, and removes it.
    fn passing(&self, host: &Host) {
        let name = format!("{}-{}", self.tag, unique_name("passing"));
        host.run_idle(&name, "net", &[]);
        host.ok(&["rm", "-f", &name]);
    }

    /// Waits until all agents have the store.
    fn recovers(&self) {
        let well = || self.cluster.hosts.iter().all(Host::healthy);
        wait_until(RECOVERY, "the agents to recover", well);
    }

    /// Checks that a new container is reached, that no traffic was lost, and that the agents use no
    /// more than before the faults. Then the flows expire. Removes all containers and networks, and
    /// checks that nothing is left.
    fn ends_well(mut self) {
        self.recovers();
        self.traffic.moves();
        for (host, before) in self.cluster.hosts.iter().zip(&self.used) {
            Usage::of(host).has_bounds(*before);
        }
        let Self { traffic, cluster, _external: external, tag, empty, .. } = self;
        let [one, two] = &cluster.hosts[..] else { unreachable!() };
        let [a, b, c, d, late] =
            ["a", "b", "c", "d", "late"].map(|letter| format!("{tag}-{letter}"));
        two.run_idle(&late, "net", &["--ip", "10.0.0.9"]);
        one.wait_ping(&a, "10.0.0.9");
        traffic.nothing_was_lost();
        flows_expire(&cluster);
        one.ok(&["rm", "-f", &a, &c, &d]);
        two.ok(&["rm", "-f", &b, &late]);
        for network in ["net", "br"] {
            one.ok(&["network", "rm", network]);
        }
        empty.comes_back(&cluster, &format!("{tag}-"));
        drop((cluster, external));
    }
}

/// Agents are killed at any moment, most of them before they are ready. Now and then a container
/// comes and goes on the other host while a host has no agent.
#[test]
#[ignore = "needs root"]
fn agents_are_killed() {
    let mut random = Random::seeded();
    let mut world = World::new(Cluster::without_agents(2, 1500));
    for round in each("agents_are_killed", rounds(20, 1000)) {
        let index = random.below(2) as usize;
        world.cluster.hosts[index].stop_agent(Signal::SIGKILL);
        random.pause(50);
        let seldom = round % 10 == 9;
        if seldom {
            world.cluster.hosts[1 - index].wait_ready();
            world.passing(&world.cluster.hosts[1 - index]);
        }
        world.cluster.hosts[index].start_agent(&OPTIONS);
        if seldom {
            world.cluster.hosts[index].wait_ready();
        }
        random.pause(400);
        world.traffic.moves();
    }
    world.ends_well();
}

/// Agents end in order, and others take over whose programs have other constants. All are of this
/// version: `tests/netns/upgrade.rs` has the upgrade from an earlier layout of the maps.
#[test]
#[ignore = "needs root"]
fn agents_are_replaced() {
    let mut random = Random::seeded();
    let mut world = World::new(Cluster::without_agents(2, 1500));
    for round in each("agents_are_replaced", rounds(4, 200)) {
        let host = &mut world.cluster.hosts[random.below(2) as usize];
        host.wait_ready();
        host.stop_agent(Signal::SIGTERM);
        let ageing = (300 + round).to_string();
        host.start_agent(&[&OPTIONS[..], &["--ageing", &ageing]].concat());
        host.wait_ready();
        world.traffic.moves();
    }
    world.ends_well();
}

/// A fault of a store with three members.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// So many members hang for a while. Without two of them there is no majority.
    Hang(usize),
    /// So many members are killed, and come back.
    Kill(usize),
    /// The history is removed while the agents hang, and each member is killed and comes back: the
    /// agents cannot watch on from where they were.
    Compaction,
    /// The store takes no writes, as if it had reached its quota.
    Full,
}

/// Each fault, once.
const FAULTS: [Fault; 8] = [
    Fault::Hang(1),
    Fault::Hang(2),
    Fault::Hang(3),
    Fault::Kill(1),
    Fault::Kill(2),
    Fault::Kill(3),
    Fault::Compaction,
    Fault::Full,
];

/// Some of the members, beginning with an arbitrary one.
fn some<'a>(
    cluster: &'a mut Cluster,
    number: usize,
    random: &mut Random,
) -> Vec<&'a mut EtcdServer> {
    let mut members = cluster.servers();
    let first = random.index(members.len());
    members.rotate_left(first);
    members.truncate(number);
    members
}

/// Sends a signal to the agents.
fn signal(cluster: &mut Cluster, signal: Signal) {
    for agent in cluster.hosts.iter_mut().filter_map(|host| host.agent.as_mut()) {
        agent.signal(signal);
    }
}

/// Causes a fault of the store, and puts an end to it.
fn strike(cluster: &mut Cluster, fault: Fault, random: &mut Random) {
    match fault {
        Fault::Hang(number) => {
            let members = some(cluster, number, random);
            for member in &members {
                member.freeze().unwrap();
            }
            random.pause(1000);
            for member in &members {
                member.thaw().unwrap();
            }
        }
        Fault::Kill(number) => {
            let mut members = some(cluster, number, random);
            for member in &mut members {
                member.stop();
            }
            random.pause(300);
            EtcdServer::resume_all(members).unwrap();
        }
        Fault::Compaction => {
            signal(cluster, Signal::SIGSTOP);
            store::compact(cluster);
            for member in cluster.servers() {
                member.restart().unwrap();
            }
            signal(cluster, Signal::SIGCONT);
        }
        Fault::Full => {
            store::set_full(cluster);
            let create = ["network", "create", "-d", "overlay", "refused"];
            assert!(!cluster.hosts[0].culvert(&create).status.success());
            random.pause(500);
            store::end_full(cluster);
        }
    }
}

/// Members of the store hang, are killed and come back, the store loses its history or is full,
/// while containers come and go.
#[test]
#[ignore = "needs root"]
fn the_store_fails() {
    let mut random = Random::seeded();
    // A leader is replaced soon.
    let timing = ["--heartbeat-interval", "100", "--election-timeout", "600"];
    let mut world = World::new(Cluster::with_members(2, 1500, &timing));
    let mut faults = Vec::new();
    for round in each("the_store_fails", rounds(8, 500)) {
        if faults.is_empty() {
            faults = FAULTS.to_vec();
            random.shuffle(&mut faults);
        }
        let fault = faults.remove(0);
        eprintln!("round {round}: {fault:?}");
        strike(&mut world.cluster, fault, &mut random);
        world.traffic.moves();
        if round % 4 == 3 {
            world.recovers();
            world.passing(&world.cluster.hosts[0]);
        }
    }
    world.ends_well();
}
