//! Records for unit tests.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    Driver, Endpoint, IpOwner, Key, MacAddr, Name, Network, Node, SCHEMA, SandboxRef, StoreRecord,
    View, VniOwner, encode, validate,
};
use crate::store::{Change, Entry, Revision, Write};

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("name")
}

pub(crate) fn network(text: &str, vni: u32, subnets: &[&str]) -> Network {
    let subnets: Vec<_> = subnets.iter().map(|subnet| subnet.parse().expect("subnet")).collect();
    Network {
        schema: SCHEMA,
        name: name(text),
        id: "0f".repeat(32),
        driver: Driver::Overlay,
        subnets: validate::with_gateways(&subnets, None).expect("subnets"),
        vni: vni.try_into().expect("VNI"),
        mtu: 1450,
        internal: false,
        learning: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
    }
}

pub(crate) fn node(text: &str, last: u8) -> Node {
    Node::new(name(text), format!("{last:064x}"), [192, 0, 2, last].into(), 4789)
}

/// An endpoint of `network`, with an IPv4 address.
pub(crate) fn endpoint(network: &Network, id: &str, node: &str, ip: &str) -> Endpoint {
    let ip: std::net::Ipv4Addr = ip.parse().expect("address");
    Endpoint {
        schema: SCHEMA,
        id: id.to_owned(),
        network: network.name.clone(),
        vni: network.vni,
        container: name(&format!("c{id}")),
        node: name(node),
        mac: MacAddr::from_ipv4(ip),
        ipv4: Some(ip),
        ipv6: None,
        additional: Vec::new(),
        ifname: "eth0".to_owned(),
        sandbox: SandboxRef { netns: format!("/run/netns/c{id}").into(), owned: true, id: None },
        ports: Vec::new(),
        from: Vec::new(),
    }
}

pub(crate) fn change<T: StoreRecord>(key: String, record: &T, mod_revision: Revision) -> Change {
    Change::Put(Entry { key, value: encode(record).expect("JSON"), mod_revision })
}

pub(crate) fn delete(key: String, revision: Revision) -> Change {
    Change::Delete { key, revision }
}

/// A view that is built revision by revision, as from a store.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) view: View,
}

impl Cluster {
    /// Writes a record at the next revision.
    pub(crate) fn put<T: StoreRecord>(&mut self, key: String, record: &T) {
        let change = change(key, record, self.view.revision + 1);
        self.view.apply(&change);
    }

    /// Writes any bytes at the next revision.
    pub(crate) fn raw(&mut self, key: &str, value: &[u8]) {
        let mod_revision = self.view.revision + 1;
        let entry = Entry { key: key.to_owned(), value: value.to_vec(), mod_revision };
        self.view.apply(&Change::Put(entry));
    }

    pub(crate) fn network(&mut self, network: &Network) {
        self.put(Key::network(&network.name), network);
        let owner = VniOwner { schema: SCHEMA, network: network.name.clone() };
        self.put(Key::vni(network.vni), &owner);
    }

    pub(crate) fn endpoint(&mut self, endpoint: &Endpoint) {
        self.put(Key::endpoint(&endpoint.network, &endpoint.id), endpoint);
        for ip in endpoint.addresses() {
            self.claim(&endpoint.network, ip, &endpoint.id);
        }
    }

    pub(crate) fn claim(&mut self, network: &Name, ip: IpAddr, id: &str) {
        let owner = IpOwner { schema: SCHEMA, endpoint: id.to_owned() };
        self.put(Key::ipam(network, ip), &owner);
    }

    /// Applies the writes of a plan at the next revision.
    pub(crate) fn carry_out(&mut self, writes: Vec<Write>) {
        let revision = self.view.revision + 1;
        let everything: Vec<String> = self.keys();
        for write in writes {
            match write {
                Write::Put { key, value, .. } => {
                    self.view.apply(&Change::Put(Entry { key, value, mod_revision: revision }));
                }
                Write::Delete(key) => {
                    self.view.apply(&delete(key, revision));
                }
                Write::DeletePrefix(prefix) => {
                    for key in everything.iter().filter(|key| key.starts_with(&prefix)) {
                        self.view.apply(&delete(key.clone(), revision));
                    }
                }
            }
        }
    }

    fn keys(&self) -> Vec<String> {
        let View { networks, endpoints, nodes, alive, vnis, ipam, macs, vteps, .. } = &self.view;
        let mut keys: Vec<String> = networks.keys().map(Key::network).collect();
        keys.extend(nodes.keys().map(Key::node));
        keys.extend(alive.keys().map(Key::alive));
        keys.extend(vnis.keys().map(|vni| Key::vni(*vni)));
        keys.extend(endpoints.all().map(|(network, ep)| Key::endpoint(network, &ep.id.text())));
        keys.extend(ipam.all().map(|(network, ip)| Key::ipam(network, ip)));
        for (network, members) in macs {
            keys.extend(members.keys().map(|mac| Key::mac(network, *mac)));
        }
        for (network, members) in vteps {
            keys.extend(members.keys().map(|ip| Key::vtep(network, *ip)));
        }
        keys
    }
}
