//! Devices and sandboxes.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{
    Host,
    error::{blocking, broken, netns_refused, refused, sandbox_refused},
};
use crate::{
    agent::platform::{Adopted, Devices, Made, PlugError, PluggedPair, Underlay as _},
    api::types::{ApiError, ErrorKind},
    datapath::{self, Datapath, DatapathError, Owner, PinCheck, Repaired},
    model::{self, HostRoute, Name, NetnsId, SandboxRef, validate},
    netlink::{self, Announcement, Netlink, subnet_of},
    netns::{Netns, NetnsError, process_of},
    reconcile::LocalEndpoint,
    sandbox::{self, GatewaySpec, PlugSpec, Resolver, SandboxError},
};

impl Host {
    /// Checks that this host has no route of its own in the main table to the subnets of an
    /// endpoint that it does not have yet. Next hops in the subnets do not count: the gateway
    /// device of the network gives way to them.
    async fn check_routes(&self, endpoint: &LocalEndpoint) -> Result<(), PlugError> {
        let name = sandbox::host_ifname(&endpoint.id);
        if !endpoint.routed || self.netlink.link(&name).await.map_err(refused)?.is_some() {
            return Ok(());
        }
        let subnets: Vec<_> = endpoint.addresses.iter().copied().map(subnet_of).collect();
        // Of very many routes, only those that matter are given the names of their interfaces.
        let routes = self.routes_into(&subnets).await?;
        match model::routed(&subnets, &routes) {
            Some((subnet, HostRoute { destination, device, .. })) => {
                let (destination, device) = (*destination, device.clone());
                let error = SandboxError::RouteTaken { subnet, destination, device };
                Err(PlugError::Covers(error.to_string()))
            }
            None => Ok(()),
        }
    }

    /// Makes the device pair of an endpoint, or corrects it. Returns the interface index of the host
    /// side. What was wrong in the sandbox is added to `found`.
    async fn plug_pair(
        &self,
        spec: &PlugSpec,
        sandbox: &Netns,
        found: &mut Vec<String>,
    ) -> Result<u32, PlugError> {
        let watch = |inside| self.inside.watch(&spec.endpoint_id, inside);
        let plugged = sandbox::plug_closed(&self.netlink, spec, sandbox, watch, found).await;
        let plugged = plugged.map_err(sandbox_refused)?;
        // Attached before the host side is up: the program sees the first frame.
        self.datapath.attach_container(plugged.ifindex, plugged.kind).map_err(broken)?;
        let port = (spec.host_ifname.as_str(), plugged.ifindex);
        self.assistants.settle(&self.netlink, port, plugged.master).await;
        sandbox::open_host_side(&self.netlink, &spec.host_ifname).await.map_err(sandbox_refused)?;
        Ok(plugged.ifindex)
    }
}

#[async_trait]
impl Devices for Host {
    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError> {
        let links = self.netlink.links().await.map_err(refused)?;
        let ours = links.iter().filter_map(|link| Some((sandbox::endpoint_of(link)?, link.index)));
        Ok(ours.map(|(id, ifindex)| (id.to_owned(), ifindex)).collect())
    }

    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<PluggedPair, PlugError> {
        let opened = open_sandbox(endpoint).await;
        let sandbox = opened.inspect_err(|error| {
            if matches!(error, PlugError::Absent(_)) {
                self.inside.forget(&endpoint.id);
            }
        })?;
        let spec = PlugSpec {
            endpoint_id: endpoint.id.clone(),
            kind: self.device.kind,
            host_ifname: sandbox::host_ifname(&endpoint.id),
            ifname: endpoint.ifname.clone(),
            mac: endpoint.mac,
            mtu: endpoint.mtu.into(),
            addrs: endpoint.addresses.clone(),
            additional: endpoint.additional.clone(),
            neighbours: endpoint.neighbours.clone(),
            routes: endpoint.routes.clone(),
        };
        self.check_routes(endpoint).await?;
        self.inside.begin(&endpoint.id, sandbox.id(), &spec);
        let mut found = Vec::new();
        let plugged = self.plug_pair(&spec, &sandbox, &mut found).await;
        let found = self.inside.end(&endpoint.id, found, plugged.is_ok());
        Ok(PluggedPair { ifindex: plugged?, found })
    }

    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError> {
        self.inside.remove(endpoint);
        sandbox::unplug(&self.netlink, endpoint).await.map_err(sandbox_refused)?;
        if let Some(ifindex) = ifindex {
            self.assistants.forget(ifindex);
            self.datapath.detach_container(ifindex).map_err(broken)?;
        }
        Ok(())
    }

