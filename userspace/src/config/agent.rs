//! Options of `culvert agent` and of `culvert purge`.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use ipnetwork::Ipv4Network;

use super::ConntrackOptions;
use crate::model::Name;

/// Options of `culvert agent`.
///
/// Every value is well-formed. Whether it fits the host is for the agent to check: for
/// instance that the uplink exists, and that the host has the VTEP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// `--node`. `None`: the name under which the host was registered before, else the host's name.
    pub node: Option<Name>,
    /// `--store`: `etcd://HOST:PORT[,HOST:PORT]...` or `file:DIR`.
    pub store: String,
    /// Credentials for the store.
    pub store_access: StoreAccess,
    /// `--store-timeout`: the start fails when uplink and VTEP address are not there, or the store
    /// has not answered, for so long. `None`: the agent keeps trying.
    pub store_timeout: Option<Duration>,
    /// `--uplink`, once for each uplink. Empty: the device of the default route.
    pub uplinks: Vec<String>,
    /// `--vtep-ip`. `None`: the first IPv4 address of the first uplink.
    pub vtep_ip: Option<Ipv4Addr>,
    /// `--pool`, once for each range that subnets are chosen from. Empty: the private ranges.
    pub pools: Vec<Ipv4Network>,
    /// `--service-cidr`, once for each range of service addresses that the host's netfilter
    /// translates.
    pub services: Vec<Ipv4Network>,
    /// `--vxlan-port`, not 0.
    pub vxlan_port: u16,
    /// `--datapath`: which hook of the uplinks receives VXLAN.
    pub datapath: DatapathMode,
    /// `--device`: what kind of device pair new containers get.
    pub device: DeviceMode,
    /// `--socket`: where the API listens.
    pub socket: PathBuf,
    /// `--state-dir`: logs of detached containers, the embedded store, runtime records.
    pub state_dir: PathBuf,
    /// `--bpffs`: where programs, links and maps are pinned.
    pub bpffs: PathBuf,
    /// `--allow-private-mounts`: the agent starts even if its mounts end with it. The programs and
    /// the namespaces that the mounts keep then end with the agent too.
    pub allow_private_mounts: bool,
    /// `--cleanup-on-exit`: the agent purges this node when it is asked to stop.
    pub cleanup_on_exit: bool,
    /// `--log` or `RUST_LOG`: a filter of tracing-subscriber's `EnvFilter` that parses.
    pub log: String,
    /// `--seccomp`: whether the agent limits its own system calls.
    pub seccomp: SeccompMode,
    /// `--trace`: the programs' trace lines go to the log, through aya-log.
    pub trace: bool,
    /// `--ageing`: a learned FDB entry whose MAC sends nothing for so long is removed.
    pub ageing: Duration,
    /// `--conntrack-max`, `--conntrack-timeout`, `--nat-ports`.
    pub conntrack: ConntrackOptions,
}

/// Credentials for the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreAccess {
    /// `--store-ca`: PEM file of the authority that signed the store's certificate.
    pub ca: Option<PathBuf>,
    /// `--store-cert`: PEM file of the agent's certificate; comes with `key`.
    pub cert: Option<PathBuf>,
    /// `--store-key`: PEM file of the certificate's private key.
    pub key: Option<PathBuf>,
    /// `--store-user`; comes with `password_file`.
    pub user: Option<String>,
    /// `--store-password-file`: its first line is the password.
    pub password_file: Option<PathBuf>,
    /// `--insecure-store`: etcd may be reached in plaintext beyond the loopback device.
    pub insecure: bool,
    /// `--store-for-containers`: containers may reach a store without authentication.
    pub for_containers: bool,
}

/// Which hook of the uplinks receives VXLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DatapathMode {
    /// `choice` decides from the facts about the uplinks: tc on all drivers so far.
    #[default]
    Auto,
    /// tcx ingress.
    Tc,
    /// Native XDP, then tcx ingress.
    Xdp,
}

/// What kind of device pair connects a new container with the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceMode {
    /// netkit where the kernel has it, else veth.
    #[default]
    Auto,
    /// A veth pair.
    Veth,
    /// A netkit pair.
    Netkit,
}

/// Whether the agent limits its own system calls. Commands of containers are not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SeccompMode {
    /// A seccomp filter and `no_new_privs`.
    #[default]
    On,
    /// Neither.
    Off,
}

/// Options of `culvert purge` when no agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeOptions {
    /// `--state-dir` of the agent that ran.
    pub state_dir: PathBuf,
    /// `--bpffs` of the agent that ran.
    pub bpffs: PathBuf,
    /// `--socket` of the agent that ran.
    pub socket: PathBuf,
}

/// Default of `--socket`.
pub const DEFAULT_SOCKET: &str = "/run/culvert/culvert.sock";
/// Default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/culvert";
/// Default of `--bpffs`.
pub const DEFAULT_BPFFS: &str = "/run/culvert/bpf";
/// Default of `--vxlan-port`: the port that IANA assigned to VXLAN (RFC 7348 §5).
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// Default of `--ageing`, in seconds: the ageing time of the kernel's bridge.
pub const DEFAULT_AGEING_S: u64 = 300;
