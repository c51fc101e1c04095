//! `culvert network`.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;

use crate::{
    cli::value,
    model::{Driver, MacAddr, Name},
};

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Create a network and print its ID
    #[command(after_help = "EXAMPLES:
  culvert network create -d overlay --subnet 10.0.0.0/24 overlaynet1
  culvert network create -d overlay --subnet 10.1.0.0/16 --subnet fd00:1::/64 --vni 4097 dual
  culvert network create -d overlay --opt allow_overlap=true --subnet 10.0.0.0/24 tenant2
  culvert network create -d overlay --learning --subnet 10.2.0.0/24 mixed
  culvert network create -d bridge --subnet 172.30.0.0/16 local1")]
    Create(CreateArgs),
    /// List networks
    #[command(
        alias = "list",
        after_help = "EXAMPLES:
  culvert network ls
  culvert network ls --format json"
    )]
    Ls,
    /// Show networks in detail, as JSON
    #[command(after_help = "EXAMPLES:
  culvert network inspect overlaynet1")]
    Inspect {
        /// Networks
        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
    },
    /// Remove networks
    #[command(
        alias = "remove",
        after_help = "EXAMPLES:
  culvert network rm overlaynet1"
    )]
    Rm {
        /// Networks
        #[arg(value_name = "NAME", required = true)]
        names: Vec<Name>,
    },
    /// Connect a container to one more network
    #[command(after_help = "EXAMPLES:
  culvert network connect overlaynet2 over1
  culvert network connect --ip 10.1.0.9 overlaynet2 over1")]
    Connect(ConnectArgs),
    /// Add and remove addresses of a container in a network
    #[command(subcommand)]
    Address(AddressCommand),
    /// Disconnect a container from a network
    #[command(after_help = "EXAMPLES:
  culvert network disconnect overlaynet2 over1")]
    Disconnect {
        /// Network
        #[arg(value_name = "NET")]
        network: Name,
        /// Container
        #[arg(value_name = "SANDBOX")]
        container: Name,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AddressCommand {
    /// Give a container one more address
    #[command(after_help = "EXAMPLES:
  culvert network address add overlaynet1 over1 10.0.0.100")]
    Add(AddressArgs),
    /// Take an additional address away from a container
    #[command(
        alias = "remove",
        after_help = "EXAMPLES:
  culvert network address rm overlaynet1 over1 10.0.0.100"
    )]
    Rm(AddressArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AddressArgs {
    /// Network
    #[arg(value_name = "NET")]
    pub(crate) network: Name,
    /// Container
    #[arg(value_name = "SANDBOX")]
    pub(crate) container: Name,
    /// Address
    #[arg(value_name = "IP", value_parser = value::ip)]
    pub(crate) ip: IpAddr,
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// Name of the network
    pub(crate) name: Name,
    /// Driver: VXLAN between hosts, or one host with SNAT to external networks
    #[arg(
        short,
        long,
        value_name = "overlay|bridge",
        hide_possible_values = true,
        default_value = "bridge"
    )]
    pub(crate) driver: Driver,
    /// Subnet; one IPv4 and one IPv6 at most. Chosen by Culvert if not given
    #[arg(long = "subnet", value_name = "CIDR", value_parser = value::cidr)]
    pub(crate) subnets: Vec<IpNetwork>,
    /// Gateway address in the subnet; its first by default
    #[arg(long, value_name = "IP", value_parser = value::ip)]
    pub(crate) gateway: Option<IpAddr>,
    /// VXLAN network identifier, 1 to 16777215; the lowest free one from 256 by default
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = value::vni)]
    pub(crate) vni: Option<u32>,
    /// MTU in the containers; that of the uplinks by default, less 50 for an overlay network
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = value::mtu)]
    pub(crate) mtu: Option<u32>,
    /// No traffic to or from other networks
    #[arg(long)]
    pub(crate) internal: bool,
    /// Learn where MACs are from the frames that arrive
    #[arg(long)]
    pub(crate) learning: bool,
    /// Option: allow_overlap=true|false, anti_spoof=true|false, block_hosts=true|false, dscp=copy|zero, bum_rate=N, bum_burst=N
    #[arg(long = "opt", short = 'o', value_name = "K=V", value_parser = value::pair)]
    pub(crate) options: Vec<(String, String)>,
    /// Label
    #[arg(long = "label", value_name = "K=V", value_parser = value::pair)]
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct ConnectArgs {
    /// Network
    #[arg(value_name = "NET")]
    pub(crate) network: Name,
    /// Container
    #[arg(value_name = "SANDBOX")]
    pub(crate) container: Name,
    /// Fixed address; the lowest free one by default. Further ones are additional
    #[arg(long = "ip", value_name = "IP", value_parser = value::ip)]
    pub(crate) ips: Vec<IpAddr>,
    /// Fixed MAC address; 02:42: and the IPv4 address by default
    #[arg(long, value_parser = value::mac)]
    pub(crate) mac: Option<MacAddr>,
}
