//! Very many containers on one host: the kernel's table of neighbours, the ports of a bridge, and
//! the copies of floods have room for them.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use culvert_tests::{
    chaos::{each, rounds},
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, wait_until},
};
use nix::sys::signal::Signal;

use crate::{
    assistants::{is_up, link, veths},
    host_changes::is_repaired,
};

const NETWORK: &str = "many";
const GATEWAY: &str = "10.7.0.1";
/// The most host sides in a bridge: 1,023 ports less that of the lender.
const GUESTS: usize = 1022;
/// Commands that run at once.
const AT_ONCE: usize = 8;
/// Least time of [`AT_ONCE`] pings between containers. Each ping makes two entries in the kernel's
/// table of neighbours. The kernel cannot remove an entry while a timer runs for it: for up to 5 s
/// before it asks whether the neighbour is there, and for up to 45 s after the answer
/// (`neigh_forced_gc` and `NUD_IN_TIMER`, net/core/neighbour.c). So there are 800 entries at most.
const PACE: Duration = Duration::from_secs(1);

/// An attached network namespace.
struct Guest {
    netns: Netns,
    name: String,
    ip: Ipv4Addr,
}

impl Guest {
    fn new(index: u32) -> Self {
        let first = u32::from(Ipv4Addr::new(10, 7, 1, 0));
        Self { netns: Netns::new("many"), name: unique_name("many"), ip: (first + index).into() }
    }

    fn attach(&self, host: &Host) -> Command {
        let (netns, ip) = (self.netns.path().display().to_string(), self.ip.to_string());
        let names = ["--name", &self.name, "--network", NETWORK, "--ip", &ip];
        host.culvert_command(&[&["attach", "--netns", &netns][..], &names].concat())
    }

    /// Pings the addresses one by one.
    fn ping(&self, to: &[&str]) -> Command {
        let mut command = self.netns.command("sh");
        let pings: Vec<String> = to.iter().map(|ip| format!("ping -c1 -W5 {ip}")).collect();
        command.args(["-c", &pings.join(" && ")]);
        command
    }
}

fn one_host() -> Cluster {
    let cluster = Cluster::new(1);
    cluster.hosts[0].overlay(NETWORK, "10.7.0.0/16", &[]);
    cluster.wait_network(NETWORK);
    cluster
}

/// Runs commands at the same time. All must succeed.
fn all_succeed(commands: impl Iterator<Item = Command>) {
    let start = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<Child> = commands.map(start).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let told = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
    }
}

/// Parts of the guests, with progress lines.
fn parts<'a>(
    what: &'a str,
    guests: &'a [Guest],
    size: usize,
) -> impl Iterator<Item = &'a [Guest]> + use<'a> {
    let number = u32::try_from(guests.len().div_ceil(size)).unwrap();
    each(what, number).zip(guests.chunks(size)).map(|(_, part)| part)
}

/// How often the kernel has refused an entry in a table of neighbours since the boot. `None` in a
/// network namespace other than the initial one, which does not show it.
fn table_fulls(cache: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/net/stat/{cache}")).ok()?;
    let mut lines = text.lines();
    let at = lines.next()?.split_whitespace().position(|column| column == "table_fulls")?;
    let of_cpu = |line: &str| u64::from_str_radix(line.split_whitespace().nth(at)?, 16).ok();
    lines.map(of_cpu).sum()
}

/// Refused entries of both families.
fn refused() -> [Option<u64>; 2] {
    let refused = ["arp_cache", "ndisc_cache"].map(table_fulls);
    if refused.contains(&None) {
        eprintln!("the tables of neighbours are not seen here: that none is full is not checked");
    }
    refused
}

/// Number of host sides in each bridge.
fn guests_by_room(host: &Host) -> BTreeMap<String, usize> {
    let mut rooms = BTreeMap::new();
    for (_, master) in veths(&host.netns) {
        *rooms.entry(master).or_default() += 1;
    }
    rooms
}

