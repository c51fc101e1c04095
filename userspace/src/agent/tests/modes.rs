//! The network modes besides overlay: a host's own networks, the host's namespace,
//! none, and another container's.

use std::net::IpAddr;

use super::{
    fake::{Paper, Running, World, name, network, run, stored},
    refusals::assert_refused,
};
use crate::{
    api::{
        Backend as _,
        types::{ApiError, Connect, Created, ErrorKind, NetworkRow},
    },
    model::Driver,
};

async fn bridge(host: &Running, text: &str, subnets: &[&str]) -> Result<Created, ApiError> {
    let mut request = network(text);
    request.driver = Driver::Bridge;
    request.subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
    host.agent.network_create(request).await
}

async fn row(host: &Running, text: &str) -> Option<NetworkRow> {
    let rows = host.agent.networks().await.unwrap();
    assert_eq!(rows.iter().filter(|row| row.name == "bridge").count(), 1, "{rows:?}");
    rows.into_iter().find(|row| row.name == text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bridge_is_made_when_it_is_first_needed_on_each_host() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let two = world.start(2, &Paper::new()).await.ready().await;
    let before = row(&one, "bridge").await.unwrap();
    assert_eq!((before.scope.as_str(), before.subnets.len()), ("local", 0));
    assert_eq!(one.agent.network_inspect(&name("bridge")).await.unwrap().ipam.config, []);

    // Several containers at once: each gets the network.
    let all = (0..8).map(|n| {
        let one = &one;
        async move { one.run(&format!("c{n}"), "bridge").await.unwrap() }
    });
    let rows = futures::future::join_all(all).await;
    for row in &rows {
        assert_eq!(row.mode, "bridge");
        assert_eq!(row.networks[0].name, "bridge");
        assert!(row.networks[0].ip.starts_with("172.17.0."), "{row:?}");
    }
    let own = row(&one, "bridge").await.unwrap();
    assert_eq!((own.scope.as_str(), own.driver.as_str()), ("local", "bridge"));
    assert_eq!((own.subnets, own.mtu, own.endpoints), (vec!["172.17.0.0/16".to_owned()], 1500, 8));
    let inspected = one.agent.network_inspect(&name("bridge")).await.unwrap();
    assert_eq!((inspected.name.as_str(), inspected.scope.as_str()), ("bridge", "local"));
    assert_eq!(inspected.ipam.config[0].gateway, "172.17.0.1");
    assert_eq!(inspected.containers.len(), 8);
    assert_eq!(inspected.peers, []);

    // The other host does not have this network, and has a `bridge` of its own.
    assert_eq!(row(&two, "bridge").await.unwrap().subnets.len(), 0);
    assert_eq!(two.run("c0", "bridge").await.unwrap().networks[0].ip, "172.17.0.2");
    assert_eq!(two.agent.network_inspect(&name("bridge")).await.unwrap().containers.len(), 1);
    let view = stored(&world).await;
    let names: Vec<_> = view.networks.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["bridge@host1", "bridge@host2"]);
    assert_eq!(view.complaints(), Vec::<String>::new());

    assert_refused(
        one.agent.network_remove(&name("bridge")).await,
        ErrorKind::Conflict,
        "'bridge' is predefined",
    );
    // The networks of a host are removed with the host.
    two.agent.purge().await.unwrap();
    let view = stored(&world).await;
    let names: Vec<_> = view.networks.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["bridge@host1"]);
    assert_eq!((view.vnis.len(), view.ipam.networks().count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bridge_goes_around_what_the_host_routes() {
    let world = World::new().await;
    let paper = Paper::new();
    paper.state().routes.push("172.17.128.0/17".parse().unwrap());
    paper.state().routes.push("172.18.0.0/24".parse().unwrap());
    let one = world.start(1, &paper).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    let connect = Connect { container: name("web"), ip: None, more_ips: Vec::new(), mac: None };
    let row = one.agent.connect(&name("bridge"), connect).await.unwrap();
    assert_eq!(row.networks[1].ip, "172.19.0.2");
    // A route to the subnet by the network's own device does not conflict with the network.
    paper.state().routes.push("172.19.0.0/16".parse().unwrap());
    one.run("other", "bridge").await.unwrap();
    bridge(&one, "more", &[]).await.unwrap();
    assert_eq!(self::row(&one, "more").await.unwrap().subnets, ["172.20.0.0/16"]);
    one.agent.disconnect(&name("bridge"), &name("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosts_own_networks_concern_no_other_host() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let two = world.start(2, &Paper::new()).await.ready().await;
    bridge(&one, "lan", &["192.168.7.0/24"]).await.unwrap();
    assert!(row(&two, "lan").await.is_none());
    assert_refused(
        two.agent.network_inspect(&name("lan")).await,
        ErrorKind::NotFound,
        "'lan' is unknown",
    );
    assert_refused(two.run("x", "lan").await, ErrorKind::NotFound, "'lan' is unknown");
    assert_refused(
        two.agent.network_remove(&name("lan")).await,
        ErrorKind::NotFound,
        "'lan' is unknown",
    );
    // Another host may use the same name and the same subnet.
    bridge(&two, "lan", &["192.168.7.0/24"]).await.unwrap();
    let ip: IpAddr = "192.168.7.9".parse().unwrap();
    for host in [&one, &two] {
        let mut request = run("web", "lan");
        request.ip = Some(ip);
        host.agent.container_create(request).await.unwrap();
    }
    // On one host neither the name nor the addresses can be used twice.
    let conflict = ErrorKind::Conflict;
    assert_refused(bridge(&one, "lan", &[]).await, conflict, "'lan' exists already");
    assert_refused(
        bridge(&one, "lan2", &["192.168.7.0/25"]).await,
        conflict,
        "overlaps 192.168.7.0/24 of network 'lan' on 'host1'",
    );
    assert_refused(one.network("lan").await, conflict, "'lan' exists already, as a bridge");
    // An overlay network is on every host, so it may not overlap a network of any host.
    let mut wide = network("wide");
    wide.subnets = vec!["192.168.0.0/16".parse().unwrap()];
    assert_refused(one.agent.network_create(wide).await, conflict, "overlaps 192.168.7.0/24");
    one.network("blue").await.unwrap();
    assert_refused(bridge(&two, "blue", &[]).await, conflict, "'blue' exists already");
    assert_refused(
        bridge(&two, "green", &["10.0.1.0/25"]).await,
        conflict,
        "overlaps 10.0.1.0/24 of network 'blue'",
    );

    assert_refused(one.agent.network_remove(&name("lan")).await, conflict, "in use");
    one.agent.container_remove(&name("web"), false).await.unwrap();
    one.agent.network_remove(&name("lan")).await.unwrap();
    assert!(row(&one, "lan").await.is_none());
    assert_eq!(row(&two, "lan").await.unwrap().endpoints, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_sandbox_goes_by_force_only_and_host_is_shared_as_host() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.run("web", "bridge").await.unwrap();
    let side = one.run("side", "container:web").await.unwrap();
    assert_eq!((side.mode.as_str(), side.networks[0].ip.as_str()), ("container", "172.17.0.2"));
    assert_refused(
        one.agent.container_remove(&name("web"), false).await,
        ErrorKind::Conflict,
        "'side' shares",
    );
    one.agent.container_remove(&name("web"), true).await.unwrap();
    let rows = one.agent.containers().await.unwrap();
    assert_eq!((rows.len(), rows[0].name.as_str(), rows[0].networks.len()), (1, "side", 0));
    one.agent.container_remove(&name("side"), false).await.unwrap();

    one.run("bare", "host").await.unwrap();
    assert_eq!(one.run("too", "container:bare").await.unwrap().mode, "host");
    one.agent.container_remove(&name("bare"), false).await.unwrap();

    // A container that was made without a network can join one.
    one.run("alone", "none").await.unwrap();
    let connect = Connect { container: name("alone"), ip: None, more_ips: Vec::new(), mac: None };
    let row = one.agent.connect(&name("bridge"), connect).await.unwrap();
    assert_eq!(row.mode, "bridge");
}
