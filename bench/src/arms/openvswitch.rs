//! Open vSwitch with its data path in user space: the data path that it uses if the kernel has no
//! module for it.
//!
//! The data path receives and sends frames by packet sockets. It must not get frames with
//! unfinished segmentation or checksums, so these offloads are off in the containers. The data path
//! adds the tunnel's header and sends the packet by the bridge that has the tunnel's address. So
//! the uplink is attached to a bridge, too.

use std::{net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context as _, Result};
use culvert_testbed::{netns::Netns, process::Process};
use tempfile::TempDir;

use super::{
    arm::{Arm, Scope},
    hosts::{self, Pair, run},
    program::{output, program},
};
use crate::load::Peers;

/// Id of the arm.
pub(super) const ID: &str = "openvswitch";
/// MTU within the tunnel.
const MTU: u32 = 1450;
/// VNI.
const VNI: u32 = 7;
/// Where Debian and Fedora have the schema of the data base.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// How long a command may wait for the daemons, in seconds.
const PATIENCE: &str = "--timeout=20";
/// Environment variables with the directories that the daemons write to.
const DIRECTORIES: [&str; 4] = ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"];

/// Both hosts' switches and containers.
pub(super) struct OpenVSwitch {
    _switches: [Switch; 2],
    _containers: [Netns; 2],
}

impl OpenVSwitch {
    /// Starts the switches and connects a container to each.
    pub(super) fn new(pair: &Pair) -> Result<(Self, Arm)> {
        let containers = [Netns::new("container"), Netns::new("container")];
        let [client, server] = &containers;
        let arm = Arm::new(
            ID,
            "container to container, Open vSwitch's vxlan in user space",
            Some('A'),
            Peers::direct(client.path(), server.path(), address(1)),
            Scope::Whole,
        );
        for (container, (host, index)) in containers.iter().zip([(&pair.one, 0), (&pair.two, 1)]) {
            host.connect("veth0", container, "eth0", MTU);
            let address = address(index);
            run(
                container,
                &format!(
                    "{} && ip addr add {address}/24 dev eth0 && \
                     ethtool -K eth0 tx off tso off gso off",
                    hosts::TUNING
                ),
            )?;
        }
        let switches = [
            Switch::start(&pair.one, Pair::ONE, Pair::TWO)?,
            Switch::start(&pair.two, Pair::TWO, Pair::ONE)?,
        ];
        Ok((Self { _switches: switches, _containers: containers }, arm))
    }
}

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 40, 0, 10 + index)
}

/// The daemons of a host.
struct Switch {
    _daemons: [Process; 2],
    _directory: TempDir,
}

impl Switch {
    fn start(host: &Netns, own: Ipv4Addr, peer: Ipv4Addr) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("culvert-bench-").tempdir()?;
        let path = directory.path();
        let database = path.join("conf.db");
        output(Command::new(program("ovsdb-tool")?).arg("create").arg(&database).arg(SCHEMA))?;
        let socket = path.join("db.sock").display().to_string();
        let daemon = |name: &str, args: &[&str]| -> Result<Process> {
            let mut command = host.command(program(name)?);
            command.arg(format!("--unixctl={}", path.join(name).display())).args(args);
            Ok(Process::spawn(within(command, path)))
        };
        let remote = format!("--remote=punix:{socket}");
        let server = daemon("ovsdb-server", &[&remote, &database.display().to_string()])?;
        let vsctl = |line: &str| -> Result<()> {
            let mut command = Command::new(program("ovs-vsctl")?);
            command.args([&format!("--db=unix:{socket}"), "--retry", PATIENCE]);
            output(within(command, path).args(line.split_whitespace())).map(drop)
        };
        vsctl("--no-wait init").context("ovsdb-server")?;
        let switch = daemon("ovs-vswitchd", &[&format!("unix:{socket}")])?;
        let up = hosts::UPLINK;
        // The bridge gets the uplink's address, and the uplink must not answer ARP for it.
        run(
            host,
            &format!(
                "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv4.conf.all.arp_ignore=1 && \
                 ip addr flush dev {up}"
            ),
        )?;
        vsctl(&format!(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev -- add-port br-phy {up}"
        ))?;
        run(host, &format!("ip addr add {own}/24 dev br-phy && ip link set br-phy up"))?;
        vsctl(&format!(
            "add-br br-int -- set bridge br-int datapath_type=netdev -- add-port br-int veth0 -- \
             add-port br-int vxlan0 -- set interface vxlan0 type=vxlan \
             options:remote_ip={peer} options:key={VNI}"
        ))?;
        Ok(Self { _daemons: [switch, server], _directory: directory })
    }
}

/// Makes `command` look for its files in `directory`.
fn within(mut command: Command, directory: &Path) -> Command {
    command.envs(DIRECTORIES.map(|name| (name, directory)));
    command
}
