//! Gateway devices and the loopback device.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::{Engine, queue::Work};
use crate::{
    agent::platform::PlugError,
    api::types::ErrorKind,
    model::{Name, Network, Versioned, View, validate, vteps_in},
    netlink::subnet_of,
    reconcile::gateway_device,
    sandbox::GatewaySpec,
};

/// The outcome of a gateway device that gives way, as the end of a sentence.
const APART: &str = "the host and the containers of the network here do not reach each other until the network or the host has other addresses";

/// A subnet that has addresses which the host itself needs.
#[derive(Debug, PartialEq, Eq)]
struct Conflict {
    /// What the subnet has, as the begin of a sentence.
    what: String,
    /// The gateway device has no address then, and the host no route to the subnet.
    gives_way: bool,
}

impl Conflict {
    /// The problem of the network's gateway device, on one line.
    fn line(&self, network: &Name) -> String {
        let what = &self.what;
        match self.gives_way {
            true => format!("network '{network}': {what}: {APART}"),
            false => format!(
                "network '{network}': {what}, which this host does not reach until one of the two is renumbered"
            ),
        }
    }
}

/// Addresses by which this host reaches others.
#[derive(Clone, Copy, Debug)]
struct Ways<'a> {
    /// The VTEP address of this host, which is no way to another.
    own: Ipv4Addr,
    /// Addresses of the store in `--store`.
    given: &'a [IpAddr],
    /// Addresses of the store that name servers have told.
    named: &'a [IpAddr],
}

/// Looks for an address in the subnet of a network by which this host reaches the store or another
/// host. `is_routed`: the host has the route to the subnet already.
///
/// A host does not add a route that covers such an address. A route that it has stays if the VTEP
/// is of a later record than the network, or if a name server has told the address: neither cuts a
/// host off from its containers.
fn needed(
    view: &View,
    network: &Versioned<Network>,
    subnet: IpNetwork,
    ways: Ways<'_>,
    is_routed: bool,
) -> Option<Conflict> {
    let conflict = |ip: IpAddr, whose: &str, gives_way| Conflict {
        what: format!("subnet {subnet} has {ip}, {whose}"),
        gives_way,
    };
    let of_store = |addresses: &[IpAddr], gives_way| {
        let ip = addresses.iter().find(|ip| subnet.contains(**ip))?;
        Some(conflict(*ip, "an address of the store", gives_way))
    };
    let others = vteps_in(view, subnet).filter(|vtep| vtep.ip != ways.own);
    let first = others.min_by_key(|vtep| vtep.revision);
    let vtep = first.map(|first| {
        let gives_way = !is_routed || first.revision < network.revision;
        conflict(first.ip.into(), &first.whose, gives_way)
    });
    let found = [vtep, of_store(ways.named, !is_routed), of_store(ways.given, true)];
    found.into_iter().flatten().max_by_key(|conflict| conflict.gives_way)
}

impl Engine {
    /// Makes the gateway device of a network once an endpoint of the network is plugged in on this
    /// host. Before that the device has no user, and making it takes as long as making a device
    /// pair. While the device is missing, only traffic out of the network fails. Returns the
    /// device, which is to be opened once the maps have it.
    pub(super) async fn make_gateway(&mut self, name: &Name) -> Option<GatewaySpec> {
        let wanted = {
            let view = self.shared.view();
            let own = &self.shared.node;
            let here = view.is_in(&own.name, name);
            let network = view.usable_network(name).ok().filter(|_| here);
            network.and_then(|network| gateway_device(network, own))
        };
        let Some(wanted) = wanted else {
            self.forget_conflicts(name, None);
            return None;
        };
        let vni = wanted.vni;
        if self.vnis.get(name).is_some_and(|former| *former != vni) {
            self.forget_conflicts(name, Some(vni));
        }
        match wanted.address {
            Some(address) => drop(self.subnets.insert(vni, (name.clone(), address))),
            None => drop(self.subnets.remove(&vni)),
        }
        let there = self.gateways.contains_key(&vni);
        if !there && !self.has_port(name) {
            // No container here can miss the device.
            self.shared.shown.problems.set(&format!("subnet/{vni}"), None);
            return None;
        }
        let wanted = self.without_conflict(name, wanted);
        if there && self.gateway_specs.get(&vni) == Some(&wanted) {
            return None;
        }
        match self.shared.platform.plug_gateway(&wanted).await {
            Ok(ifindex) => {
                if let Some(former) = self.gateways.insert(vni, ifindex).filter(|f| *f != ifindex) {
                    self.detach_gateway(former);
                }
                if self.routed.get(&vni).is_some_and(|routed| *routed != ifindex) {
                    // The specification is for the device that had the route, which is gone.
                    self.routed.remove(&vni);
                    self.gateway_specs.remove(&vni);
                    self.dirty.insert(name.clone());
                    return None;
                }
                Some(wanted)
            }
            Err(error) => {
                self.gateways.remove(&vni);
                self.gateway_problem(name, vni, Some(&error));
                None
            }
        }
    }

