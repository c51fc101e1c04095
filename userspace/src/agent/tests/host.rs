//! Changes of the host's default route, of its routes into the subnets of networks, and of the
//! subnets to which it is connected.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{
    fake::{Paper, Running, World, eventually, name, network, stored},
    records::{delete, put},
};
use crate::{
    agent::platform::HostEvent,
    api::Backend as _,
    model::{ForeignVtep, Key, Node, SCHEMA, testing},
};

const VNI: u32 = 256;

/// Starts an agent. No full comparison finds a change from here on.
async fn start(world: &World) -> Running {
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.paper.reads.close(true);
    one.eventually("the full comparison waits", |_| one.paper.reads.waiting() > 0).await;
    one
}

/// Waits until the route of the network's subnet to its gateway is there, or is not.
async fn is_routed(one: &Running, what: &str, wanted: bool) {
    one.eventually(what, move |state| state.routed.contains_key(&VNI) == wanted).await;
}

/// As [`start`], with a container in the network `blue`.
async fn start_with_a_network(world: &World) -> Running {
    let one = start(world).await;
    one.network("blue").await.unwrap();
    one.run("web", "blue").await.unwrap();
    is_routed(&one, "the gateway's route", true).await;
    one
}

fn has_problem(running: &Running, words: &str) -> bool {
    running.shared.shown.problems.lines().iter().any(|line| line.contains(words))
}

/// The kernel tells of a change of a route to `destination`.
fn tell_route(running: &Running, destination: &str) {
    let destination = destination.parse().unwrap();
    running.paper.tell(HostEvent::Route { destination, hops: Vec::new(), ifindex: 7 });
}

fn lead_out_of(running: &Running, link: Option<&str>) {
    running.paper.state().default_link = link.map(str::to_owned);
    tell_route(running, "0.0.0.0/0");
}

/// The uplink's address was moved to a bridge, and the default route with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_route_is_followed_to_another_interface() {
    let mut world = World::new().await;
    world.default_uplink = true;
    let one = start(&world).await;
    // A restarted agent would wait for a default route. This one need not.
    lead_out_of(&one, None);
    let words = "no default route tells the uplink";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    lead_out_of(&one, Some("up0"));
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    assert!(!one.shared.ending.again.is_cancelled());
    // Another card has the default route for now, and the tunnel goes on.
    lead_out_of(&one, Some("card0"));
    let words = "leads out of card0 now";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(!one.shared.ending.again.is_cancelled());

    one.paper.state().vtep_lost = true;
    lead_out_of(&one, Some("br0"));
    eventually("the agent starts anew", || async { one.shared.ending.again.is_cancelled() }).await;
    let reason = one.shared.ending.reason();
    assert_eq!(reason.as_deref(), Some("the default route leads out of br0 instead of up0"));
    one.paper.reads.close(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_route_that_leaves_a_given_uplink_is_told() {
    let world = World::new().await;
    let one = start(&world).await;
    lead_out_of(&one, Some("br0"));
    let words = "leads out of br0 now";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    lead_out_of(&one, Some("up0"));
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    assert!(!one.shared.ending.again.is_cancelled());
    one.paper.reads.close(false);
}

/// `run` is refused where the host has a route into the subnet. A route that comes later is not
/// hidden by that of a network that is in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_gives_way_to_a_route_that_comes_later() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let add = |to: &str| {
        one.paper.state().routes.push(to.parse().unwrap());
        tell_route(&one, to);
    };
    let remove = |to: &str| {
        let gone: IpNetwork = to.parse().unwrap();
        one.paper.state().routes.retain(|route| *route != gone);
        tell_route(&one, to);
    };
    for taken in ["10.0.1.0/25", "10.0.1.0/24"] {
        add(taken);
        is_routed(&one, "no gateway's route", false).await;
        let line = format!("network 'blue': gateway: this host has a route to {taken} by up0");
        eventually("the problem", || async { has_problem(&one, &line) }).await;
        remove(taken);
        is_routed(&one, "the gateway's route again", true).await;
        eventually("no problem", || async { !has_problem(&one, "has a route to") }).await;
    }
    add("10.0.0.0/16");
    let words = "network 'blue': subnet 10.0.1.0/24 is a part of 10.0.0.0/16, to which this host has a route by up0";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    remove("10.0.0.0/16");
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    // The kernel prefers this one for a part of the subnet.
    add("10.0.1.128/25");
    let words = "network 'blue': this host has a route to 10.0.1.128/25 by up0";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    // Its interface is down: the kernel says nothing of the route.
    one.paper.state().routes.pop();
    one.paper.tell(HostEvent::Device(7));
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    one.paper.reads.close(false);
}

