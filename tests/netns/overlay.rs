//! Containers of one overlay network on different hosts.

use culvert_tests::{
    cluster::{Cluster, unique_name},
    netns::is_root,
};

/// The article's overlay chapter: a network made on one host is seen on the
/// other, and containers on both reach each other.
#[test]
fn two_hosts_one_overlay() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::new(2);
    let [one, two] = &cluster.hosts[..] else { unreachable!() };
    let (over1, over2) = (unique_name("over1"), unique_name("over2"));
    let id = one.ok(&["network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "overlaynet1"]);
    assert_eq!(id.len(), 64, "{id}");
    cluster.wait_network("overlaynet1");

    two.run_idle(&over2, "overlaynet1", &[]);
    one.run_idle(&over1, "overlaynet1", &[]);
    assert_eq!(two.ip(&over2, "overlaynet1"), "10.0.0.2");
    assert_eq!(one.ip(&over1, "overlaynet1"), "10.0.0.3");

    one.wait_ping(&over1, "10.0.0.2");
    two.in_container(&over2, "ping -c2 -i0.2 -W1 10.0.0.3");

    let addresses = two.in_container(&over2, "ip addr show eth0");
    assert!(addresses.contains("mtu 1450"), "{addresses}");
    assert!(addresses.contains("link/ether 02:42:0a:00:00:02"), "{addresses}");
    assert!(addresses.contains("inet 10.0.0.2/24"), "{addresses}");
    assert!(addresses.contains("inet6 fe80::42:aff:fe00:2/64"), "{addresses}");
}
