//! VXLAN of another system on Culvert's UDP port.

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, wait_until},
};
use nix::sys::signal::Signal;

/// Makes an overlay as Swarm does: the device is made in the host's namespace, where its socket
/// stays, and is moved into another namespace.
fn other_overlay(host: &Host, peer: &Host, ip: &str) -> Netns {
    let inner = Netns::new("swarm");
    host.netns.run(&format!(
        "ip link add vx9 type vxlan id 9 dstport 4789 local {} remote {} dev up0 && ip link set vx9 netns {}",
        host.vtep(),
        peer.vtep(),
        inner.name()
    ));
    inner.run(&format!("ip addr add {ip}/24 dev vx9 && ip link set vx9 up"));
    inner
}

/// Checks that the agents pass the frames of the other overlay on, count them, and report it.
fn is_passed_on(cluster: &Cluster, inner: &[Netns; 2]) {
    let two = &cluster.hosts[1];
    let before = two.counter("from_underlay", "foreign_vxlan");
    let dropped = two.counter("from_underlay", "unknown_vni");
    inner[0].run("ping -c3 -i0.2 -W9 10.99.0.2");
    assert!(two.counter("from_underlay", "foreign_vxlan") >= before + 3);
    assert_eq!(two.counter("from_underlay", "unknown_vni"), dropped);
    let findings = two.findings();
    let mut findings = findings.as_array().into_iter().flatten();
    let told = findings.any(|finding| {
        finding["check"] == "port"
            && finding["level"] == "warning"
            && finding.to_string().contains("another program")
    });
    assert!(told, "{}", two.findings());
}

fn both_overlays(cluster: &Cluster) -> [Netns; 2] {
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    [other_overlay(one, two, "10.99.0.1"), other_overlay(two, one, "10.99.0.2")]
}

#[test]
#[ignore = "needs root"]
fn vxlan_of_another_system_on_the_same_port_is_passed_on() {
    let mut cluster = Cluster::without_agents(2, 1500);
    let inner = both_overlays(&cluster);
    inner[0].run("ping -c1 -W9 10.99.0.2");
    for host in &mut cluster.hosts {
        host.start_agent(&[]);
        host.wait_ready();
    }
    is_passed_on(&cluster, &inner);

    // A network of Culvert exists beside the other overlay.
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    one.overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("beside1"), unique_name("beside2"));
    one.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    two.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    one.wait_ping(&first, "10.0.0.3");
    inner[0].run("ping -c1 -W9 10.99.0.2");
}

/// The other system makes its devices after the agent has made its own.
#[test]
#[ignore = "needs root"]
fn another_system_can_use_the_same_port_after_the_agent() {
    let mut cluster = Cluster::new(2);
    let inner = both_overlays(&cluster);
    wait_until(SOON, "the other overlay", || {
        inner[0].try_run("ping -c1 -W1 10.99.0.2").status.success()
    });
    is_passed_on(&cluster, &inner);

    // The next agent does not see the devices, which are in other namespaces.
    for host in &mut cluster.hosts {
        host.stop_agent(Signal::SIGKILL);
        host.start_agent(&[]);
        host.wait_ready();
    }
    is_passed_on(&cluster, &inner);
}
