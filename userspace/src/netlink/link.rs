//! Interfaces.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
        InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    },
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Netlink, NetlinkError, Result};
use crate::model::MacAddr;

/// Least and greatest MTU of a veth or netkit device, in bytes: `ETH_MIN_MTU` and `ETH_MAX_MTU`
/// (linux/if_ether.h). Below the least, IPv4 cannot work (RFC 791 §3.2).
const PAIR_MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC address, if it is an Ethernet device.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the administrator has set it up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether it resolves neighbours (ARP).
    pub arp: bool,
    /// Kind: `veth`, `netkit`, `bridge`, `vxlan` and so on; `None` for hardware.
    pub kind: Option<String>,
    /// Alias. `culvert:` and an endpoint id mark a device of Culvert.
    pub alias: Option<String>,
    /// Index of the other end of a pair, in the other end's namespace.
    pub peer_index: Option<u32>,
    /// This namespace's number for the namespace of the other end, see [`Netlink::netns_id`].
    /// `None` if both ends are in this namespace.
    pub peer_netns_id: Option<i32>,
    /// Index of the bridge or bond that has the interface as a port.
    pub master: Option<u32>,
    /// UDP port on which a kernel vxlan device receives.
    pub vxlan_port: Option<u16>,
    /// VNI of a kernel vxlan device. `None` if it has none of its own (`external`).
    pub vxlan_vni: Option<u32>,
    /// Root queueing discipline, such as `noqueue` or `tbf`.
    pub qdisc: Option<String>,
    /// Identifier of its XDP program.
    pub xdp_program: Option<u32>,
    /// Addresses.
    pub addresses: Vec<IpNetwork>,
}

/// What the packets of an interface begin with where programs see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Ip,
}

impl Link {
    /// What the packets of the interface begin with. `None`: neither, or it is not certain. A
    /// packet of an xfrm interface may have an Ethernet header or none, as it came in; that of an
    /// ipip or gre device begins with the outer IP header.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        match (self.mac, self.kind.as_deref()) {
            (Some(_), _) => Some(Framing::Ethernet),
            (None, Some("tun" | "wireguard")) => Some(Framing::Ip),
            (None, _) => None,
        }
    }
}

/// Refuses a name that the kernel does not accept (`dev_valid_name`), and `%`, which the kernel
/// treats as a pattern.
///
/// # Errors
/// [`NetlinkError::MalformedName`].
pub fn check_ifname(name: &str) -> Result<()> {
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%' | '\0'));
    if valid { Ok(()) } else { Err(NetlinkError::MalformedName(name.to_owned())) }
}

