//! Conntrack, from the table of flows to the answers of the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use culvert_common::abi::{
    DropReason, Flow, FlowKey, FlowShare, Tuple, kind, reserved_bit, seen, zone,
};

use super::fake::{Paper, Running, World, eventually, name};
use crate::{
    agent::conntrack,
    api::{
        Backend as _,
        types::{ConntrackShare, ConntrackStatus, ErrorKind, FlowProtocol, NatQuery, NatRow},
    },
    datapath::FlowTable as _,
};

const HOST: [u8; 4] = [192, 0, 2, 1];
const FAR: [u8; 4] = [198, 51, 100, 7];

fn tuple(src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Tuple {
    Tuple { src: src.0, src_port: src.1.to_be_bytes(), dst: dst.0, dst_port: dst.1.to_be_bytes() }
}

impl Running {
    /// Puts a flow into the table, last used `idle_s` seconds ago, with `flags` in both
    /// directions. Returns the key of the `ORIG` direction.
    fn flow(
        &self,
        from: FlowKey,
        to: Tuple,
        to_zone: u32,
        idle_s: u64,
        (kind, seen): (u32, u32),
    ) -> FlowKey {
        use crate::agent::platform::Maps as _;
        let last_seen_ns = self.paper.now_ns() - idle_s * 1_000_000_000;
        let half = Flow { last_seen_ns, packets: 2, bytes: 300, kind, seen, ..Flow::default() };
        let orig = Flow { to, zone: to_zone, kind: kind | kind::ORIG, ..half };
        let reply = Flow { to: from.tuple.reversed(), zone: from.zone, packets: 1, ..half };
        self.paper.flows.put([(from, orig), (from.other(&orig), reply)]);
        from
    }

    async fn nat(&self, query: NatQuery) -> Vec<NatRow> {
        self.agent.nat(query).await.unwrap()
    }
}

/// A host with the containers `web` and `db`; their addresses, and the VNI.
async fn two_containers(world: &World) -> (Running, [u8; 4], [u8; 4], u32) {
    let one = world.start(1, &Paper::new()).await.ready().await;
    one.network("blue").await.unwrap();
    let mut addresses = Vec::new();
    for container in ["web", "db"] {
        let row = one.run(container, "blue").await.unwrap();
        addresses.push(row.networks[0].ip.parse::<Ipv4Addr>().unwrap().octets());
    }
    let vni = one.agent.networks().await.unwrap()[0].vni;
    (one, addresses[0], addresses[1], vni)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_are_listed_with_the_names_of_their_containers() {
    let world = World::new().await;
    let (one, web, db, vni) = two_containers(&world).await;
    let established = seen::PACKET | seen::SYN | seen::ACK;
    one.flow(
        FlowKey::new(vni, 6, tuple((web, 40_000), (FAR, 443))),
        tuple((HOST, 40_001), (FAR, 443)),
        zone::EXTERNAL,
        10,
        (kind::MASQUERADE, established),
    );
    one.flow(
        FlowKey::new(zone::EXTERNAL, 17, tuple((FAR, 5000), (HOST, 53))),
        tuple((FAR, 5000), (db, 5353)),
        vni,
        0,
        (kind::PUBLISHED, seen::PACKET),
    );
    one.flow(
        FlowKey::new(zone::LOOPBACK, 6, tuple((HOST, 6000), (HOST, 8080))),
        tuple((HOST, 6000), (db, 80)),
        vni,
        0,
        (kind::PUBLISHED, 0),
    );
    one.flow(
        FlowKey::new(vni, 6, tuple((web, 7000), (HOST, 8080))),
        tuple((HOST, 7000), (db, 80)),
        vni,
        200,
        (kind::PUBLISHED | kind::MASQUERADE, 0),
    );
    one.flow(
        FlowKey::new(vni, 1, tuple((web, 7), (FAR, 0))),
        tuple((HOST, 8), (FAR, 0)),
        zone::EXTERNAL,
        0,
        (kind::MASQUERADE, seen::PACKET),
    );
    // One direction without the other is not listed.
    let half = Flow { kind: kind::ORIG | kind::MASQUERADE, ..Flow::default() };
    let key = FlowKey::new(vni, 6, tuple((web, 1), (FAR, 1)));
    one.paper.flows.put([(key, half)]);

    let rows = one.nat(NatQuery::default()).await;
    let shown: Vec<_> = rows
        .iter()
        .map(|row| {
            let NatRow { protocol, state, kind, network, container, from, .. } = row;
            let protocol = protocol.name();
            format!("{protocol} {state} {kind} {network} {container} {from} {}", row.timeout_s)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "tcp tcp_loose published blue db web 100",
            "tcp tcp_loose published blue db host 300",
            "udp udp_stream published blue db external 120",
            "tcp tcp_established masquerade blue web web 431990",
            "icmp icmp masquerade blue web web 30",
        ]
    );
    assert_eq!(
        rows[3],
        NatRow {
            protocol: FlowProtocol::Tcp,
            state: "tcp_established".to_owned(),
            kind: "masquerade".to_owned(),
            network: "blue".to_owned(),
            vni,
            container: "web".to_owned(),
            from: "web".to_owned(),
            src: web.into(),
            src_port: 40_000,
            dst: FAR.into(),
            dst_port: 443,
            nat_src: HOST.into(),
            nat_src_port: 40_001,
            nat_dst: FAR.into(),
            nat_dst_port: 443,
            timeout_s: 431_990,
            orig_packets: 2,
            orig_bytes: 300,
            reply_packets: 1,
            reply_bytes: 300,
        }
    );

    for (container, protocol, address, found) in [
        (Some("web"), None, None, 3),
        (Some("db"), None, None, 3),
        (Some("web"), Some(FlowProtocol::Tcp), None, 2),
        (None, Some(FlowProtocol::Udp), None, 1),
        (None, None, Some(FAR), 3),
        (None, None, Some(HOST), 5),
        (None, None, Some([203, 0, 113, 1]), 0),
        (Some("db"), Some(FlowProtocol::Icmp), Some(FAR), 0),
    ] {
        let query = NatQuery {
            container: container.map(name),
            protocol,
            address: address.map(Ipv4Addr::from),
            from: None,
        };
        let rows = one.nat(query.clone()).await;
        assert_eq!(rows.len(), found, "{query:?}: {rows:?}");
        let page = one.agent.nat_page(query.clone()).await.unwrap();
        assert_eq!((page.rows.len(), page.next), (found, None));
    }
    one.run("side", "container:web").await.unwrap();
    let side = NatQuery { container: Some(name("side")), ..NatQuery::default() };
    assert_eq!(one.nat(side).await.len(), 3);

    let nobody = NatQuery { container: Some(name("nobody")), ..NatQuery::default() };
    let error = one.agent.nat(nobody).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.starts_with("container 'nobody' is unknown: "), "{error}");
    one.stop().await;
}

/// A table of several pages, read while flows begin and end: a flow that lives from the first page
/// to the last one is in one page, and only once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_several_pages_is_listed_once() {
    const FLOWS: u32 = 10_000;
    let world = World::new().await;
    let (one, web, db, vni) = two_containers(&world).await;
    let far = |number: u32| Ipv4Addr::from(0x0a80_0000 + number);
    let put = |container, number| {
        let dst = (far(number).octets(), 443);
        let key = FlowKey::new(vni, 17, tuple((container, 4000), dst));
        let to = tuple((HOST, 4000), dst);
        one.flow(key, to, zone::EXTERNAL, 0, (kind::MASQUERADE, seen::PACKET))
    };
    let of_number = |number: u32| if number.is_multiple_of(4) { db } else { web };
    let keys: Vec<_> = (0..FLOWS).map(|number| put(of_number(number), number)).collect();

    let all = one.nat(NatQuery::default()).await;
    let listed: BTreeSet<_> = all.iter().map(|row| row.dst).collect();
    assert_eq!(all.len(), FLOWS as usize);
    assert_eq!(listed, (0..FLOWS).map(far).collect::<BTreeSet<_>>());
    assert!(all.is_sorted_by_key(|row| (row.container.clone(), row.dst)), "all rows are sorted");

    let query = NatQuery { container: Some(name("web")), ..NatQuery::default() };
    let mut from = None;
    let (mut pages, mut times) = (0, BTreeMap::<Ipv4Addr, u32>::new());
    loop {
        let page = one.agent.nat_page(NatQuery { from, ..query.clone() }).await.unwrap();
        assert!(page.rows.len() < FLOWS as usize / 2, "{} rows in a page", page.rows.len());
        assert!(page.rows.is_sorted_by_key(|row| row.dst), "a page is sorted");
        page.rows.iter().for_each(|row| *times.entry(row.dst).or_default() += 1);
        // Each page takes some flows with it, and others begin.
        for key in &keys[100 * pages..100 * (pages + 1)] {
            one.paper.flows.remove(key).unwrap();
        }
        for number in 0..100 {
            put(web, FLOWS + 100 * pages as u32 + number);
        }
        pages += 1;
        assert!(pages <= 10, "{pages} pages");
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert!(pages >= 3, "{pages} pages");
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let lived = (100 * pages as u32..FLOWS).filter(|number| of_number(*number) == web);
    let missed: Vec<_> = lived.map(far).filter(|dst| !times.contains_key(dst)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_with_refused_flows_are_in_the_status() {
    let world = World::new().await;
    let (one, web, _, _) = two_containers(&world).await;
    let endpoints = one.shared.platform.endpoints().unwrap();
    let owner = endpoints.values().find(|endpoint| endpoint.ipv4 == web).unwrap().incarnation;
    let share = FlowShare { flows: 7, begun: 20, refused: 5, without_port: 2 };
    one.paper.flows.set_share(owner, Some(share)).unwrap();
    let conntrack = one.agent.status().await.unwrap().conntrack;
    let web = ConntrackShare { container: "web".to_owned(), flows: 7, refused: 5, without_port: 2 };
    assert_eq!((conntrack.crowded, conntrack.containers), (1, vec![web]));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_from_another_host_names_that_host() {
    let world = World::new().await;
    let (one, web, _, vni) = two_containers(&world).await;
    let _two = world.start(2, &Paper::new()).await.ready().await;
    eventually("host 1 knows host 2", || async {
        one.agent.vteps().await.unwrap().iter().any(|row| row.node == "host2")
    })
    .await;
    // No node has the second address.
    for last in [2, 77] {
        let tuple = tuple(([192, 0, 2, last], 5000), (web, 80));
        let key = FlowKey::new(zone::TUNNEL, 6, tuple);
        one.flow(key, tuple, vni, 0, (kind::PUBLISHED, seen::PACKET));
    }
    let rows = one.nat(NatQuery::default()).await;
    let from: Vec<_> = rows.iter().map(|row| row.from.as_str()).collect();
    assert_eq!(from, ["host2", "192.0.2.77"]);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_ages_flows_counts_them_and_tells_of_refused_ones() {
    let world = World::new().await;
    let (one, web, db, vni) = two_containers(&world).await;
    let masqueraded = |source, port| {
        (FlowKey::new(vni, 17, tuple((source, port), (FAR, 53))), tuple((HOST, port), (FAR, 53)))
    };
    let (key, to) = masqueraded(web, 1000);
    let kept = one.flow(key, to, zone::EXTERNAL, 1, (kind::MASQUERADE, seen::PACKET));
    let (key, to) = masqueraded(db, 1001);
    let over = one.flow(key, to, zone::EXTERNAL, 120, (kind::MASQUERADE, seen::PACKET));
    let gone = {
        let (key, to) = masqueraded(web, 1002);
        let key = one.flow(key, to, zone::EXTERNAL, 1, (kind::MASQUERADE, seen::PACKET));
        let mut orig = one.paper.flows.lookup(&key).unwrap().unwrap();
        // No endpoint has this incarnation.
        orig.from_incarnation = u32::MAX;
        one.paper.flows.put([(key, orig)]);
        key
    };
    one.paper.state().dropped.insert(DropReason::NatPortsExhausted, 4);

    let keeper = tokio::spawn(conntrack::keep(one.shared.conntrack_context()));
    eventually("flows end", || async {
        let there = |key| one.paper.flows.lookup(key).unwrap().is_some();
        there(&kept) && !there(&over) && !there(&gone)
    })
    .await;
    eventually("flows are counted", || async {
        one.agent.status().await.unwrap().conntrack.flows == 1
    })
    .await;
    let status = one.agent.status().await.unwrap();
    let (max, share, port_share) = (262_144, 131_072, 32_256);
    let expected =
        ConntrackStatus { flows: 1, max, refused: 4, share, port_share, ..Default::default() };
    assert_eq!(status.conntrack, expected);
    assert_eq!(status.problems, [""; 0], "refused before the agent began");
    eventually("the VXLAN port is left alone", || async {
        let (word, bit) = reserved_bit(17, one.shared.node.port).unwrap();
        one.paper.flows.reserved().unwrap()[word as usize] & bit != 0
    })
    .await;
    let rows = one.agent.stats().await.unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {} {}",
                row.direction, row.verdict, row.reason, row.packets, row.bytes
            )
        })
        .collect();
    assert_eq!(shown, ["conntrack flows udp_stream 1 600"]);

    eventually("it is told", || async {
        // The counter grows at each check: the agent may read it first after the first check.
        *one.paper.state().dropped.entry(DropReason::NatPortsExhausted).or_default() += 1;
        let problems = one.agent.status().await.unwrap().problems;
        problems.iter().any(|line| line.contains("no port is free"))
    })
    .await;
    one.shared.ending.shutdown.cancel();
    keeper.await.unwrap();
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_ports_that_netfilter_may_use_as_well_is_told() {
    let world = World::new().await;
    let one = world.start(1, &Paper::new()).await.ready().await;
    let mut context = one.shared.conntrack_context();
    context.options.nat_ports = (40_000, 49_000);
    let keeper = tokio::spawn(conntrack::keep(context));
    let reserves = || async {
        let (word, bit) = reserved_bit(17, one.shared.node.port).unwrap();
        one.paper.flows.reserved().unwrap()[word as usize] & bit != 0
    };
    eventually("a round", reserves).await;
    assert_eq!(one.agent.status().await.unwrap().problems, [""; 0]);
    one.paper.state().netfilter = true;
    eventually("it is told", || async {
        let problems = one.agent.status().await.unwrap().problems;
        problems.iter().any(|line| {
            line.contains("--nat-ports 40000-49000 has fewer than 1024 of ports 16384 to 32767 and")
        })
    })
    .await;
    one.shared.ending.shutdown.cancel();
    keeper.await.unwrap();
    one.stop().await;
}
