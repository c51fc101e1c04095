//! Networks.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{Driver, Name};

/// `POST /v1/networks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCreate {
    /// Name.
    pub name: Name,
    /// Driver.
    pub driver: Driver,
    /// Subnets. If empty, Culvert chooses an IPv4 subnet.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Gateway in one of the subnets. Default: the first host address.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// VNI. Default: the lowest free one. It is not validated here, so that the error comes from
    /// the agent.
    #[serde(default)]
    pub vni: Option<u32>,
    /// MTU in bytes. Default: the underlay's, less the VXLAN overhead.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The network has no route to external addresses (`--internal`).
    #[serde(default)]
    pub internal: bool,
    /// The data plane learns source MAC addresses.
    #[serde(default)]
    pub learning: bool,
    /// `--opt`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `--label`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Answer with the identifier of a new object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What the user may not expect of the object, on one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// Row of `network ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// `global` or `local`.
    pub scope: String,
    /// Subnets.
    pub subnets: Vec<String>,
    /// VNI.
    pub vni: u32,
    /// MTU in bytes.
    pub mtu: u16,
    /// Number of endpoints on all nodes.
    pub endpoints: usize,
}

/// An element of the array of `network inspect`; field names are Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInspect {
    /// Name.
    pub name: String,
    /// Identifier.
    pub id: String,
    /// `global` or `local`.
    pub scope: String,
    /// Driver.
    pub driver: String,
    /// Whether the network has an IPv6 subnet.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Subnets.
    #[serde(rename = "IPAM")]
    pub ipam: InspectIpam,
    /// Whether the network has no route to external addresses (`--internal`).
    pub internal: bool,
    /// Endpoints on all nodes, by container name and node.
    pub containers: BTreeMap<String, InspectContainer>,
    /// Options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// VNI.
    pub vni: u32,
    /// MTU in bytes.
    pub mtu: u16,
    /// VTEPs with endpoints in the network.
    pub peers: Vec<InspectPeer>,
}

/// `IPAM` of [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectIpam {
    /// Always `default`.
    pub driver: String,
    /// Subnets.
    pub config: Vec<InspectSubnet>,
}

/// A subnet in [`InspectIpam`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectSubnet {
    /// CIDR.
    pub subnet: String,
    /// Gateway address.
    pub gateway: String,
}

/// An endpoint in [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectContainer {
    /// Container.
    pub name: String,
    /// Node.
    pub node: String,
    /// Endpoint identifier.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// MAC.
    pub mac_address: String,
    /// IPv4 with prefix length, or empty.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// IPv6 with prefix length, or empty.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
    /// Additional addresses with prefix length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_addresses: Vec<String>,
}

/// A peer in [`NetworkInspect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InspectPeer {
    /// Node, or empty for a foreign VTEP.
    pub name: String,
    /// VTEP address.
    #[serde(rename = "IP")]
    pub ip: String,
}