/// Checks that the host sides are in as few bridges as can be.
fn are_in_rooms(host: &Host, number: usize) {
    let rooms = guests_by_room(host);
    let expected: BTreeMap<String, usize> = (0..number.div_ceil(GUESTS))
        .map(|room| (format!("cvroom{room}"), GUESTS.min(number - room * GUESTS)))
        .collect();
    assert_eq!(rooms, expected);
    for room in 1..expected.len() {
        lender_is_right(host, room);
    }
}

/// Checks the vxlan device that lends headroom to a bridge after the first one, and the bridge.
fn lender_is_right(host: &Host, room: usize) {
    let lender = link(&host.netns, &format!("cvhead{room}"));
    assert_eq!(lender["master"], format!("cvroom{room}"), "{lender}");
    assert_eq!(lender["linkinfo"]["info_kind"], "vxlan", "{lender}");
    assert!(!is_up(&lender), "{lender}");
    let bridge = link(&host.netns, &format!("cvroom{room}"));
    assert!(!is_up(&bridge), "{bridge}");
}

/// Checks that no device of Culvert is on the host.
fn no_device_is_left(host: &Host) {
    let links = host.netns.run("ip -o link show");
    assert!(!links.contains(": cv"), "{links}");
}

/// Many containers: each reaches the gateway, each pair of them pings, and the host reaches each. No
/// table of neighbours is full, what containers send by themselves is not copied to all others, and
/// each host side is a port of a bridge. With `CULVERT_TEST_FULL` there are 2,000 containers, more
/// than a bridge has ports and more than `gc_thresh3` has entries.
///
/// The tables of neighbours are the machine's: a refused entry may be of another program, and if the
/// machine's limit is higher than the default, the test is weaker.
#[test]
#[ignore = "needs root"]
fn very_many_containers_work() {
    let number = rounds(50, 2000);
    let mut cluster = one_host();
    let host = &cluster.hosts[0];
    let before = refused();
    let guests: Vec<Guest> = each("namespaces", number).map(Guest::new).collect();
    for part in parts("attachments", &guests, AT_ONCE) {
        all_succeed(part.iter().map(|guest| guest.attach(host)));
    }
    are_in_rooms(host, guests.len());
    // A setting of one host side, however many there are.
    let (port, _) = veths(&host.netns).swap_remove(guests.len() / 2);
    is_repaired(
        host,
        "setting",
        &format!("sysctl -qw net.ipv6.conf.{port}.disable_ipv6=0"),
        &format!("{port} had disable_ipv6 off"),
        &format!("sysctl -n net.ipv6.conf.{port}.disable_ipv6 | grep -q 1"),
    );
    let last = guests.last().unwrap();
    wait_until(SOON, "the last container to be reached", || {
        let first = &guests[0];
        first.ping(&[&last.ip.to_string()]).output().unwrap().status.success()
    });

    let ips: Vec<String> = guests.iter().map(|guest| guest.ip.to_string()).collect();
    for part in parts("pings of the gateway", &guests, AT_ONCE) {
        all_succeed(part.iter().map(|guest| guest.ping(&[GATEWAY])));
    }
    for part in parts("pings of containers", &guests, 2 * AT_ONCE) {
        let start = Instant::now();
        let ping = |pair: &[Guest]| pair[0].ping(&[&pair[1].ip.to_string()]);
        all_succeed(part.chunks_exact(2).map(ping));
        thread::sleep(PACE.saturating_sub(start.elapsed()));
    }
    for part in parts("pings of the host", &guests, 100) {
        let ips: Vec<String> = part.iter().map(|guest| guest.ip.to_string()).collect();
        let each_ip = ips.join(" ");
        host.netns.run(&format!(
            "for ip in {each_ip}; do ping -c1 -W5 $ip >/dev/null || {{ echo $ip; exit 1; }}; done"
        ));
    }
    assert_eq!(refused(), before, "entries of neighbours were refused, by whomever");

    // Each container has sent reports of its groups, which nobody has asked for.
    assert!(host.counter("from_container", "report_absorbed") > 0, "{}", host.ok(&["stats"]));
    let copies: u64 = ["flood_local_copy", "flood_remote_copy"]
        .iter()
        .map(|copies| host.counter("from_container", copies))
        .sum();
    assert!(copies <= u64::from(number), "{copies} copies: {}", host.ok(&["stats"]));
    let findings = host.culvert(&["doctor"]);
    let findings = String::from_utf8_lossy(&findings.stdout);
    assert!(findings.contains("the host side of each container is a port"), "{findings}");

    // Another agent takes the bridges over as they are.
    let ports = veths(&host.netns);
    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    assert_eq!(veths(&host.netns), ports);
    all_succeed([last.ping(&[GATEWAY, &ips[0]])].into_iter());
    let repairs = host.json(&["status"])["repairs"].to_string();
    assert!(!repairs.contains("container device"), "{repairs}");

    for part in parts("removals", &guests, AT_ONCE) {
        all_succeed(part.iter().map(|guest| host.culvert_command(&["detach", &guest.name])));
    }
    assert_eq!(host.json(&["ps"]).as_array().map(Vec::len), Some(0));
    assert!(veths(&host.netns).is_empty(), "{:?}", veths(&host.netns));
    host.ok(&["purge"]);
    no_device_is_left(host);
}

