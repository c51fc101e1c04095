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
    agent::platform::{Devices, PlugError},
    api::types::{ApiError, ErrorKind},
    datapath::{Datapath, DatapathError},
    model::{Name, validate},
    netlink::Netlink,
    netns::{Netns, NetnsError},
    reconcile::LocalEndpoint,
    sandbox::{self, GatewaySpec, PlugSpec, SandboxError},
};

#[async_trait]
impl Devices for Host {
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
        // Attached before the host side is up: the program sees the first frame.
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
        // Attached only now: the kernel waits for an RCU grace period of about 10 ms with each
        // program, and the endpoints of the network do not need this one.
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
        let sandbox =
            blocking(move || Netns::open(&path)).await?.map_err(|error| netns_refused(&error))?;
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

    async fn purge(&self) -> Result<(), ApiError> {
        self.assistants.remove(&self.netlink).await.map_err(sandbox_refused)?;
        Datapath::purge(&self.bpffs).map_err(broken)
    }
}
