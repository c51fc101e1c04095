//! The real host: netlink, sandboxes and the loaded data plane.

mod assist;
mod error;
mod nat;
mod ports;
mod underlay;
mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use culvert_common::abi::{
    Code, Counter, Direction, DropReason, EndpointInfo, FdbEntry, FdbKey, LearnedEntry, NeighEntry,
    NeighKey, PublishedEntry, PublishedKey, UnderlayPath, VXLAN_OVERHEAD,
};
use ipnetwork::IpNetwork;
use tokio::sync::Mutex;

use self::error::{blocking, broken, netns_refused, refused, sandbox_refused};
use super::platform::{Holder, HostEvent, Paths, Platform, PlugError, PortError, PortHold};
use crate::{
    api::types::{ApiError, ErrorKind},
    choice::{Uplink, device::Device},
    datapath::{self, Datapath, DatapathError, FlowTable, Price, Table as _},
    model::{Driver, Name, Protocol, validate},
    netlink::{Event, Monitor, Netlink, NetlinkError},
    netns::{Netns, NetnsError},
    reconcile::{Kernel, LocalEndpoint, Op, Tables},
    sandbox::{self, GatewaySpec, PlugSpec, SandboxError},
};

/// See the module.
pub(crate) struct Host {
    netlink: Netlink,
    monitor: Mutex<Monitor>,
    datapath: Datapath,
    bpffs: PathBuf,
    uplinks: Vec<String>,
    ageing: Duration,
    /// The uplinks get `from_underlay_xdp` as well.
    xdp: bool,
    /// What new containers get.
    device: Device,
    vxlan_port: u16,
    assistants: assist::Assistants,
    /// What is known of the uplinks, as of the last look.
    known: std::sync::Mutex<Vec<Uplink>>,
    price: std::sync::OnceLock<Price>,
    /// Neighbours that the kernel keeps resolved for us.
    managed: std::sync::Mutex<BTreeSet<(u32, IpAddr)>>,
}

impl Host {
    pub(crate) fn new(
        netlink: Netlink,
        datapath: Datapath,
        options: &datapath::Options,
        uplinks: Vec<String>,
        xdp: bool,
        device: Device,
    ) -> Result<Self, NetlinkError> {
        Ok(Self {
            monitor: Mutex::new(netlink.monitor()?),
            netlink,
            datapath,
            bpffs: options.bpffs.clone(),
            uplinks,
            ageing: options.ageing,
            xdp,
            device,
            vxlan_port: options.vxlan_port,
            assistants: assist::Assistants::default(),
            known: std::sync::Mutex::default(),
            price: std::sync::OnceLock::new(),
            managed: std::sync::Mutex::default(),
        })
    }

    /// Passes the programs' trace lines on to the log.
    pub(crate) fn forward_trace(&self) -> Result<tokio::task::JoinHandle<()>, DatapathError> {
        self.datapath.forward_trace()
    }

    /// Removes the pins of other map layouts.
    pub(crate) fn retire_other_versions(&self) -> Result<(), DatapathError> {
        self.datapath.retire_other_versions()
    }

    fn managed(&self) -> MutexGuard<'_, BTreeSet<(u32, IpAddr)>> {
        self.managed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manages(&self, ifindex: u32, ip: IpAddr) -> bool {
        self.managed().contains(&(ifindex, ip))
    }

    /// Sees that `from_underlay` is on the uplinks, and on no other interface. Does
    /// what it can, and tells what it cannot.
    pub(crate) async fn attach_uplinks(&self) -> Vec<ApiError> {
        let mut wanted = BTreeSet::new();
        let mut errors = Vec::new();
        for name in &self.uplinks {
            match self.attach_uplink(name).await {
                Ok(ifindex) => {
                    wanted.insert(ifindex);
                }
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.note_uplinks(&wanted).err().map(broken));
        let attached = self.datapath.attached_uplinks().unwrap_or_else(|error| {
            errors.push(broken(error));
            Vec::new()
        });
        for ifindex in attached.into_iter().filter(|ifindex| !wanted.contains(ifindex)) {
            errors.extend(self.datapath.detach_uplink(ifindex).err().map(broken));
        }
        errors
    }

    async fn attach_uplink(&self, name: &str) -> Result<u32, ApiError> {
        let link = self.netlink.link(name).await.map_err(refused)?;
        let link = link.ok_or_else(|| refused(NetlinkError::NoSuchInterface(name.to_owned())))?;
        self.datapath.attach_uplink(link.index).map_err(broken)?;
        if self.xdp {
            self.datapath.attach_uplink_xdp(link.index).map_err(broken)?;
        }
        Ok(link.index)
    }
}

impl Kernel for Host {
    type Error = DatapathError;

