//! Checks that subnets of networks do not overlap the routes of hosts, and have no address by which
//! hosts reach each other.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::{Driver, Invalid, Network, Versioned, View, validate::overlap};
use crate::store::Revision;

/// Least prefix length of a route that leads to a network. A shorter one (`0.0.0.0/0`, or the two
/// halves `0.0.0.0/1` and `128.0.0.0/1` of a VPN) leads to everything that has no other route: a
/// network may have a subnet within it.
const NETWORK: u8 = 8;

/// A route of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Destination.
    pub destination: IpNetwork,
    /// Name of the interface; of the first, if the route has several.
    pub device: String,
    /// Next hops. Empty if the destination is on link, or the route is not in the main table.
    pub next_hops: Vec<IpAddr>,
}

impl HostRoute {
    /// Whether a network must not use addresses of the destination.
    pub fn is_taken(&self) -> bool {
        self.destination.prefix() >= NETWORK
    }

    /// The first next hop that is in a subnet. A host with the network's route would reach the
    /// network instead of it. No host has a route to an IPv6 subnet of a network.
    pub fn hop_in(&self, subnet: IpNetwork) -> Option<IpAddr> {
        hop_in(&self.next_hops, subnet)
    }
}

fn hop_in(hops: &[IpAddr], subnet: IpNetwork) -> Option<IpAddr> {
    hops.iter().copied().find(|hop| hop.is_ipv4() && subnet.contains(*hop))
}

/// Whether the gateway device of a network would take all of a route from a host that has a route of
/// its own to `destination`: the destination is the subnet, or a part of it with the device's
/// address. `gateway` is this address with the prefix length of the subnet. A route to another part
/// of the subnet does not count: the kernel prefers it to that of the device. A route to more than
/// the subnet does not count either: a network in use goes on if, for example, a VPN brings such a
/// route.
fn excludes_gateway(destination: IpNetwork, gateway: IpNetwork) -> bool {
    destination.prefix() >= gateway.prefix().max(NETWORK)
        && overlap(destination, gateway)
        && (destination.prefix() == gateway.prefix() || destination.contains(gateway.ip()))
}

/// Whether a route of the host (`destination`, `next_hops`) keeps the gateway device of a network
/// from having its own route. `gateway` is the address of the device with the prefix length of the
/// subnet. `has_route`: the device has its route already.
///
/// A route to the whole subnet, or to a part of it with the address of the device, does in any
/// case. A route to another part, or through a next hop in the subnet, does only if the device has
/// no route yet. A route that is there stays: the kernel prefers the narrower one, and a route that
/// is there keeps the interface of its next hop.
pub fn bars_gateway(
    (destination, next_hops): (IpNetwork, &[IpAddr]),
    gateway: IpNetwork,
    has_route: bool,
) -> bool {
    let is_part = destination.prefix() >= gateway.prefix() && overlap(destination, gateway);
    let is_new = !has_route && (is_part || hop_in(next_hops, gateway).is_some());
    excludes_gateway(destination, gateway) || is_new
}

/// The first route of a host to an address of one of a network's subnets, and that subnet.
pub fn routed<'a>(
    subnets: &[IpNetwork],
    routes: impl IntoIterator<Item = &'a HostRoute>,
) -> Option<(IpNetwork, &'a HostRoute)> {
    let taken = routes.into_iter().filter(|route| route.is_taken());
    let mut clashes = taken.filter_map(|route| {
        let subnet = subnets.iter().find(|subnet| overlap(**subnet, route.destination))?;
        Some((*subnet, route))
    });
    clashes.next()
}

/// Checks that a host has no route to any address of the subnets of a new network. A route to the
/// whole or a part of one of the networks `others` does not count: it is the route of that network.
///
/// # Errors
///
/// The host has a route to some of the addresses.
pub fn not_routed<'a>(
    new: &[IpNetwork],
    routes: &[HostRoute],
    others: impl IntoIterator<Item = &'a Network>,
) -> Result<(), Invalid> {
    let within = |route: IpNetwork, other: IpNetwork| {
        other.prefix() <= route.prefix() && overlap(other, route)
    };
    let others: Vec<_> = others.into_iter().flat_map(|other| &other.subnets).collect();
    let own =
        |route: &HostRoute| others.iter().any(|other| within(route.destination, other.subnet));
    match routed(new, routes.iter().filter(|route| !own(route))) {
        None => hops_apart(new, routes),
        Some((subnet, HostRoute { destination, device, .. })) => Err(Invalid(format!(
            "subnet {subnet} overlaps {destination}, to which this host has a route by {device}: choose another, or remove that route"
        ))),
    }
}

