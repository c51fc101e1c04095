//! The gateway device of a network, which connects the host with the network's containers.
//!
//! It is a bridge without ports: a bridge stays up by itself, and every kernel has it. No packet
//! crosses the bridge. A frame from a container to the host is redirected to the ingress of the
//! device. A packet from the host to the network leaves through the device, where `from_host` takes
//! it. The device does no ARP; the program knows the MACs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::IpNetwork;

use super::{Result, SandboxError, sysctl};
use crate::{
    model::{MacAddr, bars_gateway, validate::overlap},
    netlink::{Link, Netlink, NetlinkError, Route, subnet_of},
    netns::run_in,
};

/// Start of the alias that marks a gateway device; the VNI follows.
const ALIAS: &str = "culvert-gateway:";
/// Next hop of the subnet's route. No host has the address: the program finds the container by the
/// packet's destination. With it the host needs one neighbour for each network, and not one for
/// each container that it talks to.
const HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 1);
/// The most gateway devices that are read one by one.
const FEW: usize = 16;

/// The wanted state of a network's gateway device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySpec {
    /// VNI of the network.
    pub vni: u32,
    /// MAC address, the same on every host.
    pub mac: MacAddr,
    /// MTU of the network.
    pub mtu: u16,
    /// Address with the subnet's prefix length. `None` where another network may have the same
    /// address: then the host and the containers do not reach each other.
    pub address: Option<IpNetwork>,
    /// Source address of packets that the host itself sends to the network, where that is not the
    /// gateway address: containers on other hosts must be able to answer this host.
    pub source: Option<Ipv4Addr>,
}

impl GatewaySpec {
    /// The subnet that is routed to the device.
    fn subnet(&self) -> Option<IpNetwork> {
        self.address.map(subnet_of)
    }

    /// Whether a route by the device is the wanted one.
    fn has_route(&self, route: &Route) -> bool {
        let source = self.source.map(IpAddr::V4);
        Some(route.destination) == self.subnet()
            && route.gateway == Some(HOP.into())
            && (source.is_none() || route.source == source)
    }
}

/// Name of a gateway device: `cvg` and the VNI.
pub fn gateway_ifname(vni: u32) -> String {
    format!("cvg{vni}")
}

/// Whether a name has the form of a gateway device's name.
pub fn is_gateway_ifname(name: &str) -> bool {
    let vni = name.strip_prefix("cvg").and_then(|vni| vni.parse::<u32>().ok());
    vni.is_some_and(|vni| gateway_ifname(vni) == name)
}

/// VNI of the network whose gateway device is `link`, if Culvert made `link`.
pub fn gateway_of(link: &Link) -> Option<u32> {
    let vni = link.alias.as_deref()?.strip_prefix(ALIAS)?.parse().ok()?;
    (link.kind.as_deref() == Some("bridge")).then_some(vni)
}

/// Makes the gateway device match `spec`, except for the part that [`open_gateway`] does.
/// Idempotent. Returns its index.
///
/// # Errors
/// An interface of that name does not belong to Culvert, or the kernel refuses.
pub async fn plug_gateway(netlink: &Netlink, spec: &GatewaySpec) -> Result<u32> {
    let name = gateway_ifname(spec.vni);
    let alias = format!("{ALIAS}{}", spec.vni);
    let link = match netlink.link(&name).await? {
        Some(link) => link,
        None => {
            netlink.create_bridge(&name, Some(spec.mac)).await?;
            netlink.set_alias(&name, &alias).await?;
            netlink.link(&name).await?.ok_or_else(|| NetlinkError::NoSuchInterface(name.clone()))?
        }
    };
    if link.kind.as_deref() != Some("bridge")
        || link.alias.as_deref().is_some_and(|other| other != alias)
    {
        let owner = format!("the gateway device of VNI {}", spec.vni);
        return Err(SandboxError::ForeignInterface { ifname: name, owner });
    }
    if link.alias.is_none() {
        // The agent was stopped between the two requests.
        netlink.set_alias(&name, &alias).await?;
    }
    if link.mac != Some(spec.mac) {
        netlink.set_mac(&name, spec.mac).await?;
    }
    if link.mtu != u32::from(spec.mtu) {
        netlink.set_mtu(&name, spec.mtu.into()).await?;
    }
    if link.arp {
        netlink.set_noarp(&name).await?;
    }
    if link.master.is_some() {
        netlink.set_controller(&name, 0).await?;
    }
    let device = name.clone();
    run_in(netlink.netns(), move || keep_settings(&device).map(drop))??;
    Ok(link.index)
}

