//! Paths to the VTEPs, from the kernel's routing and neighbour tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use crate::datapath::entry::UnderlayPath;
use culvert_common::abi::VXLAN_OVERHEAD;

use crate::{
    agent::platform::{Paths, Remote},
    model::MacAddr,
    netlink::{Neighbour, Netlink, NetlinkError, RouteInfo},
};

/// Whose the neighbour entry of a next hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// The agent's: the kernel keeps it resolved (`NTF_EXT_MANAGED`).
    Managed,
    /// The administrator's: a permanent entry. It is used, and left alone.
    Permanent,
}

/// Next hops by interface index and address.
pub(super) type Hops = BTreeMap<(u32, IpAddr), Hop>;

/// The neighbours that the kernel is to keep resolved now that `hops` are the next hops. They were
/// `before`.
pub(super) fn to_manage(before: &Hops, hops: &Hops) -> Vec<(u32, IpAddr)> {
    let managed = hops.iter().filter(|(_, hop)| **hop == Hop::Managed);
    managed.filter(|(key, hop)| before.get(*key) != Some(*hop)).map(|(key, _)| *key).collect()
}

/// Facts about an interface that a path needs.
#[derive(Clone, Debug)]
struct PathDevice {
    name: String,
    mac: Option<MacAddr>,
    uplink: bool,
}

/// The neighbours, read once for all VTEPs, and the interfaces that were read so far.
#[derive(Debug)]
pub(super) struct UnderlayFacts {
    devices: HashMap<u32, PathDevice>,
    macs: HashMap<(u32, IpAddr), MacAddr>,
    /// The permanent ones. On an uplink only an administrator enters them.
    permanent: HashSet<(u32, IpAddr)>,
}

impl UnderlayFacts {
    pub(super) async fn read(netlink: &Netlink) -> Result<Self, NetlinkError> {
        let neighbours = netlink.neighbours().await?;
        let key = |neighbour: &Neighbour| (neighbour.ifindex, neighbour.ip);
        let permanent = neighbours.iter().filter(|neighbour| neighbour.permanent).map(key);
        let valid = neighbours.iter().filter(|neighbour| neighbour.valid);
        Ok(Self {
            devices: HashMap::new(),
            permanent: permanent.collect(),
            macs: valid.filter_map(|n| Some((key(n), n.mac?))).collect(),
        })
    }

    /// Whose a next hop's neighbour entry is.
    fn hop(&self, key: &(u32, IpAddr)) -> Hop {
        if self.permanent.contains(key) { Hop::Permanent } else { Hop::Managed }
    }

    /// The neighbours that the kernel is to forget now that `hops` are the next hops. They were
    /// `before`. An entry that the administrator has made permanent since stays.
    pub(super) fn to_forget(&self, before: &Hops, hops: &Hops) -> Vec<(u32, IpAddr)> {
        let managed = before.iter().filter(|(_, hop)| **hop == Hop::Managed);
        let left = managed.map(|(key, _)| *key).filter(|key| !hops.contains_key(key));
        left.filter(|key| self.hop(key) == Hop::Managed).collect()
    }

    /// The paths to all VTEPs, and the next hops of the VTEPs in use.
    pub(super) async fn resolve(
        &mut self,
        netlink: &Netlink,
        uplinks: &[String],
        vteps: &BTreeMap<Ipv4Addr, Remote>,
        used: &BTreeSet<Ipv4Addr>,
    ) -> Result<(Paths, Hops), NetlinkError> {
        let mut found = Paths::default();
        let mut hops = Hops::new();
        for (&vtep, &remote) in vteps {
            let route = match netlink.route_to(vtep.into()).await {
                Ok(route) => route,
                Err(error @ NetlinkError::NoRoute(_)) => {
                    found.problems.insert(vtep, format!("VTEP {vtep}: {error}"));
                    continue;
                }
                // The error does not tell whether there is a route.
                Err(error) => return Err(error),
            };
            self.meet(netlink, uplinks, route.ifindex).await?;
            match self.path(vtep, remote, &route) {
                Ok((path, warning)) => {
                    found.paths.insert(vtep.octets(), path);
                    if used.contains(&vtep) {
                        let key = (path.ifindex, Ipv4Addr::from(path.next_hop).into());
                        hops.insert(key, self.hop(&key));
                    }
                    found.problems.extend(warning.map(|warning| (vtep, warning)));
                }
                Err(why) => {
                    found.problems.insert(vtep, format!("VTEP {vtep}: {why}"));
                }
            }
        }
        Ok((found, hops))
    }

