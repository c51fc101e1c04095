//! A host's own routes and neighbours, and the subnets of networks.

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
pub(crate) fn device_to(host: &Host, ip: &str) -> String {
    let found = host.netns.try_run(&format!("ip -j route get {ip}")).stdout;
    let route: serde_json::Value = serde_json::from_slice(&found).unwrap_or_default();
    route[0]["dev"].as_str().unwrap_or_default().to_owned()
}

/// Whether a problem of the status has these words.
pub(crate) fn has_problem(host: &Host, words: &str) -> bool {
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
    one.overlay("net", "10.9.0.0/24", &[]);
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
    two.netns.run("ip link del lan0");
    // A next hop that only the route's `onlink` makes on link. The container starts, and the host
    // gets no route to the network.
    two.netns.run("ip route add default via 10.9.0.77 dev up0 onlink");
    two.run_idle(&name, "net", &["--ip", "10.9.0.9"]);
    wait_until(SOON, "the problem", || {
        has_problem(two, "has 10.9.0.77, the next hop of the route of this host")
    });
    assert_eq!(device_to(two, "10.9.0.9"), "up0");
    // The advice in the problem works.
    two.netns.run("ip route del default");
    wait_until(SOON, "the gateway's route", || device_to(two, "10.9.0.9").starts_with("cvg"));
    wait_until(SOON, "no problem", || !has_problem(two, "next hop"));
    two.ok(&["rm", "-f", &name]);
    one.ok(&["network", "rm", "net"]);
}

/// A host with the container 10.9.0.9 in the network 10.9.0.0/24, to which its gateway device leads.
fn host_with_a_gateway() -> Cluster {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.9.0.0/24", &[]);
    host.run_idle(&unique_name("routed"), "net", &["--ip", "10.9.0.9"]);
    wait_until(SOON, "the gateway's route", || device_to(host, "10.9.0.9").starts_with("cvg"));
    cluster
}