/// The record of a node has room for 64 subnets. The agent itself goes around all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subnets_beyond_those_of_the_record_are_told() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let connect = |number: u8| {
        let subnets = (0..number).map(|n| format!("10.0.{n}.0/26").parse().unwrap());
        // The record has no room for the one that overlaps the subnet of the network.
        one.paper.state().facts.prefixes = subnets.rev().collect();
        one.paper.tell(HostEvent::Address);
    };
    connect(66);
    eventually("the problem", || async { has_problem(&one, "connected to 66 subnets") }).await;
    eventually("the record", || async {
        let view = stored(&world).await;
        view.nodes.get(&name("host1")).is_some_and(|node| node.record.prefixes.len() == 64)
    })
    .await;
    is_routed(&one, "no gateway's route", false).await;
    connect(0);
    eventually("no problem", || async { !has_problem(&one, "connected to") }).await;
    is_routed(&one, "the gateway's route again", true).await;
    one.paper.reads.close(false);
}

/// A change in the store that comes while a change of the host waits for more changes does not put
/// the host's off: the paths that are resolved for the store are only a part of what the host's
/// asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_the_store_does_not_put_off_one_of_the_host() {
    let world = World::new().await;
    let one = start(&world).await;
    for number in 1..=20 {
        let before = one.paper.state().looks;
        one.paper.tell(HostEvent::Uplink);
        let node = Node::new(name("peer"), "9".repeat(64), [198, 51, 100, number].into(), 4789);
        put(&world, Key::node(&node.name), &node).await;
        one.eventually("the uplinks are looked at", |state| state.looks > before).await;
    }
    one.paper.reads.close(false);
}

/// The host loses the gateway device of the network, and with `pairs` all device pairs.
fn lose_devices(running: &Running, pairs: bool) {
    let mut lost: Vec<u32> = {
        let mut state = running.paper.state();
        state.routed.clear();
        std::mem::take(&mut state.gateways).into_values().collect()
    };
    if pairs {
        lost.extend(std::mem::take(&mut running.paper.state().veths).into_values());
    }
    for ifindex in lost {
        running.paper.tell(HostEvent::LinkGone(ifindex));
    }
}

/// The kernel prefers a route to a part of the subnet, so that the network's route stays beside it.
/// A route that was lost is not added while there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_is_added_that_covers_one_of_the_host() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let part: IpNetwork = "10.0.1.128/25".parse().unwrap();
    one.paper.state().routes.push(part);
    tell_route(&one, "10.0.1.128/25");
    let words = "this host has a route to 10.0.1.128/25 by up0, which is a part of";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    lose_devices(&one, false);
    let words = "network 'blue': gateway: this host has a route to 10.0.1.128/25 by up0";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(!one.paper.state().routed.contains_key(&VNI));
    one.paper.state().routes.retain(|route| *route != part);
    tell_route(&one, "10.0.1.128/25");
    is_routed(&one, "the gateway's route again", true).await;
    eventually("no problem", || async { !has_problem(&one, "has a route to") }).await;
    one.paper.reads.close(false);
}

