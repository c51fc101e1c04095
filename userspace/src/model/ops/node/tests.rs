//! Tests of the plans for nodes.

use super::{not_elsewhere, register_node, remove_node, restore_node};
use crate::{
    model::{
        Alive, Key, Machine, Node, View,
        ops::{Plan, Refusal},
        testing::{Cluster, delete, endpoint, name, network as net, node},
    },
    store::{Compare, LeaseId, Write},
};

/// The line of a refusal.
fn line<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    let line = result.expect_err("is refused").to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

/// The plan of an agent whose machine is not known.
fn register(view: &View, node: &Node, lease: LeaseId) -> Result<Plan, Refusal> {
    register_node(view, node, &Alive::new(node.id.clone()), lease)
}

/// The agent of a node, in its process `run` on a machine.
fn agent(node: &Node, run: &str, machine_id: &str, boot_id: &str) -> Alive {
    let machine = Machine { machine_id: machine_id.to_owned(), boot_id: boot_id.to_owned() };
    Alive { run: run.to_owned(), machine, ..Alive::new(node.id.clone()) }
}

/// Hosts with containers in the network would not reach the node. One that is registered already
/// stays, and so does one beside networks without routes.
#[test]
fn a_new_node_has_no_address_of_a_network() {
    let mut cluster = Cluster::default();
    let (first, second) = (node("host1", 1), node("host2", 2));
    let mut apart = net("apart", 257, &["192.0.2.0/25"]);
    apart.options.insert("allow_overlap".to_owned(), "true".to_owned());
    cluster.network(&apart);
    cluster.carry_out(register(&cluster.view, &first, 7).expect("plan").writes);
    cluster.network(&net("red", 256, &["192.0.2.0/24"]));
    let refused = line(register(&cluster.view, &second, 8));
    assert!(refused.contains("192.0.2.2 is an address of network 'red'"), "{refused}");
    register(&cluster.view, &first, 9).expect("a restarted agent");
}

#[test]
fn a_node_name_has_one_live_agent() {
    let mut cluster = Cluster::default();
    let (first, mut second) = (node("host1", 1), node("host1", 2));
    let plan = register(&cluster.view, &first, 7).expect("plan");
    let absent = [Key::node(&first.name), Key::alive(&first.name)].map(Compare::Absent);
    assert_eq!(plan.compares, absent);
    assert!(
        matches!(&plan.writes[0], Write::Put { key, lease: Some(7), .. } if *key == Key::alive(&first.name))
    );
    assert!(matches!(&plan.writes[1], Write::Put { lease: None, .. }));
    cluster.carry_out(plan.writes);
    assert!(cluster.view.is_alive(&first.name));

    // A restarted agent may take its node again. Its unchanged record is not written again.
    let again = register(&cluster.view, &first, 8).expect("plan");
    assert_eq!((again.compares.len(), again.writes.len()), (2, 1));
    // Another agent of that name is refused until the first one has ended.
    let taken = line(register(&cluster.view, &second, 9));
    assert!(taken.contains("node name 'host1' is taken") && taken.contains("192.0.2.1"), "{taken}");
    cluster.view.apply(&delete(Key::alive(&first.name), 50));
    let plan = register(&cluster.view, &second, 9).expect("plan");
    assert!(plan.compares.contains(&Compare::Absent(Key::alive(&first.name))));
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.nodes[&first.name].record, second);

    // An agent with the VTEP of another live agent is refused too.
    (second.name, second.id) = (name("host2"), format!("{:064x}", 3));
    let clash = line(register(&cluster.view, &second, 9));
    assert!(clash.contains("VTEP 192.0.2.2 is that of node 'host1'"), "{clash}");
    second.vtep = [127, 0, 0, 1].into();
    assert!(line(register(&cluster.view, &second, 9)).contains("loopback"));
    cluster.raw("/culvert/v1/nodes/host3", b"x");
    assert!(line(register(&cluster.view, &node("host3", 3), 9)).contains("skipped"));
}