    /// Leaves out the address of a gateway device if its subnet overlaps a subnet to which an
    /// interface of the host is connected, or has an address by which the host reaches others: the
    /// host keeps its own route.
    fn without_conflict(&self, name: &Name, wanted: GatewaySpec) -> GatewaySpec {
        let vni = wanted.vni;
        let conflict = wanted.address.map(subnet_of).and_then(|subnet| {
            if let Some(own) = self.connected.iter().find(|own| validate::overlap(**own, subnet)) {
                let what = format!(
                    "subnet {subnet} overlaps {own}, to which an interface of this host is connected"
                );
                return Some(Conflict { what, gives_way: true });
            }
            self.needed_in(name, vni, subnet)
        });
        let gives_way = conflict.as_ref().is_some_and(|conflict| conflict.gives_way);
        let line = conflict.map(|conflict| conflict.line(name));
        self.shared.shown.problems.set(&format!("subnet/{vni}"), line);
        GatewaySpec { address: wanted.address.filter(|_| !gives_way), ..wanted }
    }

    /// Forgets the conflicts of a network that has no endpoint here any more, or another VNI: those
    /// of the VNIs that it had, except `kept`.
    fn forget_conflicts(&self, name: &Name, kept: Option<u32>) {
        let Some(former) = self.vnis.get(name) else { return };
        // Its maps may not be written for the VNI that it has had last.
        let noted = self.subnets.iter().filter(|(_, (network, _))| network == name);
        for vni in noted.map(|(vni, _)| vni).chain([former]) {
            if Some(*vni) != kept && !self.is_of_another(name, *vni) {
                self.shared.shown.problems.set(&format!("subnet/{vni}"), None);
            }
        }
    }

    /// Whether another network than `name` has the VNI by now.
    pub(super) fn is_of_another(&self, name: &Name, vni: u32) -> bool {
        let is_used = self.vnis.iter().any(|(other, used)| *used == vni && other != name);
        is_used || self.subnets.get(&vni).is_some_and(|(other, _)| other != name)
    }

    /// As [`needed`], for the subnet of a network.
    fn needed_in(&self, name: &Name, vni: u32, subnet: IpNetwork) -> Option<Conflict> {
        let (given, named) =
            (self.shared.given_store_addresses(), self.shared.store.named_addresses());
        let ways = Ways { own: self.shared.node.vtep, given: &given, named: &named };
        let view = self.shared.view();
        let network = view.networks.get(name)?;
        needed(&view, network, subnet, ways, self.routed.contains_key(&vni))
    }

    /// Attaches the program to a gateway device and brings it up.
    pub(super) async fn open_gateway(&mut self, name: &Name, gateway: GatewaySpec) {
        let vni = gateway.vni;
        let Some(ifindex) = self.gateways.get(&vni).copied() else { return };
        let opened = self.shared.platform.open_gateway(&gateway, ifindex).await;
        self.gateway_problem(name, vni, opened.as_ref().err());
        match opened {
            Ok(()) => {
                if let Some(address) = gateway.address {
                    self.routed.insert(vni, ifindex);
                    self.tell_public(name, vni, subnet_of(address));
                } else {
                    self.routed.remove(&vni);
                }
                self.gateway_specs.insert(vni, gateway);
                self.note_gateway(vni);
            }
            // The device has given way: it has neither its address nor the route.
            Err(PlugError::Refused(ErrorKind::Conflict, _)) => drop(self.routed.remove(&vni)),
            Err(_) => {}
        }
    }

    /// Logs once that the host has a route to a public subnet by the gateway device of a network.
    fn tell_public(&mut self, name: &Name, vni: u32, subnet: IpNetwork) {
        if validate::is_public(subnet) && self.told_public.insert(vni) {
            tracing::warn!(
                "network '{name}': subnet {subnet} is public address space: this host cannot reach those Internet addresses"
            );
        }
    }

