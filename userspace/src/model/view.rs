//! The state of the cluster, computed from the changes of the store.

mod chunked;
mod claims;
mod complaints;
mod endpoints;
mod faults;
mod home;
mod packed;
mod sorted;
mod touched;
mod usable;
mod versioned;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use self::faults::Faults;
#[cfg(test)]
pub(crate) use self::packed::decoded;
pub use self::{
    claims::Claims,
    endpoints::Endpoints,
    touched::{Former, Touched},
    versioned::{Claim, Versioned},
};
pub(crate) use self::{
    home::{HostPort, host_ports},
    packed::{Brief, Id},
};
use super::{
    Alive, Decoded, Endpoint, ForeignVtep, IpOwner, Key, MacAddr, MacOwner, Name, Network, Node,
    StoreRecord, Vni, VniOwner, decode,
    record::{KEY_LIMIT, one_line},
};
use crate::store::{Change, Entry, Revision, Snapshot, Update};

/// The state of the cluster up to a revision of the store.
///
/// A record that cannot be read is listed in [`Self::problems`] and does not replace the earlier
/// record: an invalid or newer record must not interrupt running containers. Only the deletion of a
/// key removes its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The revision up to which the store's history is applied.
    pub revision: Revision,
    /// `networks/NAME`.
    pub networks: BTreeMap<Name, Versioned<Network>>,
    /// `endpoints/NETWORK/ID`.
    pub endpoints: Endpoints,
    /// `nodes/NODE`.
    pub nodes: BTreeMap<Name, Versioned<Node>>,
    /// `alive/NODE`.
    pub alive: BTreeMap<Name, Versioned<Alive>>,
    /// `vnis/N`.
    pub vnis: BTreeMap<Vni, Claim<VniOwner>>,
    /// `ipam/NETWORK/IP`.
    pub ipam: Claims,
    /// `macs/NETWORK/MAC`, by network. No entry is empty.
    pub macs: BTreeMap<Name, BTreeMap<MacAddr, Claim<MacOwner>>>,
    /// `vteps/NETWORK/IP`, by network. No entry is empty.
    pub vteps: BTreeMap<Name, BTreeMap<Ipv4Addr, Versioned<ForeignVtep>>>,
    /// Keys whose record is skipped, and the reason.
    pub problems: BTreeMap<String, String>,
    /// Cached: networks and endpoints that must not be carried.
    faults: Faults,
}

impl View {
    /// An empty view for the agent of `node`: what concerns an endpoint of that node is found
    /// without reading the others.
    pub fn at(node: Name) -> Self {
        Self { endpoints: Endpoints::at(node), ..Self::default() }
    }

    /// Makes the view from a snapshot of [`ROOT`](super::ROOT).
    pub fn from_snapshot(snapshot: &Snapshot) -> Self {
        let mut view = Self::default();
        view.add_snapshot(snapshot);
        view
    }

    /// Adds the entries of a snapshot.
    pub fn add_snapshot(&mut self, snapshot: &Snapshot) {
        for entry in &snapshot.entries {
            let mut touched = Touched::default();
            self.put(entry, &mut touched);
            self.note_faults(&touched, true);
        }
        self.revision = self.revision.max(snapshot.revision);
    }

    /// Applies an update of a [`crate::store::Follower`]. Returns the objects that it changed.
    pub fn fold(&mut self, update: &Update) -> Touched {
        let mut touched = Touched::default();
        for change in &update.changes {
            self.change(change, &mut touched);
        }
        self.note_faults(&touched, false);
        self.folded(update);
        touched
    }

    /// As [`Self::fold`], for a caller that will process the whole view. Returns the keys whose
    /// entry in [`Self::problems`] has changed.
    pub fn fold_unseen(&mut self, update: &Update) -> BTreeSet<String> {
        let mut problems = BTreeSet::new();
        for change in &update.changes {
            let mut touched = Touched::default();
            self.change(change, &mut touched);
            self.note_faults(&touched, true);
            problems.append(&mut touched.problems);
        }
        self.folded(update);
        problems
    }

