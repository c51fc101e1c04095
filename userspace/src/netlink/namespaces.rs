//! Changes in the namespaces of containers.
//!
//! One socket receives the events of each namespace that has a number (nsid) in the socket's
//! namespace (`NETLINK_LISTEN_ALL_NSID`, netlink(7)). The other end of a device pair always has
//! one. A socket inside a namespace would keep the namespace alive when its user removes it.

use std::{
    io::{self, IoSliceMut},
    os::fd::AsRawFd as _,
};

use ipnetwork::IpNetwork;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Link, Netlink, NetlinkError, Result, Route, Rule, address::parse_address, handle::enter,
    link::parse_link, route::read_route, rule::read_rule,
};

/// Receive buffer in bytes: it holds the events of thousands of containers that start at once.
const BUFFER: usize = 4 << 20;
/// Size in bytes of the longest message that is read whole.
const LONGEST: usize = 32 * 1024;
/// Most messages that are read at a time.
const MOST: usize = 1024;

/// A change in a namespace that may take something from an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceChange {
    /// An interface appeared or changed.
    Link(Link),
    /// The interface with this index was removed.
    LinkGone(u32),
    /// An address of the interface with this index was removed.
    AddressGone(u32, IpNetwork),
    /// A route appeared or was replaced.
    Route(Route),
    /// A route was removed.
    RouteGone(Route),
    /// A rule of Culvert was removed.
    RuleGone(Rule),
    /// A change that cannot be decoded.
    Unknown,
}

/// What a [`NamespaceMonitor`] has read.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// Messages were lost because they were not read fast enough.
    Lost,
    /// A message.
    Message(Message<'a>),
}

/// A message about a namespace. It is decoded only on demand: most are about namespaces of others.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The number of the namespace, see [`Netlink::netns_id`]. `None`: it is the monitor's own.
    pub namespace: Option<i32>,
    bytes: &'a [u8],
}

impl Message<'_> {
    /// The change. `None`: the message takes nothing from an interface.
    pub fn change(&self) -> Option<NamespaceChange> {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.bytes) {
            Ok(message) => match message.payload {
                NetlinkPayload::InnerMessage(inner) => translate(&inner),
                _ => None,
            },
            Err(_) => Some(NamespaceChange::Unknown),
        }
    }
}

/// A socket that receives the changes of interfaces, addresses, routes and rules in all namespaces
/// that have a number (nsid) in the socket's namespace.
#[derive(Debug)]
pub struct NamespaceMonitor {
    socket: AsyncFd<Socket>,
}

impl Netlink {
    /// Opens a [`NamespaceMonitor`]. Changes from before the call are not reported. Must be called
    /// within a tokio runtime. Without `CAP_NET_BROADCAST` the socket receives only the changes in
    /// its own namespace.
    ///
    /// # Errors
    /// No socket can be opened.
    pub fn monitor_namespaces(&self) -> Result<NamespaceMonitor> {
        let failed =
            |source| NetlinkError::kernel("subscribing to events of network namespaces", source);
        let socket = enter(self.netns(), || open().map_err(failed))?;
        // SAFETY: the socket keeps its descriptor open and the same for as long as it lives, and
        // the `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(NamespaceMonitor { socket: socket.map_err(|error| failed(error.into()))? })
    }
}

impl NamespaceMonitor {
    /// Waits for messages, and reads those that are there, but not more than a certain number.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn wait(&self, heard: impl FnMut(Heard<'_>) + Send) -> io::Result<()> {
        let mut guard = self.socket.readable().await?;
        if self.read(MOST, heard)? {
            guard.clear_ready();
        }
        Ok(())
    }

    /// Reads all messages that are there. The kernel sends a message before the call returns that
    /// makes the change.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn drain(&self, heard: impl FnMut(Heard<'_>)) -> io::Result<()> {
        self.read(usize::MAX, heard).map(drop)
    }

    /// Reads the messages that are there, at most `most`. Returns whether none is left.
    fn read(&self, most: usize, mut heard: impl FnMut(Heard<'_>)) -> io::Result<bool> {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..most {
            match receive(self.socket.get_ref(), &mut buffer) {
                Ok(found) => heard(found),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Opens the socket in the calling thread's namespace.
fn open() -> io::Result<Socket> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let mask = groups.into_iter().fold(0, |mask, group| mask | (1 << (group as u32 - 1)));
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.set_listen_all_namespaces(true)?;
    // Without privilege the kernel's limit applies.
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
    socket.bind(&SocketAddr::new(0, mask))?;
    Ok(socket)
}

fn receive<'a>(socket: &Socket, buffer: &'a mut [u8]) -> io::Result<Heard<'a>> {
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(control.as_mut_slice()),
        MsgFlags::MSG_DONTWAIT,
    );
    let (len, namespace) = match received {
        Ok(message) => (message.bytes, message.cmsgs()?.find_map(|control| number_of(&control))),
        Err(Errno::ENOBUFS) => return Ok(Heard::Lost),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Heard::Message(Message { namespace, bytes: buffer.get(..len).unwrap_or_default() }))
}

/// The number of the namespace that a message is about.
fn number_of(control: &ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(control) = control else { return None };
    let header = control.cmsg_header;
    let is_number =
        header.cmsg_level == libc::SOL_NETLINK && header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID;
    let bytes = control.data_bytes.first_chunk::<4>().filter(|_| is_number)?;
    Some(i32::from_ne_bytes(*bytes))
}

fn translate(message: &RouteNetlinkMessage) -> Option<NamespaceChange> {
    match message {
        RouteNetlinkMessage::NewLink(_) => parse_link(message).map(NamespaceChange::Link),
        RouteNetlinkMessage::DelLink(_) => {
            parse_link(message).map(|link| NamespaceChange::LinkGone(link.index))
        }
        RouteNetlinkMessage::DelAddress(_) => parse_address(message)
            .map(|(index, address)| NamespaceChange::AddressGone(index, address)),
        RouteNetlinkMessage::NewRoute(route) => read_route(route).map(NamespaceChange::Route),
        RouteNetlinkMessage::DelRoute(route) => read_route(route).map(NamespaceChange::RouteGone),
        RouteNetlinkMessage::DelRule(rule) => read_rule(rule).map(NamespaceChange::RuleGone),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_decoded_is_a_change() {
        for len in 0..40 {
            let bytes = vec![0xff; len];
            let message = Message { namespace: Some(1), bytes: &bytes };
            assert_eq!(message.change(), Some(NamespaceChange::Unknown), "{len}");
        }
    }
}
