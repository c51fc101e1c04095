//! The wanted state of an endpoint's interface in its sandbox.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::{
    model::MacAddr,
    netlink::{Link, NamespaceChange, PairKind, Route, subnet_of},
};

/// Base of the routing table numbers of endpoints without the default route: the number of such a
/// table is this base plus the ifindex.
const SOURCE_TABLES: u32 = 67_000;

/// The wanted state of an endpoint's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlugSpec {
    /// Endpoint.
    pub endpoint_id: String,
    /// Kind of a new pair. An existing pair keeps its kind.
    pub kind: PairKind,
    /// Name of the host side, see [`super::host_ifname`].
    pub host_ifname: String,
    /// Name of the interface in the sandbox.
    pub ifname: String,
    /// MAC address of the interface in the sandbox.
    pub mac: MacAddr,
    /// MTU of both sides, in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their subnet; the kernel adds the subnet's route. The
    /// link-local address that is derived from the MAC is added as well.
    pub addrs: Vec<IpNetwork>,
    /// Additional addresses with the prefix length of their subnet. They carry Culvert's mark, so
    /// that those that are no longer wanted are removed.
    pub additional: Vec<IpNetwork>,
    /// Permanent neighbours. The kernel limits the number of others, of all network namespaces
    /// together.
    pub neighbours: Vec<(IpAddr, MacAddr)>,
    /// Further routes. A route without a gateway is on link. A route is left out if its destination
    /// is already reached through another interface.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

impl PlugSpec {
    /// The link-local address that is derived from the MAC.
    pub(super) fn link_local(&self) -> IpNetwork {
        link_local(self.mac)
    }

    /// Routes that the sandbox has: those of the subnets, which the kernel adds with the primary
    /// addresses, before the others, whose gateways are in the subnets.
    pub(super) fn all_routes(&self) -> impl Iterator<Item = (IpNetwork, Option<IpAddr>)> {
        let subnets = self.addrs.iter().filter(|address| !is_single(**address));
        let subnets = subnets.map(|address| (subnet_of(*address), None));
        subnets.chain(self.routes.iter().copied())
    }

    /// Whether a change in the sandbox may have taken something from the interface, which has the
    /// index `ifindex`. What a user adds takes nothing.
    pub fn is_harmed_by(&self, ifindex: u32, change: &NamespaceChange) -> bool {
        match change {
            NamespaceChange::Link(link) if link.loopback => !link.up,
            NamespaceChange::Link(link) => link.index == ifindex && !self.is_as_wanted(link),
            NamespaceChange::LinkGone(index) => *index == ifindex,
            NamespaceChange::AddressGone(index, address) => {
                *index == ifindex && self.has_address(*address)
            }
            // Another program may have replaced the default route. The endpoint then needs rules.
            NamespaceChange::Route(route) => {
                self.has_route(ifindex, route) && !self.is_own(ifindex, route)
            }
            NamespaceChange::RouteGone(route) => self.has_route(ifindex, route),
            NamespaceChange::RuleGone(rule) => self.sources().any(|source| source == rule.source),
            NamespaceChange::Unknown => true,
        }
    }

    fn is_as_wanted(&self, link: &Link) -> bool {
        link.up && link.name == self.ifname && link.mtu == self.mtu && link.mac == Some(self.mac)
    }

    fn has_address(&self, address: IpNetwork) -> bool {
        address == self.link_local()
            || self.addrs.contains(&address)
            || self.additional.contains(&address)
    }

    /// Whether the endpoint is to have a route to this destination in this table.
    fn has_route(&self, ifindex: u32, route: &Route) -> bool {
        route.table == source_table(ifindex)
            || (route.is_main()
                && self.all_routes().any(|(to, _)| subnet_of(to) == subnet_of(route.destination)))
    }

    /// Whether the route is one of the endpoint's own.
    fn is_own(&self, ifindex: u32, route: &Route) -> bool {
        let is_wanted = |(to, gateway): (IpNetwork, Option<IpAddr>)| {
            subnet_of(to) == subnet_of(route.destination) && gateway == route.gateway
        };
        route.ifindex == ifindex && self.all_routes().any(is_wanted)
    }

    /// Addresses from which the endpoint sends.
    pub(super) fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.addrs.iter().chain(&self.additional).map(IpNetwork::ip)
    }
}

/// The routing table of an endpoint without the default route.
pub(super) fn source_table(ifindex: u32) -> u32 {
    SOURCE_TABLES.saturating_add(ifindex)
}

/// The link-local address that is derived from a MAC.
pub(super) fn link_local(mac: MacAddr) -> IpNetwork {
    let ip = IpAddr::V6(mac.link_local());
    // 64 is a valid prefix length, so the fallback is never used.
    IpNetwork::new(ip, 64).unwrap_or_else(|_| IpNetwork::from(ip))
}

