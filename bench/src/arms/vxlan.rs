//! The kernel's vxlan device, as Docker and as flannel wire it.

use std::net::Ipv4Addr;

use anyhow::Result;
use culvert_testbed::netns::Netns;

use super::{
    arm::{Arm, Scope},
    hosts::{self, Pair, run},
};
use crate::load::Peers;

/// MTU within the tunnel.
const MTU: u32 = 1450;
/// VNI; Docker's begin at 4096.
const VNI: u32 = 4096;

/// Keeps the namespaces of an arm alive.
pub(super) struct Vxlan {
    _namespaces: Vec<Netns>,
}

impl Vxlan {
    /// Wires vxlan like Docker's overlay driver. Each host has a namespace with a bridge and a
    /// vxlan device. The device answers ARP itself and has an FDB entry of every MAC. Its socket
    /// stays in the host's namespace.
    pub(super) fn docker(pair: &Pair) -> Result<(Self, Arm)> {
        let overlays = [Netns::new("overlay1"), Netns::new("overlay2")];
        let containers = [container()?, container()?];
        let hosts = [(&pair.one, Pair::TWO), (&pair.two, Pair::ONE)];
        let sides = hosts.into_iter().zip(overlays.iter().zip(&containers));
        for (index, ((host, peer), (overlay, own))) in sides.enumerate() {
            let other = 1 - index;
            run(
                host,
                &format!(
                    "ip link add vxlan0 mtu {MTU} type vxlan id {VNI} dstport 4789 \
                     nolearning proxy l2miss l3miss && ip link set vxlan0 netns {}",
                    overlay.name()
                ),
            )?;
            run(overlay, &format!("ip link add br0 mtu {MTU} type bridge stp_state 0"))?;
            overlay.connect("veth0", own, "eth0", MTU);
            run(
                overlay,
                &format!(
                    "ip link set vxlan0 master br0 && ip link set veth0 master br0 && \
                     ip link set vxlan0 up && ip link set br0 up && \
                     ip neigh replace {ip} lladdr {mac} dev vxlan0 nud permanent && \
                     bridge fdb replace {mac} dev vxlan0 master static && \
                     bridge fdb replace {mac} dev vxlan0 self dst {peer}",
                    ip = address(other),
                    mac = mac(other),
                ),
            )?;
            run(
                own,
                &format!(
                    "ip link set eth0 down && ip link set eth0 address {} && \
                     ip link set eth0 up && ip addr add {}/24 dev eth0",
                    mac(index),
                    address(index)
                ),
            )?;
        }
        let [one, two] = &containers;
        let arm = Arm::new(
            "vxlan-docker",
            "container to container, kernel vxlan as Docker wires it",
            Some('A'),
            Peers::direct(one.path(), two.path(), address(1)),
            Scope::Whole,
        );
        let namespaces = overlays.into_iter().chain(containers).collect();
        Ok((Self { _namespaces: namespaces }, arm))
    }

    /// Wires vxlan like flannel: a routed vxlan device, and the containers of a host on a bridge
    /// with a subnet of their own.
    pub(super) fn flannel(pair: &Pair) -> Result<(Self, Arm)> {
        let containers = [container()?, container()?];
        let hosts = [(&pair.one, Pair::ONE, Pair::TWO), (&pair.two, Pair::TWO, Pair::ONE)];
        for (index, ((host, ip, peer), container)) in hosts.into_iter().zip(&containers).enumerate()
        {
            let (own, other) = (index + 1, 2 - index);
            let mac = |n: usize| format!("0e:00:00:00:00:{n:02x}");
            run(
                host,
                &format!(
                    "ip link add flannel.1 address {} mtu {MTU} type vxlan id 1 dstport 8472 \
                     dev {} local {ip} nolearning && \
                     ip addr add 10.244.{own}.0/32 dev flannel.1 && ip link set flannel.1 up && \
                     ip link add cni0 mtu {MTU} type bridge stp_state 0 && \
                     ip addr add 10.244.{own}.1/24 dev cni0 && ip link set cni0 up && \
                     ip neigh replace 10.244.{other}.0 lladdr {} dev flannel.1 nud permanent && \
                     bridge fdb replace {} dev flannel.1 self dst {peer} && \
                     ip route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink",
                    mac(own),
                    hosts::UPLINK,
                    mac(other),
                    mac(other),
                ),
            )?;
            host.connect("veth0", container, "eth0", MTU);
            run(host, "ip link set veth0 master cni0")?;
            run(
                container,
                &format!(
                    "ip addr add 10.244.{own}.2/24 dev eth0 && \
                     ip route add default via 10.244.{own}.1"
                ),
            )?;
        }
        let [one, two] = &containers;
        let arm = Arm::new(
            "vxlan-flannel",
            "container to container, kernel vxlan as flannel wires it",
            Some('A'),
            Peers::direct(one.path(), two.path(), Ipv4Addr::new(10, 244, 2, 2)),
            Scope::Whole,
        );
        Ok((Self { _namespaces: containers.into() }, arm))
    }
}

fn container() -> Result<Netns> {
    let netns = Netns::new("container");
    run(&netns, hosts::TUNING)?;
    Ok(netns)
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 0, index as u8 + 2)
}

fn mac(index: usize) -> String {
    format!("02:42:0a:14:00:{:02x}", index + 2)
}
