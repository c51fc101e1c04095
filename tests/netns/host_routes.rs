//! A host's own routes, and the subnets of networks.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::wait_until,
};

/// Connects a host to another network by the interface `lan0`.
fn connect_lan(host: &Host, address: &str) {
    host.netns.run(&format!(
        "ip link add lan0 type veth peer name lan1 && ip link set lan1 up && ip link set lan0 up \
         && ip addr add {address} dev lan0"
    ));
}

/// The device of the host's route to an address.
fn device_to(host: &Host, ip: &str) -> String {
    let found = host.netns.try_run(&format!("ip -j route get {ip}")).stdout;
    let route: serde_json::Value = serde_json::from_slice(&found).unwrap_or_default();
    route[0]["dev"].as_str().unwrap_or_default().to_owned()
}

fn has_problem(host: &Host, words: &str) -> bool {
    let problems = host.json(&["status"])["problems"].clone();
    problems.as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(words))
}

/// The subnet of a network that another host has made is this host's LAN.
#[test]
#[ignore = "needs root"]
fn a_hosts_own_network_is_not_taken_from_it() {
    let cluster = Cluster::new(2);
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    connect_lan(two, "10.9.0.5/24");
    one.ok(&["network", "create", "-d", "overlay", "--subnet", "10.9.0.0/24", "net"]);
    cluster.wait_network("net");
    let name = unique_name("lan");
    let line = two.refused(1, &["run", "-d", "--name", &name, "--network", "net", "sleep", "60"]);
    assert!(line.contains("10.9.0.0/24") && line.contains("by lan0"), "{line}");
    assert_eq!(device_to(two, "10.9.0.77"), "lan0");
    assert!(!two.netns.succeeds("ip link show | grep 'cvg[0-9]'"), "a gateway device was made");
    // The same with a wider network of the host.
    two.netns.run("ip addr flush dev lan0 && ip addr add 10.9.0.5/16 dev lan0");
    let line = two.refused(1, &["run", "-d", "--name", &name, "--network", "net", "sleep", "60"]);
    assert!(line.contains("10.9.0.0/16 by lan0"), "{line}");
    // The advice in the refusal works.
    two.netns.run("ip link del lan0");
    two.run_idle(&name, "net", &[]);
    two.ok(&["rm", "-f", &name]);
    one.ok(&["network", "rm", "net"]);
}

/// The host gets an address in a network's subnet while containers of the network run.
#[test]
#[ignore = "needs root"]
fn a_network_gives_way_to_an_interface_of_the_host() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.ok(&["network", "create", "-d", "overlay", "--subnet", "10.9.0.0/24", "net"]);
    let name = unique_name("way");
    host.run_idle(&name, "net", &["--ip", "10.9.0.9"]);
    wait_until(SOON, "the gateway's route", || device_to(host, "10.9.0.9").starts_with("cvg"));
    connect_lan(host, "10.9.0.5/24");
    wait_until(SOON, "the host's own route", || device_to(host, "10.9.0.77") == "lan0");
    wait_until(SOON, "the problem", || has_problem(host, "overlaps 10.9.0.0/24"));
    host.netns.run("ip link del lan0");
    wait_until(SOON, "the gateway's route again", || {
        device_to(host, "10.9.0.9").starts_with("cvg")
    });
    wait_until(SOON, "no problem", || !has_problem(host, "overlaps"));
    host.netns.run("ping -c1 -W2 10.9.0.9");
}

/// A VPN has two routes that cover all addresses; a company has a route to 10.0.0.0/8.
#[test]
#[ignore = "needs root"]
fn wide_routes_leave_a_choice() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.netns.run(
        "ip link add tun9 type veth peer name tun8 && ip link set tun8 up && ip link set tun9 up \
         && ip addr add 198.18.0.2/32 dev tun9 \
         && ip route add 0.0.0.0/1 dev tun9 && ip route add 128.0.0.0/1 dev tun9",
    );
    host.ok(&["network", "create", "-d", "overlay", "vpn"]);
    host.ok(&["network", "create", "-d", "overlay", "--subnet", "100.64.0.0/24", "given"]);
    let subnet = |name: &str| {
        host.json(&["network", "inspect", name])[0]["IPAM"]["Config"][0]["Subnet"].clone()
    };
    assert_eq!(subnet("vpn"), "10.0.0.0/24");
    host.netns.run("ip route add 10.0.0.0/8 dev tun9");
    host.ok(&["network", "create", "-d", "overlay", "company"]);
    assert_eq!(subnet("company"), "172.16.0.0/24");
    let line = host.refused(1, &["network", "create", "--subnet", "10.77.0.0/24", "refused"]);
    assert!(line.contains("10.0.0.0/8, to which this host has a route by tun9"), "{line}");
}

/// The agent does not choose a subnet that another host is connected to.
#[test]
#[ignore = "needs root"]
fn subnets_are_chosen_around_the_networks_of_all_hosts() {
    let mut cluster = Cluster::without_agents(2, 1500);
    connect_lan(&cluster.hosts[1], "10.0.0.5/20");
    for host in &mut cluster.hosts {
        host.start_agent(&[]);
        host.wait_ready();
    }
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    wait_until(SOON, "both nodes", || {
        one.json(&["node", "ls"]).as_array().is_some_and(|nodes| nodes.len() == 2)
    });
    let chosen = |name: &str| {
        one.ok(&["network", "create", "-d", "overlay", name]);
        let inspected = one.json(&["network", "inspect", name]);
        inspected[0]["IPAM"]["Config"][0]["Subnet"].as_str().unwrap().to_owned()
    };
    assert_eq!(chosen("around"), "10.0.16.0/24");
    // A change while the agent runs is also reported.
    two.netns.run("ip addr add 10.0.17.1/24 dev lan0");
    wait_until(SOON, "the new subnet in the node's record", || {
        let name = unique_name("probe");
        let subnet = chosen(&name);
        one.ok(&["network", "rm", &name]);
        subnet == "10.0.18.0/24"
    });
}

/// The agent chooses subnets from the ranges that it was given.
#[test]
#[ignore = "needs root"]
fn subnets_come_from_the_pools() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.start_agent(&["--pool", "10.200.0.0/16", "--pool", "10.201.0.0/16"]);
    host.wait_ready();
    host.ok(&["network", "create", "-d", "overlay", "over"]);
    host.ok(&["network", "create", "lan"]);
    let subnet = |name: &str| {
        host.json(&["network", "inspect", name])[0]["IPAM"]["Config"][0]["Subnet"].clone()
    };
    assert_eq!((subnet("over"), subnet("lan")), ("10.200.0.0/24".into(), "10.200.16.0/20".into()));
    host.refused(2, &["agent", "--pool", "10.200.0.0/31"]);
    host.refused(2, &["agent", "--pool", "10.200.0.1/16"]);
}
