//! Plans that many tasks execute at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use culvert::{
    model::{
        Alive, Driver, Key, Name, Node, ROOT, SandboxRef, View,
        ops::{
            EndpointSpec, ExecuteError, NetworkSpec, Plan, Refusal, create_endpoint,
            create_network, execute, register_node, remove_endpoint, remove_network, remove_node,
        },
        validate,
    },
    store::{Outcome, StateStore},
};

use crate::backend::Backend;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("name")
}

pub(crate) fn network(text: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        name: name(text),
        driver: Driver::Overlay,
        subnets: subnets.iter().map(|subnet| subnet.parse().expect("subnet")).collect(),
        gateway: None,
        vni: None,
        mtu: None,
        max_mtu: 1450,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        routes: Vec::new(),
        pools: Vec::new(),
        store: Vec::new(),
    }
}

pub(crate) fn endpoint(net: &str, node: &str, container: &str) -> EndpointSpec {
    EndpointSpec {
        network: name(net),
        container: name(container),
        node: name(node),
        ips: Vec::new(),
        mac: None,
        ifname: "eth0".to_owned(),
        sandbox: SandboxRef {
            netns: format!("/run/netns/{container}").into(),
            owned: true,
            id: None,
        },
        ports: Vec::new(),
        from: Vec::new(),
    }
}

async fn view(store: &dyn StateStore) -> View {
    let view = View::from_snapshot(&store.snapshot(ROOT).await.expect("snapshot"));
    assert_eq!(view.complaints(), Vec::<String>::new());
    view
}

pub(crate) async fn make_network(store: &dyn StateStore, spec: &NetworkSpec) {
    execute(store, None, |view| create_network(view, spec)).await.expect("network");
}