/// The next hop of the default route may have an address to which the host has no other route, and
/// that only the route's `onlink` makes on link. A route that is there stays, because it takes
/// nothing from what the default route leads to. No route is added.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_gets_no_route_that_covers_a_next_hop() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    for hop in ["10.0.1.254", "10.0.1.1"] {
        let next_hop: IpAddr = hop.parse().unwrap();
        one.paper.state().next_hop = Some(next_hop);
        // A route elsewhere is told because of its next hop.
        let destination = "198.51.100.0/24".parse().unwrap();
        one.paper.tell(HostEvent::Route { destination, hops: vec![next_hop], ifindex: 7 });
        let words = format!("subnet 10.0.1.0/24 has {hop}, the next hop of the route of this host");
        eventually("the problem", || async { has_problem(&one, &words) }).await;
        assert!(one.paper.state().routed.contains_key(&VNI));
        lose_devices(&one, false);
        let barred = "network 'blue': gateway: this host has a route to 0.0.0.0/0 by up0";
        eventually("the problem", || async { has_problem(&one, barred) }).await;
        assert!(!one.paper.state().routed.contains_key(&VNI));
        one.paper.state().next_hop = "192.0.2.254".parse().ok();
        tell_route(&one, "0.0.0.0/0");
        is_routed(&one, "the gateway's route again", true).await;
        eventually("no problem", || async { !has_problem(&one, "network 'blue'") }).await;
    }
    one.paper.reads.close(false);
}

/// A device that has given way to a route has no route, and gets none that covers another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_has_given_way_gets_no_route_that_covers_another_host() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let half: IpNetwork = "10.0.1.0/25".parse().unwrap();
    one.paper.state().routes.push(half);
    tell_route(&one, "10.0.1.0/25");
    is_routed(&one, "no gateway's route", false).await;
    let node = Node::new(name("peer"), "9".repeat(64), [10, 0, 1, 77].into(), 4789);
    let key = Key::node(&node.name);
    put(&world, key.clone(), &node).await;
    let words = "has 10.0.1.77, the VTEP address of node 'peer': the host and the containers";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    one.paper.state().routes.retain(|route| *route != half);
    tell_route(&one, "10.0.1.0/25");
    eventually("no route of the host", || async { !has_problem(&one, "has a route to") }).await;
    assert!(has_problem(&one, words) && !one.paper.state().routed.contains_key(&VNI));
    delete(&world, key).await;
    is_routed(&one, "the gateway's route again", true).await;
    one.paper.reads.close(false);
}

/// A host adds no route for a network whose subnet has the address of another host, whichever
/// record is earlier, also after a reboot. Its containers start, and it says so until the conflict
/// is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_covers_another_host_gets_no_route() {
    let world = World::new().await;
    let one = start(&world).await;
    one.network("blue").await.unwrap();
    let node = Node::new(name("peer"), "9".repeat(64), [10, 0, 1, 77].into(), 4789);
    let key = Key::node(&node.name);
    let come = || async {
        put(&world, key.clone(), &node).await;
        let knows = || async { one.shared.view().nodes.contains_key(&node.name) };
        eventually("the host knows the other one", knows).await;
    };
    let go = || delete(&world, key.clone());
    come().await;
    let words = "network 'blue': subnet 10.0.1.0/24 has 10.0.1.77, the VTEP address of node 'peer'";
    let apart = format!("{words}: the host and the containers of the network here do not reach");
    assert!(!has_problem(&one, words), "no container of the network is here");
    one.run("web", "blue").await.unwrap();
    eventually("the problem", || async { has_problem(&one, &apart) }).await;
    assert!(one.paper.state().routed.is_empty());

    go().await;
    is_routed(&one, "the gateway's route", true).await;
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    // The route that is there stays, and containers come and go.
    come().await;
    one.run("second", "blue").await.unwrap();
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(!has_problem(&one, &apart) && one.paper.state().routed.contains_key(&VNI));

    // The host was started anew: nothing is there.
    lose_devices(&one, true);
    one.eventually("both containers", |state| state.veths.len() == 2).await;
    eventually("the problem", || async { has_problem(&one, &apart) }).await;
    assert!(one.paper.state().routed.is_empty());
    go().await;
    is_routed(&one, "the gateway's route again", true).await;
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    one.paper.reads.close(false);
}

/// A foreign VTEP of one network in the subnet of another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_with_the_address_of_another_networks_vtep_is_told() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let (network, ip) = (name("red"), [10, 0, 1, 77].into());
    let vtep = ForeignVtep { schema: SCHEMA, network, ip, port: 4789 };
    let key = Key::vtep(&vtep.network, vtep.ip);
    put(&world, key.clone(), &vtep).await;
    let words = "network 'blue': subnet 10.0.1.0/24 has 10.0.1.77, a VTEP of network 'red'";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    delete(&world, key).await;
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    one.paper.reads.close(false);
}