    fn dump(&self) -> Result<Tables, DatapathError> {
        self.datapath.dump()
    }

    fn apply(&self, op: &Op) -> Result<(), DatapathError> {
        self.datapath.apply(op)
    }

    fn put_all(&self, ops: &[Op]) -> (usize, Option<DatapathError>) {
        self.datapath.put_all(ops)
    }
}

#[async_trait]
impl Platform for Host {
    async fn event(&self) -> Option<HostEvent> {
        let mut monitor = self.monitor.lock().await;
        loop {
            let event = monitor.next().await?;
            if self.assistants.concerns(&event) {
                return Some(HostEvent::Uplink);
            }
            return Some(match event {
                Event::Link { name, .. } | Event::LinkGone { name, .. }
                    if self.uplinks.contains(&name) =>
                {
                    HostEvent::Uplink
                }
                Event::LinkGone { index, .. } => HostEvent::LinkGone(index),
                Event::Lost => HostEvent::Lost,
                // Devices of containers come and go; the underlay does not care.
                Event::Link { .. } => continue,
                Event::Neighbour { ifindex, ip, .. } if !self.manages(ifindex, ip) => continue,
                Event::Address { address, .. } if address.is_ipv6() => continue,
                Event::Address { .. } | Event::Route | Event::Neighbour { .. } => {
                    HostEvent::Underlay
                }
            });
        }
    }

    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError> {
        let links = self.netlink.links().await.map_err(refused)?;
        let ours = links.iter().filter_map(|link| Some((sandbox::endpoint_of(link)?, link.index)));
        Ok(ours.map(|(id, ifindex)| (id.to_owned(), ifindex)).collect())
    }

    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<u32, PlugError> {
        let path = endpoint.sandbox.netns.clone();
        let opened = blocking(move || Netns::open(&path));
        let sandbox = opened.await?.map_err(|error| match error {
            NetnsError::Missing(path) => PlugError::Absent(format!(
                "network namespace {} is not there: start what makes it, or 'culvert detach {}'",
                path.display(),
                endpoint.container
            )),
            other => netns_refused(&other).into(),
        })?;
        let spec = PlugSpec {
            endpoint_id: endpoint.id.clone(),
            kind: self.device.kind,
            host_ifname: sandbox::host_ifname(&endpoint.id),
            ifname: endpoint.ifname.clone(),
            mac: endpoint.mac,
            mtu: endpoint.mtu.into(),
            addrs: endpoint.addresses.clone(),
            routes: endpoint.routes.clone(),
        };
        let plugged =
            sandbox::plug_closed(&self.netlink, &spec, &sandbox).await.map_err(sandbox_refused)?;
        // What the container sends is judged from its first frame on.
        self.datapath.attach_container(plugged.ifindex, plugged.kind).map_err(broken)?;
        if plugged.master.is_none() {
            self.assistants.enrol(&self.netlink, &spec.host_ifname).await;
        }
        sandbox::open_port(&self.netlink, &spec.host_ifname).await.map_err(sandbox_refused)?;
        Ok(plugged.ifindex)
    }

    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError> {
        sandbox::unplug(&self.netlink, endpoint).await.map_err(sandbox_refused)?;
        if let Some(ifindex) = ifindex {
            self.datapath.detach_container(ifindex).map_err(broken)?;
        }
        Ok(())
    }

    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError> {
        for ifindex in self.datapath.attached_containers()? {
            if !ifindexes.contains(&ifindex) {
                self.datapath.detach_container(ifindex)?;
            }
        }
        Ok(())
    }

    async fn gateways(&self) -> Result<BTreeMap<u32, u32>, PlugError> {
        let links = self.netlink.links().await.map_err(refused)?;
        let ours = links.iter().filter_map(|link| Some((sandbox::gateway_of(link)?, link.index)));
        Ok(ours.collect())
    }

    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError> {
        Ok(sandbox::plug_gateway(&self.netlink, gateway).await.map_err(sandbox_refused)?)
    }

