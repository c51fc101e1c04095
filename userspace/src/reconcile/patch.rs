//! Changes to the maps of one network when a few endpoints of other hosts change. The other
//! endpoints are not read again. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::datapath::entry::{FdbEntry, NeighEntry, VtepInfo, VtepKey};
use culvert_common::abi::{FdbKey, NeighKey};

use super::{
    desired::{Inputs, neighbour_key, vtep_of},
    tables::Tables,
};
use crate::model::{Brief, Former, Id, MacAddr, Name};

/// The endpoints that have changed in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Identifiers of the endpoints that are new, changed or removed.
    pub endpoints: BTreeSet<String>,
    /// MAC, addresses and node that the changed and removed endpoints had before.
    pub former: BTreeSet<Former>,
}

/// Changes to a network's tables: the new value of each key, or `None` to remove it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// VNI.
    pub vni: u32,
    /// Where MACs are.
    pub fdb: BTreeMap<FdbKey, Option<FdbEntry>>,
    /// MACs of addresses.
    pub neighbours: BTreeMap<NeighKey, Option<NeighEntry>>,
    /// VTEPs that take part.
    pub vteps: BTreeMap<[u8; 4], Option<VtepInfo>>,
}

/// The patch for `changed`, given what the kernel holds of the network. The maps are then those
/// of [`network_state`](super::network_state). `None`: the change concerns more than endpoints
/// of other hosts, so that the caller must compute the whole network.
pub fn network_patch(
    inputs: &Inputs<'_>,
    name: &Name,
    held: &Tables,
    changed: &Changed,
) -> Option<Patch> {
    let Inputs { view, own, .. } = *inputs;
    let network = view.usable_network(name).ok()?;
    let vni = network.vni.get();
    // A network is patched only after it has been written as a whole.
    held.networks.get(&vni)?;
    let local = |node: &Name| *node == own.name;
    let usable = |brief: &Brief<'_>| view.is_usable(network, brief);

    let ids = changed.endpoints.iter().filter_map(|id| Id::parse(id));
    let now: Vec<Brief<'_>> = ids.filter_map(|id| view.endpoints.brief(name, &id)).collect();
    let nodes: BTreeSet<&Name> =
        now.iter().map(|ep| ep.node).chain(changed.former.iter().map(|ep| &ep.node)).collect();
    if nodes.iter().any(|node| local(node)) {
        return None;
    }
    let macs: BTreeSet<MacAddr> =
        now.iter().map(|ep| ep.mac).chain(changed.former.iter().map(|ep| ep.mac)).collect();
    let former = changed.former.iter().flat_map(|ep| ep.addresses.iter().copied());
    let ips: BTreeSet<IpAddr> = now.iter().flat_map(Brief::addresses).chain(former).collect();
    if network.gateway_v4().is_some_and(|ip| ips.contains(&IpAddr::V4(ip))) {
        return None;
    }
    // If the record of a concerned node has changed as well, its former VTEP is not known, and the
    // maps may have entries of that VTEP.
    let vteps: BTreeSet<[u8; 4]> =
        nodes.iter().map(|node| vtep_of(inputs, node)).collect::<Option<_>>()?;
    let key = |mac: MacAddr| FdbKey::new(vni, mac.0);
    let known = |mac: &MacAddr| held.fdb.get(&key(*mac));
    if macs.iter().filter_map(known).any(|entry| !vteps.contains(&entry.vtep)) {
        return None;
    }

    // The endpoint that has each MAC, and the VTEPs that have an endpoint.
    let mut holders: BTreeMap<MacAddr, Brief<'_>> = BTreeMap::new();
    let mut members: BTreeSet<[u8; 4]> = BTreeSet::new();
    if changed.former.is_empty() && !macs.iter().any(|mac| known(mac).is_some()) {
        // No endpoint had any of these MACs or addresses before, and no VTEP has lost an endpoint.
        let had = |vtep: &&[u8; 4]| {
            held.vteps.get(&VtepKey { vni, ip: **vtep }).is_some_and(|info| info.foreign == 0)
        };
        members.extend(vteps.iter().filter(had));
        for brief in now.iter().copied().filter(usable) {
            members.extend(vtep_of(inputs, brief.node));
            holders.entry(brief.mac).or_insert(brief);
        }
    } else {
        let there: BTreeSet<&Name> = view
            .nodes
            .values()
            .filter(|node| vteps.contains(&node.vtep.octets()))
            .map(|node| &node.name)
            .collect();
        let concerned = |brief: &Brief<'_>| macs.contains(&brief.mac) || there.contains(brief.node);
        for brief in view.endpoints.briefs(name).filter(concerned) {
            let open = macs.contains(&brief.mac);
            if !open && vtep_of(inputs, brief.node).is_some_and(|vtep| members.contains(&vtep)) {
                continue;
            }
            if !usable(&brief) || (vtep_of(inputs, brief.node).is_none() && !local(brief.node)) {
                continue;
            }
            if open && local(brief.node) {
                return None;
            }
            members.extend(vtep_of(inputs, brief.node));
            if open {
                holders.entry(brief.mac).or_insert(brief);
            }
        }
    }

    let mut patch = Patch { vni, ..Patch::default() };
    for mac in &macs {
        let vtep = holders.get(mac).and_then(|brief| vtep_of(inputs, brief.node));
        patch.fdb.insert(key(*mac), vtep.map(|vtep| FdbEntry { ifindex: 0, vtep }));
    }
    for ip in ips {
        let owner = view.ipam.owner(name, ip).and_then(|id| view.endpoints.brief(name, &id));
        let owner = owner.filter(|ep| ep.addresses().any(|own| own == ip) && usable(ep));
        if owner.is_some_and(|ep| local(ep.node)) {
            return None;
        }
        let owner = owner.filter(|ep| vtep_of(inputs, ep.node).is_some());
        let entry = owner.map(|ep| NeighEntry { mac: ep.mac.0 });
        patch.neighbours.insert(neighbour_key(vni, ip), entry);
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

#[cfg(test)]
mod tests;
