//! The entries of changed endpoints of this host that endpoints of other hosts do not have.

use std::{collections::BTreeMap, net::IpAddr};

use culvert_common::abi::PublishedKey;

use super::changes::{Changed, Patch};
use crate::{
    datapath::{Prefix, ip_of},
    model::{Endpoint, HostPort, Id, Network, host_ports},
    reconcile::{
        desired::{Inputs, endpoint_info, published},
        held::Held,
    },
};

/// Adds the entries of `ENDPOINTS`, `PUBLISHED` and `SOURCES` to `patch`, which has the MACs of the
/// changed endpoints. `None`: another endpoint is concerned as well.
pub(super) fn patch(
    patch: &mut Patch,
    inputs: &Inputs<'_>,
    network: &Network,
    held: &Held,
    changed: &Changed,
) -> Option<()> {
    let Inputs { view, own, ifindexes, .. } = *inputs;
    // Without indexes of this node the search for its endpoints reads all.
    view.endpoints.is_home(&own.name).then_some(())?;
    let ids = changed.endpoints.iter();
    let changed_ifindexes =
        ids.clone().filter_map(|id| ifindexes.get(id)).chain(&changed.ifindexes);
    for ifindex in changed_ifindexes {
        // The interface is in use for an endpoint that has not changed.
        let is_known = |mac: [u8; 6]| patch.fdb.keys().any(|key| key.mac == mac);
        if held.tables().endpoints.get(ifindex).is_some_and(|info| !is_known(info.mac)) {
            return None;
        }
        patch.endpoints.insert(*ifindex, None);
        patch.published.extend(held.published_of(*ifindex).map(|key| (key, None)));
        patch.sources.extend(held.sources_of(*ifindex).map(|source| (source, None)));
    }
    // How many times the changed endpoints publish each port.
    let mut publishers: BTreeMap<HostPort, usize> = BTreeMap::new();
    for id in ids {
        let brief = Id::parse(id).and_then(|id| view.endpoints.brief(&network.name, &id));
        let Some(brief) = brief.filter(|brief| *brief.node == own.name) else { continue };
        let Some(endpoint) = brief.unpack(&network.name) else { continue };
        for port in host_ports(&endpoint) {
            *publishers.entry(port).or_default() += 1;
        }
        if let Some(ifindex) = ifindexes.get(id).filter(|_| view.is_usable(network, &brief)) {
            put(patch, inputs, network, &endpoint, *ifindex);
        }
    }
    let is_contested = |key: &PublishedKey| {
        let Some(port) = host_port(key) else { return true };
        let ours = publishers.get(&port).copied().unwrap_or_default();
        ours > 1 || view.endpoints.publishers(port) > ours
    };
    (!patch.published.keys().any(is_contested)).then_some(())
}

/// Adds the entries of an endpoint that has its interface.
fn put(
    patch: &mut Patch,
    inputs: &Inputs<'_>,
    network: &Network,
    endpoint: &Endpoint,
    ifindex: u32,
) {
    let vni = patch.vni;
    patch.endpoints.insert(ifindex, Some(endpoint_info(network, endpoint)));
    let entries = published(inputs, vni, endpoint, ifindex);
    patch.published.extend(entries.map(|(key, entry)| (key, Some(entry))));
    let clients = endpoint.from.iter();
    patch.sources.extend(clients.map(|from| (Prefix::of_clients(ifindex, *from), Some(vni))));
}

/// The port of the host that an entry of `PUBLISHED` is about.
fn host_port(key: &PublishedKey) -> Option<HostPort> {
    match ip_of(&key.addr) {
        IpAddr::V4(ip) => Some((ip, u16::from_be_bytes(key.port), key.protocol)),
        IpAddr::V6(_) => None,
    }
}
