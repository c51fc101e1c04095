//! Repairs changes that other programs have made to devices, settings, BPF programs, pins and map
//! entries.
//!
//! Changes in sandboxes that the kernel reports are repaired at once, see [`super::looks`]. Changes
//! of devices that it reports, and changes of settings, programs and pins, of which
//! it reports nothing, are repaired at the next [`Periods::retry`](super::Periods::retry). Changes of
//! map entries, of which it reports nothing either, are repaired at the next
//! [`Periods::anti_entropy`](super::Periods::anti_entropy). That pass also looks at all devices, and
//! opens all pins to see what they lead to.
//!
//! The settings of more than [`LEAST`] device pairs are looked at in turn. The one setting of a pair
//! is that IPv6 is off. If another program turns it on, the kernel reports the IPv6 routes of the
//! host side, and that host side does not wait for its turn. While a host side has no carrier, the
//! kernel reports nothing, and IPv6 does not come up either.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included, Unbounded},
    sync::Arc,
};

use tokio::time::Instant;

use super::{Engine, queue::Work};
use crate::{
    agent::platform::PlugError,
    datapath::{PinCheck, Repaired},
    model::{self, Name},
    sandbox::GatewaySpec,
};

/// Key of the problem that entries of VNIs without a user cannot be removed.
const STRAYS: &str = "strays";
/// Number of times in which the settings of all device pairs are looked at.
const TURNS: usize = 10;
/// Least number of device pairs whose settings are looked at at a time. Fewer would save nothing:
/// each costs about 10 us.
const LEAST: usize = 200;

impl Engine {
    /// Notes that a device was changed, if it is one of Culvert's.
    pub(super) fn device_changed(&mut self, ifindex: u32) {
        let ours = self.ifindexes.values().chain(self.gateways.values()).any(|own| *own == ifindex);
        if ours && self.informed {
            self.devices_stale.insert(ifindex);
        }
    }

    /// Notes that each of Culvert's devices may have been changed.
    pub(super) fn all_devices_changed(&mut self) {
        self.devices_stale.extend(self.ifindexes.values());
        self.gateways_stale = true;
        self.routes_stale = true;
        self.ipv6_up.extend(self.ifindexes.values());
    }

    /// Compares the devices that were changed with their wanted state.
    pub(super) async fn check_devices(&mut self) {
        let stale = std::mem::take(&mut self.devices_stale);
        let are_gateways_stale = std::mem::take(&mut self.gateways_stale)
            || self.gateways.values().any(|ifindex| stale.contains(ifindex));
        let mut outcome = self.check_ports(&stale).await;
        if outcome.is_ok() && are_gateways_stale {
            outcome = self.check_gateways().await;
        }
        let line = outcome.err().map(|error| {
            self.devices_stale.extend(stale);
            self.gateways_stale |= are_gateways_stale;
            format!("devices cannot be compared: {}; trying again", error.message())
        });
        self.shared.shown.problems.set("devices", line);
    }

    /// Compares those of the host sides of device pairs that are in `stale`.
    async fn check_ports(&mut self, stale: &BTreeSet<u32>) -> Result<(), PlugError> {
        let ids: BTreeMap<u32, String> = self
            .ifindexes
            .iter()
            .filter(|(_, ifindex)| stale.contains(ifindex))
            .map(|(id, ifindex)| (*ifindex, id.clone()))
            .collect();
        let wanted = ids.iter().filter_map(|(ifindex, id)| Some((*ifindex, self.mtu_of(id)?)));
        let wanted: BTreeMap<u32, u16> = wanted.collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let found = self.shared.platform.host_sides_differ(&wanted).await?;
        for (ifindex, line) in found {
            if let Some(id) = ids.get(&ifindex) {
                self.wrong.interfaces.insert(id.clone(), line);
                self.work.insert(Work::Plug(id.clone()));
            }
        }
        Ok(())
    }

    /// Queues the endpoints from whose interfaces something may have been taken.
    pub(super) async fn look_inside(&mut self) {
        let due = self.looks.take(Instant::now(), self.periods.retry);
        if self.informed {
            // Before the pairs are plugged again, which removes what was wrong with a host side.
            self.check_devices().await;
        }
        let here = due.into_iter().filter(|id| self.local.contains_key(id));
        self.work.extend(here.map(Work::Plug));
    }