    fn folded(&mut self, update: &Update) {
        // If a list comes in several updates, only the last update has the list's revision. A list of
        // a store that was accepted may be of an earlier revision than the store before had.
        self.revision =
            if update.resync { update.revision } else { self.revision.max(update.revision) };
        if update.listed.is_some() {
            self.endpoints.pack();
            self.ipam.pack();
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, change: &Change) -> Touched {
        let mut touched = Touched::default();
        self.change(change, &mut touched);
        self.note_faults(&touched, false);
        self.revision = self.revision.max(change.revision());
        touched
    }

    fn change(&mut self, change: &Change, touched: &mut Touched) {
        match change {
            Change::Put(entry) => self.put(entry, touched),
            Change::Delete { key, .. } => self.delete(key, touched),
        }
    }

    fn put(&mut self, entry: &Entry, touched: &mut Touched) {
        let key: Key = match entry.key.parse() {
            Ok(key) => key,
            Err(error) => {
                let why = one_line(&format!("skipped: {error}"), KEY_LIMIT);
                self.set_problem(&entry.key, Some(why), touched);
                return;
            }
        };
        let revision = entry.mod_revision;
        let why = match &key {
            Key::Store => None,
            Key::Network(name) => keep(&mut self.networks, name.clone(), &key, entry, || {
                touched.networks.insert(name.clone());
            }),
            Key::Node(name) => keep(&mut self.nodes, name.clone(), &key, entry, || {
                touched.nodes.insert(name.clone());
            }),
            Key::Alive(name) => keep(&mut self.alive, name.clone(), &key, entry, || {
                touched.nodes.insert(name.clone());
            }),
            Key::Endpoint { network, id } => match decode::<Endpoint>(&key, &entry.value) {
                Decoded::Record(record) => {
                    let before = Id::parse(id).and_then(|id| self.endpoints.brief(network, &id));
                    // Two stores may have different records of one revision.
                    let is_other = |before: &Brief<'_>| {
                        before.revision != revision
                            || before.unpack(network).is_none_or(|before| before.record != record)
                    };
                    if before.as_ref().is_none_or(is_other) {
                        touched.endpoints.insert((network.clone(), id.clone()));
                        let former = before.map(|before| Former::of(&before));
                        touched.former.extend(former.map(|had| (network.clone(), had)));
                    }
                    let put = self.endpoints.put(&Versioned { record, revision });
                    put.is_none().then(|| "skipped: its identifier is none".to_owned())
                }
                other => other.into_result().err(),
            },
            Key::Vtep { network, ip } => {
                let group = self.vteps.entry(network.clone()).or_default();
                let why = keep(group, *ip, &key, entry, || {
                    touched.vteps.insert((network.clone(), *ip));
                });
                if group.is_empty() {
                    self.vteps.remove(network);
                }
                why
            }
            Key::Vni(vni) => {
                let (owner, why) = claim::<VniOwner>(&key, &entry.value);
                touched.networks.extend(owner.as_ref().map(|owner| owner.network.clone()));
                let before = self.vnis.insert(*vni, Claim { owner, revision });
                touched.networks.extend(before.and_then(|claim| Some(claim.owner?.network)));
                why
            }
            Key::Ipam { network, ip } => {
                let (owner, why) = claim::<IpOwner>(&key, &entry.value);
                touched
                    .endpoints
                    .extend(owner.as_ref().map(|owner| (network.clone(), owner.endpoint.clone())));
                // The data plane may have to stop carrying the previous owner.
                let before = self.ipam.owner(network, *ip);
                touched.endpoints.extend(before.map(|id| (network.clone(), id.text())));
                self.ipam.put(network, *ip, Claim { owner, revision });
                why
            }
            Key::Mac { network, mac } => {
                let (owner, why) = claim::<MacOwner>(&key, &entry.value);
                let claims = self.macs.entry(network.clone()).or_default();
                claims.insert(*mac, Claim { owner, revision });
                self.touch_mac(network, *mac, touched);
                why
            }
        };
        self.set_problem(&entry.key, why, touched);
    }