/// The host gets an address in a network's subnet while containers of the network run.
#[test]
#[ignore = "needs root"]
fn a_network_gives_way_to_an_interface_of_the_host() {
    let cluster = host_with_a_gateway();
    let host = &cluster.hosts[0];
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

/// The administrator replaces the gateway's route by one of the host. The host then has neither an
/// address nor a route of the network, until the administrator's route is gone.
#[test]
#[ignore = "needs root"]
fn a_network_gives_way_to_a_route_of_the_host() {
    let cluster = host_with_a_gateway();
    let host = &cluster.hosts[0];
    connect_lan(host, "198.18.0.5/24");
    host.netns.run("ip route replace 10.9.0.0/24 dev lan0");
    wait_until(SOON, "the problem", || has_problem(host, "has a route to 10.9.0.0/24 by lan0"));
    assert_eq!(device_to(host, "10.9.0.1"), "lan0", "the gateway's address is left");
    assert_eq!(device_to(host, "10.9.0.77"), "lan0");
    host.netns.run("ip route del 10.9.0.0/24 dev lan0");
    wait_until(SOON, "the gateway's route again", || {
        device_to(host, "10.9.0.9").starts_with("cvg") && device_to(host, "10.9.0.1") == "lo"
    });
    wait_until(SOON, "no problem", || !has_problem(host, "has a route to"));
    host.netns.run("ping -c1 -W9 10.9.0.9");
}

/// A route of the host that comes while containers run: one that is wider than the subnet, one to
/// the half with the gateway's address, and one to the other half.
#[test]
#[ignore = "needs root"]
fn a_route_that_overlaps_a_network_in_use_is_told() {
    let cluster = host_with_a_gateway();
    let host = &cluster.hosts[0];
    connect_lan(host, "198.18.0.5/24");
    for to in ["10.9.0.0/24", "10.9.0.0/25"] {
        host.netns.run(&format!("ip route add {to} dev lan0 metric 5"));
        let words = format!("this host has a route to {to} by lan0");
        wait_until(SOON, "the problem", || has_problem(host, &words));
        assert!(has_problem(host, "network 'net'"), "{}", host.ok(&["status"]));
        // Nothing of the route is hidden.
        for ip in ["10.9.0.1", "10.9.0.77"] {
            assert_eq!(device_to(host, ip), "lan0", "{to}");
        }
        host.netns.run(&format!("ip route del {to} dev lan0"));
        wait_until(SOON, "the gateway's route again", || {
            device_to(host, "10.9.0.9").starts_with("cvg") && device_to(host, "10.9.0.1") == "lo"
        });
        wait_until(SOON, "no problem", || !has_problem(host, "has a route to"));
    }
    // A VPN brings a route to more than the subnet: the network goes on.
    host.netns.run("ip route add 10.0.0.0/8 dev lan0");
    wait_until(SOON, "the problem", || {
        has_problem(host, "network 'net': subnet 10.9.0.0/24 is a part of 10.0.0.0/8")
    });
    host.netns.run("ping -c1 -W9 10.9.0.9");
    host.netns.run("ip route del 10.0.0.0/8 dev lan0");
    wait_until(SOON, "no problem", || !has_problem(host, "has a route"));
    // The kernel prefers this route. The network keeps the other half.
    host.netns.run("ip route add 10.9.0.128/25 dev lan0");
    wait_until(SOON, "the problem", || {
        has_problem(host, "network 'net': this host has a route to 10.9.0.128/25 by lan0")
    });
    let findings = host.findings().to_string();
    assert!(findings.contains("10.9.0.128/25 by lan0"), "{findings}");
    host.netns.run("ping -c1 -W9 10.9.0.9");
    // The kernel says nothing of the routes that an interface loses when it is set down.
    host.netns.run("ip link set lan0 down");
    wait_until(SOON, "no problem", || !has_problem(host, "has a route to"));
}

/// The interface of a container is lost while the host has a route of its own to the subnet. It is
/// made again when the route is gone.
#[test]
#[ignore = "needs root"]
fn a_container_gets_its_interface_when_a_route_of_the_host_is_gone() {
    let cluster = host_with_a_gateway();
    let host = &cluster.hosts[0];
    connect_lan(host, "10.9.0.5/24");
    wait_until(SOON, "the problem", || has_problem(host, "overlaps 10.9.0.0/24"));
    let pairs = "ip -o link | grep -o 'cv[0-9a-f]\\{12\\}' | sort -u";
    host.netns.run(&format!("for dev in $({pairs}); do ip link del $dev; done"));
    wait_until(SOON, "the refusal", || {
        has_problem(host, "in network 'net': subnet 10.9.0.0/24: this host has a route to")
    });
    assert_eq!(host.netns.run(pairs), "");
    host.netns.run("ip link del lan0");
    wait_until(SOON, "the container", || host.netns.succeeds("ping -c1 -W1 10.9.0.9"));
    wait_until(SOON, "no problem", || !has_problem(host, "10.9.0.0/24"));
}

/// A network replaces no route of the host. So the host's routes are the same before, during and
/// after the network. This includes routes that are added while the network exists.
#[test]
#[ignore = "needs root"]
fn a_host_keeps_its_own_routes_all_the_time() {
    let cluster = host_with_a_gateway();
    let host = &cluster.hosts[0];
    connect_lan(host, "198.18.0.5/24");
    for to in ["10.9.0.128/25", "10.0.0.0/8", "10.9.0.0/24"] {
        host.netns.run(&format!("ip route add {to} dev lan0 metric 5"));
    }
    let own = || {
        let shown = host.netns.run("ip route show");
        let mut lines: Vec<String> = shown.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.retain(|line| !line.contains("cvg"));
        lines.sort();
        lines
    };
    let before = own();
    wait_until(SOON, "the network to give way", || {
        !host.netns.run("ip route show").contains("cvg")
    });
    assert_eq!(own(), before);
    let name = host.json(&["ps"])[0]["name"].as_str().unwrap().to_owned();
    host.ok(&["rm", "-f", &name]);
    host.ok(&["network", "rm", "net"]);
    wait_until(SOON, "no gateway device", || {
        !host.netns.succeeds("ip link show | grep 'cvg[0-9]'")
    });
    assert_eq!(own(), before);
}

/// The administrator has made the neighbour entry of another host permanent, before that host's VTEP
/// is used or while it is used. The entry is used, and stays when the VTEP is no longer used.
#[test]
#[ignore = "needs root"]
fn a_permanent_neighbour_is_left_alone() {
    let cluster = Cluster::new(3);
    let [one, two, three] = &cluster.hosts[..] else { unreachable!() };
    let enter = |host: &Host, other: &Host| {
        let link: serde_json::Value =
            serde_json::from_str(&other.netns.run("ip -j link show dev up0")).unwrap();
        let mac = link[0]["address"].as_str().unwrap().to_owned();
        let vtep = other.vtep();
        host.netns.run(&format!("ip neigh replace {vtep} lladdr {mac} dev up0 nud permanent"));
        format!("lladdr {mac} PERMANENT")
    };
    let shown = |host: &Host, other: &Host| {
        host.netns.run(&format!("ip neigh show {} dev up0", other.vtep()))
    };
    let early = enter(one, two);
    one.overlay("net", "10.9.0.0/24", &[]);
    cluster.wait_network("net");
    let names = [unique_name("fix1"), unique_name("fix2"), unique_name("fix3")];
    for ((host, name), ip) in cluster.hosts.iter().zip(&names).zip(["2", "3", "4"]) {
        host.run_idle(name, "net", &["--ip", &format!("10.9.0.{ip}")]);
    }
    for (host, name) in [(one, &names[0]), (two, &names[1])] {
        for ip in ["10.9.0.2", "10.9.0.3", "10.9.0.4"] {
            host.wait_ping(name, ip);
        }
    }
    let is_managed = |host: &Host| shown(host, three).contains("managed");
    // A path is used before its next hop is a managed neighbour.
    wait_until(SOON, "the managed neighbours", || is_managed(one) && is_managed(two));
    assert!(shown(one, two).contains(&early), "{}", shown(one, two));
    let late = enter(two, one);
    two.wait_ping(&names[1], "10.9.0.2");
    for (host, name) in cluster.hosts.iter().zip(&names) {
        host.ok(&["rm", "-f", name]);
    }
    wait_until(SOON, "the other entries to be given up", || !is_managed(one) && !is_managed(two));
    assert!(shown(one, two).contains(&early), "{}", shown(one, two));
    assert!(shown(two, one).contains(&late), "{}", shown(two, one));
}

/// A host needs one neighbour for each network, independent of the number of containers. Each
/// container has its gateway as a permanent neighbour. The kernel's limit counts neither of them.
#[test]
#[ignore = "needs root"]
fn containers_take_no_room_in_the_table_of_neighbours() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.ok(&["network", "create", "--subnet", "10.9.0.0/24", "net"]);
    let names: Vec<String> = (0..4).map(|_| unique_name("neigh")).collect();
    for name in &names {
        host.run_idle(name, "net", &[]);
        let shown = host.in_container(name, "ip neigh show 10.9.0.1");
        assert!(shown.contains("lladdr 02:42:0a:09:00:01 PERMANENT"), "{shown}");
        let ip = host.ip(name, "net");
        host.netns.run(&format!("ping -c1 -W9 {ip}"));
        host.in_container(name, &format!("ping -c1 -W9 {}", host.vtep()));
    }
    let gateway = device_to(host, "10.9.0.2");
    let shown = host.netns.run(&format!("ip -4 neigh show dev {gateway}"));
    assert_eq!(shown.trim_end(), "169.254.67.1 lladdr 02:42:0a:09:00:01 PERMANENT");
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
    host.overlay("given", "100.64.0.0/24", &[]);
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
