//! Routes of the host into the subnets of networks that are in use here.
//!
//! Where a route of the host and the gateway device exclude each other, the device gives way
//! (`sandbox::open_gateway`), and a device without its route does not get it while the host has a
//! route to any part of the subnet. Where one of two routes leads to a part of the other's
//! destination, the kernel prefers it for that part, and the part is told.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::Engine;
use crate::{
    agent::platform::PlugError,
    model::{HostRoute, Name, bars_gateway, validate},
    netlink::subnet_of,
    sandbox::GatewaySpec,
};

/// Start of the keys of the problems; the VNI follows.
const PROBLEMS: &str = "route/";

impl Engine {
    /// Notes that a route of the host to `destination` by the interface `ifindex` was changed.
    pub(super) fn route_changed(&mut self, destination: IpNetwork, ifindex: u32) {
        if destination.prefix() == 0 {
            self.choice.changed();
        }
        self.hasten();
        let is_own = self.gateways.values().any(|gateway| *gateway == ifindex);
        let mut subnets = self.subnets.values();
        self.routes_stale |=
            !is_own && subnets.any(|(_, gateway)| validate::overlap(*gateway, destination));
    }

    /// Notes that routes may be gone of which the kernel says nothing, because an interface of the
    /// host is down or gone. Most such interfaces are those of containers, and have no routes: only
    /// if a route was in the way of a network, one may be gone.
    pub(super) fn interface_changed(&mut self) {
        self.hasten();
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
                bars_gateway((route.destination, route.next_hop), *gateway, true)
            };
            if routes.iter().any(bars) {
                self.gateway_specs.remove(vni);
                self.dirty.insert(name.clone());
            } else if let Some(line) = part(name, *gateway, &routes) {
                lines.insert(format!("{PROBLEMS}{vni}"), line);
            }
        }
        self.shared.shown.problems.set_below(PROBLEMS, lines);
        Ok(())
    }

    /// Forgets the subnet of a network that has no endpoint here any more, and what was told of it.
    pub(super) fn forget_subnet(&mut self, vni: u32) {
        self.subnets.remove(&vni);
        self.yielding.remove(&vni);
        let problems = &self.shared.shown.problems;
        problems.set(&format!("subnet/{vni}"), None);
        problems.set(&format!("{PROBLEMS}{vni}"), None);
        // The removal of a gateway device that is there tells its own problem.
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
    // A route that is too wide to count is there for its next hop in another subnet.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_to_parts_of_a_subnet_are_named_with_their_device() {
        let route = |to: &str| HostRoute {
            destination: to.parse().unwrap(),
            device: "lan0".to_owned(),
            next_hop: None,
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
