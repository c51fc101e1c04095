//! Routes of the host into the subnets of networks that are in use here.
//!
//! Where a route of the host and the gateway device exclude each other, the device gives way
//! (`sandbox::open_gateway`). A device without its route gets it only if the host has no route to
//! any part of the subnet, and no next hop in it. If one of two routes is narrower, the kernel
//! prefers it, and `culvert status` names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::Engine;
use crate::{
    agent::platform::PlugError,
    model::{HostRoute, Name, View, bars_gateway, has_vtep, validate},
    netlink::subnet_of,
    sandbox::GatewaySpec,
};

/// Start of the keys of the problems; the VNI follows.
const PROBLEMS: &str = "route/";

impl Engine {
    /// Notes that a route of the host to `destination` through `hops` by the interface `ifindex`
    /// was changed.
    pub(super) fn route_changed(&mut self, destination: IpNetwork, hops: &[IpAddr], ifindex: u32) {
        if destination.prefix() == 0 {
            self.choice.changed();
        } else {
            self.hasten(|subnet| validate::overlap(subnet, destination));
        }
        let is_own = self.gateways.values().any(|gateway| *gateway == ifindex);
        let concerns = |gateway: IpNetwork| {
            validate::overlap(gateway, destination) || hops.iter().any(|hop| gateway.contains(*hop))
        };
        let mut subnets = self.subnets.values();
        self.routes_stale |= !is_own && subnets.any(|(_, gateway)| concerns(*gateway));
    }

    /// Marks the networks with addresses that the store has, or had, by the answers of name
    /// servers.
    pub(super) fn store_moved(&mut self) {
        let now: BTreeSet<IpAddr> = self.shared.store.named_addresses().into_iter().collect();
        let changed: Vec<IpAddr> = now.symmetric_difference(&self.store_names).copied().collect();
        let concerned = self.networks_at(&changed);
        self.dirty.extend(concerned);
        self.store_names = now;
    }

    /// The networks in use here that have one of these addresses in the subnet of their gateway
    /// device.
    pub(super) fn networks_at(&self, addresses: &[IpAddr]) -> Vec<Name> {
        let has_one = |gateway: &IpNetwork| addresses.iter().any(|ip| gateway.contains(*ip));
        let concerned = self.subnets.values().filter(|(_, gateway)| has_one(gateway));
        concerned.map(|(network, _)| network.clone()).collect()
    }

    /// Sets the problem that a network has the VTEP address of this host. A new host with such an
    /// address is not registered, but this one may have been registered by an earlier version.
    pub(super) fn check_own_vtep(&self, view: &View, name: &Name) {
        let vtep = self.shared.node.vtep;
        let network = view.networks.get(name).filter(|network| has_vtep(network, vtep));
        let line = network.map(|_| {
            format!(
                "network '{name}' has {vtep}, the VTEP address of this host: hosts with containers in the network may not reach this host until the network or the host has another address"
            )
        });
        self.shared.shown.problems.set(&format!("own-vtep/{name}"), line);
    }

    /// Notes that routes may be gone of which the kernel says nothing, because an interface of the
    /// host is down or gone. Most such interfaces are those of containers, and have no routes: only
    /// if a route was in the way of a network, one may be gone.
    pub(super) fn interface_changed(&mut self) {
        self.hasten(|_| true);
        let (given_way, told) = ("gateway/", PROBLEMS);
        let problems = &self.shared.shown.problems;
        if problems.has_below(given_way) || problems.has_below(told) {
            self.routes_stale = true;
            self.gateways_stale = true;
        }
    }

    /// Compares the host's routes with the subnets of the networks, if they may have changed. A
    /// gateway device that excludes a route is opened again, which makes it give way.
    pub(super) async fn check_routes(&mut self) -> Result<(), PlugError> {
        if !std::mem::take(&mut self.routes_stale) {
            return Ok(());
        }
        self.subnets.retain(|vni, _| self.gateways.contains_key(vni));
        let subnets: Vec<IpNetwork> =
            self.subnets.values().map(|(_, gateway)| subnet_of(*gateway)).collect();
        let routes = if subnets.is_empty() {
            Vec::new()
        } else {
            let read = self.shared.platform.routes_into(&subnets).await;
            read.inspect_err(|_| self.routes_stale = true)?
        };
        let mut lines = BTreeMap::new();
        for (vni, (name, gateway)) in &self.subnets {
            // A device without the address has given way already.
            let has_address = |spec: &GatewaySpec| spec.address.is_some();
            if !self.gateway_specs.get(vni).is_some_and(has_address) {
                continue;
            }
            let bars = |route: &HostRoute| {
                bars_gateway((route.destination, route.next_hops.as_slice()), *gateway, true)
            };
            if routes.iter().any(bars) {
                self.gateway_specs.remove(vni);
                self.dirty.insert(name.clone());
            } else if let Some(line) =
                part(name, *gateway, &routes).or_else(|| hop(name, *gateway, &routes))
            {
                lines.insert(format!("{PROBLEMS}{vni}"), line);
            }
        }
        self.shared.shown.problems.set_below(PROBLEMS, lines);
        Ok(())
    }

