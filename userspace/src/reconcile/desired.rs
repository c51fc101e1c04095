//! What one network needs on this host, computed from the store. Pure.

use std::collections::BTreeMap;

use culvert_common::abi::{
    EndpointInfo, FdbEntry, FdbKey, NeighEntry, NeighKey, NetworkInfo, VtepInfo,
};

use super::tables::NetworkState;
use crate::model::{Endpoint, Name, Network, Node, View};

/// What the state of the networks on this host follows from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The cluster.
    pub view: &'a View,
    /// This node.
    pub own: &'a Node,
    /// Host-side interface index of each endpoint that is plugged in here, by
    /// identifier.
    pub ports: &'a BTreeMap<String, u32>,
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
    /// What an endpoint gets unless its network says otherwise: far more than
    /// ARP and neighbour discovery of a busy host need, far less than a loop sends.
    pub const DEFAULT: Self = Self { rate: 2_000, burst: 4_000 };

    /// The limit that a network's options ask for. Options that are no number
    /// are refused when the network is created; those of another hand count as absent.
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

/// The state of a network on this host; `None` if it has no endpoint here, or
/// may not be carried at all ([`View::usable_network`]).
pub fn network_state(inputs: &Inputs<'_>, name: &Name) -> Option<NetworkState> {
    let Inputs { view, own, ports } = *inputs;
    let network = view.usable_network(name).ok()?;
    let vni = network.vni.get();
    if !view.endpoints_in(name).any(|endpoint| endpoint.node == own.name) {
        return None;
    }

    let mut state = NetworkState {
        vni,
        flags: flags(network),
        mtu: network.mtu,
        endpoints: BTreeMap::new(),
        fdb: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        vteps: BTreeMap::new(),
    };
    // One that contradicts the claims to its addresses is not carried.
    for endpoint in view.endpoints_in(name).filter(|ep| view.usable_endpoint(ep).is_ok()) {
        let key = FdbKey::new(vni, endpoint.mac.0);
        // Of two records that claim a MAC, the first by identifier has it, on
        // every host the same.
        if endpoint.node == own.name {
            if let Some(ifindex) = ports.get(&endpoint.id) {
                state.endpoints.insert(*ifindex, endpoint_info(network, endpoint));
                state.fdb.entry(key).or_insert(FdbEntry { ifindex: *ifindex, vtep: [0; 4] });
            }
        } else if let Some(node) = view.nodes.get(&endpoint.node)
            && node.vtep != own.vtep
        {
            let vtep = node.vtep.octets();
            state.fdb.entry(key).or_insert(FdbEntry { ifindex: 0, vtep });
            state.vteps.insert(vtep, VtepInfo { foreign: 0 });
        } else {
            // Its node has not registered, or has our address: it cannot be reached.
            continue;
        }
        let neighbour = NeighEntry { mac: endpoint.mac.0, pad: [0; 2] };
        for key in addresses(vni, endpoint) {
            state.neighbours.entry(key).or_insert(neighbour);
        }
    }
    let foreign = view.vteps.get(name).into_iter().flat_map(BTreeMap::keys);
    for ip in foreign.filter(|ip| **ip != own.vtep) {
        state.vteps.entry(ip.octets()).or_insert(VtepInfo { foreign: 1 });
    }
    Some(state)
}

fn flags(network: &Network) -> u32 {
    let mut flags = 0;
    if network.learning {
        flags |= NetworkInfo::LEARNING;
    }
    if network.options.get("dscp").is_some_and(|dscp| dscp == "copy") {
        flags |= NetworkInfo::COPY_DSCP;
    }
    flags
}

fn endpoint_info(network: &Network, endpoint: &Endpoint) -> EndpointInfo {
    let bum = Bum::of(network);
    let any_source = network.options.get("anti_spoof").is_some_and(|value| value == "false");
    EndpointInfo {
        vni: network.vni.get(),
        flags: if any_source { EndpointInfo::ALLOW_ANY_SOURCE } else { 0 },
        mac: endpoint.mac.0,
        mtu: network.mtu,
        ipv4: endpoint.ipv4.map(|ip| ip.octets()).unwrap_or_default(),
        ipv6: endpoint.ipv6.map(|ip| ip.octets()).unwrap_or_default(),
        bum_rate: bum.rate,
        bum_burst: bum.burst,
    }
}

/// Neighbour keys of an endpoint: its addresses and its link-local one.
fn addresses(vni: u32, endpoint: &Endpoint) -> impl Iterator<Item = NeighKey> {
    let v4 = endpoint.ipv4.map(|ip| NeighKey::v4(vni, ip.octets()));
    let v6 = endpoint.ipv6.map(|ip| NeighKey::v6(vni, ip.octets()));
    let link_local = NeighKey::v6(vni, endpoint.mac.link_local().octets());
    v4.into_iter().chain(v6).chain([link_local])
}
