//! Uplinks: the programs on them, facts about them, and the paths to VTEPs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use culvert_common::{
    abi::{UplinkInfo, VXLAN_OVERHEAD},
    wire::EthHdr,
};
use ipnetwork::IpNetwork;

use super::{
    Host, chosen,
    error::{blocking, broken, refused},
    facts, underlay,
};
use crate::{
    agent::platform::{
        ClientLinks, HostEvent, NodeFacts, OtherLinks, Paths, PlugError, Remote, Underlay,
        UplinkCheck, UplinkChoice,
    },
    api::types::{ApiError, ErrorKind},
    choice::{self, Uplink, device::Device},
    datapath::{DatapathError, Price, Table as _},
    doctor,
    model::{Driver, HostRoute, validate},
    netlink::{Event, Link, NetlinkError, Route, default_link},
    probe::{self, Answers, PathProbe},
    sandbox,
};

/// Time of a step of a probe, in which routers answer. It is a little more than a second, because
/// some routers send one error a second.
const PROBE_STEP: Duration = Duration::from_millis(1050);

impl Host {
    /// Attaches the programs to the uplinks, and detaches them from other interfaces. Continues after
    /// an error. Returns all errors.
    pub(crate) async fn attach_uplinks(&self) -> Vec<ApiError> {
        let mut links = Vec::new();
        let (mut errors, mut are_all_known) = (Vec::new(), true);
        for name in &self.uplinks {
            match self.netlink.link(name).await {
                Ok(Some(link)) => links.push(link),
                Ok(None) => errors.push(refused(NetlinkError::NoSuchInterface(name.clone()))),
                Err(error) => {
                    are_all_known = false;
                    errors.push(refused(error));
                }
            }
        }
        let served = self.serve_uplinks(&links, are_all_known);
        errors.extend(served.into_iter().map(broken));
        errors
    }

    /// Attaches the programs to these uplinks, and detaches them from other interfaces if
    /// `are_all`: there are no further uplinks. An uplink whose program cannot be attached keeps the
    /// programs that are attached to it.
    fn serve_uplinks(&self, links: &[Link], are_all: bool) -> Vec<DatapathError> {
        let mut errors = Vec::new();
        // Locked, so that nothing is attached after a purge has detached it.
        let purged = self.purged();
        if *purged {
            return errors;
        }
        for link in links {
            errors.extend(self.attach_uplink(link.index).err());
        }
        if !are_all {
            return errors;
        }
        let wanted: BTreeMap<u32, UplinkInfo> =
            links.iter().map(|link| (link.index, self.uplink_info(link))).collect();
        errors.extend(self.note_uplinks(&wanted).err());
        let attached = self.datapath.attached_uplinks().unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        for ifindex in attached.into_iter().filter(|ifindex| !wanted.contains_key(ifindex)) {
            errors.extend(self.datapath.detach_uplink(ifindex).err());
        }
        errors
    }

    fn attach_uplink(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.datapath.attach_uplink(ifindex)?;
        if self.are_all_ours.load(Ordering::Relaxed) {
            self.datapath.attach_uplink_out(ifindex)?;
        }
        if self.xdp { self.datapath.attach_uplink_xdp(ifindex) } else { Ok(()) }
    }

    /// Attaches `to_underlay` to the uplinks, now and later: no program of an earlier agent sends
    /// VXLAN any more. Programs of earlier versions do not mark what they send.
    pub(crate) async fn guard_uplinks(&self) {
        self.are_all_ours.store(true, Ordering::Relaxed);
        for error in self.attach_uplinks().await {
            // The check of the uplinks tries again, and reports it.
            tracing::warn!("{}", error.message);
        }
    }

    /// The facts about an uplink that the programs need.
    fn uplink_info(&self, link: &Link) -> UplinkInfo {
        let link_len = if link.mac.is_some() { EthHdr::LEN as u8 } else { 0 };
        let flag = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
        let flags = flag(self.assistants.shares_port(), UplinkInfo::SHARED_PORT)
            | flag(self.are_all_ours.load(Ordering::Relaxed), UplinkInfo::GUARDED);
        UplinkInfo { mtu: link.mtu, link_len, flags, ..UplinkInfo::default() }
    }

