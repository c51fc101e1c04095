//! The desired state of one network on this host, computed from the store. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::datapath::{
    Prefix,
    entry::{FdbEntry, NeighEntry, VtepInfo},
};
use culvert_common::abi::{
    EndpointInfo, FdbKey, MappedAddr, NeighKey, NetworkInfo, PublishedEntry, PublishedKey,
};

use super::tables::{Gateway, NetworkState};
use crate::model::{Endpoint, MacAddr, Name, Network, Node, PublishedPort, View};

/// Inputs of the desired state of the networks on this host.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The store's contents.
    pub view: &'a View,
    /// This node.
    pub own: &'a Node,
    /// ifindex of the host side of each endpoint that has its device pair on this host, by
    /// identifier of the endpoint.
    pub ifindexes: &'a BTreeMap<String, u32>,
    /// ifindex of the gateway device of each VNI that has a gateway device on this host.
    pub gateways: &'a BTreeMap<u32, u32>,
    /// Single ports of this host, by identifier of the endpoint, that endpoints want to publish and
    /// that are not held for them. They are not published.
    pub unclaimed: &'a BTreeSet<(String, PublishedPort)>,
}

/// How many BUM frames an endpoint may send: `--opt bum_rate=` a second, and
/// `--opt bum_burst=` at once. A rate of 0 is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bum {
    /// Frames a second.
    pub rate: u32,
    /// Frames at once.
    pub burst: u32,
}

impl Bum {
    /// The limit of an endpoint whose network sets none: far more than ARP and neighbour
    /// discovery of a busy host need, far less than a loop sends.
    pub const DEFAULT: Self = Self { rate: 2_000, burst: 4_000 };

    /// The limit that a network's options ask for. `network create` refuses options that are not
    /// a number; such options that another program wrote to the store are ignored.
    pub fn of(network: &Network) -> Self {
        let number = |key: &str| network.options.get(key).and_then(|text| text.parse().ok());
        let rate = number("bum_rate").unwrap_or(Self::DEFAULT.rate);
        let burst = number("bum_burst").unwrap_or_else(|| match number("bum_rate") {
            Some(rate) => rate.saturating_mul(2),
            None => Self::DEFAULT.burst,
        });
        Self { rate, burst }
    }
}

/// The state of a network on this host; `None` if it has no endpoint here, or if the data plane
/// must not carry its frames ([`View::usable_network`]).
pub fn network_state(inputs: &Inputs<'_>, name: &Name) -> Option<NetworkState> {
    let Inputs { view, own, ifindexes, gateways, .. } = *inputs;
    let network = view.usable_network(name).ok()?;
    let vni = network.vni.get();
    if !view.is_in(&own.name, name) {
        return None;
    }

    let mut state = NetworkState {
        vni,
        flags: flags(network),
        endpoints: BTreeMap::new(),
        fdb: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        vteps: BTreeMap::new(),
        gateway: gateways.get(&vni).and_then(|ifindex| gateway(network, *ifindex)),
        published: BTreeMap::new(),
        sources: BTreeSet::new(),
    };
    // The entries are sorted at the end: for many endpoints that is much faster than a tree, and
    // takes less memory.
    let (mut fdb, mut neighbours) = (Vec::new(), Vec::new());
    // An endpoint whose addresses the store gives to another endpoint is left out.
    for brief in view.endpoints.briefs(name).filter(|ep| view.is_usable(network, ep)) {
        let key = FdbKey::new(vni, brief.mac.0);
        if *brief.node == own.name {
            let Some(endpoint) = brief.unpack(name) else { continue };
            if let Some(ifindex) = ifindexes.get(&endpoint.id) {
                state.endpoints.insert(*ifindex, endpoint_info(network, &endpoint));
                state.published.extend(published(inputs, vni, &endpoint, *ifindex));
                let clients = endpoint.from.iter();
                state.sources.extend(clients.map(|from| Prefix::of_clients(*ifindex, *from)));
                fdb.push((key, FdbEntry { ifindex: *ifindex, vtep: [0; 4] }));
            }
        } else if let Some(vtep) = vtep_of(inputs, brief.node) {
            fdb.push((key, FdbEntry { ifindex: 0, vtep }));
            state.vteps.insert(vtep, VtepInfo { foreign: 0 });
        } else {
            continue;
        }
        let neighbour = NeighEntry { mac: brief.mac.0 };
        neighbours.extend(brief.addresses().map(|ip| (neighbour_key(vni, ip), neighbour)));
    }
    // If two records claim a MAC, the first by identifier has it, so that all hosts choose the
    // same.
    state.fdb = first_of_each(fdb);
    state.neighbours = first_of_each(neighbours);
    let foreign = view.vteps.get(name).into_iter().flat_map(BTreeMap::keys);
    for ip in foreign.filter(|ip| **ip != own.vtep) {
        state.vteps.entry(ip.octets()).or_insert(VtepInfo { foreign: 1 });
    }
    if let Some(Gateway { ip, mac, .. }) = state.gateway {
        let neighbour = NeighEntry { mac };
        state.neighbours.insert(NeighKey::v4(vni, ip), neighbour);
    }
    Some(state)
}

