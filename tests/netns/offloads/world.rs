//! Two hosts, two tenants with the same addresses, and the offload switches of every device between
//! their containers.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use culvert_tests::{
    cluster::{Cluster, Host, unique_name},
    external::External,
    netns::{Netns, Underlay},
    sock::container,
};

use super::cover::Row;
use crate::assistants::{with_gro, without_gro};

/// A switch that is not a feature of the kernel, see [`vxlan_socket`].
const VXLAN: &str = "vxlan";

/// The devices between two containers, from a container to the switch, and the offload switches of
/// each with their defaults.
///
/// Some settings must stay as the agent or the kernel sets them, so they are not switched: a frame
/// of several UDP datagrams does not survive the tunnel (`ENCAPSULATION_OFFLOADS` in
/// `netlink/ethtool.rs`). A container's device cuts such frames, and the host's end does not merge
/// them again.
pub(crate) const DEVICES: [(&str, &[(&str, bool)]); 4] = [
    ("container", &[("tx", true), ("tso", true), ("gso", true), ("gro", false), ("rx", true)]),
    ("veth", &[("gro", false)]),
    (
        "uplink",
        &[
            ("tx", true),
            ("tso", true),
            ("gso", true),
            ("gro", false),
            ("rx", true),
            ("tx-udp-segmentation", true),
            ("tx-udp_tnl-segmentation", true),
            ("rx-udp-gro-forwarding", false),
            ("rx-gro-list", false),
            (VXLAN, true),
        ],
    ),
    (
        "switch",
        &[
            ("tx", true),
            ("tso", true),
            ("tx-udp-segmentation", true),
            ("tx-udp_tnl-segmentation", true),
        ],
    ),
];

/// A tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) network: &'static str,
    pub(crate) vni: u32,
}

pub(crate) const RED: Tenant = Tenant { network: "red", vni: 1001 };
/// See [`RED`].
pub(crate) const BLUE: Tenant = Tenant { network: "blue", vni: 1002 };

/// A tenant's container.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) netns: PathBuf,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) external: External,
    /// A container of a bridge network on the first host.
    pub(crate) bridge: PathBuf,
    containers: [[Container; 2]; 2],
    /// The host sides of the containers' veths, for each host.
    veths: [Vec<String>; 2],
}

/// Whether GRO parses VXLAN on a host's devices: the agent's vxlan device enables it.
pub(crate) fn vxlan_socket(host: &Netns, on: bool) {
    if on { with_gro(host) } else { without_gro(host) }
}

impl World {
    pub(crate) fn new() -> Self {
        let cluster = Cluster::new(2);
        let external = External::of(&cluster);
        for Tenant { network, vni } in [RED, BLUE] {
            let vni = vni.to_string();
            cluster.hosts[0].overlay(
                network,
                "10.0.0.0/24",
                &["--subnet", "fd00:10::/64", "--opt", "allow_overlap=true", "--vni", &vni],
            );
            cluster.wait_network(network);
        }
        // A port of a host can be published once only.
        let publish = ["-p", "8080:80", "-p", "8090:90/udp", "-p", "8092:92/udp"];
        let containers = [RED, BLUE].map(|tenant| {
            [0_u8, 1].map(|host| {
                let (v4, name) = (format!("10.0.0.{}", host + 2), unique_name(tenant.network));
                let published = tenant == RED && host == 1;
                let options = [&["--ip", &v4][..], if published { &publish } else { &[] }].concat();
                let host = &cluster.hosts[usize::from(host)];
                host.run_idle(&name, tenant.network, &options);
                host.in_container(&name, "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range");
                // `2: eth0    inet6 fd00:10::2/64 scope global ...`
                let v6 = host.in_container(&name, "ip -6 -o addr show eth0 scope global");
                let v6 = v6.split_whitespace().nth(3).and_then(|v6| v6.split('/').next()).unwrap();
                let v6 = v6.parse().unwrap();
                Container { netns: container(&name), v4: v4.parse().unwrap(), v6 }
            })
        });
        let bridge = unique_name("bridge");
        cluster.hosts[0].run_idle(&bridge, "bridge", &publish);
        let range = "echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range";
        cluster.hosts[0].in_container(&bridge, range);
        let bridge = container(&bridge);
        let mut world = Self { veths: [vec![], vec![]], cluster, external, bridge, containers };
        for host in 0..2 {
            let veths = world.inside(host).iter().map(|netns| world.veth(host, netns)).collect();
            world.veths[host] = veths;
        }
        world.queue();
        world
    }

    /// Gives the devices queues. A device with a queue waits for the device at its other end, like
    /// a network card, so no frame of a burst is lost.
    fn queue(&self) {
        let queue = "root pfifo limit 10000";
        for host in 0..2 {
            let (uplink, port) = self.uplink(host);
            uplink.run(&format!("tc qdisc replace dev up0 {queue}"));
            self.cluster.switch.run(&format!("tc qdisc replace dev {port} {queue}"));
            for netns in self.inside(host) {
                run(netns, &format!("tc qdisc replace dev eth0 {queue}"));
            }
        }
    }

