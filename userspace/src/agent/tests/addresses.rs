//! Additional addresses, and announcements of addresses that move.

use std::net::IpAddr;

use culvert_common::abi::{HeardEntry, NeighKey};

use super::fake::{Paper, Running, World, eventually, name, run, stored, two_hosts};
use crate::{
    agent::platform::PlugError,
    api::{
        Backend as _,
        types::{AddressChange, ApiError, Connect, ErrorKind},
    },
    model::MacAddr,
    netlink::Announcement,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn change(container: &str, address: &str) -> AddressChange {
    AddressChange { container: name(container), ip: ip(address) }
}

fn key(vni: u32, address: [u8; 4]) -> NeighKey {
    NeighKey::v4(vni, address)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, ApiError>, kind: ErrorKind, part: &str) {
    let error = result.unwrap_err();
    assert!(error.kind == kind && error.message.contains(part), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_made_with_several_addresses() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    two.run("far", "blue").await.unwrap();
    let mut request = run("web", "blue");
    request.ip = Some(ip("10.0.1.80"));
    request.more_ips = vec![ip("10.0.1.81"), ip("10.0.1.82")];
    let row = one.agent.container_create(request).await.unwrap();
    let network = &row.networks[0];
    assert_eq!((network.ip.as_str(), network.ip6.as_deref()), ("10.0.1.80", None));
    assert_eq!(network.additional, ["10.0.1.81", "10.0.1.82"]);
    let inspected = one.agent.network_inspect(&name("blue")).await.unwrap();
    let web = inspected.containers.values().find(|container| container.name == "web").unwrap();
    assert_eq!(web.ipv4_address, "10.0.1.80/24");
    assert_eq!(web.additional_addresses, ["10.0.1.81/24", "10.0.1.82/24"]);
    // The interface gets the addresses, and every host maps them to the container's MAC.
    {
        let state = one.paper.state();
        let wanted = state.wanted.values().find(|wanted| wanted.container == name("web")).unwrap();
        let additional: Vec<_> = wanted.additional.iter().map(ToString::to_string).collect();
        assert_eq!(additional, ["10.0.1.81/24", "10.0.1.82/24"]);
    }
    let mac = MacAddr::from_ipv4([10, 0, 1, 80].into()).0;
    for host in [&one, &two] {
        host.eventually("all addresses are known", |state| {
            [80, 81, 82].iter().all(|last| {
                let entry = state.tables.neighbours.get(&key(256, [10, 0, 1, *last]));
                entry.is_some_and(|entry| entry.mac == mac)
            })
        })
        .await;
    }
    let mut taken = run("other", "blue");
    taken.ip = Some(ip("10.0.1.82"));
    assert_refused(
        two.agent.container_create(taken).await,
        ErrorKind::Conflict,
        "10.0.1.82 is taken by container 'web' on 'host1'",
    );
    let mut too_many = run("other", "blue");
    too_many.more_ips = (100..117).map(|last| IpAddr::from([10, 0, 1, last])).collect();
    let refused = one.agent.container_create(too_many).await;
    assert_refused(refused, ErrorKind::Invalid, "17 addresses are too many");
    let mut nowhere = run("other", "none");
    nowhere.more_ips = vec![ip("10.0.1.99")];
    let refused = one.agent.container_create(nowhere).await;
    assert_refused(refused, ErrorKind::Invalid, "--ip does not go with '--network none'");

    one.agent.container_remove(&name("web"), false).await.unwrap();
    let view = stored(&world).await;
    assert_eq!(view.ipam.count_in(&name("blue")), 1);
    let mut again = run("again", "blue");
    again.ip = Some(ip("10.0.1.82"));
    two.agent.container_create(again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_given_to_a_running_container_and_taken_away() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    let blue = name("blue");
    one.agent.address_add(&blue, change("web", "10.0.1.100")).await.unwrap();
    // The request returns when the interface has the address.
    let plugged = |container: &str| {
        let state = one.paper.state();
        let mut wanted = state.wanted.values().filter(|wanted| wanted.container == name(container));
        wanted.next().unwrap().additional.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(plugged("web"), ["10.0.1.100/24"]);
    let rows = one.agent.containers().await.unwrap();
    assert_eq!(rows[0].networks[0].additional, ["10.0.1.100"]);

    let conflict = ErrorKind::Conflict;
    let add = async |host: &Running, network: &str, container: &str, address: &str| {
        host.agent.address_add(&name(network), change(container, address)).await
    };
    assert_refused(
        add(&two, "blue", "db", "10.0.1.100").await,
        conflict,
        "taken by container 'web'",
    );
    assert_refused(add(&one, "blue", "web", "10.9.9.9").await, ErrorKind::Invalid, "outside");
    assert_refused(add(&one, "grey", "web", "10.0.1.9").await, ErrorKind::NotFound, "unknown");
    assert_refused(
        add(&one, "blue", "db", "10.0.1.9").await,
        ErrorKind::NotFound,
        "on node 'host2'",
    );
    one.run("alone", "none").await.unwrap();
    assert_refused(
        add(&one, "blue", "alone", "10.0.1.9").await,
        conflict,
        "is not in network 'blue'",
    );
    one.run("side", "container:web").await.unwrap();
    let shares = add(&one, "blue", "side", "10.0.1.9").await;
    assert_refused(shares, ErrorKind::Invalid, "shares the network of 'web'");
    let primary = one.agent.address_remove(&blue, change("web", "10.0.1.2")).await;
    assert_refused(primary, conflict, "is the primary one");

    one.agent.address_remove(&blue, change("web", "10.0.1.100")).await.unwrap();
    assert!(plugged("web").is_empty());
    let again = one.agent.address_remove(&blue, change("web", "10.0.1.100")).await;
    assert_refused(again, conflict, "is not one of container 'web'");
    add(&two, "blue", "db", "10.0.1.100").await.unwrap();
    assert_eq!(stored(&world).await.complaints(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_the_interface_does_not_get_is_taken_back() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    one.run("web", "blue").await.unwrap();
    let before = stored(&world).await.ipam;
    let endpoints = one.paper.state().tables.endpoints.clone();
    assert_eq!(endpoints.len(), 1);
    one.paper.state().refuse_plug =
        Some(PlugError::Refused(ErrorKind::Internal, "the kernel is tired".to_owned()));
    let refused = one.agent.address_add(&name("blue"), change("web", "10.0.1.100")).await;
    assert_refused(refused, ErrorKind::Internal, "the kernel is tired");
    assert_eq!(stored(&world).await.ipam, before);
    let refused = one.agent.address_add(&name("blue"), change("web", "10.0.1.100")).await;
    assert_refused(refused, ErrorKind::Conflict, "its interface is not as it should be");
    // The container keeps its network meanwhile, also when the maps are written again.
    let id = one.paper.state().wanted.keys().next().unwrap().clone();
    eventually("it is tried again", || async {
        one.shared.shown.problems.has(&format!("endpoint/{id}"))
    })
    .await;
    two.run("db", "blue").await.unwrap();
    one.eventually("db is known", |state| state.tables.fdb.len() == 2).await;
    assert_eq!(one.paper.state().tables.endpoints, endpoints);
    one.paper.state().refuse_plug = None;
    eventually("the problem is over", || async {
        !one.shared.shown.problems.has(&format!("endpoint/{id}"))
    })
    .await;
    one.agent.address_add(&name("blue"), change("web", "10.0.1.100")).await.unwrap();
    assert_eq!(one.paper.state().tables.endpoints, endpoints);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_told_of_addresses_that_move() {
    let world = World::new().await;
    let (one, two) = two_hosts(&world).await;
    let blue = name("blue");
    one.run("web", "blue").await.unwrap();
    one.run("client", "blue").await.unwrap();
    two.run("db", "blue").await.unwrap();
    let float = "10.0.1.100";
    one.agent.address_add(&blue, change("web", float)).await.unwrap();
    one.agent.address_remove(&blue, change("web", float)).await.unwrap();
    assert!(one.paper.state().announced.is_empty(), "{:?}", one.paper.state().announced);
    two.agent.address_add(&blue, change("db", float)).await.unwrap();
    let mac = MacAddr::from_ipv4([10, 0, 1, 4].into());
    let of = |host: &Running, container: &str| {
        let state = host.paper.state();
        let wanted = state.wanted.values().find(|it| it.container == name(container)).unwrap();
        state.veths[&wanted.id]
    };
    // All containers of the first host get an announcement. The second host has only the new owner,
    // which gets none.
    let mut told: Vec<Announcement> = [of(&one, "web"), of(&one, "client")]
        .into_iter()
        .map(|ifindex| Announcement { ifindex, ip: ip(float), mac })
        .collect();
    told.sort();
    one.eventually("the containers are told", |state| {
        let mut announced = state.announced.clone();
        announced.sort();
        announced == told
    })
    .await;
    assert!(two.paper.state().announced.is_empty());

    // A container that is made again with the same address and MAC is not announced.
    one.paper.state().announced.clear();
    two.agent.container_remove(&name("db"), false).await.unwrap();
    let mut again = run("db", "blue");
    again.ip = Some(ip("10.0.1.4"));
    two.agent.container_create(again).await.unwrap();
    // A container with another MAC is announced.
    two.agent.container_remove(&name("db"), false).await.unwrap();
    let mut other = run("db", "blue");
    other.ip = Some(ip("10.0.1.4"));
    other.mac = Some("0e:00:00:00:00:01".parse().unwrap());
    one.paper.state().mute = true;
    two.agent.container_create(other).await.unwrap();
    eventually("the problem is told", || async {
        one.shared.shown.problems.lines().iter().any(|line| line.contains("moved addresses: mute"))
    })
    .await;
    one.paper.state().mute = false;
    let mac: MacAddr = "0e:00:00:00:00:01".parse().unwrap();
    one.eventually("the containers are told of the new MAC", |state| {
        state.announced.len() == 2
            && state.announced.iter().all(|told| told.mac == mac && told.ip == ip("10.0.1.4"))
    })
    .await;
    eventually("the problem is over", || async { !one.shared.shown.problems.has("announce") })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_several_addresses_and_neighbours_show_learned_ones() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    one.run("web", "none").await.unwrap();
    let connect = Connect {
        container: name("web"),
        ip: Some(ip("10.0.1.80")),
        more_ips: vec![ip("10.0.1.81")],
        mac: None,
    };
    let row = one.agent.connect(&name("blue"), connect).await.unwrap();
    assert_eq!(row.networks[0].additional, ["10.0.1.81"]);

    // Entries of the store and entries that are too old are not shown as learned.
    let seen = |ago_s: u64| HeardEntry {
        last_seen_ns: 1_000_000_000_000 - ago_s * 1_000_000_000,
        mac: [2, 0, 0, 0, 0, 9],
        ..HeardEntry::default()
    };
    one.paper.state().heard.extend([
        (key(256, [10, 0, 1, 81]), seen(1)),
        (key(256, [10, 0, 1, 100]), seen(75)),
        (key(256, [10, 0, 1, 101]), seen(300)),
        (key(999, [10, 0, 1, 102]), seen(1)),
    ]);
    let rows = one.agent.neighbours().await.unwrap();
    let learned: Vec<_> = rows.iter().filter(|row| row.kind == "learned").collect();
    assert_eq!(learned.len(), 1, "{rows:?}");
    assert_eq!((learned[0].ip.as_str(), learned[0].age_s), ("10.0.1.100", Some(75)));
    assert_eq!(learned[0].mac, "02:00:00:00:00:09");
    let known: Vec<_> = rows.iter().filter(|row| row.kind == "static").collect();
    assert!(known.iter().any(|row| row.ip == "10.0.1.81" && row.age_s.is_none()), "{rows:?}");
}