    async fn leads_into(&self, endpoint: &str, netns: &Path) -> bool {
        sandbox::leads_into(&self.netlink, endpoint, netns).await.unwrap_or(false)
    }

    async fn forget_rules(&self, sandbox: &SandboxRef) -> Result<(), PlugError> {
        Ok(sandbox::forget_rules(sandbox).await.map_err(sandbox_refused)?)
    }

    async fn announce(&self, announcements: Vec<Announcement>) -> Result<(), PlugError> {
        let netns = self.netlink.netns().try_clone_to_owned();
        let netns = netns.map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        let sent = blocking(move || netlink::announce(netns.as_fd(), &announcements)).await?;
        Ok(sent.map_err(refused)?)
    }

    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError> {
        let is_gone = |ifindex: &u32| !ifindexes.contains(ifindex);
        let mut outcome = Ok(());
        for ifindex in self.datapath.attached_containers()?.into_iter().filter(is_gone) {
            outcome = outcome.and(self.datapath.detach_container(ifindex));
        }
        for ifindex in self.datapath.attached_gateways()?.into_iter().filter(is_gone) {
            outcome = outcome.and(self.datapath.detach_gateway(ifindex));
        }
        outcome
    }

    async fn gateways(&self) -> Result<BTreeMap<u32, (u32, bool)>, PlugError> {
        let links = self.netlink.links().await.map_err(refused)?;
        let ours = links.iter().filter_map(|link| {
            Some((sandbox::gateway_of(link)?, (link.index, !link.addresses.is_empty())))
        });
        Ok(ours.collect())
    }

    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError> {
        Ok(sandbox::plug_gateway(&self.netlink, gateway).await.map_err(sandbox_refused)?)
    }

    async fn open_gateway(&self, gateway: &GatewaySpec, ifindex: u32) -> Result<(), PlugError> {
        // Attached only now: the kernel waits for an RCU grace period of about 10 ms with each
        // program, and the endpoints of the network do not need this one.
        self.datapath.attach_gateway(ifindex).map_err(broken)?;
        Ok(sandbox::open_gateway(&self.netlink, gateway).await.map_err(sandbox_refused)?)
    }

    async fn keep_settings(&self, vnis: &[u32], endpoints: &[String], loopback: bool) -> Repaired {
        let gateways: Vec<String> = vnis.iter().map(|vni| sandbox::gateway_ifname(*vni)).collect();
        let ports: Vec<String> = endpoints.iter().map(|id| sandbox::host_ifname(id)).collect();
        let keep = move || {
            let mut repaired = Repaired::default();
            for gateway in gateways {
                let kept = sandbox::keep_gateway_settings(&gateway);
                note_settings(&mut repaired, &gateway, kept);
            }
            for port in ports {
                let kept = sandbox::keep_quiet(&port);
                let changed = kept.map(|was_on| was_on.then_some("disable_ipv6"));
                note_settings(&mut repaired, &port, changed);
            }
            repaired
        };
        let mut repaired = blocking(keep).await.unwrap_or_else(|error| {
            let mut failed = Repaired::default();
            failed.fail(error.message);
            failed
        });
        // Locked, so that nothing is turned on after a purge has turned it off.
        let purged = self.purged();
        if loopback && !*purged {
            let kept = sandbox::allow_loopback(&self.netlink);
            note_settings(&mut repaired, "lo", kept);
        }
        repaired
    }

    async fn gateways_differ(
        &self,
        gateways: &[GatewaySpec],
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        let found = sandbox::gateway_differences(&self.netlink, gateways).await;
        let line = |(vni, faults): (u32, Vec<String>)| {
            (vni, format!("{} {}", sandbox::gateway_ifname(vni), faults.join(", ")))
        };
        Ok(found.map_err(sandbox_refused)?.into_iter().map(line).collect())
    }

