//! Nodes: copies of a host, hosts that are gone.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    fake::{Paper, Running, World, eventually, name, run, stored, two_hosts},
    refusals::assert_refused,
};
use crate::{
    agent::{files, identity, purge},
    api::{
        Backend as _,
        types::{Connect, ErrorKind},
    },
    model::{Alive, Machine, Node, witness_key},
    store::new_id,
};

/// Longer than the TTL of a lease, and shorter than the time limit of a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent of `node` on another machine than the test's.
fn elsewhere(node: &Node) -> Alive {
    let machine = Machine { machine_id: "c".repeat(32), boot_id: "another boot".to_owned() };
    Alive { machine, ..identity::alive(node.id.clone(), &new_id()) }
}

/// The host of `running` with another address.
fn moved(running: &Running) -> Node {
    Node { vtep: [192, 0, 2, 77].into(), ..running.shared.node.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_live_host_is_refused_and_a_host_that_is_gone_may_move() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let before = stored(&world).await;
    let copies = [
        (moved(&one), identity::alive(one.shared.node.id.clone(), &new_id())),
        (one.shared.node.clone(), elsewhere(&one.shared.node)),
    ];
    let mut entries = Vec::new();
    for (node, alive) in copies {
        entries.push(world.prepare_as(node, alive, &Paper::new()));
    }
    // The second host crashes and comes back at another address. It waits for its former lease.
    let (node, alive) = (moved(&two), elsewhere(&two.shared.node));
    two.crash().await;
    let (back, entry) = world.prepare_as(node, alive, &Paper::new());
    timeout(PATIENCE, entry).await.unwrap().unwrap().unwrap();
    assert!(!back.shared.ending.shutdown.is_cancelled());

    for (copy, entry) in entries {
        let refused = timeout(PATIENCE, entry).await.unwrap().unwrap().unwrap_err();
        assert!(refused.contains("node 'host1' is alive at VTEP 192.0.2.1"), "{refused}");
        let dir = copy.shared.options.state_dir.display().to_string();
        assert!(refused.contains(&format!("'rm -r {dir}'")), "{refused}");
        // The second copy uses the state directory of the original.
        if copy.shared.options.state_dir != one.shared.options.state_dir {
            assert_eq!(files::kept_name(&copy.shared.options.state_dir).unwrap(), None);
        }
        copy.stop().await;
    }
    let after = stored(&world).await;
    assert_eq!(after.nodes[&name("host1")], before.nodes[&name("host1")]);
    assert_eq!(after.alive[&name("host1")], before.alive[&name("host1")]);
    assert_eq!(after.endpoints, before.endpoints);
    assert_eq!(after.nodes[&name("host2")].vtep.octets(), [192, 0, 2, 77]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_crashed_comes_back_at_once_on_its_machine() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let node = one.shared.node.clone();
    one.crash().await;
    assert!(stored(&world).await.is_alive(&node.name), "the lease lives");
    let (again, entry) =
        world.prepare_as(node.clone(), identity::alive(node.id.clone(), &new_id()), &Paper::new());
    // The timeout is shorter than the TTL of the lease.
    timeout(Duration::from_secs(5), entry).await.unwrap().unwrap().unwrap();
    assert_eq!(stored(&world).await.alive[&node.name].run, again.shared.alive.run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_copy_leaves_its_original_in_the_store() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let original = one.shared.node.clone();
    let before = stored(&world).await;

    // The state directory of the copy, purged while no agent ran: the next agent is a new one.
    let fresh = Node {
        name: name("host9"),
        id: "9".repeat(64),
        vtep: [192, 0, 2, 9].into(),
        ..original.clone()
    };
    let dir = world.state_dir(&fresh);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("node-id"), &original.id).unwrap();
    files::keep_name(&dir, &original.name).unwrap();
    files::mark_purged(&dir).unwrap();
    assert_ne!(files::instance_id(&dir).unwrap(), original.id);
    assert_eq!(files::kept_name(&dir).unwrap(), None);

    let (copy, entry) = world.prepare_as(fresh.clone(), elsewhere(&fresh), &Paper::new());
    entry.await.unwrap().unwrap();
    purge::finish(&copy.shared, world.store.as_ref()).await.unwrap();
    assert_eq!(files::purged_id(&dir), None);
    let after = stored(&world).await;
    assert_eq!(after.nodes[&original.name], before.nodes[&original.name]);
    assert_eq!(after.endpoints, before.endpoints);
    assert_eq!(after.nodes.len(), 2);
    copy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_its_own_witness_at_once_until_it_is_purged() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let key = |running: &Running| witness_key(&running.shared.node.id);
    let witnesses = async || {
        let there = world.store.snapshot(&witness_key("")).await.unwrap();
        there.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    // Much sooner than it is renewed.
    let both = [key(&one), key(&two)];
    eventually("both are written", || async { witnesses().await == both }).await;
    one.agent.purge().await.unwrap();
    assert_eq!(witnesses().await, [key(&two)]);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_copy_is_alive_does_not_purge_the_copy() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    // The host was cut off for so long that its copy could start.
    let node = moved(&one);
    let taken = elsewhere(&node);
    let lease = world.store.grant(Duration::from_secs(60)).await.unwrap();
    let mut view = stored(&world).await;
    view.alive.clear();
    let mut plan = crate::model::ops::register_node(&view, &node, &taken, lease).unwrap();
    plan.compares.clear();
    world.store.commit(plan.compares, plan.writes).await.unwrap();

    let refused = one.agent.purge().await;
    assert_refused(refused, ErrorKind::Conflict, "to purge this host alone, stop the agent");
    assert!(!one.shared.ending.shutdown.is_cancelled());
    let view = stored(&world).await;
    assert_eq!(view.nodes[&node.name].record, node);
    assert_eq!(view.endpoints.count(), 1);
    eventually("the host tells that it is not in the store", || async {
        let problems = one.agent.status().await.unwrap().problems;
        problems.iter().any(|line| line.contains("is a copy of that node's"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_gone_is_removed_with_its_addresses() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    assert_eq!(two.run("db", "blue").await.unwrap().networks[0].ip, "10.0.1.3");
    two.run("own", "bridge").await.unwrap();
    one.eventually("host 2 is a peer", |state| {
        !state.tables.flood_remote.is_empty() && !state.tables.vteps.is_empty()
    })
    .await;
    eventually("host 1 knows what host 2 has", || async {
        one.agent.nodes().await.unwrap().iter().any(|row| row.endpoints == 2)
    })
    .await;
    let rows = one.agent.nodes().await.unwrap();
    let row = |index: usize| {
        let row = &rows[index];
        (row.name.as_str(), row.ip.as_str(), row.alive, row.gone_s, row.endpoints, row.here)
    };
    assert_eq!(row(0), ("host1", "192.0.2.1", true, None, 1, true));
    assert_eq!(row(1), ("host2", "192.0.2.2", true, None, 2, false));

    let gone = name("host2");
    let before = stored(&world).await;
    for (refused, kind, part) in [
        (one.agent.node_remove(&gone, false).await, ErrorKind::Conflict, "'host2' is alive: stop"),
        (
            one.agent.node_remove(&name("host1"), true).await,
            ErrorKind::Conflict,
            "is this host: 'culvert purge'",
        ),
        (one.agent.node_remove(&name("host3"), true).await, ErrorKind::NotFound, "is unknown"),
    ] {
        assert_refused(refused, kind, part);
    }
    assert_eq!(stored(&world).await.endpoints, before.endpoints);

    two.stop().await;
    eventually("its end was seen", || async {
        let rows = one.agent.nodes().await.unwrap();
        rows.iter().any(|row| row.name == "host2" && !row.alive && row.gone_s.is_some())
    })
    .await;
    one.agent.node_remove(&gone, false).await.unwrap();
    one.eventually("nothing is sent to it", |state| {
        state.tables.flood_remote.is_empty()
            && state.tables.vteps.is_empty()
            && state.tables.underlay.is_empty()
    })
    .await;
    let view = stored(&world).await;
    assert_eq!((view.nodes.len(), view.endpoints.count(), view.networks.len()), (1, 1, 1));
    assert_eq!(view.ipam.count_in(&name("blue")), 1);
    assert_eq!(one.agent.nodes().await.unwrap().len(), 1);
    assert_eq!(one.run("next", "blue").await.unwrap().networks[0].ip, "10.0.1.3");
}

/// Waits until an agent tells that its node had been removed, and has no device pair left.
async fn told(running: &Running) {
    eventually("it is told", || async {
        let problems = running.agent.status().await.unwrap().problems;
        problems.iter().any(|line| line.contains("had been removed from the store"))
    })
    .await;
    running.eventually("its containers have no network", |state| state.veths.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_removed_while_it_was_away_gives_up_its_addresses() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    assert_eq!(two.run("db", "blue").await.unwrap().networks[0].ip, "10.0.1.2");
    // Nobody reaches the host, but its lease lives: its agent still reaches the store.
    one.agent.node_remove(&name("host2"), true).await.unwrap();
    assert_eq!(one.run("web", "blue").await.unwrap().networks[0].ip, "10.0.1.2");
    told(&two).await;
    assert!(stored(&world).await.is_alive(&name("host2")));
    let connect = Connect { container: name("db"), ip: None, more_ips: Vec::new(), mac: None };
    let row = two.agent.connect(&name("blue"), connect.clone()).await.unwrap();
    assert_eq!(row.networks[0].ip, "10.0.1.3");

    // Removed while no agent ran there.
    let paper = Arc::clone(&two.paper);
    two.crash().await;
    assert_eq!(paper.state().veths.len(), 1);
    one.agent.node_remove(&name("host2"), true).await.unwrap();
    assert_eq!(one.run("other", "blue").await.unwrap().networks[0].ip, "10.0.1.3");
    let back = world.start(2, &paper).await.ready().await;
    told(&back).await;
    let row = back.agent.connect(&name("blue"), connect).await.unwrap();
    assert_eq!(row.networks[0].ip, "10.0.1.4");

    // A host that was not removed has nothing to tell.
    back.stop().await;
    let again = world.start(2, &paper).await.ready().await;
    assert_eq!(again.agent.status().await.unwrap().problems, Vec::<String>::new());
    again.agent.container_create(run("more", "blue")).await.unwrap();
}
