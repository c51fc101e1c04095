//! The network modes besides a plain network: `none`, `host`, `container:NAME`, several
//! networks at once, and a host's own networks.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::os::unix::fs::MetadataExt as _;

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{programs, wait_until},
    sock::{self, Behaviour, Server, Use, container},
};
use nix::sys::signal::Signal;

use crate::{
    nat::World,
    ports::{any, echo, exchange, exchange_at},
};

fn row(host: &Host, name: &str) -> serde_json::Value {
    let rows = host.json(&["ps"]);
    let row = rows.as_array().into_iter().flatten().find(|row| row["name"] == name).cloned();
    row.unwrap_or_else(|| unreachable!("{name}: {rows}"))
}

/// The network namespace of a container's process.
fn netns_of(host: &Host, name: &str) -> u64 {
    let pid = row(host, name)["pid"].as_i64().unwrap();
    std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino()
}

/// `none`: a namespace with `lo`, which is up, and no other device.
#[test]
#[ignore = "needs root"]
fn none_has_loopback_and_nothing_else() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let name = unique_name("none");
    host.run_idle(&name, "none", &[]);
    let links = host.in_container(&name, "ip -o link show");
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains("lo:") && links.contains("LOWER_UP"), "{links}");
    assert_eq!(host.in_container(&name, "ip route"), "");
    host.in_container(&name, "ping -c1 -W1 127.0.0.1");
    assert_eq!(row(&cluster.hosts[0], &name)["mode"], "none");
    assert_ne!(netns_of(host, &name), std::fs::metadata(host.netns.path()).unwrap().ino());
    host.ok(&["rm", "-f", &name]);
}

/// `host`: the host's own namespace. No device is made. `container:` with such a container has the
/// same effect.
#[test]
#[ignore = "needs root"]
fn host_is_the_hosts_own() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let links = || host.netns.run("ip -o link show | cut -d: -f2 | sort");
    let before = links();
    let (name, too) = (unique_name("host"), unique_name("too"));
    host.run_idle(&name, "host", &[]);
    host.run_idle(&too, &format!("container:{name}"), &[]);
    let own = std::fs::metadata(host.netns.path()).unwrap().ino();
    assert_eq!((netns_of(host, &name), netns_of(host, &too)), (own, own));
    assert_eq!(links(), before);
    assert_eq!(
        (&row(host, &name)["mode"], &row(host, &too)["mode"]),
        (&"host".into(), &"host".into())
    );
    assert!(!container(&name).exists());
    // `rm` of both containers leaves the host as it is.
    host.ok(&["rm", "-f", &name, &too]);
    assert!(host.netns.path().exists() && host.healthy());
    assert_eq!(links(), before);
}

/// `container:NAME`: two containers with one namespace, one 127.0.0.1 and one address. A published
/// port of the first leads to either. The first can be removed only by force while the second
/// shares its network.
#[test]
#[ignore = "needs root"]
fn a_container_shares_anothers_network() {
    let world = World::new(1);
    let host = world.host();
    let (owner, ip) = world.run("bridge", &["-p", "8080:80"]);
    let side = unique_name("side");
    host.run_idle(&side, &format!("container:{owner}"), &[]);
    assert_eq!(netns_of(host, &owner), netns_of(host, &side));
    assert_eq!(row(host, &side)["mode"], "container");
    assert_eq!(host.ip(&side, "bridge"), ip.to_string());
    let path = format!("/proc/{}/ns/net", row(host, &side)["pid"]);
    let server = Server::tcp(std::path::Path::new(&path), any(80), Behaviour::Echo);
    let localhost = "127.0.0.1".parse().unwrap();
    assert_eq!(exchange_at(&container(&owner), "tcp", localhost, 80, 10), "ok 10");
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");
    assert_eq!(server.take_clients(), ["127.0.0.1", "198.51.100.9"]);
    let output = host.ok(&["exec", &side, "--", "ip", "-o", "-4", "addr", "show", "eth0"]);
    assert!(output.contains(&ip.to_string()), "{output}");

    let line = host.refused(1, &["rm", &owner]);
    assert!(line.contains(&side) && line.contains("-f"), "{line}");
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "ok 10");
    drop(server);
    host.ok(&["rm", "-f", &owner]);
    assert_eq!(exchange(&world.external.host, "tcp", host.vtep(), 8080, 10), "refused");
    assert!(row(host, &side)["pid"].is_i64(), "it runs on, without a network");
    host.ok(&["rm", "-f", &side]);
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
    // The address is free again.
    let (_, again) = world.run("bridge", &["--ip", &ip.to_string()]);
    assert_eq!(again, ip);
}

/// Arguments for a container that declares the port it will listen on.
fn exposing<'a>(name: &'a str, network: &'a str, expose: &'a str) -> [&'a str; 11] {
    ["run", "-d", "--name", name, "--network", network, "--expose", expose, "--", "sleep", "1000"]
}

