//! Culvert: two agents, an etcd, containers of each kind.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, anyhow};
use culvert_testbed::{
    cluster::{Host, unique_name},
    etcd::{Config, EtcdServer},
    netns::Netns,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    arm::{Arm, FlowsTo, Scope},
    hosts::{self, Pair, run},
};
use crate::load::{PORT, Peers};

/// Overlay network.
const OVERLAY: &str = "bench";
/// Port of the host that is published for a container's port.
const PUBLISHED: u16 = 7100;

/// Kind of the containers' devices.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Device {
    /// The agents choose.
    Chosen,
    /// veth.
    Veth,
    /// netkit.
    Netkit,
}

impl Device {
    /// The agent's options.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Chosen => &[],
            Self::Veth => &["--device", "veth"],
            Self::Netkit => &["--device", "netkit"],
        }
    }

    /// Suffixes of the arms' ids, and of their titles.
    fn suffixes(self) -> [&'static str; 2] {
        match self {
            Self::Chosen => ["", ""],
            Self::Veth => ["-veth", ", on veth"],
            Self::Netkit => ["-netkit", ", on netkit"],
        }
    }
}

/// Two hosts with agents.
pub(crate) struct Culvert {
    device: Device,
    /// The agents' hosts.
    pub(crate) hosts: [Host; 2],
    /// Containers of the overlay network.
    pub(crate) overlay: [Container; 2],
    /// Containers of the bridge network.
    pub(crate) bridge: [Container; 2],
    etcd: EtcdServer,
}