    /// Sets the reason why the record at a key is skipped. `None`: it is not.
    fn set_problem(&mut self, key: &str, why: Option<String>, touched: &mut Touched) {
        let is_changed = match why {
            None => self.problems.remove(key).is_some(),
            Some(why) if self.problems.get(key) == Some(&why) => false,
            Some(why) => {
                self.problems.insert(key.to_owned(), why);
                true
            }
        };
        if is_changed {
            touched.problems.insert(key.to_owned());
        }
    }

    fn delete(&mut self, text: &str, touched: &mut Touched) {
        self.set_problem(text, None, touched);
        let Ok(key) = text.parse::<Key>() else { return };
        match key {
            Key::Store => {}
            Key::Network(name) => {
                if self.networks.remove(&name).is_some() {
                    touched.networks.insert(name);
                }
            }
            Key::Node(name) => {
                if self.nodes.remove(&name).is_some() {
                    touched.nodes.insert(name);
                }
            }
            Key::Alive(name) => {
                if self.alive.remove(&name).is_some() {
                    touched.nodes.insert(name);
                }
            }
            Key::Vni(vni) => {
                let before = self.vnis.remove(&vni);
                touched.networks.extend(before.and_then(|claim| Some(claim.owner?.network)));
            }
            Key::Endpoint { network, id } => {
                let packed = Id::parse(&id);
                let before = packed.and_then(|packed| self.endpoints.brief(&network, &packed));
                if let Some((before, packed)) = before.zip(packed) {
                    touched.former.insert((network.clone(), Former::of(&before)));
                    self.endpoints.remove(&network, &packed);
                    touched.endpoints.insert((network, id));
                }
            }
            Key::Ipam { network, ip } => {
                let before = self.ipam.remove(&network, ip);
                touched.endpoints.extend(
                    before.and_then(|claim| claim.owner).map(|owner| (network, owner.endpoint)),
                );
            }
            Key::Mac { network, mac } => {
                if remove_nested(&mut self.macs, &network, &mac).is_some() {
                    self.touch_mac(&network, mac, touched);
                }
            }
            Key::Vtep { network, ip } => {
                if remove_nested(&mut self.vteps, &network, &ip).is_some() {
                    touched.vteps.insert((network, ip));
                }
            }
        }
    }

    /// Whether the view has no record and no problem.
    pub fn is_empty(&self) -> bool {
        *self == Self { revision: self.revision, ..Self::default() }
    }

    /// All endpoints of a network.
    pub fn endpoints_in(&self, network: &Name) -> impl Iterator<Item = Versioned<Endpoint>> {
        self.endpoints.briefs(network).filter_map(|brief| brief.unpack(network))
    }

    /// All endpoints of a node.
    pub fn endpoints_on(&self, node: &Name) -> impl Iterator<Item = Versioned<Endpoint>> {
        self.endpoints.on(node).filter_map(|(network, brief)| brief.unpack(network))
    }

    /// All endpoints of a container of a node.
    pub fn endpoints_of(
        &self,
        node: &Name,
        container: &Name,
    ) -> impl Iterator<Item = Versioned<Endpoint>> {
        let found = self.endpoints.of(node, container);
        found.filter_map(|(network, brief)| brief.unpack(network))
    }

    /// All endpoints of a node whose sandbox has this path.
    pub fn endpoints_within(
        &self,
        node: &Name,
        netns: &Path,
    ) -> impl Iterator<Item = Versioned<Endpoint>> {
        self.endpoints.within(node, netns)
    }

    /// Whether a node has an endpoint in a network.
    pub fn is_in(&self, node: &Name, network: &Name) -> bool {
        self.endpoints.count_on(network, node) > 0
    }

    /// An endpoint by its identifier.
    pub fn endpoint(&self, network: &Name, id: &str) -> Option<Versioned<Endpoint>> {
        self.endpoints.brief(network, &Id::parse(id)?)?.unpack(network)
    }

    /// The endpoint that attaches a container on a node to a network.
    pub fn endpoint_of(
        &self,
        network: &Name,
        node: &Name,
        container: &Name,
    ) -> Option<Versioned<Endpoint>> {
        if self.endpoints.is_home(node) {
            let mut own = self.endpoints.of(node, container);
            let (_, brief) = own.find(|(of, _)| *of == network)?;
            return brief.unpack(network);
        }
        let mut briefs = self.endpoints.briefs(network);
        let found = briefs.find(|ep| ep.node == node && ep.container() == container.as_str());
        found?.unpack(network)
    }

