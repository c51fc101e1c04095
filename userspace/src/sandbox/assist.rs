//! The two assistant devices of the host, which no packet crosses: they make the BPF programs
//! faster.
//!
//! * [`GRO`], a vxlan device. While the kernel has a VXLAN socket, its GRO knows the format and
//!   merges the frames of an inner TCP connection before `from_underlay` receives them. The device
//!   has an empty VNI list (`vnifilter`), so it drops every packet that reaches its socket:
//!   reassembled fragments, and frames that arrive while no program is attached.
//! * [`ROOM`], a bridge that is down. A bridge makes all its ports reserve the headroom that the
//!   most demanding port needs, here [`GRO`]; a veth passes that headroom on to its peer. If the
//!   veths of containers are ports of the bridge, their frames have headroom for the outer header
//!   and need no copy. A port of a bridge that is down is disabled: a frame that `from_container`
//!   does not take, because it is not attached, is dropped there and does not reach the host.
//!
//! Culvert works without either device, only slower; so their absence is not an error.

use std::collections::BTreeSet;

use super::{Result, SandboxError, endpoint_of, sysctl};
use crate::{
    model::MacAddr,
    netlink::{Link, Netlink, NetlinkError},
    netns::run_in,
};

/// Name of the vxlan device. No other device of Culvert has this name: a gateway device has a
/// number after `cvg`, a container's veth has hexadecimal digits after `cv`.
pub const GRO: &str = "cvgro0";
/// Name of the bridge.
pub const ROOM: &str = "cvroom0";
/// The most ports of a Linux bridge (`BR_MAX_PORTS` less the number 0).
const MOST_PORTS: usize = 1023;

/// Parameters of an assistant device.
struct Kind {
    name: &'static str,
    kind: &'static str,
    alias: &'static str,
    /// MAC address. It tells a device that Culvert made but has not marked yet from a foreign one.
    /// On a bridge it keeps the address from changing with the ports.
    mac: MacAddr,
    owner: &'static str,
}

const GRO_KIND: Kind = Kind {
    name: GRO,
    kind: "vxlan",
    alias: "culvert-gro",
    mac: MacAddr([0x02, 0x43, 0x56, 0x47, 0x52, 0x4f]),
    owner: "the agent's vxlan device",
};
const ROOM_KIND: Kind = Kind {
    name: ROOM,
    kind: "bridge",
    alias: "culvert-room",
    mac: MacAddr([0x02, 0x43, 0x56, 0x52, 0x4f, 0x4d]),
    owner: "the agent's bridge",
};

impl Kind {
    fn is(&self, link: &Link) -> bool {
        link.kind.as_deref() == Some(self.kind)
            && match link.alias.as_deref() {
                Some(alias) => alias == self.alias,
                // The agent was stopped between the two requests.
                None => link.name == self.name && link.mac == Some(self.mac),
            }
    }

    /// The device, if it exists.
    async fn find(&self, netlink: &Netlink) -> Result<Option<Link>> {
        match netlink.link(self.name).await? {
            Some(link) if !self.is(&link) => Err(SandboxError::ForeignInterface {
                ifname: self.name.to_owned(),
                owner: self.owner.to_owned(),
            }),
            found => Ok(found),
        }
    }

    /// The host itself sends and receives nothing on the device.
    async fn mark(&self, netlink: &Netlink, link: &Link) -> Result<()> {
        if link.alias.is_none() {
            netlink.set_alias(self.name, self.alias).await?;
        }
        let name = self.name;
        run_in(netlink.netns(), move || sysctl::set("ipv6", name, "disable_ipv6", "1").map(drop))?
    }

