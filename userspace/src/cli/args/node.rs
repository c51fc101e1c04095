//! `culvert node`.

use clap::Subcommand;

use crate::model::Name;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the hosts of the store
    #[command(
        alias = "list",
        after_help = "EXAMPLES:
  culvert node ls
  culvert node ls --format json | jq -r '.[] | select(.alive | not) | .name'"
    )]
    Ls,
    /// Remove hosts that are gone for good, and free the addresses of their containers
    #[command(
        alias = "remove",
        after_help = "EXAMPLES:
  culvert node rm host3
  culvert node rm --force host4                 its agent is alive, but nobody can reach the host

This host is removed by 'culvert purge'."
    )]
    Rm {
        /// Remove a host whose agent is alive too; its containers lose their networks
        #[arg(short, long)]
        force: bool,
        /// Hosts
        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
    },
}