/// Enables forwarding on a gateway device, which `bpf_fib_lookup` needs to look up the host's
/// routes for packets that come in on it. The kernel itself forwards such a packet only if
/// netfilter has changed its destination, or if its destination is an address of `--service-cidr`.
/// Turns IPv6 off on the device: the host sends nothing of its own there. Must be called in the
/// host's namespace. Returns the settings that were off: a write of 0 to `net.ipv4.ip_forward` turns
/// forwarding off on every interface.
///
/// # Errors
/// The kernel refuses.
pub fn keep_settings(device: &str) -> Result<Vec<&'static str>> {
    let mut off = Vec::new();
    for (family, key) in [("ipv6", "disable_ipv6"), ("ipv4", "forwarding")] {
        if sysctl::set(family, device, key, "1")? == Some(true) {
            off.push(key);
        }
    }
    Ok(off)
}

/// Brings the gateway device up, gives it its address, and routes the subnet to it. Must be called
/// after the device's program is attached. Where the host has a route of its own to the subnet, or
/// to a part of it with the device's address, the device gives way: it keeps neither the address,
/// which a machine there may have, nor a route. A device that has no route yet also gives way to a
/// route to any other part of the subnet, or through a next hop in it, see [`bars_gateway`].
///
/// # Errors
/// The host has such a route, the interface does not exist, or the kernel refuses.
pub async fn open_gateway(netlink: &Netlink, spec: &GatewaySpec) -> Result<()> {
    let name = gateway_ifname(spec.vni);
    let link = netlink.link(&name).await?;
    let link = link.ok_or_else(|| NetlinkError::NoSuchInterface(name.clone()))?;
    if !link.up {
        netlink.set_up(&name).await?;
    }
    let mut routes = netlink.routes().await?;
    let taken = route_taken(netlink, &link, spec, &routes).await?;
    let spec = GatewaySpec { address: spec.address.filter(|_| taken.is_none()), ..spec.clone() };
    let present = netlink.addresses(&name).await?;
    let mut is_stale = false;
    for stale in present.iter().filter(|address| Some(**address) != spec.address) {
        netlink.delete_address(&name, *stale).await?;
        is_stale = true;
    }
    if is_stale {
        // With an address the kernel removes the routes whose source it is.
        routes = netlink.routes().await?;
    }
    if let Some(address) = spec.address
        && !present.contains(&address)
    {
        // The route that the kernel would add may not be the only one to the subnet.
        netlink.add_address_alone(&name, address).await?;
    }
    route_subnet(netlink, &link, &spec, &routes).await?;
    taken.map_or(Ok(()), Err)
}

/// The error, if the host has a route of its own among `routes` that the device would take something
/// from.
async fn route_taken(
    netlink: &Netlink,
    link: &Link,
    spec: &GatewaySpec,
    routes: &[Route],
) -> Result<Option<SandboxError>> {
    let Some(gateway) = spec.address else { return Ok(None) };
    let subnet = subnet_of(gateway);
    let is_its = |route: &Route| route.is_main() && route.ifindex == link.index;
    // Also one with another source or next hop, which `route_subnet` replaces.
    let has_route = routes.iter().any(|route| is_its(route) && route.destination == subnet);
    let is_other = |route: &&Route| {
        let hops: Vec<IpAddr> = route.hops().collect();
        route.is_main()
            && route.ifindex != link.index
            && bars_gateway((route.destination, hops.as_slice()), gateway, has_route)
    };
    for route in routes.iter().filter(is_other) {
        let device = netlink.link_at(route.first_ifindex()).await?;
        let is_gateway = device.as_ref().is_some_and(|link| gateway_of(link).is_some());
        if is_gateway && route.destination != subnet {
            // That of a network that is being removed.
            continue;
        }
        let destination = route.destination;
        let device = device.map_or_else(|| format!("#{}", route.first_ifindex()), |link| link.name);
        let is_part = subnet.prefix() <= destination.prefix() && overlap(subnet, destination);
        let hop = route.hops().find(|hop| subnet.contains(*hop)).filter(|_| !is_part);
        return Ok(Some(match hop {
            Some(hop) => SandboxError::HopTaken { subnet, hop, destination, device },
            None => SandboxError::RouteTaken { subnet, destination, device },
        }));
    }
    Ok(None)
}

