//! The offload matrix: with every setting of checksum, segmentation and GRO offloads on the path,
//! the payload arrives unchanged and the frames on the wire are valid.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

mod cover;
mod merged;
mod traffic;
mod watch;
mod world;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use culvert_tests::{external::External, netns::Underlay, wire::Tap};

use cover::Row;
use traffic::{Client, Servers, TCP, UDP};
use watch::Features;
use world::{BLUE, DEVICES, RED, Tenant, World};

/// Ports that receive datagrams which were sent at once: directly, and through a published port.
const SINK: u16 = 91;
const PUBLISHED_SINK: u16 = 92;
/// A port without a listener.
const NOBODY: u16 = 9;
/// Bytes of an IPv4 header and a UDP header.
const V4: usize = 28;
/// Bytes of an IPv6 header and a UDP header.
const V6: usize = 48;
/// MTU of the overlay networks, and MTU of the others.
const INNER: usize = 1450;
const OUTER: usize = 1500;
/// The longest payload of a datagram, or of an echo, over IPv4.
const LONGEST: usize = 65_507;

/// Number of attempts until a datagram counts as lost.
const TRIES: usize = 3;

/// The failures of a row.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note<T>(&mut self, what: impl Fn() -> String, result: Result<T, String>) -> Option<T> {
        result.map_err(|error| self.0.push(format!("{}: {error}", what()))).ok()
    }

    /// Records a failure of traffic without retransmission, if it fails repeatedly. A single loss
    /// proves nothing: all devices of the machine share the queue between two devices
    /// (`net.core.netdev_max_backlog`), and other processes can fill it. Drops of the programs are
    /// counted separately.
    fn note_lossy<T>(&mut self, what: impl Fn() -> String, send: impl Fn() -> Result<T, String>) {
        let lost = |result: &Result<T, String>| {
            result.as_ref().is_err_and(|e| e == "timeout" || e.starts_with(traffic::MISSING))
        };
        let mut result = send();
        for _ in 1..TRIES {
            if !lost(&result) {
                break;
            }
            eprintln!("{}: lost, sent again", what());
            result = send();
        }
        self.note(what, result);
    }
}

/// The offload settings under test, which must make no difference. The first rows are: the defaults
/// of the devices; a wire, where only GRO merges; a wire with GRO for datagrams, with and without a
/// VXLAN socket; all off. The further rows complete every combination of two switches (of three in
/// the full run).
fn rows() -> Vec<Row> {
    let row = |choose: &dyn Fn(&str, &str) -> bool| -> Row {
        let one = DEVICES.iter().flat_map(|(device, switches)| {
            switches.iter().map(|(feature, _)| choose(device, feature)).collect::<Vec<_>>()
        });
        one.clone().chain(one).collect()
    };
    let usual: Row = {
        let one = DEVICES.iter().flat_map(|(_, switches)| switches.iter().map(|(_, on)| *on));
        one.clone().chain(one).collect()
    };
    let wire = |also: &'static [&'static str]| {
        row(&move |_, feature| feature == "gro" || also.contains(&feature))
    };
    let first = vec![
        usual,
        wire(&["rx", "vxlan"]),
        wire(&["rx", "vxlan", "rx-udp-gro-forwarding"]),
        wire(&["rx", "vxlan", "rx-gro-list"]),
        wire(&["rx", "rx-udp-gro-forwarding", "rx-gro-list"]),
        row(&|_, _| false),
    ];
    let strength = if std::env::var_os("CULVERT_TEST_FULL").is_some() { 3 } else { 2 };
    cover::cover(first[0].len(), strength, first)
}

/// TCP, UDP, UDP that the kernel cuts, and ICMP. Two tenants with the same addresses send them at
/// the same time, and also exchange them with an external host and through published ports.
#[test]
#[ignore = "needs root"]
fn payloads_arrive_whatever_is_offloaded() {
    let world = World::new();
    let _servers: Vec<_> = world.servers().iter().map(|netns| Servers::new(netns)).collect();
    let rows = rows();
    for (number, row) in rows.iter().enumerate() {
        world.set(row);
        let taps = [0, 1].map(|host| {
            let (uplink, port) = world.uplink(host);
            watch::watch(&world.cluster.switch, &port, Features::of(uplink, Underlay::UPLINK))
        });
        let (before, decapsulated) = (world.drops(), world.delivered());
        let mut failures = std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| tenant(&world, RED, row)),
                scope.spawn(|| tenant(&world, BLUE, row)),
                scope.spawn(|| beyond(&world)),
            ];
            threads.into_iter().flat_map(|thread| thread.join().unwrap().0).collect::<Vec<_>>()
        });
        let decapsulated = world.delivered() - decapsulated;
        let seen = taps.map(Tap::finish);
        failures.extend(seen.iter().flat_map(|seen| seen.complaints(&[RED.vni, BLUE.vni])));
        failures.extend(differences(&before, &world.drops()));
        let frames = seen.iter().map(|seen| seen.to_host.vnis.values().sum::<u64>()).sum::<u64>();
        // Checks that the first rows have an effect. Otherwise the other rows prove nothing.
        match number {
            0 if seen.iter().any(|seen| seen.from_host.gso == 0 || seen.from_host.partial == 0) => {
                failures.push("nothing was left to the hardware".to_owned());
            }
            1..=3 if decapsulated > frames / 4 * 3 => {
                failures.push(format!("GRO made {decapsulated} frames of {frames}"));
            }
            _ => {}
        }
        assert!(
            failures.is_empty(),
            "row {number} of {}, differs from the defaults by:{}\n{}",
            rows.len(),
            world.describe(row),
            failures.join("\n")
        );
    }
}

