//! Records that another client has written into the store: what a host does for them is bounded by
//! what it has agreed to itself.

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use culvert_common::abi::FdbKey;

use super::{
    fake::{Running, World, eventually, name, run, stored, two_hosts},
    refusals::assert_refused,
};
use crate::{
    agent::platform::Holder,
    api::{
        Backend as _,
        types::{Connect, ErrorKind},
    },
    model::{
        Endpoint, IpOwner, Key, MacAddr, Node, Protocol, PublishedPort, SCHEMA, SandboxRef,
        StoreRecord, encode,
        ops::{self, EndpointSpec},
    },
    store::{Outcome, Write},
};

/// An endpoint of the first host that no request has asked for.
fn unasked(network: &str, container: &str, netns: &str, owned: bool) -> EndpointSpec {
    EndpointSpec {
        network: name(network),
        container: name(container),
        node: name("host1"),
        ips: Vec::new(),
        mac: None,
        ifname: "eth9".to_owned(),
        sandbox: SandboxRef { netns: netns.into(), owned, id: None },
        ports: Vec::new(),
        from: Vec::new(),
    }
}

/// Writes an endpoint into the store, with its claims.
async fn forge(world: &World, spec: &EndpointSpec) -> Endpoint {
    loop {
        // The agent may write the node's record meanwhile.
        let (endpoint, plan) = ops::create_endpoint(&stored(world).await, spec).unwrap();
        let outcome = world.store.commit(plan.compares, plan.writes).await.unwrap();
        if let Outcome::Committed(_) = outcome {
            return endpoint;
        }
    }
}

/// Writes a record into the store.
pub(super) async fn put(world: &World, key: String, record: &impl StoreRecord) {
    let write = Write::Put { key, value: encode(record).unwrap(), lease: None };
    world.store.commit(Vec::new(), vec![write]).await.unwrap();
}

/// Deletes a key of the store.
pub(super) async fn delete(world: &World, key: String) {
    world.store.commit(Vec::new(), vec![Write::Delete(key)]).await.unwrap();
}

async fn problems(host: &Running, part: &str) -> Vec<String> {
    let mut lines = host.agent.status().await.unwrap().problems;
    lines.retain(|line| line.contains(part));
    lines
}

const UNASKED: &str = "only the store says";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_only_the_store_names_gets_no_interface() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.network("red").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let theirs = PathBuf::from("/paper/netns/theirs");
    one.paper.state().namespaces.insert(theirs.clone(), BTreeSet::new());
    let before = one.paper.state().namespaces.clone();
    let path = "/paper/netns/theirs";
    // Another program's namespace, by the name of a container, too; a namespace that would have to
    // be made; and one beside that of a container that this host has.
    let mut last = None;
    for (network, container, netns, owned) in [
        ("blue", "guest", path, false),
        ("blue", "theirs", path, true),
        ("blue", "fresh", "/paper/netns/fresh", true),
        ("red", "web", path, false),
    ] {
        last = Some(forge(&world, &unasked(network, container, netns, owned)).await);
    }
    eventually("all are told", || async { problems(&one, UNASKED).await.len() == 4 }).await;
    assert_eq!(one.paper.state().namespaces, before);
    assert_eq!(one.paper.state().veths.len(), 1);

    let lines = problems(&one, UNASKED).await;
    let key = Key::endpoint(&name("red"), &last.unwrap().id);
    let by_key = format!("delete the key {key}");
    for part in ["'culvert rm guest'", "'culvert rm theirs'", by_key.as_str()] {
        assert!(lines.iter().any(|line| line.contains(part)), "no {part} in {lines:?}");
    }
    // No request uses such a namespace either.
    let connect = Connect { container: name("guest"), ip: None, more_ips: Vec::new(), mac: None };
    let part = "known from the store alone";
    assert_refused(one.agent.connect(&name("red"), connect).await, ErrorKind::Conflict, part);
    assert_refused(one.run("side", "container:guest").await, ErrorKind::Conflict, part);

    // The advice works, and what is another program's stays.
    for container in ["guest", "theirs", "fresh"] {
        one.agent.container_remove(&name(container), false).await.unwrap();
    }
    delete(&world, key).await;
    eventually("nothing is told", || async { problems(&one, "").await.is_empty() }).await;
    assert_eq!(one.paper.state().namespaces, before);
    assert_eq!(stored(&world).await.endpoints.count(), 1);
}