    async fn open_gateway(&self, gateway: &GatewaySpec, ifindex: u32) -> Result<(), PlugError> {
        // Not sooner: the kernel waits for an RCU grace period with each program that it
        // attaches, 10 ms, and the network's endpoints need not wait with it.
        self.datapath.attach_gateway(ifindex).map_err(broken)?;
        Ok(sandbox::open_gateway(&self.netlink, gateway).await.map_err(sandbox_refused)?)
    }

    async fn keep_gateways(&self, vnis: &[u32]) -> Result<(), ApiError> {
        let devices: Vec<String> = vnis.iter().map(|vni| sandbox::gateway_ifname(*vni)).collect();
        let keep = move || {
            for device in devices {
                if sandbox::keep_forwarding(&device)? {
                    tracing::warn!("{device}: forwarding had been switched off; it is on again");
                }
            }
            Ok(())
        };
        blocking(keep).await?.map_err(sandbox_refused)
    }

    async fn unplug_gateway(&self, vni: u32, ifindex: u32) -> Result<(), PlugError> {
        sandbox::unplug_gateway(&self.netlink, vni).await.map_err(sandbox_refused)?;
        Ok(self.datapath.detach_gateway(ifindex).map_err(broken)?)
    }

    async fn take_loopback(&self, take: bool) -> Result<(), PlugError> {
        if take {
            sandbox::allow_loopback(&self.netlink, true).map_err(sandbox_refused)?;
            self.datapath.attach_loopback().map_err(broken)?;
        } else if self.datapath.detach_loopback().map_err(broken)? {
            sandbox::allow_loopback(&self.netlink, false).map_err(sandbox_refused)?;
        }
        Ok(())
    }

    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, u16>,
        used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError> {
        self.note_addresses().await?;
        let underlay = underlay::Underlay::read(&self.netlink).await.map_err(refused)?;
        let resolved = underlay.resolve(&self.netlink, &self.uplinks, vteps, used).await;
        let (paths, hops) = resolved.map_err(refused)?;
        // Noted first: the events that follow are told by it.
        let before = std::mem::replace(&mut *self.managed(), hops.clone());
        for (ifindex, ip) in hops.difference(&before) {
            // Without it the first frame to that VTEP resolves it.
            if let Err(error) = self.netlink.manage_neighbour(*ifindex, *ip).await {
                tracing::debug!("neighbour {ip}: {error}");
            }
        }
        for (ifindex, ip) in before.difference(&hops) {
            if let Err(error) = self.netlink.forget_neighbour(*ifindex, *ip).await {
                tracing::debug!("neighbour {ip}: {error}");
            }
        }
        Ok(paths)
    }

    async fn check_uplinks(&self) -> Vec<String> {
        let errors = self.attach_uplinks().await;
        self.keep_assistants().await;
        errors.into_iter().map(|error| error.message).collect()
    }

    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.clone(), self.price.get().copied())
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    async fn max_mtu(&self, driver: Driver) -> Result<u16, ApiError> {
        let mut least = u32::from(u16::MAX);
        for name in &self.uplinks {
            let link = self.netlink.link(name).await.map_err(refused)?;
            let link = link.ok_or_else(|| refused(NetlinkError::NoSuchInterface(name.clone())))?;
            least = least.min(link.mtu);
        }
        let overhead = match driver {
            Driver::Overlay => VXLAN_OVERHEAD,
            Driver::Bridge => 0,
        };
        Ok(u16::try_from(least).unwrap_or(u16::MAX).saturating_sub(overhead))
    }

    fn hold_port(
        &self,
        ip: Ipv4Addr,
        port: u16,
        protocol: Protocol,
    ) -> Result<PortHold, PortError> {
        ports::hold(ip, port, protocol)
    }

    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder {
        ports::holder(ip, port, protocol)
    }

