//! Requests that are refused: the error is one line, and the state does not change.

use super::fake::{Paper, World, name, network, run};
use crate::{
    api::{
        Backend as _,
        types::{ApiError, Connect, ErrorKind, VtepChange},
    },
    model::{Driver, ROOT},
};

/// Checks that a request was refused with an error of `kind`, whose line contains `part`.
pub(super) fn assert_refused<T: std::fmt::Debug>(
    outcome: Result<T, ApiError>,
    kind: ErrorKind,
    part: &str,
) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, kind, "{error}");
    assert!(error.message.contains(part), "{error:?} lacks {part:?}");
    assert!(!error.message.contains('\n'), "{error:?}");
    assert!(error.message.contains(": "), "{error:?} does not say what would be right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_the_thing_and_change_nothing() {
    use ErrorKind::{Conflict, Invalid, NotFound};

    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    one.run("alone", "none").await.unwrap();
    one.run("bare", "host").await.unwrap();
    one.run("side", "container:web").await.unwrap();
    let before = world.store.snapshot(ROOT).await.unwrap();
    let tables = one.paper.state().tables.clone();
    let namespaces = one.paper.state().namespaces.clone();
    let agent = &one.agent;

    // Networks.
    let create = |change: &dyn Fn(&mut crate::api::types::NetworkCreate)| {
        let mut request = network("red");
        change(&mut request);
        agent.network_create(request)
    };
    assert_refused(create(&|r| r.name = name("blue")).await, Conflict, "'blue' exists already");
    assert_refused(create(&|r| r.name = name("host")).await, Conflict, "'host' is predefined");
    assert_refused(create(&|r| r.name = name("bridge")).await, Conflict, "predefined");
    assert_refused(
        create(&|r| (r.driver, r.learning) = (Driver::Bridge, true)).await,
        Invalid,
        "--learning does not go with driver bridge",
    );
    for driver in [Driver::Overlay, Driver::Bridge] {
        let routed = "10.0.0.0/16".parse().unwrap();
        assert_refused(
            create(&|r| (r.driver, r.subnets) = (driver, vec![routed])).await,
            Conflict,
            "overlaps 10.0.",
        );
        let inside = "10.0.0.128/25".parse().unwrap();
        assert_refused(
            create(&|r| (r.driver, r.subnets) = (driver, vec![inside])).await,
            Conflict,
            "overlaps 10.0.0.0/24, to which this host has a route",
        );
        let gateway = Some([172, 20, 0, 1].into());
        let subnet = "172.19.0.0/16".parse().unwrap();
        assert_refused(
            create(&|r| (r.driver, r.subnets, r.gateway) = (driver, vec![subnet], gateway)).await,
            Invalid,
            "gateway 172.20.0.1 is outside",
        );
    }
    assert_refused(
        create(&|r| (r.driver, r.mtu) = (Driver::Bridge, Some(1501))).await,
        Invalid,
        "MTU 1501",
    );
    assert_refused(create(&|r| r.vni = Some(0)).await, Invalid, "VNI 0");
    assert_refused(create(&|r| r.vni = Some(1 << 24)).await, Invalid, "VNI 16777216");
    assert_refused(create(&|r| r.vni = Some(256)).await, Conflict, "VNI 256 is taken");
    assert_refused(create(&|r| r.mtu = Some(67)).await, Invalid, "MTU 67");
    assert_refused(create(&|r| r.mtu = Some(1451)).await, Invalid, "MTU 1451");
    let overlapping = "10.0.1.128/25".parse().unwrap();
    assert_refused(create(&|r| r.subnets = vec![overlapping]).await, Conflict, "overlaps");
    let unknown_option = ("colour".to_owned(), "red".to_owned());
    assert_refused(
        create(&|r| r.options.extend([unknown_option.clone()])).await,
        Invalid,
        "option \"colour\"",
    );
    assert_refused(agent.network_remove(&name("blue")).await, Conflict, "'web' on 'host1'");
    for predefined in ["none", "host", "bridge"] {
        assert_refused(agent.network_remove(&name(predefined)).await, Conflict, "predefined");
    }
    assert_refused(agent.network_remove(&name("grey")).await, NotFound, "'grey' is unknown");
    assert_refused(agent.network_inspect(&name("grey")).await, NotFound, "'grey' is unknown");

    // Containers.
    let attempt =
        |container: &str, net: &str, change: &dyn Fn(&mut crate::api::types::ContainerCreate)| {
            let mut request = run(container, net);
            change(&mut request);
            agent.container_create(request)
        };
    assert_refused(attempt("web", "blue", &|_| ()).await, Conflict, "'web' exists already");
    assert_refused(attempt("x", "grey", &|_| ()).await, NotFound, "'grey' is unknown");
    assert_refused(attempt("x", "blue@host1", &|_| ()).await, Invalid, "malformed");
    assert_refused(attempt("x", "container:x", &|_| ()).await, Invalid, "its own network");
    assert_refused(
        attempt("x", "container:side", &|_| ()).await,
        Invalid,
        "'side' shares the network of 'web' itself: '--network container:web'",
    );
    assert_refused(attempt("x", "a b", &|_| ()).await, Invalid, "malformed");
    assert_refused(attempt("x", "container:nobody", &|_| ()).await, NotFound, "'nobody'");
    let ip = |ip: &str| Some(ip.parse().unwrap());
    assert_refused(attempt("x", "blue", &|r| r.ip = ip("10.9.9.9")).await, Invalid, "outside");
    assert_refused(attempt("x", "blue", &|r| r.ip = ip("10.0.1.2")).await, Conflict, "taken");
    let mac = Some("02:42:00:00:00:01".parse().unwrap());
    for mode in ["none", "host", "container:web"] {
        assert_refused(attempt("x", mode, &|r| r.ip = ip("10.0.1.9")).await, Invalid, "--ip");
        assert_refused(attempt("x", mode, &|r| r.mac = mac).await, Invalid, "--mac");
        assert_refused(
            attempt("x", mode, &|r| r.ports = vec!["8080:80".to_owned()]).await,
            Invalid,
            &format!("container 'x': -p does not go with '--network {mode}'"),
        );
    }
    let missing = std::path::PathBuf::from("/paper/missing");
    assert_refused(
        attempt("x", "blue", &|r| r.netns = Some(missing.clone())).await,
        NotFound,
        "missing",
    );
    assert_refused(attempt("x", "blue", &|r| r.pid = Some(999_999)).await, NotFound, "999999");
    assert_refused(agent.container_remove(&name("nobody"), true).await, NotFound, "'nobody'");
    assert_refused(agent.container_remove(&name("web"), false).await, Conflict, "'side' shares");

    // Connections.
    let connect = |container: &str| Connect {
        container: name(container),
        ip: None,
        more_ips: Vec::new(),
        mac: None,
    };
    let blue = name("blue");
    assert_refused(agent.connect(&blue, connect("web")).await, Conflict, "already");
    assert_refused(agent.connect(&blue, connect("bare")).await, Invalid, "host's own");
    assert_refused(agent.connect(&blue, connect("side")).await, Invalid, "'web' instead");
    assert_refused(agent.connect(&blue, connect("nobody")).await, NotFound, "'nobody'");
    assert_refused(agent.connect(&name("grey"), connect("web")).await, NotFound, "'grey'");
    assert_refused(agent.disconnect(&blue, &name("alone")).await, Conflict, "not in network");
    assert_refused(agent.disconnect(&name("grey"), &name("web")).await, NotFound, "'grey'");
    assert_refused(agent.disconnect(&blue, &name("side")).await, Invalid, "'web' instead");
    for mode in ["none", "host"] {
        assert_refused(agent.connect(&name(mode), connect("web")).await, Invalid, "is a mode");
        assert_refused(agent.disconnect(&name(mode), &name("web")).await, Invalid, "is a mode");
    }

    // VTEPs.
    let vtep =
        |ip: [u8; 4], net: &str| VtepChange { ip: ip.into(), network: name(net), port: None };
    assert_refused(agent.vtep_add(vtep([192, 0, 2, 1], "blue")).await, Conflict, "node 'host1'");
    assert_refused(agent.vtep_add(vtep([127, 0, 0, 1], "blue")).await, Invalid, "loopback");
    assert_refused(agent.vtep_add(vtep([192, 0, 2, 9], "grey")).await, NotFound, "'grey'");
    assert_refused(agent.vtep_remove(vtep([192, 0, 2, 9], "blue")).await, NotFound, "192.0.2.9");

    assert_eq!(world.store.snapshot(ROOT).await.unwrap(), before);
    assert_eq!(one.paper.state().tables, tables);
    assert_eq!(one.paper.state().namespaces, namespaces);
    assert_eq!(agent.containers().await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subnet_runs_full_and_takes_one_again_when_one_is_freed() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let mut request = network("tiny");
    request.subnets = vec!["10.5.0.0/30".parse().unwrap()];
    one.agent.network_create(request).await.unwrap();
    one.run("a", "tiny").await.unwrap();
    assert_refused(one.run("b", "tiny").await, ErrorKind::Conflict, "tiny");
    one.agent.container_remove(&name("a"), false).await.unwrap();
    assert_eq!(one.run("b", "tiny").await.unwrap().networks[0].ip, "10.5.0.2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_same_time_never_share_an_address() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let two = world.start(2, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    let hosts = [&one, &two];
    let all = (0..24).map(|n| {
        let host = hosts[n % 2];
        async move { host.run(&format!("c{n}"), "blue").await.unwrap().networks[0].ip.clone() }
    });
    let ips = futures::future::join_all(all).await;
    let distinct: std::collections::BTreeSet<_> = ips.iter().collect();
    assert_eq!(distinct.len(), 24, "{ips:?}");
    for host in hosts {
        host.eventually("all are known", |state| state.tables.fdb.len() == 24).await;
    }
}