/// `owned` in a record is no leave to remove a namespace: not for a purge either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_leaves_a_namespace_that_only_the_store_calls_culverts() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let theirs = PathBuf::from("/paper/netns/theirs");
    one.paper.state().namespaces.insert(theirs.clone(), BTreeSet::new());
    forge(&world, &unasked("blue", "theirs", "/paper/netns/theirs", true)).await;
    eventually("it is told", || async { problems(&one, UNASKED).await.len() == 1 }).await;
    one.agent.purge().await.unwrap();
    assert_eq!(one.paper.state().namespaces.keys().collect::<Vec<_>>(), [&theirs]);
    assert_eq!(stored(&world).await.endpoints.count(), 0);
}

/// A container whose file is lost keeps its network as long as its device pair is there, and a
/// purge removes its namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_file_is_lost_keeps_its_interface() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let mut request = run("web", "blue");
    request.ports = vec!["8080:80".to_owned()];
    one.agent.container_create(request).await.unwrap();
    let state_dir = one.shared.options.state_dir.clone();
    let paper = std::sync::Arc::clone(&one.paper);
    one.stop().await;
    std::fs::remove_file(state_dir.join("containers/web.json")).unwrap();
    paper.state().held.lock().unwrap().clear();
    let one = world.start(1, &paper).await.ready().await;
    one.eventually("its port is held", |state| state.held.lock().unwrap().len() == 1).await;
    one.network("red").await.unwrap();
    let connect = Connect { container: name("web"), ip: None, more_ips: Vec::new(), mac: None };
    one.agent.connect(&name("red"), connect).await.unwrap();
    assert_eq!(problems(&one, "").await, Vec::<String>::new());
    assert_eq!(paper.state().veths.len(), 2);
    one.agent.purge().await.unwrap();
    assert!(paper.state().namespaces.is_empty() && paper.state().veths.is_empty());
}

/// Port 80 of a container at `host_port` of all addresses of the host, TCP.
pub(super) const fn tcp_port(host_port: u16) -> PublishedPort {
    PublishedPort {
        host_ip: Ipv4Addr::UNSPECIFIED,
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        count: 1,
    }
}

/// A record that no request has asked for takes no port from the processes of the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_only_the_store_names_is_not_held() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let theirs = PathBuf::from("/paper/netns/theirs");
    one.paper.state().namespaces.insert(theirs, BTreeSet::new());
    one.network("red").await.unwrap();
    // The namespace is not that of the container `web`.
    for (network, container, host_port) in [("blue", "guest", 2222), ("red", "web", 8080)] {
        let ports = vec![tcp_port(host_port)];
        let spec = unasked(network, container, "/paper/netns/theirs", false);
        forge(&world, &EndpointSpec { ports, ..spec }).await;
    }
    eventually("both are told", || async { problems(&one, UNASKED).await.len() == 2 }).await;
    assert!(one.paper.state().held.lock().unwrap().is_empty());
    assert!(one.paper.state().tables.published.is_empty());
    // Nor do requests of this host have to do without it.
    let mut request = run("own", "blue");
    request.ports = vec!["2222:80".to_owned()];
    one.agent.container_create(request).await.unwrap();
    assert_eq!(one.paper.state().held.lock().unwrap().len(), 1);
}

