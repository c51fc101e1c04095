//! A patch gives the same maps as computing the whole network.

use std::{cell::RefCell, collections::BTreeMap, convert::Infallible, slice};

use culvert_common::abi::EndpointInfo;
use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        Endpoint, ForeignVtep, IpOwner, Key, MacOwner, Protocol, PublishedPort, SCHEMA, View,
        decoded, ops,
        testing::{Cluster, endpoint, name, network, node},
    },
    reconcile::{Kernel, NetworkState, Op, Reconciler, Tables, network_state},
    store::{Change, Entry},
};

#[derive(Default)]
struct Maps(RefCell<Tables>);

impl Kernel for Maps {
    type Error = Infallible;

    fn dump(&self) -> Result<Tables, Infallible> {
        Ok(self.0.borrow().clone())
    }

    fn apply(&self, op: &Op) -> Result<(), Infallible> {
        op.apply_to(&mut self.0.borrow_mut());
        Ok(())
    }
}

/// A host with one endpoint, `00`, in a network.
struct Host {
    cluster: Cluster,
    maps: Maps,
    reconciler: Reconciler,
    /// Host sides of the endpoints that are plugged in.
    ifindexes: BTreeMap<String, u32>,
    /// Endpoints that were plugged in or out since the last change.
    plugged: Changed,
    /// Ports that are not held.
    unclaimed: BTreeSet<(String, PublishedPort)>,
    patched: usize,
}

const VNI: u32 = 256;

impl Host {
    fn new() -> Self {
        Self::with_subnet("10.0.0.0/24")
    }

    fn with_subnet(subnet: &str) -> Self {
        let mut cluster = Cluster { view: View::at(name("host1")) };
        let net = network("net", VNI, &[subnet]);
        cluster.network(&net);
        // The last two nodes have the same VTEP address, and one endpoint's node is unknown.
        for (host, vtep) in [("host1", 1), ("host2", 2), ("host3", 3), ("host4", 3)] {
            let node = node(host, vtep);
            cluster.put(Key::node(&node.name), &node);
        }
        let ip = [192, 0, 2, 2].into();
        let vtep = ForeignVtep { schema: SCHEMA, network: net.name.clone(), ip, port: 4789 };
        cluster.put(Key::vtep(&net.name, ip), &vtep);
        let own = endpoint(&net, "00", "host1", "10.0.0.100");
        cluster.put(Key::endpoint(&net.name, &own.id), &own);
        cluster.claim(&net.name, [10, 0, 0, 100].into(), &own.id);
        let (maps, reconciler) = (Maps::default(), Reconciler::default());
        let (ifindexes, plugged) = (BTreeMap::from([("00".to_owned(), 7)]), Changed::default());
        let unclaimed = BTreeSet::new();
        let mut host =
            Self { cluster, maps, reconciler, ifindexes, plugged, unclaimed, patched: 0 };
        host.whole();
        host
    }

    /// A host whose network has `others` endpoints of another host.
    fn crowded(others: u32) -> Self {
        let mut host = Self::with_subnet("10.0.0.0/16");
        let net = network("net", VNI, &["10.0.0.0/16"]);
        for number in 0..others {
            let ip = format!("10.0.{}.{}", 100 + number / 250, 1 + number % 250);
            host.cluster.endpoint(&endpoint(&net, &format!("f{number:07x}"), "host2", &ip));
        }
        host.whole();
        host
    }

    /// Plugs an endpoint in or out, as the engine notes it.
    fn plug(&mut self, id: u8, port: Option<u32>) {
        let id = format!("{id:02x}");
        let former = match port {
            Some(ifindex) => self.ifindexes.insert(id.clone(), ifindex),
            None => self.ifindexes.remove(&id),
        };
        if former != port {
            self.plugged.endpoints.insert(id);
            self.plugged.ifindexes.extend(former);
        }
    }

    fn with<T>(&self, work: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let own = node("host1", 1);
        let (view, gateways) = (&self.cluster.view, &BTreeMap::new());
        let (ifindexes, unclaimed) = (&self.ifindexes, &self.unclaimed);
        work(&Inputs { view, own: &own, ifindexes, gateways, unclaimed })
    }