    async fn found(&self, netlink: &Netlink) -> Result<Link> {
        self.find(netlink)
            .await?
            .ok_or_else(|| NetlinkError::NoSuchInterface(self.name.to_owned()).into())
    }
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

/// Whether a device is one of the two assistant devices.
pub fn is_assistant(link: &Link) -> bool {
    [GRO_KIND, ROOM_KIND].iter().any(|kind| kind.is(link))
}

/// Makes sure that the vxlan device exists for UDP port `port` and is up. Idempotent.
///
/// # Errors
/// An interface of that name does not belong to Culvert; another socket holds the port; the kernel
/// has no such device. If the device was made and cannot be brought up, `discard` is called with it
/// before it is removed.
pub async fn keep_gro(
    netlink: &Netlink,
    port: u16,
    discard: impl Fn(u32) + Send,
) -> Result<Assistant> {
    let there = GRO_KIND.find(netlink).await?;
    let (link, found) = match there {
        Some(link) if link.vxlan_filtered && link.vxlan_port == Some(port) => {
            let found = (!link.up).then_some("was down");
            (link, found)
        }
        other => {
            let mut found = "was missing";
            if other.is_some() {
                // An earlier agent with another UDP port has left the device, or another program
                // has made it.
                netlink.delete_link(GRO).await?;
                found = "had other settings";
            }
            netlink.create_vnifilter_vxlan(GRO, GRO_KIND.mac, port).await?;
            (GRO_KIND.found(netlink).await?, Some(found))
        }
    };
    GRO_KIND.mark(netlink, &link).await?;
    if !link.up
        && let Err(error) = netlink.set_up(GRO).await
    {
        // The kernel binds the port only when the device comes up.
        discard(link.index);
        netlink.delete_link(GRO).await?;
        return Err(error.into());
    }
    Ok(Assistant { index: link.index, found, master: link.master })
}

/// Makes sure that the bridge exists and is down. Idempotent.
///
/// # Errors
/// An interface of that name does not belong to Culvert, or the kernel refuses.
pub async fn keep_room(netlink: &Netlink) -> Result<Assistant> {
    let (link, found) = match ROOM_KIND.find(netlink).await? {
        Some(link) => {
            let found = link.up.then_some("was up");
            (link, found)
        }
        None => {
            netlink.create_silent_bridge(ROOM, ROOM_KIND.mac).await?;
            (ROOM_KIND.found(netlink).await?, Some("was missing"))
        }
    };
    if link.up {
        netlink.set_down(ROOM).await?;
    }
    ROOM_KIND.mark(netlink, &link).await?;
    Ok(Assistant { index: link.index, found, master: link.master })
}

/// Makes [`GRO`] and the host sides of containers ports of the bridge with the index `room`, up to
/// the bridge's limit. Host sides are left out if they are in `known`, as they have been ports, or
/// are ports of another device: another program has changed them, which the caller is to find and
/// tell. Returns the indices of the interfaces that are ports now.
///
/// # Errors
/// The kernel does not answer.
pub async fn fill_room(
    netlink: &Netlink,
    room: u32,
    known: &BTreeSet<u32>,
) -> Result<BTreeSet<u32>> {
    let links = netlink.links().await?;
    let is_port = |link: &&Link| link.master == Some(room);
    let mut ports: BTreeSet<u32> = links.iter().filter(is_port).map(|link| link.index).collect();
    let free = MOST_PORTS.saturating_sub(ports.len());
    let is_new = |link: &&Link| {
        let is_free = link.master.is_none() && !known.contains(&link.index);
        let ours = endpoint_of(link).is_some() && is_free;
        link.master != Some(room) && (ours || GRO_KIND.is(link))
    };
    // The first port is the one that determines the headroom.
    let mut missing: Vec<&Link> = links.iter().filter(is_new).collect();
    missing.sort_by_key(|link| !GRO_KIND.is(link));
    for link in missing.into_iter().take(free) {
        if !enrol(netlink, room, &link.name).await {
            break;
        }
        ports.insert(link.index);
    }
    Ok(ports)
}

/// Makes an interface a port of the bridge, and of no other one. Returns whether it is one now: a
/// bridge has at most 1023 ports. An interface that is no port is only slower.
pub async fn enrol(netlink: &Netlink, room: u32, name: &str) -> bool {
    let enrolled = netlink.set_controller(name, room).await;
    if let Err(error) = &enrolled {
        tracing::debug!("{error}; the interface works without the bridge");
    }
    enrolled.is_ok()
}

/// Removes both devices. Devices that do not belong to Culvert stay.
///
/// # Errors
/// The kernel refuses.
pub async fn remove_assistants(netlink: &Netlink) -> Result<()> {
    for kind in [GRO_KIND, ROOM_KIND] {
        if netlink.link(kind.name).await?.is_some_and(|link| kind.is(&link)) {
            netlink.delete_link(kind.name).await?;
        }
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
        for foreign in [
            link(GRO, "vxlan", None, None),
            link(GRO, "vxlan", Some("mine"), mac),
            link(GRO, "bridge", Some("culvert-gro"), mac),
            link("vx1", "vxlan", None, mac),
            link(ROOM, "bridge", None, mac),
            link("cvg256", "bridge", Some("culvert-gateway:256"), None),
        ] {
            assert!(!is_assistant(&foreign), "{foreign:?}");
        }
    }
}