/// Checks that no next hop of a host has an address of the subnets of a new network.
fn hops_apart(new: &[IpNetwork], routes: &[HostRoute]) -> Result<(), Invalid> {
    let within = routes.iter().find_map(|route| {
        new.iter().find_map(|subnet| Some((*subnet, route.hop_in(*subnet)?, route)))
    });
    match within {
        None => Ok(()),
        Some((subnet, hop, route)) => Err(Invalid(format!(
            "subnet {subnet} has {hop}, the next hop of the route of this host to {} by {}: choose another",
            route.destination, route.device
        ))),
    }
}

/// A VTEP in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Address.
    pub ip: Ipv4Addr,
    /// Whose it is, as the end of a sentence.
    pub whose: String,
    /// When its record was last written.
    pub revision: Revision,
}

/// The VTEPs whose addresses are in a subnet. A host whose route to a network of this subnet leads
/// to its gateway device does not reach them.
pub fn vteps_in(view: &View, subnet: IpNetwork) -> impl Iterator<Item = Vtep> {
    let is_in = move |ip: Ipv4Addr| subnet.contains(IpAddr::V4(ip));
    let nodes = view.nodes.values().filter(move |node| is_in(node.vtep)).map(|node| Vtep {
        ip: node.vtep,
        whose: format!("the VTEP address of node '{}'", node.name),
        revision: node.revision,
    });
    let foreign = view.vteps.values().flat_map(|vteps| vteps.values());
    let foreign = foreign.filter(move |vtep| is_in(vtep.ip)).map(|vtep| Vtep {
        ip: vtep.ip,
        whose: format!("a VTEP of network '{}'", vtep.network),
        revision: vtep.revision,
    });
    nodes.chain(foreign)
}

/// The overlay networks that have the address of a VTEP in a subnet for which hosts have a route.
/// Hosts with containers in such a network may not reach the VTEP.
pub fn networks_with(view: &View, vtep: Ipv4Addr) -> impl Iterator<Item = &Versioned<Network>> {
    view.networks.values().filter(move |network| has_vtep(network, vtep))
}

/// Whether [`networks_with`] has a network.
pub fn has_vtep(network: &Network, vtep: Ipv4Addr) -> bool {
    let mut subnets = network.subnets.iter();
    network.driver == Driver::Overlay
        && !network.may_overlap()
        && subnets.any(|subnet| subnet.subnet.contains(vtep.into()))
}

