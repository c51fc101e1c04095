//! Routes, and route lookups of the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};

use super::{Link, Netlink, NetlinkError, Result, link::parse_link};

/// Number of the main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// A unicast route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: IpNetwork,
    /// Next hop. `None` if the destination is on link, or the route has several.
    pub gateway: Option<IpAddr>,
    /// Interface index; 0 if the route has several.
    pub ifindex: u32,
    /// Interface index and next hop of each of several paths. Empty if the route has one path.
    pub paths: Vec<(u32, Option<IpAddr>)>,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Metric. The route with the smallest is preferred.
    pub metric: u32,
    /// Number of the routing table.
    pub table: u32,
}

impl Route {
    /// Whether the route is in the main table.
    pub fn is_main(&self) -> bool {
        self.table == MAIN_TABLE
    }

    /// The next hops, also of a route that has several.
    pub fn hops(&self) -> impl Iterator<Item = IpAddr> {
        let several = self.paths.iter().filter_map(|(_, hop)| *hop);
        self.gateway.into_iter().chain(several)
    }

    /// Interface index; of the first interface if the route has several.
    pub fn first_ifindex(&self) -> u32 {
        self.paths.first().map_or(self.ifindex, |(ifindex, _)| *ifindex)
    }
}

/// The interface of the preferred IPv4 default route of the main table. Default routes of other
/// tables are ignored: a VPN's default route does not lead to the other hosts.
pub fn default_link<'a>(links: &'a [Link], routes: &[Route]) -> Option<&'a Link> {
    let defaults = routes.iter().filter(|route| {
        route.is_main() && route.destination.is_ipv4() && route.destination.prefix() == 0
    });
    let default = defaults.min_by_key(|route| route.metric)?;
    links.iter().find(|link| link.index == default.ifindex)
}

/// Result of a route lookup for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// Interface.
    pub ifindex: u32,
    /// Gateway, or the address itself if it is on link.
    pub next_hop: IpAddr,
    /// Source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// MTU of the route or of the interface, whichever is smaller, in bytes.
    pub mtu: u32,
    /// Whether the address is one of this host's own.
    pub local: bool,
}

