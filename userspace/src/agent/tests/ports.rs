//! Published ports: assignment, conflicts and release.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use futures::FutureExt as _;

use super::{
    fake::{DEADLINE, Paper, Port, Running, World, eventually, name, network, run, stored},
    paper::State,
    records::tcp_port,
    refusals::assert_refused,
};
use crate::{
    agent::{
        platform::{Holder, PlugError},
        ports::{self, Pending, Reservations, Translated},
    },
    api::{
        Backend as _,
        types::{ApiError, ContainerRow, ErrorKind},
    },
    datapath::Prefix,
    model::{
        Key,
        Protocol::{self, Tcp, Udp},
        PublishedPort, encode,
    },
    netfilter::{Chain, Translation, Translator},
    store::Write,
};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

async fn publish(
    host: &Running,
    container: &str,
    network: &str,
    ports: &[&str],
) -> Result<ContainerRow, ApiError> {
    let mut request = run(container, network);
    request.ports = ports.iter().map(ToString::to_string).collect();
    host.agent.container_create(request).await
}

fn held(paper: &Paper) -> Vec<(u16, Protocol)> {
    let state = paper.state();
    let held = state.held.lock().unwrap();
    held.iter().map(|(_, port, protocol)| (*port, *protocol)).collect()
}

fn busy(paper: &Paper, port: Port) {
    let nginx = Holder::Process { name: "nginx".to_owned(), pid: 4711 };
    paper.state().busy.insert(port, nginx);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_one_containers_until_it_goes() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let row = publish(&one, "web", "bridge", &["8080:80", "127.0.0.1:5353:53/udp"]).await.unwrap();
    assert_eq!(row.networks[0].ports, ["0.0.0.0:8080->80/tcp", "127.0.0.1:5353->53/udp"]);
    assert_eq!(held(&one.paper), [(8080, Tcp), (5353, Udp)]);
    let view = stored(&world).await;
    let endpoint = view.endpoints_on(&name("host1")).next().unwrap();
    assert_eq!(endpoint.ports.len(), 2);
    assert_eq!(one.agent.containers().await.unwrap()[0].networks, row.networks);

    // The ports are in use, on the same address or on all addresses.
    let conflict = ErrorKind::Conflict;
    for (port, part) in [
        ("8080:1", "port 8080/tcp is published by container 'web': "),
        ("127.0.0.1:8080:1", "port 127.0.0.1:8080/tcp is published by container 'web': "),
        ("0.0.0.0:5353:1/udp", "port 5353/udp is published by container 'web': "),
        ("8079-8081:1-3", "port 8080/tcp is published by container 'web': "),
    ] {
        assert_refused(publish(&one, "other", "bridge", &[port]).await, conflict, part);
    }
    assert_eq!(held(&one.paper), [(8080, Tcp), (5353, Udp)]);
    assert_eq!(one.paper.state().namespaces.len(), 1);
    assert_eq!(one.agent.containers().await.unwrap().len(), 1);
    assert_eq!(stored(&world).await.endpoints, view.endpoints);
    // The port is free for another protocol, another address and another host.
    publish(&one, "dns", "bridge", &["8080:80/udp", "127.0.0.2:5353:53/udp"]).await.unwrap();
    let two = world.start(2, &Paper::new()).await.ready().await;
    publish(&two, "web", "bridge", &["8080:80"]).await.unwrap();

    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert_eq!(held(&one.paper), [(8080, Udp), (5353, Udp)]);
    publish(&one, "next", "bridge", &["8080:80"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_cannot_be_had_is_refused_with_its_reason() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.run("first", "bridge").await.unwrap();
    one.network("blue").await.unwrap();
    let mut internal = network("inner");
    internal.internal = true;
    one.agent.network_create(internal).await.unwrap();
    busy(&one.paper, (ANY, 8080, Tcp));
    one.paper.state().busy.insert((ANY, 8081, Tcp), Holder::Ending);
    let before = stored(&world).await;

    let (conflict, invalid) = (ErrorKind::Conflict, ErrorKind::Invalid);
    for (network, ports, kind, part) in [
        ("bridge", &["8080:80"][..], conflict, "port 8080/tcp is in use by 'nginx' (pid 4711): "),
        ("blue", &["9000:9", "8080:80"], conflict, "in use by 'nginx'"),
        ("bridge", &["8081:80"], conflict, "by a connection that is ending: "),
        ("bridge", &["80:80"], conflict, "port 80/tcp: permission denied: a port below 100 "),
        ("bridge", &["192.0.2.9:8000:80"], invalid, "192.0.2.9 is not an address of this host"),
        ("bridge", &["192.0.2.9::80"], invalid, "192.0.2.9 is not an address of this host"),
        ("bridge", &["9000:1", "9000:2"], invalid, "port 9000/tcp is published twice"),
        ("bridge", &["9000:1", "127.0.0.1:9000:2"], invalid, "published twice"),
        ("bridge", &["80:0"], invalid, "published port '80:0'"),
        ("bridge", &["1-1024", "1"], invalid, "1025 ports are too many"),
        ("inner", &["8080:80"], invalid, "'inner', which is internal"),
    ] {
        assert_refused(publish(&one, "x", network, ports).await, kind, part);
    }
    assert_eq!(stored(&world).await.endpoints, before.endpoints);
    assert_eq!(held(&one.paper), []);
    assert_eq!(one.paper.state().namespaces.len(), 1);

    // The port is released together with the endpoint.
    one.paper.state().refuse_plug = Some(PlugError::Refused(conflict, "x: it will not fit".into()));
    assert_refused(publish(&one, "x", "bridge", &["9000:9"]).await, conflict, "will not fit");
    assert_eq!(held(&one.paper), []);
    one.paper.state().refuse_plug = None;
    publish(&one, "x", "blue", &["9000:9"]).await.unwrap();
}

/// The programs take packets before netfilter: the system that has made the rule would get none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_a_rule_translates_is_left_to_it() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.run("first", "bridge").await.unwrap();
    let chain = |name: &str| Chain {
        name: name.to_owned(),
        table: "nat".to_owned(),
        shown_by: "iptables-save -t nat",
    };
    let translation = |ports, destination: Option<&str>, by: &str| Translation {
        protocol: Tcp,
        ports,
        destination: destination.map(|net| net.parse().unwrap()),
        conditional: false,
        by: Translator::Chain(chain(by)),
    };
    one.paper.state().rules.translations = vec![
        translation((8081, 8081), None, "DOCKER"),
        // Not all of these are addresses of this host.
        translation((443, 443), Some("10.96.0.10/32"), "KUBE-SERVICES"),
        translation((8443, 8443), Some("192.0.2.0/24"), "KUBE-SERVICES"),
        translation((32_768, 60_998), None, "OWN"),
    ];
    let before = stored(&world).await;
    let conflict = ErrorKind::Conflict;
    for (port, part) in [
        ("8081:80", "port 8081/tcp is translated already by chain DOCKER of table nat ("),
        ("8080-8082:1-3", "port 8081/tcp is translated already by chain DOCKER of table nat ("),
        ("127.0.0.1:8081:80", "port 127.0.0.1:8081/tcp is translated already by chain DOCKER "),
        ("8443:80", "port 8443/tcp is translated already by chain KUBE-SERVICES "),
    ] {
        assert_refused(publish(&one, "x", "bridge", &[port]).await, conflict, part);
    }
    assert_eq!(held(&one.paper), []);
    assert_eq!(one.paper.state().namespaces.len(), 1);
    assert_eq!(stored(&world).await.endpoints, before.endpoints);

    let ports = ["443:80", "8081:80/udp", "127.0.0.1:8443:80", "80"];
    let row = publish(&one, "x", "bridge", &ports).await.unwrap();
    let chosen = row.networks[0].ports.iter().find(|port| port.starts_with("0.0.0.0:60999->80"));
    assert!(chosen.is_some(), "{:?}", row.networks[0].ports);
    assert_eq!(held(&one.paper).len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_ports_are_chosen_and_never_twice() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    for port in 32_768..46_000 {
        busy(&one.paper, (ANY, port, Tcp));
    }
    let all =
        (0..8).map(|n| {
            let one = &one;
            async move {
                publish(one, &format!("c{n}"), "bridge", &["80", "0:90-93/udp"]).await.unwrap()
            }
        });
    let rows = futures::future::join_all(all).await;
    let ports: std::collections::BTreeSet<String> =
        rows.iter().flat_map(|row| row.networks[0].ports.clone()).collect();
    assert_eq!(ports.len(), 40, "{ports:?}");
    let busy = one.paper.state().busy.clone();
    let held = held(&one.paper);
    assert_eq!(held.len(), 40);
    for (port, protocol) in held {
        assert!((32_768..=60_999).contains(&port) && !busy.contains_key(&(ANY, port, protocol)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_want_one_port_one_gets_it() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let all = (0..8).map(|n| {
        let one = &one;
        async move { publish(one, &format!("c{n}"), "bridge", &["8080:80"]).await }
    });
    let outcomes = futures::future::join_all(all).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert_refused(outcome, ErrorKind::Conflict, "port 8080/tcp is published by container 'c");
    }
    assert_eq!(held(&one.paper), [(8080, Tcp)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_takes_its_ports_again() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    publish(&one, "web", "bridge", &["8080:80", "9090:90"]).await.unwrap();
    let paper = Arc::clone(&one.paper);
    one.stop().await;
    // The sockets ended with the process; another process binds one of the ports.
    paper.state().held.lock().unwrap().clear();
    busy(&paper, (ANY, 9090, Tcp));

    let again = world.start(1, &paper).await.ready().await;
    assert_eq!(held(&paper), [(8080, Tcp)]);
    let row = &again.agent.containers().await.unwrap()[0];
    assert_eq!(row.networks[0].ports.len(), 2, "the container keeps it");
    assert_eq!(paper.state().tables.published.len(), 1, "the process has it");
    let line = "container 'web': port 9090/tcp is in use by 'nginx' (pid 4711): ";
    let problems = again.agent.status().await.unwrap().problems;
    assert!(problems.iter().any(|problem| problem.starts_with(line)), "{problems:?}");

    // The agent tries the port again.
    paper.state().busy.clear();
    again.eventually("9090 is held", |state| state.held.lock().unwrap().len() == 2).await;
    again.eventually("it is published", |state| state.tables.published.len() == 2).await;
    let problems = again.agent.status().await.unwrap().problems;
    assert!(!problems.iter().any(|problem| problem.starts_with(line)), "{problems:?}");
    again.agent.purge().await.unwrap();
    assert_eq!(held(&paper), []);
}

/// The present problems of an agent that are about ports of the host.
fn port_problems(host: &Running) -> Vec<String> {
    let problems = host.shared.shown.problems.lines();
    problems.into_iter().filter(|line| line.contains("': port ")).collect()
}

/// Lets the next full comparison of an agent wait, so that it tries no port again.
async fn hold_up_comparisons(host: &Running) {
    host.paper.reads.close(true);
    host.eventually("the comparison waits", |_| host.paper.reads.waiting() > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_without_an_open_file_are_held_as_soon_as_there_is_one() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    publish(&one, "web", "bridge", &["8080:80", "8081:81", "8082:82"]).await.unwrap();
    one.stop().await;
    let paper = Paper::new();
    paper.state().files = Some(1);
    let one = world.start(1, &paper).await.ready().await;
    let line = "container 'web': port 8081/tcp: no open file is left to hold it and 1 more: too many open files; trying again";
    eventually("both are told on one line", || async { port_problems(&one) == [line] }).await;
    assert_eq!(held(&paper), [(8080, Tcp)]);

    hold_up_comparisons(&one).await;
    paper.state().files = None;
    one.eventually("all are held", |state| state.held.lock().unwrap().len() == 3).await;
    eventually("no problem", || async { port_problems(&one).is_empty() }).await;
    paper.reads.close(false);
}

/// Two containers publish one port only if another program writes to the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contested_port_goes_to_the_container_that_stays() {
    for (goes, stays) in [("other", "web"), ("web", "other")] {
        let world = World::new().await;
        let one = world.start(1, &Paper::new()).await.ready().await;
        one.network("blue").await.unwrap();
        publish(&one, "web", "bridge", &["8080:80"]).await.unwrap();
        publish(&one, "other", "blue", &["8081:81"]).await.unwrap();
        hold_up_comparisons(&one).await;
        let view = stored(&world).await;
        let endpoint_of = |container: &str| {
            let (host, container) = (name("host1"), name(container));
            view.endpoints_on(&host).find(|ep| ep.container == container).unwrap().record
        };
        let mut endpoint = endpoint_of("other");
        endpoint.ports[0].host_port = 8080;
        let key = Key::endpoint(&endpoint.network, &endpoint.id);
        let write = Write::Put { key, value: encode(&endpoint).unwrap(), lease: None };
        world.store.commit(Vec::new(), vec![write]).await.unwrap();
        let leads_to = |state: &State, container: &str| {
            let entries: Vec<_> = state.tables.published.values().map(|entry| entry.vni).collect();
            entries == [endpoint_of(container).vni.get()]
        };
        eventually("it is told", || async {
            port_problems(&one).iter().any(|line| line.starts_with("container 'other': port 8080"))
        })
        .await;
        one.eventually("the holder has it", |state| leads_to(state, "web")).await;

        one.agent.container_remove(&name(goes), false).await.unwrap();
        one.eventually(stays, |state| leads_to(state, stays)).await;
        eventually("no problem", || async { port_problems(&one).is_empty() }).await;
        assert_eq!(held(&one.paper), [(8080, Tcp)]);
        one.paper.reads.close(false);
    }
}

/// Two records may have one port, if somebody wrote them: the holder alone is published.
#[test]
fn of_two_records_with_one_port_one_has_it_and_then_the_other() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let port = tcp_port(8080);
    let key = |id: &str| (id.to_owned(), port);
    let mut wanted = BTreeMap::from([(key("a"), name("web")), (key("b"), name("other"))]);
    for again in [false, true] {
        let synced = reservations.sync(paper.as_ref(), &wanted, again);
        assert_eq!(synced.unclaimed, [key("b")].into());
        assert!(synced.lines.values().all(|line| line.ends_with("the port is not published")));
        assert_eq!(synced.lines.len(), 1);
    }
    wanted.remove(&key("a"));
    let synced = reservations.sync(paper.as_ref(), &wanted, false);
    assert!(synced.unclaimed.is_empty() && synced.lines.is_empty());
}

#[test]
fn a_search_for_the_holder_of_a_port_keeps_no_other_port_waiting() {
    let paper = Paper::new();
    busy(&paper, (ANY, 8080, Tcp));
    let reservations = Reservations::default();
    let taken = tcp_port(8080);
    let wanted = BTreeMap::from([(("id".to_owned(), taken), name("web"))]);
    let requests = ports::parse(&name("other"), &["9090:90".to_owned()]).unwrap();
    let (tell, told) = mpsc::channel();
    paper.lookups.close(true);
    thread::scope(|scope| {
        let lines = scope.spawn(|| reservations.sync(paper.as_ref(), &wanted, false));
        let deadline = Instant::now() + DEADLINE;
        while paper.lookups.waiting() == 0 {
            assert!(Instant::now() < deadline, "nobody looks for the holder");
            thread::yield_now();
        }
        scope.spawn(|| {
            let other = name("other");
            let none = Translated::default();
            let ports = reservations.assign(paper.as_ref(), &Vec::new, &other, &requests, &none);
            tell.send(ports.is_ok_and(|ports| ports.ports().len() == 1)).unwrap();
        });
        let assigned = told.recv_timeout(DEADLINE);
        paper.lookups.close(false);
        assert_eq!(assigned, Ok(true), "another port while the search goes on");
        let lines = lines.join().unwrap().lines;
        assert!(lines.values().all(|line| line.contains("in use by 'nginx'")), "{lines:?}");
        assert_eq!(lines.len(), 1);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_ports_are_kept_and_shown() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let ask = async |name: &str, ports: &[&str], from: &[&str]| {
        let mut request = run(name, "bridge");
        request.ports = ports.iter().map(ToString::to_string).collect();
        request.from = from.iter().map(|from| from.parse().unwrap()).collect();
        one.agent.container_create(request).await
    };
    let row = ask("web", &["8080:80"], &["198.51.100.7", "192.0.2.0/24", "192.0.2.0/24"]).await;
    let clients = ["192.0.2.0/24", "198.51.100.7"];
    assert_eq!(row.unwrap().networks[0].from, clients);
    let ports = one.agent.ports().await.unwrap();
    assert_eq!(ports.published[0].from, clients);
    {
        let state = one.paper.state();
        let entry = state.tables.published.values().next().unwrap();
        assert_eq!(entry.flags, culvert_common::abi::PublishedEntry::RESTRICTED);
        let sources: Vec<_> = state.tables.sources.keys().copied().collect();
        let wanted = ["192.0.2.0/24", "198.51.100.7/32"]
            .map(|from| Prefix::of_clients(entry.ifindex, from.parse().unwrap()));
        assert_eq!(sources, wanted);
    }

    let many: Vec<String> = (0..257).map(|n| format!("10.{}.{}.0", n >> 8, n & 255)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let invalid = ErrorKind::Invalid;
    assert_refused(ask("x", &[], &["192.0.2.1"]).await, invalid, "about published ports");
    assert_refused(ask("x", &["81:81"], &["2001:db8::1"]).await, invalid, "is IPv6");
    assert_refused(ask("x", &["81:81"], &many).await, invalid, "257 sources are too many");
    let mut plain = run("x", "none");
    plain.from = vec!["192.0.2.1".parse().unwrap()];
    assert_refused(one.agent.container_create(plain).await, invalid, "about published ports");
    assert_eq!(held(&one.paper), [(8080, Tcp)]);

    one.agent.container_remove(&name("web"), false).await.unwrap();
    assert!(one.paper.state().tables.sources.is_empty());
}

/// Clients behind an interface that is neither Ethernet, tun nor WireGuard do not reach a port.
/// `run -p` names the interface, and so do `status`, `ps` and `ports ls`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_that_do_not_serve_a_port_are_told() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let tunnels = ["gre1", "ppp0"];
    one.paper.state().client_links.unserved = tunnels.map(str::to_owned).into();
    let web = publish(&one, "web", "bridge", &["8080:80"]).await.unwrap();
    let [warning] = web.warnings.as_slice() else { panic!("{:?}", web.warnings) };
    assert!(warning.contains("'web': its published ports are not reached through gre1, ppp0"));
    // Others do not miss anything.
    let local = publish(&one, "local", "bridge", &["127.0.0.1:8081:80"]).await.unwrap();
    assert_eq!(local.warnings, Vec::<String>::new());
    let shares = one.run("shares", "container:web").await.unwrap();
    assert_eq!(shares.warnings, Vec::<String>::new());

    let before = one.paper.state().client_links_read;
    let rows = one.agent.containers().await.unwrap();
    let unserved: Vec<_> = rows.iter().map(|row| row.networks[0].unserved.len()).collect();
    assert_eq!(unserved, [0, 2, 2], "local, shares, web");
    let read = one.paper.state().client_links_read - before;
    assert_eq!(read, 1, "once for a list of containers");
    assert_eq!(one.agent.ports().await.unwrap().unserved, tunnels);
    assert_eq!(one.agent.status().await.unwrap().datapath.unserved_links, tunnels);
    one.agent.container_remove(&name("web"), true).await.unwrap();
    assert_eq!(one.agent.ports().await.unwrap().unserved, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_one_entry_and_holds_every_port() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let row = publish(&one, "web", "bridge", &["1000-2999:2000-3999"]).await.unwrap();
    assert_eq!(row.networks[0].ports, ["0.0.0.0:1000-2999->2000-3999/tcp"]);
    assert_eq!(held(&one.paper).len(), 2000);
    assert_eq!(one.paper.state().tables.published.len(), 2000);
    let view = stored(&world).await;
    let record = view.endpoints_on(&name("host1")).next().unwrap().record;
    let [port] = record.ports.as_slice() else { panic!("{:?}", record.ports) };
    assert_eq!((port.host_port, port.container_port, port.count), (1000, 2000, 2000));

    let conflict = ErrorKind::Conflict;
    for (port, part) in [
        ("2999:1", "port 2999/tcp is published by container 'web': "),
        ("500-1001:1-502", "port 1000/tcp is published by container 'web': "),
        ("1-65535:1-65535", "port 1000/tcp is published by container 'web': "),
    ] {
        assert_refused(publish(&one, "x", "bridge", &[port]).await, conflict, part);
    }
    busy(&one.paper, (ANY, 5000, Udp));
    let refused = publish(&one, "x", "bridge", &["4000-5999:4000-5999/udp"]).await;
    assert_refused(refused, conflict, "port 5000/udp is in use by 'nginx'");
    assert_eq!(held(&one.paper).len(), 2000);

    // A restarted agent holds them again.
    one.stop().await;
    let paper = Paper::new();
    let again = world.start(1, &paper).await.ready().await;
    again.eventually("the ports are held", |state| state.held.lock().unwrap().len() == 2000).await;
    again.agent.container_remove(&name("web"), false).await.unwrap();
    assert_eq!(held(&paper), []);
}

/// Assigns ports to a container, on a host that publishes no others.
fn assign<'a>(
    reservations: &'a Reservations,
    paper: &Paper,
    container: &str,
    ports: &[&str],
) -> Result<Pending<'a>, ApiError> {
    let container = name(container);
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let requests = ports::parse(&container, &ports).unwrap();
    let none = Translated::default();
    let assigned = reservations.assign(paper, &Vec::new, &container, &requests, &none);
    assigned.map_err(|refused| refused.explain(paper))
}

#[test]
fn a_host_publishes_as_many_ports_as_the_map_takes() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let assign = |container: &str, port: &str| assign(&reservations, &paper, container, &[port]);
    let tcp = assign("a", "100-65535:100-65535").unwrap();
    let udp = assign("b", "100-65535:100-65535/udp").unwrap();
    assert_eq!((tcp.ports().len(), udp.ports().len()), (1, 1));
    assert_eq!(held(&paper).len(), 2 * 65_436);
    drop(udp);
    assert_eq!(held(&paper).len(), 65_436);
    let _udp = assign("b", "127.0.0.1:100-65535:100-65535/udp").unwrap();
    let refused = assign("c", "127.0.0.2:100-65535:100-65535/udp").map(|_| ());
    let part = "publishes 130872 ports, and 65436 more are too many: 131072 in all are valid";
    assert_refused(refused, ErrorKind::Conflict, part);
}

/// The ports of an endpoint that is in the store already, and whose request has not ended yet, count
/// once.
#[test]
fn ports_that_are_claimed_and_published_count_once() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let web = assign(&reservations, &paper, "web", &["100-65535:100-65535"]).unwrap();
    let published = || -> Vec<_> { web.ports().iter().map(|port| (*port, name("web"))).collect() };
    let (other, none) = (name("other"), Translated::default());
    let requests = ports::parse(&other, &["100-65535:100-65535/udp".to_owned()]).unwrap();
    let assigned = reservations.assign(paper.as_ref(), &published, &other, &requests, &none);
    assert_eq!(assigned.unwrap().ports().len(), 1);
    let requests = ports::parse(&other, &["200:80".to_owned()]).unwrap();
    let refused = reservations.assign(paper.as_ref(), &published, &other, &requests, &none);
    let refused = refused.map(drop).map_err(|refused| refused.explain(paper.as_ref()));
    assert_refused(refused, ErrorKind::Conflict, "port 200/tcp is published by container 'web': ");
}

/// A bound socket keeps its port from the host's own connections: a host without free ports reaches
/// nobody, not even its store.
#[test]
fn ports_are_left_for_the_connections_of_the_host() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let assign = |container: &str, ports: &[&str]| assign(&reservations, &paper, container, ports);
    paper.state().own_ports = Some((32_768, 60_999));
    let part = "container 'x': with its tcp ports, containers publish 28232 of the 28232 ports that this host uses for its own connections (net.ipv4.ip_local_port_range, 32768 to 60999): 27208 at most are valid";
    for port in ["100-65535:100-65535", "127.0.0.1:100-65535:100-65535"] {
        assert_refused(assign("x", &[port]).map(drop), ErrorKind::Conflict, part);
    }
    assert_eq!(held(&paper), []);
    // 1024 of them are left, and all beside them are free.
    let _most = assign("web", &["100-59975:100-59975"]).unwrap();
    for port in ["59976:80", "80"] {
        let part = "containers publish 27209 of the 28232 ports";
        assert_refused(assign("x", &[port]).map(drop), ErrorKind::Conflict, part);
    }
    assert!(assign("x", &["61000:80", "32768-60999:1-28232/udp"]).is_err());
    let _beside = assign("x", &["61000:80", "59976:80/udp"]).unwrap();
    // A small range is not taken as a whole either.
    paper.state().own_ports = Some((62_000, 62_099));
    assert!(assign("y", &["62000-62050:1-51"]).is_err());
    assign("y", &["62000-62049:1-50"]).unwrap();
    paper.state().own_ports = None;
    assign("y", &["62000-62099:1-100"]).unwrap();
}

/// An agent without a free file could do nothing else any more.
#[test]
fn a_range_that_would_take_the_last_files_is_refused_at_once() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    paper.state().files = Some(3000);
    let refused = assign(&reservations, &paper, "web", &["1000-4000:1000-4000"]).map(drop);
    let part = "container 'web': 3001 ports take as many open files, and 3000 are left for them: too many open files";
    assert_refused(refused, ErrorKind::Unavailable, part);
    assert_eq!(held(&paper), []);
    assign(&reservations, &paper, "web", &["1001-4000:1001-4000"]).unwrap();
}

/// The engine does other work while very many ports are held, or let go.
#[test]
fn very_many_ports_are_held_and_let_go_in_parts() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let all = PublishedPort { container_port: 1000, count: 10_000, ..tcp_port(1000) };
    let mut wanted: BTreeMap<_, _> =
        all.singles().map(|port| (("a".to_owned(), port), name("web"))).collect();
    let sync = |wanted: &_| {
        let synced = reservations.sync(paper.as_ref(), wanted, false);
        assert!(synced.lines.is_empty() && synced.unclaimed.is_empty(), "{synced:?}");
        (held(&paper).len(), reservations.is_unfinished())
    };
    let steps = [sync(&wanted), sync(&wanted), sync(&wanted)];
    assert_eq!(steps, [(4096, true), (8192, true), (10_000, false)]);
    // Another container gets the ports. None of them fails because it is not closed yet.
    wanted = all.singles().map(|port| (("b".to_owned(), port), name("next"))).collect();
    let steps = (1..20).find(|_| !sync(&wanted).1);
    assert_eq!(steps, Some(5));
    assert_eq!(held(&paper).len(), 10_000);
    wanted.clear();
    let steps = [sync(&wanted), sync(&wanted), sync(&wanted)];
    assert_eq!(steps, [(5904, true), (1808, true), (0, false)]);
}

/// A request that needs a port does not fail because the port is not closed yet.
#[test]
fn a_port_that_was_released_can_be_had_at_once() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let ports = ["1000-10999:1000-10999"];
    let pending = assign(&reservations, &paper, "web", &ports).unwrap();
    let singles = pending.ports().iter().flat_map(|port| port.singles());
    let wanted = singles.map(|port| (("a".to_owned(), port), name("web"))).collect();
    assert!(reservations.sync(paper.as_ref(), &wanted, false).lines.is_empty());
    drop(pending);
    assert_eq!(held(&paper).len(), 10_000);
    reservations.sync(paper.as_ref(), &BTreeMap::new(), false);
    assert!(reservations.is_unfinished());
    let _next = assign(&reservations, &paper, "next", &ports).unwrap();
    assert_eq!(held(&paper).len(), 10_000);
    assert!(!reservations.is_unfinished());
}

