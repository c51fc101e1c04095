//! Client links: interfaces of the host that are neither uplinks nor Culvert's, such as `docker0`
//! or a second network card. Clients behind them can use published ports, too.

use std::{collections::BTreeSet, net::IpAddr, sync::PoisonError};

use super::{Host, nat::replace};
use crate::{netlink::NetlinkError, sandbox};

/// Interfaces that are neither uplinks nor Culvert's.
#[derive(Default)]
struct Found {
    /// Interface index and name of those that published ports can serve.
    wanted: Vec<(u32, String)>,
    /// Names of those without an Ethernet header. `run`, `ps` and `culvert doctor` report them.
    unserved: Vec<String>,
}

impl Host {
    /// Attaches `from_client` to the client links if `publishes`, and detaches it from all other
    /// interfaces. Continues after an error. Returns the problems, a line each.
    pub(super) async fn serve_client_links(&self, publishes: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let found = if publishes { self.find_client_links().await } else { Ok(Found::default()) };
        let Found { wanted, unserved } = match found {
            Ok(found) => found,
            // The attached programs stay attached.
            Err(error) => return vec![format!("client links: {error}")],
        };
        *self.unserved.lock().unwrap_or_else(PoisonError::into_inner) = unserved;
        // Locked, so that nothing is attached after a purge has removed the pins.
        let purged = self.purged();
        if *purged {
            return problems;
        }
        let mut served = BTreeSet::new();
        for (ifindex, name) in wanted {
            match self.datapath.attach_client(ifindex) {
                Ok(()) => drop(served.insert(ifindex)),
                Err(error) => problems.push(format!(
                    "interface {name}: published ports are not served there: {error}"
                )),
            }
        }
        let links = served.iter().map(|ifindex| (*ifindex, 0)).collect();
        let noted = replace(&self.datapath.tables().client_links, &links);
        problems.extend(noted.err().map(|error| format!("client links: {error}")));
        let attached = self.datapath.attached_clients().unwrap_or_else(|error| {
            problems.push(format!("client links: {error}"));
            Vec::new()
        });
        for ifindex in attached.into_iter().filter(|ifindex| !served.contains(ifindex)) {
            let detached = self.datapath.detach_client(ifindex);
            problems.extend(detached.err().map(|error| format!("client links: {error}")));
        }
        problems
    }

    /// The client links that have an IPv4 address.
    async fn find_client_links(&self) -> Result<Found, NetlinkError> {
        let mut candidates = BTreeSet::new();
        for (ifindex, address) in self.netlink.all_addresses().await? {
            if let IpAddr::V4(ip) = address.ip()
                && !ip.is_loopback()
            {
                candidates.insert(ifindex);
            }
        }
        let mut found = Found::default();
        for ifindex in candidates {
            // The interface was removed after its address was read.
            let Some(link) = self.netlink.link_at(ifindex).await? else { continue };
            let ours = sandbox::gateway_of(&link).is_some()
                || sandbox::endpoint_of(&link).is_some()
                || sandbox::is_assistant(&link);
            if ours || link.loopback || self.uplinks.contains(&link.name) {
                continue;
            }
            if link.mac.is_some() {
                found.wanted.push((ifindex, link.name));
            } else {
                found.unserved.push(link.name);
            }
        }
        Ok(found)
    }
}