/// A record of a live node that somebody else wrote is no reason to give the node up.
#[test]
fn a_record_that_somebody_overwrote_is_restored_by_its_agent_alone() {
    let mut cluster = Cluster::default();
    let host = node("host1", 1);
    let own = agent(&host, "first", "m1", "b1");
    cluster.carry_out(register_node(&cluster.view, &host, &own, 1).expect("plan").writes);
    let key = Key::node(&host.name);
    let other = Node { id: "9".repeat(64), vtep: [192, 0, 2, 9].into(), ..host.clone() };
    cluster.put(key.clone(), &other);
    // As a new agent it would be refused.
    assert!(line(register_node(&cluster.view, &host, &own, 1)).contains("is taken"));
    let stranger = agent(&host, "second", "m1", "b1");
    assert!(line(restore_node(&cluster.view, &host, &stranger)).contains("another one"));
    let plan = restore_node(&cluster.view, &host, &own).expect("plan");
    let revision = cluster.view.nodes[&host.name].revision;
    assert!(plan.compares.contains(&Compare::Unchanged(key.clone(), revision)));
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.nodes[&host.name].record, host);
    cluster.raw(&key, b"x");
    let plan = restore_node(&cluster.view, &host, &own).expect("plan");
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
}

#[test]
fn a_node_goes_in_transactions_that_fit() {
    let mut cluster = Cluster::default();
    let red = net("red", 256, &["10.0.0.0/16", "fd00::/64"]);
    cluster.network(&red);
    let host = node("host1", 1);
    cluster.put(Key::node(&host.name), &host);
    for n in 0..100_u8 {
        let mut ep = endpoint(&red, &format!("{n:02x}"), "host1", &format!("10.0.1.{n}"));
        ep.ipv6 = Some(format!("fd00::1:{n:x}").parse().expect("address"));
        cluster.endpoint(&ep);
    }
    cluster.endpoint(&endpoint(&red, "ff", "host2", "10.0.2.1"));
    let plans = remove_node(&cluster.view, &host.name, false).expect("plans");
    assert_eq!(plans.len(), 4, "three of endpoints, one of the node");
    // An agent that starts meanwhile is not removed; with force it is.
    let idle = Compare::Absent(Key::alive(&host.name));
    assert!(plans.iter().all(|plan| plan.compares.contains(&idle)));
    let forced = remove_node(&cluster.view, &host.name, true).expect("plans");
    assert!(forced.iter().all(|plan| !plan.compares.contains(&idle)));
    for plan in plans {
        assert!(
            plan.writes.len() <= crate::store::MAX_OPS
                && plan.compares.len() <= crate::store::MAX_OPS
        );
        cluster.carry_out(plan.writes);
    }
    assert!(cluster.view.nodes.is_empty());
    assert_eq!(cluster.view.endpoints_in(&red.name).count(), 1);
    assert_eq!(cluster.view.ipam.count_in(&red.name), 1);

    assert!(line(remove_node(&cluster.view, &host.name, false)).contains("unknown"));
    cluster.put(Key::node(&host.name), &host);
    cluster.put(Key::alive(&host.name), &Alive::new(host.id.clone()));
    assert!(line(remove_node(&cluster.view, &host.name, false)).contains("is alive"));
    assert_eq!(remove_node(&cluster.view, &host.name, true).expect("plans").len(), 1);
}

