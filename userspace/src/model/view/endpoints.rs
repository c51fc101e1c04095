//! The endpoints of the cluster, packed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    path::Path,
};

use super::{
    Versioned,
    chunked::{Chunked, Place},
    home::{Home, HostPort},
    packed::{self, Brief, Id, Indexed},
    sorted::Sorted,
};
use crate::model::{Endpoint, MacAddr, Name};

/// `endpoints/NETWORK/ID`, by network and identifier.
#[derive(Clone, Default)]
pub struct Endpoints {
    /// No group is empty.
    groups: BTreeMap<Name, NetworkEndpoints>,
    /// Names of nodes; the index is the number of the node. They are few and are never removed.
    nodes: Vec<Name>,
    numbers: BTreeMap<Name, u32>,
    /// Indexes of the endpoints of one node.
    home: Option<Home>,
}

impl Endpoints {
    /// No endpoints, with indexes of those that `node` will have.
    pub(super) fn at(node: Name) -> Self {
        Self { home: Some(Home::new(node)), ..Self::default() }
    }

    /// Whether there are indexes of the endpoints of a node.
    pub(crate) fn is_home(&self, node: &Name) -> bool {
        self.home_of(node).is_some()
    }

    fn home_of(&self, node: &Name) -> Option<&Home> {
        self.home.as_ref().filter(|home| home.is(node))
    }

    /// Networks that have endpoints.
    pub fn networks(&self) -> impl Iterator<Item = &Name> {
        self.groups.keys()
    }

    /// Number of endpoints in all networks.
    pub fn count(&self) -> usize {
        self.groups.values().map(|group| group.items.len()).sum()
    }

    /// Number of endpoints in a network.
    pub fn count_in(&self, network: &Name) -> usize {
        self.groups.get(network).map_or(0, |group| group.items.len())
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The endpoints of a network, in order of identifier, without decoding the whole records.
    pub(crate) fn briefs(&self, network: &Name) -> impl Iterator<Item = Brief<'_>> {
        let groups = self.groups.get(network).into_iter();
        let packed = groups.flat_map(|group| group.items.iter().map(|item| group.bytes(item)));
        packed.filter_map(|packed| Brief::of(packed, &self.nodes))
    }

