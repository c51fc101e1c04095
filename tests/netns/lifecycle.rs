//! Agents that stop, crash, come back; hosts that lose their namespaces;
//! containers that come and go.

use std::process::Command;

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Process, programs, wait_until},
};
use nix::sys::signal::Signal;

fn overlay_pair() -> (Cluster, String, String) {
    let cluster = Cluster::new(2);
    cluster.hosts[0].ok(&["network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "net"]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("life1"), unique_name("life2"));
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    (cluster, first, second)
}

/// A ping every 10 ms, until it is stopped.
pub(crate) fn start_pings(name: &str, ip: &str) -> Process {
    let mut command = Command::new("nsenter");
    command.args([&format!("--net=/run/netns/{name}"), "ping", "-i", "0.01", "-W", "1", ip]);
    Process::spawn(command)
}

/// How many of the pings went unanswered.
pub(crate) fn lost(mut pings: Process) -> u64 {
    pings.stop(Signal::SIGINT, SOON);
    let text = pings.stdout();
    let summary = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or("");
    let mut numbers = summary
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse::<u64>().ok());
    match (numbers.next(), numbers.next()) {
        // The last request may be under way when the pings are stopped.
        (Some(sent), Some(received)) => (sent - received).saturating_sub(1),
        _ => unreachable!("ping: {text}{}", pings.stderr()),
    }
}

/// Stop, crash and restart of an agent lose no packet.
#[test]
#[ignore = "needs root"]
fn traffic_flows_while_the_agent_is_replaced() {
    let (mut cluster, first, _) = overlay_pair();
    let pings = start_pings(&first, "10.0.0.3");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for host in &mut cluster.hosts {
            host.stop_agent(signal);
        }
        cluster.hosts[0].in_container(&first, "ping -c5 -i0.05 -W1 10.0.0.3");
        for host in &mut cluster.hosts {
            host.start_agent(&[]);
        }
        for host in &mut cluster.hosts {
            host.wait_ready();
        }
        cluster.hosts[0].in_container(&first, "ping -c5 -i0.05 -W1 10.0.0.3");
    }
    assert_eq!(lost(pings), 0);
}

/// A restarted agent keeps its state, prunes objects that were removed meanwhile, and applies the
/// changes of the other host.
#[test]
#[ignore = "needs root"]
fn a_restarted_agent_catches_up() {
    let (mut cluster, first, second) = overlay_pair();
    let third = unique_name("life3");
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    cluster.hosts[1].ok(&["rm", "-f", &second]);
    cluster.hosts[1].run_idle(&third, "net", &["--ip", "10.0.0.7"]);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    cluster.hosts[0].wait_ping(&first, "10.0.0.7");
    wait_until(SOON, "the stale FDB entry to go", || {
        !cluster.hosts[0].json(&["fdb", "show"]).to_string().contains("02:42:0a:00:00:03")
    });
}

/// The namespace is lost, as in a reboot: the agent brings it back from the store.
#[test]
#[ignore = "needs root"]
fn a_lost_namespace_comes_back() {
    let (mut cluster, first, _) = overlay_pair();
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    // What a reboot does: namespaces and pins are gone, the state directory is not.
    let bpffs = cluster.hosts[0].bpffs();
    let script = format!("umount -l {}; ip netns del {first}", bpffs.display());
    culvert_tests::netns::Netns::here().run(&script);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    wait_until(SOON, "the sandbox to be there again", || {
        cluster.hosts[0].try_in_container(&first, "ip addr show eth0").status.success()
    });
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
}

/// A veth, a route or the cause of a map entry is deleted: the agent repairs it.
#[test]
#[ignore = "needs root"]
fn what_is_deleted_by_hand_is_repaired() {
    let (cluster, first, _) = overlay_pair();
    let host = &cluster.hosts[0];
    let veth = host
        .netns
        .run("ip -o link show | grep -o 'cv[0-9a-f]\\{12\\}' | head -n1")
        .trim()
        .to_owned();
    host.netns.run(&format!("ip link del {veth}"));
    host.wait_ping(&first, "10.0.0.3");
}

/// Foreign devices, routes and names are left alone by start, work and purge,
/// and purge leaves nothing of ours.
#[test]
#[ignore = "needs root"]
fn purge_removes_ours_and_nothing_else() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.netns.run(
        "ip link add cvforeign0 type veth peer name cvforeign1; ip link set cvforeign0 up; \
         ip addr add 198.51.100.1/24 dev cvforeign0; ip route add 203.0.113.0/24 dev cvforeign0",
    );
    let state = |host: &Host| {
        let links = host.netns.run("ip -o link show | sed 's/@.*//; s/.*: //' | sort");
        let routes = host.netns.run("ip route; ip -6 route | grep -v ' cv' | sort");
        (links, routes)
    };
    let before = state(host);
    host.start_agent(&[]);
    host.wait_ready();
    host.ok(&["network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "net"]);
    let name = unique_name("life1");
    host.run_idle(&name, "net", &[]);
    assert_ne!(state(host).0, before.0);
    assert_eq!(programs(&host.netns, "up0", TcAttachType::Ingress), ["from_underlay"]);
    host.ok(&["purge"]);
    wait_until(SOON, "the agent to exit", || {
        host.agent.as_mut().is_none_or(|agent| !agent.is_running())
    });
    assert_eq!(state(host), before);
    assert!(!std::path::Path::new(&format!("/run/netns/{name}")).exists());
    assert_eq!(programs(&host.netns, "up0", TcAttachType::Ingress), [""; 0]);
}
