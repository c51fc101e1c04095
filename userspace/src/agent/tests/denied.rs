//! Clients that may not use published ports.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, sync::Arc};

use culvert_common::abi::{DropReason, Flow, FlowKey, Tuple, kind, zone};
use ipnetwork::Ipv4Network;

use super::{
    fake::{Paper, Running, World, run},
    refusals::assert_refused,
};
use crate::{
    agent::{denied::Denied, state::Disk},
    api::{
        Backend as _,
        types::{ApiError, ErrorKind, NatQuery, Sources},
    },
    datapath::FlowTable as _,
    model::parse_source,
};

fn sources(texts: &[&str]) -> Sources {
    Sources { sources: texts.iter().map(|text| parse_source(text).unwrap()).collect() }
}

async fn deny(host: &Running, texts: &[&str]) -> Result<(), ApiError> {
    host.agent.ports_deny(sources(texts)).await
}

async fn allow(host: &Running, texts: &[&str]) -> Result<Vec<String>, ApiError> {
    host.agent.ports_allow(sources(texts)).await.map(|allowed| allowed.still)
}

async fn listed(host: &Running) -> Vec<String> {
    host.agent.ports().await.unwrap().denied
}

/// The denied sources in the map of the programs.
fn in_force(paper: &Paper) -> Vec<String> {
    paper.state().denied.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_holds_until_it_is_taken_back() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let mut web = run("web", "bridge");
    web.ports = vec!["8080:80".to_owned()];
    one.agent.container_create(web).await.unwrap();
    one.run("side", "container:web").await.unwrap();
    one.paper.state().dropped.insert(DropReason::Denied, 4);

    for _ in 0..2 {
        deny(&one, &["203.0.113.7", "198.51.100.0/24"]).await.unwrap();
        assert_eq!(in_force(&one.paper), ["198.51.100.0/24", "203.0.113.7/32"]);
    }
    let ports = one.agent.ports().await.unwrap();
    assert_eq!(ports.denied, ["198.51.100.0/24", "203.0.113.7"]);
    assert_eq!(ports.dropped, 4);
    let [port] = ports.published.as_slice() else { panic!("{ports:?}") };
    assert_eq!((port.container.as_str(), port.network.as_str()), ("web", "bridge"));
    assert_eq!(port.port, "0.0.0.0:8080->80/tcp");

    // The next agent loads its programs with the list.
    let state_dir = world.state_dir(&one.shared.node);
    one.stop().await;
    let loaded = Denied::load(&state_dir).unwrap();
    assert!(loaded.problems().is_empty());
    let net = |text: &str| text.parse::<Ipv4Network>().unwrap();
    assert_eq!(loaded.sources(), [net("198.51.100.0/24"), net("203.0.113.7/32")]);
    let one = world.start(1, &Paper::new()).await.ready().await;
    assert_eq!(listed(&one).await, ["198.51.100.0/24", "203.0.113.7"]);

    for _ in 0..2 {
        assert_eq!(allow(&one, &["203.0.113.7"]).await.unwrap(), [""; 0]);
        assert_eq!(listed(&one).await, ["198.51.100.0/24"]);
    }
    assert_eq!(allow(&one, &["198.51.100.0/24"]).await.unwrap(), [""; 0]);
    assert_eq!(in_force(&one.paper), [""; 0]);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_denied_is_told() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    deny(&one, &["203.0.113.0/24", "203.0.113.7", "198.51.100.1"]).await.unwrap();
    let before = listed(&one).await;
    for source in ["203.0.113.8", "203.0.113.0/25"] {
        let refused = allow(&one, &[source, "198.51.100.1"]).await;
        let part = "is denied as part of 203.0.113.0/24: ";
        assert_refused(refused, ErrorKind::Conflict, part);
        assert_eq!(listed(&one).await, before);
    }
    let still = allow(&one, &["203.0.113.7"]).await.unwrap();
    assert!(
        still[0].contains("source 203.0.113.7 is denied as part of 203.0.113.0/24"),
        "{still:?}"
    );
    deny(&one, &["203.0.113.7"]).await.unwrap();
    let still = allow(&one, &["203.0.113.0/24"]).await.unwrap();
    assert!(still[0].contains("203.0.113.7 in it is still denied"), "{still:?}");
    // If both are allowed in one request, neither stays denied.
    deny(&one, &["203.0.113.0/24"]).await.unwrap();
    assert_eq!(allow(&one, &["203.0.113.0/24", "203.0.113.7"]).await.unwrap(), [""; 0]);
    assert_eq!(listed(&one).await, ["198.51.100.1"]);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_that_fails_changes_nothing() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    deny(&one, &["198.51.100.1"]).await.unwrap();
    let file = world.state_dir(&one.shared.node).join("denied");
    let before = fs::read(&file).unwrap();
    let unchanged = async || {
        assert_eq!(listed(&one).await, ["198.51.100.1"]);
        assert_eq!(in_force(&one.paper), ["198.51.100.1/32"]);
        assert_eq!(fs::read(&file).unwrap(), before);
    };
    assert_refused(deny(&one, &["2001:db8::1"]).await, ErrorKind::Invalid, "is IPv6");
    assert_refused(deny(&one, &[]).await, ErrorKind::Invalid, "none is named");
    unchanged().await;
    one.paper.state().deny_nobody = true;
    assert_refused(deny(&one, &["192.0.2.1"]).await, ErrorKind::Internal, "denied sources: ");
    unchanged().await;
    one.paper.state().deny_nobody = false;
    // The file cannot be replaced.
    let scratch = file.with_file_name("denied.new");
    fs::create_dir(&scratch).unwrap();
    assert_refused(deny(&one, &["192.0.2.1"]).await, ErrorKind::Internal, "denied sources: ");
    assert_refused(allow(&one, &["198.51.100.1"]).await, ErrorKind::Internal, "denied sources: ");
    unchanged().await;
    fs::remove_dir(&scratch).unwrap();

    let many: Vec<String> = (0..=65_535_u32).map(|n| Ipv4Addr::from(n << 8).to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_refused(deny(&one, &many).await, ErrorKind::Conflict, "65537 are too many: ");
    unchanged().await;
    one.stop().await;
}

/// Both directions of a connection of a client to a published port.
fn published(client: [u8; 4]) -> [(FlowKey, Flow); 2] {
    let tuple = Tuple { src: client, dst: [192, 0, 2, 1], src_port: [9, 9], dst_port: [31, 144] };
    let key = FlowKey::new(zone::EXTERNAL, 6, tuple);
    let to = Tuple { dst: [172, 17, 0, 2], dst_port: [0, 80], ..tuple };
    let kind = kind::ORIG | kind::PUBLISHED;
    let orig = Flow { to, zone: 256, dest: 7, kind, ..Flow::default() };
    let reply = Flow { to: tuple.reversed(), kind: kind::PUBLISHED, ..Flow::default() };
    [(key, orig), (key.other(&orig), reply)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_a_denied_client_end() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let flow = published([203, 0, 113, 7]);
    one.paper.flows.put(flow);

    let states = async || -> BTreeSet<String> {
        let rows = one.agent.nat(NatQuery::default()).await.unwrap();
        rows.into_iter().map(|row| row.state).collect()
    };
    deny(&one, &["203.0.113.8"]).await.unwrap();
    assert_eq!(states().await, ["tcp_loose".to_owned()].into());
    deny(&one, &["203.0.113.0/24"]).await.unwrap();
    assert_eq!(states().await, ["denied".to_owned()].into());
    for (key, _) in flow {
        assert_ne!(one.paper.flows.lookup(&key).unwrap().unwrap().kind & kind::DENIED, 0);
    }
    // The client may open a new connection with the same ports.
    allow(&one, &["203.0.113.0/24"]).await.unwrap();
    assert_eq!(states().await, BTreeSet::new());
    one.stop().await;
}

/// The table of flows is read only if a change can concern a flow.
#[test]
fn the_table_of_flows_is_read_where_it_must() {
    let dir = tempfile::tempdir().unwrap();
    let (paper, disk) = (Paper::new(), Disk::new(dir.path().to_owned(), Arc::default()));
    let denied = Denied::load(dir.path()).unwrap();
    let nets = |texts: &[&str]| -> Vec<Ipv4Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let deny = |texts: &[&str]| denied.deny(&*paper, &disk, &nets(texts));
    let allow = |texts: &[&str]| denied.allow(&*paper, &disk, &nets(texts)).unwrap();
    let reads = || std::mem::take(&mut paper.flows.state.lock().unwrap().slices).len();
    let kind = |flow: &[(FlowKey, Flow); 2]| {
        paper.flows.lookup(&flow[0].0).unwrap().map(|flow| flow.kind & kind::DENIED != 0)
    };

    // The changes of the agent before this one are not known.
    deny(&["203.0.113.0/24"]).unwrap();
    assert_eq!(reads(), 2);
    allow(&["198.51.100.1/32"]);
    assert_eq!(reads(), 1);

    // The sources were denied before, one of them as part of a prefix, and no flow was ended.
    deny(&["203.0.113.0/24", "203.0.113.7/32"]).unwrap();
    allow(&["203.0.113.7/32"]);
    assert_eq!(reads(), 0);
    assert_eq!(denied.sources(), nets(&["203.0.113.0/24"]));

    // A flow that could not be ended is ended by the next denial, whatever source that denies.
    let flows = [published([198, 51, 100, 1]), published([198, 51, 100, 2])];
    flows.iter().for_each(|flow| paper.flows.put(*flow));
    paper.flows.state.lock().unwrap().unreadable = true;
    let refused = deny(&["198.51.100.1/32"]).unwrap_err();
    assert!(refused.message.contains("existing ones go on"), "{refused:?}");
    paper.flows.state.lock().unwrap().unreadable = false;
    assert_eq!(flows.each_ref().map(kind), [Some(false); 2]);
    deny(&["203.0.113.0/24"]).unwrap();
    assert_eq!(flows.each_ref().map(kind), [Some(true), Some(false)]);
    deny(&["198.51.100.2/32"]).unwrap();
    assert_eq!(flows.each_ref().map(kind), [Some(true); 2]);
    reads();

    // The table is read until the last ended flow is removed.
    allow(&["198.51.100.1/32"]);
    assert_eq!(flows.each_ref().map(kind), [None, Some(true)]);
    allow(&["198.51.100.2/32"]);
    assert_eq!(flows.each_ref().map(kind), [None; 2]);
    assert_eq!(reads(), 2);
    allow(&["203.0.113.0/24"]);
    assert_eq!(reads(), 0);
}
