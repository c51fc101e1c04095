//! Devices and sandboxes of a simulated host.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use ipnetwork::IpNetwork;

use super::{NETNS, Paper};
use crate::{
    agent::platform::{Adopted, Devices, HostEvent, Made, PlugError, PluggedPair},
    api::types::{ApiError, ErrorKind},
    datapath::{Changes, DatapathError, PinCheck, Repaired},
    model::{HostRoute, Name, NetnsId, SandboxRef, bars_gateway},
    netlink::{Announcement, subnet_of},
    reconcile::{LocalEndpoint, Tables},
    sandbox::{GatewaySpec, RESOLV_CONF, Resolver},
};

#[async_trait]
impl Devices for Paper {
    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError> {
        Ok(self.state().veths.clone())
    }

    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<PluggedPair, PlugError> {
        tokio::task::block_in_place(|| self.plugging.pass());
        let mut state = self.state();
        if let Some(error) = &state.refuse_plug {
            return Err(error.clone());
        }
        let netns = endpoint.sandbox.netns.clone();
        let Some(names) = state.namespaces.get_mut(&netns) else {
            return Err(PlugError::Absent(format!("{} is not there", netns.display())));
        };
        names.insert(endpoint.ifname.clone());
        state.next_ifindex += 1;
        let next = state.next_ifindex;
        let ifindex = *state.veths.entry(endpoint.id.clone()).or_insert(next);
        state.attached.insert(ifindex);
        if state.plugs_put_right {
            state.changed.remove(&ifindex);
        }
        state.wanted.insert(endpoint.id.clone(), endpoint.clone());
        let found = state.inside.remove(&endpoint.id);
        if found.is_some() {
            self.tell(HostEvent::Sandbox([endpoint.id.clone()].into()));
        }
        Ok(PluggedPair { ifindex, found })
    }

    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError> {
        let mut state = self.state();
        if let Some(error) = &state.refuse_unplug {
            return Err(error.clone());
        }
        state.veths.remove(endpoint);
        if let Some(ifindex) = ifindex {
            state.attached.remove(&ifindex);
        }
        Ok(())
    }

    async fn announce(&self, announcements: Vec<Announcement>) -> Result<(), PlugError> {
        let mut state = self.state();
        if state.mute {
            return Err(PlugError::Refused(ErrorKind::Internal, "mute".to_owned()));
        }
        state.announced.extend(announcements);
        Ok(())
    }

    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError> {
        self.state().attached.retain(|ifindex| ifindexes.contains(ifindex));
        Ok(())
    }

    async fn gateways(&self) -> Result<BTreeMap<u32, (u32, bool)>, PlugError> {
        let state = self.state();
        let ours = state.gateways.iter();
        Ok(ours.map(|(vni, ifindex)| (*vni, (*ifindex, state.routed.contains_key(vni)))).collect())
    }

    async fn leads_into(&self, endpoint: &str, netns: &Path) -> bool {
        let state = self.state();
        state.veths.contains_key(endpoint)
            && state.namespaces.contains_key(netns)
            && !state.foreign.contains(netns)
    }

    async fn forget_rules(&self, _sandbox: &SandboxRef) -> Result<(), PlugError> {
        Ok(())
    }

    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError> {
        let mut state = self.state();
        state.next_ifindex += 1;
        let next = state.next_ifindex;
        Ok(*state.gateways.entry(gateway.vni).or_insert(next))
    }

    async fn open_gateway(&self, gateway: &GatewaySpec, _ifindex: u32) -> Result<(), PlugError> {
        let mut state = self.state();
        let has_route = state.routed.contains_key(&gateway.vni);
        let excluded = |address: &IpNetwork| {
            let mut routes = state.host_routes();
            routes.retain(|HostRoute { destination, next_hops, .. }| {
                bars_gateway((*destination, next_hops.as_slice()), *address, has_route)
            });
            routes.first().map(|route| route.destination)
        };
        if let Some(route) = gateway.address.as_ref().and_then(excluded) {
            state.routed.remove(&gateway.vni);
            let line = format!("this host has a route to {route} by up0");
            return Err(PlugError::Refused(ErrorKind::Conflict, line));
        }
        match gateway.address {
            Some(address) => drop(state.routed.insert(gateway.vni, subnet_of(address))),
            None => drop(state.routed.remove(&gateway.vni)),
        }
        Ok(())
    }

