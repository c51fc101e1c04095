//! VXLAN of another system on Culvert's UDP port.

use culvert_tests::{
    cluster::{Cluster, Host, unique_name},
    netns::Netns,
};

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

#[test]
#[ignore = "needs root"]
fn vxlan_of_another_system_on_the_same_port_is_passed_on() {
    let mut cluster = Cluster::without_agents(2, 1500);
    let inner = {
        let [one, two] = &cluster.hosts[..] else { unreachable!() };
        [other_overlay(one, two, "10.99.0.1"), other_overlay(two, one, "10.99.0.2")]
    };
    inner[0].run("ping -c1 -W2 10.99.0.2");
    for host in &mut cluster.hosts {
        host.start_agent(&[]);
        host.wait_ready();
    }
    inner[0].run("ping -c3 -i0.2 -W2 10.99.0.2");
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    assert!(two.counter("from_underlay", "foreign_vxlan") >= 3);
    assert_eq!(two.counter("from_underlay", "unknown_vni"), 0);

    // A network of Culvert exists beside the other overlay.
    one.ok(&["network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "net"]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("beside1"), unique_name("beside2"));
    one.run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    two.run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    one.wait_ping(&first, "10.0.0.3");
    inner[0].run("ping -c1 -W2 10.99.0.2");

    // `doctor` reports the other overlay.
    let told = |host: &Host| {
        let findings = host.json(&["doctor"]);
        let findings = findings.as_array().unwrap().iter();
        findings.filter(|finding| finding["check"] == "port").any(|finding| {
            finding["level"] == "warning" && finding.to_string().contains("another program")
        })
    };
    assert!(told(two), "{}", two.ok(&["doctor"]));
}
