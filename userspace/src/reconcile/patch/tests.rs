//! A patch gives the same maps as computing the whole network.

use std::{cell::RefCell, collections::BTreeMap, convert::Infallible};

use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        Endpoint, ForeignVtep, IpOwner, Key, SCHEMA,
        testing::{Cluster, endpoint, name, network, node},
    },
    reconcile::{Kernel, Op, Reconciler, Tables, network_state},
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
    patched: usize,
}

const VNI: u32 = 256;

impl Host {
    fn new() -> Self {
        let mut cluster = Cluster::default();
        let net = network("net", VNI, &["10.0.0.0/24"]);
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
        let mut host = Self { cluster, maps, reconciler, patched: 0 };
        host.whole();
        host
    }

    fn with<T>(&self, work: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let own = node("host1", 1);
        let ports = BTreeMap::from([("00".to_owned(), 7)]);
        let (view, gateways) = (&self.cluster.view, &BTreeMap::new());
        work(&Inputs { view, own: &own, ports: &ports, gateways })
    }

    fn whole(&mut self) {
        let state = self.with(|inputs| network_state(inputs, &name("net")));
        self.reconciler.network_to(&self.maps, VNI, state.as_ref()).unwrap();
    }

    fn change(&mut self, changes: &[Change]) {
        let mut changed = Changed::default();
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
        let counts = self.reconciler.counts();
        let held = self.maps.0.borrow();
        assert_eq!((counts.fdb, counts.neighbours), (held.fdb.len(), held.neighbours.len()));
        drop(held);
        // Computing the whole network finds no difference.
        let state = self.with(|inputs| network_state(inputs, &name("net")));
        let steps = self.reconciler.network_to(&self.maps, VNI, state.as_ref()).unwrap();
        assert_eq!(steps, 0, "{changes:?} {changed:?}");
    }
}

/// A change of one endpoint: identifier, node, MAC, address, owner of the address, additional
/// addresses with their owners; or its removal.
type Part = (u8, u8, Option<u8>, u8, Option<u8>, BTreeMap<u8, Option<u8>>, bool);

/// Any change. The ranges are small, so that endpoints conflict.
fn change() -> impl Strategy<Value = Part> {
    let owner = || proptest::option::of(1..6u8);
    (
        1..6u8,
        1..6u8,
        proptest::option::of(0..3u8),
        2..6u8,
        owner(),
        proptest::collection::btree_map(2..9u8, owner(), 0..4),
        any::<bool>(),
    )
}

fn changes((id, node, mac, ip, owner, mut more, gone): Part, revision: i64) -> Vec<Change> {
    let net = network("net", VNI, &["10.0.0.0/24"]);
    let address = format!("10.0.0.{ip}");
    let id = format!("{id:02x}");
    let record = endpoint(&net, &id, &format!("host{node}"), &address);
    // Some endpoints have the MAC that is derived from another endpoint's address, also from that
    // of an endpoint on this host.
    let mac = mac.map(|last| [0x02, 0x42, 10, 0, 0, [100, 2, 3][usize::from(last)]]);
    // The primary address is not an additional one.
    more.remove(&ip);
    let additional = more.keys().map(|last| [10, 0, 0, *last].into()).collect();
    let record = Endpoint { mac: mac.map_or(record.mac, MacAddr), additional, ..record };
    let key = Key::endpoint(&net.name, &id);
    let put = |key, value| Change::Put(Entry { key, value, mod_revision: revision });
    let mut changes = vec![match gone {
        true => Change::Delete { key, revision },
        false => put(key, crate::model::encode(&record).unwrap()),
    }];
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
        history in proptest::collection::vec(proptest::collection::vec(change(), 1..3), 1..12),
    ) {
        let mut host = Host::new();
        for (round, parts) in (100..).zip(history) {
            let together: Vec<Change> =
                parts.into_iter().flat_map(|part| changes(part, round)).collect();
            host.change(&together);
        }
    }
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