/// All ports of the first bridge are taken, here by devices of another program. Containers go into a
/// second bridge with a lender of its own. Both are kept, taken over by another agent, and purged.
#[test]
#[ignore = "needs root"]
fn a_full_bridge_gets_a_second_one() {
    let mut cluster = one_host();
    let host = &cluster.hosts[0];
    // With the vxlan device there are 1,023 ports.
    host.netns.run(
        "for n in $(seq 511); do \
             echo link add d$n type veth peer name e$n; \
             echo link set d$n master cvroom0; \
             echo link set e$n master cvroom0; \
         done | ip -batch -",
    );
    let guests = [Guest::new(0), Guest::new(1)];
    for guest in &guests {
        all_succeed([guest.attach(host)].into_iter());
    }
    let both_are_in_the_second =
        |host: &Host| guests_by_room(host) == BTreeMap::from([("cvroom1".to_owned(), 2)]);
    assert!(both_are_in_the_second(host), "{:?}", guests_by_room(host));
    lender_is_right(host, 1);
    let other = guests[1].ip.to_string();
    wait_until(SOON, "the other container", || {
        guests[0].ping(&[&other]).output().unwrap().status.success()
    });

    let port = veths(&host.netns)[0].0.clone();
    let (down, port_of) = (
        "! ip link show DEV | grep -q '[<,]UP[,>]'",
        "ip link show DEV | grep -q 'master cvroom1'",
    );
    for (device, breakage, words, whole) in [
        ("cvroom1", "ip link set cvroom1 up", "cvroom1 was up", down),
        ("cvhead1", "ip link set cvhead1 nomaster", "cvhead1 was no port of cvroom1", port_of),
        ("cvhead1", "ip link del cvhead1", "cvhead1 was missing", port_of),
        (port.as_str(), "ip link del cvroom1", "cvroom1 was missing", port_of),
    ] {
        is_repaired(host, "assistant device", breakage, words, &whole.replace("DEV", device));
    }
    let taken_out = format!("ip link set {port} nomaster");
    let whole = port_of.replace("DEV", &port);
    is_repaired(host, "container device", &taken_out, "was no port of cvroom1", &whole);
    wait_until(SOON, "both in the second bridge", || both_are_in_the_second(host));
    lender_is_right(host, 1);

    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    assert!(both_are_in_the_second(host), "{:?}", guests_by_room(host));
    lender_is_right(host, 1);
    all_succeed([guests[0].ping(&[GATEWAY, &other])].into_iter());
    let repairs = host.json(&["status"])["repairs"].to_string();
    assert!(!repairs.contains("container device"), "{repairs}");
    host.ok(&["purge"]);
    no_device_is_left(host);
    assert!(host.netns.succeeds("ip link show d1"), "a device of another program was removed");
}