    fn whole(&mut self) {
        let state = self.with(|inputs| network_state(inputs, &name("net")));
        self.reconciler.network_to(&self.maps, VNI, state.as_ref()).unwrap();
    }

    /// Applies changes to the view and to the maps.
    fn apply(&mut self, changes: &[Change]) {
        let mut changed = std::mem::take(&mut self.plugged);
        for change in changes {
            let touched = self.cluster.view.apply(change);
            changed.endpoints.extend(touched.endpoints.into_iter().map(|(_, id)| id));
            changed.former.extend(touched.former.into_iter().map(|(_, former)| former));
        }
        let held = self.reconciler.network(VNI).unwrap();
        match self.with(|inputs| network_patch(inputs, &name("net"), held, &changed)) {
            Some(patch) => {
                self.patched += 1;
                self.reconciler.patch(&self.maps, &patch).unwrap();
            }
            None => self.whole(),
        }
    }

    fn change(&mut self, changes: &[Change]) {
        self.apply(changes);
        let held = self.reconciler.network(VNI).unwrap();
        assert_eq!(*held, Held::from(held.tables().clone()), "{changes:?}");
        let counts = self.reconciler.counts();
        let held = self.maps.0.borrow();
        assert_eq!((counts.fdb, counts.neighbours), (held.fdb.len(), held.neighbours.len()));
        drop(held);
        // Computing the whole network finds no difference.
        let state = self.with(|inputs| network_state(inputs, &name("net")));
        let steps = self.reconciler.network_to(&self.maps, VNI, state.as_ref()).unwrap();
        assert_eq!(steps, 0, "{changes:?}");
    }
}

/// A change of one endpoint: identifier, node, MAC, address, owner of the address, additional
/// addresses with their owners; or its removal.
type Part = (u8, u8, Option<u8>, u8, Option<u8>, BTreeMap<u8, Option<u8>>, bool);

/// What an endpoint has if it is on this host: the first host port and the number of ports that it
/// publishes, whether their clients are restricted, and which of two interfaces it has.
type Here = (Option<(u16, u16)>, bool, Option<bool>);

fn here() -> impl Strategy<Value = Here> {
    (proptest::option::of((0..4u16, 1..3u16)), any::<bool>(), proptest::option::of(any::<bool>()))
}

/// Any change. The ranges are small, so that endpoints conflict.
fn change() -> impl Strategy<Value = Part> {
    let owner = || proptest::option::of(1..6u8);
    (
        1..6u8,
        1..6u8,
        proptest::option::of(0..5u8),
        2..6u8,
        owner(),
        proptest::collection::btree_map(2..9u8, owner(), 0..4),
        any::<bool>(),
    )
}

fn changes(part: Part, revision: i64) -> Vec<Change> {
    changes_here(part, (None, false, None), revision)
}

