//! The testbed by itself, without Culvert.

use std::net::{IpAddr, Ipv4Addr};

use culvert_testbed::cluster::{Cluster, SOON};
use culvert_testbed::etcd::{Config, EtcdServer};
use culvert_testbed::external::External;
use culvert_testbed::netns::Netns;
use culvert_testbed::underlay::Underlay;
use culvert_testbed::wait::wait_until;

/// Hosts reach each other, the store and the external host, which has routes to the hosts' own
/// addresses only. All namespaces and devices are removed.
#[test]
#[ignore = "needs root"]
fn hosts_reach_each_other_the_store_and_an_external_host() {
    let Underlay { hosts, switch } = Underlay::bridged(2, 1500);
    let switch = switch.expect("a switch");
    switch.run(&format!("ip addr add {}/24 dev br0", Cluster::ETCD));
    let etcd = EtcdServer::start_with(Config {
        netns: Some(switch.path().to_owned()),
        address: Some(Cluster::ETCD.into()),
        port: Some(2379),
        ..Config::default()
    })
    .expect("etcd starts");
    let external = External::behind(&switch, &hosts);
    for ip in [Underlay::address(1), Cluster::ETCD, External::IP] {
        hosts[0].run(&format!("ping -c1 -W9 {ip}"));
    }
    let endpoint = format!("http://{}/health", etcd.endpoint());
    assert!(hosts[0].run(&format!("curl -sf {endpoint}")).contains("true"));
    let names = [hosts[0].name(), external.host.name(), switch.name()].map(str::to_owned);
    drop((external, etcd, hosts, switch));
    let left = Netns::here().run("ip netns list");
    assert!(!names.iter().any(|name| left.contains(name)), "{left}");
}

/// An object that cannot be made gives an error of one line that names it.
#[test]
#[ignore = "needs root"]
fn what_the_kernel_refuses_is_one_line() {
    let netns = Netns::new("refused");
    let error = format!("{:#}", netns.sh("ip link add x type nonsense").expect_err("refused"));
    assert!(error.contains(netns.name()) && error.lines().count() == 1, "{error}");
    assert!(Netns::make(netns.name()).is_err(), "the name is taken");
    assert!(netns.path().exists(), "the failed make removed the namespace");
}

/// etcd ends in order when it is asked to, keeps a directory that was given with its log, and
/// reports an error when it has ended.
#[test]
fn an_etcd_ends_in_order_and_its_death_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut etcd = EtcdServer::start_with(Config {
        dir: Some(dir.path().join("etcd")),
        own_group: true,
        ..Config::default()
    })
    .expect("etcd starts");
    etcd.check().expect("it runs");
    etcd.end().expect("it ends in order");
    let log = std::fs::read_to_string(dir.path().join("etcd/etcd.log")).expect("a log");
    assert!(log.contains("serv"), "{log}");

    let mut etcd = EtcdServer::start().expect("etcd starts");
    let pid = etcd.pid().expect("it runs").cast_signed();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is ours");
    wait_until(SOON, "its end", || etcd.check().is_err());
}

/// A store of three members serves without one of them, and not without two. Members that come back
/// serve again.
#[test]
#[ignore = "needs root"]
fn three_members_serve_without_one() {
    let netns = Netns::new("members");
    let addresses = [1, 2, 3].map(|last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
    for address in addresses {
        netns.run(&format!("ip addr add {address}/32 dev lo"));
    }
    let mut members =
        EtcdServer::start_members(netns.path(), &addresses, &[]).expect("the members start");
    let serves = || {
        addresses.map(|address| netns.succeeds(&format!("curl -sfm5 http://{address}:2379/health")))
    };
    wait_until(SOON, "all members to serve", || serves() == [true; 3]);
    members[1].stop();
    wait_until(SOON, "two members to serve", || serves() == [true, false, true]);
    members[1].resume().expect("it starts");
    wait_until(SOON, "all members to serve", || serves() == [true; 3]);
    for member in &mut members[1..] {
        member.stop();
    }
    wait_until(SOON, "no member to serve", || serves() == [false; 3]);
    EtcdServer::resume_all(&mut members[1..]).expect("they start");
    wait_until(SOON, "all members to serve", || serves() == [true; 3]);
}