/// A host that was registered before goes on, and says that a network has its VTEP address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_tells_of_a_network_with_its_own_address() {
    let world = World::new().await;
    let one = start(&world).await;
    let record = testing::network("covers", 300, &["192.0.2.0/24"]);
    let key = Key::network(&record.name);
    put(&world, key.clone(), &record).await;
    let words = "network 'covers' has 192.0.2.1, the VTEP address of this host";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    delete(&world, key).await;
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    one.paper.reads.close(false);
}

/// A name of the store has another address. No route is added that covers it, and one that is there
/// stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_the_store_from_a_name_server_is_told_at_once() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let note = |ip: [u8; 4]| {
        one.shared.store.note_addresses("etcd.example:2379", [IpAddr::from(ip)].into());
    };
    note([10, 0, 1, 77]);
    let words = "network 'blue': subnet 10.0.1.0/24 has 10.0.1.77, an address of the store";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    lose_devices(&one, false);
    let apart = format!("{words}: the host and the containers of the network here do not reach");
    eventually("the problem", || async { has_problem(&one, &apart) }).await;
    assert!(!one.paper.state().routed.contains_key(&VNI));
    note([192, 0, 2, 99]);
    is_routed(&one, "the gateway's route again", true).await;
    eventually("no problem", || async { !has_problem(&one, words) }).await;
    one.paper.reads.close(false);
}

/// A network may have public addresses, for example those that its owner has been assigned. Who
/// creates it is told that hosts in it do not reach other machines with these addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_with_public_addresses_is_told_once() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    for (text, subnet, is_told) in [("far", "8.8.8.0/24", true), ("near", "10.77.0.0/24", false)] {
        let mut request = network(text);
        request.subnets = vec![subnet.parse().unwrap()];
        let warning = one.agent.network_create(request).await.unwrap().warning;
        let words = format!("subnet {subnet} is public address space");
        assert_eq!(warning.is_some_and(|line| line.contains(&words)), is_told, "{subnet}");
    }
    one.run("resolver", "far").await.unwrap();
    one.eventually("the gateway's route", |state| state.routed.len() == 2).await;
    assert!(!has_problem(&one, "8.8.8.0/24"), "it would stay for ever");
    one.paper.reads.close(false);
}

/// A host that comes with an address of a network in use is told, and cuts nobody off from the
/// containers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_with_the_address_of_another_host_is_told() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let node = Node::new(name("peer"), "9".repeat(64), [10, 0, 1, 77].into(), 4789);
    let key = Key::node(&node.name);
    put(&world, key.clone(), &node).await;
    let words = "network 'blue': subnet 10.0.1.0/24 has 10.0.1.77, the VTEP address of node 'peer', which this host does not reach";
    eventually("the problem", || async { has_problem(&one, words) }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    delete(&world, key).await;
    eventually("no problem", || async { !has_problem(&one, "10.0.1.77, the VTEP") }).await;
    assert!(one.paper.state().routed.contains_key(&VNI));
    one.paper.reads.close(false);
}

/// What was told of the subnet of a network would stay in `status` for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_nobody_uses_here_has_no_problem() {
    let world = World::new().await;
    let one = start_with_a_network(&world).await;
    let node = Node::new(name("peer"), "9".repeat(64), [10, 0, 1, 77].into(), 4789);
    put(&world, Key::node(&node.name), &node).await;
    let route = "10.0.1.128/25";
    one.paper.state().routes.push(route.parse().unwrap());
    tell_route(&one, route);
    for words in ["10.0.1.77, the VTEP", "has a route to 10.0.1.128/25"] {
        eventually("the problem", || async { has_problem(&one, words) }).await;
    }
    one.agent.container_remove(&name("web"), false).await.unwrap();
    eventually("no problem", || async { !has_problem(&one, "network 'blue'") }).await;
    one.paper.reads.close(false);
}