fn changes_here(
    (id, node, mac, ip, owner, mut more, gone): Part,
    (ports, restricted, _): Here,
    revision: i64,
) -> Vec<Change> {
    let net = network("net", VNI, &["10.0.0.0/24"]);
    let address = format!("10.0.0.{ip}");
    let id = format!("{id:02x}");
    let record = endpoint(&net, &id, &format!("host{node}"), &address);
    // Some endpoints have the MAC that is derived from another endpoint's address, also from that
    // of an endpoint on this host. Some have one of two other MACs, with a claim or without.
    let mac = mac.map(|which| match which {
        0..3 => [0x02, 0x42, 10, 0, 0, [100, 2, 3][usize::from(which)]],
        _ => [0x0e, 0, 0, 0, 0, which],
    });
    // The primary address is not an additional one.
    more.remove(&ip);
    let additional = more.keys().map(|last| [10, 0, 0, *last].into()).collect();
    let mac = mac.map_or(record.mac, MacAddr);
    let port = |(host_port, count): (u16, u16)| PublishedPort {
        host_ip: [0; 4].into(),
        host_port: 8000 + host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        count,
    };
    let ports = ports.map(port).into_iter().collect();
    let from: Vec<ipnetwork::Ipv4Network> =
        restricted.then(|| "192.0.2.0/24".parse().unwrap()).into_iter().collect();
    let record = Endpoint { mac, additional, ports, from, ..record };
    let key = Key::endpoint(&net.name, &id);
    let put = |key, value| Change::Put(Entry { key, value, mod_revision: revision });
    let mut changes = vec![match gone {
        true => Change::Delete { key, revision },
        false => put(key, crate::model::encode(&record).unwrap()),
    }];
    if !record.has_derived_mac() {
        let key = Key::mac(&net.name, record.mac);
        changes.push(match owner.filter(|_| !gone) {
            None => Change::Delete { key, revision },
            Some(owner) => {
                let owner = MacOwner { schema: SCHEMA, endpoint: format!("{owner:02x}") };
                put(key, crate::model::encode(&owner).unwrap())
            }
        });
    }
    more.insert(ip, owner);
    for (last, owner) in more {
        let key = Key::ipam(&net.name, [10, 0, 0, last].into());
        if gone {
            changes.push(Change::Delete { key, revision });
        } else if let Some(owner) = owner {
            let owner = IpOwner { schema: SCHEMA, endpoint: format!("{owner:02x}") };
            changes.push(put(key, crate::model::encode(&owner).unwrap()));
        }
    }
    changes
}

proptest! {
    #[test]
    fn a_patch_comes_to_what_the_whole_comes_to(
        history in proptest::collection::vec(
            proptest::collection::vec((change(), here()), 1..3), 1..12,
        ),
    ) {
        let mut host = Host::new();
        for (round, parts) in (100..).zip(history) {
            let mut together = Vec::new();
            for (part, here) in parts {
                // The engine makes and removes device pairs later than it patches the maps.
                let interface = |other: bool| 10 + 2 * u32::from(part.0) + u32::from(other);
                host.plug(part.0, here.2.map(interface));
                together.extend(changes_here(part, here, round));
            }
            host.change(&together);
        }
    }
}

/// Everything that the maps have of an endpoint of this host comes and goes by patches.
#[test]
fn endpoints_of_this_host_come_and_go_by_patches() {
    let none = BTreeMap::new;
    let here = |port| (Some((port, 1)), true, None);
    let mut host = Host::new();
    let sizes = |host: &Host| {
        let tables = host.maps.0.borrow();
        let ports = tables.networks[&VNI].local_endpoints;
        let entries = (tables.endpoints.len(), tables.fdb.len(), tables.flood_local.len());
        (entries, tables.published.len(), tables.sources.len(), ports)
    };
    assert_eq!(sizes(&host), ((1, 1, 1), 0, 0, 1));
    // The record comes before the device pair.
    host.change(&changes_here((1, 1, None, 2, Some(1), none(), false), here(0), 100));
    assert_eq!((sizes(&host), host.patched), (((1, 1, 1), 0, 0, 1), 1));
    host.plug(1, Some(11));
    host.change(&[]);
    assert_eq!((sizes(&host), host.patched), (((2, 2, 2), 1, 1, 2), 2));
    host.plug(2, Some(12));
    host.change(&changes_here((2, 1, None, 3, Some(2), none(), false), here(1), 101));
    assert_eq!((sizes(&host), host.patched), (((3, 3, 3), 2, 2, 3), 3));
    // The device pair is made anew, and the record goes before its device pair.
    host.plug(1, Some(13));
    host.change(&[]);
    assert_eq!((sizes(&host), host.patched), (((3, 3, 3), 2, 2, 3), 4));
    host.change(&changes((1, 1, None, 2, None, none(), true), 102));
    assert_eq!((sizes(&host), host.patched), (((2, 2, 2), 1, 1, 2), 5));
    host.plug(1, None);
    host.change(&changes((2, 1, None, 3, None, none(), true), 103));
    assert_eq!((sizes(&host), host.patched), (((1, 1, 1), 0, 0, 1), 6));
}

