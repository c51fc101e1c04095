//! Several hosts take and give back addresses at the same time, in random order.

use std::{collections::BTreeMap, net::Ipv4Addr};

use culvert::{
    model::{
        ROOT, View,
        ops::{EndpointSpec, ExecuteError, create_endpoint, execute, remove_endpoint},
    },
    store::{EtcdStore, StateStore},
};
use culvert_tests::{
    chaos::{Random, each, rounds},
    etcd::EtcdServer,
};
use futures::StreamExt as _;

use crate::{
    backend::etcd_options,
    ops::{endpoint, make_network, name, network},
};

/// Number of hosts that take and give back addresses.
const HOSTS: u64 = 4;
/// Number of containers of a host. All containers need more addresses than the network has.
const CONTAINERS: u64 = 12;

/// Connects to the store with a new connection.
async fn store(server: &EtcdServer) -> EtcdStore {
    EtcdStore::connect(&etcd_options(&[server.endpoint()])).await.expect("connects")
}

/// Adds and removes endpoints of one host, in random order. Returns the number that is left.
async fn churn(store: &EtcdStore, host: u64, mut random: Random, operations: u32) -> usize {
    let mut held: BTreeMap<u64, String> = BTreeMap::new();
    for _ in each(&format!("addresses of host {host}"), operations) {
        let number = random.below(CONTAINERS);
        let outcome = if let Some(id) = held.get(&number).cloned() {
            let plan = |view: &View| Ok(((), remove_endpoint(view, &name("net"), &id)?));
            execute(store, None, plan).await.map(|_| drop(held.remove(&number)))
        } else {
            let last = u8::try_from(2 + random.below(29)).expect("host part");
            let spec = EndpointSpec {
                ips: match random.below(4) {
                    0 => vec![Ipv4Addr::new(10, 0, 0, last).into()],
                    _ => Vec::new(),
                },
                ..endpoint("net", &format!("n{host}"), &format!("c{host}-{number}"))
            };
            let made = execute(store, None, |view: &View| create_endpoint(view, &spec)).await;
            made.map(|(endpoint, _)| drop(held.insert(number, endpoint.id)))
        };
        // Refused means that no address is free, or that the requested one is taken.
        if !matches!(&outcome, Err(ExecuteError::Refused(_) | ExecuteError::Contended)) {
            outcome.expect("the store answers");
        }
    }
    held.len()
}

/// Checks that each endpoint owns its address, and that each owned address is of an endpoint.
fn check_addresses(view: &View) {
    let network = name("net");
    let mut owned = 0;
    for endpoint in view.endpoints_in(&network) {
        let ip = endpoint.ipv4.expect("address").into();
        let owner = view.ip_claim(&network, ip).and_then(|claim| claim.owner);
        let owner = owner.map(|owner| owner.endpoint);
        assert_eq!(owner.as_deref(), Some(endpoint.id.as_str()), "{ip} at {}", view.revision);
        owned += 1;
    }
    let is_claimed =
        |last: &u8| view.ip_claim(&network, Ipv4Addr::new(10, 0, 0, *last).into()).is_some();
    let claimed = (1..=30).filter(is_claimed).count();
    assert_eq!(claimed, owned, "addresses without an endpoint at {}", view.revision);
}

/// At every revision of the store each address has one owner. At the end no endpoint is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_have_one_owner() {
    let mut random = Random::seeded();
    // A store of its own for each part: etcd needs more time for each change, the longer its history
    // is.
    for _ in each("parts of the addresses", rounds(1, 10)) {
        churn_of_all_hosts(&mut random, rounds(150, 2_500)).await;
    }
}

async fn churn_of_all_hosts(random: &mut Random, operations: u32) {
    let server = EtcdServer::start().expect("etcd");
    let first = store(&server).await;
    make_network(&first, &network("net", &["10.0.0.0/27"])).await;
    let mut workers = Vec::new();
    for host in 0..HOSTS {
        let (store, random) = (store(&server).await, random.fork());
        workers.push(tokio::spawn(async move { churn(&store, host, random, operations).await }));
    }
    let mut held = 0;
    for worker in workers {
        held += worker.await.expect("worker");
    }
    // Checks the whole history, revision by revision.
    let end = first.snapshot(ROOT).await.expect("snapshot");
    let mut watch = first.watch(ROOT, 1).await.expect("watch");
    let mut view = View::default();
    while view.revision < end.revision {
        for change in &watch.next().await.expect("item").expect("changes") {
            view.apply(change);
        }
        check_addresses(&view);
    }
    assert_eq!(view.endpoints.count(), held);
    assert_eq!(View::from_snapshot(&end).endpoints.count(), held);
}