    /// Reads an interface unless it is known. A dump of all interfaces would take longer: a host
    /// has thousands of veths and few uplinks.
    async fn meet(
        &mut self,
        netlink: &Netlink,
        uplinks: &[String],
        ifindex: u32,
    ) -> Result<(), NetlinkError> {
        if self.devices.contains_key(&ifindex) {
            return Ok(());
        }
        let Ok(name) = nix::net::if_::if_indextoname(ifindex) else { return Ok(()) };
        let name = name.to_string_lossy().into_owned();
        if let Some(link) = netlink.link(&name).await? {
            let uplink = uplinks.contains(&name);
            self.devices.insert(link.index, PathDevice { name, mac: link.mac, uplink });
        }
        Ok(())
    }

    /// The path along a route, and its problem if it has one.
    fn path(
        &self,
        vtep: Ipv4Addr,
        Remote { port, mtu }: Remote,
        route: &RouteInfo,
    ) -> Result<(UnderlayPath, Option<String>), String> {
        if route.local {
            return Err("is an address of this host: that of another host is valid".to_owned());
        }
        let IpAddr::V4(next_hop) = route.next_hop else {
            return Err(format!("is routed through {}: an IPv4 next hop is valid", route.next_hop));
        };
        let device = self.devices.get(&route.ifindex);
        let device = device.ok_or_else(|| format!("its interface #{} is gone", route.ifindex))?;
        // The remote host silently drops a frame that is longer than its own MTU.
        let least = mtu.map_or(route.mtu, |mtu| route.mtu.min(mtu.into()));
        let inner_mtu = least.saturating_sub(VXLAN_OVERHEAD.into());
        let path = UnderlayPath {
            ifindex: route.ifindex,
            next_hop: next_hop.octets(),
            port,
            inner_mtu: u16::try_from(inner_mtu).unwrap_or(u16::MAX),
            next_hop_mac: self
                .macs
                .get(&(route.ifindex, route.next_hop))
                .map_or([0; 6], |mac| mac.0),
            uplink_mac: device.mac.map_or([0; 6], |mac| mac.0),
        };
        let warning = (!device.uplink).then(|| {
            format!(
                "VTEP {vtep}: is reached through {}, which is no uplink: its answers are not taken in there; start the agent with --uplink {}",
                device.name, device.name
            )
        });
        let unlike = mtu.filter(|mtu| u32::from(*mtu) != route.mtu).map(|mtu| {
            format!(
                "VTEP {vtep}: its MTU is {mtu} bytes, and that of the path from here {} bytes: packets over {inner_mtu} bytes do not pass; set the same MTU on both uplinks, or create networks with --mtu {inner_mtu}",
                route.mtu
            )
        });
        Ok((path, warning.or(unlike)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay() -> UnderlayFacts {
        let device = |name: &str, uplink| PathDevice {
            name: name.to_owned(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            uplink,
        };
        UnderlayFacts {
            devices: [(2, device("up0", true)), (3, device("mgmt", false))].into(),
            macs: [((2, IpAddr::from([192, 0, 2, 1])), MacAddr([2, 0, 0, 0, 0, 1]))].into(),
            permanent: HashSet::new(),
        }
    }

    fn route(ifindex: u32, next_hop: [u8; 4], mtu: u32) -> RouteInfo {
        RouteInfo { ifindex, next_hop: next_hop.into(), source: None, mtu, local: false }
    }

    fn remote(port: u16) -> Remote {
        Remote { port, mtu: None }
    }

    const VTEP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    #[test]
    fn a_routed_vtep_has_its_gateway_as_next_hop() {
        let (path, warning) =
            underlay().path(VTEP, remote(4789), &route(2, [192, 0, 2, 1], 1500)).unwrap();
        assert_eq!(warning, None);
        assert_eq!(
            path,
            UnderlayPath {
                ifindex: 2,
                next_hop: [192, 0, 2, 1],
                port: 4789,
                inner_mtu: 1450,
                next_hop_mac: [2, 0, 0, 0, 0, 1],
                uplink_mac: [2, 0, 0, 0, 0, 9],
            }
        );
    }

    #[test]
    fn the_smaller_mtu_of_both_ends_counts_and_is_named() {
        let path = |far: u16, here: u32| {
            let far = Remote { port: 4789, mtu: Some(far) };
            underlay().path(VTEP, far, &route(2, [192, 0, 2, 1], here)).unwrap()
        };
        for (far, here) in [(1500, 9000), (9000, 1500)] {
            let (path, warning) = path(far, here);
            assert_eq!(path.inner_mtu, 1450);
            assert!(warning.unwrap().contains("over 1450 bytes"));
        }
        let (path, warning) = path(9000, 9000);
        assert_eq!((path.inner_mtu, warning), (8950, None));
    }

    #[test]
    fn permanent_neighbours_are_left_alone() {
        let key = |last| (2, IpAddr::from([192, 0, 2, last]));
        let (own, other, fixed) = (key(1), key(2), key(3));
        let mut underlay = underlay();
        underlay.permanent.insert(fixed);
        let hops: Hops = [own, fixed].map(|key| (key, underlay.hop(&key))).into();
        assert_eq!(to_manage(&Hops::new(), &hops), [own]);
        assert!(to_manage(&hops, &hops).is_empty());
        // The other one is a next hop no more, and the fixed one was managed until now.
        let before: Hops = [own, other, fixed].map(|key| (key, Hop::Managed)).into();
        assert_eq!(underlay.to_forget(&before, &hops), [other]);
        assert_eq!(underlay.to_forget(&before, &Hops::new()), [own, other]);
        assert_eq!(underlay.to_forget(&hops, &Hops::new()), [own]);
        // It is permanent no more.
        let managed: Hops = [own, fixed].map(|key| (key, Hop::Managed)).into();
        assert_eq!(to_manage(&hops, &managed), [fixed]);
    }

    #[test]
    fn an_unresolved_next_hop_has_no_mac_yet() {
        let (path, _) =
            underlay().path(VTEP, remote(1), &route(2, [192, 0, 2, 5], 70_000)).unwrap();
        assert_eq!(path.next_hop_mac, [0; 6]);
        assert_eq!(path.inner_mtu, u16::MAX);
    }

    #[test]
    fn what_does_not_lead_out_is_named() {
        let (_, warning) =
            underlay().path(VTEP, remote(1), &route(3, [10, 9, 9, 9], 1500)).unwrap();
        assert!(warning.unwrap().contains("mgmt, which is no uplink"));
        let local = RouteInfo { local: true, ..route(1, [198, 51, 100, 7], 65_536) };
        assert!(underlay().path(VTEP, remote(1), &local).unwrap_err().contains("of this host"));
        assert!(
            underlay().path(VTEP, remote(1), &route(9, [1; 4], 9)).unwrap_err().contains("gone")
        );
        let v6 = RouteInfo { next_hop: "fe80::1".parse().unwrap(), ..route(2, [0; 4], 1500) };
        assert!(underlay().path(VTEP, remote(1), &v6).unwrap_err().contains("fe80::1"));
    }
}