    fn host(&self, host: usize) -> &Host {
        &self.cluster.hosts[host]
    }

    /// The containers on a host.
    fn inside(&self, host: usize) -> Vec<&Path> {
        let bridge = (host == 0).then_some(self.bridge.as_path());
        self.containers.iter().map(|pair| pair[host].netns.as_path()).chain(bridge).collect()
    }

    /// The host side of a container's veth.
    fn veth(&self, host: usize, netns: &Path) -> String {
        // In `eth0@if7` the 7 is the ifindex of the host side.
        let link = run(netns, "ip -o link show eth0");
        let number = link.split("@if").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
        let link = self.host(host).netns.run(&format!("ip -o link | grep '^{number}: '"));
        link.split([':', '@']).nth(1).unwrap().trim().to_owned()
    }

    /// The namespace of a host's uplink, and the switch's port at its other end.
    pub(crate) fn uplink(&self, host: usize) -> (&Netns, String) {
        (&self.host(host).netns, format!("p{host}"))
    }

    /// A tenant's containers, on the first host and the second.
    pub(crate) fn pair(&self, tenant: Tenant) -> &[Container; 2] {
        &self.containers[usize::from(tenant == BLUE)]
    }

    /// Namespaces of the servers.
    pub(crate) fn servers(&self) -> Vec<&Path> {
        let second = self.containers.iter().map(|pair| pair[1].netns.as_path());
        second.chain([self.bridge.as_path(), self.external.host.path()]).collect()
    }

    /// The published ports: the driver of the network, the host's address, and the container.
    pub(crate) fn published(&self) -> [(&'static str, Ipv4Addr, &Path); 2] {
        let [_, red] = self.pair(RED);
        [
            ("bridge", self.host(0).vtep(), &self.bridge),
            ("overlay", self.host(1).vtep(), &red.netns),
        ]
    }

    /// Sets every switch.
    pub(crate) fn set(&self, row: &Row) {
        let mut positions = row.iter();
        for host in 0..2 {
            let uplink = &self.host(host).netns;
            for (device, switches) in DEVICES {
                let mut options = String::new();
                for (feature, _) in switches {
                    let on = *positions.next().unwrap();
                    if *feature == VXLAN {
                        vxlan_socket(uplink, on);
                    } else {
                        options += &format!(" {feature} {}", if on { "on" } else { "off" });
                    }
                }
                let set = |ifname: &str| format!("ethtool -K {ifname}{options}");
                match device {
                    "container" => {
                        for netns in self.inside(host) {
                            run(netns, &set("eth0"));
                        }
                    }
                    "veth" => {
                        let all: Vec<_> = self.veths[host].iter().map(|name| set(name)).collect();
                        uplink.run(&all.join(" && "));
                    }
                    "uplink" => drop(uplink.run(&set(Underlay::UPLINK))),
                    _ => drop(self.cluster.switch.run(&set(&format!("p{host}")))),
                }
            }
        }
    }

    /// Whether UDP datagrams of one tunnel are merged on a host's uplink. `doctor` reports this
    /// setting as an error, and a burst of datagrams does not arrive.
    pub(crate) fn merges_udp(&self, row: &Row, host: usize) -> bool {
        let features = DEVICES.iter().flat_map(|(device, switches)| {
            switches.iter().map(move |(feature, _)| (*device, *feature))
        });
        let width = row.len() / 2;
        let on = |name: &str| {
            let number = features.clone().position(|each| each == ("uplink", name)).unwrap();
            row[host * width + number]
        };
        on("gro") && on(VXLAN) && (on("rx-udp-gro-forwarding") || on("rx-gro-list"))
    }

    /// The differences of a row from the defaults of the devices.
    pub(crate) fn describe(&self, row: &Row) -> String {
        let mut positions = row.iter();
        let mut told = String::new();
        for host in &self.cluster.hosts {
            for (device, switches) in DEVICES {
                for (feature, usual) in switches {
                    let on = *positions.next().unwrap();
                    if on != *usual {
                        let sign = if on { '+' } else { '-' };
                        told += &format!(" {}.{device}{sign}{feature}", host.node);
                    }
                }
            }
        }
        told
    }

    /// Number of frames from the tunnel that both hosts have delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.cluster.hosts.iter().map(|host| host.counter("from_underlay", "deliver")).sum()
    }

    /// Number of frames that the programs have dropped, by host and reason.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for host in &self.cluster.hosts {
            for row in host.json(&["stats"]).as_array().unwrap() {
                if row["verdict"] == "drop" {
                    let name = |key: &str| row[key].as_str().unwrap().to_owned();
                    let reason = [host.node.clone(), name("direction"), name("reason")].join(" ");
                    drops.insert(reason, row["packets"].as_u64().unwrap());
                }
            }
        }
        drops
    }
}

/// Runs a shell command that succeeds in a container's namespace.
fn run(netns: &Path, script: &str) -> String {
    Netns::here().run(&format!("nsenter --net={} sh -c '{script}'", netns.display()))
}