    /// Makes the assistant devices if they are missing, and reads the facts about the uplinks.
    /// Returns what other programs had changed about the devices, a line each.
    pub(crate) async fn keep_assistants(&self) -> Vec<String> {
        let repaired = self.assistants.keep(&self.netlink, self.vxlan_port).await;
        let known = choice::read(&self.netlink, &self.uplinks, self.vxlan_port).await;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        repaired
    }

    /// Waits for the next change in the host's own namespace.
    async fn own_event(&self) -> Option<HostEvent> {
        let mut monitor = self.monitor.lock().await;
        loop {
            let event = monitor.next().await?;
            if self.assistants.concerns(&event, self.vxlan_port) {
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
                Event::Link { index, .. } => HostEvent::Device(index),
                Event::Neighbour { ifindex, ip, .. } if !self.is_hop(ifindex, ip) => continue,
                Event::Address { address, .. } if address.is_ipv6() => continue,
                Event::Address { .. } => HostEvent::Address,
                // VTEPs, gateways and client links have IPv4 routes.
                Event::Route { is_ipv6: true, ifindex, .. } => HostEvent::Ipv6(ifindex),
                Event::Route { main: Some(destination), hops, ifindex, .. } => {
                    HostEvent::Route { destination, hops, ifindex }
                }
                Event::Route { .. } | Event::Neighbour { .. } => HostEvent::Underlay,
            });
        }
    }

    /// The uplinks that merge VXLAN datagrams of different networks, a line each. An uplink that does
    /// not exist is another problem.
    fn merging_uplinks(&self) -> Vec<String> {
        let finding = |name: &String| {
            let features = self.netlink.merging(name).unwrap_or_default();
            doctor::merging_uplink(name, &features)
        };
        let findings = self.uplinks.iter().filter_map(finding);
        findings.map(|finding| format!("{}: {}", finding.detail, finding.advice)).collect()
    }

    fn host_route(&self, route: &Route) -> HostRoute {
        // The next hops of other tables serve only who has a rule for them.
        let next_hops = if route.is_main() { route.hops().collect() } else { Vec::new() };
        HostRoute {
            destination: route.destination,
            device: self.ifname(route.first_ifindex()),
            next_hops,
        }
    }

    /// Measures the costs of the programs, if an uplink could use XDP.
    pub(crate) async fn price_uplinks(&self) {
        let (uplinks, _) = self.uplinks();
        if !uplinks.iter().any(Uplink::is_open) {
            return;
        }
        match blocking(Price::measure).await {
            Ok(Ok(price)) => drop(self.price.set(price)),
            Ok(Err(error)) => tracing::warn!("what XDP would cost is not known: {error}"),
            Err(error) => tracing::warn!("what XDP would cost is not known: {error}"),
        }
    }
}

#[async_trait]
impl Underlay for Host {
    async fn event(&self) -> Option<HostEvent> {
        tokio::select! {
            event = self.own_event() => event,
            harmed = self.inside.harmed() => Some(HostEvent::Sandbox(harmed)),
        }
    }

    async fn paths(
        &self,
        vteps: &BTreeMap<Ipv4Addr, Remote>,
        used: &BTreeSet<Ipv4Addr>,
    ) -> Result<Paths, PlugError> {
        self.close(|closed| closed.peers = Some(vteps.keys().copied().collect())).await?;
        let mut neighbours = underlay::UnderlayFacts::read(&self.netlink).await.map_err(refused)?;
        let resolved = neighbours.resolve(&self.netlink, &self.uplinks, vteps, used).await;
        let (paths, hops) = resolved.map_err(refused)?;
        // The hops are stored before the calls to the kernel: `event` needs them to recognise the
        // events that the calls cause.
        let before = std::mem::replace(&mut *self.hops(), hops.clone());
        for (ifindex, ip) in underlay::to_manage(&before, &hops) {
            // Best effort: the first frame to the VTEP resolves the neighbour as well.
            if let Err(error) = self.netlink.manage_neighbour(ifindex, ip).await {
                tracing::debug!("neighbour {ip}: {error}");
            }
        }
        for (ifindex, ip) in neighbours.to_forget(&before, &hops) {
            if let Err(error) = self.netlink.forget_neighbour(ifindex, ip).await {
                tracing::debug!("neighbour {ip}: {error}");
            }
        }
        Ok(paths)
    }

