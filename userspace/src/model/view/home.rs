//! Indexes of the endpoints of one node, so that a change of one of them does not read the others.
//!
//! An agent has them for its own node only: for all nodes they would take more memory than the
//! packed records.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::packed::Id;
use crate::model::{Endpoint, Name};

/// Network and identifier of an endpoint.
type EndpointRef = (Name, Id);

/// A single port of the host: address, port and IP protocol.
pub(crate) type HostPort = (Ipv4Addr, u16, u8);

/// The endpoints of one node.
#[derive(Clone, Debug)]
pub(super) struct Home {
    node: Name,
    /// Identifiers, by network.
    all: BTreeMap<Name, BTreeSet<Id>>,
    /// By container, sorted. Most containers have one endpoint, for which a tree of its own would
    /// take ten times the memory.
    containers: BTreeMap<Name, Vec<EndpointRef>>,
    /// By path of the network namespace, sorted.
    sandboxes: BTreeMap<PathBuf, Vec<EndpointRef>>,
    /// How many times each port of the host is published.
    ports: BTreeMap<HostPort, usize>,
    /// The sum of these numbers: at most [`Endpoint::MOST_PORTS`].
    counted: usize,
    /// Endpoints whose ports are not counted. There are some only if others than the agent write
    /// records with very many ports: few bytes of a record are 65,535 ports here.
    uncounted: BTreeSet<EndpointRef>,
}

impl Home {
    pub(super) const fn new(node: Name) -> Self {
        Self {
            node,
            all: BTreeMap::new(),
            containers: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            ports: BTreeMap::new(),
            counted: 0,
            uncounted: BTreeSet::new(),
        }
    }

    pub(super) fn is(&self, node: &Name) -> bool {
        self.node == *node
    }

    /// Whether the endpoint is one of the node.
    pub(super) fn has(&self, network: &Name, id: &Id) -> bool {
        self.all.get(network).is_some_and(|ids| ids.contains(id))
    }

    /// All endpoints, in order of network and identifier.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Name, Id)> {
        self.all.iter().flat_map(|(network, ids)| ids.iter().map(move |id| (network, *id)))
    }

    /// The endpoints in a network, in order of identifier.
    pub(super) fn in_network(&self, network: &Name) -> impl Iterator<Item = Id> {
        self.all.get(network).into_iter().flatten().copied()
    }

    /// The endpoints of a container, in order of network and identifier.
    pub(super) fn of(&self, container: &Name) -> impl Iterator<Item = (&Name, Id)> {
        self.containers.get(container).into_iter().flatten().map(|(network, id)| (network, *id))
    }

    /// The endpoints in a network namespace, in order of network and identifier.
    pub(super) fn within(&self, netns: &Path) -> impl Iterator<Item = (&Name, Id)> {
        self.sandboxes.get(netns).into_iter().flatten().map(|(network, id)| (network, *id))
    }

    /// How many times a port of the host is published.
    pub(super) fn publishers(&self, port: HostPort) -> usize {
        self.ports.get(&port).copied().unwrap_or_default()
    }

    /// Adds an endpoint of the node, which the indexes do not have.
    pub(super) fn insert(&mut self, id: Id, endpoint: &Endpoint) {
        let Endpoint { network, container, sandbox, .. } = endpoint;
        let place = || (network.clone(), id);
        self.all.entry(network.clone()).or_default().insert(id);
        add_to(&mut self.containers, container.clone(), place());
        add_to(&mut self.sandboxes, sandbox.netns.clone(), place());
        let number = endpoint.number_of_ports();
        if self.counted + number > Endpoint::MOST_PORTS {
            self.uncounted.insert(place());
            return;
        }
        self.counted += number;
        for port in host_ports(endpoint) {
            *self.ports.entry(port).or_default() += 1;
        }
    }

    /// Removes an endpoint, which the indexes have with this record.
    pub(super) fn remove(&mut self, id: Id, endpoint: &Endpoint) {
        let Endpoint { network, container, sandbox, .. } = endpoint;
        let place = (network.clone(), id);
        if let Entry::Occupied(mut ids) = self.all.entry(network.clone()) {
            ids.get_mut().remove(&id);
            if ids.get().is_empty() {
                ids.remove();
            }
        }
        drop_from(&mut self.containers, container.clone(), &place);
        drop_from(&mut self.sandboxes, sandbox.netns.clone(), &place);
        if self.uncounted.remove(&place) {
            return;
        }
        self.counted = self.counted.saturating_sub(endpoint.number_of_ports());
        for port in host_ports(endpoint) {
            if let Entry::Occupied(mut count) = self.ports.entry(port) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

/// The single ports of the host that an endpoint publishes.
pub(crate) fn host_ports(endpoint: &Endpoint) -> impl Iterator<Item = HostPort> {
    let singles = endpoint.ports.iter().flat_map(|port| port.singles());
    singles.map(|port| (port.host_ip, port.host_port, port.protocol.number()))
}

/// Adds a place to a group. The list of the group has no room to spare.
fn add_to<K: Ord>(groups: &mut BTreeMap<K, Vec<EndpointRef>>, group: K, place: EndpointRef) {
    let places = groups.entry(group).or_default();
    if let Err(index) = places.binary_search(&place) {
        places.reserve_exact(1);
        places.insert(index, place);
    }
}

/// Removes a place from a group, and the group with its last place.
fn drop_from<K: Ord>(groups: &mut BTreeMap<K, Vec<EndpointRef>>, group: K, place: &EndpointRef) {
    if let Entry::Occupied(mut places) = groups.entry(group) {
        if let Ok(index) = places.get().binary_search(place) {
            places.get_mut().remove(index);
        }
        if places.get().is_empty() {
            places.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Protocol, PublishedPort,
        testing::{endpoint, name, network},
    };

    #[test]
    fn records_with_very_many_ports_take_a_bounded_memory() {
        let red = network("red", 256, &["10.0.0.0/16"]);
        let with_ports = |id: &str, last: u8| {
            let port = PublishedPort {
                host_ip: [127, 0, 0, last].into(),
                host_port: 1,
                container_port: 1,
                protocol: Protocol::Tcp,
                count: u16::MAX,
            };
            Endpoint { ports: vec![port], ..endpoint(&red, id, "host1", "10.0.0.9") }
        };
        let id = |text: &str| Id::parse(text).expect("identifier");
        let mut home = Home::new(name("host1"));
        let all = [("0a", 1), ("0b", 2), ("0c", 3)];
        for (text, last) in all {
            home.insert(id(text), &with_ports(text, last));
        }
        let publishers =
            |home: &Home| all.map(|(_, last)| home.publishers(([127, 0, 0, last].into(), 80, 6)));
        assert_eq!((publishers(&home), home.counted), ([1, 1, 0], 2 * 65_535));
        home.remove(id("0c"), &with_ports("0c", 3));
        home.remove(id("0a"), &with_ports("0a", 1));
        assert_eq!((publishers(&home), home.counted), ([0, 1, 0], 65_535));
        home.insert(id("0c"), &with_ports("0c", 3));
        assert_eq!(publishers(&home), [0, 1, 1]);
        for (text, last) in [("0b", 2), ("0c", 3)] {
            home.remove(id(text), &with_ports(text, last));
        }
        assert!(home.ports.is_empty() && home.uncounted.is_empty() && home.counted == 0);
    }
}
