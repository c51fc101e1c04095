//! The facts of `doctor` come from the right namespace.

use std::{net::UdpSocket, os::fd::AsFd, path::PathBuf};

use culvert::{
    doctor::{Facts, Finding, Level, Subject, examine, preflight},
    netfilter::{self, Rules},
    netlink::Netlink,
    netns::Netns as Sandbox,
};
use culvert_tests::{
    docker::{self, Published},
    netns::{Netns, Underlay, wait_for, wait_until},
};

use crate::{DEADLINE, block_on};

async fn diagnose(host: &Netns) -> Vec<(String, Level)> {
    let subject = Subject {
        uplinks: vec![Underlay::UPLINK.to_owned()],
        vxlan_port: 4789,
        bpffs: PathBuf::from("/sys/fs/bpf"),
        networks: vec![("net1".to_owned(), 1450)],
        clock_offset_ms: None,
        alarms: Vec::new(),
        certificates: Vec::new(),
        open_store: false,
        shared_port: false,
        open_ports: 0,
        external_ports: 0,
        published: Vec::new(),
        services: Vec::new(),
        agent_running: false,
    };
    let netlink = Netlink::in_netns(host.fd().as_fd()).unwrap();
    let findings: Vec<Finding> = examine(&Facts::collect(&netlink, subject).await);
    // Every check is made, also after a fault.
    assert!(findings.iter().any(|finding| finding.check == "tcx"), "{findings:?}");
    findings
        .into_iter()
        // The name servers, the tables of neighbours and the processes are those of the machine,
        // not of the namespace.
        .filter(|finding| !["names", "neighbours", "services"].contains(&finding.check.as_str()))
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| (finding.check, finding.level))
        .collect()
}

#[test]
#[ignore = "needs root"]
fn what_is_broken_is_found_and_nothing_else() {
    assert_eq!(preflight(), Ok(()));
    let underlay = Underlay::direct(1500);
    let host = &underlay.hosts[0];
    let found = || block_on(diagnose(host));
    let only = |check: &str, level| vec![(check.to_owned(), level)];
    assert_eq!(found(), []);

    host.run("ethtool -K up0 rx-udp-gro-forwarding on");
    assert_eq!(found(), only("offload", Level::Error));
    host.run("ethtool -K up0 rx-udp-gro-forwarding off");

    host.run("ip link set up0 mtu 1400");
    assert_eq!(found(), only("mtu", Level::Warning));
    host.run("ip link set up0 mtu 1500");

    host.run("ip link set up0 down");
    assert_eq!(found(), only("uplink", Level::Error));
    host.run("ip link set up0 up");

    host.run(
        "ip link add lan0 type veth peer name lan1 && ip link set lan0 up && ip link set lan1 up \
         && ip addr add 10.77.0.1/24 dev lan0 && ip route add default via 10.77.0.2",
    );
    assert_eq!(found(), only("uplink", Level::Warning));
    host.run("ip link del lan0");

    // The host side of a container's pair, which is a port of no bridge.
    host.run(
        "ip link add cv01 type veth peer name eth9 && ip link set cv01 alias culvert:01 \
         && tc qdisc add dev cv01 clsact",
    );
    assert_eq!(found(), only("headroom", Level::Warning));
    host.run("tc filter add dev cv01 ingress protocol ip u32 match u32 0 0 flowid 1:1");
    let both = [only("shaping", Level::Warning), only("headroom", Level::Warning)].concat();
    assert_eq!(found(), both);
    host.run("ip link del cv01");

    host.run("ip link add vx1 type vxlan id 7 dstport 4789 remote 192.0.2.2 dev up0");
    host.run("ip link set vx1 up");
    assert_eq!(found(), only("port", Level::Warning));
    host.run("ip link del vx1");
    assert_eq!(found(), []);

    let sandbox = Sandbox::open(host.path()).unwrap();
    // A child process that another test forks holds a copy of this socket until it executes.
    let bind = |address: &str| {
        wait_for(DEADLINE, address, || sandbox.run(|| UdpSocket::bind(address)).unwrap().ok())
    };
    let elsewhere = bind("127.0.0.1:4789");
    assert_eq!(found(), []);
    drop(elsewhere);
    let taken = bind("0.0.0.0:4789");
    assert_eq!(found(), only("port", Level::Error));
    drop(taken);
    wait_until(DEADLINE, "the port is free", || found().is_empty());
}

/// The programs that list rules run in the namespace, and make no tables in it.
#[test]
#[ignore = "needs root"]
fn ports_that_netfilter_translates_are_those_of_the_namespace() {
    let iptables = docker::iptables().unwrap();
    let (host, other) = (Netns::new("host"), Netns::new("other"));
    let ports = [Published { protocol: "tcp", port: 8081, container: 0, to: 80 }];
    let _containers = docker::wire(&host, iptables, 1, &ports);
    let read = |netns: &Netns| block_on(netfilter::read(netns.fd().as_fd()));
    let found = read(&host).translations;
    assert!(!found.is_empty() && found.iter().all(|one| one.ports == (8081, 8081)), "{found:?}");
    assert!(found[0].by.to_string().starts_with("chain DOCKER of table nat ("), "{found:?}");
    // A reader that keeps what it has read sees each change at once.
    let reader = netfilter::RulesReader::default();
    let read_again = || block_on(reader.read(host.fd().as_fd())).translations;
    for _ in 0..3 {
        assert_eq!(read_again(), found);
    }
    host.run(&format!("{iptables} -t nat -F"));
    assert_eq!(read_again(), []);
    assert_eq!(read(&other), Rules::default());
    assert_eq!(other.run("cat /proc/self/net/ip_tables_names || true"), "");
    assert_eq!(other.run("iptables-nft-save || true"), "");
}
