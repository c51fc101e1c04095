//! What the data plane may carry: networks with a VNI of their own, and endpoints with addresses
//! and a MAC of their own.

use std::net::Ipv4Addr;

use super::{Brief, Claim, Id, Touched, View};
use crate::model::{Endpoint, Key, MacAddr, MacOwner, Name, Network};

/// Why an endpoint may not have its MAC.
#[derive(Clone, Copy, Debug)]
enum MacFault<'a> {
    /// It is derived from an address that is not the endpoint's primary one.
    OfAddress(Ipv4Addr),
    /// Another endpoint has the claim.
    OfEndpoint(&'a str),
    /// The claim cannot be read.
    Unreadable,
}

impl View {
    /// Marks the endpoints that have a MAC which is not derived from their address: the claim to it
    /// has changed, and with it whose the MAC is.
    pub(super) fn touch_mac(&self, network: &Name, mac: MacAddr, touched: &mut Touched) {
        let ids = self.endpoints.with_own_mac(network, mac);
        touched.endpoints.extend(ids.map(|id| (network.clone(), id.text())));
    }

    /// The claim to a MAC of a network that is not derived from an address.
    pub fn mac_claim(&self, network: &Name, mac: MacAddr) -> Option<&Claim<MacOwner>> {
        self.macs.get(network)?.get(&mac)
    }

    /// The claim to a MAC whose endpoint is gone, with the identifier of that endpoint: an earlier
    /// version removes an endpoint without its claim. Nobody has such a MAC.
    pub fn orphaned_mac(&self, network: &Name, mac: MacAddr) -> Option<(&Claim<MacOwner>, &str)> {
        let claim = self.mac_claim(network, mac)?;
        let owner = claim.owner.as_ref()?.endpoint.as_str();
        let is_there = self.endpoints.brief(network, &Id::parse(owner)?).is_some()
            || self.problem_at(&Key::endpoint(network, owner)).is_some();
        (!is_there).then_some((claim, owner))
    }

    /// The claim to a MAC, unless its endpoint is gone.
    pub fn standing_mac_claim(&self, network: &Name, mac: MacAddr) -> Option<&Claim<MacOwner>> {
        self.mac_claim(network, mac).filter(|_| self.orphaned_mac(network, mac).is_none())
    }

    /// Endpoints of a node that have a MAC which needs a claim and has none, by network and
    /// identifier: an earlier version has made them. A claim of an endpoint that is gone is none.
    pub fn unclaimed_macs(&self, node: &Name) -> Vec<(Name, String)> {
        let own = self.endpoints_on(node).filter(|endpoint| {
            let Endpoint { network, mac, .. } = &endpoint.record;
            !endpoint.has_derived_mac() && self.standing_mac_claim(network, *mac).is_none()
        });
        own.map(|endpoint| (endpoint.record.network, endpoint.record.id)).collect()
    }

    /// What is wrong with the MAC of an endpoint of `network`; `is_own` tells whether an identifier
    /// is the endpoint's. A MAC that is derived from an address belongs to whoever has the address,
    /// any other MAC to whoever has the claim to it. One that nobody has claimed, as an earlier
    /// version makes them, is everybody's.
    fn mac_fault(
        &self,
        network: &Network,
        mac: MacAddr,
        ipv4: Option<Ipv4Addr>,
        is_own: impl Fn(&str) -> bool,
    ) -> Option<MacFault<'_>> {
        // Nearly all endpoints. The claim to the address is checked with the others.
        if ipv4.is_some_and(|ip| MacAddr::from_ipv4(ip) == mac) {
            return None;
        }
        if let Some(ip) = network.address_of(mac) {
            return Some(MacFault::OfAddress(ip));
        }
        match &self.mac_claim(&network.name, mac)?.owner {
            Some(owner) if is_own(&owner.endpoint) => None,
            Some(owner) => Some(MacFault::OfEndpoint(&owner.endpoint)),
            None => Some(MacFault::Unreadable),
        }
    }

    /// The network, if the data plane may carry it. Two networks with one VNI must not be carried:
    /// their traffic would mix.
    ///
    /// # Errors
    ///
    /// The reason, one line.
    pub fn usable_network(&self, name: &Name) -> Result<&Network, String> {
        let network =
            self.networks.get(name).ok_or_else(|| format!("network '{name}': unknown"))?;
        match self.vnis.get(&network.vni) {
            Some(Claim { owner: Some(owner), .. }) if owner.network == *name => Ok(network),
            Some(Claim { owner: Some(owner), .. }) => Err(format!(
                "network '{name}': VNI {} belongs to network '{}'",
                network.vni, owner.network
            )),
            Some(Claim { owner: None, .. }) => Err(format!(
                "network '{name}': the record of who owns VNI {} is unreadable",
                network.vni
            )),
            None => Err(format!("network '{name}': VNI {} is not registered to it", network.vni)),
        }
    }

    /// Checks that the data plane may carry the endpoint: its network is usable, it has the
    /// network's VNI, and it owns its addresses and its MAC there.
    ///
    /// # Errors
    ///
    /// The reason, one line.
    pub fn usable_endpoint(&self, endpoint: &Endpoint) -> Result<(), String> {
        let Endpoint { id, network: name, container, .. } = endpoint;
        let fail = |why: String| Err(format!("endpoint {id} ('{container}' in '{name}'): {why}"));
        let network = match self.usable_network(name) {
            Ok(network) => network,
            Err(why) => return fail(why),
        };
        if endpoint.vni != network.vni {
            return fail(format!("VNI {} is not the network's {}", endpoint.vni, network.vni));
        }
        let mac = endpoint.mac;
        match self.mac_fault(network, mac, endpoint.ipv4, |owner| owner == id) {
            None => {}
            Some(MacFault::OfAddress(ip)) => {
                return fail(format!("MAC {mac} belongs to address {ip} of the network"));
            }
            Some(MacFault::OfEndpoint(owner)) => {
                return fail(format!("MAC {mac} belongs to endpoint {owner}"));
            }
            Some(MacFault::Unreadable) => {
                return fail(format!("the record of who owns MAC {mac} is unreadable"));
            }
        }
        for ip in endpoint.addresses() {
            if network.subnet_with(ip).is_none() {
                return fail(format!("address {ip} is outside the network's subnets"));
            }
            match self.ip_claim(name, ip).map(|claim| claim.owner) {
                Some(Some(owner)) if owner.endpoint == *id => {}
                Some(Some(owner)) => {
                    return fail(format!("address {ip} belongs to endpoint {}", owner.endpoint));
                }
                Some(None) => {
                    return fail(format!("the record of who owns address {ip} is unreadable"));
                }
                None => return fail(format!("address {ip} is not registered to it")),
            }
        }
        Ok(())
    }

    /// As [`Self::usable_endpoint`], for an endpoint of a usable network, without the reason.
    pub(crate) fn is_usable(&self, network: &Network, endpoint: &Brief<'_>) -> bool {
        let is_own = |owner: &str| Id::parse(owner) == Some(endpoint.id);
        endpoint.vni == network.vni.get()
            && self.mac_fault(network, endpoint.mac, endpoint.ipv4, is_own).is_none()
            && endpoint.addresses().all(|ip| {
                network.subnet_with(ip).is_some()
                    && self.ipam.is_of(&network.name, ip, &endpoint.id)
            })
    }
}