/// A container that declares its port is refused with the name of the holder: in a shared sandbox,
/// on the host, or as a published port.
#[test]
#[ignore = "needs root"]
fn a_port_that_somebody_has_is_named_with_its_holder() {
    let world = World::new(1);
    let host = world.host();
    let (owner, _) = world.run("bridge", &["-p", "8080:80"]);
    let own = format!("pid {}", std::process::id());
    let side = unique_name("side");
    let shared = format!("container:{owner}");
    let refused = |network: &str, expose: &str, words: &[&str]| {
        let line = host.refused(1, &exposing(&side, network, expose));
        for word in words {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
    };
    let inside = Server::tcp(&container(&owner), any(80), Behaviour::Echo);
    let on_host = Server::udp(host.netns.path(), any(5353));
    refused(&shared, "80", &["port 80/tcp", &own]);
    refused(&shared, "79-81/tcp", &["port 80/tcp", &own]);
    refused("host", "5353/udp", &["port 5353/udp", &own]);
    refused("host", "8080", &["port 8080/tcp", &owner]);
    assert!(
        host.refused(2, &["run", "--name", "x", "--expose", "1:2", "--", "true"]).contains("1:2")
    );
    drop((inside, on_host));
    for (network, expose) in [(shared.as_str(), "80"), ("host", "5353/udp"), ("bridge", "80")] {
        host.ok(&exposing(&side, network, expose));
        host.ok(&["rm", "-f", &side]);
    }
}

/// A container in several networks, each with a given address and MAC. An address is given to
/// another container after its release, and not before.
#[test]
#[ignore = "needs root"]
fn several_networks_with_fixed_addresses() {
    let world = World::new(1);
    let host = world.host();
    host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "br"]);
    host.overlay("over", "10.8.0.0/24", &[]);
    let fixed = ["--ip", "172.17.0.77", "--mac", "02:aa:bb:cc:dd:01"];
    let (name, _) = world.run("bridge", &fixed);
    for (network, ip, mac) in
        [("br", "10.7.0.77", "02:aa:bb:cc:dd:02"), ("over", "10.8.0.77", "02:aa:bb:cc:dd:03")]
    {
        host.ok(&["network", "connect", "--ip", ip, "--mac", mac, network, &name]);
    }
    for (ifname, ip, mac) in [
        ("eth0", "172.17.0.77/16", "02:aa:bb:cc:dd:01"),
        ("eth1", "10.7.0.77/24", "02:aa:bb:cc:dd:02"),
        ("eth2", "10.8.0.77/24", "02:aa:bb:cc:dd:03"),
    ] {
        let shown = host.in_container(&name, &format!("ip addr show dev {ifname}"));
        assert!(shown.contains(ip) && shown.contains(mac), "{shown}");
    }
    for (network, ip) in [("bridge", "172.17.0.77"), ("br", "10.7.0.77"), ("over", "10.8.0.77")] {
        let (other, _) = world.run(network, &[]);
        host.in_container(&other, &format!("ping -c1 -W2 {ip}"));
        let refused = unique_name("no");
        let run = ["run", "-d", "--name", &refused, "--network", network, "--ip", ip, "--", "true"];
        let line = host.refused(1, &run);
        assert!(line.contains(ip) && line.contains(&name), "{line}");
    }
    host.ok(&["network", "disconnect", "br", &name]);
    assert_eq!(world.run("br", &["--ip", "10.7.0.77"]).1.to_string(), "10.7.0.77");
    host.ok(&["rm", "-f", &name]);
    assert_eq!(world.run("bridge", &["--ip", "172.17.0.77"]).1.to_string(), "172.17.0.77");
}

/// Bridge networks with the same name on two hosts of one store are independent. Both may use the
/// same address, no packet passes between them, and each host lists only its own.
#[test]
#[ignore = "needs root"]
fn a_hosts_networks_are_its_own() {
    let world = World::new(2);
    let hosts = &world.cluster.hosts;
    for host in hosts {
        host.ok(&["network", "create", "-d", "bridge", "--subnet", "10.7.0.0/24", "lan"]);
    }
    hosts[0].ok(&["network", "create", "-d", "bridge", "--subnet", "10.9.0.0/24", "only"]);
    let names = [unique_name("one"), unique_name("two")];
    for (host, name) in hosts.iter().zip(&names) {
        host.run_idle(name, "bridge", &[]);
        host.ok(&["network", "connect", "lan", name]);
        assert_eq!(host.ip(name, "bridge"), "172.17.0.2");
        assert_eq!(host.ip(name, "lan"), "10.7.0.2");
        let inspected = host.json(&["network", "inspect", "lan"]);
        assert_eq!(inspected[0]["Scope"], "local", "{inspected}");
        assert_eq!(inspected[0]["Containers"].as_object().map(serde_json::Map::len), Some(1));
        let text = inspected.to_string();
        let other = names.iter().find(|other| *other != name).unwrap();
        assert!(text.contains(name) && !text.contains(other), "{text}");
    }
    // A third address on this host does not reach the other host.
    let third = unique_name("third");
    hosts[0].run_idle(&third, "bridge", &[]);
    assert_eq!(hosts[0].ip(&third, "bridge"), "172.17.0.3");
    hosts[0].in_container(&third, "ping -c1 -W2 172.17.0.2");
    let there = hosts[1].try_in_container(&names[1], "ping -c1 -W1 172.17.0.3");
    assert!(!there.status.success(), "bridge networks of two hosts met");
    hosts[1].netns.run("! ping -c1 -W1 172.17.0.3");

    assert!(hosts[0].ok(&["network", "ls"]).contains("only"));
    assert!(!hosts[1].ok(&["network", "ls"]).contains("only"));
    assert!(hosts[1].refused(1, &["network", "inspect", "only"]).contains("only"));
    // The network of one host is removed without an effect on the other's.
    hosts[0].ok(&["network", "disconnect", "lan", &names[0]]);
    hosts[0].ok(&["network", "rm", "lan"]);
    hosts[1].in_container(&names[1], "ping -c1 -W2 10.7.0.1");
}

