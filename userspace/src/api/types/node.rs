//! Nodes.

use serde::{Deserialize, Serialize};

/// Row of `node ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Name.
    pub name: String,
    /// Identifier.
    pub id: String,
    /// VTEP address.
    pub ip: String,
    /// VXLAN port.
    pub port: u16,
    /// Whether the lease of the node's agent is alive.
    pub alive: bool,
    /// Seconds since the answering agent saw that lease expire. `null` if the node is alive, or if
    /// the lease expired before that agent looked.
    pub gone_s: Option<u64>,
    /// Number of endpoints on the node.
    pub endpoints: usize,
    /// Whether it is the node of the agent that answers.
    pub here: bool,
}