#[test]
fn a_copy_of_a_host_that_is_alive_is_refused() {
    let mut cluster = Cluster::default();
    let host = node("host1", 1);
    let first = agent(&host, "first", "m1", "b1");
    cluster.carry_out(register_node(&cluster.view, &host, &first, 1).expect("plan").writes);

    // A restart, and a restart by a version that did not record process and machine.
    for again in [agent(&host, "second", "m1", "b1"), agent(&host, "second", "", "")] {
        register_node(&cluster.view, &host, &again, 2).expect("the same machine");
    }
    // The agent itself, at a new address: it holds the lease.
    let moved = Node { vtep: [192, 0, 2, 9].into(), ..host.clone() };
    register_node(&cluster.view, &moved, &first, 2).expect("the same process");

    let cases = [
        ("another address", &moved, agent(&host, "second", "m1", "b1")),
        ("another machine", &host, agent(&host, "second", "m2", "b2")),
        ("another machine with the same machine-id", &host, agent(&host, "second", "m1", "b2")),
        ("a container of the machine", &host, agent(&host, "second", "m2", "b1")),
    ];
    for (what, node, copy) in &cases {
        let refused = register_node(&cluster.view, node, copy, 2).expect_err(what);
        assert!(matches!(refused, Refusal::Elsewhere(_)), "{what}: {refused}");
        assert!(
            refused.to_string().contains("node 'host1' is alive at VTEP 192.0.2.1"),
            "{refused}"
        );
        assert_eq!(not_elsewhere(&cluster.view, node.vtep, copy), Err(refused));
    }
    // A copy under another name is refused as well.
    let renamed = Node { name: name("host2"), ..moved.clone() };
    let refused = register_node(&cluster.view, &renamed, &agent(&host, "x", "m2", "b2"), 2);
    assert!(matches!(refused, Err(Refusal::Elsewhere(_))), "{refused:?}");

    // Without its lease the first agent is gone: a host may move.
    cluster.view.apply(&delete(Key::alive(&host.name), 50));
    for (what, node, copy) in &cases {
        register_node(&cluster.view, node, copy, 2).expect(what);
    }
}

#[test]
fn of_two_copies_that_start_at_once_one_plans_again() {
    let mut cluster = Cluster::default();
    let host = node("host1", 1);
    cluster.put(Key::node(&host.name), &host);
    // Neither is alive, so both may start. The record of the node would stay as it is.
    let plan = |view: &View, run| register_node(view, &host, &agent(&host, run, "", ""), 1);
    let (one, two) = (plan(&cluster.view, "one"), plan(&cluster.view, "two"));
    let idle = Compare::Absent(Key::alive(&host.name));
    assert!(
        one.expect("plan").compares.contains(&idle) && two.expect("plan").compares.contains(&idle)
    );
    // A restart replaces the lease that it has seen.
    cluster.put(Key::alive(&host.name), &agent(&host, "one", "", ""));
    let same = Compare::Unchanged(Key::alive(&host.name), cluster.view.revision);
    assert!(plan(&cluster.view, "two").expect("plan").compares.contains(&same));
    // A record that cannot be read is replaced.
    cluster.raw(&Key::alive(&host.name), b"x");
    let mut fresh = cluster.view.clone();
    fresh.alive.clear();
    assert_eq!(plan(&fresh, "two").expect("plan").compares.len(), 1);
}

#[test]
fn a_host_does_not_leave_its_node_by_another_name() {
    let mut cluster = Cluster::default();
    let old = node("old", 1);
    cluster.put(Key::node(&old.name), &old);
    let new = Node { name: name("new"), ..old.clone() };
    let refused = line(register(&cluster.view, &new, 1));
    assert!(refused.contains("this host is node 'old' in the store"), "{refused}");
    assert!(refused.contains("start with --node old"), "{refused}");
    register(&cluster.view, &old, 1).expect("the advice works");
    // An earlier version has let it happen: the present name stays.
    cluster.put(Key::node(&new.name), &new);
    register(&cluster.view, &new, 1).expect("plan");
}

#[test]
fn a_node_that_is_not_there_or_cannot_be_read_is_not_removed() {
    let mut cluster = Cluster::default();
    cluster.raw("/culvert/v1/nodes/host3", b"x");
    for (node, part) in [("host3", "delete that key first"), ("host4", "'culvert node ls'")] {
        let line = line(remove_node(&cluster.view, &name(node), true));
        assert!(line.contains(part), "{line}");
    }
}
