//! What the agent is told when it starts: the options of `culvert agent`,
//! checked and with their defaults filled in.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use super::conntrack_options::ConntrackOptions;
use crate::model::Name;

/// Options of `culvert agent`, handed to `agent::run`.
///
/// Every value is well-formed; whether it fits this host (the uplink exists,
/// the address is one of ours) is for the agent to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// `--node`; the host's name by default.
    pub node: Name,
    /// `--store`: `etcd://HOST:PORT[,HOST:PORT]...` or `file:DIR`.
    pub store: String,
    /// Credentials for the store.
    pub store_access: StoreAccess,
    /// `--store-timeout`: give up at start when the store has not answered for
    /// so long; `None`: keep trying.
    pub store_timeout: Option<Duration>,
    /// `--uplink`, as often as given. Empty: the device of the default route.
    pub uplinks: Vec<String>,
    /// `--vtep-ip`; the first address of the first uplink by default.
    pub vtep_ip: Option<Ipv4Addr>,
    /// `--vxlan-port`, not 0.
    pub vxlan_port: u16,
    /// `--datapath`.
    pub datapath: DatapathMode,
    /// `--device`.
    pub device: DeviceMode,
    /// `--socket`: where the API listens.
    pub socket: PathBuf,
    /// `--state-dir`: logs of detached containers, the embedded store, runtime records.
    pub state_dir: PathBuf,
    /// `--bpffs`: where programs, links and maps are pinned.
    pub bpffs: PathBuf,
    /// `--cleanup-on-exit`: purge this node when the agent is asked to stop.
    pub cleanup_on_exit: bool,
    /// `--log` or `RUST_LOG`: a filter of tracing-subscriber's `EnvFilter` that parses.
    pub log: String,
    /// `--trace`: the programs' trace lines go to the log, through aya-log.
    pub trace: bool,
    /// `--ageing`: how long a learned FDB entry lives unseen.
    pub ageing: Duration,
    /// `--conntrack-max` and its siblings.
    pub conntrack: ConntrackOptions,
}

/// Credentials for the store, from `--store-ca` and its siblings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreAccess {
    /// `--store-ca`: PEM file of the authority that signed the store's certificate.
    pub ca: Option<PathBuf>,
    /// `--store-cert`: PEM file of our certificate; comes with `key`.
    pub cert: Option<PathBuf>,
    /// `--store-key`: PEM file of its key.
    pub key: Option<PathBuf>,
    /// `--store-user`; comes with `password_file`.
    pub user: Option<String>,
    /// `--store-password-file`: its first line is the password.
    pub password_file: Option<PathBuf>,
    /// `--insecure-store`: plaintext beyond loopback is permitted.
    pub insecure: bool,
}

/// Which hook of the uplink takes VXLAN in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DatapathMode {
    /// What the facts about the uplinks say, see [`crate::choice`]: tc, so far on all.
    #[default]
    Auto,
    /// tcx ingress.
    Tc,
    /// Native XDP, and tcx ingress behind it.
    Xdp,
}

/// What connects new containers with the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceMode {
    /// netkit where the kernel has it, else veth, see [`crate::choice::device`].
    #[default]
    Auto,
    /// A veth pair.
    Veth,
    /// A netkit pair.
    Netkit,
}

/// Options of `culvert purge` when no agent runs, handed to `agent::purge_offline`.
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
/// Default of `--vxlan-port`: IANA's for VXLAN (RFC 7348 §5).
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// Default of `--ageing`, in seconds: the kernel bridge's.
pub const DEFAULT_AGEING_S: u64 = 300;