/// Whether the prefix is a single address, whose subnet needs no route.
fn is_single(address: IpNetwork) -> bool {
    address.prefix() == if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{MAIN_TABLE, Rule};

    const IFINDEX: u32 = 7;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn spec() -> PlugSpec {
        PlugSpec {
            endpoint_id: "01".to_owned(),
            kind: PairKind::Veth,
            host_ifname: "cv01".to_owned(),
            ifname: "eth0".to_owned(),
            mac: MacAddr([2, 0x42, 10, 0, 0, 2]),
            mtu: 1450,
            addrs: vec![net("10.0.0.2/24"), net("fd00::2/64")],
            additional: vec![net("10.0.0.9/24")],
            neighbours: Vec::new(),
            routes: vec![(net("0.0.0.0/0"), Some("10.0.0.1".parse().unwrap()))],
        }
    }

    fn link() -> Link {
        Link {
            index: IFINDEX,
            name: "eth0".to_owned(),
            mac: Some(spec().mac),
            mtu: 1450,
            up: true,
            ..Link::default()
        }
    }

    fn route(to: &str, gateway: Option<&str>, ifindex: u32, table: u32) -> Route {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        let (paths, source) = (Vec::new(), None);
        Route { destination: net(to), gateway, ifindex, paths, source, metric: 0, table }
    }

    fn rule(source: &str) -> Rule {
        let source = source.parse().unwrap();
        Rule { source, table: MAIN_TABLE, priority: 31_000, without_default: true }
    }

    #[test]
    fn what_others_take_away_is_harm() {
        let table = source_table(IFINDEX);
        let default = |gateway, ifindex| route("0.0.0.0/0", gateway, ifindex, MAIN_TABLE);
        for change in [
            NamespaceChange::Link(Link { up: false, ..link() }),
            NamespaceChange::Link(Link { mtu: 1400, ..link() }),
            NamespaceChange::Link(Link { mac: Some(MacAddr([2; 6])), ..link() }),
            NamespaceChange::Link(Link { name: "eth7".to_owned(), ..link() }),
            NamespaceChange::Link(Link { index: 1, loopback: true, ..Link::default() }),
            NamespaceChange::LinkGone(IFINDEX),
            NamespaceChange::AddressGone(IFINDEX, net("10.0.0.2/24")),
            NamespaceChange::AddressGone(IFINDEX, net("10.0.0.9/24")),
            NamespaceChange::AddressGone(IFINDEX, net("fe80::42:aff:fe00:2/64")),
            NamespaceChange::RouteGone(default(Some("10.0.0.1"), IFINDEX)),
            // The other interface does not have it any more: the endpoint gets it.
            NamespaceChange::RouteGone(default(Some("10.1.0.1"), 9)),
            NamespaceChange::RouteGone(route("10.0.0.0/24", None, IFINDEX, MAIN_TABLE)),
            NamespaceChange::RouteGone(route("0.0.0.0/0", Some("10.0.0.1"), IFINDEX, table)),
            NamespaceChange::Route(default(Some("10.0.0.7"), IFINDEX)),
            NamespaceChange::Route(default(Some("10.1.0.1"), 9)),
            NamespaceChange::Route(route("0.0.0.0/0", Some("10.0.0.7"), IFINDEX, table)),
            NamespaceChange::RuleGone(rule("10.0.0.2")),
            NamespaceChange::RuleGone(rule("10.0.0.9")),
            NamespaceChange::Unknown,
        ] {
            assert!(spec().is_harmed_by(IFINDEX, &change), "{change:?}");
        }
    }

    /// What a user adds, and what the agent itself makes.
    #[test]
    fn what_is_added_is_no_harm() {
        let table = source_table(IFINDEX);
        for change in [
            NamespaceChange::Link(link()),
            NamespaceChange::Link(Link { index: 9, up: false, ..link() }),
            NamespaceChange::Link(Link { index: 1, loopback: true, up: true, ..Link::default() }),
            NamespaceChange::LinkGone(9),
            NamespaceChange::AddressGone(IFINDEX, net("10.7.7.7/32")),
            NamespaceChange::AddressGone(IFINDEX, net("10.0.0.2/16")),
            NamespaceChange::AddressGone(9, net("10.0.0.2/24")),
            NamespaceChange::Route(route("0.0.0.0/0", Some("10.0.0.1"), IFINDEX, MAIN_TABLE)),
            NamespaceChange::Route(route("0.0.0.0/0", Some("10.0.0.1"), IFINDEX, table)),
            NamespaceChange::Route(route("10.0.0.0/24", None, IFINDEX, MAIN_TABLE)),
            NamespaceChange::Route(route("10.9.0.0/16", Some("10.0.0.7"), IFINDEX, MAIN_TABLE)),
            NamespaceChange::Route(route("0.0.0.0/0", Some("10.1.0.1"), 9, source_table(9))),
            NamespaceChange::RouteGone(route("10.9.0.0/16", Some("10.0.0.7"), IFINDEX, MAIN_TABLE)),
            NamespaceChange::RouteGone(route("0.0.0.0/0", Some("10.1.0.1"), 9, 100)),
            NamespaceChange::RuleGone(rule("10.1.0.2")),
        ] {
            assert!(!spec().is_harmed_by(IFINDEX, &change), "{change:?}");
        }
    }

    #[test]
    fn a_single_address_has_no_route_of_a_subnet() {
        let spec = PlugSpec { addrs: vec![net("10.0.0.2/32"), net("fd00::2/64")], ..spec() };
        let to: Vec<IpNetwork> = spec.all_routes().map(|(to, _)| to).collect();
        assert_eq!(to, [net("fd00::/64"), net("0.0.0.0/0")]);
    }
}