/// Makes the route of the subnet the only route by the gateway device, and its next hop a permanent
/// neighbour. `routes` are those of the host.
async fn route_subnet(
    netlink: &Netlink,
    link: &Link,
    spec: &GatewaySpec,
    routes: &[Route],
) -> Result<()> {
    let mut settled = false;
    for route in routes.iter().filter(|route| route.is_main() && route.ifindex == link.index) {
        if spec.has_route(route) {
            settled = true;
        } else {
            // The route is of an earlier version, or leads to a former subnet.
            netlink.delete_route(link.index, route.destination).await?;
        }
    }
    let Some(subnet) = spec.subnet() else { return Ok(()) };
    netlink.enter_neighbour(link.index, HOP.into(), spec.mac).await?;
    if !settled {
        let source = spec.source.map(IpAddr::V4);
        netlink.add_hop_route(&link.name, subnet, HOP.into(), source).await?;
    }
    Ok(())
}

/// What differs between gateway devices and their specifications, in words, by VNI. Devices as
/// specified are left out.
///
/// # Errors
/// The kernel does not answer.
pub async fn differences(
    netlink: &Netlink,
    specs: &[GatewaySpec],
) -> Result<BTreeMap<u32, Vec<String>>> {
    let devices = read_devices(netlink, specs).await?;
    let device_of = |spec: &GatewaySpec| devices.get(&gateway_ifname(spec.vni));
    let mut routed = BTreeSet::new();
    if specs.len() <= FEW {
        for spec in specs {
            if let Some(device) = device_of(spec)
                && leads_to(netlink, spec, device).await?
            {
                routed.insert(spec.vni);
            }
        }
    }
    // The lookup may have found a longer route of the host.
    let is_unclear = |spec: &GatewaySpec| spec.address.is_some() && !routed.contains(&spec.vni);
    let routes = if specs.iter().any(is_unclear) { netlink.routes().await? } else { Vec::new() };
    let mut found = BTreeMap::new();
    for spec in specs {
        let faults = match device_of(spec) {
            Some(device) => {
                let is_its = |route: &Route| route.ifindex == device.index && spec.has_route(route);
                let is_routed = routed.contains(&spec.vni) || routes.iter().any(is_its);
                device_differences(device, spec, is_routed)
            }
            None => vec!["was removed".to_owned()],
        };
        if !faults.is_empty() {
            found.insert(spec.vni, faults);
        }
    }
    Ok(found)
}

/// The gateway devices that exist, by name, with their addresses. A host has thousands of other
/// interfaces, so that few devices are read one by one.
async fn read_devices(netlink: &Netlink, specs: &[GatewaySpec]) -> Result<BTreeMap<String, Link>> {
    let by_name = |link: Link| (link.name.clone(), link);
    if specs.len() > FEW {
        return Ok(netlink.links().await?.into_iter().map(by_name).collect());
    }
    let mut devices = Vec::new();
    for spec in specs {
        devices.extend(netlink.link(&gateway_ifname(spec.vni)).await?);
    }
    if !devices.is_empty() {
        let all = netlink.all_addresses().await?;
        for device in &mut devices {
            let own = all.iter().filter(|(ifindex, _)| *ifindex == device.index);
            device.addresses = own.map(|(_, address)| *address).collect();
        }
    }
    Ok(devices.into_iter().map(by_name).collect())
}