/// The IPv4 gateway of a network. `ifindex` is the index of the gateway device.
fn gateway(network: &Network, ifindex: u32) -> Option<Gateway> {
    let ip = network.gateway_v4()?;
    Some(Gateway { ifindex, ip: ip.octets(), mac: MacAddr::from_ipv4(ip).0 })
}

/// Entries of an endpoint's published ports, without those that are not held.
pub(super) fn published(
    inputs: &Inputs<'_>,
    vni: u32,
    endpoint: &Endpoint,
    ifindex: u32,
) -> impl Iterator<Item = (PublishedKey, PublishedEntry)> {
    let own = inputs.unclaimed.iter().filter(|(id, _)| *id == endpoint.id);
    let unclaimed: BTreeSet<PublishedPort> = own.map(|(_, port)| *port).collect();
    let addr = endpoint.ipv4.map(|ip| MappedAddr::v4(ip.octets()));
    let flags = if endpoint.from.is_empty() { 0 } else { PublishedEntry::RESTRICTED };
    let singles = endpoint.ports.iter().flat_map(|port| port.singles());
    let claimed = singles.filter(move |port| !unclaimed.contains(port));
    claimed.filter_map(move |port| {
        let key = PublishedKey {
            addr: MappedAddr::v4(port.host_ip.octets()),
            port: port.host_port.to_be_bytes(),
            protocol: port.protocol.number(),
            pad: 0,
        };
        let port = port.container_port.to_be_bytes();
        Some((key, PublishedEntry { addr: addr?, vni, ifindex, port, flags, seal: 0 }))
    })
}

fn flags(network: &Network) -> u32 {
    let mut flags = 0;
    if network.learns() {
        flags |= NetworkInfo::LEARNING;
    }
    if network.options.get("dscp").is_some_and(|dscp| dscp == "copy") {
        flags |= NetworkInfo::COPY_DSCP;
    }
    if network.internal {
        flags |= NetworkInfo::INTERNAL;
    }
    if !network.may_overlap() {
        flags |= NetworkInfo::HOST_ACCESS;
    }
    if network.blocks_hosts() {
        flags |= NetworkInfo::BLOCK_HOSTS;
    }
    flags
}

pub(super) fn endpoint_info(network: &Network, endpoint: &Endpoint) -> EndpointInfo {
    let bum = Bum::of(network);
    EndpointInfo {
        vni: network.vni.get(),
        flags: if network.allows_any_source() { EndpointInfo::ALLOW_ANY_SOURCE } else { 0 },
        mac: endpoint.mac.0,
        mtu: network.mtu,
        ipv4: endpoint.ipv4.map(|ip| ip.octets()).unwrap_or_default(),
        ipv6: endpoint.ipv6.map(|ip| ip.octets()).unwrap_or_default(),
        bum_rate: bum.rate,
        bum_burst: bum.burst,
        incarnation: endpoint.incarnation(),
        policy: 0,
        seal: 0,
    }
}

/// The VTEP address of another node. `None`: the node has not registered, or has the address
/// of this host, so that its endpoints cannot be reached.
pub(super) fn vtep_of(inputs: &Inputs<'_>, node: &Name) -> Option<[u8; 4]> {
    let vtep = inputs.view.nodes.get(node)?.vtep;
    (vtep != inputs.own.vtep).then(|| vtep.octets())
}

/// Neighbour key of an address. Link-local addresses of endpoints are not in the map: the MAC
/// follows from the address.
pub(super) fn neighbour_key(vni: u32, ip: IpAddr) -> NeighKey {
    match ip {
        IpAddr::V4(ip) => NeighKey::v4(vni, ip.octets()),
        IpAddr::V6(ip) => NeighKey::v6(vni, ip.octets()),
    }
}