impl Netlink {
    /// All interfaces with their addresses, in the order of their index.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let rows = self
            .dump("listing interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .await?;
        let mut addresses: HashMap<u32, Vec<IpNetwork>> = HashMap::new();
        for (index, address) in self.all_addresses().await? {
            addresses.entry(index).or_default().push(address);
        }
        let mut links: Vec<Link> = rows.iter().filter_map(parse_link).collect();
        for link in &mut links {
            link.addresses = addresses.remove(&link.index).unwrap_or_default();
        }
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The interface `name` without its addresses, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        check_ifname(name)?;
        let what = format!("reading interface {name}");
        match self.request(&what, RouteNetlinkMessage::GetLink(named(name)), 0).await {
            Ok(rows) => Ok(rows.iter().find_map(parse_link)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Netlink::link`], but a missing interface is an error.
    pub(super) async fn existing(&self, name: &str) -> Result<Link> {
        self.link(name).await?.ok_or_else(|| NetlinkError::NoSuchInterface(name.to_owned()))
    }

    /// Makes a bridge without ports and without spanning tree: a device that can have an address
    /// and stays up by itself. The bridge is down. Returns its index.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`].
    pub async fn create_bridge(&self, name: &str, mac: Option<MacAddr>) -> Result<u32> {
        self.create_bridge_with(name, mac, Vec::new()).await
    }

    /// As [`Netlink::create_bridge`], but multicast snooping is off. With snooping the bridge joins
    /// a group when it comes up (RFC 4286) and so sends packets of its own.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`].
    pub async fn create_silent_bridge(&self, name: &str, mac: MacAddr) -> Result<u32> {
        self.create_bridge_with(name, Some(mac), vec![InfoBridge::MulticastSnooping(false)]).await
    }

    async fn create_bridge_with(
        &self,
        name: &str,
        mac: Option<MacAddr>,
        mut options: Vec<InfoBridge>,
    ) -> Result<u32> {
        check_ifname(name)?;
        options.push(InfoBridge::StpState(BridgeStpState::Disabled));
        let mut message = named(name);
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(options)),
        ]));
        self.create(name, message).await
    }

    /// Makes a vxlan device with an empty VNI list (`external vnifilter`). It drops every frame
    /// that it receives or is given to send. The device is down. Returns its index.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`] if an interface has that name; the kernel does not support such
    /// devices, or another device has the same parameters.
    pub async fn create_vnifilter_vxlan(&self, name: &str, mac: MacAddr, port: u16) -> Result<u32> {
        let list = [InfoVxlan::CollectMetadata(true), InfoVxlan::Vnifilter(true)];
        self.create_vxlan_with(name, mac, port, &list).await
    }

    /// Makes a vxlan device with the VNI `vni` and no other VTEP: it drops every frame that it is
    /// given to send. It shares its socket with other such devices on the same port, also with those
    /// of other programs. The device is down. Returns its index.
    ///
    /// # Errors
    /// As [`Netlink::create_vnifilter_vxlan`].
    pub async fn create_vxlan(&self, name: &str, mac: MacAddr, port: u16, vni: u32) -> Result<u32> {
        self.create_vxlan_with(name, mac, port, &[InfoVxlan::Id(vni)]).await
    }

    async fn create_vxlan_with(
        &self,
        name: &str,
        mac: MacAddr,
        port: u16,
        kind: &[InfoVxlan],
    ) -> Result<u32> {
        check_ifname(name)?;
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        let settings = [InfoVxlan::Learning(false), InfoVxlan::Port(port)];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan([&settings[..], kind].concat())),
        ]));
        match self.create(name, message).await {
            // The kernel returns the same error for a device that differs only in its name.
            Err(NetlinkError::NameTaken(_)) if self.link(name).await?.is_none() => {
                let what = format!("creating interface {name}");
                let source = std::io::Error::from_raw_os_error(Errno::EADDRINUSE as i32);
                Err(NetlinkError::kernel(what, source))
            }
            other => other,
        }
    }

    pub(super) async fn create(&self, name: &str, message: LinkMessage) -> Result<u32> {
        let what = format!("creating interface {name}");
        let request = RouteNetlinkMessage::NewLink(message);
        match self.request(&what, request, NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(_) => Ok(self.existing(name).await?.index),
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                Err(NetlinkError::NameTaken(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the interface up.
    ///
    /// # Errors
    /// The interface does not exist, or the kernel refuses.
    pub async fn set_up(&self, name: &str) -> Result<()> {
        let mut message = named(name);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(name, "setting up", message).await
    }

    /// Sets the interface down.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub async fn set_down(&self, name: &str) -> Result<()> {
        let mut message = named(name);
        message.header.change_mask = LinkFlags::Up;
        self.change(name, "setting down", message).await
    }

    /// Turns neighbour resolution off on the interface: the frames that it sends have its own MAC
    /// as the destination.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub async fn set_noarp(&self, name: &str) -> Result<()> {
        let mut message = named(name);
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        self.change(name, "switching ARP off on", message).await
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// [`NetlinkError::Mtu`]; and as [`Netlink::set_up`].
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        check_mtu(name, mtu)?;
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.change(name, &format!("setting MTU {mtu} of"), message).await
    }

    /// Sets the MAC address.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub async fn set_mac(&self, name: &str, mac: MacAddr) -> Result<()> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.change(name, &format!("setting MAC address {mac} of"), message).await
    }

    /// Sets the alias, at most 255 bytes.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub async fn set_alias(&self, name: &str, alias: &str) -> Result<()> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.change(name, "setting the alias of", message).await
    }

    /// Renames an interface, which most kernels allow only while it is down.
    ///
    /// # Errors
    /// [`NetlinkError::NameTaken`]; and as [`Netlink::set_up`].
    pub async fn rename(&self, name: &str, new: &str) -> Result<()> {
        check_ifname(new)?;
        let mut message = LinkMessage::default();
        message.header.index = self.existing(name).await?.index;
        message.attributes.push(LinkAttribute::IfName(new.to_owned()));
        match self.change(name, &format!("renaming to {new}"), message).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                Err(NetlinkError::NameTaken(new.to_owned()))
            }
            other => other,
        }
    }

    /// Makes an interface a port of the bridge with the ifindex `bridge`. 0 removes the interface
    /// from its bridge.
    ///
    /// # Errors
    /// As [`Netlink::set_up`].
    pub async fn set_controller(&self, name: &str, bridge: u32) -> Result<()> {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Controller(bridge));
        let verb = if bridge == 0 { "removing the master of" } else { "setting the master of" };
        self.change(name, verb, message).await
    }

    /// Makes a port of a bridge treat frames to 01:80:c2:00:00:00 to 0f as all others
    /// (`group_fwd_mask`). Otherwise the host's stack receives most of them even from a port that is
    /// disabled (`br_handle_frame`, net/bridge/br_input.c).
    ///
    /// # Errors
    /// The interface does not exist or is no port of a bridge, or the kernel refuses.
    pub async fn treat_groups_alike(&self, name: &str) -> Result<()> {
        let what = format!("setting the group_fwd_mask of {name}");
        let mut message = named(name);
        // The kernel refuses the bit of 01:80:c2:00:00:01 (pause frames), which it drops.
        let port = vec![InfoBridgePort::GroupFwdMask(!(1 << 1))];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]));
        self.request(&what, RouteNetlinkMessage::NewLink(message), 0).await.map(drop)
    }

    /// Deletes the interface, and its other end if it is one end of a pair.
    ///
    /// # Errors
    /// The kernel refuses. It is no error if the interface does not exist.
    pub async fn delete_link(&self, name: &str) -> Result<()> {
        check_ifname(name)?;
        let what = format!("deleting interface {name}");
        match self.request(&what, RouteNetlinkMessage::DelLink(named(name)), 0).await {
            Err(error) if error.errno() != Some(Errno::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// This namespace's number for the namespace `netns`. `None` if it has no number, because no
    /// interface here has its other end there.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn netns_id(&self, netns: BorrowedFd<'_>) -> Result<Option<i32>> {
        let mut message = NsidMessage::default();
        // A descriptor is never negative.
        message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().unsigned_abs()));
        let rows = self
            .request("identifying a network namespace", RouteNetlinkMessage::GetNsId(message), 0)
            .await?;
        Ok(rows
            .iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewNsId(message) => Some(&message.attributes),
                _ => None,
            })
            .flatten()
            .find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            }))
    }

    async fn change(&self, name: &str, verb: &str, message: LinkMessage) -> Result<()> {
        check_ifname(name)?;
        let what = format!("{verb} interface {name}");
        match self.request(&what, RouteNetlinkMessage::SetLink(message), 0).await {
            Ok(_) => Ok(()),
            Err(error) if error.errno() == Some(Errno::ENODEV) => {
                Err(NetlinkError::NoSuchInterface(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) fn check_mtu(interface: &str, mtu: u32) -> Result<()> {
    if PAIR_MTU.contains(&mtu) {
        return Ok(());
    }
    let (min, max) = (*PAIR_MTU.start(), *PAIR_MTU.end());
    Err(NetlinkError::Mtu { interface: interface.to_owned(), mtu, min, max })
}

/// A message about the interface with that name; with index 0 the kernel looks the name up.
pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

pub(super) fn parse_link(message: &RouteNetlinkMessage) -> Option<Link> {
    let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message
    else {
        return None;
    };
    // A message about a bridge port. A port that leaves its bridge is not a removed interface.
    if message.header.interface_family == AddressFamily::Bridge {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        arp: !flags.contains(LinkFlags::Noarp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            // An address of six bytes is not enough: IPsec's xfrm interfaces have one as well.
            LinkAttribute::Address(bytes) if has_ethernet_header(message) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Xdp(facts) => {
                link.xdp_program = facts.iter().find_map(|fact| match fact {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
            }
            LinkAttribute::Qdisc(name) => link.qdisc = Some(name.clone()),
            LinkAttribute::Link(index) => link.peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns_id = Some(*id),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            _ => {}
        }
    }
    Some(link)
}

/// Whether the frames of an interface begin with an Ethernet header.
fn has_ethernet_header(message: &LinkMessage) -> bool {
    matches!(message.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback)
}

fn parse_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                link.vxlan_port = data.iter().find_map(|item| match item {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                let is_external = data.contains(&InfoVxlan::CollectMetadata(true));
                link.vxlan_vni = data.iter().filter(|_| !is_external).find_map(|item| match item {
                    InfoVxlan::Id(vni) => Some(*vni),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_not_take_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "eth%d", "sixteen-bytes-xx", "a\tb"] {
            let error = check_ifname(name).unwrap_err().to_string();
            assert!(error.contains("malformed") && error.lines().count() == 1, "{error}");
        }
        for name in ["e", "eth0", "cv0123456789ab", "fifteen-bytes-x", "...", "naïve"] {
            check_ifname(name).unwrap();
        }
    }

    #[test]
    fn tunnels_have_no_mac() {
        let ethernet = [2, 0, 0, 0, 0, 1];
        let (eth, ip) = (Some(Framing::Ethernet), Some(Framing::Ip));
        for (what, layer, kind, address, framing) in [
            ("a network card", LinkLayerType::Ether, None, &ethernet[..], eth),
            ("veth", LinkLayerType::Ether, Some(InfoKind::Veth), &ethernet, eth),
            ("tap", LinkLayerType::Ether, Some(InfoKind::Tun), &ethernet, eth),
            ("lo", LinkLayerType::Loopback, None, &[0; 6], eth),
            ("OpenVPN, Tailscale", LinkLayerType::None, Some(InfoKind::Tun), &[], ip),
            ("WireGuard", LinkLayerType::None, Some(InfoKind::Wireguard), &[], ip),
            ("xfrm", LinkLayerType::None, Some(InfoKind::Xfrm), &ethernet, None),
            ("another device", LinkLayerType::None, None, &[], None),
            ("ppp", LinkLayerType::Ppp, None, &[], None),
            ("ipip", LinkLayerType::Tunnel, Some(InfoKind::IpIp), &[192, 0, 2, 1], None),
            ("gre", LinkLayerType::Ipgre, Some(InfoKind::GreTun), &[192, 0, 2, 1], None),
            ("InfiniBand", LinkLayerType::Infiniband, None, &[0x80; 20], None),
        ] {
            let mut message = named("x");
            message.header.link_layer_type = layer;
            message.attributes.push(LinkAttribute::Address(address.to_vec()));
            let infos = kind.map(LinkInfo::Kind).into_iter().collect();
            message.attributes.push(LinkAttribute::LinkInfo(infos));
            let link = parse_link(&RouteNetlinkMessage::NewLink(message)).unwrap();
            assert_eq!(link.mac.is_some(), framing == Some(Framing::Ethernet), "{what}");
            assert_eq!(link.framing(), framing, "{what}");
        }
    }

    #[test]
    fn the_range_of_the_mtu_is_named() {
        for mtu in [0, 67, 65536] {
            let error = check_mtu("eth0", mtu).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("MTU {mtu} of interface eth0 is out of range: 68 to 65535 is valid")
            );
        }
        check_mtu("eth0", 68).unwrap();
        check_mtu("eth0", 65535).unwrap();
    }
}
