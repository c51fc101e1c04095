//! `culvert agent`.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use clap::Args;
use culvert_common::abi::{DEFAULT_FLOWS, DEFAULT_PORT_SHARE, DEFAULT_SHARE, MAX_SERVICES};
use ipnetwork::Ipv4Network;

use super::conntrack::{self, NatPorts, StateTimeout};
use crate::{
    cli::value,
    config::{
        AgentOptions, ConntrackOptions, DEFAULT_AGEING_S, DEFAULT_BPFFS, DEFAULT_STATE_DIR,
        DEFAULT_VXLAN_PORT, DatapathMode, DeviceMode, SeccompMode, StoreAccess,
    },
    model::{Invalid, Name},
};

pub(super) const EXAMPLES: &str = "EXAMPLES:
  culvert agent
      one host, the embedded store, the device of the default route
  culvert agent --node host1 --uplink eth1 --store etcd://10.1.1.1:2379,10.1.1.2:2379 \\
      --store-ca ca.pem --store-cert host1.pem --store-key host1.key
      one of many hosts
  culvert agent --log debug --trace
      with the trace lines of the BPF programs";

#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// Name of this node, its own on each host; by default that of its first start, the host name
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    /// Store: etcd://HOST:PORT[,HOST:PORT]... or file:DIR; file:STATE-DIR/store by default
    #[arg(long, value_name = "STORE", value_parser = value::store)]
    store: Option<String>,
    /// Uplink, several times if there are several; the device of the default route by default
    #[arg(long = "uplink", value_name = "IF", value_parser = value::ifname)]
    uplinks: Vec<String>,
    /// VTEP address; the first IPv4 address of the first uplink by default
    #[arg(long, value_name = "IP", value_parser = value::vtep_ip)]
    vtep_ip: Option<Ipv4Addr>,
    /// Range that subnets of new networks are chosen from, several times for several; the private ranges by default
    #[arg(long = "pool", value_name = "CIDR", value_parser = value::pool)]
    pools: Vec<Ipv4Network>,
    /// Addresses of services that the host's netfilter translates, such as those of kube-proxy: what containers send there goes to the host's stack; several times for several
    #[arg(long = "service-cidr", value_name = "CIDR", value_parser = value::service_cidr)]
    services: Vec<Ipv4Network>,
    /// UDP port for VXLAN
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_VXLAN_PORT, value_parser = value::port)]
    vxlan_port: u16,
    /// Hook that receives VXLAN: tc, or XDP and tc; 'culvert doctor --datapath' measures the cost
    #[arg(long, value_name = "auto|tc|xdp", hide_possible_values = true, default_value = "auto")]
    datapath: DatapathMode,
    /// Device pair that connects new containers with the host; existing containers keep theirs
    #[arg(
        long,
        value_name = "auto|veth|netkit",
        hide_possible_values = true,
        default_value = "auto"
    )]
    device: DeviceMode,
    /// State directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// BPF file system for the pins, mounted if need be
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
    /// Start even if the host does not receive the agent's mounts: traffic stops with the agent
    #[arg(long)]
    allow_private_mounts: bool,
    /// Remove everything of Culvert from this host when asked to stop
    #[arg(long)]
    cleanup_on_exit: bool,
    /// Limit the agent's own system calls (seccomp) and privileges (no_new_privs), not those of commands
    #[arg(long, value_name = "on|off", hide_possible_values = true, default_value = "on")]
    seccomp: SeccompMode,
    /// Seconds after which a learned MAC not seen again is forgotten
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = Seconds(Duration::from_secs(DEFAULT_AGEING_S)),
        value_parser = |text: &str| value::seconds(text).map(Seconds)
    )]
    ageing: Seconds,
    /// Log level, or a filter as in info,culvert::store=debug
    #[arg(
        long,
        value_name = "LEVEL",
        env = "RUST_LOG",
        hide_env_values = true,
        default_value = "info",
        value_parser = value::log_filter
    )]
    log: String,
    /// Have the BPF programs write trace lines to the log
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    conntrack: ConntrackArgs,
    #[command(flatten)]
    store_access: StoreArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Conntrack")]