    /// Opens the gateway devices that could not be opened. Their networks are not computed again,
    /// because the maps have these devices already. Must be called once the subnets of the host's
    /// interfaces are known.
    pub(super) async fn reopen_gateways(&mut self) {
        let is_shut = |(name, vni): &(&Name, &u32)| {
            self.gateways.contains_key(*vni)
                && !self.gateway_specs.contains_key(*vni)
                && !self.dirty.contains(*name)
        };
        let shut: Vec<(Name, u32)> =
            self.vnis.iter().filter(is_shut).map(|(name, vni)| (name.clone(), *vni)).collect();
        for (name, vni) in shut {
            let former = self.gateways.get(&vni).copied();
            let gateway = self.make_gateway(&name).await;
            if self.gateways.get(&vni).copied() != former {
                // The maps have the former device.
                self.dirty.insert(name);
            } else if let Some(gateway) = gateway {
                self.open_gateway(&name, gateway).await;
            }
        }
    }

    /// Whether nothing is to be done for the gateway device of a network until the network or the
    /// device changes.
    pub(super) fn gateway_stands(&self, name: &Name) -> bool {
        let view = self.shared.view();
        let Ok(network) = view.usable_network(name) else { return false };
        gateway_device(network, &self.shared.node).is_none_or(|GatewaySpec { vni, .. }| {
            self.gateways.contains_key(&vni) && self.gateway_specs.contains_key(&vni)
        })
    }

    /// Whether an endpoint of a network is plugged in here.
    fn has_port(&self, network: &Name) -> bool {
        self.local.iter().any(|(id, of)| of == network && self.ifindexes.contains_key(id))
    }

    fn gateway_problem(&self, name: &Name, vni: u32, error: Option<&PlugError>) {
        let line = error
            .map(|error| format!("network '{name}': gateway: {}; trying again", error.message()));
        self.shared.shown.problems.set(&format!("gateway/{vni}"), line);
    }

    /// Removes the gateway devices of networks without an endpoint here.
    pub(super) async fn remove_gateways(&mut self) {
        let used = |vni: &u32| self.vnis.values().any(|used| used == vni);
        let unused: Vec<(u32, u32)> = self
            .gateways
            .iter()
            .filter(|(vni, _)| !used(vni) && self.reconciler.network(**vni).is_none())
            .map(|(vni, ifindex)| (*vni, *ifindex))
            .collect();
        for (vni, ifindex) in unused {
            let removed = self.shared.platform.unplug_gateway(vni, ifindex).await;
            let line = match removed {
                Ok(()) => {
                    self.gateways.remove(&vni);
                    self.gateway_specs.remove(&vni);
                    self.routed.remove(&vni);
                    self.forget_gateway(vni);
                    None
                }
                Err(error) => Some(format!("gateway of VNI {vni}: {}", error.message())),
            };
            self.shared.shown.problems.set(&format!("gateway/{vni}"), line);
        }
    }

    /// Notes that another program has removed a gateway device, or has moved it to another network
    /// namespace.
    pub(super) fn gateway_gone(&mut self, ifindex: u32) {
        self.routed.retain(|_, device| *device != ifindex);
        let gone = self.gateways.iter().find(|(_, device)| **device == ifindex);
        let Some(vni) = gone.map(|(vni, _)| *vni) else { return };
        self.gateways.remove(&vni);
        self.gateway_specs.remove(&vni);
        self.detach_gateway(ifindex);
        let networks = self.vnis.iter().filter(|(_, used)| **used == vni);
        self.dirty.extend(networks.map(|(name, _)| name.clone()));
    }

    /// Detaches the program from a device that was a gateway device. In another network namespace it
    /// may live on. An attachment that remains is removed at the next full comparison.
    fn detach_gateway(&self, ifindex: u32) {
        if let Err(error) = self.shared.platform.detach_gateway(ifindex) {
            self.shared.shown.problems.set("attachments", Some(format!("{error}; trying again")));
        }
    }

