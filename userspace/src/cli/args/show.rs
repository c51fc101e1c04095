//! The verbs that show state, and the verbs about VTEPs.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::{Args, Subcommand};

use crate::{
    api::types::FlowProtocol,
    cli::value,
    config::{DEFAULT_BPFFS, DEFAULT_STATE_DIR, DEFAULT_VXLAN_PORT, PurgeOptions},
    model::{Invalid, Name},
};

pub(super) const STATUS_EXAMPLES: &str = "EXAMPLES:
  culvert status
  culvert status --format json | jq .store.healthy";

pub(super) const STATS_EXAMPLES: &str = "EXAMPLES:
  culvert stats
  culvert stats --format json | jq '.[] | select(.verdict == \"drop\")'";

pub(super) const DOCTOR_EXAMPLES: &str = "EXAMPLES:
  culvert doctor
  culvert doctor --uplink eth1
  culvert doctor --datapath

EXIT CODE:
  1 if a finding is an error.";

pub(super) const PURGE_EXAMPLES: &str = "EXAMPLES:
  culvert purge

With the agent running, it also takes this host out of the store, and the agent ends.
Without it, name its --socket, --state-dir and --bpffs if they are not the default.";

pub(super) const COMPLETION_EXAMPLES: &str = "EXAMPLES:
  source <(culvert completion bash)
  culvert completion zsh > \"${fpath[1]}/_culvert\"";

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Follow a store that 'culvert status' calls replaced
    #[command(after_help = "EXAMPLES:
  culvert store accept

Containers of this host that the store does not have lose their network. Put the right store
back instead if it is only a backup that is missing changes.")]
    Accept,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FdbCommand {
    /// List the FDB
    #[command(
        alias = "ls",
        after_help = "EXAMPLES:
  culvert fdb show
  culvert fdb show --format json | jq '.[] | select(.kind == \"learned\")'"
    )]
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NeighCommand {
    /// List the neighbours
    #[command(
        alias = "ls",
        after_help = "EXAMPLES:
  culvert neigh show"
    )]
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NatCommand {
    /// List the flows
    #[command(
        alias = "list",
        after_help = "EXAMPLES:
  culvert nat ls
  culvert nat ls --container web1 --protocol tcp
  culvert nat ls --address 192.0.2.7 --format json"
    )]
    Ls(NatLsArgs),
}

#[derive(Args, Debug)]
pub(crate) struct NatLsArgs {
    /// Only flows of this container
    #[arg(long, value_name = "NAME")]
    pub(crate) container: Option<Name>,
    /// Only flows of this protocol
    #[arg(long, value_name = "tcp|udp|icmp", hide_possible_values = true)]
    pub(crate) protocol: Option<FlowProtocol>,
    /// Only flows with this address, translated or not
    #[arg(long, value_name = "IP", value_parser = value::ipv4)]
    pub(crate) address: Option<Ipv4Addr>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VtepCommand {
    /// List the VTEPs
    #[command(
        alias = "list",
        after_help = "EXAMPLES:
  culvert vtep ls"
    )]
    Ls,
    /// Add a VTEP that is not a Culvert host to a network
    #[command(after_help = "EXAMPLES:
  culvert vtep add 192.168.0.9 --network mixed")]
    Add(VtepChangeArgs),
    /// Remove a VTEP that was added
    #[command(
        alias = "remove",
        after_help = "EXAMPLES:
  culvert vtep rm 192.168.0.9 --network mixed"
    )]
    Rm(VtepChangeArgs),
}

#[derive(Args, Debug)]
pub(crate) struct VtepChangeArgs {
    /// Address of the VTEP
    #[arg(value_parser = value::vtep_ip)]
    pub(crate) ip: Ipv4Addr,
    /// Network
    #[arg(long, value_name = "NET")]
    pub(crate) network: Name,
    /// UDP port of the VTEP; the agent's own by default
    #[arg(long, value_parser = value::port)]
    pub(crate) port: Option<u16>,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Uplink to check; the agent's, or the device of the default route, by default
    #[arg(long = "uplink", value_name = "IF", value_parser = value::ifname)]
    pub(crate) uplinks: Vec<String>,
    /// UDP port to check when no agent runs
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_VXLAN_PORT, value_parser = value::port)]
    pub(crate) vxlan_port: u16,
    /// BPF file system to check
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub(crate) bpffs: PathBuf,
    /// State directory of the agent that ran, which names its certificates
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Certificate of the store's authority to check; the agent's by default
    #[arg(long, value_name = "FILE")]
    pub(crate) store_ca: Option<PathBuf>,
    /// Certificate for the store to check; the agent's by default
    #[arg(long, value_name = "FILE")]
    pub(crate) store_cert: Option<PathBuf>,
    /// Measure the hooks that receive VXLAN instead: what each uplink supports, what XDP would cost
    #[arg(long)]
    pub(crate) datapath: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PurgeArgs {
    /// State directory of the agent that ran
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// BPF file system of the agent that ran
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub(crate) bpffs: PathBuf,
}

impl PurgeArgs {
    /// Converts the arguments: adds the socket, which is a global option, and makes paths absolute.
    pub(crate) fn into_options(self, socket: PathBuf) -> Result<PurgeOptions, Invalid> {
        let (state_dir, bpffs) = (value::absolute(self.state_dir)?, value::absolute(self.bpffs)?);
        Ok(PurgeOptions { state_dir, bpffs, socket })
    }
}
