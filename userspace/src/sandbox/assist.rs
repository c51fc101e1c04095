//! The assistant devices of the host, which no packet crosses: they make the BPF programs faster.
//!
//! * [`GRO`], a vxlan device. While the kernel has a VXLAN socket, its GRO knows the format and
//!   merges the frames of an inner TCP connection before `from_underlay` receives them. The socket
//!   drops what reaches it (reassembled fragments, and frames that arrive while no program is
//!   attached), because the device has the VNI [`RESERVED_VNI`], and so no network has it. A frame
//!   with this VNI is dropped by the bridge, see below. A device with a VNI shares its socket with
//!   the vxlan devices of other programs on the same port. A device with a list of VNIs
//!   (`vnifilter`) would have to be the only one.
//! * [`ROOM`], a bridge that is down, and further bridges of the same kind. A bridge makes all its
//!   ports reserve the headroom that the most demanding port needs; a veth passes that headroom on
//!   to its peer. If the veths of containers are ports of the bridge, their frames have headroom for
//!   the outer header and need no copy. A port of a bridge that is down is disabled: a frame that
//!   `from_container` does not take, because it is not attached, is dropped there and does not reach
//!   the host. See [`super::Rooms`].
//! * One *lender* for each bridge, the port that needs the headroom of the outer header. That of the
//!   first bridge is [`GRO`]. That of a further bridge is a vxlan device that is down.
//!
//! Culvert works without these devices, only slower; so their absence is not an error.

use std::net::{Ipv4Addr, UdpSocket};

use culvert_common::abi::RESERVED_VNI;
use nix::errno::Errno;

use super::{Result, SandboxError, sysctl};
use crate::{
    model::MacAddr,
    netlink::{Link, Netlink, NetlinkError},
    netns::run_in,
};

/// Name of the vxlan device. No other device of Culvert has this name: a gateway device has a
/// number after `cvg`, a container's veth has hexadecimal digits after `cv`.
pub const GRO: &str = "cvgro0";
/// Name of the first bridge.
pub const ROOM: &str = "cvroom0";
/// Greatest number of a bridge: with it the names have at most 9 bytes.
pub(super) const LAST: u32 = 999;
/// UDP port of the lenders of the further bridges. They are down and do not bind it.
const LENDER_PORT: u16 = 4789;

/// Parameters of a kind of assistant devices. The name of a device is a prefix and a number.
#[derive(Debug)]
pub(super) struct Kind {
    prefix: &'static str,
    /// Greatest number.
    last: u32,
    kind: &'static str,
    alias: &'static str,
    /// MAC address. It tells a device that Culvert made but has not marked yet from a foreign one.
    /// On a bridge it keeps the address from changing with the ports.
    mac: MacAddr,
    owner: &'static str,
}

const GRO_KIND: Kind = Kind {
    prefix: "cvgro",
    last: 0,
    kind: "vxlan",
    alias: "culvert-gro",
    mac: MacAddr([0x02, 0x43, 0x56, 0x47, 0x52, 0x4f]),
    owner: "the agent's vxlan device",
};
pub(super) const ROOM_KIND: Kind = Kind {
    prefix: "cvroom",
    last: LAST,
    kind: "bridge",
    alias: "culvert-room",
    mac: MacAddr([0x02, 0x43, 0x56, 0x52, 0x4f, 0x4d]),
    owner: "the agent's bridge",
};
const LENDER_KIND: Kind = Kind {
    prefix: "cvhead",
    last: LAST,
    kind: "vxlan",
    alias: "culvert-head",
    mac: MacAddr([0x02, 0x43, 0x56, 0x48, 0x45, 0x44]),
    owner: "the agent's vxlan device",
};

impl Kind {
    fn name(&self, number: u32) -> String {
        format!("{}{number}", self.prefix)
    }

    /// The number in the name of a device of the kind.
    fn number(&self, name: &str) -> Option<u32> {
        let number = name.strip_prefix(self.prefix)?.parse::<u32>().ok()?;
        // Another form of the number, such as `01`, is no name of ours.
        (number <= self.last && self.name(number) == name).then_some(number)
    }

    /// The number of a device of the kind that Culvert made.
    pub(super) fn number_of(&self, link: &Link) -> Option<u32> {
        self.number(&link.name).filter(|_| self.is(link))
    }

    fn is(&self, link: &Link) -> bool {
        link.kind.as_deref() == Some(self.kind)
            && match link.alias.as_deref() {
                Some(alias) => alias == self.alias,
                // The agent was stopped between the two requests.
                None => self.number(&link.name).is_some() && link.mac == Some(self.mac),
            }
    }