    /// Counts the repair of a device pair that was plugged again, unless there is a problem left.
    pub(super) fn note_host_side(
        &mut self,
        id: &str,
        ifindex: u32,
        container: &Name,
        network: &Name,
    ) {
        let problem = self.shared.platform.host_side_problem(ifindex);
        if let Some(found) = self.wrong.interfaces.remove(id).filter(|_| problem.is_none()) {
            self.shared.shown.repairs.note("container device", found);
        }
        let line =
            problem.map(|line| format!("container '{container}' in network '{network}': {line}"));
        self.shared.shown.problems.set(&format!("device/{id}"), line);
    }

    /// Forgets what was wrong with a device pair that is removed.
    pub(super) fn forget_host_side(&mut self, id: &str) {
        self.wrong.interfaces.remove(id);
        self.shared.shown.problems.set(&format!("device/{id}"), None);
    }

    /// Compares the gateway devices with their wanted state.
    async fn check_gateways(&mut self) -> Result<(), PlugError> {
        // What was in the way of those that could not be opened may be gone.
        self.reopens = true;
        self.check_routes().await?;
        let specs: Vec<GatewaySpec> = self.gateway_specs.values().cloned().collect();
        if specs.is_empty() {
            return Ok(());
        }
        let found = self.shared.platform.gateways_differ(&specs).await?;
        for (vni, line) in found {
            self.wrong.gateways.insert(vni, line);
            self.gateway_specs.remove(&vni);
            let networks = self.vnis.iter().filter(|(_, of)| **of == vni);
            self.dirty.extend(networks.map(|(name, _)| name.clone()));
        }
        Ok(())
    }

    /// Counts the repair of a gateway device.
    pub(super) fn note_gateway(&mut self, vni: u32) {
        if let Some(found) = self.wrong.gateways.remove(&vni) {
            self.shared.shown.repairs.note("gateway device", found);
        }
    }

    /// Forgets what was wrong with a gateway device that is removed.
    pub(super) fn forget_gateway(&mut self, vni: u32) {
        self.wrong.gateways.remove(&vni);
    }

    /// MTU of a local endpoint.
    fn mtu_of(&self, id: &str) -> Option<u16> {
        let view = self.shared.view();
        let name = self.local.get(id)?;
        Some(view.networks.get(name)?.mtu)
    }

    /// Looks for changes that the kernel does not report, and repairs them.
    pub(super) async fn repair(&mut self) {
        let vnis: Vec<u32> = self.gateway_specs.keys().copied().collect();
        let mut endpoints = next_turn(&self.ifindexes, &self.settings_at);
        if let Some(last) = endpoints.last() {
            self.settings_at.clone_from(last);
        }
        let ipv6_up = std::mem::take(&mut self.ipv6_up);
        add_by_ifindex(&mut endpoints, &self.ifindexes, &ipv6_up);
        let loopback = self.loopback == Some(true);
        let platform = &self.shared.platform;
        let settings = platform.keep_settings(&vnis, &endpoints, loopback).await;
        self.note_repairs("setting", settings);
        self.repair_programs(PinCheck::Files).await;
    }

    /// Repairs pins and attachments. A host has thousands of them: a thread of its own looks at
    /// them, and not a worker of the runtime.
    pub(super) async fn repair_programs(&self, check: PinCheck) {
        let platform = Arc::clone(&self.shared.platform);
        let repair = move || (platform.repair_pins(check), platform.repair_links(check));
        let (pins, links) = tokio::task::spawn_blocking(repair).await.unwrap_or_else(|error| {
            let mut failed = Repaired::default();
            failed.fail(error);
            (failed.clone(), failed)
        });
        self.note_repairs("pin", pins);
        self.note_repairs("program", links);
    }

    /// Notes the repairs, and the error that made some of them fail.
    fn note_repairs(&self, kind: &'static str, repaired: Repaired) {
        self.shared.shown.repairs.note_changes(kind, &repaired.found);
        let failure = repaired.failed.map(|error| format!("{error}; trying again"));
        self.shared.shown.problems.set(&format!("repair/{kind}"), failure);
    }