    async fn port_holder_in(
        &self,
        netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError> {
        let path = netns.to_owned();
        let holder = move || {
            let sandbox = Netns::open(&path)?;
            sandbox.run(|| ports::holder(Ipv4Addr::UNSPECIFIED, port, protocol))
        };
        blocking(holder).await?.map_err(|error| netns_refused(&error))
    }

    async fn routes(&self) -> Result<Vec<IpNetwork>, ApiError> {
        let routes = self.netlink.routes().await.map_err(refused)?;
        Ok(routes.into_iter().map(|route| route.destination).collect())
    }

    async fn make_sandbox(&self, name: &Name) -> Result<PathBuf, ApiError> {
        let name = name.clone();
        let made = blocking(move || Netns::create(&name).map(|made| made.path().to_owned()));
        made.await?.map_err(|error| netns_refused(&error))
    }

    async fn ensure_sandbox(&self, name: &Name, running: Option<i32>) -> Result<(), ApiError> {
        let name = name.clone();
        let ensured = blocking(move || {
            if let Some(pid) = running
                && !Netns::exists(&name)
            {
                match Netns::rebind(&name, pid) {
                    Ok(()) => return Ok(()),
                    Err(error) => tracing::warn!("sandbox {name}: {error}; it is made anew"),
                }
            }
            Netns::ensure(&name).map(|_| ())
        });
        ensured.await?.map_err(|error| netns_refused(&error))
    }

    fn sandbox_exists(&self, name: &Name) -> bool {
        Netns::exists(name)
    }

    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        let name = name.clone();
        blocking(move || Netns::remove(&name)).await?.map_err(|error| netns_refused(&error))
    }

    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<PathBuf, ApiError> {
        let netns = netns.map(Path::to_owned);
        let adopted = blocking(move || {
            let sandbox = match (netns, pid) {
                (Some(path), _) => Netns::open(&path),
                (None, Some(pid)) => Netns::from_pid(pid),
                (None, None) => Netns::current(),
            };
            sandbox.map(|sandbox| sandbox.path().to_owned())
        });
        adopted.await?.map_err(|error| netns_refused(&error))
    }

    async fn choose_ifname(
        &self,
        netns: &Path,
        asked: Option<&str>,
        reserved: &[String],
    ) -> Result<String, ApiError> {
        let path = netns.to_owned();
        let sandbox = blocking(move || Netns::open(&path)).await?.map_err(|error| netns_refused(&error))?;
        let Some(asked) = asked else {
            return sandbox::free_ifname(&sandbox, reserved).await.map_err(sandbox_refused);
        };
        validate::ifname(asked)
            .map_err(|error| ApiError::new(ErrorKind::Invalid, error.to_string()))?;
        let inside = Netlink::in_netns(sandbox.as_fd()).map_err(refused)?;
        let taken = reserved.iter().any(|name| name == asked)
            || inside.link(asked).await.map_err(refused)?.is_some();
        if taken {
            return Err(sandbox_refused(SandboxError::InterfaceTaken {
                ifname: asked.to_owned(),
                sandbox: netns.to_owned(),
            }));
        }
        Ok(asked.to_owned())
    }

    fn ifname(&self, ifindex: u32) -> String {
        nix::net::if_::if_indextoname(ifindex)
            .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned())
    }

    fn fdb(&self) -> Result<BTreeMap<FdbKey, FdbEntry>, DatapathError> {
        self.datapath.tables().fdb.dump()
    }

    fn learned(&self) -> Result<Vec<(FdbKey, LearnedEntry)>, DatapathError> {
        self.datapath.learned()
    }

    fn now_ns(&self) -> u64 {
        datapath::now_ns()
    }

    fn ageing(&self) -> Duration {
        self.ageing
    }

    fn forget(&self, key: &FdbKey) -> Result<(), DatapathError> {
        self.datapath.forget(key)
    }

    fn neighbours(&self) -> Result<BTreeMap<NeighKey, NeighEntry>, DatapathError> {
        self.datapath.tables().neighbours.dump()
    }

    fn underlay(&self) -> Result<BTreeMap<[u8; 4], UnderlayPath>, DatapathError> {
        self.datapath.tables().underlay.dump()
    }

    fn flows(&self) -> &dyn FlowTable {
        self.datapath.flows()
    }

    fn endpoints(&self) -> Result<BTreeMap<u32, EndpointInfo>, DatapathError> {
        self.datapath.tables().endpoints.dump()
    }

    fn published(&self) -> Result<BTreeMap<PublishedKey, PublishedEntry>, DatapathError> {
        self.datapath.tables().published.dump()
    }

    fn dropped(&self, reason: DropReason) -> Result<u64, DatapathError> {
        self.datapath.dropped(reason)
    }

    fn stats(&self) -> Result<Vec<(Direction, Code, Counter)>, DatapathError> {
        self.datapath.stats()
    }

    async fn purge(&self) -> Result<(), ApiError> {
        self.assistants.remove(&self.netlink).await.map_err(sandbox_refused)?;
        Datapath::purge(&self.bpffs).map_err(broken)
    }
}