/// The engine binds nothing while a request closes sockets, and goes on once they are closed. It
/// would else wait for another event.
#[test]
fn the_end_of_a_request_that_closes_ports_is_told() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let all = PublishedPort { container_port: 1000, count: 4097, ..tcp_port(1000) };
    let many: BTreeMap<_, _> =
        all.singles().map(|port| (("a".to_owned(), port), name("web"))).collect();
    let next = BTreeMap::from([(("b".to_owned(), tcp_port(9000)), name("next"))]);
    let sync = |wanted: &_| {
        reservations.sync(paper.as_ref(), wanted, false);
        reservations.is_unfinished()
    };
    let none = BTreeMap::new();
    assert_eq!([&many, &many, &none].map(sync), [true, false, true]);
    paper.closes.close(true);
    thread::scope(|scope| {
        let request = scope.spawn(|| assign(&reservations, &paper, "x", &["8000:80"]).map(drop));
        let deadline = Instant::now() + DEADLINE;
        while paper.closes.waiting() == 0 {
            assert!(Instant::now() < deadline, "nobody closes the port");
            thread::yield_now();
        }
        assert!(!sync(&next), "nothing can be done meanwhile");
        assert!(reservations.closed().now_or_never().is_none());
        paper.closes.close(false);
        request.join().unwrap().unwrap();
    });
    assert!(reservations.closed().now_or_never().is_some() && reservations.is_unfinished());
    assert!(!sync(&next));
    assert_eq!(held(&paper), [(9000, Tcp)]);
}

