//! The ordered steps from the observed to the desired contents of the maps.

use std::{collections::BTreeMap, fmt};

use crate::datapath::{
    Prefix,
    entry::{FdbEntry, NeighEntry, UnderlayPath, VtepInfo, VtepKey},
};
use culvert_common::abi::{
    EndpointInfo, FdbKey, FloodKey, NeighKey, NetworkInfo, PublishedEntry, PublishedKey, SourceKey,
};

use super::tables::Tables;

/// One step: a key, and its new value or `None` to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `ENDPOINTS`.
    Endpoint(u32, Option<EndpointInfo>),
    /// `NETWORKS`.
    Network(u32, Option<NetworkInfo>),
    /// `FDB`.
    Fdb(FdbKey, Option<FdbEntry>),
    /// `NEIGHBOURS`.
    Neighbour(NeighKey, Option<NeighEntry>),
    /// `VTEPS`.
    Vtep(VtepKey, Option<VtepInfo>),
    /// `UNDERLAY`.
    Underlay([u8; 4], Option<UnderlayPath>),
    /// `FLOOD_LOCAL`.
    FloodLocal(FloodKey, Option<u32>),
    /// `FLOOD_REMOTE`.
    FloodRemote(FloodKey, Option<[u8; 4]>),
    /// `GATEWAYS`.
    Gateway(u32, Option<u32>),
    /// `PUBLISHED`.
    Published(PublishedKey, Option<PublishedEntry>),
    /// `SOURCES`.
    Source(Prefix<SourceKey>, Option<u32>),
}