/// The namespace of a container is lost, its gateway device is deleted, and the agent is restarted.
/// The bridge network and the published port then work again.
#[test]
#[ignore = "needs root"]
fn a_bridge_network_is_repaired() {
    let mut world = World::new(1);
    let (name, ip) = world.run("bridge", &["-p", "8080:80"]);
    let gateway = |host: &Host| {
        let links =
            host.netns.run("ip -o link show | cut -d: -f2 | grep -o 'cvg[0-9][0-9]*' || true");
        links.trim().to_owned()
    };
    let device = gateway(world.host());
    assert!(!device.is_empty());
    let works = |world: &World| {
        let host = world.host();
        let server = echo(&container(&name), "tcp", 80);
        wait_until(SOON, "the port to be reached", || {
            exchange(&world.external.host, "tcp", host.vtep(), 8080, 10) == "ok 10"
        });
        assert_eq!(exchange(&host.netns, "tcp", host.vtep(), 8080, 10), "ok 10");
        drop(server);
        // The agent opens the gateway device after the container is reachable.
        host.wait_ping(&name, "172.17.0.1");
        host.netns.run(&format!("ping -c1 -W2 {ip}"));
        host.in_container(&name, "ping -c1 -W2 198.51.100.9");
    };
    works(&world);
    world.host().netns.run(&format!("ip link del {device}"));
    wait_until(SOON, "the gateway device to come back", || {
        world.host().netns.succeeds(&format!("ip addr show {device} | grep -q 172.17.0.1"))
    });
    works(&world);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        world.cluster.hosts[0].stop_agent(signal);
        world.host().netns.run(&format!("ip link del {device}"));
        if signal == Signal::SIGKILL {
            culvert_tests::netns::Netns::here().run(&format!("ip netns del {name}"));
        }
        world.cluster.hosts[0].start_agent(&[]);
        world.cluster.hosts[0].wait_ready();
        wait_until(SOON, "the container to have its interface", || {
            world
                .host()
                .try_in_container(&name, "ip addr show eth0 | grep -q 172.17")
                .status
                .success()
        });
        works(&world);
    }
}

/// `purge` leaves no device, no pin, no program and no sysctl. The published port is free for the
/// host.
#[test]
#[ignore = "needs root"]
fn purge_takes_ports_and_gateways_along() {
    let mut world = World::new(1);
    let switches = "sysctl -n net.ipv4.conf.lo.route_localnet net.ipv4.conf.lo.accept_local \
                    net.ipv4.ip_forward net.ipv4.conf.up0.forwarding";
    let before = world.host().netns.run(switches);
    world.host().overlay("over", "10.0.0.0/24", &[]);
    let (name, _) = world.run("bridge", &["-p", "8080:80"]);
    world.run("over", &["-p", "8081:80"]);
    let server = echo(&container(&name), "tcp", 80);
    assert_eq!(exchange(&world.external.host, "tcp", world.host().vtep(), 8080, 10), "ok 10");
    drop(server);
    let pins =
        |host: &Host| std::fs::read_dir(host.bpffs()).map(Iterator::count).unwrap_or_default();
    assert_ne!(pins(world.host()), 0);
    world.host().ok(&["purge"]);
    let agent = world.cluster.hosts[0].agent.as_mut();
    if let Some(agent) = agent {
        agent.wait(SOON);
    }
    let host = world.host();
    let links = host.netns.run("ip -o link show | cut -d: -f2 | cut -d@ -f1 | sort");
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["lo", "up0"]);
    for ifname in ["lo", "up0"] {
        let programs = programs(&host.netns, ifname, TcAttachType::Ingress);
        assert_eq!(programs, [""; 0], "{ifname}");
    }
    assert_eq!(host.netns.run(switches), before);
    assert_eq!(pins(host), 0, "pins are left");
    assert!(!container(&name).exists());
    let own = Server::tcp(host.netns.path(), any(8080), Behaviour::Echo);
    let to = std::net::SocketAddrV4::new(host.vtep(), 8080);
    assert_eq!(sock::tcp(world.external.host.path(), to, 0, Use::Echo(10)), "ok 10");
    assert_eq!(own.seen().len(), 1);
}