    /// The endpoint of a network with the given MAC address. An endpoint that does not own the
    /// address that its MAC is derived from does not have that MAC.
    pub fn endpoint_at(&self, network: &Name, mac: MacAddr) -> Option<Versioned<Endpoint>> {
        self.with_mac(network, mac).next()?.unpack(network)
    }

    /// The endpoints of a network that have a MAC of their own choice, or the one derived from an
    /// address that they own, in order of identifier.
    fn with_mac(&self, network: &Name, mac: MacAddr) -> impl Iterator<Item = Brief<'_>> {
        let derived = mac.to_ipv4().and_then(|ip| self.ipam.owner(network, ip.into()));
        let own = self.endpoints.with_own_mac(network, mac);
        let ids: BTreeSet<Id> = own.chain(derived).collect();
        let briefs = ids.into_iter().filter_map(move |id| self.endpoints.brief(network, &id));
        briefs.filter(move |brief| brief.mac == mac)
    }

    /// The usable endpoints of a usable network that have the given MAC address, in order of
    /// identifier.
    pub(crate) fn usable_with_mac(
        &self,
        network: &Network,
        mac: MacAddr,
    ) -> impl Iterator<Item = Brief<'_>> {
        // A usable endpoint owns the address that its MAC is derived from.
        let briefs = self.with_mac(&network.name, mac);
        briefs.filter(move |brief| self.is_usable(network, brief))
    }

    /// Resolves a network name on a node: to the node-local network of that name if it exists, else
    /// to the global name, which may be unknown.
    pub fn resolve(&self, name: &Name, node: &Name) -> Name {
        let own = name.on(node);
        if self.networks.contains_key(&own) || self.problem_at(&Key::network(&own)).is_some() {
            own
        } else {
            name.clone()
        }
    }

    /// The networks that a node can use: its node-local ones and the global ones.
    pub fn networks_on(&self, node: &Name) -> impl Iterator<Item = &Versioned<Network>> {
        self.networks.values().filter(|network| network.name.is_seen_on(node))
    }

    /// The claim to an address of a network.
    pub fn ip_claim(&self, network: &Name, ip: IpAddr) -> Option<Claim<IpOwner>> {
        self.ipam.get(network, ip)
    }

    /// The node with the given VTEP address.
    pub fn node_at(&self, vtep: Ipv4Addr) -> Option<&Versioned<Node>> {
        self.nodes.values().find(|node| node.vtep == vtep)
    }

    /// Whether the agent of a node is alive.
    pub fn is_alive(&self, node: &Name) -> bool {
        self.alive.contains_key(node)
    }
}

/// Stores a record. Returns the reason if it is skipped.
fn keep<K: Ord, T: StoreRecord + PartialEq>(
    records: &mut BTreeMap<K, Versioned<T>>,
    at: K,
    key: &Key,
    entry: &Entry,
    touched: impl FnOnce(),
) -> Option<String> {
    match decode::<T>(key, &entry.value).into_result() {
        Ok(record) => {
            // Two stores may have different records of one revision.
            let now = Versioned { record, revision: entry.mod_revision };
            if records.get(&at) != Some(&now) {
                touched();
            }
            records.insert(at, now);
            None
        }
        Err(why) => Some(why),
    }
}

fn claim<T: StoreRecord>(key: &Key, value: &[u8]) -> (Option<T>, Option<String>) {
    match decode::<T>(key, value) {
        Decoded::Record(record) => (Some(record), None),
        other => (None, other.into_result().err()),
    }
}

fn remove_nested<K: Ord, V>(
    groups: &mut BTreeMap<Name, BTreeMap<K, V>>,
    group: &Name,
    key: &K,
) -> Option<V> {
    let members = groups.get_mut(group)?;
    let removed = members.remove(key);
    if members.is_empty() {
        groups.remove(group);
    }
    removed
}

#[cfg(test)]
mod tests;
