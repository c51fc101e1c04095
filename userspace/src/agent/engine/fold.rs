//! Applies changes in the store to the view, and marks the work that the engine must do again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{Engine, queue::Work, reading::finished};
use crate::{
    agent::{agreed, memory, platform::Remote, state::PlugState},
    model::{Endpoint, Name, Node, Protocol, PublishedPort, Touched},
    store::Update,
};

/// No port is less.
const LEAST: PublishedPort = PublishedPort {
    host_ip: Ipv4Addr::UNSPECIFIED,
    host_port: 0,
    container_port: 0,
    protocol: Protocol::Tcp,
    count: 0,
};

impl Engine {
    /// Applies an update of the store to the view.
    pub(super) fn fold(&mut self, update: &Update) {
        // `begin` compares the whole first list, so its single changes are not noted.
        let touched = if self.informed {
            self.shared.view_mut().fold(update)
        } else {
            let problems = self.shared.view_mut().fold_unseen(update);
            Touched { problems, ..Touched::default() }
        };
        // The view keeps them, and `status` reads them there: what a key costs does not depend on
        // how many others there are.
        for key in &touched.problems {
            let line = self.shared.view().problem_line(key);
            let problems = &self.shared.shown.problems;
            problems.log("store", line.as_deref().unwrap_or(key), line.is_none());
        }
        if update.listed.is_some() {
            // At this point, before long-lived memory is allocated between the pieces that the list
            // has freed.
            memory::give_back();
            self.listed = true;
            self.list = update.listed;
        }
        if self.informed {
            self.note(touched);
        }
    }

    /// Adopts the maps and devices of a former run, once the first list of the store is in the
    /// view. If they cannot be read, nothing changes, and the engine tries again.
    pub(super) async fn begin(&mut self) {
        match self.shared.platform.plugged().await {
            Ok(ifindexes) => self.ifindexes = ifindexes,
            Err(error) => {
                self.shared.shown.problems.set("links", Some(error.message().to_owned()));
                return;
            }
        }
        match self.shared.platform.gateways().await {
            Ok(found) => {
                let routed = found.iter().filter(|(_, (_, has_address))| *has_address);
                self.routed = routed.map(|(vni, (ifindex, _))| (*vni, *ifindex)).collect();
                let all = found.into_iter().map(|(vni, (ifindex, _))| (vni, ifindex));
                self.gateways = all.collect();
            }
            Err(error) => {
                self.shared.shown.problems.set("links", Some(error.message().to_owned()));
                return;
            }
        }
        let read = finished(&mut Some(self.read_maps())).await;
        if !self.adopt_maps(read) {
            return;
        }
        self.shared.shown.problems.set("links", None);
        self.informed = true;
        let (nodes, endpoints): (BTreeSet<Name>, BTreeSet<_>) = {
            let view = self.shared.view();
            let own = view.endpoints_on(&self.shared.node.name);
            (
                view.nodes.keys().cloned().collect(),
                own.map(|endpoint| (endpoint.network.clone(), endpoint.id.clone())).collect(),
            )
        };
        {
            let view = self.shared.view();
            for network in view.networks.keys() {
                self.check_own_vtep(&view, network);
            }
        }
        self.note(Touched { nodes, endpoints, ..Touched::default() });
        // Devices may have been changed while no agent ran. They are compared before they are
        // plugged again: plugging removes what was wrong with them.
        self.all_devices_changed();
        self.check_devices().await;
        self.prune_maps();
        self.find_strays().await;
        self.revive_sandboxes().await;
        self.check_uplinks().await;
        self.check_choice().await;
    }

    /// Marks the networks and endpoints that a change concerns.
    fn note(&mut self, touched: Touched) {
        let mut endpoints = touched.endpoints;
        {
            let view = self.shared.view();
            for name in &touched.networks {
                // MTU, subnets or usability may have changed for the local endpoints.
                let own = view.endpoints.on_in(&self.shared.node.name, name);
                endpoints.extend(own.map(|ep| (name.clone(), ep.id.text())));
                self.dirty.insert(name.clone());
                // Its VTEPs may not be used any more.
                self.underlay_dirty = true;
                self.check_own_vtep(&view, name);
            }
            for (name, vtep) in &touched.vteps {
                self.dirty.insert(name.clone());
                self.underlay_dirty = true;
                // A network may begin, or cease, to have an address of this VTEP.
                let concerned = self.networks_at(&[IpAddr::V4(*vtep)]);
                self.dirty.extend(concerned);
            }
            for name in touched.nodes {
                let alive = view.nodes.contains_key(&name).then(|| view.is_alive(&name));
                self.shared.lives.note(&name, alive);
                let remote = |node: &Node| Remote { port: node.port, mtu: node.mtu };
                let now = view.nodes.get(&name).map(|node| (node.vtep, remote(node)));
                let before = self.nodes.get(&name).copied();
                if now == before {
                    // Only the liveness or the subnets of the node have changed.
                    continue;
                }
                // A network may begin, or cease, to have an address of another host.
                let nodes = [now, before].into_iter().flatten();
                let vteps: Vec<IpAddr> = nodes.map(|(vtep, _)| IpAddr::V4(vtep)).collect();
                let concerned = self.networks_at(&vteps);
                self.dirty.extend(concerned);
                match now {
                    Some(now) => self.nodes.insert(name.clone(), now),
                    None => self.nodes.remove(&name),
                };
                self.underlay_dirty = true;
                let here = self.vnis.keys();
                let concerned = here.filter(|network| view.is_in(&name, network));
                self.dirty.extend(concerned.cloned());
            }
        }
        for (network, former) in touched.former {
            if self.vnis.contains_key(&network) {
                self.changed.entry(network).or_default().former.insert(former);
            }
        }
        let mut ports = false;
        for (network, id) in endpoints {
            ports |= self.note_endpoint(network, id);
        }
        if ports {
            self.hold_ports(false);
        }
    }