    /// The device `name`, if it exists.
    async fn find(&self, netlink: &Netlink, name: &str) -> Result<Option<Link>> {
        match netlink.link(name).await? {
            Some(link) if !self.is(&link) => Err(SandboxError::ForeignInterface {
                ifname: name.to_owned(),
                owner: self.owner.to_owned(),
            }),
            found => Ok(found),
        }
    }

    /// The host itself sends and receives nothing on the device.
    async fn mark(&self, netlink: &Netlink, link: &Link) -> Result<()> {
        let name = link.name.as_str();
        if link.alias.is_none() {
            netlink.set_alias(name, self.alias).await?;
        }
        run_in(netlink.netns(), move || sysctl::set("ipv6", name, "disable_ipv6", "1").map(drop))?
    }

    async fn found(&self, netlink: &Netlink, name: &str) -> Result<Link> {
        self.find(netlink, name)
            .await?
            .ok_or_else(|| NetlinkError::NoSuchInterface(name.to_owned()).into())
    }

    /// Makes sure that a device is down and is marked. `there`: the device, unless it has just been
    /// made.
    async fn keep_down(
        &self,
        netlink: &Netlink,
        name: &str,
        there: Option<Link>,
    ) -> Result<Assistant> {
        let (link, missing) = match there {
            Some(link) => (link, None),
            None => (self.found(netlink, name).await?, Some("was missing")),
        };
        if link.up {
            netlink.set_down(name).await?;
        }
        self.mark(netlink, &link).await?;
        let found = missing.or(link.up.then_some("was up"));
        Ok(Assistant { index: link.index, found, master: link.master })
    }
}

/// Name of a bridge: `cvroom` and its number.
pub fn room_ifname(number: u32) -> String {
    ROOM_KIND.name(number)
}

/// Name of the lender of a bridge: [`GRO`], or `cvhead` and the bridge's number.
pub fn lender_ifname(number: u32) -> String {
    if number == 0 { GRO.to_owned() } else { LENDER_KIND.name(number) }
}

/// Whether a name has the form of the name of a bridge or of a further bridge's lender.
pub fn is_room_ifname(name: &str) -> bool {
    ROOM_KIND.number(name).is_some() || LENDER_KIND.number(name).is_some()
}

/// Whether a device is a bridge that Culvert made for host sides of containers.
pub fn is_room(link: &Link) -> bool {
    ROOM_KIND.is(link)
}

/// An assistant device that exists and has the right settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assistant {
    /// Interface index.
    pub index: u32,
    /// What was wrong with the device, in words. `None`: nothing.
    pub found: Option<&'static str>,
    /// Index of the bridge that had the device as a port.
    pub master: Option<u32>,
}

/// Whether a device is an assistant device.
pub fn is_assistant(link: &Link) -> bool {
    [GRO_KIND, ROOM_KIND, LENDER_KIND].iter().any(|kind| kind.is(link))
}

