use std::{collections::BTreeMap, net::IpAddr};

use super::*;
use crate::model::{
    Driver, Endpoint, HostRoute, Key, MacAddr, MacOwner, Node, SCHEMA, SandboxRef,
    testing::{Cluster, endpoint, name, network as net, node},
};

fn spec(text: &str, subnets: &[&str]) -> NetworkSpec {
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

fn wanted(network: &str, container: &str) -> EndpointSpec {
    EndpointSpec {
        network: name(network),
        container: name(container),
        node: name("host1"),
        ips: Vec::new(),
        mac: None,
        ifname: "eth0".to_owned(),
        sandbox: SandboxRef { netns: "/run/netns/x".into(), owned: true, id: None },
        ports: Vec::new(),
        from: Vec::new(),
    }
}

fn line<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    let line = result.expect_err("is refused").to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn a_network_gets_what_was_not_asked_for() {
    let mut cluster = Cluster::default();
    let (made, plan) = create_network(&cluster.view, &spec("one", &[])).expect("plan");
    assert_eq!((made.vni.get(), made.mtu), (256, 1450));
    assert_eq!(made.subnets[0].subnet.to_string(), "10.0.0.0/24");
    assert_eq!(made.subnets[0].gateway.to_string(), "10.0.0.1");
    assert_eq!(made.id.len(), 64);
    assert_eq!(
        plan.compares,
        [
            Compare::Absent(Key::network(&made.name)),
            Compare::Absent(Key::vni(made.vni)),
            Compare::PrefixUnchanged("/culvert/v1/networks/".to_owned(), 0),
        ]
    );
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    assert_eq!(cluster.view.networks[&made.name].record, made);

    let (second, _) = create_network(&cluster.view, &spec("two", &[])).expect("plan");
    assert_eq!(second.vni.get(), 257);
    assert_eq!(second.subnets[0].subnet.to_string(), "10.0.1.0/24");
    assert_ne!(second.id, made.id);
}

#[test]
fn a_network_that_cannot_be_is_refused() {
    let mut cluster = Cluster::default();
    cluster.network(&net("old", 300, &["10.5.0.0/16"]));
    cluster.raw("/culvert/v1/networks/broken", b"x");
    cluster.raw("/culvert/v1/vnis/400", b"x");
    // A network without a registered VNI still occupies its VNI.
    let unregistered = net("unregistered", 500, &["10.6.0.0/16"]);
    cluster.put(Key::network(&unregistered.name), &unregistered);
    cluster.put(Key::node(&name("host2")), &node("host2", 2));
    let view = &cluster.view;
    let refused = |change: &dyn Fn(&mut NetworkSpec)| {
        let mut wrong = spec("new", &["10.9.0.0/24"]);
        change(&mut wrong);
        line(create_network(view, &wrong))
    };
    for (line, part) in [
        (refused(&|spec| spec.name = name("old")), "network 'old' exists already"),
        (refused(&|spec| spec.name = name("broken")), "its record is skipped"),
        (refused(&|spec| spec.name = name("host")), "reserved"),
        (refused(&|spec| spec.vni = Some(0)), "VNI 0 is out of range"),
        (refused(&|spec| spec.vni = Some(1 << 24)), "VNI 16777216 is out of range"),
        (refused(&|spec| spec.vni = Some(300)), "VNI 300 is taken by network 'old'"),
        (refused(&|spec| spec.vni = Some(400)), "VNI 400 is taken by an unreadable record"),
        (refused(&|spec| spec.vni = Some(500)), "VNI 500 is taken by network 'unregistered'"),
        (refused(&|spec| spec.mtu = Some(67)), "MTU 67"),
        (refused(&|spec| spec.mtu = Some(1451)), "MTU 1451"),
        (refused(&|spec| spec.gateway = Some([10, 8, 0, 1].into())), "gateway 10.8.0.1 is outside"),
        (refused(&|spec| spec.subnets = vec!["10.5.1.0/24".parse().expect("ok")]), "overlaps"),
        (refused(&|spec| spec.subnets = vec!["10.5.1.1/24".parse().expect("ok")]), "host"),
        (
            refused(&|spec| spec.subnets = vec!["192.0.2.0/30".parse().expect("ok")]),
            "192.0.2.2, the VTEP address of node 'host2'",
        ),
        (
            refused(&|spec| spec.store = vec![[10, 9, 0, 9].into()]),
            "10.9.0.9, an address of the store",
        ),
        (
            refused(&|spec| {
                spec.options.insert("colour".to_owned(), "red".to_owned());
            }),
            "option \"colour\" is unknown",
        ),
    ] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn vnis_are_given_lowest_first() {
    let mut cluster = Cluster::default();
    for (text, vni) in [("a", 5), ("b", 256), ("c", 257), ("d", 259)] {
        cluster.network(&net(text, vni, &[&format!("10.{}.0.0/24", vni % 200)]));
    }
    assert_eq!(lowest_free_vni(&cluster.view).expect("free").get(), 258);
    cluster.raw("/culvert/v1/vnis/258", b"x");
    assert_eq!(lowest_free_vni(&cluster.view).expect("free").get(), 260);
}

fn routes(to: &[&str]) -> Vec<HostRoute> {
    let route = |text: &&str| HostRoute {
        destination: text.parse().expect("subnet"),
        device: "lan0".to_owned(),
        next_hops: Vec::new(),
    };
    to.iter().map(route).collect()
}

#[test]
fn subnets_are_chosen_around_those_in_use() {
    let chosen = |view: &View, driver, to: &[&str]| {
        let spec = NetworkSpec { driver, routes: routes(to), ..spec("new", &[]) };
        choose_subnet(view, &spec).map(|subnet| subnet.to_string())
    };
    let mut cluster = Cluster::default();
    for (driver, avoid, expected) in [
        (Driver::Overlay, vec![], "10.0.0.0/24"),
        (Driver::Overlay, vec!["10.0.0.0/24", "10.0.1.128/25"], "10.0.2.0/24"),
        (Driver::Overlay, vec!["10.0.0.0/9"], "10.128.0.0/24"),
        (Driver::Overlay, vec!["10.0.0.7/32", "fd00::/8"], "10.0.1.0/24"),
        // A company's network, and a VPN's halves of everything.
        (Driver::Overlay, vec!["10.0.0.0/8"], "172.16.0.0/24"),
        (Driver::Overlay, vec!["0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0"], "10.0.0.0/24"),
        (Driver::Overlay, vec!["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], "100.64.0.0/24"),
        (Driver::Bridge, vec![], "172.18.0.0/16"),
        (Driver::Bridge, vec!["172.18.3.0/24"], "172.19.0.0/16"),
        (Driver::Bridge, vec!["172.16.0.0/12"], "192.168.0.0/20"),
        (Driver::Bridge, vec!["172.16.0.0/12", "192.168.0.0/17"], "192.168.128.0/20"),
        (Driver::Bridge, vec!["172.16.0.0/12", "192.168.0.0/16"], "10.0.0.0/20"),
    ] {
        assert_eq!(chosen(&cluster.view, driver, &avoid).expect("free"), expected, "{avoid:?}");
    }
    // The next hop of the default route, which may be one that only the route's `onlink` makes on
    // link.
    let next_hops = vec![[10, 0, 0, 1].into()];
    let default = HostRoute { next_hops, ..routes(&["0.0.0.0/0"]).remove(0) };
    let apart = NetworkSpec { driver: Driver::Overlay, routes: vec![default], ..spec("new", &[]) };
    let around = choose_subnet(&cluster.view, &apart).expect("free");
    assert_eq!(around.to_string(), "10.0.1.0/24");
    let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];
    assert!(line(chosen(&cluster.view, Driver::Overlay, &all)).contains("--subnet"));
    // An overlay network avoids what any node is connected to, and a bridge network does not.
    let mut far = node("host2", 2);
    far.prefixes = vec!["10.0.0.0/20".parse().expect("ok"), "172.18.0.0/16".parse().expect("ok")];
    cluster.put(Key::node(&far.name), &far);
    assert_eq!(chosen(&cluster.view, Driver::Overlay, &[]).expect("free"), "10.0.16.0/24");
    assert_eq!(chosen(&cluster.view, Driver::Bridge, &[]).expect("free"), "172.18.0.0/16");
    // Neither has the address of a host or of the store.
    let near = Node { vtep: [172, 18, 0, 9].into(), ..node("host2", 2) };
    cluster.put(Key::node(&near.name), &near);
    assert_eq!(chosen(&cluster.view, Driver::Bridge, &[]).expect("free"), "172.19.0.0/16");
    let store: Vec<IpAddr> = vec![[10, 0, 0, 9].into(), [0xfd, 0, 0, 0, 0, 0, 0, 1].into()];
    let reserved = choose_subnet(&cluster.view, &NetworkSpec { store, ..spec("new", &[]) });
    assert_eq!(reserved.expect("free").to_string(), "10.0.1.0/24");
    cluster.put(Key::node(&far.name), &node("host2", 2));
    // The search passes thousands of networks in linear time.
    for n in 0..2000_u32 {
        let subnet = format!("10.{}.{}.0/24", n / 256, n % 256);
        cluster.network(&net(&format!("n{n}"), 256 + n, &[&subnet]));
    }
    assert_eq!(chosen(&cluster.view, Driver::Overlay, &[]).expect("free"), "10.7.208.0/24");
}

#[test]
fn subnets_are_chosen_from_the_pools() {
    let cluster = Cluster::default();
    let chosen = |driver, pools: &[&str], to: &[&str]| {
        let pools = pools.iter().map(|pool| pool.parse().expect("pool")).collect();
        let spec = NetworkSpec { driver, pools, routes: routes(to), ..spec("new", &[]) };
        choose_subnet(&cluster.view, &spec).map(|subnet| subnet.to_string())
    };
    for (driver, pools, to, expected) in [
        (Driver::Overlay, vec!["10.99.0.0/16"], vec![], "10.99.0.0/24"),
        (Driver::Bridge, vec!["10.99.0.0/16"], vec!["10.99.1.0/24"], "10.99.16.0/20"),
        (Driver::Overlay, vec!["10.99.0.0/28", "10.98.0.0/23"], vec![], "10.99.0.0/28"),
        (
            Driver::Overlay,
            vec!["10.99.0.0/28", "10.98.0.0/23"],
            vec!["10.99.0.0/16"],
            "10.98.0.0/24",
        ),
    ] {
        assert_eq!(chosen(driver, &pools, &to).expect("free"), expected, "{pools:?}");
    }
    let line = line(chosen(Driver::Overlay, &["10.99.0.0/16"], &["10.0.0.0/8"]));
    assert!(line.contains("--pool 10.99.0.0/16"), "{line}");
}

#[test]
fn a_bridge_network_is_its_nodes_own() {
    let mut cluster = Cluster::default();
    cluster.network(&net("blue", 256, &["10.0.0.0/24"]));
    let own = |text: &str, node: &str, subnets: &[&str]| {
        let mut own = spec(text, subnets);
        own.driver = Driver::Bridge;
        own.name = own.name.on(&name(node));
        own
    };
    for (expected, (spec, subnet)) in (257..).zip([
        (own("bridge", "host1", &[]), "172.17.0.0/16"),
        (own("lan", "host1", &[]), "172.18.0.0/16"),
        (own("bridge", "host2", &[]), "172.17.0.0/16"),
        (own("lan", "host2", &["172.18.0.0/16"]), "172.18.0.0/16"),
    ]) {
        let (made, plan) = create_network(&cluster.view, &spec).expect("plan");
        assert_eq!((made.vni.get(), made.subnets[0].subnet.to_string()), (expected, subnet.into()));
        cluster.carry_out(plan.writes);
    }
    let view = &cluster.view;
    assert_eq!(view.complaints(), Vec::<String>::new());
    let resolve = |text: &str, node: &str| view.resolve(&name(text), &name(node));
    assert_eq!(resolve("lan", "host1").as_str(), "lan@host1");
    assert_eq!(resolve("lan", "host3").as_str(), "lan");
    assert_eq!(resolve("blue", "host1").as_str(), "blue");
    assert_eq!(view.networks_on(&name("host1")).count(), 3);

    for (spec, part) in [
        (own("lan", "host1", &[]), "'lan' exists already"),
        (own("blue", "host1", &[]), "'blue' exists already"),
        (own("new", "host1", &["172.17.9.0/24"]), "'bridge' on 'host1'"),
        (own("new", "host3", &["10.0.0.0/25"]), "'blue'"),
        (NetworkSpec { learning: true, ..own("new", "host1", &[]) }, "--learning"),
        (NetworkSpec { vni: Some(257), ..own("new", "host3", &[]) }, "'bridge' on 'host1'"),
        (spec("wide", &["172.16.0.0/12"]), "'bridge' on 'host1'"),
    ] {
        let line = line(create_network(view, &spec));
        assert!(line.contains(part), "{line}");
    }
    // An overlay network avoids all of them, wherever they are.
    let around = NetworkSpec { routes: routes(&["10.0.0.0/9"]), ..spec("o", &[]) };
    assert!(create_network(view, &around).is_ok());
}

#[test]
fn ports_are_published_where_there_is_a_way_in() {
    let mut cluster = Cluster::default();
    let mut inner = net("inner", 256, &["10.0.0.0/24"]);
    inner.internal = true;
    cluster.network(&inner);
    cluster.network(&net("six", 257, &["fd00:1::/64"]));
    cluster.network(&net("red", 258, &["10.2.0.0/24"]));
    let port = crate::model::PublishedPort {
        host_ip: [0; 4].into(),
        host_port: 8080,
        container_port: 80,
        protocol: crate::model::Protocol::Tcp,
        count: 1,
    };
    let attempt = |network: &str| {
        let spec = EndpointSpec { ports: vec![port], ..wanted(network, "web") };
        create_endpoint(&cluster.view, &spec)
    };
    assert!(line(attempt("inner")).contains("'inner', which is internal"));
    assert!(line(attempt("six")).contains("'six', which has no IPv4 subnet"));
    assert_eq!(attempt("red").expect("plan").0.ports, [port]);
}

#[test]
fn a_network_goes_with_all_that_hangs_on_it() {
    let mut cluster = Cluster::default();
    let (mut red, blue) = (net("red", 256, &["10.0.0.0/24"]), net("blue", 257, &["10.1.0.0/24"]));
    red.learning = true;
    cluster.network(&red);
    cluster.network(&blue);
    cluster.claim(&red.name, [10, 0, 0, 9].into(), "0f");
    let (_, plan) = add_vtep(&cluster.view, &red.name, [192, 0, 2, 9].into(), 4789).expect("plan");
    cluster.carry_out(plan.writes);
    let ep = endpoint(&red, "0a", "host1", "10.0.0.2");
    cluster.endpoint(&ep);

    let refused = line(remove_network(&cluster.view, &red.name));
    assert!(
        refused.contains("network 'red' is in use by 1 endpoint(s), 'c0a' on 'host1'"),
        "{refused}"
    );
    let plan = remove_endpoint(&cluster.view, &red.name, "0a").expect("plan");
    cluster.carry_out(plan.writes);
    cluster.raw("/culvert/v1/endpoints/red/0b", b"x");
    assert!(line(remove_network(&cluster.view, &red.name)).contains("/endpoints/red/0b"));
    cluster
        .view
        .apply(&crate::model::testing::delete("/culvert/v1/endpoints/red/0b".to_owned(), 50));

    let plan = remove_network(&cluster.view, &red.name).expect("plan");
    assert!(plan.compares.contains(&Compare::PrefixEmpty("/culvert/v1/endpoints/red/".to_owned())));
    cluster.carry_out(plan.writes);
    let View { networks, vnis, ipam, vteps, .. } = &cluster.view;
    assert!(networks.len() == 1 && vnis.len() == 1 && ipam.is_empty() && vteps.is_empty());

    let unknown = line(remove_network(&cluster.view, &red.name));
    assert!(unknown.contains("network 'red' is unknown"), "{unknown}");
}

#[test]
fn a_vni_that_belongs_to_another_stays_with_it() {
    let mut cluster = Cluster::default();
    let red = net("red", 256, &["10.0.0.0/24"]);
    let mut impostor = net("impostor", 257, &["10.1.0.0/24"]);
    impostor.vni = red.vni;
    cluster.network(&red);
    cluster.put(Key::network(&impostor.name), &impostor);
    let plan = remove_network(&cluster.view, &impostor.name).expect("plan");
    cluster.carry_out(plan.writes);
    assert!(cluster.view.usable_network(&red.name).is_ok());
    // An endpoint is refused in a network that the data plane must not carry.
    cluster.put(Key::network(&impostor.name), &impostor);
    let refused = line(create_endpoint(&cluster.view, &wanted("impostor", "c")));
    assert!(refused.contains("VNI 256 belongs to network 'red'"), "{refused}");
}

#[test]
fn an_endpoint_claims_an_address_of_each_family() {
    let mut cluster = Cluster::default();
    cluster.network(&net("both", 256, &["10.0.0.0/24", "fd00::/64"]));
    let (made, plan) = create_endpoint(&cluster.view, &wanted("both", "web")).expect("plan");
    assert_eq!(made.ipv4.map(|ip| ip.to_string()).as_deref(), Some("10.0.0.2"));
    assert_eq!(made.ipv6.map(|ip| ip.to_string()).as_deref(), Some("fd00::2"));
    assert_eq!(made.mac.to_string(), "02:42:0a:00:00:02");
    let network_key = Key::network(&name("both"));
    assert_eq!(
        plan.compares,
        [
            Compare::Unchanged(network_key, 1),
            Compare::Absent(Key::endpoint(&made.network, &made.id)),
            Compare::Absent(Key::node(&made.node)),
            Compare::Absent("/culvert/v1/ipam/both/10.0.0.2".to_owned()),
            Compare::Absent("/culvert/v1/ipam/both/fd00::2".to_owned()),
        ]
    );
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    let refused = line(create_endpoint(&cluster.view, &wanted("both", "web")));
    assert!(refused.contains("container 'web' is in network 'both' already"), "{refused}");
    // A container of the same name on another node is another container.
    let elsewhere = EndpointSpec { node: name("host2"), ..wanted("both", "web") };
    assert!(create_endpoint(&cluster.view, &elsewhere).is_ok());

    let plan = remove_endpoint(&cluster.view, &made.network, &made.id).expect("plan");
    assert_eq!(plan.writes.len(), 3);
    cluster.carry_out(plan.writes);
    assert!(cluster.view.endpoints.is_empty() && cluster.view.ipam.is_empty());
    let refused = line(remove_endpoint(&cluster.view, &made.network, &made.id));
    assert!(refused.contains("is unknown"), "{refused}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

#[test]
fn an_endpoint_claims_its_additional_addresses_and_frees_them() {
    let mut cluster = Cluster::default();
    cluster.network(&net("both", 256, &["10.0.0.0/24", "fd00::/64"]));
    let ips = ["10.0.0.9", "10.0.0.7", "fd00::7"].map(ip).to_vec();
    let spec = EndpointSpec { ips, ..wanted("both", "web") };
    let (made, plan) = create_endpoint(&cluster.view, &spec).expect("plan");
    assert_eq!(made.mac.to_string(), "02:42:0a:00:00:09");
    assert_eq!(made.additional, [ip("10.0.0.7")]);
    let all = ["10.0.0.9", "fd00::7", "10.0.0.7"].map(ip);
    assert!(made.addresses().eq(all));
    for ip in all {
        assert!(plan.compares.contains(&Compare::Absent(Key::ipam(&made.network, ip))), "{ip}");
    }
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    assert!(cluster.view.endpoints.briefs(&made.network).all(|brief| brief.addresses().eq(all)));
    let other = EndpointSpec { ips: vec![ip("10.0.0.7")], ..wanted("both", "other") };
    let refused = line(create_endpoint(&cluster.view, &other));
    assert!(refused.contains("10.0.0.7 is taken by container 'web' on 'host1'"), "{refused}");
    let plan = remove_endpoint(&cluster.view, &made.network, &made.id).expect("plan");
    cluster.carry_out(plan.writes);
    assert!(cluster.view.endpoints.is_empty() && cluster.view.ipam.is_empty());
}

#[test]
fn addresses_come_and_go_while_the_endpoint_stays() {
    let mut cluster = Cluster::default();
    cluster.network(&net("red", 256, &["10.0.0.0/24"]));
    let (red, host, web, db) = (name("red"), name("host1"), name("web"), name("db"));
    for container in ["web", "db"] {
        let (_, plan) = create_endpoint(&cluster.view, &wanted("red", container)).expect("plan");
        cluster.carry_out(plan.writes);
    }
    let before = cluster.view.clone();
    let float = ip("10.0.0.100");
    let (made, plan) = add_address(&cluster.view, &red, &host, &web, float).expect("plan");
    let endpoint = Key::endpoint(&red, &made.id);
    let revision = cluster.view.endpoint(&red, &made.id).expect("endpoint").revision;
    assert_eq!(
        plan.compares,
        [
            Compare::Unchanged(Key::network(&red), 1),
            Compare::Unchanged(endpoint.clone(), revision),
            Compare::Absent(Key::ipam(&red, float)),
        ]
    );
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    assert_eq!(cluster.view.endpoint(&red, &made.id).expect("endpoint").additional, [float]);

    let view = &cluster.view;
    let primary = ip("10.0.0.2");
    for (result, part) in [
        (add_address(view, &red, &host, &web, primary), "taken by container 'web'"),
        (add_address(view, &red, &host, &db, float), "taken by container 'web'"),
        (add_address(view, &red, &host, &db, ip("10.1.0.9")), "outside network 'red'"),
        (add_address(view, &red, &host, &db, ip("10.0.0.1")), "is the gateway"),
        (add_address(view, &red, &host, &name("none"), ip("10.0.0.9")), "'none' is not in network"),
        (add_address(view, &name("green"), &host, &web, ip("10.0.0.9")), "unknown"),
        (remove_address(view, &red, &host, &web, primary), "is the primary one"),
        (remove_address(view, &red, &host, &db, float), "is not one of container 'db'"),
        (remove_address(view, &red, &host, &name("none"), float), "'none' is not in network"),
    ] {
        let line = line(result);
        assert!(line.contains(part), "{line}");
    }

    // The same again, as after an answer that was lost.
    let (again, plan) = add_address(view, &red, &host, &web, float).expect("plan");
    assert_eq!((again.id, again.additional), (made.id.clone(), vec![float]));
    let revision = view.endpoint(&red, &made.id).expect("endpoint").revision;
    assert_eq!(plan.compares, [Compare::Unchanged(endpoint, revision)]);
    assert!(plan.writes.is_empty());

    let (left, plan) = remove_address(view, &red, &host, &web, float).expect("plan");
    assert!(left.additional.is_empty());
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.ipam, before.ipam);
    assert!(add_address(&cluster.view, &red, &host, &db, float).is_ok());

    for last in 100..114_u8 {
        let ip = [10, 0, 0, last].into();
        let (_, plan) = add_address(&cluster.view, &red, &host, &web, ip).expect("plan");
        cluster.carry_out(plan.writes);
    }
    let last = add_address(&cluster.view, &red, &host, &web, ip("10.0.0.120"));
    let (_, plan) = last.expect("the sixteenth");
    cluster.carry_out(plan.writes);
    let refused = line(add_address(&cluster.view, &red, &host, &web, ip("10.0.0.121")));
    assert!(refused.contains("17 addresses are too many"), "{refused}");
}

#[test]
fn a_plan_whose_commit_is_in_doubt_is_fenced_off() {
    let mut cluster = Cluster::default();
    cluster.network(&net("red", 256, &["10.0.0.0/24"]));
    let host = node("host1", 1);
    cluster.put(Key::node(&host.name), &host);
    let (made, plan) = create_endpoint_as(&cluster.view, &wanted("red", "c"), "0a").expect("plan");
    assert_eq!(made.id, "0a");
    let revision = cluster.view.nodes[&host.name].revision;
    let required = Compare::Unchanged(Key::node(&host.name), revision);
    assert!(plan.compares.contains(&required), "{plan:?}");

    // It was not committed: it requires the node's record as it was, which is written again.
    let fence = |view: &View| fence_endpoint(view, &name("red"), "0a", &host.name).expect("plan");
    let fenced = fence(&cluster.view);
    assert!(fenced.compares.contains(&Compare::Absent(Key::endpoint(&name("red"), "0a"))));
    cluster.carry_out(fenced.writes);
    assert_eq!(cluster.view.nodes[&host.name].record, host);
    assert!(cluster.view.nodes[&host.name].revision > revision);

    // It was committed: it is removed, and the node's record is left alone.
    cluster.carry_out(plan.writes);
    let revision = cluster.view.nodes[&host.name].revision;
    let fenced = fence(&cluster.view);
    cluster.carry_out(fenced.writes);
    assert!(cluster.view.endpoints.is_empty() && cluster.view.ipam.is_empty());
    assert_eq!(cluster.view.nodes[&host.name].revision, revision);

    // An endpoint of another node is not touched.
    let elsewhere = EndpointSpec { node: name("host2"), ..wanted("red", "d") };
    let (_, plan) = create_endpoint_as(&cluster.view, &elsewhere, "0b").expect("plan");
    let absent = Compare::Absent(Key::node(&name("host2")));
    assert!(plan.compares.contains(&absent), "{plan:?}");
    cluster.carry_out(plan.writes);
    let refused = line(fence_endpoint(&cluster.view, &name("red"), "0b", &host.name));
    assert!(refused.contains("is on node 'host2', not on 'host1'"), "{refused}");
    assert_eq!(cluster.view.endpoints.count(), 1);

    // The node was removed from the store, and with it what the plan requires.
    cluster.carry_out(vec![Write::Delete(Key::node(&host.name))]);
    assert_eq!(fence(&cluster.view).writes, []);
}

#[test]
fn an_ipv6_network_gives_macs_from_its_addresses() {
    let mut cluster = Cluster::default();
    cluster.network(&net("six", 256, &["fd00::/64"]));
    let (made, plan) = create_endpoint(&cluster.view, &wanted("six", "c")).expect("plan");
    assert_eq!(made.mac.to_string(), "02:42:00:00:00:02");
    assert!(made.ipv4.is_none() && made.mac.is_unicast());
    // Another address may give the same MAC, so it is claimed.
    assert!(plan.compares.contains(&Compare::Absent(Key::mac(&made.network, made.mac))));
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
}

#[test]
fn a_mac_is_claimed_and_freed_with_its_endpoint() {
    let mut cluster = Cluster::default();
    let red = net("red", 256, &["10.0.0.0/24"]);
    cluster.network(&red);
    let mac: MacAddr = "0e:00:00:00:00:01".parse().expect("MAC");
    let spec = |container: &str| EndpointSpec { mac: Some(mac), ..wanted("red", container) };
    let (made, plan) = create_endpoint(&cluster.view, &spec("web")).expect("plan");
    let key = Key::mac(&red.name, mac);
    assert!(plan.compares.contains(&Compare::Absent(key.clone())));
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());

    // Records with the MAC of another: by its claim, by its address, and the gateway's.
    let derived = |last: u8| MacAddr::from_ipv4([10, 0, 0, last].into());
    let owned = format!("MAC {mac} belongs to endpoint {}", made.id);
    for (id, ip, mac, part) in [
        ("0b", "10.0.0.50", mac, owned.as_str()),
        ("0c", "10.0.0.51", derived(2), "belongs to address 10.0.0.2 "),
        ("0d", "10.0.0.52", derived(1), "belongs to address 10.0.0.1 "),
    ] {
        let thief = Endpoint { mac, ..endpoint(&red, id, "host2", ip) };
        cluster.endpoint(&thief);
        let line = cluster.view.usable_endpoint(&thief).expect_err("not usable");
        assert!(line.contains(part), "{line}");
        assert!(cluster.view.complaints().contains(&line));
        cluster.view.usable_endpoint(&made).expect("the earlier claim holds");
        let brief = cluster.view.endpoints.briefs(&red.name).find(|brief| brief.id.text() == id);
        assert!(!cluster.view.is_usable(&red, &brief.expect("it is there")));
    }
    assert!(line(create_endpoint(&cluster.view, &spec("db"))).contains("is taken by container"));

    let plan = remove_endpoint(&cluster.view, &red.name, &made.id).expect("plan");
    assert!(plan.writes.contains(&Write::Delete(key.clone())));
    cluster.carry_out(plan.writes);
    assert!(cluster.view.macs.is_empty());
    let plan = remove_endpoint(&cluster.view, &red.name, "0b").expect("plan");
    cluster.carry_out(plan.writes);
    cluster.raw(&key, b"x");
    let refused = line(create_endpoint(&cluster.view, &spec("db")));
    assert!(refused.contains("claimed by an unreadable record"), "{refused}");
    for id in ["0c", "0d"] {
        let plan = remove_endpoint(&cluster.view, &red.name, id).expect("plan");
        cluster.carry_out(plan.writes);
    }
    let plan = remove_network(&cluster.view, &red.name).expect("plan");
    assert!(plan.writes.contains(&Write::DeletePrefix(Key::macs_of(&red.name))));
}

#[test]
fn a_mac_that_an_earlier_version_gave_is_claimed_later() {
    let mut cluster = Cluster::default();
    let red = net("red", 256, &["10.0.0.0/24"]);
    cluster.network(&red);
    let mac: MacAddr = "0e:00:00:00:00:01".parse().expect("MAC");
    let old = Endpoint { mac, ..endpoint(&red, "0a", "host1", "10.0.0.2") };
    cluster.endpoint(&old);
    cluster.endpoint(&endpoint(&red, "0b", "host1", "10.0.0.3"));
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    assert_eq!(cluster.view.unclaimed_macs(&old.node), [(red.name.clone(), "0a".to_owned())]);
    for id in ["0b", "0a"] {
        let plan = claim_mac(&cluster.view, &red.name, id).expect("plan");
        assert_eq!(plan.writes.len(), usize::from(id == "0a"));
        cluster.carry_out(plan.writes);
    }
    assert_eq!(cluster.view.unclaimed_macs(&old.node), []);
    assert_eq!(claim_mac(&cluster.view, &red.name, "0a").expect("plan").writes, []);
    let refused = line(claim_mac(&cluster.view, &red.name, "0c"));
    assert!(refused.contains("is unknown"), "{refused}");
    // Who claims it first has it.
    let owner = MacOwner { schema: SCHEMA, endpoint: "0c".to_owned() };
    cluster.put(Key::mac(&red.name, mac), &owner);
    assert!(cluster.view.usable_endpoint(&old).is_err());
}

/// An earlier version removes an endpoint without its claim to the MAC. In an IPv6 network the next
/// endpoint gets the same address, and with it the same MAC.
#[test]
fn the_claim_of_an_endpoint_that_is_gone_is_replaced() {
    let mut cluster = Cluster::default();
    let six = net("six", 256, &["fd00::/64"]);
    cluster.network(&six);
    let (gone, plan) = create_endpoint(&cluster.view, &wanted("six", "gone")).expect("plan");
    cluster.carry_out(plan.writes);
    let mut plan = remove_endpoint(&cluster.view, &six.name, &gone.id).expect("plan");
    let (key, record) = (Key::mac(&six.name, gone.mac), Key::endpoint(&six.name, &gone.id));
    plan.writes.retain(|write| *write != Write::Delete(key.clone()));
    cluster.carry_out(plan.writes);
    let left = cluster.view.mac_claim(&six.name, gone.mac).expect("it is left").revision;

    let (next, plan) = create_endpoint(&cluster.view, &wanted("six", "next")).expect("plan");
    assert_eq!((next.mac, next.ipv6), (gone.mac, gone.ipv6));
    // Whoever has claimed the MAC meanwhile has it, and so has the endpoint if it is back.
    assert!(plan.compares.contains(&Compare::Unchanged(key.clone(), left)));
    assert!(plan.compares.contains(&Compare::Absent(record.clone())));
    // An earlier version makes an endpoint with the MAC: it is not carried until the MAC is its own.
    let old = Endpoint { id: "0a".to_owned(), ..next.clone() };
    let earlier = cluster.view.clone();
    cluster.endpoint(&old);
    assert_eq!(cluster.view.unclaimed_macs(&old.node), [(six.name.clone(), old.id.clone())]);
    let claim = claim_mac(&cluster.view, &six.name, &old.id).expect("plan");
    cluster.carry_out(claim.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    assert_eq!(cluster.view.unclaimed_macs(&old.node), []);

    cluster.view = earlier;
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.complaints(), Vec::<String>::new());
    // A record that cannot be read may be that of the endpoint.
    let owner = MacOwner { schema: SCHEMA, endpoint: gone.id };
    cluster.put(key, &owner);
    cluster.raw(&record, b"x");
    assert!(cluster.view.orphaned_mac(&six.name, gone.mac).is_none());
}

#[test]
fn a_mac_of_ones_own_is_checked() {
    let mut cluster = Cluster::default();
    let red = net("red", 256, &["10.0.0.0/24"]);
    cluster.network(&red);
    cluster.endpoint(&endpoint(&red, "0a", "host2", "10.0.0.2"));
    let with = |mac: &str, ip: Option<&str>| {
        let mac: MacAddr = mac.parse().expect("MAC");
        let ips: Vec<IpAddr> = ip.iter().map(|ip| ip.parse().expect("address")).collect();
        create_endpoint(&cluster.view, &EndpointSpec { mac: Some(mac), ips, ..wanted("red", "c") })
    };
    let (made, plan) = with("0e:00:00:00:00:01", None).expect("plan");
    assert_eq!(made.mac.to_string(), "0e:00:00:00:00:01");
    // The plan requires that nobody has claimed this MAC meanwhile.
    assert!(plan.compares.contains(&Compare::Absent(Key::mac(&red.name, made.mac))));
    // The MAC of its own address is valid. Outside the subnet 02:42 is free.
    with("02:42:0a:00:00:09", Some("10.0.0.9")).expect("plan");
    with("02:42:ac:11:00:02", None).expect("plan");
    for (mac, part) in [
        ("01:00:5e:00:00:01", "not that of one interface"),
        ("ff:ff:ff:ff:ff:ff", "not that of one interface"),
        ("00:00:00:00:00:00", "not that of one interface"),
        ("02:42:0a:00:00:02", "taken by container 'c0a' on 'host2'"),
        ("02:42:0a:00:00:63", "belongs to address 10.0.0.99"),
    ] {
        let line = line(with(mac, None));
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn an_endpoint_that_cannot_be_is_refused() {
    let mut cluster = Cluster::default();
    cluster.network(&net("red", 256, &["10.0.0.0/24"]));
    let unknown = line(create_endpoint(&cluster.view, &wanted("green", "c")));
    assert!(unknown.contains("network 'green' is unknown"), "{unknown}");
    let long = EndpointSpec { ifname: "x".repeat(16), ..wanted("red", "c") };
    assert!(line(create_endpoint(&cluster.view, &long)).contains("interface name"));
    cluster.raw("/culvert/v1/networks/red", b"x");
    let broken = line(create_endpoint(&cluster.view, &wanted("red", "c")));
    assert!(broken.contains("network 'red': its record in the store is skipped"), "{broken}");
}

#[test]
fn foreign_vteps_come_and_go() {
    let mut cluster = Cluster::default();
    let mut red = net("red", 256, &["10.0.0.0/24"]);
    red.learning = true;
    let mut bridge = net("br", 257, &["10.1.0.0/24"]);
    bridge.driver = Driver::Bridge;
    cluster.network(&red);
    cluster.network(&bridge);
    cluster.network(&net("blue", 258, &["10.2.0.0/24"]));
    let host = node("host1", 1);
    cluster.put(Key::node(&host.name), &host);
    let add = |view: &View, network: &str, ip: [u8; 4], port| {
        add_vtep(view, &name(network), ip.into(), port)
    };

    let (made, plan) = add(&cluster.view, "red", [192, 0, 2, 9], 8472).expect("plan");
    cluster.carry_out(plan.writes);
    assert_eq!(cluster.view.vteps[&red.name][&made.ip].record, made);
    for (result, part) in [
        (add(&cluster.view, "red", [192, 0, 2, 9], 4789), "already"),
        (add(&cluster.view, "red", [192, 0, 2, 1], 4789), "is node 'host1'"),
        (add(&cluster.view, "red", [224, 0, 0, 1], 4789), "multicast"),
        (add(&cluster.view, "red", [192, 0, 2, 8], 0), "UDP port 0"),
        (add(&cluster.view, "br", [192, 0, 2, 8], 4789), "has no VTEPs"),
        (add(&cluster.view, "blue", [192, 0, 2, 8], 4789), "does not learn"),
        (add(&cluster.view, "green", [192, 0, 2, 8], 4789), "unknown"),
        // Hosts with containers in that network would not reach it.
        (add(&cluster.view, "red", [10, 2, 0, 8], 4789), "is an address of network 'blue'"),
    ] {
        let line = line(result);
        assert!(line.contains(part), "{line}");
    }
    let plan = remove_vtep(&cluster.view, &red.name, made.ip).expect("plan");
    cluster.carry_out(plan.writes);
    assert!(cluster.view.vteps.is_empty());
    let refused = line(remove_vtep(&cluster.view, &red.name, made.ip));
    assert!(refused.contains("VTEP 192.0.2.9 is not in network 'red'"), "{refused}");
    // A record that cannot be read can be removed.
    cluster.raw("/culvert/v1/vteps/red/192.0.2.9", b"x");
    assert!(remove_vtep(&cluster.view, &red.name, made.ip).is_ok());
}

#[test]
fn identifiers_are_64_digits_and_differ() {
    let (one, two) = (new_id(), new_id());
    assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    assert_ne!(one, two);
    assert!(Key::endpoint(&name("n"), &one).parse::<Key>().is_ok());
}