    /// Removes the entries of VNIs in which this host has no endpoint.
    pub(super) fn prune_maps(&mut self) {
        let mut known: BTreeSet<u32> = self.vnis.values().copied().collect();
        {
            let view = self.shared.view();
            // An entry may belong to a record that cannot be read.
            let unreadable = [model::NETWORKS, model::ENDPOINTS, model::VNIS]
                .into_iter()
                .any(|prefix| view.problem_below(prefix).is_some());
            if unreadable {
                return;
            }
            known.extend(view.endpoints_on(&self.shared.node.name).map(|ep| ep.vni.get()));
        }
        let mut line = None;
        for vni in self.reconciler.vnis().difference(&known) {
            let pruned = self.reconciler.network_to(self.shared.platform.as_ref(), *vni, None);
            match pruned {
                Ok(steps) => tracing::info!(vni, steps, "removed stray map entries"),
                Err(error) => line = Some(format!("stray map entries of VNI {vni}: {error}")),
            }
        }
        self.shared.shown.problems.set(STRAYS, line);
    }

    /// Notes the map entries that were found changed, once all maps have been written.
    pub(super) fn note_entries(&mut self) {
        let has = |problem| self.shared.shown.problems.has(problem);
        let is_written = self.dirty.is_empty()
            && !self.underlay_dirty
            && !has("underlay")
            && !has("underlay/maps")
            && !has(STRAYS);
        if is_written {
            self.shared.shown.repairs.note_entries(&std::mem::take(&mut self.found));
        }
    }
}

/// The device pairs whose settings are looked at next, after the endpoint `last`: a tenth of them,
/// or [`LEAST`] if that is more.
fn next_turn(ifindexes: &BTreeMap<String, u32>, last: &str) -> Vec<String> {
    let number = ifindexes.len().div_ceil(TURNS).max(LEAST);
    let after = ifindexes.range::<str, _>((Excluded(last), Unbounded));
    let before = ifindexes.range::<str, _>((Unbounded, Included(last)));
    after.chain(before).take(number).map(|(id, _)| id.clone()).collect()
}

/// Adds the endpoints whose host sides have one of these interface indices.
fn add_by_ifindex(
    endpoints: &mut Vec<String>,
    ifindexes: &BTreeMap<String, u32>,
    wanted: &BTreeSet<u32>,
) {
    if wanted.is_empty() {
        return;
    }
    let present: BTreeSet<String> = endpoints.iter().cloned().collect();
    let found = ifindexes.iter().filter(|(_, ifindex)| wanted.contains(*ifindex));
    endpoints.extend(found.map(|(id, _)| id).filter(|id| !present.contains(*id)).cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel tells of IPv6 that comes up on a host side: it does not wait for its turn.
    #[test]
    fn host_sides_on_which_ipv6_has_come_up_are_looked_at_at_once() {
        let ifindexes: BTreeMap<String, u32> =
            (0..2000).map(|n| (format!("{n:04}"), 100 + n)).collect();
        let mut endpoints = next_turn(&ifindexes, "");
        assert_eq!(endpoints.len(), 200);
        add_by_ifindex(&mut endpoints, &ifindexes, &BTreeSet::new());
        assert_eq!(endpoints.len(), 200);
        // Of its own turn, of another one, and an interface of the host.
        add_by_ifindex(&mut endpoints, &ifindexes, &[105, 2099, 2].into());
        assert_eq!(endpoints.len(), 201);
        assert_eq!(endpoints.last().map(String::as_str), Some("1999"));
    }

    /// With thousands of containers, a look at all of them each second would cost a few percent of
    /// a processor.
    #[test]
    fn the_settings_of_all_device_pairs_are_looked_at_in_turn() {
        let make = |number: usize| -> BTreeMap<String, u32> {
            (0..number).map(|n| (format!("{n:04x}"), 7)).collect()
        };
        for (number, at_once, turns) in [(0, 0, 1), (3, 3, 1), (200, 200, 1), (500, 200, 3)]
            .into_iter()
            .chain([(2000, 200, 10), (5000, 500, 10)])
        {
            let ifindexes = make(number);
            let (mut last, mut seen) = (String::new(), BTreeSet::new());
            for _ in 0..turns {
                let turn = next_turn(&ifindexes, &last);
                assert_eq!(turn.len(), at_once, "{number}");
                last = turn.last().cloned().unwrap_or_default();
                seen.extend(turn);
            }
            assert_eq!(seen.len(), number);
        }
        // The container at which the last look ended has been removed.
        let few = make(3);
        assert_eq!(next_turn(&few, "0001x"), ["0002", "0000", "0001"]);
    }
}
