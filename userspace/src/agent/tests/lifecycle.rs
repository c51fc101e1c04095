//! State of hosts while containers, agents and stores start and stop.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::datapath::entry::{FdbEntry, LearnedEntry, VtepKey};
use culvert_common::abi::{EndpointInfo, FdbKey, FloodKey, NeighKey, NetworkInfo};

use super::fake::{Paper, World, eventually, name, run, stored, two_hosts};
use crate::{
    agent::platform::{HostEvent, PlugError},
    api::{
        Backend as _,
        types::{ContainerState, ErrorKind},
    },
};

const VNI: u32 = 256;

/// MAC of the endpoint with the address 10.0.1.N.
fn mac(n: u8) -> [u8; 6] {
    [0x02, 0x42, 10, 0, 1, n]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_in_the_maps_of_both_hosts_and_of_no_third() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let third = world.start(3, &Paper::new()).await.ready().await;

    let row = one.run("web", "blue").await.unwrap();
    assert_eq!(row.networks[0].ip, "10.0.1.2");
    assert_eq!(row.mode, "overlay");
    // When the request returns, the endpoint is on this host.
    let ifindex = {
        let state = one.paper.state();
        let ifindex = *state.veths.values().next().unwrap();
        assert_eq!(state.tables.endpoints[&ifindex].mac, mac(2));
        assert_eq!(state.tables.flood_local[&FloodKey { vni: VNI, index: 0 }], ifindex);
        assert_eq!(state.tables.fdb[&FdbKey::new(VNI, mac(2))], FdbEntry { ifindex, vtep: [0; 4] });
        ifindex
    };
    // A host without an endpoint in the network has no map entries of it.
    assert!(two.paper.state().tables.is_empty());

    two.run("db", "blue").await.unwrap();
    {
        let state = two.paper.state();
        let entry = state.tables.fdb[&FdbKey::new(VNI, mac(2))];
        assert_eq!(entry, FdbEntry { ifindex: 0, vtep: [192, 0, 2, 1] });
        assert_eq!(state.tables.networks[&VNI].remote_vteps, 1);
        assert!(state.tables.vteps.contains_key(&VtepKey { vni: VNI, ip: [192, 0, 2, 1] }));
        assert!(state.tables.neighbours.contains_key(&NeighKey::v4(VNI, [10, 0, 1, 2])));
        assert!(state.tables.underlay.contains_key(&[192, 0, 2, 1]));
    }
    one.eventually("host 1 floods to host 2", |state| {
        state.tables.flood_remote.get(&FloodKey { vni: VNI, index: 0 }) == Some(&[192, 0, 2, 2])
    })
    .await;

    one.agent.container_remove(&name("web"), false).await.unwrap();
    {
        let state = one.paper.state();
        assert!(state.tables.is_empty(), "{:?}", state.tables);
        assert!(state.veths.is_empty() && state.namespaces.is_empty());
        assert!(!state.attached.contains(&ifindex));
    }
    two.eventually("host 2 has forgotten host 1", |state| {
        state.tables.vteps.is_empty() && state.tables.underlay.is_empty()
    })
    .await;
    assert!(third.paper.state().ops.is_empty(), "the third host had nothing to do");

    two.agent.container_remove(&name("db"), false).await.unwrap();
    two.agent.network_remove(&name("blue")).await.unwrap();
    let view = stored(&world).await;
    assert!(view.networks.is_empty() && view.endpoints.is_empty() && view.ipam.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_writes_only_what_changed_meanwhile() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    one.eventually("host 1 knows db", |state| {
        state.tables.fdb.contains_key(&FdbKey::new(VNI, mac(3)))
    })
    .await;

    let paper = Arc::clone(&one.paper);
    one.stop().await;
    let (tables, veths) = {
        let mut state = paper.state();
        state.ops.clear();
        (state.tables.clone(), state.veths.clone())
    };
    let again = world.start(1, &paper).await.ready().await;
    assert_eq!(paper.state().ops, [], "nothing had changed");
    assert_eq!(paper.state().tables, tables);
    assert_eq!(paper.state().veths, veths);
    assert_eq!(again.agent.containers().await.unwrap()[0].name, "web");

    again.stop().await;
    two.run("cache", "blue").await.unwrap();
    world.start(1, &paper).await.ready().await;
    let state = paper.state();
    assert_eq!(state.tables.fdb[&FdbKey::new(VNI, mac(4))].vtep, [192, 0, 2, 2]);
    assert!(state.ops.iter().all(|op| !op.is_removal()), "{:?}", state.ops);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strays_go_and_what_is_there_stays() {
    let world = World::new().await;
    let paper = Paper::new();
    {
        let mut state = paper.state();
        state.veths.insert("dead".to_owned(), 7);
        state.attached.extend([7, 8]);
        let info = EndpointInfo { vni: 999, ..bytemuck::Zeroable::zeroed() };
        state.tables.endpoints.insert(7, info);
        let network = NetworkInfo { local_endpoints: 1, ..bytemuck::Zeroable::zeroed() };
        state.tables.networks.insert(999, network);
        state.tables.flood_local.insert(FloodKey { vni: 999, index: 0 }, 7);
        state.tables.underlay.insert([9; 4], Default::default());
    }
    let one = world.start(1, &paper).await.ready().await;
    one.eventually("strays are gone", |state| {
        state.tables.is_empty() && state.veths.is_empty() && state.attached.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_somebody_changes_are_made_good() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let key = FdbKey::new(VNI, mac(2));
    let right = one.paper.state().tables.clone();
    {
        let mut state = one.paper.state();
        state.tables.fdb.clear();
        state.tables.networks.get_mut(&VNI).unwrap().flags = 9;
        state.tables.fdb.insert(FdbKey::new(5, [9; 6]), FdbEntry { ifindex: 1, vtep: [0; 4] });
    }
    one.eventually("anti-entropy", |state| state.tables == right).await;
    assert!(one.paper.state().tables.fdb.contains_key(&key));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_plug_leaves_the_state_as_before() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let before = stored(&world).await;
    let refusal = PlugError::Refused(ErrorKind::Conflict, "it will not fit".to_owned());
    one.paper.state().refuse_plug = Some(refusal);
    let error = one.run("web", "blue").await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Conflict, "it will not fit"));
    {
        let state = one.paper.state();
        assert!(state.tables.is_empty() && state.veths.is_empty());
        assert!(state.namespaces.is_empty(), "the sandbox is gone, too");
    }
    assert!(one.agent.containers().await.unwrap().is_empty());
    let after = stored(&world).await;
    assert_eq!((after.endpoints, after.ipam), (before.endpoints, before.ipam));

    one.paper.state().refuse_plug = None;
    assert_eq!(one.run("web", "blue").await.unwrap().networks[0].ip, "10.0.1.2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owned_sandbox_comes_back_with_its_address() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let row = one.run("web", "blue").await.unwrap();
    one.run("idle", "none").await.unwrap();
    // After a reboot only the state directory and the store are left.
    let paper = Paper::new();
    one.stop().await;
    let again = world.start(1, &paper).await.ready().await;
    again.eventually("web is back", |state| state.tables.endpoints.len() == 1).await;
    assert_eq!(paper.state().namespaces.len(), 2);
    let rows = again.agent.containers().await.unwrap();
    assert_eq!((rows[0].name.as_str(), rows[0].mode.as_str()), ("idle", "none"));
    assert_eq!(rows[1].networks, row.networks);

    // The same while the agent runs.
    {
        let mut state = paper.state();
        state.namespaces.clear();
        state.veths.clear();
    }
    paper.tell(HostEvent::Lost);
    again.eventually("web is back again", |state| state.veths.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_of_somebody_else_is_waited_for() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let theirs = std::path::PathBuf::from("/paper/theirs");
    let present = |present: bool| {
        let mut state = one.paper.state();
        if present {
            state.namespaces.insert(theirs.clone(), BTreeSet::new());
        } else {
            state.namespaces.remove(&theirs);
            let gone: Vec<_> = state.veths.values().copied().collect();
            state.veths.clear();
            drop(state);
            for ifindex in gone {
                one.paper.tell(HostEvent::LinkGone(ifindex));
            }
        }
    };
    present(true);
    let mut request = run("guest", "blue");
    request.netns = Some(theirs.clone());
    assert_eq!(one.agent.container_create(request).await.unwrap().mode, "attached");

    present(false);
    let problem = || async {
        let problems = one.agent.status().await.unwrap().problems;
        problems.iter().any(|line| line.contains("'guest'") && line.contains("is not there"))
    };
    eventually("the absence is told", problem).await;
    assert!(one.paper.state().tables.endpoints.is_empty());
    present(true);
    one.eventually("it is plugged again", |state| state.tables.endpoints.len() == 1).await;
    eventually("the problem is over", || async { !problem().await }).await;

    one.agent.disconnect(&name("blue"), &name("guest")).await.unwrap();
    assert!(one.agent.containers().await.unwrap().is_empty());
    assert!(one.paper.state().namespaces.contains_key(&theirs), "not ours to remove");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learned_entries_age_and_go_with_their_network() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let mut request = super::fake::network("green");
    request.learning = true;
    one.agent.network_create(request).await.unwrap();
    one.run("web", "green").await.unwrap();
    two.run("db", "green").await.unwrap();
    one.eventually("host 2 is a peer", |state| !state.tables.vteps.is_empty()).await;
    let second = 1_000_000_000;
    let seen = |ago: u64, vtep: [u8; 4]| LearnedEntry {
        last_seen_ns: 1_000 * second - ago * second,
        vtep,
        ifindex: 0,
    };
    let (fresh, old, nowhere) =
        (FdbKey::new(257, [2; 6]), FdbKey::new(257, [4; 6]), FdbKey::new(999, [6; 6]));
    one.paper.state().learned.extend([
        (fresh, seen(10, [192, 0, 2, 2])),
        (old, seen(301, [192, 0, 2, 2])),
        (nowhere, seen(1, [192, 0, 2, 2])),
    ]);
    one.eventually("two are forgotten", |state| state.learned.len() == 1).await;
    let rows = one.agent.fdb().await.unwrap();
    let row = rows.iter().find(|row| row.kind == "learned").unwrap();
    assert_eq!((row.network.as_str(), row.dst.as_str()), ("green", "192.0.2.2"));
    assert_eq!(row.age_s, Some(10));

    two.agent.container_remove(&name("db"), false).await.unwrap();
    one.eventually("it went with its VTEP", |state| state.learned.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purge_leaves_nothing_of_the_node() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    one.run("idle", "none").await.unwrap();
    two.run("db", "blue").await.unwrap();
    one.agent.purge().await.unwrap();
    assert!(one.shared.ending.shutdown.is_cancelled());
    {
        let state = one.paper.state();
        assert!(state.purged && state.veths.is_empty() && state.namespaces.is_empty());
    }
    let view = stored(&world).await;
    assert_eq!(view.nodes.keys().collect::<Vec<_>>(), [&name("host2")]);
    assert_eq!(view.endpoints_in(&name("blue")).count(), 1);
    two.eventually("host 2 has forgotten it", |state| state.tables.vteps.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_ends_is_shown_and_removed_if_so_asked() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let mut request = run("once", "blue");
    request.auto_remove = true;
    one.agent.container_create(request).await.unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    let running = ContainerState::Running { pid, log: None, supervisor: None, id: None };
    one.agent.container_state(&name("web"), running.clone()).await.unwrap();
    one.agent.container_state(&name("once"), running).await.unwrap();
    let rows = one.agent.containers().await.unwrap();
    assert_eq!(rows.iter().map(|row| row.pid).collect::<Vec<_>>(), [Some(pid), Some(pid)]);
    let refused = one.agent.container_remove(&name("web"), false).await.unwrap_err();
    assert!(refused.message.contains("is running"), "{refused}");

    for container in ["web", "once"] {
        let ended = ContainerState::Exited { code: 3, id: None };
        one.agent.container_state(&name(container), ended).await.unwrap();
    }
    let mut orphan = run("orphan", "blue");
    orphan.auto_remove = true;
    one.agent.container_create(orphan).await.unwrap();
    // The supervisor is killed with the command, so that the end is not reported.
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id().try_into().unwrap();
    let running = ContainerState::Running { pid, log: None, supervisor: None, id: None };
    one.agent.container_state(&name("orphan"), running).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the orphan is gone", || async { one.agent.containers().await.unwrap().len() == 1 })
        .await;

    let rows = one.agent.containers().await.unwrap();
    assert_eq!((rows[0].name.as_str(), rows[0].pid, rows[0].exit_code), ("web", None, Some(3)));
    assert_eq!(stored(&world).await.endpoints_in(&name("blue")).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_name_has_one_agent() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let (clash, entry) = world.prepare(1, &Paper::new(), &"f".repeat(64));
    let refused = entry.await.unwrap().unwrap_err();
    assert!(refused.contains("'host1' is taken"), "{refused}");
    clash.stop().await;
    one.stop().await;
    // A stopped agent has revoked its lease: the node name is free at once.
    let (_other, entry) = world.prepare(1, &Paper::new(), &"f".repeat(64));
    entry.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_without_the_store_is_finished_by_the_next_agent() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    let state_dir = one.shared.options.state_dir.clone();
    one.stop().await;
    crate::agent::files::mark_purged(&state_dir).unwrap();

    let (starting, _entry) = world.prepare(1, &Paper::new(), &format!("{:064x}", 1));
    crate::agent::purge::finish(&starting.shared, world.store.as_ref()).await.unwrap();
    let view = stored(&world).await;
    let left: Vec<_> =
        view.endpoints_in(&name("blue")).map(|ep| ep.container.to_string()).collect();
    assert_eq!(left, ["db"]);
    assert_eq!(crate::agent::files::purged_id(&state_dir), None);
    // The second call has nothing to do.
    crate::agent::purge::finish(&starting.shared, world.store.as_ref()).await.unwrap();
    starting.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_does_not_wait_until_the_maps_are_read() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    one.paper.reads.close(true);
    one.eventually("the maps are read", |_| one.paper.reads.waiting() > 0).await;
    // The read that is under way has older contents than this.
    two.run("db", "blue").await.unwrap();
    let db = FdbKey::new(VNI, mac(3));
    one.eventually("host 1 knows db", |state| {
        state.tables.fdb.contains_key(&db) && state.tables.networks[&VNI].remote_vteps == 1
    })
    .await;
    one.paper.state().ops.clear();
    let passed = one.paper.reads.passed();
    one.paper.reads.close(false);
    // The read is compared with the desired state, and no entry is put a second time.
    one.eventually("the maps are read twice more", |_| one.paper.reads.passed() > passed + 1).await;
    let state = one.paper.state();
    assert_eq!(state.ops, []);
    assert!(state.tables.fdb.contains_key(&db));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_does_not_end_before_the_requests_that_are_under_way() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.paper.plugging.close(true);
    let agent = Arc::clone(&one.agent);
    let request =
        tokio::spawn(async move { agent.container_create(run("web", "blue")).await.map(drop) });
    one.eventually("the device pair is made", |_| one.paper.plugging.waiting() > 0).await;
    assert!(!request.is_finished());
    let (paper, tasks) = (Arc::clone(&one.paper), one.shared.ending.tasks.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        paper.plugging.close(false);
    });
    one.stop().await;
    assert!(tasks.is_empty());
    let answer = tokio::time::timeout(Duration::from_millis(500), request).await;
    assert!(answer.unwrap().is_ok(), "it has ended with an answer");
}
