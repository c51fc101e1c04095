//! The neighbour table: MAC addresses by IP address on a link.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};

use super::{Netlink, Result};
use crate::model::MacAddr;

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface.
    pub ifindex: u32,
    /// Address.
    pub ip: IpAddr,
    /// MAC address, if the neighbour was ever resolved.
    pub mac: Option<MacAddr>,
    /// Whether the kernel would send to that MAC now (`NUD_VALID`).
    pub valid: bool,
    /// Whether the entry is permanent (`NUD_PERMANENT`). The kernel never resolves such an entry,
    /// and does not count it towards `gc_thresh3`.
    pub permanent: bool,
    /// Whether the kernel keeps the entry resolved by itself (`NTF_EXT_MANAGED`).
    pub managed: bool,
}

impl Netlink {
    /// The neighbour table, both families.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let rows = self.dump("listing neighbours", request).await?;
        Ok(rows.iter().filter_map(parse_neighbour).collect())
    }

    /// The entry of one address, if there is one.
    ///
    /// # Errors
    /// There is no interface with that index, or the kernel does not answer.
    pub async fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<Option<Neighbour>> {
        let what = format!("reading neighbour {ip} of interface number {ifindex}");
        let request = RouteNetlinkMessage::GetNeighbour(message(ifindex, ip));
        match self.request(&what, request, 0).await {
            Ok(rows) => Ok(rows.iter().find_map(parse_neighbour)),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters a neighbour for good. An entry that is permanent already stays as it is, whatever MAC
    /// it has. Returns whether it was entered.
    ///
    /// The kernel exempts permanent entries from the limit `gc_thresh3`, which all network
    /// namespaces share (`neigh_alloc` with `exempt_from_gc`, net/core/neighbour.c).
    ///
    /// # Errors
    /// There is no interface with that index, or the kernel refuses.
    pub async fn enter_neighbour(&self, ifindex: u32, ip: IpAddr, mac: MacAddr) -> Result<bool> {
        let present = self.neighbour(ifindex, ip).await?;
        if present.is_some_and(|neighbour| neighbour.permanent) {
            return Ok(false);
        }
        let what = format!("entering neighbour {ip} of interface number {ifindex}");
        let mut entry = message(ifindex, ip);
        entry.header.state = NeighbourState::Permanent;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let request = RouteNetlinkMessage::NewNeighbour(entry);
        self.request(&what, request, NLM_F_CREATE | NLM_F_REPLACE).await?;
        Ok(true)
    }

    /// Makes the kernel resolve a neighbour and keep it resolved, so that a lookup by a BPF program
    /// succeeds. A kernel before Linux 5.16 resolves it only once. The kernel takes the permanence
    /// of a permanent entry away by this.
    ///
    /// # Errors
    /// There is no interface with that index, or the kernel refuses.
    pub async fn manage_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> {
        let what = format!("keeping neighbour {ip} of interface number {ifindex} resolved");
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let mut managed = message(ifindex, ip);
        managed.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        match self.request(&what, RouteNetlinkMessage::NewNeighbour(managed), flags).await {
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
                let mut once = message(ifindex, ip);
                once.header.flags = NeighbourFlags::Use;
                self.request(&what, RouteNetlinkMessage::NewNeighbour(once), flags).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }

    /// Removes a neighbour from the table.
    ///
    /// # Errors
    /// The kernel refuses. It is no error if the neighbour or its interface does not exist.
    pub async fn forget_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<()> {
        let what = format!("removing neighbour {ip} of interface number {ifindex}");
        let request = RouteNetlinkMessage::DelNeighbour(message(ifindex, ip));
        match self.request(&what, request, 0).await {
            Err(error)
                if !matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

fn message(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message
}

pub(super) fn parse_neighbour(row: &RouteNetlinkMessage) -> Option<Neighbour> {
    let (RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message)) =
        row
    else {
        return None;
    };
    let (mut ip, mut mac, mut managed) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            NeighbourAttribute::ExtFlags(flags) => {
                managed = flags.contains(NeighbourExtFlags::Managed);
            }
            _ => {}
        }
    }
    let valid = matches!(
        message.header.state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay
    );
    let permanent = message.header.state == NeighbourState::Permanent;
    Some(Neighbour { ifindex: message.header.ifindex, ip: ip?, mac, valid, permanent, managed })
}