/// Checks that no host needs an address of the subnets of a new network to reach another host or the
/// store, whose addresses are `store`.
///
/// # Errors
///
/// A VTEP or the store has an address of one of the subnets.
pub fn not_needed(view: &View, new: &[IpNetwork], store: &[IpAddr]) -> Result<(), Invalid> {
    let refuse = |subnet: &IpNetwork, ip: IpAddr, whose: &str| {
        Err(Invalid(format!(
            "subnet {subnet} has {ip}, {whose}, which hosts with a container in the network would not reach: choose another"
        )))
    };
    for subnet in new {
        if let Some(Vtep { ip, whose, .. }) = vteps_in(view, *subnet).next() {
            return refuse(subnet, ip.into(), &whose);
        }
        if let Some(ip) = store.iter().find(|ip| subnet.contains(**ip)) {
            return refuse(subnet, *ip, "an address of the store");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::network;

    fn route(to: &str) -> HostRoute {
        let destination = to.parse().expect("network");
        HostRoute { destination, device: "lan0".to_owned(), next_hops: Vec::new() }
    }

    #[test]
    fn a_route_to_a_part_of_a_subnet_is_named_with_its_device() {
        let subnet = ["10.1.0.0/16".parse().expect("subnet")];
        for to in ["10.1.2.0/24", "10.1.0.0/16", "10.0.0.0/8", "10.1.255.255/32"] {
            let line = not_routed(&subnet, &[route(to)], []).expect_err(to).0;
            assert!(
                line.contains(&format!("overlaps {to}, to which this host has a route by lan0"))
            );
        }
        let free = ["0.0.0.0/0", "0.0.0.0/1", "8.0.0.0/7", "10.2.0.0/16", "::/0", "fd00::/8"];
        not_routed(&subnet, &free.map(route), []).expect("free");
    }

    #[test]
    fn a_gateway_device_takes_nothing_from_the_host() {
        let gateway: IpNetwork = "10.9.0.1/24".parse().expect("address");
        let excludes = |to: &str| excludes_gateway(to.parse().expect("network"), gateway);
        for to in ["10.9.0.0/24", "10.9.0.0/25", "10.9.0.1/32"] {
            assert!(excludes(to), "{to}");
        }
        let others = ["10.9.0.128/25", "10.9.0.7/32", "10.9.1.0/24", "0.0.0.0/1", "0.0.0.0/0"];
        for to in others.into_iter().chain(["10.9.0.0/16", "10.0.0.0/8", "::/0", "fd00::/8"]) {
            assert!(!excludes(to), "{to}");
        }
    }

    #[test]
    fn a_gateway_device_gets_no_route_that_covers_one_of_the_host() {
        let gateway: IpNetwork = "10.9.0.1/24".parse().expect("address");
        let bars = |to: &str, hop: &str, has_route| {
            let hops: Vec<IpAddr> = hop.parse::<IpAddr>().into_iter().collect();
            bars_gateway((to.parse().expect("network"), hops.as_slice()), gateway, has_route)
        };
        for to in ["10.9.0.0/24", "10.9.0.0/25", "10.9.0.1/32"] {
            assert!(bars(to, "", false) && bars(to, "", true), "{to}");
        }
        // The route that is there already stays beside these. The kernel prefers them.
        for to in ["10.9.0.128/25", "10.9.0.7/32"] {
            assert!(bars(to, "", false) && !bars(to, "", true), "{to}");
        }
        // Wider routes, such as those of a VPN, and routes elsewhere.
        for to in ["10.9.0.0/16", "10.0.0.0/8", "0.0.0.0/1", "0.0.0.0/0", "10.9.1.0/24", "::/0"] {
            for hop in ["", "192.0.2.1", "10.9.1.1", "fe80::1"] {
                assert!(!bars(to, hop, false) && !bars(to, hop, true), "{to} via {hop}");
            }
            // The next hop, which may be one that only the route's `onlink` makes on link. A route
            // that is there takes nothing from it.
            assert!(bars(to, "10.9.0.77", false) && !bars(to, "10.9.0.77", true), "{to}");
        }
        // Of several next hops, one.
        let hops: [IpAddr; 2] = [[192, 0, 2, 1].into(), [10, 9, 0, 77].into()];
        let default: IpNetwork = "0.0.0.0/0".parse().expect("network");
        assert!(bars_gateway((default, hops.as_slice()), gateway, false));
    }

    #[test]
    fn a_new_network_does_not_have_the_next_hop_of_a_route() {
        let subnet = ["10.1.0.0/16".parse().expect("subnet")];
        let by = |hop: &str| HostRoute {
            next_hops: hop.parse::<IpAddr>().into_iter().collect(),
            ..route("0.0.0.0/0")
        };
        let line = not_routed(&subnet, &[by("10.1.2.3")], []).expect_err("the next hop").0;
        let part = "has 10.1.2.3, the next hop of the route of this host to 0.0.0.0/0 by lan0";
        assert!(line.contains(part), "{line}");
        not_routed(&subnet, &[by("10.2.0.1"), by("fe80::1"), by("")], []).expect("elsewhere");
        // No host has a route to an IPv6 subnet of a network.
        let ipv6 = ["fd00:1::/64".parse().expect("subnet")];
        not_routed(&ipv6, &[by("fd00:1::1")], []).expect("an IPv6 next hop");
    }

    #[test]
    fn the_route_of_another_network_does_not_count() {
        let subnet = ["10.1.0.0/16".parse().expect("subnet")];
        let (same, part) =
            (network("a", 256, &["10.1.0.0/16"]), network("b", 257, &["10.1.2.0/24"]));
        not_routed(&subnet, &[route("10.1.0.0/16")], [&same]).expect("its own");
        not_routed(&subnet, &[route("10.1.0.0/16")], [&part]).expect_err("wider than the network");
    }
}
