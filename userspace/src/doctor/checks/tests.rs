//! Tests of the checks.

use std::time::Duration;

use super::*;
use crate::{
    doctor::{Certificate, CertificateFile, Level, Role, Subject, TcxProgram, Translations},
    model::MacAddr,
    netlink::{Link, sockets::LocalSocket},
    sandbox::{RESOLV_CONF, Resolver},
};

fn resolver(text: &str) -> Resolver {
    Resolver::choose(|path| (path == RESOLV_CONF).then(|| text.to_owned()))
}

/// The time at which the tests run the checks, since 1970.
const NOW: Duration = Duration::from_secs(1_800_000_000);

/// The certificate of the agent, which is valid for `days` more days.
fn certificate(days: u64) -> CertificateFile {
    CertificateFile {
        role: Role::Client,
        path: "/etc/culvert/host.pem".into(),
        certificates: Ok(vec![Certificate {
            subject: "CN=host1".to_owned(),
            not_before: NOW,
            not_after: NOW + Duration::from_secs(days * 24 * 60 * 60),
        }]),
    }
}

fn neighbours(family: &'static str, entries: u64) -> NeighbourTable {
    NeighbourTable { family, entries, limit: 1024, refused: 7 }
}

/// An interface with an Ethernet header, or without one.
fn interface(name: &str, ethernet: bool) -> Link {
    let mac = ethernet.then_some(MacAddr([2, 0, 0, 0, 0, 1]));
    Link { name: name.to_owned(), mac, ..Link::default() }
}

fn healthy() -> Facts {
    Facts {
        subject: Subject {
            uplinks: vec!["up0".to_owned()],
            vxlan_port: 4789,
            bpffs: "/sys/fs/bpf".into(),
            networks: vec![("net1".to_owned(), 1450)],
            clock_offset_ms: Some(3),
            alarms: Vec::new(),
            certificates: Vec::new(),
            open_store: false,
            shared_port: false,
            open_ports: 2,
            external_ports: 3,
            published: Vec::new(),
            services: Vec::new(),
            agent_running: false,
        },
        host: HostFacts {
            release: "6.6.0-13-amd64".to_owned(),
            btf: true,
            bpf: Probe::Works,
            jit: Some(1),
            capabilities: Some(u64::MAX),
        },
        bpffs: Bpffs::Mountable,
        uplinks: vec![UplinkFacts {
            name: "up0".to_owned(),
            link: Some(Link {
                name: "up0".to_owned(),
                mtu: 1500,
                up: true,
                running: true,
                addresses: vec!["192.0.2.1/24".parse().unwrap()],
                ..Link::default()
            }),
            merging: Vec::new(),
            tcx: Some(vec![TcxProgram { name: "from_underlay".to_owned(), id: 1 }]),
        }],
        default_link: Some(interface("up0", true)),
        leftovers: Vec::new(),
        sockets: Vec::new(),
        vxlan_devices: Vec::new(),
        unserved: Vec::new(),
        shaped: Vec::new(),
        filtered: Vec::new(),
        firewalls: Vec::new(),
        translations: Translations::default(),
        host_sides: HostSides { all: 1023, without_headroom: 0 },
        neighbours: vec![neighbours("ipv4", 767), neighbours("ipv6", 3)],
        resolver: resolver("nameserver 192.0.2.53\n"),
        certificates: vec![certificate(60)],
        now: NOW,
    }
}

fn link(facts: &mut Facts) -> &mut Link {
    facts.uplinks[0].link.as_mut().unwrap()
}

fn socket(address: &str) -> LocalSocket {
    LocalSocket { address: address.parse().unwrap(), port: 4789, inode: 5, connected: false }
}

