//! The gateway device of a network, which connects the host with the network's containers.
//!
//! It is a bridge without ports: a bridge stays up by itself, and every kernel has it. No packet
//! crosses the bridge. A frame from a container to the host is redirected to the ingress of the
//! device. A packet from the host to the network leaves through the device, where `from_host` takes
//! it. The device does no ARP; the program knows the MACs.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::{Result, SandboxError, sysctl};
use crate::{
    model::MacAddr,
    netlink::{Link, Netlink, NetlinkError, Route, subnet_of},
    netns::run_in,
};

/// Start of the alias that marks a gateway device; the VNI follows.
const ALIAS: &str = "culvert-gateway:";

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
        Some(route.destination) == self.subnet() && (source.is_none() || route.source == source)
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
/// after the device's program is attached.
///
/// # Errors
/// The host has a route of its own to the subnet, the interface does not exist, or the kernel
/// refuses.
pub async fn open_gateway(netlink: &Netlink, spec: &GatewaySpec) -> Result<()> {
    let name = gateway_ifname(spec.vni);
    if netlink.link(&name).await?.is_some_and(|link| !link.up) {
        netlink.set_up(&name).await?;
    }
    let present = netlink.addresses(&name).await?;
    for stale in present.iter().filter(|address| Some(**address) != spec.address) {
        netlink.delete_address(&name, *stale).await?;
    }
    if let Some(address) = spec.address
        && !present.contains(&address)
    {
        // The route that the kernel would add may not be the only one to the subnet.
        netlink.add_address_alone(&name, address).await?;
    }
    route_subnet(netlink, &name, spec).await
}

/// Makes the route of the subnet the only route by the gateway device.
async fn route_subnet(netlink: &Netlink, name: &str, spec: &GatewaySpec) -> Result<()> {
    let Some(link) = netlink.link(name).await? else { return Ok(()) };
    let subnet = spec.subnet();
    let routes = netlink.routes().await?;
    let mut settled = false;
    for route in routes.iter().filter(|route| route.is_main()) {
        if route.ifindex == link.index {
            if spec.has_route(route) {
                settled = true;
            } else {
                // The route is of an earlier agent, or leads to a former subnet.
                netlink.delete_link_route(link.index, route.destination).await?;
            }
        } else if Some(route.destination) == subnet {
            let device = netlink.link_at(route.ifindex).await?;
            return Err(SandboxError::RouteTaken {
                subnet: route.destination,
                destination: route.destination,
                device: device.map_or_else(|| format!("#{}", route.ifindex), |link| link.name),
            });
        }
    }
    if let Some(subnet) = subnet.filter(|_| !settled) {
        netlink.add_link_route(name, subnet, spec.source.map(IpAddr::V4)).await?;
    }
    Ok(())
}

/// What differs between a gateway device and `spec`, in words. Empty: nothing.
///
/// # Errors
/// The kernel does not answer.
pub async fn differences(netlink: &Netlink, spec: &GatewaySpec) -> Result<Vec<String>> {
    let name = gateway_ifname(spec.vni);
    let Some(link) = netlink.link(&name).await? else {
        return Ok(vec!["was removed".to_owned()]);
    };
    let mut found = link_differences(&link, spec);
    let mut note = |differs: bool, what: String| {
        if differs {
            found.push(what);
        }
    };
    let present = netlink.addresses(&name).await?;
    for foreign in present.iter().filter(|address| Some(**address) != spec.address) {
        note(true, format!("had address {foreign}"));
    }
    if let Some(address) = spec.address {
        note(!present.contains(&address), format!("had lost address {address}"));
        let routed = match netlink.route_to(address.network()).await {
            Ok(route) => route.ifindex == link.index,
            Err(NetlinkError::NoRoute(_)) => false,
            Err(error) => return Err(error.into()),
        };
        // The lookup may also find a longer route of the host.
        let lost = !routed
            && !netlink
                .routes()
                .await?
                .iter()
                .any(|route| route.ifindex == link.index && spec.has_route(route));
        note(lost, format!("had lost the route to {}/{}", address.network(), address.prefix()));
    }
    Ok(found)
}

/// As [`differences`], without addresses and routes.
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

/// Makes the loopback device accept packets for the host's own addresses whose skb has no route:
/// answers to the host's connections to its published ports arrive there. Other interfaces are not
/// affected: 127.0.0.0/8 stays unreachable from external hosts. Returns the settings that were
/// changed.
///
/// # Errors
/// The kernel refuses.
pub fn allow_loopback(netlink: &Netlink, allow: bool) -> Result<Vec<&'static str>> {
    let value = if allow { "1" } else { "0" };
    run_in(netlink.netns(), move || {
        let mut changed = Vec::new();
        for key in ["accept_local", "route_localnet"] {
            if sysctl::set("ipv4", "lo", key, value)? == Some(true) {
                changed.push(key);
            }
        }
        Ok(changed)
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
}