    /// One endpoint, without decoding the whole record.
    pub(crate) fn brief(&self, network: &Name, id: &Id) -> Option<Brief<'_>> {
        let group = self.groups.get(network)?;
        let place = group.find(id).ok()?;
        Brief::of(group.bytes(group.items.get(place)?), &self.nodes)
    }

    /// The endpoints of a node, in order of network and identifier. Without indexes of the node,
    /// all endpoints of its networks are read.
    pub(crate) fn on(&self, node: &Name) -> impl Iterator<Item = (&Name, Brief<'_>)> {
        let home = self.home_of(node);
        let indexed = home.into_iter().flat_map(|home| home.all());
        let indexed =
            indexed.filter_map(move |(network, id)| Some((network, self.brief(network, &id)?)));
        let networks = self.groups.keys();
        let networks = networks.filter(move |name| home.is_none() && self.count_on(name, node) > 0);
        let read = networks.flat_map(move |network| {
            let briefs = self.briefs(network).filter(move |brief| brief.node == node);
            briefs.map(move |brief| (network, brief))
        });
        indexed.chain(read)
    }

    /// The endpoints of a node in a network, in order of identifier. Without indexes of the node, all
    /// endpoints of the network are read.
    pub(crate) fn on_in(&self, node: &Name, network: &Name) -> impl Iterator<Item = Brief<'_>> {
        let home = self.home_of(node);
        let indexed = home.into_iter().flat_map(move |home| home.in_network(network));
        let indexed = indexed.filter_map(move |id| self.brief(network, &id));
        let read = home.is_none().then(|| self.briefs(network)).into_iter().flatten();
        indexed.chain(read.filter(move |brief| brief.node == node))
    }

    /// The endpoints of a container of a node, as [`Self::on`].
    pub(crate) fn of(
        &self,
        node: &Name,
        container: &Name,
    ) -> impl Iterator<Item = (&Name, Brief<'_>)> {
        let home = self.home_of(node);
        let indexed = home.into_iter().flat_map(move |home| home.of(container));
        let indexed =
            indexed.filter_map(move |(network, id)| Some((network, self.brief(network, &id)?)));
        let read = home.is_none().then(|| self.on(node)).into_iter().flatten();
        indexed.chain(read.filter(move |(_, brief)| brief.container() == container.as_str()))
    }

    /// The endpoints of a node in a network namespace, as [`Self::on`].
    pub(super) fn within(
        &self,
        node: &Name,
        netns: &Path,
    ) -> impl Iterator<Item = Versioned<Endpoint>> {
        let home = self.home_of(node);
        let indexed = home.into_iter().flat_map(move |home| home.within(netns));
        let indexed =
            indexed.filter_map(move |(network, id)| Some((network, self.brief(network, &id)?)));
        let read = home.is_none().then(|| self.on(node)).into_iter().flatten();
        let records = indexed.chain(read).filter_map(|(network, brief)| brief.unpack(network));
        records.filter(move |endpoint| endpoint.sandbox.netns == netns)
    }

    /// How many times endpoints of the indexed node publish a port of the host.
    pub(crate) fn publishers(&self, port: HostPort) -> usize {
        self.home.as_ref().map_or(0, |home| home.publishers(port))
    }

    /// Number of endpoints of a node in a network.
    pub(crate) fn count_on(&self, network: &Name, node: &Name) -> usize {
        let group = self.groups.get(network).zip(self.numbers.get(node));
        group.and_then(|(group, number)| group.on.get(number)).copied().unwrap_or_default()
    }

    /// The endpoints of a network that have the MAC `mac`, and whose MAC is not derived from their
    /// IPv4 address, in order of identifier.
    pub(super) fn with_own_mac(
        &self,
        network: &Name,
        mac: MacAddr,
    ) -> impl Iterator<Item = Id> + use<'_> {
        let group = self.groups.get(network).into_iter();
        let range = (mac, Id::LEAST)..=(mac, Id::GREATEST);
        group.flat_map(move |group| group.own_macs.keys_in(range.clone())).map(|(_, id)| id)
    }

    /// The MACs of a network that several endpoints have, and that are not derived from their IPv4
    /// addresses: each with the first endpoint, and one of the others.
    pub(super) fn repeated_macs(
        &self,
        network: &Name,
    ) -> impl Iterator<Item = (MacAddr, Id, Id)> + use<'_> {
        let group = self.groups.get(network).into_iter();
        let keys = group.flat_map(|group| group.own_macs.iter().map(|(key, ())| *key));
        let mut first: Option<(MacAddr, Id)> = None;
        keys.filter_map(move |(mac, id)| match first {
            Some((same, holder)) if same == mac => Some((mac, holder, id)),
            _ => {
                first = Some((mac, id));
                None
            }
        })
    }

    /// The endpoints of all networks.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Name, Brief<'_>)> {
        self.groups.keys().flat_map(|network| self.briefs(network).map(move |ep| (network, ep)))
    }

    /// Adds or replaces an endpoint. `None`: its identifier is invalid.
    pub(super) fn put(&mut self, endpoint: &Versioned<Endpoint>) -> Option<()> {
        let node = match self.numbers.get(&endpoint.node) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.nodes.len()).ok()?;
                self.nodes.push(endpoint.node.clone());
                self.numbers.insert(endpoint.node.clone(), number);
                number
            }
        };
        let packed = packed::pack(endpoint, node)?;
        let id = packed::id_of(&packed);
        self.leave_home(&endpoint.network, &id);
        if let Some(home) = self.home.as_mut().filter(|home| home.is(&endpoint.node)) {
            home.insert(id, endpoint);
        }
        if !self.groups.contains_key(&endpoint.network) {
            self.groups.insert(endpoint.network.clone(), NetworkEndpoints::default());
        }
        self.groups.get_mut(&endpoint.network)?.put(packed)
    }

    /// Removes an endpoint.
    pub(super) fn remove(&mut self, network: &Name, id: &Id) {
        self.leave_home(network, id);
        let Some(group) = self.groups.get_mut(network) else { return };
        group.remove(id);
        if group.items.is_empty() {
            self.groups.remove(network);
        }
    }

    /// Takes an endpoint out of the indexes of the node, if they have it.
    fn leave_home(&mut self, network: &Name, id: &Id) {
        if !self.home.as_ref().is_some_and(|home| home.has(network, id)) {
            return;
        }
        let before = self.brief(network, id).and_then(|brief| brief.unpack(network));
        if let Some((home, before)) = self.home.as_mut().zip(before) {
            home.remove(*id, &before);
        }
    }

    /// Moves all endpoints into contiguous memory.
    pub(super) fn pack(&mut self) {
        self.groups.values_mut().for_each(NetworkEndpoints::pack);
    }

    fn unpacked(&self) -> impl Iterator<Item = Option<Versioned<Endpoint>>> {
        self.all().map(|(network, brief)| brief.unpack(network))
    }
}