fn first_of_each<K: Ord, V>(mut entries: Vec<(K, V)>) -> BTreeMap<K, V> {
    entries.sort_by(|one, other| one.0.cmp(&other.0));
    entries.dedup_by(|later, first| later.0 == first.0);
    entries.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Driver, Key, ops},
        store::{Entry, Snapshot, Write},
    };

    /// A view that is made as agents make it: by plans, through the store's records.
    #[derive(Default)]
    struct Cluster {
        entries: BTreeMap<String, Entry>,
        revision: i64,
        unclaimed: BTreeSet<(String, PublishedPort)>,
    }

    impl Cluster {
        fn view(&self) -> View {
            let entries = self.entries.values().cloned().collect();
            View::from_snapshot(&Snapshot { revision: self.revision, entries })
        }

        fn commit(&mut self, plan: ops::Plan) {
            self.revision += 1;
            for write in plan.writes {
                match write {
                    Write::Put { key, value, .. } => {
                        let entry = Entry { key: key.clone(), value, mod_revision: self.revision };
                        self.entries.insert(key, entry);
                    }
                    Write::Delete(key) => {
                        self.entries.remove(&key);
                    }
                    Write::DeletePrefix(prefix) => {
                        self.entries.retain(|key, _| !key.starts_with(&prefix));
                    }
                }
            }
        }

        fn node(&mut self, number: u8) -> Node {
            let node = crate::model::testing::node(&format!("host{number}"), number);
            let agent = crate::model::Alive::new(node.id.clone());
            self.commit(ops::register_node(&self.view(), &node, &agent, 1).unwrap());
            node
        }

        fn network(&mut self, text: &str, options: &[(&str, &str)]) -> Network {
            let spec = ops::NetworkSpec {
                name: name(text),
                driver: Driver::Overlay,
                subnets: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
                gateway: None,
                vni: None,
                mtu: None,
                max_mtu: 1450,
                internal: false,
                learning: options.contains(&("learning", "true")),
                options: options
                    .iter()
                    .filter(|(key, _)| *key != "learning")
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                labels: BTreeMap::new(),
                routes: Vec::new(),
                pools: Vec::new(),
                store: Vec::new(),
            };
            let (network, plan) = ops::create_network(&self.view(), &spec).unwrap();
            self.commit(plan);
            network
        }

        fn endpoint(&mut self, network: &str, node: &Node, container: &str) -> Endpoint {
            let spec = ops::EndpointSpec {
                network: name(network),
                container: name(container),
                node: node.name.clone(),
                ips: Vec::new(),
                mac: None,
                ifname: "eth0".to_owned(),
                sandbox: crate::model::SandboxRef {
                    netns: "/run/netns/x".into(),
                    owned: true,
                    id: None,
                },
                ports: Vec::new(),
                from: Vec::new(),
            };
            let (endpoint, plan) = ops::create_endpoint(&self.view(), &spec).unwrap();
            self.commit(plan);
            endpoint
        }

        fn state(
            &self,
            own: &Node,
            plugged: &[(&Endpoint, u32)],
            net: &str,
        ) -> Option<NetworkState> {
            let ifindexes = plugged.iter().map(|(ep, ifindex)| (ep.id.clone(), *ifindex)).collect();
            let inputs = Inputs {
                view: &self.view(),
                own,
                ifindexes: &ifindexes,
                gateways: &BTreeMap::new(),
                unclaimed: &self.unclaimed,
            };
            network_state(&inputs, &name(net))
        }
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_without_an_endpoint_here_has_no_state() {
        let mut cluster = Cluster::default();
        let (one, two) = (cluster.node(1), cluster.node(2));
        cluster.network("blue", &[]);
        assert_eq!(cluster.state(&one, &[], "blue"), None);
        cluster.endpoint("blue", &two, "db");
        assert_eq!(cluster.state(&one, &[], "blue"), None);
        assert_eq!(cluster.state(&one, &[], "grey"), None);
        assert!(cluster.state(&two, &[], "blue").is_some());
    }

    #[test]
    fn every_address_of_every_endpoint_is_known() {
        let mut cluster = Cluster::default();
        let (one, two) = (cluster.node(1), cluster.node(2));
        let vni = cluster.network("blue", &[]).vni.get();
        let web = cluster.endpoint("blue", &one, "web");
        let db = cluster.endpoint("blue", &two, "db");
        let state = cluster.state(&one, &[(&web, 42)], "blue").unwrap();

        let info = state.endpoints[&42];
        assert_eq!((info.vni, info.mac, info.mtu), (vni, web.mac.0, 1450));
        assert_eq!(info.ipv4, web.ipv4.unwrap().octets());
        assert_eq!(info.ipv6, web.ipv6.unwrap().octets());
        assert_eq!((info.bum_rate, info.bum_burst), (Bum::DEFAULT.rate, Bum::DEFAULT.burst));
        assert_eq!(info.flags, 0);
        assert_ne!(info.incarnation, 0);
        let local = FdbEntry { ifindex: 42, vtep: [0; 4] };
        let remote = FdbEntry { ifindex: 0, vtep: [192, 0, 2, 2] };
        assert_eq!(
            state.fdb,
            BTreeMap::from([
                (FdbKey::new(vni, web.mac.0), local),
                (FdbKey::new(vni, db.mac.0), remote),
            ])
        );
        for endpoint in [&web, &db] {
            let entry = NeighEntry { mac: endpoint.mac.0 };
            for key in [
                NeighKey::v4(vni, endpoint.ipv4.unwrap().octets()),
                NeighKey::v6(vni, endpoint.ipv6.unwrap().octets()),
            ] {
                assert_eq!(state.neighbours[&key], entry);
            }
        }
        assert_eq!(state.neighbours.len(), 4);
        assert_eq!(state.vteps, BTreeMap::from([([192, 0, 2, 2], VtepInfo { foreign: 0 })]));
    }

    #[test]
    fn clients_of_published_ports_are_the_endpoints() {
        let mut cluster = Cluster::default();
        let one = cluster.node(1);
        cluster.network("blue", &[]);
        let web = cluster.endpoint("blue", &one, "web");
        let port = PublishedPort {
            host_ip: [0; 4].into(),
            host_port: 8080,
            container_port: 80,
            protocol: crate::model::Protocol::Tcp,
            count: 1,
        };
        let entry = |from: &[&str]| {
            let from = from.iter().map(|from| from.parse().unwrap()).collect();
            let record = Endpoint { ports: vec![port], from, ..web.clone() };
            let mut cluster = Cluster { entries: cluster.entries.clone(), ..Cluster::default() };
            let key = Key::endpoint(&name("blue"), &record.id);
            cluster.entries.get_mut(&key).unwrap().value = crate::model::encode(&record).unwrap();
            let state = cluster.state(&one, &[(&record, 42)], "blue").unwrap();
            let entries: Vec<_> = state.published.into_values().collect();
            (entries[0].flags, state.sources)
        };
        assert_eq!(entry(&[]), (0, BTreeSet::new()));
        let from = ["192.0.2.0/24", "198.51.100.7/32"];
        let sources = from.map(|from| Prefix::of_clients(42, from.parse().unwrap()));
        assert_eq!(entry(&from), (PublishedEntry::RESTRICTED, sources.into()));
    }

    #[test]
    fn a_port_that_is_not_held_is_not_published() {
        let mut cluster = Cluster::default();
        let one = cluster.node(1);
        cluster.network("blue", &[]);
        let web = cluster.endpoint("blue", &one, "web");
        let port = |host_port, count| PublishedPort {
            host_ip: [0; 4].into(),
            host_port,
            container_port: host_port,
            protocol: crate::model::Protocol::Tcp,
            count,
        };
        let record = Endpoint { ports: vec![port(22, 1), port(8000, 3)], ..web };
        let key = Key::endpoint(&name("blue"), &record.id);
        cluster.entries.get_mut(&key).unwrap().value = crate::model::encode(&record).unwrap();
        let published = |cluster: &Cluster| -> Vec<u16> {
            let state = cluster.state(&one, &[(&record, 42)], "blue").unwrap();
            state.published.keys().map(|key| u16::from_be_bytes(key.port)).collect()
        };
        assert_eq!(published(&cluster), [22, 8000, 8001, 8002]);
        let unclaimed = [port(22, 1), port(8001, 1)].map(|port| (record.id.clone(), port));
        cluster.unclaimed = unclaimed.into();
        assert_eq!(published(&cluster), [8000, 8002]);
        let other = [(String::from("0a"), port(8000, 1))];
        cluster.unclaimed = other.into();
        assert_eq!(published(&cluster).len(), 4);
    }

    #[test]
    fn an_endpoint_that_is_not_plugged_in_gets_no_frames_yet() {
        let mut cluster = Cluster::default();
        let one = cluster.node(1);
        cluster.network("blue", &[]);
        cluster.endpoint("blue", &one, "web");
        let state = cluster.state(&one, &[], "blue").unwrap();
        assert!(state.endpoints.is_empty() && state.fdb.is_empty());
        assert_eq!(state.neighbours.len(), 2);
    }

    #[test]
    fn peers_are_the_hosts_with_endpoints_and_the_foreign_vteps_but_not_this_one() {
        let mut cluster = Cluster::default();
        let (one, two, three) = (cluster.node(1), cluster.node(2), cluster.node(3));
        cluster.network("blue", &[("learning", "true")]);
        for node in [&one, &two, &two] {
            let number = cluster.revision;
            cluster.endpoint("blue", node, &format!("c{number}"));
        }
        let (_, plan) =
            ops::add_vtep(&cluster.view(), &name("blue"), [198, 51, 100, 9].into(), 8472).unwrap();
        cluster.commit(plan);
        let peers = |cluster: &Cluster, own: &Node| -> Vec<([u8; 4], u32)> {
            let state = cluster.state(own, &[], "blue").unwrap();
            state.vteps.into_iter().map(|(ip, info)| (ip, info.foreign)).collect()
        };
        assert_eq!(peers(&cluster, &one), [([192, 0, 2, 2], 0), ([198, 51, 100, 9], 1)]);
        assert_eq!(peers(&cluster, &two), [([192, 0, 2, 1], 0), ([198, 51, 100, 9], 1)]);
        assert_eq!(cluster.state(&three, &[], "blue"), None);
    }

    #[test]
    fn options_become_flags_and_limits() {
        let mut cluster = Cluster::default();
        let one = cluster.node(1);
        cluster.network(
            "blue",
            &[("learning", "true"), ("dscp", "copy"), ("anti_spoof", "false"), ("bum_rate", "5")],
        );
        let web = cluster.endpoint("blue", &one, "web");
        let state = cluster.state(&one, &[(&web, 1)], "blue").unwrap();
        assert_eq!(
            state.flags,
            NetworkInfo::LEARNING | NetworkInfo::COPY_DSCP | NetworkInfo::HOST_ACCESS
        );
        let info = state.endpoints[&1];
        assert_eq!(info.flags, EndpointInfo::ALLOW_ANY_SOURCE);
        assert_eq!((info.bum_rate, info.bum_burst), (5, 10));
    }

    #[test]
    fn a_network_is_closed_towards_hosts_if_it_says_so() {
        for (value, flags) in [("true", NetworkInfo::BLOCK_HOSTS), ("false", 0)] {
            let mut cluster = Cluster::default();
            let one = cluster.node(1);
            cluster.network("blue", &[("block_hosts", value)]);
            let web = cluster.endpoint("blue", &one, "web");
            let state = cluster.state(&one, &[(&web, 1)], "blue").unwrap();
            assert_eq!(state.flags, NetworkInfo::HOST_ACCESS | flags, "block_hosts={value}");
        }
    }

    #[test]
    fn a_network_whose_containers_may_have_any_address_learns() {
        for (value, flags) in [("false", NetworkInfo::LEARNING), ("true", 0)] {
            let mut cluster = Cluster::default();
            let one = cluster.node(1);
            cluster.network("blue", &[("anti_spoof", value)]);
            let web = cluster.endpoint("blue", &one, "web");
            let state = cluster.state(&one, &[(&web, 1)], "blue").unwrap();
            assert_eq!(state.flags, NetworkInfo::HOST_ACCESS | flags, "anti_spoof={value}");
        }
    }

    #[test]
    fn records_that_contradict_the_claims_are_not_carried() {
        let mut cluster = Cluster::default();
        let (one, two) = (cluster.node(1), cluster.node(2));
        let network = cluster.network("blue", &[]);
        let web = cluster.endpoint("blue", &one, "web");
        let db = cluster.endpoint("blue", &two, "db");
        // The store no longer says that the address is this endpoint's.
        cluster.entries.remove(&Key::ipam(&name("blue"), db.ipv4.unwrap().into()));
        let state = cluster.state(&one, &[(&web, 1)], "blue").unwrap();
        assert!(!state.fdb.contains_key(&FdbKey::new(network.vni.get(), db.mac.0)));
        assert!(state.vteps.is_empty());
        // A network whose VNI the store does not give to it is not carried either.
        cluster.entries.remove(&Key::vni(network.vni));
        assert_eq!(cluster.state(&one, &[(&web, 1)], "blue"), None);
    }
}