pub(crate) async fn networks_made_at_once_never_overlap(backend: impl Backend) {
    let store = backend.store();
    // Half of the tasks choose their subnet. The other half all request the same subnet.
    let tasks: Vec<_> = (0..8)
        .map(|task: usize| {
            let store = Arc::clone(&store);
            let subnets: &[&str] = if task.is_multiple_of(2) { &[] } else { &["10.9.0.0/16"] };
            let spec = network(&format!("net{task}"), subnets);
            tokio::spawn(async move {
                let stale = View::default();
                execute(&*store, Some(&stale), |view| create_network(view, &spec)).await
            })
        })
        .collect();
    let mut made = Vec::new();
    for task in tasks {
        match task.await.expect("task") {
            Ok((network, _)) => made.push(network),
            Err(ExecuteError::Refused(Refusal::Conflict(line))) => {
                assert!(line.contains("overlaps"), "{line}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(made.len(), 5, "{made:?}");
    let vnis: BTreeSet<u32> = made.iter().map(|network| network.vni.get()).collect();
    assert_eq!(vnis.into_iter().collect::<Vec<_>>(), [256, 257, 258, 259, 260]);
    for network in &made {
        validate::no_overlap(network, &made).expect("no overlap");
    }
    assert_eq!(view(&*store).await.networks.len(), 5);
}

pub(crate) async fn endpoints_made_at_once_never_share_an_address(backend: impl Backend) {
    const TASKS: usize = 8;
    const EACH: usize = 3;
    let store = backend.store();
    // Room for 29, so 24 fit and the sixth of 6 more does not.
    make_network(&*store, &network("net", &["10.0.0.0/27", "fd00:1::/64"])).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..EACH {
                    let spec = endpoint("net", &format!("host{task}"), &format!("c{n}"));
                    execute(&*store, None, |view| create_endpoint(view, &spec))
                        .await
                        .expect("endpoint");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    let view = view(&*store).await;
    let held: Vec<IpAddr> = view.ipam.all().map(|(_, ip)| ip).collect();
    let expected: Vec<IpAddr> = (2..26)
        .map(|n| format!("10.0.0.{n}").parse().expect("address"))
        .chain((2..26).map(|n| format!("fd00:1::{n:x}").parse().expect("address")))
        .collect();
    assert_eq!(held, expected, "the lowest ones, each once");

    for n in 0..5 {
        let spec = endpoint("net", "more", &format!("c{n}"));
        execute(&*store, None, |view| create_endpoint(view, &spec)).await.expect("endpoint");
    }
    let spec = endpoint("net", "more", "c5");
    match execute(&*store, None, |view| create_endpoint(view, &spec)).await {
        Err(ExecuteError::Refused(Refusal::Conflict(line))) => {
            assert!(line.contains("10.0.0.0/27 is full, 29 of 29"), "{line}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_network_is_not_removed_from_under_an_endpoint(backend: impl Backend) {
    let store = backend.store();
    make_network(&*store, &network("net", &[])).await;
    let before = view(&*store).await;
    let net = name("net");

    // Both plans are made from one view, so the second one to commit must fail.
    let Plan { compares: removing, writes: removal } = remove_network(&before, &net).expect("plan");
    let spec = endpoint("net", "host", "c");
    let (made, Plan { compares, writes }) = create_endpoint(&before, &spec).expect("plan");
    let outcome = store.commit(compares.clone(), writes.clone()).await.expect("commit");
    assert!(matches!(outcome, Outcome::Committed(_)));
    let outcome = store.commit(removing, removal).await.expect("commit");
    assert_eq!(outcome, Outcome::Conflict);

    let after = view(&*store).await;
    match remove_network(&after, &net) {
        Err(Refusal::Conflict(line)) => assert!(line.contains("'c' on 'host'"), "{line}"),
        other => panic!("{other:?}"),
    }
    execute(&*store, Some(&after), |view| Ok(((), remove_endpoint(view, &net, &made.id)?)))
        .await
        .expect("endpoint removed");
    let empty = view(&*store).await;
    let Plan { compares: adding, writes: addition } =
        create_endpoint(&empty, &spec).expect("plan").1;
    execute(&*store, Some(&empty), |view| Ok(((), remove_network(view, &net)?)))
        .await
        .expect("network removed");
    let outcome = store.commit(adding, addition).await.expect("commit");
    assert_eq!(outcome, Outcome::Conflict);
    assert!(view(&*store).await.is_empty());
}

pub(crate) async fn a_plan_from_an_old_view_is_made_anew(backend: impl Backend) {
    let store = backend.store();
    let old = view(&*store).await;
    make_network(&*store, &network("net", &["10.0.0.0/24"])).await;
    // The old view lacks the network, so the store is read before the plan is refused.
    let spec = endpoint("net", "host", "c");
    let (made, revision) =
        execute(&*store, Some(&old), |view| create_endpoint(view, &spec)).await.expect("endpoint");
    assert_eq!(made.ipv4.map(|ip| ip.to_string()).as_deref(), Some("10.0.0.2"));
    let now = view(&*store).await;
    assert_eq!(now.revision, revision);
    assert_eq!(now.endpoint(&name("net"), &made.id).map(|found| found.record), Some(made.clone()));
    // A name that is free in the old view is taken in the store.
    let same = network("net", &["10.1.0.0/24"]);
    match execute(&*store, Some(&old), |view| create_network(view, &same)).await {
        Err(ExecuteError::Refused(Refusal::Conflict(line))) => {
            assert!(line.contains("exists already"), "{line}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_node_leaves_with_all_its_endpoints(backend: impl Backend) {
    let store = backend.store();
    make_network(&*store, &network("net", &["10.0.0.0/16"])).await;
    for node in ["stays", "leaves"] {
        let id = format!("{:064x}", node.len());
        let vtep = std::net::Ipv4Addr::new(192, 0, 2, u8::try_from(node.len()).expect("small"));
        let node = Node::new(name(node), id, vtep, 4789);
        let lease = store.grant(std::time::Duration::from_secs(60)).await.expect("grant");
        let agent = Alive::new(node.id.clone());
        execute(&*store, None, |view| Ok(((), register_node(view, &node, &agent, lease)?)))
            .await
            .expect("node");
    }
    // The endpoints need more operations than fit into one transaction.
    let mut planned = view(&*store).await;
    for n in 0..150 {
        let node = if n % 10 == 0 { "stays" } else { "leaves" };
        let spec = endpoint("net", node, &format!("c{n}"));
        let (_, Plan { compares, writes }) = create_endpoint(&planned, &spec).expect("plan");
        let outcome = store.commit(compares, writes).await.expect("commit");
        assert!(matches!(outcome, Outcome::Committed(_)));
        planned = View::from_snapshot(&store.snapshot(ROOT).await.expect("snapshot"));
    }
    let leaves = name("leaves");
    let before = view(&*store).await;
    assert!(matches!(remove_node(&before, &leaves, false), Err(Refusal::Conflict(_))));
    let plans = remove_node(&before, &leaves, true).expect("plans");
    assert!(plans.len() >= 3, "{}", plans.len());
    for Plan { compares, writes } in plans {
        let outcome = store.commit(compares, writes).await.expect("commit");
        assert!(matches!(outcome, Outcome::Committed(_)));
    }
    let after = view(&*store).await;
    assert_eq!(after.nodes.keys().collect::<Vec<_>>(), [&name("stays")]);
    assert_eq!(after.endpoints_in(&name("net")).count(), 15);
    assert_eq!(after.ipam.count_in(&name("net")), 15);
    assert!(store.snapshot(&Key::node(&leaves)).await.expect("snapshot").entries.is_empty());
}
