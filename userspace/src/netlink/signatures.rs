#![allow(unused_variables, missing_docs, clippy::todo, reason = "signatures first")]
use std::{net::IpAddr, os::fd::BorrowedFd};
use ipnetwork::IpNetwork;
use super::Result;
use crate::model::MacAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    pub up: bool,
    pub running: bool,
    pub loopback: bool,
    pub kind: Option<String>,
    pub alias: Option<String>,
    /// IFLA_LINK: of a veth, its peer's index.
    pub peer_index: Option<u32>,
    /// IFLA_LINK_NETNSID: namespace of the peer, None = this one.
    pub peer_netns_id: Option<i32>,
    /// Bridge or bond it belongs to.
    pub master: Option<u32>,
    /// UDP port of a kernel vxlan device.
    pub vxlan_port: Option<u16>,
    pub addresses: Vec<IpNetwork>,
}

pub struct VethSpec<'a> {
    pub name: &'a str,
    pub peer_name: &'a str,
    pub peer_mac: MacAddr,
    pub mtu: u32,
    pub peer_netns: BorrowedFd<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub ifindex: u32,
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub table: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    pub ifindex: u32,
    /// Gateway, or the address itself when it is on link.
    pub next_hop: IpAddr,
    pub source: Option<IpAddr>,
    /// Of the route, or of its device: whichever is smaller.
    pub mtu: u32,
    /// The address is one of ours.
    pub local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub mac: Option<MacAddr>,
    /// The kernel can send to it now.
    pub valid: bool,
    /// The kernel keeps it resolved (NTF_EXT_MANAGED).
    pub managed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Link { index: u32, name: String, up: bool },
    LinkGone { index: u32, name: String },
    Address { ifindex: u32, address: IpNetwork, gone: bool },
    Route,
    Neighbour { ifindex: u32, ip: IpAddr, valid: bool },
    /// Events were lost: look at everything again.
    Lost,
}

/// Also a `futures::Stream<Item = Event>`; ends when the runtime goes.
pub struct Monitor {}
impl Monitor {
    pub async fn next(&mut self) -> Option<Event> { todo!() }
}

/// Offloads for encapsulated packets, as ethtool names them.
pub const ENCAPSULATION_OFFLOADS: &[&str] = &["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
pub const RX_UDP_GRO_FORWARDING: &str = "rx-udp-gro-forwarding";

#[derive(Clone)]
pub struct Netlink {}

impl Netlink {
    /// In the calling thread's namespace. Needs a tokio runtime.
    pub fn new() -> Result<Self> { todo!() }
    pub fn in_netns(netns: BorrowedFd<'_>) -> Result<Self> { todo!() }
    /// The namespace it works in.
    pub fn netns(&self) -> BorrowedFd<'_> { todo!() }

    pub async fn links(&self) -> Result<Vec<Link>> { todo!() }
    pub async fn link(&self, name: &str) -> Result<Option<Link>> { todo!() }
    pub async fn create_veth(&self, spec: &VethSpec<'_>) -> Result<u32> { todo!() }
    /// An empty bridge (no STP), up or not as the kernel makes it; its index.
    pub async fn create_bridge(&self, name: &str, mac: Option<MacAddr>) -> Result<u32> { todo!() }
    pub async fn set_up(&self, name: &str) -> Result<()> { todo!() }
    pub async fn set_down(&self, name: &str) -> Result<()> { todo!() }
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> { todo!() }
    pub async fn set_mac(&self, name: &str, mac: MacAddr) -> Result<()> { todo!() }
    pub async fn set_alias(&self, name: &str, alias: &str) -> Result<()> { todo!() }
    pub async fn rename(&self, name: &str, new: &str) -> Result<()> { todo!() }
    pub async fn delete_link(&self, name: &str) -> Result<()> { todo!() }

    pub async fn addresses(&self, name: &str) -> Result<Vec<IpNetwork>> { todo!() }
    /// IPv6 without DAD.
    pub async fn add_address(&self, name: &str, address: IpNetwork) -> Result<()> { todo!() }
    pub async fn delete_address(&self, name: &str, address: IpNetwork) -> Result<()> { todo!() }

    pub async fn routes(&self) -> Result<Vec<Route>> { todo!() }
    pub async fn add_route(&self, name: &str, destination: IpNetwork, gateway: Option<IpAddr>) -> Result<()> { todo!() }
    pub async fn delete_route(&self, name: &str, destination: IpNetwork, gateway: Option<IpAddr>) -> Result<()> { todo!() }
    pub async fn route_to(&self, ip: IpAddr) -> Result<RouteInfo> { todo!() }

    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> { todo!() }
    pub async fn manage_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> { todo!() }
    pub async fn forget_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> { todo!() }

    pub fn monitor(&self) -> Result<Monitor> { todo!() }

    /// None: the device or kernel has no such feature.
    pub fn feature(&self, name: &str, feature: &str) -> Result<Option<bool>> { todo!() }
    /// Turns off; returns whether something changed.
    pub fn disable_features(&self, name: &str, features: &[&str]) -> Result<bool> { todo!() }
}
