//! A host with containers, connected as Docker does without its userland proxy: a Linux bridge, and
//! iptables for masquerading and published ports. Culvert is compared with it.

#![expect(clippy::panic, reason = "a fixture that cannot be made fails the test with the error")]

use std::process::{Command, Stdio};

use crate::{external::External, netns::Netns, underlay::Underlay};

/// A port of the host that is forwarded to a port of a container.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Port of the host.
    pub port: u16,
    /// Index of the container, from 0.
    pub container: u8,
    /// Port of the container.
    pub to: u16,
}

/// The iptables program that can make a NAT rule in this kernel. `None` if the kernel supports none
/// of them.
///
/// # Panics
/// When there is no iptables: `cargo xtask setup` installs it.
pub fn iptables() -> Option<&'static str> {
    let netns = Netns::new("iptables");
    let programs = ["iptables-nft", "iptables-legacy", "iptables"];
    let is_there = |program: &&str| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).status().is_ok()
    };
    if !programs.iter().any(is_there) {
        panic!("iptables: not installed: run 'cargo xtask setup'");
    }
    programs.into_iter().find(|program| {
        netns.succeeds(&format!(
            "{program} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 1 \
             -j DNAT --to-destination 172.17.0.2:1 && \
             {program} -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
        ))
    })
}

/// A host wired as Docker does, with its own switch and external host.
#[derive(Debug)]
pub struct Docker {
    /// The host.
    pub host: Netns,
    /// Namespaces of the containers; the first has 172.17.0.2.
    pub containers: Vec<Netns>,
    /// The router and the external host.
    pub external: External,
    /// The switch between host and router.
    pub switch: Netns,
}

impl Docker {
    /// A host with `count` containers that publishes `ports`, by the given iptables.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn new(iptables: &str, count: u8, ports: &[Published]) -> Self {
        let mut underlay = Underlay::bridged(1, 1500);
        let (Some(switch), Some(host)) = (underlay.switch, underlay.hosts.pop()) else {
            panic!("underlay: no switch, or no host");
        };
        let external = External::behind(&switch, [&host]);
        let containers = wire(&host, iptables, count, ports);
        Self { host, containers, external, switch }
    }
}

/// Gives a host `count` containers and publishes `ports`, by the given iptables. Returns the
/// containers' namespaces; the first has 172.17.0.2.
///
/// # Panics
/// When the kernel refuses.
pub fn wire(host: &Netns, iptables: &str, count: u8, ports: &[Published]) -> Vec<Netns> {
    host.run(
        "ip link add docker0 type bridge stp_state 0 forward_delay 0; \
             ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up; \
             sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.docker0.route_localnet=1; \
             sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true",
    );
    let containers = (0..count)
        .map(|index| {
            let container = Netns::new(&format!("docker{index}"));
            let veth = format!("veth{index}");
            host.connect(&veth, &container, "eth0", 1500);
            host.run(&format!(
                "ip link set {veth} master docker0; \
                     ip link set {veth} type bridge_slave hairpin on"
            ));
            let ip = address(index);
            container
                .run(&format!("ip addr add {ip}/16 dev eth0; ip route add default via 172.17.0.1"));
            container
        })
        .collect();
    let mut rules = vec![
        "-P FORWARD ACCEPT".to_owned(),
        "-t nat -N DOCKER".to_owned(),
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        "-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE".to_owned(),
        "-t nat -A POSTROUTING -o docker0 -m addrtype --src-type LOCAL -j MASQUERADE".to_owned(),
    ];
    for &Published { protocol, port, container, to } in ports {
        let ip = address(container);
        rules.push(format!(
            "-t nat -A DOCKER -p {protocol} --dport {port} -j DNAT --to-destination {ip}:{to}"
        ));
        // This rule is for a container that connects to itself through the host's port.
        rules.push(format!(
            "-t nat -A POSTROUTING -s {ip} -d {ip} -p {protocol} --dport {to} -j MASQUERADE"
        ));
    }
    for rule in rules {
        host.run(&format!("{iptables} -w {rule}"));
    }
    containers
}

/// Address of a container.
pub fn address(container: u8) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(172, 17, 0, container + 2)
}
