//! Client links: interfaces of the host that are neither uplinks nor Culvert's, such as `docker0`,
//! a second network card or a WireGuard device. Clients behind them can use published ports, too.

use std::{collections::BTreeSet, net::IpAddr, sync::PoisonError};

use super::Host;
use crate::{
    agent::platform::OtherLinks,
    netlink::{Framing, Link, NetlinkError},
    sandbox,
};

/// Interfaces with an IPv4 address that are neither uplinks nor Culvert's.
#[derive(Default)]
struct AddressedLinks {
    /// Interfaces that published ports can serve: index, name, and what packets begin with.
    servable: Vec<(u32, String, Framing)>,
    /// Names of the other interfaces. `run`, `ps` and `culvert doctor` report them.
    unserved: Vec<String>,
}

impl Host {
    /// Attaches `from_client` or `from_client_l3` to the client links if `publishes`, and detaches
    /// both from all other interfaces. Continues after an error. Returns the problems, a line each.
    pub(super) async fn serve_client_links(&self, publishes: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let found =
            if publishes { self.find_client_links().await } else { Ok(AddressedLinks::default()) };
        let found = match found {
            Ok(found) => found,
            // The attached programs stay attached.
            Err(error) => return vec![format!("client links: {error}")],
        };
        *self.unserved.lock().unwrap_or_else(PoisonError::into_inner) = found.unserved;
        // Locked, so that nothing is attached after a purge has removed the pins.
        let purged = self.purged();
        if *purged {
            return problems;
        }
        let (mut wanted, mut served) = (BTreeSet::new(), BTreeSet::new());
        for (ifindex, name, framing) in found.servable {
            wanted.insert(ifindex);
            match self.datapath.attach_client(ifindex, framing) {
                Ok(()) => drop(served.insert(ifindex)),
                Err(error) => problems.push(format!(
                    "interface {name}: published ports are not served there: {error}"
                )),
            }
        }
        let attached = self.datapath.attached_clients().unwrap_or_else(|error| {
            problems.push(format!("client links: {error}"));
            Vec::new()
        });
        // A link whose program cannot be attached again keeps the one that it has.
        let (kept, given_up): (BTreeSet<u32>, BTreeSet<u32>) =
            attached.into_iter().partition(|ifindex| wanted.contains(ifindex));
        served.extend(kept);
        let links = served.into_iter().map(|ifindex| (ifindex, 0)).collect();
        let noted = self.kept.client_links.replace(&self.datapath.tables().client_links, &links);
        problems.extend(noted.err().map(|error| format!("client links: {error}")));
        for ifindex in given_up {
            let detached = self.datapath.detach_client(ifindex);
            problems.extend(detached.err().map(|error| format!("client links: {error}")));
        }
        problems
    }

    /// The client links that have an IPv4 address.
    async fn find_client_links(&self) -> Result<AddressedLinks, NetlinkError> {
        let mut candidates = BTreeSet::new();
        for (ifindex, address) in self.netlink.all_addresses().await? {
            if let IpAddr::V4(ip) = address.ip()
                && !ip.is_loopback()
            {
                candidates.insert(ifindex);
            }
        }
        let mut found = AddressedLinks::default();
        for ifindex in candidates {
            // The interface was removed after its address was read.
            let Some(link) = self.netlink.link_at(ifindex).await? else { continue };
            if !self.is_other(&link) {
                continue;
            }
            match link.framing() {
                Some(framing) => found.servable.push((ifindex, link.name, framing)),
                None => found.unserved.push(link.name),
            }
        }
        Ok(found)
    }

    /// The interfaces out of which an IPv4 route leads, and that are neither uplinks nor Culvert's.
    pub(super) async fn find_other_links(&self) -> Result<OtherLinks, NetlinkError> {
        let routes = self.netlink.routes().await?;
        let routes = routes.iter().filter(|route| route.destination.is_ipv4());
        let ifindexes: BTreeSet<u32> = routes.map(|route| route.ifindex).collect();
        let mut found = OtherLinks::default();
        // A route through several interfaces has the number 0.
        for ifindex in ifindexes.into_iter().filter(|ifindex| *ifindex != 0) {
            // The interface was removed after its route was read.
            let Some(link) = self.netlink.link_at(ifindex).await? else { continue };
            if !self.is_other(&link) {
                continue;
            }
            match link.mac {
                Some(_) => found.ethernet.push(link.name),
                None => found.without_header.push(link.name),
            }
        }
        Ok(found)
    }

    /// Whether an interface is neither an uplink, nor Culvert's, nor the loopback device.
    fn is_other(&self, link: &Link) -> bool {
        let ours = sandbox::gateway_of(link).is_some()
            || sandbox::endpoint_of(link).is_some()
            || sandbox::is_assistant(link);
        !ours && !link.loopback && !self.uplinks.contains(&link.name)
    }
}