struct ConntrackArgs {
    /// Capacity of the flow table, in flows
    #[arg(
        long = "conntrack-max",
        value_name = "N",
        default_value_t = DEFAULT_FLOWS,
        value_parser = conntrack::max_flows
    )]
    max_flows: u32,
    /// Part of the flow table that one container may take, in percent
    #[arg(
        long = "conntrack-share",
        value_name = "PERCENT",
        default_value_t = DEFAULT_SHARE,
        value_parser = conntrack::share
    )]
    share: u32,
    /// Seconds that a flow in STATE lives unused, as in tcp-established=3600; several times for several states
    #[arg(
        long = "conntrack-timeout",
        value_name = "STATE=SECONDS",
        value_parser = conntrack::timeout
    )]
    timeouts: Vec<StateTimeout>,
    /// Ports that masquerading chooses from
    #[arg(
        long,
        value_name = "LO-HI",
        default_value_t = NatPorts::default(),
        value_parser = conntrack::nat_ports
    )]
    nat_ports: NatPorts,
    /// Part of these ports that one container may always take towards a destination, in percent
    #[arg(
        long = "nat-port-share",
        value_name = "PERCENT",
        default_value_t = DEFAULT_PORT_SHARE,
        value_parser = conntrack::share
    )]
    port_share: u32,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Store")]
struct StoreArgs {
    /// Authority that signed the store's certificate, PEM
    #[arg(long = "store-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate for the store, PEM
    #[arg(long = "store-cert", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long = "store-key", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// User of the store
    #[arg(long = "store-user", value_name = "USER", requires = "password_file")]
    user: Option<String>,
    /// File with the user's password on its first line
    #[arg(long = "store-password-file", value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Permit etcd without TLS beyond this host
    #[arg(long = "insecure-store")]
    insecure: bool,
    /// Let containers reach a store without authentication
    #[arg(long = "store-for-containers")]
    for_containers: bool,
    /// Give up if uplink, VTEP address or store are not there so many seconds after the start; never by default
    #[arg(long, value_name = "SECONDS", value_parser = value::seconds)]
    store_timeout: Option<Duration>,
}

/// A duration that displays as its seconds.
#[derive(Clone, Copy, Debug)]
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_secs().fmt(f)
    }
}

impl AgentArgs {
    /// Converts the arguments: fills in the defaults that depend on the host, and makes paths
    /// absolute. `socket` is a global option and is absolute already.
    pub(crate) fn into_options(self, socket: PathBuf) -> Result<AgentOptions, Invalid> {
        // Other processes read these paths in the agent's status. Their working directories differ.
        let (state_dir, bpffs) = (value::absolute(self.state_dir)?, value::absolute(self.bpffs)?);
        let store = match self.store {
            Some(store) => store,
            None => format!("file:{}", state_dir.join("store").display()),
        };
        let access = self.store_access;
        let most = MAX_SERVICES as usize;
        if self.services.len() > most {
            return Err(Invalid(format!(
                "--service-cidr is given {} times: {most} times at most is valid",
                self.services.len()
            )));
        }
        Ok(AgentOptions {
            node: self.node,
            store,
            store_access: StoreAccess {
                // 'culvert doctor' reads these two files from another working directory.
                ca: access.ca.map(value::absolute).transpose()?,
                cert: access.cert.map(value::absolute).transpose()?,
                key: access.key,
                user: access.user,
                password_file: access.password_file,
                insecure: access.insecure,
                for_containers: access.for_containers,
            },
            store_timeout: access.store_timeout,
            uplinks: self.uplinks,
            vtep_ip: self.vtep_ip,
            pools: self.pools,
            services: self.services,
            vxlan_port: self.vxlan_port,
            datapath: self.datapath,
            device: self.device,
            socket,
            state_dir,
            bpffs,
            allow_private_mounts: self.allow_private_mounts,
            cleanup_on_exit: self.cleanup_on_exit,
            seccomp: self.seccomp,
            log: self.log,
            trace: self.trace,
            ageing: self.ageing.0,
            conntrack: ConntrackOptions {
                max_flows: self.conntrack.max_flows,
                share: self.conntrack.share,
                nat_ports: self.conntrack.nat_ports.0,
                port_share: self.conntrack.port_share,
                timeouts: conntrack::collect(&self.conntrack.timeouts)?,
            },
        })
    }
}