    /// Forgets the subnet of a network that has no endpoint here any more, and what was told of it.
    pub(super) fn forget_subnet(&mut self, vni: u32) {
        self.subnets.remove(&vni);
        self.told_public.remove(&vni);
        let problems = &self.shared.shown.problems;
        problems.set(&format!("subnet/{vni}"), None);
        problems.set(&format!("{PROBLEMS}{vni}"), None);
        // `remove_gateways` sets the problem of a device that still exists.
        if !self.gateways.contains_key(&vni) {
            problems.set(&format!("gateway/{vni}"), None);
            self.forget_gateway(vni);
        }
    }
}

/// The problem, on one line, that routes of the host lead to parts of a network's subnet, or to more
/// than the subnet. `None`: there are no such routes.
fn part(name: &Name, gateway: IpNetwork, routes: &[HostRoute]) -> Option<String> {
    let subnet = subnet_of(gateway);
    // A wide route is in the list because of its next hop; it is no part.
    let is_part =
        |route: &&HostRoute| route.is_taken() && validate::overlap(route.destination, subnet);
    let mut parts = routes.iter().filter(is_part);
    let HostRoute { destination, device, .. } = parts.next()?;
    let further = match parts.count() {
        0 => String::new(),
        number => format!(" ({number} more)"),
    };
    if destination.prefix() < subnet.prefix() {
        return Some(format!(
            "network '{name}': subnet {subnet} is a part of {destination}, to which this host has a route by {device}{further}: the host reaches no other machine in that part; remove the route, or renumber one of the two"
        ));
    }
    Some(format!(
        "network '{name}': this host has a route to {destination} by {device}{further}, which is a part of subnet {subnet}: the host does not reach containers there; remove the route, or renumber one of the two"
    ))
}

/// The problem, on one line, that routes of the host have a next hop in a network's subnet. `None`:
/// there are no such routes.
fn hop(name: &Name, gateway: IpNetwork, routes: &[HostRoute]) -> Option<String> {
    let subnet = subnet_of(gateway);
    let (hop, HostRoute { destination, device, .. }) =
        routes.iter().find_map(|route| Some((route.hop_in(subnet)?, route)))?;
    Some(format!(
        "network '{name}': subnet {subnet} has {hop}, the next hop of the route of this host to {destination} by {device}: the host does not reach this router itself; renumber one of the two"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_in_a_subnet_are_named_with_their_route() {
        let line = |next_hop: [u8; 4]| {
            let routes = [HostRoute {
                destination: "0.0.0.0/0".parse().unwrap(),
                device: "lan0".to_owned(),
                next_hops: vec![next_hop.into()],
            }];
            hop(&"net".parse().unwrap(), "10.9.0.1/24".parse().unwrap(), &routes)
        };
        assert_eq!(line([10, 9, 1, 77]), None);
        let told = line([10, 9, 0, 77]).unwrap();
        let words = "network 'net': subnet 10.9.0.0/24 has 10.9.0.77, the next hop of the route of this host to 0.0.0.0/0 by lan0:";
        assert!(told.starts_with(words), "{told}");
    }

    #[test]
    fn routes_to_parts_of_a_subnet_are_named_with_their_device() {
        let route = |to: &str| HostRoute {
            destination: to.parse().unwrap(),
            device: "lan0".to_owned(),
            next_hops: Vec::new(),
        };
        let line = |routes: &[&str]| {
            let routes: Vec<HostRoute> = routes.iter().map(|&to| route(to)).collect();
            part(&"net".parse().unwrap(), "10.9.0.1/24".parse().unwrap(), &routes)
        };
        assert_eq!(line(&[]), None);
        assert_eq!(line(&["10.9.1.0/24"]), None);
        assert_eq!(line(&["0.0.0.0/0"]), None);
        let one = line(&["10.9.1.0/24", "10.9.0.128/25"]).unwrap();
        for words in ["network 'net'", "10.9.0.128/25 by lan0,", "part of subnet 10.9.0.0/24"] {
            assert!(one.contains(words), "{words}: {one}");
        }
        let three = line(&["10.9.0.128/25", "10.9.0.7/32", "10.9.0.9/32"]).unwrap();
        assert!(three.contains("by lan0 (2 more), which"), "{three}");
        let wide = line(&["10.0.0.0/8"]).unwrap();
        assert!(
            wide.contains("part of 10.0.0.0/8, to which this host has a route by lan0"),
            "{wide}"
        );
    }
}