/// Whether the kernel routes the subnet to the device.
async fn leads_to(netlink: &Netlink, spec: &GatewaySpec, device: &Link) -> Result<bool> {
    let Some(subnet) = spec.subnet() else { return Ok(false) };
    match netlink.route_to(subnet.ip()).await {
        Ok(route) => Ok(route.ifindex == device.index),
        Err(NetlinkError::NoRoute(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What differs between an existing device and `spec`. `is_routed`: the subnet is routed to it.
fn device_differences(device: &Link, spec: &GatewaySpec, is_routed: bool) -> Vec<String> {
    let mut found = link_differences(device, spec);
    let foreign = device.addresses.iter().filter(|address| Some(**address) != spec.address);
    found.extend(foreign.map(|address| format!("had address {address}")));
    if let Some(address) = spec.address {
        if !device.addresses.contains(&address) {
            found.push(format!("had lost address {address}"));
        }
        if !is_routed {
            found.push(format!("had lost the route to {}", subnet_of(address)));
        }
    }
    found
}

/// As [`device_differences`], without addresses and routes.
fn link_differences(link: &Link, spec: &GatewaySpec) -> Vec<String> {
    let found = [
        (!link.up, "was down".to_owned()),
        (link.mac != Some(spec.mac), "had another MAC".to_owned()),
        (link.mtu != u32::from(spec.mtu), format!("had MTU {}", link.mtu)),
        (link.arp, "did ARP".to_owned()),
        (link.master.is_some(), "was a port of another device".to_owned()),
    ];
    found.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what).collect()
}

/// Removes a gateway device. No error if it does not exist.
///
/// # Errors
/// The kernel refuses.
pub async fn unplug_gateway(netlink: &Netlink, vni: u32) -> Result<()> {
    let name = gateway_ifname(vni);
    match netlink.link(&name).await? {
        Some(link) if gateway_of(&link) == Some(vni) => Ok(netlink.delete_link(&name).await?),
        _ => Ok(()),
    }
}

/// Settings of the loopback device with which it accepts packets for the host's own addresses whose
/// skb has no route.
const LOOPBACK: [&str; 2] = ["accept_local", "route_localnet"];

/// Makes the loopback device accept packets for the host's own addresses whose skb has no route:
/// answers to the host's connections to its published ports arrive there. Other interfaces are not
/// affected: 127.0.0.0/8 stays unreachable from external hosts. A setting that is on already stays
/// as it is. Returns the settings that were off.
///
/// # Errors
/// The kernel refuses.
pub fn allow_loopback(netlink: &Netlink) -> Result<Vec<&'static str>> {
    run_in(netlink.netns(), || {
        let mut changed = Vec::new();
        for key in LOOPBACK {
            if sysctl::turn_on("ipv4", "lo", key)? == Some(true) {
                changed.push(key);
            }
        }
        Ok(changed)
    })?
}

/// Puts the settings back that [`allow_loopback`] has changed, whichever agent did. A setting that
/// was on before, or that another program has turned on since, stays on.
///
/// # Errors
/// The kernel refuses.
pub fn restore_loopback(netlink: &Netlink) -> Result<()> {
    run_in(netlink.netns(), || {
        for key in LOOPBACK {
            sysctl::put_back("ipv4", "lo", key)?;
        }
        Ok(())
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_device_is_known_by_its_alias() {
        let link = |alias: &str, kind: &str| Link {
            alias: Some(alias.to_owned()),
            kind: Some(kind.to_owned()),
            ..Link::default()
        };
        assert_eq!(gateway_of(&link("culvert-gateway:256", "bridge")), Some(256));
        assert_eq!(gateway_of(&link("culvert-gateway:256", "veth")), None);
        assert_eq!(gateway_of(&link("culvert-gateway:x", "bridge")), None);
        assert_eq!(gateway_of(&link("culvert:256", "bridge")), None);
        assert_eq!(gateway_ifname(0x00ff_ffff).len(), 11);
        assert!(is_gateway_ifname("cvg256"));
        for other in ["cvgro0", "cvg", "cvg0256", "cvg+1", "eth0"] {
            assert!(!is_gateway_ifname(other), "{other}");
        }
    }

    /// A bridge cannot be a port of a bridge, so on many kernels nothing can take a gateway device.
    #[test]
    fn each_property_of_the_device_is_compared() {
        let spec = GatewaySpec {
            vni: 256,
            mac: MacAddr([2, 0x42, 10, 0, 0, 1]),
            mtu: 1450,
            address: None,
            source: None,
        };
        let right = Link { up: true, mac: Some(spec.mac), mtu: 1450, ..Link::default() };
        let found = |link: &Link| link_differences(link, &spec).join(", ");
        assert_eq!(found(&right), "");
        for (wrong, words) in [
            (Link { up: false, ..right.clone() }, "was down"),
            (Link { mac: None, ..right.clone() }, "had another MAC"),
            (Link { mtu: 1200, ..right.clone() }, "had MTU 1200"),
            (Link { arp: true, ..right.clone() }, "did ARP"),
            (Link { master: Some(9), ..right.clone() }, "was a port of another device"),
        ] {
            assert_eq!(found(&wrong), words);
        }
    }

    #[test]
    fn the_addresses_and_the_route_of_the_device_are_compared() {
        let address: IpNetwork = "10.0.0.1/24".parse().unwrap();
        let spec = GatewaySpec {
            vni: 256,
            mac: MacAddr([2, 0x42, 10, 0, 0, 1]),
            mtu: 1450,
            address: Some(address),
            source: None,
        };
        let device = |addresses: &[&str]| Link {
            up: true,
            mac: Some(spec.mac),
            mtu: 1450,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..Link::default()
        };
        let found = |addresses: &[&str], is_routed| {
            device_differences(&device(addresses), &spec, is_routed).join(", ")
        };
        assert_eq!(found(&["10.0.0.1/24"], true), "");
        assert_eq!(found(&["10.0.0.1/24"], false), "had lost the route to 10.0.0.0/24");
        assert_eq!(
            found(&["10.0.0.200/24"], true),
            "had address 10.0.0.200/24, had lost address 10.0.0.1/24"
        );
        // Where another network may have the same addresses, the device has none.
        let bare = GatewaySpec { address: None, ..spec.clone() };
        assert!(device_differences(&device(&[]), &bare, false).is_empty());
    }
}
