//! A host beyond the underlay, which knows no route to any container.

use std::net::Ipv4Addr;

use crate::{
    cluster::Cluster,
    netns::{Netns, Underlay},
};

/// A router on the underlay, and a host behind it.
#[derive(Debug)]
pub struct Outside {
    /// The router; its ports are `up0` to the underlay and `out0` to the host.
    pub router: Netns,
    /// The host.
    pub host: Netns,
}

impl Outside {
    /// Address of the host.
    pub const IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
    /// Place of the router on the underlay.
    const ROUTER: u8 = 100;

    /// Puts them behind a cluster's underlay, and gives its hosts their default route.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn of(cluster: &Cluster) -> Self {
        Self::behind(&cluster.switch, cluster.hosts.iter().map(|host| &host.netns))
    }

    /// The same behind a switch, for the hosts on it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn behind<'a>(switch: &Netns, hosts: impl IntoIterator<Item = &'a Netns>) -> Self {
        let router = Underlay::join(switch, Self::ROUTER);
        let host = Netns::new("outside");
        router.connect("out0", &host, "eth0", 1500);
        router.run("ip addr add 198.51.100.1/24 dev out0; sysctl -qw net.ipv4.ip_forward=1");
        host.run(&format!(
            "ip addr add {}/24 dev eth0; ip route add default via 198.51.100.1",
            Self::IP
        ));
        for each in hosts {
            let gateway = Underlay::address(Self::ROUTER);
            each.run(&format!("ip route replace default via {gateway}"));
        }
        Self { router, host }
    }
}
