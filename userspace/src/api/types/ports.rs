//! Published ports, and the clients that may not use them.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPorts {
    /// The ports that containers of this host publish.
    pub published: Vec<PublishedRow>,
    /// Addresses and prefixes of clients that may use no published port.
    pub denied: Vec<String>,
    /// Number of packets of refused clients that were dropped, since the counters began.
    pub dropped: u64,
    /// Interfaces of the host through which the published ports are not reached.
    #[serde(default)]
    pub unserved: Vec<String>,
}

/// Whether other machines can be clients of a port, which has the form of [`PublishedRow::port`]:
/// one on a loopback address is for the host alone.
pub fn may_have_clients(port: &str) -> bool {
    !port.starts_with("127.")
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedRow {
    /// Container.
    pub container: String,
    /// Network in which the container has the port.
    pub network: String,
    /// The port in the form of `ps`: `0.0.0.0:8080->80/tcp`.
    pub port: String,
    /// Addresses and prefixes of clients that may use it. Empty: all clients.
    #[serde(default)]
    pub from: Vec<String>,
}

/// `POST` and `DELETE /v1/ports/denied`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Addresses and prefixes of clients.
    pub sources: Vec<IpNetwork>,
}

/// Answer of `DELETE /v1/ports/denied`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// The addresses that are still denied among the given sources, one line each.
    pub still: Vec<String>,
}