    async fn probe(&self, probes: Vec<PathProbe>, answers: Answers) -> Result<(), ApiError> {
        let from = self.vtep_ip;
        let asked = blocking(move || probe::ask(from, &probes, PROBE_STEP, &answers)).await?;
        asked.map_err(|error| {
            ApiError::new(
                ErrorKind::Unavailable,
                format!("no probe can be sent from {from}: {error}"),
            )
        })
    }

    async fn check_uplinks(&self) -> UplinkCheck {
        let repaired = self.keep_assistants().await;
        let errors = self.attach_uplinks().await;
        let mut problems: Vec<String> = errors.into_iter().map(|error| error.message).collect();
        problems.extend(self.merging_uplinks());
        UplinkCheck { problems, repaired }
    }

    async fn keep_client_links(&self, publishes: bool) -> Vec<String> {
        self.serve_client_links(publishes).await
    }

    fn client_links(&self) -> ClientLinks {
        // `serve_client_links` reports a table that cannot be read.
        let links = self.datapath.tables().client_links.dump().unwrap_or_default();
        ClientLinks {
            served: links.into_keys().map(|ifindex| self.ifname(ifindex)).collect(),
            unserved: self.unserved.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    async fn other_links(&self) -> Result<OtherLinks, ApiError> {
        self.find_other_links().await.map_err(refused)
    }

    fn uplinks(&self) -> (Vec<Uplink>, Option<Price>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.clone(), self.price.get().copied())
    }

    fn shares_port(&self) -> bool {
        self.assistants.shares_port()
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

    async fn routes(&self) -> Result<Vec<HostRoute>, ApiError> {
        let routes = self.netlink.routes().await.map_err(refused)?;
        let routes = routes.iter().map(|route| self.host_route(route));
        Ok(routes.filter(|route| !sandbox::is_gateway_ifname(&route.device)).collect())
    }

    async fn routes_into(&self, subnets: &[IpNetwork]) -> Result<Vec<HostRoute>, ApiError> {
        let routes = self.netlink.routes().await.map_err(refused)?;
        let concerns = |route: &&Route| {
            let reaches = |subnet: &IpNetwork| {
                validate::overlap(*subnet, route.destination)
                    || route.hops().any(|hop| subnet.contains(hop))
            };
            route.is_main() && subnets.iter().any(reaches)
        };
        let routes = routes.iter().filter(concerns).map(|route| self.host_route(route));
        let is_foreign = |route: &HostRoute| !sandbox::is_gateway_ifname(&route.device);
        let counts = |route: &HostRoute| {
            route.is_taken() || subnets.iter().any(|subnet| route.hop_in(*subnet).is_some())
        };
        Ok(routes.filter(|route| counts(route) && is_foreign(route)).collect())
    }

    async fn choose_uplinks(
        &self,
        given: &[String],
        vtep_ip: Option<Ipv4Addr>,
    ) -> Result<UplinkChoice, ApiError> {
        let links = self.netlink.links().await.map_err(refused)?;
        let routes = self.netlink.routes().await.map_err(refused)?;
        let present = links.iter().filter(|link| self.uplinks.contains(&link.name));
        let free = present.filter(|link| link.master.is_none());
        Ok(UplinkChoice {
            addresses: free.flat_map(chosen::ipv4_addresses).collect(),
            default: default_link(&links, &routes).map(|link| link.name.clone()),
            chosen: chosen::find(given, vtep_ip, &links, &routes),
        })
    }

    async fn facts(&self) -> Result<NodeFacts, ApiError> {
        facts::read(&self.netlink, &self.uplinks).await.map_err(refused)
    }

    fn ifname(&self, ifindex: u32) -> String {
        nix::net::if_::if_indextoname(ifindex)
            .map_or_else(|_| format!("#{ifindex}"), |name| name.to_string_lossy().into_owned())
    }
}