    async fn host_sides_differ(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, String>, PlugError> {
        Ok(self.compare_host_sides(mtus).await.map_err(refused)?)
    }

    fn host_side_problem(&self, ifindex: u32) -> Option<String> {
        self.assistants.problem(ifindex)
    }

    fn repair_pins(&self, check: PinCheck) -> Repaired {
        let purged = self.purged();
        if *purged { Repaired::default() } else { self.datapath.repair_pins(check) }
    }

    fn repair_links(&self, check: PinCheck) -> Repaired {
        let purged = self.purged();
        if *purged { Repaired::default() } else { self.datapath.repair_links(check) }
    }

    fn detach_gateway(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.datapath.detach_gateway(ifindex)
    }

    async fn unplug_gateway(&self, vni: u32, ifindex: u32) -> Result<(), PlugError> {
        sandbox::unplug_gateway(&self.netlink, vni).await.map_err(sandbox_refused)?;
        Ok(self.datapath.detach_gateway(ifindex).map_err(broken)?)
    }

    async fn take_loopback(&self, take: bool) -> Result<(), PlugError> {
        if take {
            sandbox::allow_loopback(&self.netlink).map_err(sandbox_refused)?;
            self.datapath.attach_loopback().map_err(broken)?;
        } else {
            self.datapath.detach_loopback().map_err(broken)?;
            // Also where nothing was attached: an agent may have been killed in between.
            sandbox::restore_loopback(&self.netlink).map_err(sandbox_refused)?;
        }
        Ok(())
    }

    fn sandbox_path(&self, name: &Name) -> PathBuf {
        Netns::path_of(name)
    }

    async fn make_sandbox(&self, name: &Name, made: Made) -> Result<PathBuf, ApiError> {
        let name = name.clone();
        let create = move || Netns::create(&name, made).map(|netns| netns.path().to_owned());
        blocking(create).await?.map_err(|error| netns_refused(&error))
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

    fn sandbox_id(&self, name: &Name) -> Option<NetnsId> {
        Netns::find(name)
    }

    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError> {
        let name = name.clone();
        blocking(move || Netns::remove(&name)).await?.map_err(|error| netns_refused(&error))
    }

    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<Adopted, ApiError> {
        let netns = netns.map(Path::to_owned);
        let adopted = blocking(move || {
            let sandbox = match (netns, pid) {
                (Some(path), _) => Netns::open(&path),
                (None, Some(pid)) => Netns::from_pid(pid),
                (None, None) => Netns::current(),
            };
            sandbox.and_then(Netns::not_of_host).map(|sandbox| {
                let through = process_of(sandbox.path()).map(|pid| (pid, sandbox.id()));
                Adopted { path: sandbox.path().to_owned(), through }
            })
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
        let sandbox = blocking(move || open_guest(&path)).await?;
        let sandbox = sandbox.map_err(|error| netns_refused(&error))?;
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

    fn resolver(&self) -> Resolver {
        Resolver::of_host()
    }

    async fn purge(&self) -> Result<(), ApiError> {
        self.assistants.remove(&self.netlink).await.map_err(sandbox_refused)?;
        let links = self.netlink.links().await.map_err(refused)?;
        // Locked, so that what is removed is not put back by a repair that is under way.
        let mut purged = self.purged();
        *purged = true;
        sandbox::restore_loopback(&self.netlink).map_err(sandbox_refused)?;
        let released = self.datapath.release();
        Datapath::purge(&self.bpffs).map_err(broken)?;
        released.map_err(broken)?;
        // An agent that could not read the store has not retired these.
        let found = datapath::find_leftovers(&links, &self.bpffs).map_err(broken)?;
        let (idle, kept): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|other| other.owner == Owner::Ended);
        for line in kept.iter().filter_map(|other| other.kept("'culvert purge' of that removes it"))
        {
            tracing::warn!("purge: not removed: {line}");
        }
        datapath::remove_leftovers(&idle).map_err(broken)
    }
}

/// Notes the settings of a device that were off, and have been turned on again.
fn note_settings(
    repaired: &mut Repaired,
    device: &str,
    kept: Result<impl IntoIterator<Item = &'static str>, SandboxError>,
) {
    match kept {
        Ok(off) => {
            for key in off {
                repaired.found.note(device, format!("had {key} off"));
            }
        }
        Err(error) => repaired.fail(error),
    }
}

/// Opens the namespace of a container, which is none of the host's own.
fn open_guest(path: &Path) -> Result<Netns, NetnsError> {
    Netns::open(path)?.not_of_host()
}

/// Opens the namespace of an endpoint.
async fn open_sandbox(endpoint: &LocalEndpoint) -> Result<Netns, PlugError> {
    let path = endpoint.sandbox.netns.clone();
    let opened = blocking(move || open_guest(&path)).await?;
    let sandbox = opened.map_err(|error| absent(endpoint, &error))?;
    check_same(endpoint, sandbox.id())?;
    Ok(sandbox)
}

/// The error of an endpoint whose namespace cannot be opened.
fn absent(endpoint: &LocalEndpoint, error: &NetnsError) -> PlugError {
    let LocalEndpoint { sandbox, container, .. } = endpoint;
    let path = sandbox.netns.display();
    let by_process = sandbox.id.is_some() || sandbox.netns.starts_with("/proc");
    match error {
        // No process comes back under its former number.
        NetnsError::Missing(_) | NetnsError::NotNetns(_) if by_process => {
            PlugError::Absent(format!(
                "network namespace {path} is gone with its process: 'culvert detach {container}', then attach its successor"
            ))
        }
        NetnsError::Missing(_) => PlugError::Absent(format!(
            "network namespace {path} is not there: start what makes it, or 'culvert detach {container}'"
        )),
        other => netns_refused(other).into(),
    }
}

/// Checks that the namespace that was found at an endpoint's path is the one that was attached, if
/// the path is one of a process.
fn check_same(endpoint: &LocalEndpoint, found: NetnsId) -> Result<(), PlugError> {
    let LocalEndpoint { sandbox, container, .. } = endpoint;
    if sandbox.id.is_none_or(|attached| attached == found) {
        return Ok(());
    }
    Err(PlugError::Absent(format!(
        "network namespace {} is another one than was attached, whose process is gone: 'culvert detach {container}', then attach its successor",
        sandbox.netns.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MacAddr;

    fn endpoint(netns: &str, id: Option<NetnsId>) -> LocalEndpoint {
        LocalEndpoint {
            id: "0a".to_owned(),
            network: "net".parse().unwrap(),
            container: "guest".parse().unwrap(),
            ifname: "eth0".to_owned(),
            sandbox: SandboxRef { netns: netns.into(), owned: false, id },
            mac: MacAddr([2; 6]),
            mtu: 1450,
            addresses: Vec::new(),
            additional: Vec::new(),
            routed: false,
            neighbours: Vec::new(),
            routes: Vec::new(),
        }
    }

    #[test]
    fn a_stranger_with_the_number_of_the_process_is_not_plugged() {
        let id = |ino| NetnsId { dev: 4, ino };
        let path = "/proc/4711/ns/net";
        let refused = check_same(&endpoint(path, Some(id(1))), id(2)).unwrap_err();
        assert!(matches!(&refused, PlugError::Absent(line) if line.contains(path)), "{refused:?}");
        assert!(refused.message().contains("'culvert detach guest'"), "{refused:?}");
        let other_device = NetnsId { dev: 5, ino: 1 };
        assert!(check_same(&endpoint(path, Some(id(1))), other_device).is_err());
        check_same(&endpoint(path, Some(id(1))), id(1)).unwrap();
        // What is mounted at a path is the namespace of that name, and old records have no identity.
        check_same(&endpoint("/run/netns/blue", None), id(2)).unwrap();
    }

    #[test]
    fn an_absent_namespace_is_told_with_advice_that_fits_its_path() {
        let message = |netns: &str| {
            let error = absent(&endpoint(netns, None), &NetnsError::Missing(netns.into()));
            assert!(matches!(error, PlugError::Absent(_)), "{error:?}");
            error.message().to_owned()
        };
        assert!(
            message("/run/netns/blue").contains("start what makes it, or 'culvert detach guest'")
        );
        let by_process = message("/proc/4711/ns/net");
        assert!(by_process.ends_with("'culvert detach guest', then attach its successor"));
    }
}