/// The drop counters that have changed. None may change.
fn differences(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let changed = after.iter().filter(|(reason, count)| {
        // A stack sends multicast by itself.
        before.get(*reason) != Some(count) && !reason.ends_with("no_receiver")
    });
    changed.map(|(reason, count)| format!("dropped in total: {count} {reason}")).collect()
}

/// Traffic from a tenant's container on one host to that on the other host.
fn tenant(world: &World, tenant: Tenant, row: &Row) -> Failures {
    let mut failures = Failures::default();
    let [one, two] = world.pair(tenant);
    let client = Client { netns: one.netns.clone(), seed: tenant.vni.into() };
    let back = Client { netns: two.netns.clone(), seed: tenant.vni.into() };
    let v4 = |port| SocketAddr::new(two.v4.into(), port);
    let v6 = |port| SocketAddr::new(two.v6.into(), port);
    let name = tenant.network;
    for (to, lens) in
        [(v4(TCP), &[1, 1398, 1399, 65_483, 1 << 20][..]), (v6(TCP), &[1378, 300_000])]
    {
        for len in lens {
            failures.note(|| format!("{name}: TCP to {to}, {len}"), client.tcp(to, *len));
        }
    }
    let around = |mtu: usize, header: usize| [mtu - header - 1, mtu - header, mtu - header + 1];
    let lens = [&[0, 1][..], &around(INNER, V4), &around(OUTER, V4), &[9000, LONGEST]].concat();
    for len in &lens {
        failures.note_lossy(|| format!("{name}: UDP, {len}"), || client.udp(v4(UDP), *len));
        failures.note_lossy(|| format!("{name}: ping, {len}"), || client.ping(two.v4.into(), *len));
    }
    for len in around(INNER, V6).into_iter().chain([9000, LONGEST - 20]) {
        failures.note_lossy(|| format!("{name}: UDP/IPv6, {len}"), || client.udp(v6(UDP), len));
    }
    for len in [INNER - V6, INNER - V6 + 1, 8000] {
        failures
            .note_lossy(|| format!("{name}: ping/IPv6, {len}"), || client.ping(two.v6.into(), len));
    }
    for (len, long) in [(INNER - V4, false), (INNER - V4 + 1, true)] {
        let refused = client.refused(v4(NOBODY), len);
        assert_eq!(refused, Ok(long), "{name}: UDP with DF, {len}");
    }
    let shapes = [(1, 100), (512, 65_024), (1421, 20 * 1421 + 7), (1422, 65_412)];
    for (from, sink, host) in [(&client, two, 1), (&back, one, 0)] {
        if world.merges_udp(row, host) {
            continue;
        }
        let (v4, v6) =
            (SocketAddr::new(sink.v4.into(), SINK), SocketAddr::new(sink.v6.into(), SINK));
        let all = shapes.map(|shape| (v4, shape)).into_iter().chain([(v6, (1402, 20 * 1402))]);
        for ((to, shape), gro) in all.flat_map(|each| [(each, false), (each, true)]) {
            let send = || from.segments(to, (&sink.netns, SINK), shape, gro);
            let what = || format!("{name}: UDP_SEGMENT {shape:?} to {to}, UDP_GRO {gro}");
            failures.note_lossy(what, send);
        }
    }
    failures
}

/// Traffic from an overlay and a bridge network to an external host, and from this host through a
/// published port.
fn beyond(world: &World) -> Failures {
    let mut failures = Failures::default();
    let external = |port| SocketAddr::new(External::IP.into(), port);
    let netns = world.external.host.path();
    let [red, _] = world.pair(RED);
    for (name, from, mtu) in [("overlay", &red.netns, INNER), ("bridge", &world.bridge, OUTER)] {
        let client = Client { netns: from.clone(), seed: 7 };
        for len in [1, mtu - 52, 1 << 19] {
            failures.note(|| format!("{name}: TCP out, {len}"), client.tcp(external(TCP), len));
        }
        for len in [1, mtu - V4, mtu - V4 + 1, LONGEST] {
            failures.note_lossy(
                || format!("{name}: UDP out, {len}"),
                || client.udp(external(UDP), len),
            );
            failures.note_lossy(
                || format!("{name}: ping out, {len}"),
                || client.ping(External::IP.into(), len),
            );
        }
        let shape = (1400, 40 * 1400);
        let send = || client.segments(external(SINK), (netns, SINK), shape, false);
        failures.note_lossy(|| format!("{name}: UDP_SEGMENT out"), send);
    }
    let client = Client { netns: netns.to_owned(), seed: 8 };
    let at = |ip: Ipv4Addr, port| SocketAddr::new(ip.into(), port);
    for (name, ip, inside) in world.published() {
        for len in [1, 1448, 1 << 19] {
            let result = client.tcp(at(ip, 8000 + TCP), len);
            failures.note(|| format!("{name}: TCP in, {len}"), result);
        }
        for len in [1, 1400, OUTER - V4, OUTER - V4 + 1, LONGEST] {
            let send = || client.udp(at(ip, 8000 + UDP), len);
            failures.note_lossy(|| format!("{name}: UDP in, {len}"), send);
        }
        for gro in [false, true] {
            let (to, sink) = (at(ip, 8000 + PUBLISHED_SINK), (inside, PUBLISHED_SINK));
            let send = || client.segments(to, sink, (1400, 40 * 1400), gro);
            failures.note_lossy(|| format!("{name}: UDP_SEGMENT in, UDP_GRO {gro}"), send);
        }
    }
    failures
}
