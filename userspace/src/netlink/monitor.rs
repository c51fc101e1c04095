//! Change events of the kernel's network state.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use ipnetwork::IpNetwork;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{AddressFamily, RouteNetlinkMessage},
};

use super::{
    Netlink, Result, Route,
    address::parse_address,
    handle::Unsolicited,
    link::parse_link,
    neighbour::parse_neighbour,
    route::{output, read_route},
};

/// A change in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface appeared or changed.
    Link {
        /// Interface index.
        index: u32,
        /// Its current name.
        name: String,
        /// Whether it is up.
        up: bool,
        /// Index of the bridge or bond that has the interface as a port.
        master: Option<u32>,
        /// UDP port on which a kernel vxlan device receives.
        vxlan_port: Option<u16>,
    },
    /// An interface was removed.
    LinkGone {
        /// Interface index.
        index: u32,
        /// Its last name.
        name: String,
    },
    /// An address was added, changed or removed.
    Address {
        /// Interface index.
        ifindex: u32,
        /// Address.
        address: IpNetwork,
        /// Whether it was removed.
        gone: bool,
    },
    /// A route was added, changed or removed. The kernel does not report each IPv4 route that goes
    /// with an address or with a link.
    Route {
        /// Interface index; 0 if the route has several.
        ifindex: u32,
        /// Whether it is an IPv6 route.
        is_ipv6: bool,
        /// Destination of a unicast route of the main table. `None`: it is another route.
        main: Option<IpNetwork>,
        /// Next hops of such a route. Empty: it is another route, or on link.
        hops: Vec<IpAddr>,
    },
    /// A neighbour was resolved, became stale, failed or was removed.
    Neighbour {
        /// Interface index.
        ifindex: u32,
        /// Address.
        ip: IpAddr,
        /// Whether the kernel can send to it.
        valid: bool,
    },
    /// Events were lost because they were not read fast enough. The receiver must read all state
    /// again.
    Lost,
}

/// A stream of [`Event`]s. It ends only if the kernel closes the socket, which it does not do.
#[derive(Debug)]
pub struct Monitor {
    events: Unsolicited,
    /// The connection ends when its last handle is dropped.
    _handle: Handle,
}

impl Netlink {
    /// Subscribes to changes of interfaces, addresses, routes and neighbours. Changes from before
    /// the call are not reported.
    ///
    /// # Errors
    /// No socket can be opened.
    pub fn monitor(&self) -> Result<Monitor> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Neigh,
        ];
        let (handle, events) = self.subscribe(&groups)?;
        Ok(Monitor { events, _handle: handle })
    }
}

impl Monitor {
    /// Waits for the next change.
    pub async fn next(&mut self) -> Option<Event> {
        StreamExt::next(self).await
    }
}

impl Stream for Monitor {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let Some((message, _)) = ready!(self.events.poll_next_unpin(cx)) else {
                return Poll::Ready(None);
            };
            let event = match message.payload {
                NetlinkPayload::Overrun(_) => Some(Event::Lost),
                NetlinkPayload::InnerMessage(inner) => translate(&inner),
                _ => None,
            };
            if event.is_some() {
                return Poll::Ready(event);
            }
        }
    }
}

fn translate(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(_) => parse_link(message).map(|link| Event::Link {
            index: link.index,
            name: link.name,
            up: link.up,
            master: link.master,
            vxlan_port: link.vxlan_port,
        }),
        RouteNetlinkMessage::DelLink(_) => {
            parse_link(message).map(|link| Event::LinkGone { index: link.index, name: link.name })
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
            let (ifindex, address) = parse_address(message)?;
            let gone = matches!(message, RouteNetlinkMessage::DelAddress(_));
            Some(Event::Address { ifindex, address, gone })
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            let main = read_route(route).filter(Route::is_main);
            Some(Event::Route {
                ifindex: output(route).unwrap_or(0),
                is_ipv6: route.header.address_family == AddressFamily::Inet6,
                hops: main.iter().flat_map(Route::hops).collect(),
                main: main.map(|route| route.destination),
            })
        }
        RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => {
            let neighbour = parse_neighbour(message)?;
            let gone = matches!(message, RouteNetlinkMessage::DelNeighbour(_));
            Some(Event::Neighbour {
                ifindex: neighbour.ifindex,
                ip: neighbour.ip,
                valid: neighbour.valid && !gone,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
    };

    use super::*;

    /// A message about a route by interface 7.
    fn route(to: &str, kind: RouteType, table: u8) -> RouteMessage {
        let to: IpNetwork = to.parse().unwrap();
        let mut message = RouteMessage::default();
        message.header.address_family =
            if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = to.prefix();
        message.header.kind = kind;
        message.header.table = table;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to.ip())));
        message.attributes.push(RouteAttribute::Oif(7));
        message
    }

    #[test]
    fn an_event_tells_destination_and_next_hop_of_a_route_of_the_main_table() {
        // The second is `RT_TABLE_LOCAL` (linux/rtnetlink.h).
        let (main, local) = (RouteHeader::RT_TABLE_MAIN, 255);
        for (to, kind, table, is_ipv6, is_main) in [
            ("10.9.0.128/25", RouteType::Unicast, main, false, true),
            ("0.0.0.0/0", RouteType::Unicast, main, false, true),
            ("10.9.0.0/16", RouteType::BlackHole, main, false, false),
            ("10.9.0.0/16", RouteType::Unicast, 77, false, false),
            ("10.9.0.1/32", RouteType::Local, local, false, false),
            ("fe80::/64", RouteType::Unicast, main, true, true),
            // The first route of an interface on which IPv6 comes up.
            ("ff00::/8", RouteType::Multicast, local, true, false),
        ] {
            let hop: IpAddr = if is_ipv6 { [0xfe; 16].into() } else { [10, 9, 0, 77].into() };
            let told = Event::Route {
                ifindex: 7,
                is_ipv6,
                main: is_main.then(|| to.parse().unwrap()),
                hops: is_main.then_some(hop).into_iter().collect(),
            };
            let mut route = route(to, kind, table);
            route.attributes.push(RouteAttribute::Gateway(hop.into()));
            for message in
                [RouteNetlinkMessage::NewRoute(route.clone()), RouteNetlinkMessage::DelRoute(route)]
            {
                assert_eq!(translate(&message).as_ref(), Some(&told), "{to} {kind:?}");
            }
        }
    }
}