impl Netlink {
    /// Unicast routes of all tables, both families.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let rows = self.dump("listing routes", request).await?;
        Ok(rows.iter().filter_map(parse_route).collect())
    }

    /// Adds a route through interface `name`, or replaces one to the same
    /// destination. Its protocol is `boot`, which `ip route` does not print.
    ///
    /// # Errors
    /// The interface does not exist or is down, or the gateway is not on link.
    pub async fn add_route(
        &self,
        name: &str,
        destination: IpNetwork,
        gateway: Option<IpAddr>,
    ) -> Result<()> {
        let index = self.existing(name).await?.index;
        let what = describe("adding", name, destination, gateway);
        let request = RouteNetlinkMessage::NewRoute(message(index, destination, gateway));
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
    }

    /// Adds a route of a table, or replaces one to the same destination in that table.
    ///
    /// # Errors
    /// As [`Self::add_route`].
    pub async fn add_table_route(
        &self,
        name: &str,
        destination: IpNetwork,
        gateway: Option<IpAddr>,
        table: u32,
    ) -> Result<()> {
        let index = self.existing(name).await?.index;
        let what = describe("adding", name, destination, gateway);
        let mut route = message(index, destination, gateway);
        // The header has room for numbers up to 255.
        route.header.table = RouteHeader::RT_TABLE_UNSPEC;
        route.attributes.push(RouteAttribute::Table(table));
        let request = RouteNetlinkMessage::NewRoute(route);
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
    }

    /// Adds a route through `hop`, which is on link at the interface whatever the other routes say,
    /// with a preferred source address if one is given. A route to the same destination is never
    /// replaced.
    ///
    /// # Errors
    /// There is a route to the same destination; the interface does not exist or is down; the
    /// source is not an address of the host.
    pub async fn add_hop_route(
        &self,
        name: &str,
        destination: IpNetwork,
        hop: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<()> {
        let index = self.existing(name).await?.index;
        let what = describe("adding", name, destination, Some(hop));
        let mut route = message(index, destination, Some(hop));
        route.header.flags = RouteFlags::Onlink;
        route.attributes.extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        let request = RouteNetlinkMessage::NewRoute(route);
        self.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await.map(drop)
    }

    /// Removes a route of an interface to a destination from the main table, whatever its next hop.
    ///
    /// # Errors
    /// The kernel refuses. It is no error if there is none.
    pub async fn delete_route(&self, index: u32, destination: IpNetwork) -> Result<()> {
        let what = format!("removing route {destination} of interface #{index}");
        let mut route = message(index, destination, None);
        // These two match routes of every protocol, so also those of other programs, and of every
        // scope.
        route.header.protocol = RouteProtocol::Unspec;
        route.header.scope = RouteScope::NoWhere;
        match self.request(&what, RouteNetlinkMessage::DelRoute(route), 0).await {
            Err(error) if error.errno() != Some(Errno::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Looks up the route to `ip` in the kernel. The MTU is that of the route itself: what the
    /// kernel has learnt from ICMP errors does not count, because some of them anybody can forge
    /// (those that quote an echo reply need no socket).
    ///
    /// # Errors
    /// [`NetlinkError::NoRoute`] if the kernel would not send to `ip`.
    pub async fn route_to(&self, ip: IpAddr) -> Result<RouteInfo> {
        let route = self.look_up(ip, RouteFlags::empty()).await?;
        let local = route.header.kind == RouteType::Local;
        if !local && route.header.kind != RouteType::Unicast {
            return Err(NetlinkError::NoRoute(ip));
        }
        let ifindex = output(&route).ok_or(NetlinkError::NoRoute(ip))?;
        let device = self.link_at(ifindex).await?.ok_or(NetlinkError::NoRoute(ip))?;
        let metric = if is_learnt(&route) {
            mtu_metric(&self.look_up(ip, RouteFlags::FibMatch).await?)
        } else {
            mtu_metric(&route)
        };
        let mtu = metric.map_or(device.mtu, |mtu| mtu.min(device.mtu));
        let next_hop = gateway(&route).unwrap_or(ip);
        Ok(RouteInfo { ifindex, next_hop, source: source(&route), mtu, local })
    }

    /// Asks the kernel for the route to `ip`.
    async fn look_up(&self, ip: IpAddr, flags: RouteFlags) -> Result<RouteMessage> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(ip);
        request.header.destination_prefix_length = host_prefix(ip);
        request.header.flags = flags;
        request.attributes.push(RouteAttribute::Destination(ip.into()));
        let what = format!("looking up the route to {ip}");
        let rows = match self.request(&what, RouteNetlinkMessage::GetRoute(request), 0).await {
            // A lookup needs no privilege: EACCES means a 'prohibit' route.
            Err(NetlinkError::Permission(_)) => return Err(NetlinkError::NoRoute(ip)),
            Err(error) if no_route(error.errno()) => return Err(NetlinkError::NoRoute(ip)),
            answer => answer?,
        };
        rows.into_iter()
            .find_map(|row| match row {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .ok_or(NetlinkError::NoRoute(ip))
    }

    /// The interface with that index, without its addresses. None has the index 0.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn link_at(&self, index: u32) -> Result<Option<Link>> {
        if index == 0 {
            // The kernel would refuse the request.
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        let what = format!("reading interface number {index}");
        match self.request(&what, RouteNetlinkMessage::GetLink(message), 0).await {
            Ok(rows) => Ok(rows.iter().find_map(parse_link)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn describe(verb: &str, name: &str, to: IpNetwork, gateway: Option<IpAddr>) -> String {
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("{verb} route {to}{via} of interface {name}")
}

/// Whether the error number of a lookup means that there is no route, or that the route is
/// `unreachable` or `blackhole`.
fn no_route(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL | Errno::ENODEV))
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn message(index: u32, destination: IpNetwork, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.ip());
    message.header.destination_prefix_length = destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match gateway {
        None if destination.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// Whether the kernel has learnt the MTU of a route from an ICMP error: only such an entry expires.
fn is_learnt(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::CacheInfo(info) => info.expires != 0,
        _ => false,
    })
}

/// The MTU of a route in bytes, if it has one of its own.
fn mtu_metric(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

pub(super) fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    gateway_of(&route.attributes)
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        // An IPv4 destination behind an IPv6 next hop (RFC 5549).
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

/// Interface index and next hop of each path of a route that has several.
fn paths(route: &RouteMessage) -> Vec<(u32, Option<IpAddr>)> {
    let several = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let several = several.into_iter().flatten();
    several.map(|hop| (hop.interface_index, gateway_of(&hop.attributes))).collect()
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip_of(address),
        _ => None,
    })
}

fn parse_route(row: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(route) = row else { return None };
    read_route(route)
}

/// The route of a message, if it is a unicast route.
pub(super) fn read_route(route: &RouteMessage) -> Option<Route> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut to = any;
    let (mut metric, mut table) = (0, u32::from(route.header.table));
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip_of(address)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(Route {
        destination: IpNetwork::new(to, route.header.destination_prefix_length).ok()?,
        gateway: gateway(route),
        ifindex: output(route).unwrap_or(0),
        paths: paths(route),
        source: source(route),
        metric,
        table,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteCacheInfo, RouteNextHop};

    use super::*;

    #[test]
    fn an_mtu_that_expires_was_learnt() {
        for (expires, learnt) in [(0_u32, false), (59_900, true)] {
            // struct rta_cacheinfo of linux/rtnetlink.h: `rta_expires` is the third word.
            let info =
                [[0; 4], [0; 4], expires.to_ne_bytes(), [0; 4], [0; 4], [0; 4], [0; 4], [0; 4]];
            let info = RouteCacheInfo::parse(info.as_flattened()).expect("cache information");
            let mut route = RouteMessage::default();
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(600)]));
            assert!(!is_learnt(&route), "a route of the administrator");
            route.attributes.push(RouteAttribute::CacheInfo(info));
            assert_eq!(is_learnt(&route), learnt);
            assert_eq!(mtu_metric(&route), Some(600));
        }
    }

    #[test]
    fn the_next_hops_of_a_route_with_several_are_read() {
        let path = |ifindex, hop: Option<[u8; 4]>| {
            let mut path = RouteNextHop::default();
            let hop = hop.map(|hop| RouteAttribute::Gateway(IpAddr::from(hop).into()));
            path.attributes.extend(hop);
            path.interface_index = ifindex;
            path
        };
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        let several = vec![path(7, None), path(8, Some([10, 9, 0, 77]))];
        message.attributes.push(RouteAttribute::MultiPath(several));
        let route = read_route(&message).expect("route");
        assert_eq!((route.gateway, route.ifindex, route.first_ifindex()), (None, 0, 7));
        assert_eq!(route.hops().collect::<Vec<_>>(), [IpAddr::from([10, 9, 0, 77])]);
    }

    #[test]
    fn the_default_link_is_that_of_the_main_table() {
        let link = |index| Link { index, ..Link::default() };
        let route = |to: &str, ifindex, metric, table| Route {
            destination: to.parse().expect("prefix"),
            gateway: None,
            ifindex,
            paths: Vec::new(),
            source: None,
            metric,
            table,
        };
        let links = [link(2), link(3), link(4)];
        // A VPN that routes by rule has a default route of its own, without a metric.
        let routes = [
            route("::/0", 4, 0, MAIN_TABLE),
            route("0.0.0.0/0", 4, 0, 51820),
            route("0.0.0.0/0", 3, 200, MAIN_TABLE),
            route("0.0.0.0/0", 2, 100, MAIN_TABLE),
            route("192.0.2.0/24", 3, 0, MAIN_TABLE),
        ];
        assert_eq!(default_link(&links, &routes), links.first());
        assert_eq!(default_link(&links, routes.get(..2).unwrap_or_default()), None);
    }
}
