//! What a change in the store means for this host.

use std::collections::BTreeSet;

use super::{Engine, Work};
use crate::{
    agent::shared::PlugState,
    model::{Name, Touched},
    store::Update,
};

impl Engine {
    /// Folds in an update.
    pub(super) fn fold(&mut self, update: &Update) {
        let touched = self.shared.view_mut().fold(update);
        if touched.problems {
            let view = self.shared.view();
            let lines = view.problems.iter();
            let lines = lines.map(|(key, why)| (format!("store/{key}"), format!("{key}: {why}")));
            self.shared.problems_below("store/", lines.collect());
        }
        if update.listed.is_some() {
            self.listed = true;
            self.list = update.listed;
        }
        if self.informed {
            self.note(touched);
        }
    }

    /// With the first list of the store at hand, takes over what a former run
    /// left: maps and veths. If those cannot be read nothing is concluded, and it
    /// is tried again.
    pub(super) async fn begin(&mut self) {
        match self.shared.platform.plugged().await {
            Ok(ports) => self.ports = ports,
            Err(error) => {
                self.shared.problem("links", Some(error.message().to_owned()));
                return;
            }
        }
        match self.shared.platform.gateways().await {
            Ok(gateways) => self.gateways = gateways,
            Err(error) => {
                self.shared.problem("links", Some(error.message().to_owned()));
                return;
            }
        }
        if !self.adopt_maps() {
            return;
        }
        self.shared.problem("links", None);
        self.informed = true;
        let (nodes, endpoints): (BTreeSet<Name>, BTreeSet<_>) = {
            let view = self.shared.view();
            let own = view.endpoints_on(&self.shared.node.name);
            (
                view.nodes.keys().cloned().collect(),
                own.map(|endpoint| (endpoint.network.clone(), endpoint.id.clone())).collect(),
            )
        };
        self.note(Touched { nodes, endpoints, ..Touched::default() });
        self.prune_maps();
        self.find_strays().await;
        self.revive_sandboxes().await;
    }

    /// Marks what a change concerns.
    fn note(&mut self, touched: Touched) {
        let mut endpoints = touched.endpoints;
        {
            let view = self.shared.view();
            for name in &touched.networks {
                // MTU, subnets or usability may have changed for the local ones.
                let own = view.endpoints_in(name).filter(|ep| ep.node == self.shared.node.name);
                endpoints.extend(own.map(|ep| (name.clone(), ep.id.clone())));
                self.dirty.insert(name.clone());
                // Its foreign VTEPs.
                self.underlay_dirty = true;
            }
            for name in touched.nodes {
                let now = view.nodes.get(&name).map(|node| (node.vtep, node.port));
                if now == self.nodes.get(&name).copied() {
                    // Its liveness only.
                    continue;
                }
                match now {
                    Some(now) => self.nodes.insert(name.clone(), now),
                    None => self.nodes.remove(&name),
                };
                self.underlay_dirty = true;
                let here = self.vnis.keys();
                let concerned =
                    here.filter(|network| view.endpoints_in(network).any(|ep| ep.node == name));
                self.dirty.extend(concerned.cloned());
            }
        }
        let concerned = !endpoints.is_empty();
        for (network, id) in endpoints {
            self.note_endpoint(network, id);
        }
        if concerned {
            self.hold_ports(false);
        }
    }

    /// Holds the ports of the host that its endpoints publish; tries those that were
    /// not to be had `again`.
    pub(super) fn hold_ports(&self, again: bool) {
        let wanted = {
            let view = self.shared.view();
            let endpoints =
                self.local.iter().filter_map(|(id, network)| view.endpoint(network, id));
            let ports = endpoints.flat_map(|ep| {
                ep.ports.iter().map(|port| ((ep.id.clone(), *port), ep.container.clone()))
            });
            ports.collect()
        };
        self.shared.hold_ports(&wanted, again);
    }

    fn note_endpoint(&mut self, network: Name, id: String) {
        let wanted = {
            let view = self.shared.view();
            view.endpoint(&network, &id).is_some_and(|endpoint| {
                endpoint.node == self.shared.node.name && view.usable_endpoint(endpoint).is_ok()
            })
        };
        self.dirty.insert(network.clone());
        if wanted {
            if self.local.insert(id.clone(), network).is_none() {
                self.set_state(&id, Some(PlugState::Pending));
            }
            self.work.insert(Work::Plug(id));
        } else if self.local.remove(&id).is_some() {
            self.retries.remove(&id);
            self.work.remove(&Work::Plug(id.clone()));
            self.work.insert(Work::Unplug(id));
        }
    }
}
