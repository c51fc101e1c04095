//! Changes of the host that the kernel reports.

use tokio::time::{Duration, Instant};

use super::{Engine, looks::GATHER, queue::Work};
use crate::agent::platform::HostEvent;

impl Engine {
    /// Notes a change of the host.
    pub(super) fn host_event(&mut self, event: HostEvent) {
        match event {
            HostEvent::Device(ifindex) => {
                self.device_changed(ifindex);
                self.interface_changed();
            }
            HostEvent::Underlay => self.underlay_changed(),
            HostEvent::Route { destination, hops, ifindex } => {
                self.route_changed(destination, &hops, ifindex);
                self.underlay_changed();
            }
            HostEvent::Address => {
                self.choice.changed();
                self.routes_stale = true;
                self.hasten(|_| true);
                self.underlay_changed();
                // A port may be published at an address that the host has got now.
                self.ports_stale = true;
            }
            HostEvent::Ipv6(ifindex) => drop(self.ipv6_up.insert(ifindex)),
            HostEvent::Uplink => {
                self.uplinks_stale = true;
                self.choice.changed();
                self.interface_changed();
                self.gather();
            }
            HostEvent::LinkGone(ifindex) => {
                self.gateway_gone(ifindex);
                self.interface_changed();
                let gone = self.ifindexes.iter().find(|(_, own)| **own == ifindex);
                if let Some((id, _)) = gone.map(|(id, port)| (id.clone(), *port)) {
                    // Another program has removed the device pair or the sandbox.
                    self.drop_port(&id);
                    if self.local.contains_key(&id) {
                        self.work.insert(Work::Plug(id));
                    }
                }
            }
            HostEvent::Sandbox(endpoints) => {
                self.looks.note(endpoints, Instant::now(), self.periods.retry);
            }
            HostEvent::Lost => {
                self.events_lost = true;
                self.uplinks_stale = true;
                self.choice.changed();
                self.gather();
            }
        }
    }

    /// Notes that routes, addresses or neighbours of the host were changed.
    fn underlay_changed(&mut self) {
        self.gateways_stale = true;
        self.gather();
    }

    /// Waits for more changes of the host before they are acted on.
    fn gather(&mut self) {
        self.act_within(GATHER);
    }

    /// Acts on the changes of the host, and resolves the paths again, after `pause` at the latest.
    pub(super) fn act_within(&mut self, pause: Duration) {
        let due = Instant::now() + pause;
        self.underlay_stale = Some(self.underlay_stale.map_or(due, |then| then.min(due)));
    }

    /// Acts on the changes of the host that were gathered. If events were lost, everything may have
    /// changed.
    pub(super) async fn host_changed(&mut self) {
        self.underlay_stale = None;
        self.underlay_dirty = true;
        if std::mem::take(&mut self.uplinks_stale) {
            self.check_uplinks().await;
        }
        self.check_changed_choice().await;
        let lost = std::mem::take(&mut self.events_lost);
        if lost {
            self.all_devices_changed();
        }
        if self.informed {
            self.retry_ports();
            self.check_devices().await;
        }
        if lost {
            self.work.extend(self.local.keys().cloned().map(Work::Plug));
        }
    }
}
