//! Changes to the maps of one network when a few endpoints change. The other endpoints are not read
//! again. Pure.

mod changes;
mod own;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::datapath::entry::{FdbEntry, NeighEntry, VtepInfo};
use culvert_common::abi::FdbKey;

pub use self::changes::{Changed, Patch};
use super::{
    desired::{Inputs, neighbour_key, vtep_of},
    held::Held,
};
use crate::model::{Brief, Id, MacAddr, Name, Network};

/// The patch for `changed`, given the entries that the kernel has of the network. The patched maps
/// are those of [`network_state`](super::network_state). `None`: the change concerns more than the
/// entries of these endpoints, so that the caller must compute the whole network.
pub fn network_patch(
    inputs: &Inputs<'_>,
    name: &Name,
    held: &Held,
    changed: &Changed,
) -> Option<Patch> {
    let Inputs { view, own, ifindexes, .. } = *inputs;
    let network = view.usable_network(name).ok()?;
    let vni = network.vni.get();
    // With its last endpoint here a network goes as a whole.
    if !view.is_in(&own.name, name) {
        return None;
    }
    // A network is patched only after it has been written as a whole.
    held.tables().networks.get(&vni)?;
    let local = |node: &Name| *node == own.name;
    let usable = |brief: &Brief<'_>| view.is_usable(network, brief);

    let ids = changed.endpoints.iter().filter_map(|id| Id::parse(id));
    let now: Vec<Brief<'_>> = ids.filter_map(|id| view.endpoints.brief(name, &id)).collect();
    let nodes: BTreeSet<&Name> =
        now.iter().map(|ep| ep.node).chain(changed.former.iter().map(|ep| &ep.node)).collect();
    let macs: BTreeSet<MacAddr> =
        now.iter().map(|ep| ep.mac).chain(changed.former.iter().map(|ep| ep.mac)).collect();
    let former = changed.former.iter().flat_map(|ep| ep.addresses.iter().copied());
    let ips: BTreeSet<IpAddr> = now.iter().flat_map(Brief::addresses).chain(former).collect();
    if network.gateway_v4().is_some_and(|ip| ips.contains(&IpAddr::V4(ip))) {
        return None;
    }
    // If the record of a concerned node has changed as well, its former VTEP is not known, and the
    // maps may have entries of that VTEP.
    let others = nodes.iter().filter(|node| !local(node));
    let vteps: BTreeSet<[u8; 4]> =
        others.map(|node| vtep_of(inputs, node)).collect::<Option<_>>()?;
    let key = |mac: MacAddr| FdbKey::new(vni, mac.0);
    let known = |mac: &MacAddr| held.tables().fdb.get(&key(*mac));
    if macs.iter().filter_map(known).any(|entry| is_remote(entry) && !vteps.contains(&entry.vtep)) {
        return None;
    }

    // The first endpoint that has each MAC and can be reached.
    let place = |brief: &Brief<'_>| {
        if local(brief.node) {
            let ifindex = *ifindexes.get(&brief.id.text())?;
            return Some(FdbEntry { ifindex, vtep: [0; 4] });
        }
        Some(FdbEntry { ifindex: 0, vtep: vtep_of(inputs, brief.node)? })
    };
    let mut holders: BTreeMap<MacAddr, FdbEntry> = BTreeMap::new();
    for mac in &macs {
        let mut found = view.usable_with_mac(network, *mac);
        holders.extend(found.find_map(|brief| place(&brief)).map(|entry| (*mac, entry)));
    }
    let members: BTreeSet<[u8; 4]> = vteps
        .iter()
        .copied()
        .filter(|vtep| {
            let is_its = |entry: &&FdbEntry| is_remote(entry) && entry.vtep == *vtep;
            let before = macs.iter().filter_map(known).filter(is_its).count();
            let now = holders.values().filter(is_its).count();
            held.behind(*vtep) + now > before || has_usable(inputs, network, *vtep)
        })
        .collect();

    let mut patch = Patch { vni, ..Patch::default() };
    for mac in &macs {
        patch.fdb.insert(key(*mac), holders.get(mac).copied());
    }
    for ip in ips {
        let owner = view.ipam.owner(name, ip).and_then(|id| view.endpoints.brief(name, &id));
        let owner = owner.filter(|ep| ep.addresses().any(|own| own == ip) && usable(ep));
        let is_reachable = |ep: &Brief<'_>| local(ep.node) || vtep_of(inputs, ep.node).is_some();
        let owner = owner.filter(is_reachable);
        let entry = owner.map(|ep| NeighEntry { mac: ep.mac.0 });
        patch.neighbours.insert(neighbour_key(vni, ip), entry);
    }
    if nodes.iter().any(|node| local(node)) || !changed.ifindexes.is_empty() {
        own::patch(&mut patch, inputs, network, held, changed)?;
    }
    for vtep in vteps {
        let foreign = view.vteps.get(name).is_some_and(|vteps| vteps.contains_key(&vtep.into()));
        let info = if members.contains(&vtep) {
            Some(VtepInfo { foreign: 0 })
        } else {
            foreign.then_some(VtepInfo { foreign: 1 })
        };
        patch.vteps.insert(vtep, info);
    }
    Some(patch)
}

/// Whether an entry leads to another host.
fn is_remote(entry: &FdbEntry) -> bool {
    entry.ifindex == 0
}

/// Whether a usable endpoint is behind a VTEP. Reads all endpoints of the network, unless no
/// endpoint is on a node with this VTEP. The caller asks only for a VTEP that has no MAC left in
/// the patched FDB.
fn has_usable(inputs: &Inputs<'_>, network: &Network, vtep: [u8; 4]) -> bool {
    let view = inputs.view;
    let nodes = view.nodes.values().filter(|node| node.vtep.octets() == vtep);
    let nodes: BTreeSet<&Name> =
        nodes.map(|node| &node.name).filter(|node| view.is_in(node, &network.name)).collect();
    !nodes.is_empty()
        && view
            .endpoints
            .briefs(&network.name)
            .any(|brief| nodes.contains(brief.node) && view.is_usable(network, &brief))
}

#[cfg(test)]
mod tests;