/// Whether a socket of another program has the UDP port `port`, such as the socket of a vxlan device
/// that is now in another namespace. Sets the vxlan device down, because its socket has the port,
/// too.
///
/// # Errors
/// An interface of the device's name does not belong to Culvert, or the kernel refuses.
pub async fn is_port_taken(netlink: &Netlink, port: u16) -> Result<bool> {
    if GRO_KIND.find(netlink, GRO).await?.is_some_and(|link| link.up) {
        netlink.set_down(GRO).await?;
    }
    let bound = run_in(netlink.netns(), move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    let errno = bound.err().and_then(|error| error.raw_os_error());
    Ok(errno == Some(Errno::EADDRINUSE as i32))
}

/// Makes sure that the vxlan device exists for UDP port `port`. [`open_gro`] brings it up.
/// Idempotent.
///
/// # Errors
/// An interface of that name does not belong to Culvert; the kernel has no such device.
pub async fn keep_gro(netlink: &Netlink, port: u16) -> Result<Assistant> {
    let there = GRO_KIND.find(netlink, GRO).await?;
    let (link, found) = match there {
        Some(link) if link.vxlan_vni == Some(RESERVED_VNI) && link.vxlan_port == Some(port) => {
            let found = (!link.up).then_some("was down");
            (link, found)
        }
        other => {
            let mut found = "was missing";
            if other.is_some() {
                // An earlier agent has left the device with other settings, or another program has
                // made it.
                netlink.delete_link(GRO).await?;
                found = "had other settings";
            }
            netlink.create_vxlan(GRO, GRO_KIND.mac, port, RESERVED_VNI).await?;
            (GRO_KIND.found(netlink, GRO).await?, Some(found))
        }
    };
    GRO_KIND.mark(netlink, &link).await?;
    Ok(Assistant { index: link.index, found, master: link.master })
}

/// Sets the vxlan device down, because it is no port of the first bridge.
///
/// # Errors
/// The kernel refuses.
pub async fn close_gro(netlink: &Netlink) -> Result<()> {
    Ok(netlink.set_down(GRO).await?)
}

/// Brings the vxlan device up. It must be a port of the first bridge, which drops the frames with
/// the device's VNI: without the bridge the host's stack would receive them. Idempotent.
///
/// # Errors
/// Another socket holds the port, or the kernel refuses. Then `discard` is called with the index of
/// the device before the device is removed.
pub async fn open_gro(netlink: &Netlink, index: u32, discard: impl Fn(u32) + Send) -> Result<()> {
    netlink.treat_groups_alike(GRO).await?;
    // The kernel binds the port only when the device comes up.
    let Err(error) = netlink.set_up(GRO).await else { return Ok(()) };
    discard(index);
    netlink.delete_link(GRO).await?;
    Err(error.into())
}

/// Makes sure that the bridge with this number exists and is down. Idempotent.
///
/// # Errors
/// An interface of that name does not belong to Culvert, or the kernel refuses.
pub async fn keep_room(netlink: &Netlink, number: u32) -> Result<Assistant> {
    let name = ROOM_KIND.name(number);
    let there = ROOM_KIND.find(netlink, &name).await?;
    if there.is_none() {
        netlink.create_silent_bridge(&name, ROOM_KIND.mac).await?;
    }
    ROOM_KIND.keep_down(netlink, &name, there).await
}

/// Makes sure that the lender of a further bridge exists and is down. Idempotent.
///
/// # Errors
/// An interface of that name does not belong to Culvert; the kernel has no such device.
pub async fn keep_lender(netlink: &Netlink, number: u32) -> Result<Assistant> {
    let name = LENDER_KIND.name(number);
    let there = LENDER_KIND.find(netlink, &name).await?;
    if there.is_none() {
        netlink.create_vnifilter_vxlan(&name, LENDER_KIND.mac, LENDER_PORT).await?;
    }
    LENDER_KIND.keep_down(netlink, &name, there).await
}

/// Removes all assistant devices. Devices that do not belong to Culvert stay.
///
/// # Errors
/// The kernel refuses.
pub async fn remove_assistants(netlink: &Netlink) -> Result<()> {
    for link in netlink.links().await?.iter().filter(|link| is_assistant(link)) {
        netlink.delete_link(&link.name).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_are_taken_for_ours() {
        let link = |name: &str, kind: &str, alias: Option<&str>, mac| Link {
            name: name.to_owned(),
            kind: Some(kind.to_owned()),
            alias: alias.map(str::to_owned),
            mac,
            ..Link::default()
        };
        let mac = Some(GRO_KIND.mac);
        assert!(is_assistant(&link(GRO, "vxlan", Some("culvert-gro"), None)));
        assert!(is_assistant(&link(GRO, "vxlan", None, mac)));
        assert!(is_assistant(&link(ROOM, "bridge", Some("culvert-room"), None)));
        assert!(is_assistant(&link("cvroom1", "bridge", None, Some(ROOM_KIND.mac))));
        assert!(is_assistant(&link("cvhead1", "vxlan", Some("culvert-head"), None)));
        for foreign in [
            link(GRO, "vxlan", None, None),
            link(GRO, "vxlan", Some("mine"), mac),
            link(GRO, "bridge", Some("culvert-gro"), mac),
            link("vx1", "vxlan", None, mac),
            link(ROOM, "bridge", None, mac),
            link("cvroom01", "bridge", None, Some(ROOM_KIND.mac)),
            link("cvgro1", "vxlan", None, mac),
            link("cvg256", "bridge", Some("culvert-gateway:256"), None),
        ] {
            assert!(!is_assistant(&foreign), "{foreign:?}");
        }
    }

    #[test]
    fn names_have_a_number() {
        assert_eq!((room_ifname(0).as_str(), lender_ifname(0).as_str()), (ROOM, GRO));
        assert_eq!((room_ifname(1).as_str(), lender_ifname(1).as_str()), ("cvroom1", "cvhead1"));
        for name in [ROOM, "cvroom999", "cvhead1"] {
            assert!(is_room_ifname(name), "{name}");
        }
        for other in
            ["cvroom", "cvroom1000", "cvroom01", "cvroom+1", "cvhead", GRO, "cv0123456789ab"]
        {
            assert!(!is_room_ifname(other), "{other}");
        }
    }
}