/// A range takes a long time to bind: the engine, and requests for other ports, do not wait.
#[test]
fn a_request_for_a_range_keeps_nobody_waiting() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    paper.holds.close(true);
    thread::scope(|scope| {
        let range = scope.spawn(|| assign(&reservations, &paper, "web", &["1000-1999:1-1000"]));
        let deadline = Instant::now() + DEADLINE;
        while paper.holds.waiting() == 0 {
            assert!(Instant::now() < deadline, "nobody binds the range");
            thread::yield_now();
        }
        let (tell, told) = mpsc::channel();
        let engine = tell.clone();
        scope.spawn(|| {
            let tell = engine;
            reservations.sync(paper.as_ref(), &BTreeMap::new(), true);
            tell.send(String::new()).unwrap();
        });
        scope.spawn(|| {
            let tell = tell;
            let refused = assign(&reservations, &paper, "x", &["1500:80"]).map(drop);
            tell.send(refused.unwrap_err().message).unwrap();
        });
        let mut lines = [told.recv_timeout(DEADLINE), told.recv_timeout(DEADLINE)];
        paper.holds.close(false);
        lines.sort_unstable_by_key(|line| line.as_ref().map_or(0, String::len));
        assert_eq!(lines[0], Ok(String::new()));
        let part = "port 1500/tcp is published by container 'web': ";
        assert!(lines[1].as_ref().is_ok_and(|line| line.starts_with(part)), "{lines:?}");
        assert_eq!(range.join().unwrap().unwrap().ports().len(), 1);
    });
    assert_eq!(held(&paper), []);
}

/// A search for a holder reads the files of all processes. Many ports in use are not many searches.
#[test]
fn of_many_ports_in_use_the_holders_of_some_are_searched() {
    let paper = Paper::new();
    let reservations = Reservations::default();
    let all = PublishedPort { container_port: 1000, count: 100, ..tcp_port(1000) };
    for port in all.singles() {
        busy(&paper, (ANY, port.host_port, Tcp));
    }
    let wanted = all.singles().map(|port| (("a".to_owned(), port), name("web"))).collect();
    let synced = reservations.sync(paper.as_ref(), &wanted, false);
    assert_eq!(synced.unclaimed.len(), 100);
    let named = synced.lines.values().filter(|line| line.contains("in use by 'nginx'")).count();
    assert_eq!((synced.lines.len(), named), (100, 16));
    assert!(synced.lines.values().all(|line| line.ends_with("the port is not published")));
}