    /// Attaches the program to the loopback device while a port is published.
    pub(super) async fn take_loopback(&mut self) {
        let publishes = self.reconciler.publishes();
        if self.loopback == Some(publishes) {
            return;
        }
        let taken = self.shared.platform.take_loopback(publishes).await;
        self.loopback = taken.is_ok().then_some(publishes);
        let line = taken.err().map(|error| format!("loopback device: {}", error.message()));
        self.shared.shown.problems.set("loopback", line);
        self.keep_client_links().await;
    }

    /// Attaches the program to the client links while a port is published.
    pub(super) async fn keep_client_links(&self) {
        let publishes = self.reconciler.publishes();
        let lines = self.shared.platform.keep_client_links(publishes).await;
        self.shared.shown.problems.set_list("client/", lines);
    }

    /// Queues the other endpoints of a container that has left a network: one of them gets the
    /// default route.
    pub(super) fn replug_siblings(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        let view = self.shared.view();
        let siblings = view.endpoints_of(&self.shared.node.name, &container);
        let plugged = siblings.filter(|ep| self.containers.contains_key(&ep.id));
        self.work.extend(plugged.map(|ep| Work::Plug(ep.record.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Key,
        testing::{Cluster, name, network, node},
    };

    #[test]
    fn a_network_does_not_take_the_way_to_others() {
        let mut cluster = Cluster::default();
        let red = network("red", 256, &["192.0.2.0/24"]);
        let (before, after) = (node("host2", 2), node("host3", 3));
        let own = node("host1", 1);
        cluster.put(Key::node(&own.name), &own);
        cluster.put(Key::node(&before.name), &before);
        cluster.network(&red);
        cluster.put(Key::node(&after.name), &after);
        let look = |cluster: &Cluster, store: &[&str], is_routed: bool| {
            let given: Vec<IpAddr> = store.iter().map(|ip| ip.parse().unwrap()).collect();
            let ways = Ways { own: own.vtep, given: &given, named: &[] };
            let network = &cluster.view.networks[&red.name];
            let subnet = red.subnets[0].subnet;
            let found = needed(&cluster.view, network, subnet, ways, is_routed);
            found.map(|conflict| (conflict.gives_way, conflict.line(&red.name)))
        };
        for is_routed in [false, true] {
            let (gives_way, line) = look(&cluster, &[], is_routed).unwrap();
            let begin = "network 'red': subnet 192.0.2.0/24 has 192.0.2.2, the VTEP address of node 'host2': the host and";
            assert!(gives_way && line.starts_with(begin), "{line}");
            let (gives_way, line) = look(&cluster, &["10.0.0.1", "192.0.2.99"], is_routed).unwrap();
            assert!(gives_way && line.contains("192.0.2.99, an address of the store"), "{line}");
        }
        // A node that comes later does not cut the host off from its containers.
        cluster.view.nodes.remove(&name("host2"));
        let (gives_way, line) = look(&cluster, &["10.0.0.1"], true).unwrap();
        let end = "'host3', which this host does not reach until one of the two is renumbered";
        assert!(!gives_way && line.ends_with(end), "{line}");
        // A route that is not there is not added.
        let (gives_way, line) = look(&cluster, &[], false).unwrap();
        assert!(
            gives_way && line.contains("192.0.2.3, the VTEP address of node 'host3': the host")
        );
        cluster.view.nodes.remove(&name("host3"));
        assert_eq!(look(&cluster, &[], false), None);
    }

    /// A hijacked or wrong answer does not cut a host off from its containers. An address in
    /// `--store` does, because the store needs it.
    #[test]
    fn an_address_that_a_name_server_tells_takes_no_route_away() {
        let mut cluster = Cluster::default();
        let red = network("red", 256, &["10.9.0.0/24"]);
        cluster.network(&red);
        let address: [IpAddr; 1] = [[10, 9, 0, 50].into()];
        let gives_way = |given: &[IpAddr], named: &[IpAddr], is_routed| {
            let ways = Ways { own: Ipv4Addr::new(192, 0, 2, 1), given, named };
            let network = &cluster.view.networks[&red.name];
            let subnet = red.subnets[0].subnet;
            let found = needed(&cluster.view, network, subnet, ways, is_routed);
            found.map(|conflict| conflict.gives_way)
        };
        assert_eq!(gives_way(&[], &address, false), Some(true));
        assert_eq!(gives_way(&[], &address, true), Some(false));
        assert_eq!(gives_way(&address, &[], true), Some(true));
        assert_eq!(gives_way(&address, &address, true), Some(true));
        assert_eq!(gives_way(&[], &[], false), None);
    }
}
