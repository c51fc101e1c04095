//! Repairs changes that other programs have made to devices, settings, BPF programs and pins.
//!
//! A change that the kernel reports is repaired at once. The agent looks for other changes at each
//! [`Periods::retry`](super::Periods::retry).

use super::{Engine, queue::Work};
use crate::sandbox::GatewaySpec;

impl Engine {
    /// Notes that a device was changed, if it is one of Culvert's.
    pub(super) fn device_changed(&mut self, ifindex: u32) {
        let ours = self.ports.values().chain(self.gateways.values()).any(|own| *own == ifindex);
        if ours && self.informed {
            self.devices_stale.insert(ifindex);
        }
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
        let loopback = self.loopback == Some(true);
        let platform = &self.shared.platform;
        let settings = platform.keep_settings(&vnis, loopback).await;
        self.note_repairs("setting", settings.map_err(|error| error.message));
        self.note_repairs("pin", platform.repair_pins().map_err(|error| error.to_string()));
        self.note_repairs("program", platform.repair_links().map_err(|error| error.to_string()));
    }

    /// Notes the repairs, a line each, or the error that made them fail.
    fn note_repairs(&self, kind: &'static str, found: Result<Vec<String>, String>) {
        let (lines, failure) = match found {
            Ok(lines) => (lines, None),
            Err(error) => (Vec::new(), Some(format!("{error}; trying again"))),
        };
        for line in lines {
            self.shared.repairs.note(kind, line);
        }
        self.shared.problems.set(&format!("repair/{kind}"), failure);
    }
}
