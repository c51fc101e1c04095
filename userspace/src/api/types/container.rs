//! Containers and their attachments to networks.

use std::{net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::life::Rerun;
use crate::model::{Isolation, MacAddr, Name, NameOptions, Privileges, RestartPolicy};

/// `POST /v1/containers`: makes or adopts a sandbox and attaches it to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCreate {
    /// Name, unique on the node.
    pub name: Name,
    /// Network name, `none`, `host` or `container:NAME`.
    pub network: String,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// Further fixed addresses: the first of another subnet is the primary one there, the others are
    /// additional addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_ips: Vec<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// Values of `-p`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Values of `--from`: clients that may use the ports. Empty: all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<IpNetwork>,
    /// Values of `--expose`: ports on which the command will listen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// Interface name in the sandbox. Default: the first free `ethN`.
    #[serde(default)]
    pub ifname: Option<String>,
    /// Path of a namespace to adopt instead of making one.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Pid of a process whose namespace is adopted instead of making one.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Whether the container is removed when its command ends.
    #[serde(default)]
    pub auto_remove: bool,
    /// Command line, shown by `ps`.
    #[serde(default)]
    pub command: Vec<String>,
    /// Names of and for the container.
    #[serde(default, skip_serializing_if = "NameOptions::is_default")]
    pub names: NameOptions,
    /// What the command is to be started again with. `None`: it is not started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Rerun>,
    /// User and capabilities of the commands in the container.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub privileges: Privileges,
    /// Private namespaces and mounts of the commands in the container.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
}

/// Row of `ps`, and the answer to [`ContainerCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Name.
    pub name: String,
    /// Identifier, which no other container has, also not a later one of this name. `None`: the
    /// container was made by an earlier version, or its record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `none`, `host`, `container`, `bridge`, `overlay` or `attached`. `unknown`: the store has not
    /// been read, and the container was made by an earlier version.
    pub mode: String,
    /// `created`, `running`, `restarting`, `exited` or `attached`; `unfinished` if an agent was
    /// killed while it made or removed the container. Empty in the answer of an agent of an earlier
    /// version.
    #[serde(default)]
    pub state: String,
    /// Pid of the command while it runs.
    pub pid: Option<i32>,
    /// Start time of the command while it runs: field 22 of `/proc/PID/stat` (proc(5)), in clock
    /// ticks since boot. It tells the command from a later process with this pid. `None` in the
    /// answer of an agent of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// Exit code of the command, once it has ended. `None` if that is not known, as after a reboot.
    pub exit_code: Option<i32>,
    /// `--restart`.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How often the command was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Path of the namespace.
    pub netns: String,
    /// Log file of a detached container.
    pub log: Option<String>,
    /// Networks. While the agent has not read the store, they are as last known.
    pub networks: Vec<ContainerNetwork>,
    /// Mode `container`: the container whose interfaces it uses.
    #[serde(default)]
    pub shares: Option<String>,
    /// Command line.
    pub command: Vec<String>,
    /// Host name. `None`: the host's, or that of the program that made the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Directory of the files that commands of the container see in `/etc`. `None`: they see the
    /// host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etc: Option<String>,
    /// User and capabilities of its commands, if they are limited.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub privileges: Privileges,
    /// Private namespaces and mounts of its commands, besides the network namespace.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// In the answer to [`ContainerCreate`]: defects of the new container, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A network in [`ContainerRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNetwork {
    /// Network.
    pub name: String,
    /// Address without prefix length: IPv4 if the endpoint has one.
    pub ip: String,
    /// IPv6 address, if the endpoint has one.
    pub ip6: Option<String>,
    /// Additional addresses without prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<String>,
    /// MAC.
    pub mac: String,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// Published ports.
    pub ports: Vec<String>,
    /// Addresses and prefixes of clients that may use them. Empty: all clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// Interfaces of the host through which the published ports are not reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<String>,
}

/// `POST /v1/networks/NAME/containers`: attaches a container to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Container.
    pub container: Name,
    /// Fixed address.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// As in [`ContainerCreate`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_ips: Vec<IpAddr>,
    /// Fixed MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// `POST /v1/networks/NAME/addresses` and `DELETE /v1/networks/NAME/addresses`: an additional
/// address of a container in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressChange {
    /// Container.
    pub container: Name,
    /// Address.
    pub ip: IpAddr,
}