/// A record with a port that a process of the host has takes no packet from that process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_a_process_is_not_taken_by_a_record() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let sshd = Holder::Process { name: "sshd".to_owned(), pid: 7 };
    one.paper.state().busy.insert((Ipv4Addr::UNSPECIFIED, 2222, Protocol::Tcp), sshd);
    let mut record = stored(&world).await.endpoints_in(&name("blue")).next().unwrap().record;
    record.ports = vec![tcp_port(2222), tcp_port(8080)];
    put(&world, Key::endpoint(&record.network, &record.id), &record).await;
    one.eventually("the free port is published", |state| {
        let ports = state.tables.published.keys().map(|key| u16::from_be_bytes(key.port));
        ports.eq([8080])
    })
    .await;
    let told = || async { problems(&one, "port 2222/tcp is in use by 'sshd' (pid 7)").await.len() };
    eventually("the other one is told", || async { told().await == 1 }).await;
    assert_eq!(one.paper.state().tables.published.len(), 1);

    one.paper.state().busy.clear();
    one.eventually("both are published", |state| state.tables.published.len() == 2).await;
    eventually("nothing is told", || async { told().await == 0 }).await;
}

/// A record with the MAC of another endpoint takes nothing from it: the MAC of an address belongs
/// to whoever has the address, and any other MAC to whoever has claimed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mac_stays_with_its_endpoint() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let chosen: MacAddr = "0e:00:00:00:00:01".parse().unwrap();
    one.run("derived", "blue").await.unwrap();
    let mut request = run("chosen", "blue");
    request.mac = Some(chosen);
    one.agent.container_create(request).await.unwrap();
    two.run("peer", "blue").await.unwrap();
    let macs = [MacAddr::from_ipv4([10, 0, 1, 2].into()), chosen];
    let vteps = |host: &Running| {
        let state = host.paper.state();
        let vni = state.tables.networks.keys().next().copied().unwrap_or_default();
        macs.map(|mac| state.tables.fdb.get(&FdbKey::new(vni, mac.0)).map(|entry| entry.vtep))
    };
    let right = [Some([192, 0, 2, 1]); 2];
    eventually("the peer knows both", || async { vteps(&two) == right }).await;

    // A third host's records with these MACs, and with addresses of their own. No identifier is
    // less than theirs.
    let blue = name("blue");
    let node = crate::model::testing::node("host3", 3);
    put(&world, Key::node(&node.name), &node).await;
    for (last, mac) in (100..).zip(macs) {
        let ip = Ipv4Addr::new(10, 0, 1, last);
        let spec = EndpointSpec {
            node: node.name.clone(),
            ips: vec![ip.into()],
            ..unasked("blue", &format!("thief{last}"), "/run/netns/thief", true)
        };
        let (made, _) =
            ops::create_endpoint_as(&stored(&world).await, &spec, &format!("{last:064x}")).unwrap();
        let owner = IpOwner { schema: SCHEMA, endpoint: made.id.clone() };
        put(&world, Key::ipam(&blue, ip.into()), &owner).await;
        put(&world, Key::endpoint(&blue, &made.id), &Endpoint { mac, ..made }).await;
    }
    for host in [&one, &two] {
        eventually("both records are told", || async {
            problems(host, "belongs to address 10.0.1.2").await.len() == 1
                && problems(host, "MAC 0e:00:00:00:00:01 belongs to endpoint").await.len() == 1
        })
        .await;
    }
    assert_eq!(vteps(&two), right);
    one.agent.container_remove(&name("chosen"), false).await.unwrap();
    assert!(stored(&world).await.macs.is_empty());
}

