//! The network between hosts: a bridge as the switch, and each host's uplink on it.

#![expect(clippy::panic, reason = "a test whose underlay cannot be made fails with the cause")]

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::netns::Netns;

/// A switch: a bridge in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Switch<'a> {
    /// The namespace.
    pub netns: &'a Netns,
    /// Name of the bridge.
    pub bridge: &'a str,
}

/// The link between a host and a switch.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// The switch's device.
    pub name: &'a str,
    /// The host's device.
    pub uplink: &'a str,
    /// The host's address; its prefix length is 24.
    pub ip: Ipv4Addr,
    /// MTU of both devices, in bytes.
    pub mtu: u32,
}

impl Switch<'_> {
    /// Makes the bridge, without spanning tree and multicast snooping.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(&self, mtu: u32) -> Result<()> {
        // A bridge without a set MAC address takes the lowest MAC address of its ports. A new port
        // could change that address. The hosts' neighbour entries for the address on the bridge
        // (etcd's) would then be wrong.
        self.netns.sh(&format!(
            "ip link add {0} address 02:00:00:00:00:fe type bridge \
             stp_state 0 forward_delay 0 mcast_snooping 0 && ip link set {0} mtu {mtu} up",
            self.bridge
        ))?;
        Ok(())
    }

    /// Connects a host to the switch.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn plug(&self, host: &Netns, port: &Port<'_>) -> Result<()> {
        let Port { name, uplink, ip, mtu } = *port;
        self.netns.link(name, host, uplink, mtu)?;
        self.netns.sh(&format!("ip link set {name} master {}", self.bridge))?;
        host.sh(&format!("ip addr add {ip}/24 dev {uplink}"))?;
        Ok(())
    }
}

/// Puts a queue of `frames` in front of a veth. The veth's own ring is short and drops silently.
/// With a queue the veth gives back-pressure, as a network card does.
///
/// # Errors
/// The kernel refuses.
pub fn queue(netns: &Netns, device: &str, frames: u32) -> Result<()> {
    netns.sh(&format!("tc qdisc add dev {device} root pfifo limit {frames}")).map(drop)
}

/// Name of the bridge in an [`Underlay`].
const BRIDGE: &str = "br0";

/// Hosts that reach each other.
#[derive(Debug)]
pub struct Underlay {
    /// The hosts; each has the uplink [`Underlay::UPLINK`].
    pub hosts: Vec<Netns>,
    /// The namespace of the switch, if there is one; its port `pN` leads to host N.
    pub switch: Option<Netns>,
}

impl Underlay {
    /// Name of each host's uplink.
    pub const UPLINK: &str = "up0";

    /// `count` hosts on one bridge without spanning tree.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn bridged(count: u8, mtu: u32) -> Self {
        let switch = Netns::new("switch");
        // Only frames of the hosts may be on the wire.
        switch.run(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        );
        must(Switch { netns: &switch, bridge: BRIDGE }.make(mtu));
        let hosts = (0..count)
            .map(|index| {
                let host = Netns::new(&format!("host{index}"));
                Self::plug(&switch, &host, index, mtu);
                host
            })
            .collect();
        Self { hosts, switch: Some(switch) }
    }

    /// Two hosts on one veth pair.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn direct(mtu: u32) -> Self {
        let (one, two) = (Netns::new("host0"), Netns::new("host1"));
        one.connect(Self::UPLINK, &two, Self::UPLINK, mtu);
        for (index, host) in (0..).zip([&one, &two]) {
            host.run(&format!("ip addr add {}/24 dev {}", Self::address(index), Self::UPLINK));
        }
        Self { hosts: vec![one, two], switch: None }
    }

    /// Underlay address of a host: 192.0.2.1 for the first (RFC 5737).
    pub fn address(index: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, index + 1)
    }

    /// One more host on a switch, with the address of `index`.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn join(switch: &Netns, index: u8) -> Netns {
        let host = Netns::new("plain");
        Self::plug(switch, &host, index, 1500);
        host
    }

    fn plug(switch: &Netns, host: &Netns, index: u8, mtu: u32) {
        let port = Port {
            name: &format!("p{index}"),
            uplink: Self::UPLINK,
            ip: Self::address(index),
            mtu,
        };
        must(Switch { netns: switch, bridge: BRIDGE }.plug(host, &port));
    }
}

fn must<T>(made: Result<T>) -> T {
    match made {
        Ok(made) => made,
        Err(error) => panic!("{error:#}"),
    }
}