/// Asserts that exactly one finding is not ok: it has this check, this level and these words.
fn assert_found(break_it: impl FnOnce(&mut Facts), check: &str, level: Level, words: &[&str]) {
    let mut facts = healthy();
    break_it(&mut facts);
    let bad: Vec<Finding> =
        examine(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
    let [found] = bad.as_slice() else { panic!("{check}: {bad:?}") };
    assert_eq!((found.check.as_str(), found.level), (check, level), "{found:?}");
    let line = format!("{}: {}", found.detail, found.advice);
    for word in words {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(!found.advice.is_empty(), "{found:?}");
}

#[test]
fn a_healthy_host_needs_nothing() {
    for finding in examine(&healthy()) {
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert!(finding.advice.is_empty(), "{finding:?}");
    }
}

#[test]
fn alarms_of_the_store_are_errors() {
    let alarm = |name: &str| {
        let name = name.to_owned();
        move |facts: &mut Facts| facts.subject.alarms = vec![name]
    };
    assert_found(alarm("NOSPACE"), "store", Level::Error, &["NOSPACE", "etcdctl alarm disarm"]);
    assert_found(alarm("CORRUPT"), "store", Level::Error, &["CORRUPT", "etcdctl alarm list"]);
}

#[test]
fn certificates_near_their_end_are_named() {
    let ending = |days| move |facts: &mut Facts| facts.certificates = vec![certificate(days)];
    let words = ["--store-cert /etc/culvert/host.pem", "CN=host1", "renewed"];
    assert_found(ending(29), "certificate", Level::Warning, &words);
    assert_found(ending(0), "certificate", Level::Error, &words);
}

#[test]
fn a_queue_that_frames_go_past_is_named() {
    let break_it =
        |facts: &mut Facts| facts.shaped = vec![("cv0123456789ab".to_owned(), "tbf".to_owned())];
    assert_found(break_it, "shaping", Level::Warning, &["tbf on cv0123456789ab", "own interface"]);
}

#[test]
fn filters_that_frames_go_past_are_named() {
    let break_it = |facts: &mut Facts| facts.filtered = vec!["cv0123456789ab".to_owned()];
    assert_found(break_it, "shaping", Level::Warning, &["on cv0123456789ab", "own interface"]);
}

#[test]
fn a_default_route_by_another_interface_is_named() {
    let leads_out_of = |name: &'static str, ethernet| {
        move |facts: &mut Facts| facts.default_link = Some(interface(name, ethernet))
    };
    let words = ["leads out of br0", "the uplink is up0", "not_an_uplink", "--uplink br0"];
    assert_found(leads_out_of("br0", true), "uplink", Level::Warning, &words);
    let words = ["leads out of wg0", "cannot be an uplink", "ip rule add from SUBNET"];
    assert_found(leads_out_of("wg0", false), "uplink", Level::Warning, &words);
    // One of several uplinks, or no default route at all.
    let mut facts = healthy();
    leads_out_of("br0", true)(&mut facts);
    facts.subject.uplinks.push("br0".to_owned());
    assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
    let mut facts = healthy();
    facts.default_link = None;
    assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn a_full_table_of_neighbours_is_named_with_its_setting() {
    let table = |family, entries| {
        move |facts: &mut Facts| facts.neighbours = vec![neighbours(family, entries)]
    };
    let words = ["768 entries of 1024", "7 were refused", "net.ipv4.neigh.default.gc_thresh3=4096"];
    assert_found(table("ipv4", 768), "neighbours", Level::Warning, &words);
    let words = ["net.ipv6.neigh.default.gc_thresh3=4096 net.ipv6.neigh.default.gc_thresh2=2048"];
    assert_found(table("ipv6", 1024), "neighbours", Level::Warning, &words);
    // The containers that could fill it are there already.
    let many = |facts: &mut Facts| {
        facts.host_sides.all = 2000;
        facts.neighbours = vec![neighbours("ipv4", 3), neighbours("ipv6", 3)];
    };
    let words = [
        "3 entries of 1024",
        "2000 containers",
        "net.ipv4.neigh.default.gc_thresh3=8000 net.ipv4.neigh.default.gc_thresh2=4000",
    ];
    assert_found(many, "neighbours", Level::Warning, &words);
    let mut facts = healthy();
    facts.neighbours.clear();
    let findings = examine(&facts);
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
}

#[test]
fn host_sides_without_headroom_are_named() {
    let break_it = |facts: &mut Facts| facts.host_sides.without_headroom = 7;
    assert_found(break_it, "headroom", Level::Warning, &["7 of 1023", "cvroom*", "log"]);
    let mut facts = healthy();
    facts.host_sides = HostSides::default();
    assert!(examine(&facts).iter().all(|finding| finding.check != "headroom"));
}

#[test]
fn programs_of_another_agent_are_named() {
    let left = |owner| move |facts: &mut Facts| facts.leftovers = vec![Leftover::of_a_test(owner)];
    let program = "from_underlay on up0, pinned at /old/v4/links/uplink-3";
    let words = [program, "--bpffs", "culvert purge"];
    assert_found(left(Owner::Ended), "programs", Level::Warning, &words);
    let words = [program, "another agent, pid 77"];
    assert_found(left(Owner::Runs(77)), "programs", Level::Error, &words);
    let words = [program, "cannot be told", "--pid=host"];
    assert_found(left(Owner::Unseen), "programs", Level::Warning, &words);
}

#[test]
fn a_firewall_that_does_not_see_published_ports_is_named() {
    let break_it = |facts: &mut Facts| facts.firewalls = vec!["ufw"];
    let words = ["ufw is active", "the 2 published ports", "--from CIDR", "ports deny CIDR"];
    assert_found(break_it, "firewall", Level::Warning, &words);
    let break_it = |facts: &mut Facts| {
        facts.firewalls = vec!["ufw", "firewalld"];
        facts.subject.open_ports = 1;
    };
    let words = ["ufw and firewalld are active", "the 1 published port that"];
    assert_found(break_it, "firewall", Level::Warning, &words);
    // Each port is for some clients only, or for the host alone.
    let mut facts = healthy();
    facts.firewalls = vec!["ufw"];
    facts.subject.open_ports = 0;
    let findings = examine(&facts);
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
}

#[test]
fn interfaces_without_published_ports_are_named() {
    let tunnels = |facts: &mut Facts| facts.unserved = vec!["gre1".to_owned(), "ppp0".to_owned()];
    let words = ["not reached through gre1, ppp0", "reverse proxy"];
    assert_found(tunnels, "ports", Level::Warning, &words);
    // Nobody misses a port.
    let mut facts = healthy();
    tunnels(&mut facts);
    facts.subject.external_ports = 0;
    let findings = examine(&facts);
    let found = findings.iter().find(|finding| finding.check == "ports").unwrap();
    assert_eq!(found.level, Level::Ok, "{found:?}");
    assert!(found.detail.contains("not reached through gre1, ppp0"), "{found:?}");
}

#[test]
fn kernel_features_are_named() {
    let release = |release: &str| {
        let release = release.to_owned();
        move |facts: &mut Facts| facts.host.release = release
    };
    for old in ["5.15.0-91-generic", "6.5.13", "2.6.66-culvert", "4.19"] {
        assert_found(release(old), "kernel", Level::Error, &[old, "too old", "tcx", "6.6"]);
    }
    assert_found(release("next"), "kernel", Level::Warning, &["tcx"]);
    for new in ["6.6", "6.10.3", "7.2.0-rc1", "10.0+"] {
        let mut facts = healthy();
        facts.host.release = new.to_owned();
        assert_eq!(examine(&facts)[0].level, Level::Ok, "{new}");
    }
    assert_found(
        |facts| facts.host.btf = false,
        "btf",
        Level::Error,
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    );
    assert_found(
        |facts| facts.host.bpf = Probe::Unsupported,
        "bpf",
        Level::Error,
        &["CONFIG_BPF_SYSCALL"],
    );
    assert_found(
        |facts| facts.host.bpf = Probe::Failed("Operation not permitted".to_owned()),
        "bpf",
        Level::Error,
        &["Operation not permitted"],
    );
    assert_found(|facts| facts.host.jit = Some(0), "jit", Level::Warning, &["bpf_jit_enable=1"]);
    assert_found(|facts| facts.bpffs = Bpffs::Missing, "bpffs", Level::Error, &["pin"]);
}

#[test]
fn missing_privileges_are_named() {
    assert_found(
        |facts| facts.host.capabilities = Some(u64::MAX ^ (1 << 39) ^ (1 << 12)),
        "privileges",
        Level::Error,
        &["CAP_NET_ADMIN, CAP_BPF", "root"],
    );
    assert_found(
        |facts| facts.host.capabilities = Some(u64::MAX ^ (1 << 11)),
        "privileges",
        Level::Warning,
        &["CAP_NET_BROADCAST", "after a minute"],
    );
}

#[test]
fn uplinks_are_looked_at() {
    let up0 = "up0";
    assert_found(|facts| facts.uplinks[0].link = None, "uplink", Level::Error, &[up0, "exist"]);
    assert_found(|facts| link(facts).up = false, "uplink", Level::Error, &[up0, "down"]);
    assert_found(|facts| link(facts).running = false, "uplink", Level::Warning, &["carrier"]);
    assert_found(
        |facts| link(facts).addresses = vec!["2001:db8::1/64".parse().unwrap()],
        "uplink",
        Level::Error,
        &["no IPv4"],
    );
    assert_found(
        |facts| facts.uplinks[0].merging = vec!["rx-udp-gro-forwarding", "rx-gro-list"],
        "offload",
        Level::Error,
        &[
            "up0 has rx-udp-gro-forwarding and rx-gro-list on",
            "ethtool -K up0 rx-udp-gro-forwarding off rx-gro-list off",
        ],
    );
    assert_found(
        |facts| {
            let other = TcxProgram { name: "cil_from_netdev".to_owned(), id: 42 };
            facts.uplinks[0].tcx.as_mut().unwrap().push(other);
        },
        "tcx",
        Level::Warning,
        &["cil_from_netdev (42)"],
    );
}

#[test]
fn the_mtu_must_leave_room() {
    assert_found(
        |facts| link(facts).mtu = 1499,
        "mtu",
        Level::Warning,
        &["net1", "1449", "to 1500"],
    );
    assert_found(
        |facts| facts.subject.networks.push(("jumbo".to_owned(), 9000)),
        "mtu",
        Level::Warning,
        &["jumbo", "9050", "--mtu 1450"],
    );
}

#[test]
fn the_port_must_be_ours() {
    assert_found(
        |facts| facts.vxlan_devices = vec!["vx1".to_owned()],
        "port",
        Level::Warning,
        &["vx1", "4789", "--vxlan-port"],
    );
    assert_found(|facts| facts.subject.shared_port = true, "port", Level::Warning, &["Swarm"]);
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        assert_found(
            |facts| facts.sockets = vec![socket(address)],
            "port",
            Level::Error,
            &["socket", address],
        );
    }
    // A socket on another address does not conflict. The agent's own socket does not conflict.
    let mut facts = healthy();
    facts.sockets = vec![socket("127.0.0.1")];
    assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
    facts.sockets = vec![socket("0.0.0.0")];
    facts.subject.agent_running = true;
    assert!(examine(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn clocks_may_differ_a_little() {
    for offset in [5000, -5000] {
        assert_found(
            |facts| facts.subject.clock_offset_ms = Some(offset),
            "clock",
            Level::Warning,
            &["5000 ms", "NTP"],
        );
    }
}
#[test]
fn containers_need_a_name_server() {
    assert!(examine(&healthy()).iter().any(|finding| {
        finding.detail == "containers get name server 192.0.2.53 from /etc/resolv.conf"
    }));
    assert_found(
        |facts| facts.resolver = resolver("nameserver 127.0.0.53\n"),
        "names",
        Level::Warning,
        &["127.0.0.53", "do not reach", "--dns"],
    );
    assert_found(
        |facts| facts.resolver = Resolver::choose(|_| None),
        "names",
        Level::Warning,
        &["/etc/resolv.conf cannot be read"],
    );
}

#[test]
fn a_store_without_authentication_is_an_error() {
    let words = ["the store has no authentication", "--store-user or --store-cert"];
    assert_found(|facts| facts.subject.open_store = true, "store", Level::Error, &words);
}