/// The endpoints of a network, in order of identifier.
#[derive(Clone, Default)]
struct NetworkEndpoints {
    items: Chunked<Item>,
    /// Packed endpoints in contiguous memory. Single allocations would be spread over the memory
    /// that a read of the store takes, and would keep the allocator from returning it.
    slab: Vec<u8>,
    /// Number of unused bytes in the slab.
    dead: usize,
    /// Number of endpoints of each node that has some.
    on: BTreeMap<u32, usize>,
    /// MACs that are not derived from the endpoint's IPv4 address.
    own_macs: Sorted<(MacAddr, Id), ()>,
}

/// Location of a packed endpoint.
#[derive(Clone)]
enum Item {
    Own(Box<[u8]>),
    InSlab { from: u32, length: u32 },
}

impl NetworkEndpoints {
    /// Number of unused bytes that a small slab may have.
    const DEAD: usize = 1 << 16;

    fn bytes<'a>(&'a self, item: &'a Item) -> &'a [u8] {
        match item {
            Item::Own(bytes) => bytes,
            Item::InSlab { from, length } => {
                let (from, length) = (*from as usize, *length as usize);
                self.slab.get(from..from.saturating_add(length)).unwrap_or_default()
            }
        }
    }

    fn find(&self, id: &Id) -> Result<Place, Place> {
        self.items.find(|item| packed::id_of(self.bytes(item)).cmp(id))
    }

    fn put(&mut self, packed: Box<[u8]>) -> Option<()> {
        let id = packed::id_of(&packed);
        let indexed = Indexed::of(&packed);
        // Fast path: a list comes in order of identifier.
        if self.items.last().is_none_or(|last| packed::id_of(self.bytes(last)) < id) {
            self.items.push(Item::Own(packed));
        } else {
            match self.find(&id) {
                Ok(place) => {
                    let before = std::mem::replace(self.items.get_mut(place)?, Item::Own(packed));
                    self.bury(id, &before);
                }
                Err(place) => self.items.insert(place, Item::Own(packed)),
            }
        }
        self.index(id, indexed);
        Some(())
    }

    fn remove(&mut self, id: &Id) {
        if let Ok(place) = self.find(id)
            && let Some(before) = self.items.remove(place)
        {
            self.bury(*id, &before);
        }
    }

    /// Adds an endpoint to the indexes.
    fn index(&mut self, id: Id, Indexed { node, own_mac }: Indexed) {
        *self.on.entry(node).or_default() += 1;
        if let Some(mac) = own_mac {
            self.own_macs.insert((mac, id), ());
        }
    }

    /// Removes an endpoint from the indexes and frees its place in the slab. `items` no longer has
    /// the endpoint.
    fn bury(&mut self, id: Id, item: &Item) {
        let Indexed { node, own_mac } = Indexed::of(self.bytes(item));
        if let Entry::Occupied(mut count) = self.on.entry(node) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if let Some(mac) = own_mac {
            self.own_macs.remove(&(mac, id));
        }
        if let Item::InSlab { length, .. } = item {
            self.dead += *length as usize;
            if self.dead > Self::DEAD + self.slab.len() / 2 {
                self.pack();
            }
        }
    }

    fn pack(&mut self) {
        let length = self.items.iter().map(|item| self.bytes(item).len()).sum();
        let mut slab = Vec::with_capacity(length);
        let packed = self.items.iter().map(|item| {
            let bytes = self.bytes(item);
            match (u32::try_from(slab.len()), u32::try_from(bytes.len())) {
                (Ok(from), Ok(length)) => {
                    slab.extend_from_slice(bytes);
                    Item::InSlab { from, length }
                }
                // The endpoints of one network exceed 4 GB.
                _ => Item::Own(bytes.into()),
            }
        });
        let items: Chunked<Item> = packed.collect();
        (self.items, self.slab, self.dead) = (items, slab, 0);
        self.own_macs.pack();
    }
}

impl PartialEq for Endpoints {
    /// Compares decoded records: the numbers of nodes may differ.
    fn eq(&self, other: &Self) -> bool {
        self.unpacked().eq(other.unpacked())
    }
}

