//! The verbs about containers.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use ipnetwork::IpNetwork;

use crate::{
    cli::value,
    model::{
        CapabilityOption, Domain, HostEntry, Isolation, MacAddr, Name, NameOptions, NamespaceMode,
        ResolverOption, RestartPolicy, TmpfsMount, UserOption,
    },
};

pub(super) const RUN_EXAMPLES: &str = "EXAMPLES:
  culvert run --name over1 --network overlaynet1 -- sh
  culvert run --name web --network overlaynet1 --ip 10.0.0.80 -d -- httpd -f -p 80
  culvert run --name dns --network overlaynet1 --ip 10.0.0.53 --ip 10.0.0.54 -d -- named -f
  culvert run --name app -p 8080:80 -p 127.0.0.1::9090/udp -d -- app
  culvert run --name db --restart always -d -- db      again when it ends, and after a reboot
  culvert run --name db -p 5432:5432 --from 192.0.2.0/24 --from 198.51.100.7 -d -- db
  culvert run --name log -d --log-opt max-size=1m --log-opt max-file=5 -- app -v
  culvert run --name probe --network container:web --rm -- ip address
  culvert run --name job --dns 10.0.0.53 --add-host db:10.0.0.9 --rm -- ping -c 1 db
  culvert run --name web -d --user www-data --cap-drop ALL -- httpd -f -p 8080
  culvert run --name job --pid private --read-only --tmpfs /tmp:size=64m --rm -- sort /srv/list

SECURITY:
  A container has interfaces, addresses and names of its own. It is no security boundary: its
  command sees the files and the processes of the host. Without --user and --cap-drop it may do
  all that the user of 'culvert run' may do. With CAP_SYS_ADMIN (see --cap-drop) it can undo
  --pid private, --read-only and --tmpfs. See docs/SECURITY.md.

SIGNALS:
  With --pid private the command is process 1. A signal that it does not handle has no effect on
  it, not even TERM or Ctrl-C; 'culvert rm -f' ends it. It becomes the parent of processes whose
  own parent has ended, and must wait for them. When it ends, the kernel kills all other
  processes of the container. On a terminal, 'kill 0' in it reaches the process group of
  'culvert run' and its caller.

EXIT CODE:
  The command's own, 128 + N if signal N killed it; 127 if there is no such command, 126 if it
  cannot be executed, 1 if the agent refuses, 2 for wrong usage.";

pub(super) const ATTACH_EXAMPLES: &str = "EXAMPLES:
  culvert attach --netns /run/netns/blue --name blue --network overlaynet1
  culvert attach --pid 4711 --name db --network overlaynet1 --ip 10.0.0.9 --ifname eth1";

pub(super) const DETACH_EXAMPLES: &str = "EXAMPLES:
  culvert detach blue                           from all its networks
  culvert detach blue --network overlaynet1     from one of them";

pub(super) const EXEC_EXAMPLES: &str = "EXAMPLES:
  culvert exec over1 -- ip address
  culvert exec over1 -- ping -c 3 10.0.0.3";

pub(super) const PS_EXAMPLES: &str = "EXAMPLES:
  culvert ps
  culvert ps --format json | jq -r '.[].networks[].ip'";

pub(super) const RM_EXAMPLES: &str = "EXAMPLES:
  culvert rm over1 over2
  culvert rm -f web                             kills its command first";

pub(super) const LOGS_EXAMPLES: &str = "EXAMPLES:
  culvert logs web
  culvert logs -f web                           until its command ends";

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Name of the container; its namespace is /run/netns/NAME
    #[arg(long)]
    pub(crate) name: Name,
    /// Network, or bridge, host, none, container:NAME
    #[arg(
        long,
        visible_alias = "net",
        value_name = "NETWORK",
        default_value = "bridge",
        value_parser = value::network_mode
    )]
    pub(crate) network: String,
    /// Fixed address; the lowest free one by default. Further ones are additional
    #[arg(long = "ip", value_name = "IP", value_parser = value::ip)]
    pub(crate) ips: Vec<IpAddr>,
    /// Fixed MAC address; 02:42: and the IPv4 address by default
    #[arg(long, value_parser = value::mac)]
    pub(crate) mac: Option<MacAddr>,
    /// Publish a port of the container, or a range of ports; without HOST a free port of the host
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[[IP:][HOST]:]CONT[/tcp|udp]",
        value_parser = value::publish
    )]
    pub(crate) ports: Vec<String>,
    /// Clients that may use the published ports; everybody by default
    #[arg(
        long,
        value_name = "CIDR",
        requires = "ports",
        value_parser = value::source
    )]
    pub(crate) from: Vec<IpNetwork>,
    /// The command will listen on this port: refused if somebody has it who shares its network
    #[arg(long, value_name = "PORT[/tcp|udp]", value_parser = value::expose)]
    pub(crate) expose: Vec<String>,
    #[command(flatten)]
    pub(crate) names: NameArgs,
    /// User and group of the host that the command runs as; those of 'culvert run' by default
    #[arg(short, long, value_name = "UID[:GID]|NAME[:GROUP]", value_parser = value::user)]
    pub(crate) user: Option<UserOption>,
    /// Capability that the command cannot have, as in NET_RAW, or ALL
    #[arg(long, value_name = "CAP", value_parser = value::capability)]
    pub(crate) cap_drop: Vec<CapabilityOption>,
    /// Capability that the command keeps nevertheless
    #[arg(
        long,
        value_name = "CAP",
        requires = "cap_drop",
        value_parser = value::capability
    )]
    pub(crate) cap_add: Vec<CapabilityOption>,
    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,
    /// Leave it in the background, with its output in a log; print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Log of -d: max-size of a file (10m) and max-file, their number (2), before the oldest goes
    #[arg(
        long,
        value_name = "max-size=SIZE|max-file=N",
        requires = "detach",
        value_parser = value::log_opt
    )]
    pub(crate) log_opt: Vec<value::LogOpt>,
    /// Start the command of -d again: no, on-failure[:MAX], always, unless-stopped
    #[arg(
        long,
        value_name = "POLICY",
        default_value_t = RestartPolicy::No,
        value_parser = value::restart
    )]
    pub(crate) restart: RestartPolicy,
    /// Remove the container when the command ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Command and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

