//! The contents of the maps that the agent writes, as values.

use std::collections::{BTreeMap, BTreeSet};

use crate::datapath::{
    Prefix,
    entry::{FdbEntry, NeighEntry, UnderlayPath, VtepInfo, VtepKey},
};
use culvert_common::abi::{
    EndpointInfo, FdbKey, FloodKey, NeighKey, NetworkInfo, PublishedEntry, PublishedKey, SourceKey,
};

use super::flood::assign_slots;

/// Contents of the maps that the agent writes: of all networks, or of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `ENDPOINTS`: host-side interface index → endpoint.
    pub endpoints: BTreeMap<u32, EndpointInfo>,
    /// `NETWORKS`: VNI → network.
    pub networks: BTreeMap<u32, NetworkInfo>,
    /// `FDB`.
    pub fdb: BTreeMap<FdbKey, FdbEntry>,
    /// `NEIGHBOURS`.
    pub neighbours: BTreeMap<NeighKey, NeighEntry>,
    /// `VTEPS`.
    pub vteps: BTreeMap<VtepKey, VtepInfo>,
    /// `UNDERLAY`: VTEP address → path. Shared by all networks.
    pub underlay: BTreeMap<[u8; 4], UnderlayPath>,
    /// `FLOOD_LOCAL`: slot → host-side interface index.
    pub flood_local: BTreeMap<FloodKey, u32>,
    /// `FLOOD_REMOTE`: slot → VTEP address.
    pub flood_remote: BTreeMap<FloodKey, [u8; 4]>,
    /// `GATEWAYS`: interface index of a gateway device → VNI.
    pub gateways: BTreeMap<u32, u32>,
    /// `PUBLISHED`.
    pub published: BTreeMap<PublishedKey, PublishedEntry>,
    /// `SOURCES`: clients of restricted ports → VNI.
    pub sources: BTreeMap<Prefix<SourceKey>, u32>,
}

impl Tables {
    /// Number of entries in all tables.
    pub fn len(&self) -> usize {
        self.endpoints.len()
            + self.networks.len()
            + self.fdb.len()
            + self.neighbours.len()
            + self.vteps.len()
            + self.underlay.len()
            + self.flood_local.len()
            + self.flood_remote.len()
            + self.gateways.len()
            + self.published.len()
            + self.sources.len()
    }

    /// Whether every table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits the tables into one set per VNI, and the underlay apart.
    pub(super) fn split(self) -> (BTreeMap<u32, Self>, BTreeMap<[u8; 4], UnderlayPath>) {
        let mut parts: BTreeMap<u32, Self> = BTreeMap::new();
        for (ifindex, info) in self.endpoints {
            parts.entry(info.vni).or_default().endpoints.insert(ifindex, info);
        }
        for (vni, info) in self.networks {
            parts.entry(vni).or_default().networks.insert(vni, info);
        }
        for (key, entry) in self.fdb {
            parts.entry(key.vni).or_default().fdb.insert(key, entry);
        }
        for (key, entry) in self.neighbours {
            parts.entry(key.vni).or_default().neighbours.insert(key, entry);
        }
        for (key, info) in self.vteps {
            parts.entry(key.vni).or_default().vteps.insert(key, info);
        }
        for (key, port) in self.flood_local {
            parts.entry(key.vni).or_default().flood_local.insert(key, port);
        }
        for (key, vtep) in self.flood_remote {
            parts.entry(key.vni).or_default().flood_remote.insert(key, vtep);
        }
        for (ifindex, vni) in self.gateways {
            parts.entry(vni).or_default().gateways.insert(ifindex, vni);
        }
        for (key, entry) in self.published {
            parts.entry(entry.vni).or_default().published.insert(key, entry);
        }
        for (key, vni) in self.sources {
            parts.entry(vni).or_default().sources.insert(key, vni);
        }
        (parts, self.underlay)
    }
}

/// The desired state of one network on this host. The flood lists are sets here: the slot of a
/// member depends on what the kernel already holds, see [`NetworkState::lay_out`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkState {
    /// VNI.
    pub vni: u32,
    /// [`NetworkInfo::flags`].
    pub flags: u32,
    /// Local endpoints by host-side interface index.
    pub endpoints: BTreeMap<u32, EndpointInfo>,
    /// Where each MAC is.
    pub fdb: BTreeMap<FdbKey, FdbEntry>,
    /// MAC of each address.
    pub neighbours: BTreeMap<NeighKey, NeighEntry>,
    /// VTEPs other than this host's that take part.
    pub vteps: BTreeMap<[u8; 4], VtepInfo>,
    /// The gateway on this host, once its device is there.
    pub gateway: Option<Gateway>,
    /// Published ports of local endpoints.
    pub published: BTreeMap<PublishedKey, PublishedEntry>,
    /// Clients of the restricted published ports.
    pub sources: BTreeSet<Prefix<SourceKey>>,
}

/// A network's gateway on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Index of the gateway device.
    pub ifindex: u32,
    /// Address.
    pub ip: [u8; 4],
    /// MAC.
    pub mac: [u8; 6],
}

impl NetworkState {
    /// The tables of the network. `observed` is what the kernel holds of it: members of a flood
    /// list that stay keep their slots.
    pub fn lay_out(&self, observed: &Tables) -> Tables {
        let vni = self.vni;
        let interfaces: BTreeSet<u32> = self.endpoints.keys().copied().collect();
        let peers: BTreeSet<[u8; 4]> = self.vteps.keys().copied().collect();
        let flood_local = assign_slots(vni, &interfaces, &observed.flood_local);
        let flood_remote = assign_slots(vni, &peers, &observed.flood_remote);
        let info = NetworkInfo {
            flags: self.flags,
            gateway_ifindex: self.gateway.map_or(0, |gateway| gateway.ifindex),
            gateway_ip: self.gateway.map(|gateway| gateway.ip).unwrap_or_default(),
            gateway_mac: self.gateway.map(|gateway| gateway.mac).unwrap_or_default(),
            pad: [0; 2],
            seal: 0,
            local_endpoints: u32::try_from(flood_local.len()).unwrap_or(u32::MAX),
            remote_vteps: u32::try_from(flood_remote.len()).unwrap_or(u32::MAX),
        };
        Tables {
            endpoints: self.endpoints.clone(),
            networks: BTreeMap::from([(vni, info)]),
            fdb: self.fdb.clone(),
            neighbours: self.neighbours.clone(),
            vteps: self.vteps.iter().map(|(ip, info)| (VtepKey { vni, ip: *ip }, *info)).collect(),
            underlay: BTreeMap::new(),
            flood_local,
            flood_remote,
            gateways: self.gateway.iter().map(|gateway| (gateway.ifindex, vni)).collect(),
            published: self.published.clone(),
            sources: self.sources.iter().map(|source| (*source, vni)).collect(),
        }
    }
}