    /// Holds the ports of the host that local endpoints publish. `again`: also those that could not
    /// be held before. Ports at which somebody else serves clients are not published: the programs
    /// would take their packets. Of very many ports it does a part, and the engine calls it again
    /// after the events that have come meanwhile.
    pub(super) fn hold_ports(&mut self, again: bool) {
        let unclaimed = self.shared.hold_ports(&self.published, again);
        let changed = unclaimed.symmetric_difference(&self.unclaimed);
        let changed: BTreeSet<String> = changed.map(|(id, _)| id.clone()).collect();
        self.unclaimed = unclaimed;
        for id in changed {
            if let Some(network) = self.local.get(&id).cloned() {
                self.mark_own(&network, &id, None);
            }
        }
    }

    /// Tries ports again that may be free now: those for which no open file was left, and all after a
    /// change of the host's addresses. While no file is left, that is one call of the kernel.
    pub(super) fn retry_ports(&mut self) {
        let again = std::mem::take(&mut self.ports_stale);
        if again || self.shared.lacks_files_for_ports() {
            self.hold_ports(again);
        }
    }

    /// Notes the ports that an endpoint publishes on this host. Returns whether they have changed.
    pub(super) fn note_ports(&mut self, id: &str, endpoint: Option<&Endpoint>) -> bool {
        let mut now = BTreeMap::new();
        if let Some(Endpoint { container, ports, .. }) = endpoint {
            let singles = ports.iter().flat_map(|port| port.singles());
            now.extend(singles.map(|port| ((id.to_owned(), port), container.clone())));
        }
        let from = self.published.range((id.to_owned(), LEAST)..);
        let its = from.take_while(|((other, _), _)| other == id);
        let before: BTreeMap<(String, PublishedPort), Name> =
            its.map(|(key, container)| (key.clone(), container.clone())).collect();
        if now == before {
            return false;
        }
        for key in before.keys() {
            self.published.remove(key);
        }
        self.published.extend(now);
        true
    }

    /// Marks an endpoint that has changed. Returns whether the published ports of this host have
    /// changed with it.
    fn note_endpoint(&mut self, network: Name, id: String) -> bool {
        let wanted = {
            let view = self.shared.view();
            view.endpoint(&network, &id).filter(|endpoint| {
                endpoint.node == self.shared.node.name && view.usable_endpoint(endpoint).is_ok()
            })
        };
        // Another endpoint's ports are noted once it is plugged: a record alone holds no port.
        let asked = wanted.as_deref().filter(|Endpoint { container, sandbox, .. }| {
            agreed::is_asked(&self.shared, &id, container, sandbox)
        });
        let ports = self.note_ports(&id, asked);
        let here = wanted.is_some() || self.local.contains_key(&id);
        if here {
            // The view does not have the container of an endpoint that is removed, nor the former
            // one of an endpoint that has another.
            let now = wanted.as_ref().map(|endpoint| &endpoint.container);
            let former = self.containers.get(&id).filter(|former| now != Some(*former));
            if let Some(former) = former {
                self.shared.regrouped.note(Some(former.clone()));
            }
            if now.is_some() || former.is_none() {
                self.shared.regrouped.note(now.cloned());
            }
            self.mark_own(&network, &id, None);
        } else if self.vnis.contains_key(&network) {
            self.changed.entry(network.clone()).or_default().endpoints.insert(id.clone());
        } else {
            self.dirty.insert(network.clone());
        }
        if wanted.is_some() {
            if self.local.insert(id.clone(), network).is_none() {
                self.shared.plugs.set(&id, Some(PlugState::Pending));
            }
            self.work.insert(Work::Plug(id));
        } else if self.local.remove(&id).is_some() {
            self.retries.remove(&id);
            self.work.remove(&Work::Plug(id.clone()));
            self.work.insert(Work::Unplug(id));
        }
        ports
    }
}
