//! The verbs about published ports.

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;

use crate::cli::value;

#[derive(Debug, Subcommand)]
pub(crate) enum PortsCommand {
    /// List the published ports of this host, and who is denied
    #[command(
        alias = "list",
        after_help = "EXAMPLES:
  culvert ports ls
  culvert ports ls --format json | jq -r '.denied[]'"
    )]
    Ls,
    /// Deny clients all published ports of this host, and end their connections
    #[command(after_help = "EXAMPLES:
  culvert ports deny 203.0.113.7
  culvert ports deny 198.51.100.0/24 203.0.113.0/24

It holds until 'culvert ports allow', also after a reboot. Packets of denied clients are dropped
and counted as 'denied' in 'culvert stats'. The host itself is never denied.")]
    Deny(SourceArgs),
    /// Take back what 'deny' did
    #[command(after_help = "EXAMPLES:
  culvert ports allow 203.0.113.7")]
    Allow(SourceArgs),
}

#[derive(Args, Debug)]
pub(crate) struct SourceArgs {
    /// Addresses or prefixes of clients
    #[arg(value_name = "CIDR", required = true, value_parser = value::source)]
    pub(crate) sources: Vec<IpNetwork>,
}