/// A port that the agent does not hold leaves the maps by a patch, and comes back by one.
#[test]
fn a_port_that_is_not_held_goes_and_comes_by_patches() {
    let none = BTreeMap::new;
    let published = |host: &Host| host.maps.0.borrow().published.len();
    let mut host = Host::new();
    host.plug(1, Some(11));
    let ports = (Some((0, 2)), false, None);
    host.change(&changes_here((1, 1, None, 2, Some(1), none(), false), ports, 100));
    assert_eq!((published(&host), host.patched), (2, 1));
    let record = host.cluster.view.endpoint(&name("net"), "01").unwrap().record;
    let first = record.ports[0].singles().next().unwrap();
    host.unclaimed.insert((record.id.clone(), first));
    host.plugged.endpoints.insert(record.id.clone());
    host.change(&[]);
    assert_eq!((published(&host), host.patched), (1, 2));
    host.unclaimed.clear();
    host.plugged.endpoints.insert(record.id);
    host.change(&[]);
    assert_eq!((published(&host), host.patched), (2, 3));
}

/// A port of the host that moves from one endpoint to another is patched; one that two records
/// publish is not, in one network or in two.
#[test]
fn a_port_that_moves_is_patched_and_a_contested_one_is_not() {
    let none = BTreeMap::new;
    let here = || (Some((0, 1)), false, None);
    let published = |host: &Host| -> Vec<u32> {
        host.maps.0.borrow().published.values().map(|entry| entry.ifindex).collect()
    };
    let mut host = Host::new();
    host.plug(1, Some(11));
    host.plug(2, Some(12));
    host.change(&changes_here((1, 1, None, 2, Some(1), none(), false), here(), 100));
    assert_eq!((published(&host), host.patched), (vec![11], 1));
    let mut together = changes((1, 1, None, 2, None, none(), true), 101);
    together.extend(changes_here((2, 1, None, 3, Some(2), none(), false), here(), 101));
    host.change(&together);
    assert_eq!((published(&host), host.patched), (vec![12], 2));
    // A second record of this network.
    host.change(&changes_here((1, 1, None, 2, Some(1), none(), false), here(), 102));
    assert_eq!((published(&host).len(), host.patched), (1, 2));
    // The kernel has the port of the other one.
    host.change(&changes((1, 1, None, 2, None, none(), true), 103));
    assert_eq!((published(&host), host.patched), (vec![12], 3));
    // A record of another network of this host.
    let other = network("other", VNI + 1, &["10.0.1.0/24"]);
    let ports = host.cluster.view.endpoint(&name("net"), "02").unwrap().record.ports;
    let record = Endpoint { ports, ..endpoint(&other, "0a", "host1", "10.0.1.2") };
    host.cluster.endpoint(&record);
    host.change(&changes((2, 1, None, 3, None, none(), true), 104));
    assert_eq!((published(&host), host.patched), (vec![], 3));
}

/// An interface that another network has taken over leaves the flood list with its endpoint.
#[test]
fn an_interface_that_another_network_has_taken_over_leaves_the_flood_list() {
    let none = BTreeMap::new;
    let mut host = Host::new();
    host.plug(1, Some(11));
    host.change(&changes((1, 1, None, 2, Some(1), none(), false), 100));
    let info = host.maps.0.borrow().endpoints[&11];
    let other = NetworkState {
        vni: VNI + 1,
        flags: 0,
        endpoints: BTreeMap::from([(11, EndpointInfo { vni: VNI + 1, ..info })]),
        fdb: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        vteps: BTreeMap::new(),
        gateway: None,
        published: BTreeMap::new(),
        sources: BTreeSet::new(),
    };
    host.reconciler.network_to(&host.maps, VNI + 1, Some(&other)).unwrap();
    host.plug(1, None);
    host.change(&changes((1, 1, None, 2, None, none(), true), 101));
    assert_eq!(host.patched, 2);
    let tables = host.maps.0.borrow();
    assert_eq!(
        (tables.networks[&VNI].local_endpoints, tables.networks[&(VNI + 1)].local_endpoints),
        (1, 1)
    );
    assert_eq!((tables.endpoints.len(), tables.flood_local.len()), (2, 2));
}

