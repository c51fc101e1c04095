//! Change events of the kernel's network state.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use ipnetwork::IpNetwork;
use rtnetlink::{
    Handle, MulticastGroup, packet_core::NetlinkPayload, packet_route::RouteNetlinkMessage,
};

use super::{
    Netlink, Result, address::parse_address, handle::Unsolicited, link::parse_link,
    neighbour::parse_neighbour,
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
    /// A route changed.
    Route,
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
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Some(Event::Route),
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
