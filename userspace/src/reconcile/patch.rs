//! What changes in a network with a few endpoints of other hosts, without the others
//! being looked at again. Pure.

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

/// What has changed in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Endpoints that are new, changed or gone, by identifier.
    pub endpoints: BTreeSet<String>,
    /// What those that changed or are gone had.
    pub former: BTreeSet<Former>,
}

/// What entries of a network's tables are to be; `None`: not there.
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

/// What `changed` comes to, given what the kernel holds of the network: the same as
/// [`network_state`](super::network_state) would. `None`: that is to be asked, as the
/// change concerns more than endpoints of other hosts.
pub fn network_patch(
    inputs: &Inputs<'_>,
    name: &Name,
    held: &Tables,
    changed: &Changed,
) -> Option<Patch> {
    let Inputs { view, own, .. } = *inputs;
    let network = view.usable_network(name).ok()?;
    let vni = network.vni.get();
    // It must have been written as a whole before.
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
    // Where a node that is concerned was is not known if its record has changed, too; what
    // it had is then in the maps of a VTEP that nothing here names.
    let vteps: BTreeSet<[u8; 4]> =
        nodes.iter().map(|node| vtep_of(inputs, node)).collect::<Option<_>>()?;
    let key = |mac: MacAddr| FdbKey::new(vni, mac.0);
    let known = |mac: &MacAddr| held.fdb.get(&key(*mac));
    if macs.iter().filter_map(known).any(|entry| !vteps.contains(&entry.vtep)) {
        return None;
    }

    // Who has the MACs, and which of the VTEPs have anybody.
    let mut holders: BTreeMap<MacAddr, Brief<'_>> = BTreeMap::new();
    let mut members: BTreeSet<[u8; 4]> = BTreeSet::new();
    if changed.former.is_empty() && !macs.iter().any(|mac| known(mac).is_some()) {
        // Nobody had any of it before. Nor has a VTEP lost anybody.
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
