//! An external host, behind a router on the underlay, without a route to any container.

#![expect(clippy::panic, reason = "a test whose namespace cannot be made fails with the cause")]

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{cluster::Cluster, netns::Netns, underlay::Underlay};

/// The host's device.
pub const DEVICE: &str = "eth0";

/// The router's device towards the host.
pub const ROUTER_DEVICE: &str = "out0";

/// The router's address towards the host.
const ROUTER_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Puts `host` behind `router`: [`External::IP`] is its address, and its default route leads to
/// the router, which forwards.
///
/// # Errors
/// The kernel refuses.
pub fn put_behind(router: &Netns, host: &Netns) -> Result<()> {
    router.link(ROUTER_DEVICE, host, DEVICE, 1500)?;
    router.sh(&format!(
        "ip addr add {ROUTER_IP}/24 dev {ROUTER_DEVICE} && sysctl -qw net.ipv4.ip_forward=1"
    ))?;
    host.sh(&format!(
        "ip addr add {}/24 dev {DEVICE} && ip route add default via {ROUTER_IP}",
        External::IP
    ))?;
    Ok(())
}

/// A router on the underlay, and a host behind it.
#[derive(Debug)]
pub struct External {
    /// The router; its interfaces are `up0` to the underlay and `out0` to the host.
    pub router: Netns,
    /// The host.
    pub host: Netns,
}

impl External {
    /// Address of the host (RFC 5737).
    pub const IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
    /// Index of the router on the underlay.
    const ROUTER: u8 = 100;

    /// Connects router and host to a cluster's underlay, and gives its hosts their default route.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn of(cluster: &Cluster) -> Self {
        Self::behind(&cluster.switch, cluster.hosts.iter().map(|host| &host.netns))
    }

    /// Connects router and host to a switch, for the hosts on it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn behind<'a>(switch: &Netns, hosts: impl IntoIterator<Item = &'a Netns>) -> Self {
        let router = Underlay::join(switch, Self::ROUTER);
        let host = Netns::new("external");
        if let Err(error) = put_behind(&router, &host) {
            panic!("{error:#}");
        }
        for each in hosts {
            let gateway = Underlay::address(Self::ROUTER);
            each.run(&format!("ip route replace default via {gateway}"));
        }
        Self { router, host }
    }
}