impl Op {
    /// Whether the step removes an entry.
    pub fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::Endpoint(_, None)
                | Self::Network(_, None)
                | Self::Fdb(_, None)
                | Self::Neighbour(_, None)
                | Self::Vtep(_, None)
                | Self::Underlay(_, None)
                | Self::FloodLocal(_, None)
                | Self::FloodRemote(_, None)
                | Self::Gateway(_, None)
                | Self::Published(_, None)
                | Self::Source(_, None)
        )
    }

    /// Applies the step to `tables` as the kernel applies it to the maps.
    pub fn apply_to(&self, tables: &mut Tables) {
        match *self {
            Self::Endpoint(key, value) => set(&mut tables.endpoints, key, value),
            Self::Network(key, value) => set(&mut tables.networks, key, value),
            Self::Fdb(key, value) => set(&mut tables.fdb, key, value),
            Self::Neighbour(key, value) => set(&mut tables.neighbours, key, value),
            Self::Vtep(key, value) => set(&mut tables.vteps, key, value),
            Self::Underlay(key, value) => set(&mut tables.underlay, key, value),
            Self::FloodLocal(key, value) => set(&mut tables.flood_local, key, value),
            Self::FloodRemote(key, value) => set(&mut tables.flood_remote, key, value),
            Self::Gateway(key, value) => set(&mut tables.gateways, key, value),
            Self::Published(key, value) => set(&mut tables.published, key, value),
            Self::Source(key, value) => set(&mut tables.sources, key, value),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.is_removal() { "remove" } else { "put" };
        match self {
            Self::Endpoint(ifindex, _) => write!(f, "{verb} ENDPOINTS[{ifindex}]"),
            Self::Network(vni, _) => write!(f, "{verb} NETWORKS[{vni}]"),
            Self::Fdb(key, _) => write!(f, "{verb} FDB[{} {:02x?}]", key.vni, key.mac),
            Self::Neighbour(key, _) => write!(f, "{verb} NEIGHBOURS[{} {:02x?}]", key.vni, key.ip),
            Self::Vtep(key, _) => write!(f, "{verb} VTEPS[{} {:?}]", key.vni, key.ip),
            Self::Underlay(ip, _) => write!(f, "{verb} UNDERLAY[{ip:?}]"),
            Self::FloodLocal(key, _) => write!(f, "{verb} FLOOD_LOCAL[{} {}]", key.vni, key.index),
            Self::FloodRemote(key, _) => {
                write!(f, "{verb} FLOOD_REMOTE[{} {}]", key.vni, key.index)
            }
            Self::Gateway(ifindex, _) => write!(f, "{verb} GATEWAYS[{ifindex}]"),
            Self::Published(key, _) => write!(
                f,
                "{verb} PUBLISHED[{} {:?}:{}]",
                key.protocol,
                key.addr,
                u16::from_be_bytes(key.port)
            ),
            Self::Source(Prefix { key, bits }, _) => {
                write!(f, "{verb} SOURCES[{} {:?}/{bits}]", key.ifindex, key.addr)
            }
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Puts of one table.
fn puts<K: Copy + Ord, V: Copy + PartialEq>(
    ops: &mut Vec<Op>,
    desired: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
    op: fn(K, Option<V>) -> Op,
) {
    let changed = desired.iter().filter(|(key, value)| observed.get(key) != Some(value));
    ops.extend(changed.map(|(key, value)| op(*key, Some(*value))));
}

/// Removals of one table.
fn removals<K: Copy + Ord, V>(
    ops: &mut Vec<Op>,
    desired: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
    op: fn(K, Option<V>) -> Op,
) {
    let gone = observed.keys().filter(|key| !desired.contains_key(key));
    // Backwards, so that a flood list shrinks from its end.
    ops.extend(gone.rev().map(|key| op(*key, None)));
}

/// The steps from `observed` to `desired`. The order keeps the maps consistent for every frame:
///
/// * An entry is put after the entries that it refers to, and removed before them. The order of
///   the tables is: path, VTEP, FDB, neighbour, flood slot, network, endpoint, gateway, clients,
///   published port.
/// * `NETWORKS`, with the lengths of the flood lists, is written after the slots that a greater
///   length needs and before the slots that a smaller length frees are removed. Between two
///   steps a member that moves to another slot may be in the list twice, but is never missing.
pub fn diff(desired: &Tables, observed: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    puts(&mut ops, &desired.underlay, &observed.underlay, Op::Underlay);
    puts(&mut ops, &desired.vteps, &observed.vteps, Op::Vtep);
    puts(&mut ops, &desired.fdb, &observed.fdb, Op::Fdb);
    puts(&mut ops, &desired.neighbours, &observed.neighbours, Op::Neighbour);
    puts(&mut ops, &desired.flood_local, &observed.flood_local, Op::FloodLocal);
    puts(&mut ops, &desired.flood_remote, &observed.flood_remote, Op::FloodRemote);
    puts(&mut ops, &desired.networks, &observed.networks, Op::Network);
    puts(&mut ops, &desired.endpoints, &observed.endpoints, Op::Endpoint);
    puts(&mut ops, &desired.gateways, &observed.gateways, Op::Gateway);
    puts(&mut ops, &desired.sources, &observed.sources, Op::Source);
    puts(&mut ops, &desired.published, &observed.published, Op::Published);

    removals(&mut ops, &desired.published, &observed.published, Op::Published);
    removals(&mut ops, &desired.sources, &observed.sources, Op::Source);
    removals(&mut ops, &desired.gateways, &observed.gateways, Op::Gateway);
    removals(&mut ops, &desired.endpoints, &observed.endpoints, Op::Endpoint);
    removals(&mut ops, &desired.networks, &observed.networks, Op::Network);
    removals(&mut ops, &desired.flood_remote, &observed.flood_remote, Op::FloodRemote);
    removals(&mut ops, &desired.flood_local, &observed.flood_local, Op::FloodLocal);
    removals(&mut ops, &desired.neighbours, &observed.neighbours, Op::Neighbour);
    removals(&mut ops, &desired.fdb, &observed.fdb, Op::Fdb);
    removals(&mut ops, &desired.vteps, &observed.vteps, Op::Vtep);
    removals(&mut ops, &desired.underlay, &observed.underlay, Op::Underlay);
    ops
}