/// Options about names. Each but the first can be given several times.
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct NameArgs {
    /// Host name; the container's name by default
    #[arg(long, value_name = "NAME")]
    hostname: Option<Name>,
    /// Name server; those of the host by default
    #[arg(long, value_name = "IP", value_parser = value::ip)]
    dns: Vec<IpAddr>,
    /// Domain in which a short name is looked up, '.' for none; those of the host by default
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<Domain>,
    /// Option of resolv.conf(5); those of the host by default
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<ResolverOption>,
    /// Name and its address in /etc/hosts; the address host-gateway is the host
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<HostEntry>,
}

impl From<NameArgs> for NameOptions {
    fn from(args: NameArgs) -> Self {
        Self {
            hostname: args.hostname,
            servers: args.dns,
            search: args.dns_search,
            options: args.dns_option,
            hosts: args.add_host,
        }
    }
}

/// Options for private namespaces and mounts of the command, besides its network namespace.
#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct IsolationArgs {
    /// Processes that the command sees: those of the host, or only its own
    #[arg(
        long,
        value_name = "host|private",
        default_value_t = NamespaceMode::Host,
        value_parser = value::namespace
    )]
    pid: NamespaceMode,
    /// Shared memory, semaphores and queues: those of the host, or its own
    #[arg(
        long,
        value_name = "host|private",
        default_value_t = NamespaceMode::Host,
        value_parser = value::namespace
    )]
    ipc: NamespaceMode,
    /// The command cannot write to the host's file systems
    #[arg(long)]
    read_only: bool,
    /// Directory with an empty file system in memory, which the command can write to
    #[arg(long, value_name = "PATH[:OPTION,...]", value_parser = value::tmpfs)]
    tmpfs: Vec<TmpfsMount>,
}

impl From<IsolationArgs> for Isolation {
    fn from(args: IsolationArgs) -> Self {
        let IsolationArgs { pid, ipc, read_only, tmpfs } = args;
        Self { pid, ipc, read_only, tmpfs }
    }
}

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) target: AttachTarget,
    /// Name of the attachment
    #[arg(long)]
    pub(crate) name: Name,
    /// Network
    #[arg(long, visible_alias = "net", value_name = "NET")]
    pub(crate) network: Name,
    /// Fixed address; the lowest free one by default. Further ones are additional
    #[arg(long = "ip", value_name = "IP", value_parser = value::ip)]
    pub(crate) ips: Vec<IpAddr>,
    /// Fixed MAC address; 02:42: and the IPv4 address by default
    #[arg(long, value_parser = value::mac)]
    pub(crate) mac: Option<MacAddr>,
    /// Interface name in the namespace; the first free ethN by default
    #[arg(long, value_name = "NAME", value_parser = value::ifname)]
    pub(crate) ifname: Option<String>,
    /// Publish a port of the container, or a range of ports; without HOST a free port of the host
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[[IP:][HOST]:]CONT[/tcp|udp]",
        value_parser = value::publish
    )]
    pub(crate) ports: Vec<String>,
    /// Clients that may use the published ports; everybody by default
    #[arg(
        long,
        value_name = "CIDR",
        requires = "ports",
        value_parser = value::source
    )]
    pub(crate) from: Vec<IpNetwork>,
}

/// One of the two.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct AttachTarget {
    /// Network namespace
    #[arg(long, value_name = "PATH", value_parser = value::netns)]
    pub(crate) netns: Option<PathBuf>,
    /// Process in the network namespace
    #[arg(long, value_parser = value::pid)]
    pub(crate) pid: Option<i32>,
}

#[derive(Args, Debug)]
pub(crate) struct DetachArgs {
    /// Name given to 'attach'
    pub(crate) name: Name,
    /// This network only
    #[arg(long, visible_alias = "net", value_name = "NET")]
    pub(crate) network: Option<Name>,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// Container
    pub(crate) name: Name,
    /// Command and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Kill the command if it runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Containers
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<Name>,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Go on until the command ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Container
    pub(crate) name: Name,
}