/// Processes that are stopped.
pub(crate) struct Paused(Vec<Pid>);

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in self.0.iter().rev() {
            // The error is ignored: the process may have been killed meanwhile.
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// A container: a namespace that is attached to a network.
pub(crate) struct Container {
    /// Namespace.
    pub(crate) netns: Netns,
    /// Address.
    pub(crate) ip: Ipv4Addr,
}

impl Culvert {
    /// Makes the hosts and attaches the containers.
    pub(crate) fn new(device: Device) -> Result<Self> {
        let pair = Pair::new()?;
        // etcd runs on the clients' host, so that no frame of the store crosses the measured path.
        let etcd = EtcdServer::start_with(Config {
            netns: Some(pair.one.path().to_owned()),
            address: Some(Pair::ONE.into()),
            port: Some(2379),
            ..Config::default()
        })
        .map_err(|error| anyhow!("{error}"))?;
        let start = |index: u8, netns: Netns| {
            let mut host = Host::new(index, netns, etcd.client_url());
            host.start_agent(device.options());
            host
        };
        let mut hosts = [start(0, pair.one), start(1, pair.two)];
        for host in &mut hosts {
            host.wait_ready();
        }
        let [one, two] = &hosts;
        one.overlay(OVERLAY, "10.10.0.0/16", &[]);
        culvert_testbed::wait::wait_until(
            culvert_testbed::cluster::SOON,
            "the network on the second host",
            || two.culvert(&["network", "inspect", OVERLAY]).status.success(),
        );
        let [tcp, udp] = ["tcp", "udp"].map(|protocol| format!("{PUBLISHED}:{PORT}/{protocol}"));
        let overlay = [attach(one, OVERLAY, &[])?, attach(two, OVERLAY, &[])?];
        let bridge =
            [attach(one, "bridge", &[])?, attach(two, "bridge", &["-p", &tcp, "-p", &udp])?];
        Ok(Self { device, hosts, overlay, bridge, etcd })
    }

    /// The id of an arm on these hosts: `id` and the suffix of the device.
    pub(crate) fn id(&self, id: &str) -> String {
        format!("{id}{}", self.device.suffixes()[0])
    }

    /// Stops the agents and etcd until the result is dropped, so that they take no time of a
    /// measurement. The programs go on.
    pub(crate) fn paused(&self) -> Result<Paused> {
        let agents = self.hosts.iter().filter_map(|host| Some(host.agent.as_ref()?.pid()));
        let etcd = self.etcd.pid().and_then(|pid| Some(Pid::from_raw(pid.try_into().ok()?)));
        let mut paused = Paused(Vec::new());
        // The agents are stopped first: an agent must not see that etcd does not answer.
        for pid in agents.chain(etcd) {
            kill(pid, Signal::SIGSTOP)
                .with_context(|| format!("process {pid}: cannot be stopped"))?;
            paused.0.push(pid);
        }
        Ok(paused)
    }

    /// The arms on these hosts.
    pub(crate) fn arms(&self) -> Vec<Arm> {
        let [over1, over2] = &self.overlay;
        let [web1, web2] = &self.bridge;
        let (one, two) = (self.hosts[0].netns.path(), self.hosts[1].netns.path());
        let published = SocketAddrV4::new(Pair::TWO, PUBLISHED);
        let [suffix, words] = self.device.suffixes();
        let arm = |id: &str, title: &str, row, peers, scope| {
            Arm::new(&format!("{id}{suffix}"), &format!("{title}{words}"), row, peers, scope)
        };
        vec![
            arm(
                "culvert-overlay",
                "container to container, Culvert overlay",
                Some('A'),
                Peers::direct(over1.netns.path(), over2.netns.path(), over2.ip),
                Scope::Whole,
            ),
            arm(
                "culvert-snat-published",
                "container to published port of a container, Culvert bridge",
                Some('B'),
                Peers::published(web1.netns.path(), web2.netns.path(), published),
                Scope::Tcp,
            ),
            arm(
                "culvert-snat",
                "container to the other host, Culvert bridge and SNAT",
                None,
                Peers::direct(web1.netns.path(), two, Pair::TWO),
                Scope::Whole,
            )
            .with_flows(FlowsTo { server: two.to_owned() }),
            arm(
                "culvert-published",
                "host to published port of a container, Culvert bridge",
                Some('D'),
                Peers::published(one, web2.netns.path(), published),
                Scope::Tcp,
            ),
            arm(
                "culvert-local",
                "host to a container of its own, Culvert bridge",
                Some('E'),
                Peers::direct(one, web1.netns.path(), web1.ip),
                Scope::Tcp,
            ),
            arm(
                "culvert-host-mode",
                "host to a container in host mode, Culvert",
                Some('F'),
                Peers::direct(one, two, Pair::TWO),
                Scope::Tcp,
            ),
        ]
    }
}

/// Makes a namespace and attaches it to a network.
fn attach(host: &Host, network: &str, options: &[&str]) -> Result<Container> {
    let netns = Netns::new("container");
    run(&netns, hosts::TUNING)?;
    let (path, name) = (netns.path().display().to_string(), unique_name("bench"));
    let verb = ["attach", "--netns", &path, "--name", &name, "--network", network];
    host.ok(&[&verb[..], options].concat());
    let ip = host.ip(&name, network).parse().with_context(|| format!("{name}: address"))?;
    Ok(Container { netns, ip })
}

impl Container {
    /// Name of the host's end of the container's device pair.
    pub(crate) fn host_side(&self, host: &Host) -> Result<String> {
        let own: serde_json::Value = serde_json::from_str(&self.netns.run("ip -j link show eth0"))?;
        let peer = own.pointer("/0/link_index");
        let links: serde_json::Value = serde_json::from_str(&host.netns.run("ip -j link"))?;
        links
            .as_array()
            .and_then(|links| links.iter().find(|link| link.get("ifindex") == peer))
            .and_then(|link| link.get("ifname")?.as_str())
            .map(str::to_owned)
            .with_context(|| format!("{}: its veth has no other end", self.netns.name()))
    }

    /// Name of the device through which the host sends to the container.
    pub(crate) fn route_from(&self, host: &Host) -> Result<String> {
        let route: serde_json::Value =
            serde_json::from_str(&host.netns.run(&format!("ip -j route get {}", self.ip)))?;
        let device = route.pointer("/0/dev").and_then(|device| device.as_str());
        device.map(str::to_owned).with_context(|| format!("{}: no route", self.ip))
    }
}