    async fn keep_settings(
        &self,
        _vnis: &[u32],
        _endpoints: &[String],
        _loopback: bool,
    ) -> Repaired {
        Repaired::default()
    }

    async fn gateways_differ(
        &self,
        _gateways: &[GatewaySpec],
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        Ok(BTreeMap::new())
    }

    async fn host_sides_differ(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        let mut state = self.state();
        state.looks += 1;
        if let Some(error) = &state.refuse_looks {
            return Err(error.clone());
        }
        let found = mtus.keys().filter_map(|ifindex| state.changed.remove_entry(ifindex));
        Ok(found.collect())
    }

    fn host_side_problem(&self, ifindex: u32) -> Option<String> {
        self.state().stuck.get(&ifindex).cloned()
    }

    fn repair_pins(&self, check: PinCheck) -> Repaired {
        let found = match check {
            PinCheck::Files => Changes::default(),
            PinCheck::Objects => std::mem::take(&mut self.state().exchanged),
        };
        Repaired { found, failed: None }
    }

    fn repair_links(&self, _check: PinCheck) -> Repaired {
        self.repairing.pass();
        Repaired { found: std::mem::take(&mut self.state().detached), failed: None }
    }

    fn detach_gateway(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.state().left.insert(ifindex);
        Ok(())
    }

    async fn unplug_gateway(&self, vni: u32, _ifindex: u32) -> Result<(), PlugError> {
        self.state().gateways.remove(&vni);
        Ok(())
    }

    async fn take_loopback(&self, take: bool) -> Result<(), PlugError> {
        self.state().loopback = take;
        Ok(())
    }

    fn sandbox_path(&self, name: &Name) -> PathBuf {
        Self::path_of(name)
    }

    async fn make_sandbox(&self, name: &Name, made: Made) -> Result<PathBuf, ApiError> {
        let path = Self::path_of(name);
        let mut state = self.state();
        if state.namespaces.contains_key(&path) {
            return Err(ApiError::new(ErrorKind::Conflict, "sandbox exists already"));
        }
        made(NETNS).map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        state.namespaces.insert(path.clone(), BTreeSet::new());
        Ok(path)
    }

    async fn ensure_sandbox(&self, name: &Name, _running: Option<i32>) -> Result<(), ApiError> {
        let mut state = self.state();
        if let Some(error) = &state.refuse_revival {
            return Err(error.clone());
        }
        state.namespaces.entry(Self::path_of(name)).or_default();
        Ok(())
    }

    fn sandbox_id(&self, name: &Name) -> Option<NetnsId> {
        let (path, state) = (Self::path_of(name), self.state());
        let ino = if state.foreign.contains(&path) { NETNS.ino + 1 } else { NETNS.ino };
        state.namespaces.contains_key(&path).then_some(NetnsId { ino, ..NETNS })
    }

    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        if let Some(error) = &self.state().refuse_removal {
            return Err(error.clone());
        }
        self.state().namespaces.remove(&Self::path_of(name));
        Ok(())
    }

    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<Adopted, ApiError> {
        let path = netns.map_or_else(
            || PathBuf::from(format!("/proc/{}/ns/net", pid.unwrap_or_default())),
            Path::to_owned,
        );
        if self.state().namespaces.contains_key(&path) {
            Ok(Adopted { path, through: None })
        } else {
            Err(ApiError::new(
                ErrorKind::NotFound,
                format!("{} does not exist: PATH is valid", path.display()),
            ))
        }
    }

    async fn choose_ifname(
        &self,
        netns: &Path,
        asked: Option<&str>,
        reserved: &[String],
    ) -> Result<String, ApiError> {
        let state = self.state();
        let taken = |name: &str| {
            state.namespaces.get(netns).is_some_and(|names| names.contains(name))
                || reserved.iter().any(|other| other == name)
        };
        match asked {
            Some(name) if taken(name) => {
                Err(ApiError::new(ErrorKind::Conflict, format!("interface name {name} is taken")))
            }
            Some(name) => Ok(name.to_owned()),
            None => Ok((0..).map(|n| format!("eth{n}")).find(|name| !taken(name)).unwrap()),
        }
    }

    fn resolver(&self) -> Resolver {
        let text = self.state().resolv_conf.clone();
        Resolver::choose(|path| (path == RESOLV_CONF).then(|| text.clone()))
    }

    async fn purge(&self) -> Result<(), ApiError> {
        let mut state = self.state();
        state.tables = Tables::default();
        state.purged = true;
        Ok(())
    }
}
