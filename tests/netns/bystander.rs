//! A container that attacks, and the connections of another container of the same host.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddrV4,
    path::Path,
    time::{Duration, Instant},
};

use culvert_common::abi::DEFAULT_FLOWS;
use culvert_tests::{
    attack::{self, Attack, Pinned},
    chaos::{rounds, say},
    external::External,
    netns::{on_this_machine, wait_until},
    sock::{self, Behaviour, PATIENCE, Server, container},
};

use crate::{nat::World, ports::any};

/// Connections that were tried one after the other.
struct Tried {
    /// Times of the successful handshakes, in ascending order.
    handshakes: Vec<Duration>,
    failed: usize,
}

impl Tried {
    /// Tries `count` connections from `netns` to an echo server, until more than 1 % have failed.
    fn new(netns: &Path, server: SocketAddrV4, count: u32) -> Self {
        let mut tried = Self { handshakes: Vec::new(), failed: 0 };
        sock::within(netns, || {
            for _ in 0..count {
                match connect(server) {
                    Ok(handshake) => tried.handshakes.push(handshake),
                    Err(_) => tried.failed += 1,
                }
                if tried.failed * 100 > count as usize {
                    break;
                }
            }
        });
        tried.handshakes.sort_unstable();
        tried
    }

    /// Whether at least 99 % succeeded.
    fn nearly_all(&self) -> bool {
        self.handshakes.len() >= 99 * self.failed
    }

    /// The percentile `percent` of the times.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.handshakes.len() * percent).div_ceil(100);
        self.handshakes.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The figures in words.
    fn words(&self) -> String {
        let (made, failed) = (self.handshakes.len(), self.failed);
        let [half, most] = [50, 99].map(|percent| self.percentile(percent));
        format!("{made} made, {failed} failed, p50 {half:?}, p99 {most:?}")
    }
}

/// Opens a connection from this thread's namespace, and exchanges a few bytes. Returns how long the
/// handshake took.
fn connect(server: SocketAddrV4) -> std::io::Result<Duration> {
    let start = Instant::now();
    let mut stream = sock::open(server, 0)?;
    let handshake = start.elapsed();
    stream.set_read_timeout(Some(on_this_machine(PATIENCE)))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    Ok(handshake)
}

/// A container begins flows of many kinds, as fast as a core can. Nearly all new connections of
/// another container to an external server are made nevertheless. The times of the handshakes
/// before the attack and during it are printed: `cargo xtask bench --only attack` compares them.
/// With `CULVERT_TEST_FULL` the table has its default size.
#[test]
#[ignore = "needs root"]
fn an_attack_costs_another_container_no_connection() {
    let (max, count) = (rounds(1024, DEFAULT_FLOWS).to_string(), rounds(200, 2000));
    let world = World::with_agent(&["--conntrack-max", &max]);
    let host = world.host();
    let (attacker, from) = world.run("bridge", &[]);
    let (bystander, _) = world.run("bridge", &[]);
    let server = SocketAddrV4::new(External::IP, 80);
    // The frames of the bystander and its server are not in the queues that the attacker fills.
    let (first, last) = attack::first_and_last_core();
    let _pinned = Pinned::to(last);
    let _server = Server::tcp(world.external.host.path(), any(80), Behaviour::Echo);
    world.external.router.run(&format!("ip route add blackhole {}", attack::NOBODY));

    let quiet = Tried::new(&container(&bystander), server, count);
    say(&format!("connections before an attack: {}", quiet.words()));
    assert!(quiet.nearly_all(), "{}", quiet.words());

    let attack = Attack::start(&container(&attacker), from, server, first);
    let turned_away = || {
        let of = |reason| host.counter("from_container", reason);
        of("flow_evicted") + of("conntrack_share")
    };
    wait_until(Duration::from_secs(60), "the attacker to have its share of the table", || {
        turned_away() > 0
    });
    let (start, sent, before) = (Instant::now(), attack.sent(), turned_away());
    let attacked = Tried::new(&container(&bystander), server, count);
    let (seconds, sent) = (start.elapsed().as_secs_f64(), attack.sent() - sent);
    let meanwhile = turned_away() - before;
    say(&format!(
        "connections during an attack of {:.0} packets/s: {}",
        sent as f64 / seconds,
        attacked.words()
    ));
    let status = host.json(&["status"])["conntrack"].clone();
    drop(attack);
    assert!(attacked.nearly_all(), "{}: {status}", attacked.words());
    assert!(sent > 0 && meanwhile > 0, "the attack has stopped: {}", host.ok(&["stats"]));
    let rows = status["containers"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|row| row["container"] == name);
    assert!(row(&attacker).is_some(), "{status}");
    assert!(row(&bystander).is_none_or(|row| row["refused"] == 0), "{status}");
}
