//! Ports of a simulated host.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use super::{Gate, Paper};
use crate::{
    agent::platform::{Files, Holder, PortError, PortHold, Ports},
    api::types::ApiError,
    model::{Protocol, PublishedPort},
    netfilter::Rules,
};

/// Address, port and protocol.
pub(in crate::agent::tests) type Port = (Ipv4Addr, u16, Protocol);

/// A port that is held until this is dropped.
struct Hold {
    held: Arc<Mutex<BTreeSet<Port>>>,
    port: Port,
    closes: Arc<Gate>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.closes.pass();
        self.held.lock().unwrap().remove(&self.port);
    }
}

impl Paper {
    fn holder(&self, port: Port) -> Holder {
        self.state().busy.get(&port).cloned().unwrap_or(Holder::Unseen)
    }
}

#[async_trait]
impl Ports for Paper {
    fn hold_port(
        &self,
        ip: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    ) -> Result<PortHold, PortError> {
        self.holds.pass();
        {
            let state = self.state();
            let held = state.held.lock().unwrap().len();
            if state.files.is_some_and(|files| held >= files) {
                return Err(PortError::NoFiles("too many open files".to_owned()));
            }
        }
        if port < 100 {
            return Err(PortError::Denied { from: 100 });
        }
        if !(ip.is_unspecified() || ip.is_loopback()) {
            return Err(PortError::NoSuchAddress);
        }
        if self.holder((ip, port, protocol)) != Holder::Unseen {
            return Err(PortError::InUse);
        }
        let state = self.state();
        // A port that the agent holds itself cannot be bound again.
        if !state.held.lock().unwrap().insert((ip, port, protocol)) {
            return Err(PortError::InUse);
        }
        let (held, closes) = (Arc::clone(&state.held), Arc::clone(&self.closes));
        Ok(Box::new(Hold { held, port: (ip, port, protocol), closes }))
    }

    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
        self.lookups.pass();
        self.holder((ip, port, protocol))
    }

    fn served(&self, ports: &[PublishedPort]) -> BTreeSet<PublishedPort> {
        let state = self.state();
        let busy: BTreeSet<_> = state.busy.keys().map(|busy| (busy.1, busy.2)).collect();
        let served = ports.iter().filter(|port| busy.contains(&(port.host_port, port.protocol)));
        served.copied().collect()
    }

    fn files(&self) -> Files {
        let state = self.state();
        let held = state.held.lock().unwrap().len();
        let spare = state.files.map_or(usize::MAX, |files| files.saturating_sub(held));
        Files { spare, limit: "too many open files".to_owned() }
    }

    fn own_ports(&self) -> Option<(u16, u16)> {
        self.state().own_ports
    }

    fn netfilter_is_active(&self) -> bool {
        self.state().netfilter
    }

    async fn rules(&self) -> Rules {
        self.state().rules.clone()
    }

    async fn port_holder_in(
        &self,
        _netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError> {
        Ok(self.port_holder(Ipv4Addr::UNSPECIFIED, port, protocol))
    }
}
