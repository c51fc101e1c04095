//! Devices and sandboxes of containers, gateway devices.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::types::{Adopted, Made, PlugError, PluggedPair};
use crate::{
    api::types::ApiError,
    datapath::{DatapathError, PinCheck, Repaired},
    model::{Name, NetnsId, SandboxRef},
    netlink::Announcement,
    reconcile::LocalEndpoint,
    sandbox::{GatewaySpec, Resolver},
};

/// Makes and removes the devices and the sandboxes of this host.
#[async_trait]
pub(crate) trait Devices: Send + Sync + 'static {
    /// Endpoints that have a device pair on this host: interface index of the host side by
    /// identifier.
    async fn plugged(&self) -> Result<BTreeMap<String, u32>, PlugError>;

    /// Makes the device pair of an endpoint with its addresses and routes, and attaches the
    /// program. Idempotent. From then on each change of the interface in the sandbox is an event
    /// [`HostEvent::Sandbox`](super::HostEvent::Sandbox).
    async fn plug(&self, endpoint: &LocalEndpoint) -> Result<PluggedPair, PlugError>;

    /// Removes the device pair of an endpoint, and detaches the program from `ifindex`.
    /// Idempotent.
    async fn unplug(&self, endpoint: &str, ifindex: Option<u32>) -> Result<(), PlugError>;

    /// Whether the device pair of an endpoint exists and leads into the namespace at a path.
    async fn leads_into(&self, endpoint: &str, netns: &Path) -> bool;

    /// Removes the routing rules that removed endpoints had in a sandbox. Nothing is done if the
    /// sandbox is gone, or another one is at its path.
    async fn forget_rules(&self, sandbox: &SandboxRef) -> Result<(), PlugError>;

    /// Announces the MACs of addresses to containers, each announcement once, at its interface.
    async fn announce(&self, announcements: Vec<Announcement>) -> Result<(), PlugError>;

    /// Detaches the programs from the host sides of all containers and from all gateway devices
    /// except these.
    fn retain_attachments(&self, ifindexes: &BTreeSet<u32>) -> Result<(), DatapathError>;

    /// Gateway devices of this host by VNI: interface index, and whether the device has an address.
    /// Without one it has no route to the subnet of its network.
    async fn gateways(&self) -> Result<BTreeMap<u32, (u32, bool)>, PlugError>;

    /// Makes the gateway device of a network. A new one is down. Idempotent. Returns its
    /// interface index.
    async fn plug_gateway(&self, gateway: &GatewaySpec) -> Result<u32, PlugError>;

    /// Attaches the program to the gateway device of a network, then brings the device up
    /// with its address. Called once the maps have the device. Idempotent.
    async fn open_gateway(&self, gateway: &GatewaySpec, ifindex: u32) -> Result<(), PlugError>;

    /// Restores the settings of the kernel for the gateway devices of these networks, for the host
    /// sides of these endpoints' pairs, and with `loopback` for the loopback device, if another
    /// program has changed them.
    async fn keep_settings(&self, vnis: &[u32], endpoints: &[String], loopback: bool) -> Repaired;

    /// What differs between gateway devices and their wanted state, on one line each, by VNI.
    /// Devices as wanted are left out.
    async fn gateways_differ(
        &self,
        gateways: &[GatewaySpec],
    ) -> Result<BTreeMap<u32, String>, PlugError>;

    /// What differs between the host sides of containers' pairs and their wanted state, on one line
    /// each, by interface index. `mtus` has the wanted MTU of each interface, in bytes. Interfaces
    /// as wanted, and those that are gone, are left out.
    async fn host_sides_differ(
        &self,
        mtus: &BTreeMap<u32, u16>,
    ) -> Result<BTreeMap<u32, String>, PlugError>;

    /// What is wrong with the host side of a container's pair and could not be put right when it was
    /// last plugged, on one line. The container works nevertheless.
    fn host_side_problem(&self, ifindex: u32) -> Option<String>;

    /// Puts pins of maps and programs back that another program has removed or replaced.
    fn repair_pins(&self, check: PinCheck) -> Repaired;

    /// Attaches programs again that another program has detached or replaced, and puts the pins of
    /// their links back.
    fn repair_links(&self, check: PinCheck) -> Repaired;

    /// Detaches the program from a gateway device that is gone from this network namespace.
    /// Idempotent.
    fn detach_gateway(&self, ifindex: u32) -> Result<(), DatapathError>;

    /// Removes the gateway device of a network. Idempotent.
    async fn unplug_gateway(&self, vni: u32, ifindex: u32) -> Result<(), PlugError>;

    /// Attaches the program to the loopback device, or detaches it. It is needed while a port
    /// is published.
    async fn take_loopback(&self, take: bool) -> Result<(), PlugError>;

    /// Path of the sandbox of a container, whether it exists or not.
    fn sandbox_path(&self, name: &Name) -> PathBuf;

    /// Makes the sandbox of a container. Refused if it exists. `made` is called before the
    /// namespace has its path.
    async fn make_sandbox(&self, name: &Name, made: Made) -> Result<PathBuf, ApiError>;

    /// Makes the sandbox of a container unless it exists: from the namespace of its command
    /// if that runs, else a new one.
    async fn ensure_sandbox(&self, name: &Name, running: Option<i32>) -> Result<(), ApiError>;

    /// Whether the sandbox of a container exists.
    fn sandbox_exists(&self, name: &Name) -> bool {
        self.sandbox_id(name).is_some()
    }

    /// The namespace at the path of a container's sandbox; `None` if there is none.
    fn sandbox_id(&self, name: &Name) -> Option<NetnsId>;

    /// Removes the sandbox of a container. Idempotent.
    async fn remove_sandbox(&self, name: &Name) -> Result<(), ApiError>;

    /// Checks a namespace that another program made. The host's own is refused.
    async fn adopt(&self, netns: Option<&Path>, pid: Option<i32>) -> Result<Adopted, ApiError>;

    /// The name of a new interface in a namespace: `asked`, or the first free name if that is
    /// `None`. It is an error if `asked` is taken. Names in `reserved` count as taken.
    async fn choose_ifname(
        &self,
        netns: &Path,
        asked: Option<&str>,
        reserved: &[String],
    ) -> Result<String, ApiError>;

    /// The name servers that the host has for containers.
    fn resolver(&self) -> Resolver;

    /// Removes every pin, and with it programs and maps, and the devices that belong to no
    /// network.
    async fn purge(&self) -> Result<(), ApiError>;
}
