//! The objects that a change of the store concerns.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::Brief;
use crate::model::{MacAddr, Name};

/// The objects that an update changed, so that a receiver processes only these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Networks: their own record or their VNI's owner.
    pub networks: BTreeSet<Name>,
    /// Foreign VTEPs, by network and address.
    pub vteps: BTreeSet<(Name, Ipv4Addr)>,
    /// Endpoints, by network and identifier.
    pub endpoints: BTreeSet<(Name, String)>,
    /// Former state of endpoints that were replaced or removed, by network.
    pub former: BTreeSet<(Name, Former)>,
    /// Nodes: their record or their liveness.
    pub nodes: BTreeSet<Name>,
    /// Keys whose entry in [`View::problems`](super::View::problems) has changed, come or gone.
    pub problems: BTreeSet<String>,
}

/// Former state of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Former {
    /// Node.
    pub node: Name,
    /// MAC address.
    pub mac: MacAddr,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

impl Former {
    pub(crate) fn of(endpoint: &Brief<'_>) -> Self {
        Self {
            node: endpoint.node.clone(),
            mac: endpoint.mac,
            addresses: endpoint.addresses().collect(),
        }
    }
}

impl Touched {
    /// Whether no object changed.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
            && self.vteps.is_empty()
            && self.endpoints.is_empty()
            && self.former.is_empty()
            && self.nodes.is_empty()
            && self.problems.is_empty()
    }

    /// Adds the objects of `other`.
    pub fn merge(&mut self, other: Self) {
        self.networks.extend(other.networks);
        self.vteps.extend(other.vteps);
        self.endpoints.extend(other.endpoints);
        self.former.extend(other.former);
        self.nodes.extend(other.nodes);
        self.problems.extend(other.problems);
    }
}