impl Eq for Endpoints {}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.unpacked().flatten()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Protocol, PublishedPort,
        testing::{endpoint, network},
        view::home::host_ports,
    };

    fn port(number: u16) -> PublishedPort {
        PublishedPort {
            host_ip: [0; 4].into(),
            host_port: 8000 + number,
            container_port: 80,
            protocol: Protocol::Tcp,
            count: 1 + number,
        }
    }

    proptest! {
        /// Endpoints equal what was put, independent of their location.
        #[test]
        fn endpoints_are_what_was_put(
            history in proptest::collection::vec(
                (0..20u8, 2..9u8, 0..6u8, 0..2usize, proptest::option::of(0..2usize)), 0..80,
            ),
        ) {
            let net = network("net", 256, &["10.0.0.0/24"]);
            let nodes: [Name; 2] = ["host1", "host2"].map(|node| node.parse().expect("name"));
            let macs = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
            // Of the first node there are indexes, of the second there are none.
            let mut endpoints = Endpoints::at(nodes[0].clone());
            let mut expected = BTreeMap::new();
            for (revision, (id, last, what, node, mac)) in (1..).zip(history) {
                let (id, ip) = (format!("{id:02x}"), format!("10.0.0.{last}"));
                let mut record = endpoint(&net, &id, nodes[node].as_str(), &ip);
                record.mac = mac.map_or(record.mac, |mac| macs[mac]);
                // Endpoints share containers, sandboxes and ports.
                record.container = ["one", "two"][usize::from(last % 2)].parse().expect("name");
                record.sandbox.netns = ["/one", "/two", "/three"][usize::from(last % 3)].into();
                record.ports = (0..u16::from(last % 4)).map(port).collect();
                let id = Id::parse(&record.id).expect("id");
                match what {
                    0 => endpoints.pack(),
                    1 => {
                        endpoints.remove(&net.name, &id);
                        expected.remove(&record.id);
                    }
                    _ => {
                        let versioned = Versioned { record, revision };
                        endpoints.put(&versioned).expect("put");
                        expected.insert(versioned.id.clone(), versioned);
                    }
                }
                let all: Vec<_> = endpoints.unpacked().flatten().collect();
                prop_assert_eq!(all, expected.values().cloned().collect::<Vec<_>>());
                prop_assert_eq!(endpoints.is_empty(), expected.is_empty());
                let found = endpoints.brief(&net.name, &id).map(|brief| brief.revision);
                prop_assert_eq!(found, expected.get(&id.text()).map(|ep| ep.revision));
                for node in &nodes {
                    let there = expected.values().filter(|ep| ep.node == *node).count();
                    prop_assert_eq!(endpoints.count_on(&net.name, node), there);
                    let on = endpoints.on(node).map(|(_, brief)| brief.id.text());
                    let there = expected.values().filter(|ep| ep.node == *node);
                    prop_assert!(on.eq(there.clone().map(|ep| ep.id.clone())));
                    let on_in = endpoints.on_in(node, &net.name).map(|brief| brief.id.text());
                    prop_assert!(on_in.eq(there.clone().map(|ep| ep.id.clone())));
                    for container in ["one", "two"] {
                        let container: Name = container.parse().expect("name");
                        let of = endpoints.of(node, &container).map(|(_, brief)| brief.id.text());
                        let its = there.clone().filter(|ep| ep.container == container);
                        prop_assert!(of.eq(its.map(|ep| ep.id.clone())));
                    }
                    for netns in ["/one", "/two", "/three"].map(Path::new) {
                        let within = endpoints.within(node, netns).map(|ep| ep.id.clone());
                        let its = there.clone().filter(|ep| ep.sandbox.netns == netns);
                        prop_assert!(within.eq(its.map(|ep| ep.id.clone())));
                    }
                }
                for number in 0..5 {
                    let port: HostPort = ([0; 4].into(), 8000 + number, Protocol::Tcp.number());
                    let home = expected.values().filter(|ep| ep.node == nodes[0]);
                    let publishers = home.flat_map(|ep| host_ports(ep)).filter(|has| *has == port).count();
                    prop_assert_eq!(endpoints.publishers(port), publishers);
                }
                for mac in &macs {
                    let ids: Vec<_> = endpoints.with_own_mac(&net.name, *mac).collect();
                    let has = expected.values().filter(|ep| ep.mac == *mac);
                    let has: Vec<_> = has.filter_map(|ep| Id::parse(&ep.id)).collect();
                    prop_assert_eq!(ids, has);
                }
            }
        }
    }

    #[test]
    fn what_is_dead_is_buried() {
        let net = network("net", 256, &["10.0.0.0/8"]);
        let mut endpoints = Endpoints::default();
        for revision in 1..20_i64 {
            for number in 0..1000_u32 {
                let record = endpoint(&net, &format!("{number:08x}"), "host1", "10.0.0.2");
                endpoints.put(&Versioned { record, revision }).expect("put");
            }
            if revision == 1 {
                endpoints.pack();
            }
        }
        let group = &endpoints.groups[&net.name];
        assert!(group.dead <= NetworkEndpoints::DEAD + group.slab.len() / 2);
        assert!(size_of::<Item>() <= 16);
    }
}