/// An earlier version has not claimed the MAC: the next agent does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mac_of_an_earlier_version_is_claimed_at_the_start() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let mac: MacAddr = "0e:00:00:00:00:01".parse().unwrap();
    let mut request = run("web", "blue");
    request.mac = Some(mac);
    one.agent.container_create(request).await.unwrap();
    let paper = std::sync::Arc::clone(&one.paper);
    one.stop().await;
    let claimant = || async {
        let now = stored(&world).await;
        let claim = now.mac_claim(&name("blue"), mac);
        claim.and_then(|claim| claim.owner.as_ref()).map(|owner| owner.endpoint.clone())
    };
    let made = claimant().await;
    assert!(made.is_some());
    delete(&world, Key::mac(&name("blue"), mac)).await;
    let one = world.start(1, &paper).await.ready().await;
    eventually("it is claimed again", || async { claimant().await == made }).await;
    assert_eq!(problems(&one, "").await, Vec::<String>::new());
}

/// A host's own record that somebody else has written is put right, and told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_record_of_a_host_is_put_right() {
    let world = World::new().await;
    let (one, _two) = two_hosts(&world).await;
    let own = one.shared.node.clone();
    let other = Node { id: "6".repeat(64), vtep: [192, 0, 2, 66].into(), ..own.clone() };
    for (count, value) in [(1, encode(&other).unwrap()), (2, b"garbage".to_vec())] {
        let write = Write::Put { key: Key::node(&own.name), value, lease: None };
        world.store.commit(Vec::new(), vec![write]).await.unwrap();
        eventually("it is put right", || async {
            let repairs = one.shared.shown.repairs.all();
            let counted = repairs.get("node record").is_some_and(|repair| repair.count == count);
            let stored = stored(&world).await;
            let found = stored.nodes.get(&own.name);
            counted && found.is_some_and(|node| node.record == *one.shared.record.borrow())
        })
        .await;
    }
    eventually("nothing is told", || async { problems(&one, "").await.is_empty() }).await;
}

/// Very many garbage keys are counted, and a few of them are named. The host works as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_garbage_keys_are_counted() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    for part in 0..100 {
        let put = |number: u32| Write::Put {
            key: format!("/culvert/v1/other/{part:03}-{number:03}"),
            value: Vec::new(),
            lease: None,
        };
        world.store.commit(Vec::new(), (0..100).map(put).collect()).await.unwrap();
    }
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    one.eventually("the other host's endpoint", |state| state.tables.fdb.len() == 2).await;
    eventually("all are counted", || async {
        problems(&one, "9980 more records of the store").await.len() == 1
    })
    .await;
    assert_eq!(problems(&one, "").await.len(), 21);
    // However many there are, the status is short.
    let status = serde_json::to_string(&one.agent.status().await.unwrap()).unwrap();
    assert!(status.len() < 16 * 1024, "{} bytes", status.len());
}

/// Very many records that make no sense together, with names as long as they may be: the status is
/// short, and the host works as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_records_that_contradict_others_are_counted() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    // Endpoints of a network that does not exist, and networks without a VNI of their own.
    let lost = crate::model::testing::network("lost", 300, &["10.8.0.0/16"]);
    for part in 0..20_u32 {
        let mut writes = Vec::new();
        for number in 0..50_u32 {
            let id = format!("{:08x}", part * 50 + number);
            let endpoint = crate::model::testing::endpoint(&lost, &id, "host3", "10.8.0.2");
            let key = Key::endpoint(&lost.name, &id);
            writes.push(Write::Put { key, value: encode(&endpoint).unwrap(), lease: None });
            let title = format!("n{id}-{}", "x".repeat(40));
            let network = crate::model::testing::network(&title, 1000, &["10.7.0.0/16"]);
            let key = Key::network(&network.name);
            writes.push(Write::Put { key, value: encode(&network).unwrap(), lease: None });
        }
        world.store.commit(Vec::new(), writes).await.unwrap();
    }
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    one.eventually("the other host's endpoint", |state| state.tables.fdb.len() == 2).await;
    eventually("all are counted", || async {
        problems(&one, "1960 more records of the store").await.len() == 1
    })
    .await;
    assert_eq!(problems(&one, "").await.len(), 41);
    let status = serde_json::to_string(&one.agent.status().await.unwrap()).unwrap();
    assert!(status.len() < 24 * 1024, "{} bytes", status.len());
}
