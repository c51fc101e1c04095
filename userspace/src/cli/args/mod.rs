//! The verbs and options, as clap reads them.

mod agent;
mod conntrack;
mod container;
mod network;
mod node;
mod ports;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use agent::AgentArgs;
pub(super) use container::{AttachArgs, DetachArgs, ExecArgs, LogsArgs, RmArgs, RunArgs};
pub(super) use network::{AddressArgs, AddressCommand, ConnectArgs, CreateArgs, NetworkCommand};
pub(super) use node::NodeCommand;
pub(super) use ports::{PortsCommand, SourceArgs};
pub(super) use show::{
    DoctorArgs, FdbCommand, NatCommand, NatLsArgs, NeighCommand, PurgeArgs, StoreCommand,
    VtepChangeArgs, VtepCommand,
};

use crate::{cli::value, config::DEFAULT_SOCKET};

/// A container network for Linux hosts: VXLAN in eBPF, state in etcd.
#[derive(Debug, Parser)]
#[command(
    name = "culvert",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "EXAMPLES:
  culvert agent --uplink eth0                   start the agent with the embedded store
  culvert network create -d overlay --subnet 10.0.0.0/24 overlaynet1
  culvert run --name over1 --network overlaynet1 -d -- httpd -f
  culvert exec over1 -- ip address
  culvert ps"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    /// For the supervisor of `run -d`: remove the container when its command ends.
    #[arg(long, hide = true)]
    pub(super) auto_remove: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every verb.
#[derive(Args, Debug)]
pub(super) struct Global {
    /// Socket of the agent
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        display_order = 1000,
        value_name = "PATH",
        env = "CULVERT_SOCKET",
        hide_env_values = true,
        default_value = DEFAULT_SOCKET
    )]
    pub(super) socket: PathBuf,
    /// Time for each answer of the agent, as in 500ms, 10s or 2m; 0 for no limit
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        display_order = 1002,
        value_name = "DURATION",
        env = "CULVERT_TIMEOUT",
        hide_env_values = true,
        default_value_t = value::Limit::default(),
        value_parser = value::limit
    )]
    pub(super) timeout: value::Limit,
    /// Table for people or JSON for scripts
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        display_order = 1001,
        value_name = "table|json",
        hide_possible_values = true,
        default_value = "table"
    )]
    pub(super) format: Format,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns; sizes with units for people.
    Table,
    /// An array of rows; stable field names and plain numbers.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent on this host
    #[command(after_help = agent::EXAMPLES)]
    Agent(Box<AgentArgs>),
    /// Manage networks
    #[command(subcommand, arg_required_else_help = true)]
    Network(NetworkCommand),
    /// Run a command in a new container
    #[command(after_help = container::RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Attach an existing network namespace to a network
    #[command(after_help = container::ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// Detach what was attached
    #[command(after_help = container::DETACH_EXAMPLES)]
    Detach(DetachArgs),
    /// Run a command in a container's network namespace
    #[command(after_help = container::EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// List the containers of this host
    #[command(after_help = container::PS_EXAMPLES)]
    Ps,
    /// Remove containers
    #[command(after_help = container::RM_EXAMPLES)]
    Rm(RmArgs),
    /// Show the output of a container started with 'run -d'
    #[command(after_help = container::LOGS_EXAMPLES)]
    Logs(LogsArgs),
    /// Look into the FDB: which MAC is where
    #[command(subcommand, arg_required_else_help = true)]
    Fdb(FdbCommand),
    /// Look into the neighbours: which IP has which MAC
    #[command(subcommand, arg_required_else_help = true)]
    Neigh(NeighCommand),
    /// Look into NAT: which flows are translated, and how
    #[command(subcommand, arg_required_else_help = true)]
    Nat(NatCommand),
    /// Manage who may use published ports
    #[command(subcommand, arg_required_else_help = true)]
    Ports(PortsCommand),
    /// Manage VTEPs
    #[command(subcommand, arg_required_else_help = true)]
    Vtep(VtepCommand),
    /// Manage the agent's store
    #[command(subcommand, arg_required_else_help = true)]
    Store(StoreCommand),
    /// Manage the hosts of the store
    #[command(subcommand, arg_required_else_help = true)]
    Node(NodeCommand),
    /// Show the state of the agent
    #[command(after_help = show::STATUS_EXAMPLES)]
    Status,
    /// Show what the data plane counted, drops with their reasons
    #[command(after_help = show::STATS_EXAMPLES)]
    Stats,
    /// Check this host and say what to do
    #[command(after_help = show::DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Remove everything of Culvert from this host, containers included
    #[command(after_help = show::PURGE_EXAMPLES)]
    Purge(PurgeArgs),
    /// Print the completion script of a shell
    #[command(after_help = show::COMPLETION_EXAMPLES)]
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// The process that starts supervisors for the agent.
    #[command(name = "__starter", hide = true)]
    Starter,
    /// The supervisor that `run -d` starts for its command.
    #[command(name = "__supervise", hide = true)]
    Supervise {
        /// A `SuperviseSpec` as JSON.
        spec: String,
    },
}
