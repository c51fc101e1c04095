//! Addresses of interfaces.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope, CacheInfo,
    },
};

use super::{Netlink, Result};

/// Protocol of the addresses that [`Netlink::add_marked_address`] adds (`IFA_PROTO`). Values from 4
/// on are free (linux/if_addr.h); this one is also that of the routing rules.
const MARK: AddressProtocol = AddressProtocol::Other(67);
/// A lifetime without an end (`INFINITY_LIFE_TIME`).
const FOREVER: u32 = u32::MAX;

/// The subnet of an interface address: the address with its host bits cleared.
pub fn subnet_of(address: IpNetwork) -> IpNetwork {
    // The prefix length is valid: it is that of an address.
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

impl Netlink {
    /// Addresses of the interface.
    ///
    /// # Errors
    /// The interface does not exist.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpNetwork>> {
        let index = self.existing(name).await?.index;
        let all = self.all_addresses().await?;
        Ok(all.into_iter().filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
    }

    /// Adds an address with its prefix length. An IPv6 address is usable at once: duplicate address
    /// detection (RFC 4862 §5.4) is off, because the store gives each address to one owner only. No
    /// broadcast address is set, as in Docker.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub async fn add_address(&self, name: &str, address: IpNetwork) -> Result<()> {
        self.put_address(name, address, AddressFlags::empty(), false).await
    }

    /// Adds an address as [`Self::add_address`] does, with Culvert's mark. An IPv6 address is added
    /// as deprecated (RFC 4862 §5.5.4), so that the kernel does not choose it as a source address:
    /// otherwise the kernel would choose the newest address of a subnet. Of IPv4 addresses the
    /// kernel chooses the oldest one.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub async fn add_marked_address(&self, name: &str, address: IpNetwork) -> Result<()> {
        self.put_address(name, address, AddressFlags::empty(), true).await
    }

    /// Addresses of the interface that have Culvert's mark.
    ///
    /// # Errors
    /// The interface does not exist.
    pub async fn marked_addresses(&self, name: &str) -> Result<Vec<IpNetwork>> {
        let index = self.existing(name).await?.index;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let rows = self.dump("listing addresses", request).await?;
        let marked = rows.iter().filter(|row| is_marked(row)).filter_map(parse_address);
        Ok(marked.filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
    }

    /// As [`Self::add_address`], but the kernel adds no route to the subnet
    /// (`IFA_F_NOPREFIXROUTE`).
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub async fn add_address_alone(&self, name: &str, address: IpNetwork) -> Result<()> {
        self.put_address(name, address, AddressFlags::Noprefixroute, false).await
    }

    async fn put_address(
        &self,
        name: &str,
        address: IpNetwork,
        flags: AddressFlags,
        marked: bool,
    ) -> Result<()> {
        let index = self.existing(name).await?.index;
        let what = format!("adding address {address} to interface {name}");
        let mut message = message(index, address);
        if !flags.is_empty() {
            // The header has no room for this flag. The attribute replaces the flags of the header.
            let flags = flags | AddressFlags::from_bits_retain(message.header.flags.bits().into());
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        if marked {
            message.attributes.push(AddressAttribute::Protocol(MARK));
            if address.is_ipv6() {
                let mut lifetimes = CacheInfo::default();
                lifetimes.ifa_valid = FOREVER;
                message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            }
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
    }

    /// Removes an address.
    ///
    /// # Errors
    /// The kernel refuses. It is no error if the address or the interface does not exist.
    pub async fn delete_address(&self, name: &str, address: IpNetwork) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let what = format!("removing address {address} from interface {name}");
        let request = RouteNetlinkMessage::DelAddress(message(link.index, address));
        match self.request(&what, request, 0).await {
            Err(error) if !gone(error.errno()) => Err(error),
            _ => Ok(()),
        }
    }

    /// All addresses of the namespace with the index of their interface.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn all_addresses(&self) -> Result<Vec<(u32, IpNetwork)>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let rows = self.dump("listing addresses", request).await?;
        Ok(rows.iter().filter_map(parse_address).collect())
    }
}

fn is_marked(message: &RouteNetlinkMessage) -> bool {
    let RouteNetlinkMessage::NewAddress(message) = message else { return false };
    message.attributes.contains(&AddressAttribute::Protocol(MARK))
}

fn gone(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::ENODEV))
}

fn message(index: u32, address: IpNetwork) -> AddressMessage {
    let ip = address.ip();
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.attributes.push(AddressAttribute::Address(ip));
    match ip {
        IpAddr::V4(ip) => {
            message.header.family = AddressFamily::Inet;
            // On a link that is not point-to-point, IFA_LOCAL and IFA_ADDRESS are equal.
            message.attributes.push(AddressAttribute::Local(IpAddr::V4(ip)));
            if ip.is_link_local() {
                message.header.scope = AddressScope::Link;
            }
        }
        IpAddr::V6(ip) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            if ip.is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
        }
    }
    message
}

pub(super) fn parse_address(message: &RouteNetlinkMessage) -> Option<(u32, IpNetwork)> {
    let (RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)) =
        message
    else {
        return None;
    };
    // On a point-to-point link IFA_ADDRESS is the peer's address. The interface's own address is
    // IFA_LOCAL, if that attribute is present.
    let ip = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        })
        .or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        })?;
    let address = IpNetwork::new(ip, message.header.prefix_len).ok()?;
    Some((message.header.index, address))
}