/// With the last endpoint of this host the network goes from the maps, which no patch does.
#[test]
fn the_last_endpoint_takes_the_network_along() {
    let mut host = Host::new();
    let key = Key::endpoint(&name("net"), "00");
    host.apply(slice::from_ref(&Change::Delete { key, revision: 100 }));
    assert_eq!((host.patched, host.reconciler.network(VNI)), (0, None));
}

/// The number of records that a host reads to make an endpoint, and to remove it: the request's
/// part and the maps' part.
fn decoded_with(others: u32) -> (usize, usize) {
    let mut host = Host::crowded(others);
    let (net, own) = (name("net"), name("host1"));
    let spec = ops::EndpointSpec {
        network: net.clone(),
        container: name("c01"),
        node: own.clone(),
        ips: Vec::new(),
        mac: None,
        ifname: "eth0".to_owned(),
        sandbox: endpoint(&network("net", VNI, &["10.0.0.0/16"]), "01", "host1", "10.0.0.2")
            .sandbox,
        ports: Vec::new(),
        from: Vec::new(),
    };
    let part = |gone: bool| (1, 1, None, 2, (!gone).then_some(1), BTreeMap::new(), gone);
    let (made, ()) = decoded::during(|| {
        let view = &host.cluster.view;
        assert_eq!(view.endpoints_within(&own, &spec.sandbox.netns).count(), 0);
        ops::create_endpoint(view, &spec).unwrap();
        host.plug(1, Some(11));
        host.apply(&changes(part(false), 100_000));
    });
    let (removed, ()) = decoded::during(|| {
        let view = &host.cluster.view;
        assert_eq!(view.endpoints_of(&own, &spec.container).count(), 1);
        assert!(view.endpoint_of(&net, &own, &spec.container).is_some());
        ops::remove_endpoint(view, &net, "01").unwrap();
        host.apply(&changes(part(true), 100_001));
    });
    assert_eq!((host.patched, host.reconciler.counts().fdb), (2, 1 + others as usize));
    (made, removed)
}

/// What a change of an endpoint of this host costs does not depend on the number of the other
/// endpoints of its network.
#[test]
fn a_change_of_an_own_endpoint_reads_no_others() {
    let few = decoded_with(100);
    assert_eq!(decoded_with(20_000), few);
    assert!(few.0 < 30 && few.1 < 30, "{few:?}");
}

#[test]
fn endpoints_of_other_hosts_come_and_go_by_patches() {
    let none = BTreeMap::new;
    let mut host = Host::new();
    host.change(&changes((1, 3, None, 2, Some(1), none(), false), 100));
    host.change(&changes((2, 3, None, 3, Some(2), none(), false), 101));
    host.change(&changes((1, 3, None, 2, None, none(), true), 102));
    host.change(&changes((2, 3, None, 3, None, none(), true), 103));
    assert_eq!(host.patched, 4);
    let tables = host.maps.0.borrow();
    assert_eq!((tables.fdb.len(), tables.neighbours.len(), tables.vteps.len()), (1, 1, 1));
}

#[test]
fn additional_addresses_of_other_hosts_come_and_go_by_patches() {
    let mut host = Host::new();
    let owned = |addresses: &[u8]| addresses.iter().map(|last| (*last, Some(1))).collect();
    let neighbours = |host: &Host| host.maps.0.borrow().neighbours.len();
    host.change(&changes((1, 3, None, 2, Some(1), owned(&[7, 8]), false), 100));
    assert_eq!(neighbours(&host), 4);
    host.change(&changes((1, 3, None, 2, Some(1), owned(&[8]), false), 101));
    assert_eq!(neighbours(&host), 3);
    host.change(&changes((1, 3, None, 2, None, owned(&[8]), true), 102));
    assert_eq!((neighbours(&host), host.patched), (1, 3));
}
