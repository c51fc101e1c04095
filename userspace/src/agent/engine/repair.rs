//! Repairs changes that other programs have made to devices, settings, BPF programs, pins and map
//! entries.
//!
//! Changes of devices that the kernel reports, and changes of settings, programs and pins, of which
//! it reports nothing, are repaired at the next [`Periods::retry`](super::Periods::retry). Changes of
//! map entries, of which it reports nothing either, are repaired at the next
//! [`Periods::anti_entropy`](super::Periods::anti_entropy). That pass also looks at all devices, and
//! opens the pins to see what they lead to.

use super::{Engine, queue::Work};
use crate::{
    datapath::{PinCheck, Repaired},
    sandbox::GatewaySpec,
};

impl Engine {
    /// Notes that a device was changed, if it is one of Culvert's.
    pub(super) fn device_changed(&mut self, ifindex: u32) {
        let ours = self.ports.values().chain(self.gateways.values()).any(|own| *own == ifindex);
        if ours && self.informed {
            self.devices_stale.insert(ifindex);
        }
    }

    /// Notes that each of Culvert's devices may have been changed.
    pub(super) fn all_devices_changed(&mut self) {
        self.devices_stale.extend(self.ports.values());
        self.gateways_stale = true;
    }

    /// Compares the devices that were changed with their wanted state.
    pub(super) async fn check_devices(&mut self) {
        let stale = std::mem::take(&mut self.devices_stale);
        let ports: Vec<(String, u32)> = self
            .ports
            .iter()
            .filter(|(_, ifindex)| stale.contains(ifindex))
            .map(|(id, ifindex)| (id.clone(), *ifindex))
            .collect();
        for (id, ifindex) in ports {
            let Some(mtu) = self.mtu_of(&id) else { continue };
            // An error of the kernel is ignored: the next check finds the difference.
            if let Ok(Some(found)) = self.shared.platform.port_differs(ifindex, mtu).await {
                self.shared.repairs.note("container device", found);
                self.work.insert(Work::Plug(id));
            }
        }
        if std::mem::take(&mut self.gateways_stale)
            || self.gateways.values().any(|ifindex| stale.contains(ifindex))
        {
            self.check_gateways().await;
        }
    }

    /// Compares the gateway devices with their wanted state.
    async fn check_gateways(&mut self) {
        let specs: Vec<GatewaySpec> = self.gateway_specs.values().cloned().collect();
        for spec in specs {
            if let Ok(Some(found)) = self.shared.platform.gateway_differs(&spec).await {
                self.shared.repairs.note("gateway device", found);
                self.gateway_specs.remove(&spec.vni);
                let networks = self.vnis.iter().filter(|(_, vni)| **vni == spec.vni);
                self.dirty.extend(networks.map(|(name, _)| name.clone()));
            }
        }
    }

    /// MTU of a local endpoint.
    fn mtu_of(&self, id: &str) -> Option<u16> {
        let view = self.shared.view();
        let name = self.local.get(id)?;
        Some(view.networks.get(name)?.mtu)
    }

    /// Looks for changes that the kernel does not report, and repairs them.
    pub(super) async fn repair(&self) {
        let vnis: Vec<u32> = self.gateway_specs.keys().copied().collect();
        let endpoints: Vec<String> = self.ports.keys().cloned().collect();
        let loopback = self.loopback == Some(true);
        let platform = &self.shared.platform;
        let settings = platform.keep_settings(&vnis, &endpoints, loopback).await;
        self.note_repairs("setting", settings);
        self.repair_programs(PinCheck::Names);
    }

    /// Repairs pins and attachments.
    pub(super) fn repair_programs(&self, check: PinCheck) {
        let platform = &self.shared.platform;
        self.note_repairs("pin", platform.repair_pins(check));
        self.note_repairs("program", platform.repair_links(check));
    }

    /// Notes the repairs, and the error that made some of them fail.
    fn note_repairs(&self, kind: &'static str, repaired: Repaired) {
        self.shared.repairs.note_changes(kind, &repaired.found);
        let failure = repaired.failed.map(|error| format!("{error}; trying again"));
        self.shared.problems.set(&format!("repair/{kind}"), failure);
    }

    /// Notes the map entries that were found changed. Called when the maps have been written.
    pub(super) fn note_entries(&mut self) {
        self.shared.repairs.note_entries(&std::mem::take(&mut self.found));
    }
}
