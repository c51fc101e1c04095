//! New connections of a container, while no other container attacks and while one does.
//!
//! Attacker and bystander are containers of one host. The attacker uses the first core, the
//! bystander and its server the last one. So the figures do not contain CPU time that they take
//! from each other, which Culvert does not control. On a machine with one core they do.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use culvert_testbed::{
    cluster::{Cluster, Host, unique_name},
    external::External,
    wait::wait_until,
};
use culvert_tests::{
    attack::{Attack, NOBODY},
    sock::container,
};

use crate::{
    load::{
        PORT, Peers, Side,
        units::{ConnectionTimes, tried_connections},
    },
    results::{UnderAttack, Waits},
    stats::percentile,
};

/// How long the attacker may take until it has its share of the table.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections before the first one that counts. After them, neighbours and routes are known.
const WARM_UP: usize = 100;

/// Tries `connections` connections before the attack, and as many during it.
pub(crate) fn measure(connections: usize) -> Result<UnderAttack> {
    let cluster = Cluster::new(1);
    let external = External::of(&cluster);
    external.router.sh(&format!("ip route add blackhole {NOBODY}"))?;
    let host = cluster.hosts.first().context("cluster: no host")?;
    let [attacker, bystander] = ["attacker", "bystander"].map(unique_name);
    for name in [&attacker, &bystander] {
        host.run_idle(name, "bridge", &[]);
    }
    let from =
        host.ip(&attacker, "bridge").parse::<Ipv4Addr>().context("the attacker has no address")?;
    let peers = Peers::direct(&container(&bystander), external.host.path(), External::IP);
    tried_connections(&peers, WARM_UP)?;

    let quiet = tried_connections(&peers, connections)?;
    let server = SocketAddrV4::new(External::IP, PORT);
    let attack = Attack::start(&container(&attacker), from, server, Side::Client.core());
    wait_until(LIMIT, "the attacker to have its share of the table", || turned_away(host) > 0);
    let (start, sent, before) = (Instant::now(), attack.sent(), turned_away(host));
    let attacked = tried_connections(&peers, connections)?;
    let (elapsed, sent) = (start.elapsed(), attack.sent() - sent);
    drop(attack);
    ensure!(
        turned_away(host) > before,
        "the attack has stopped: no more flows are evicted or refused"
    );
    Ok(UnderAttack {
        quiet: waits(&quiet),
        attacked: waits(&attacked),
        packets_per_second: sent as f64 / elapsed.as_secs_f64(),
    })
}

/// Number of flows that were evicted for others, or refused because of a share.
fn turned_away(host: &Host) -> u64 {
    let of = |reason| host.counter("from_container", reason);
    of("flow_evicted") + of("conntrack_share")
}

fn waits(times: &ConnectionTimes) -> Waits {
    let us = |share| percentile(&times.sorted, share) as f64 / 1e3;
    Waits { tried: times.sorted.len(), failed: times.failed, p50_us: us(0.5), p99_us: us(0.99) }
}
