//! Ports of the host, and the processes that have them open.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};

use async_trait::async_trait;

use super::types::{Files, Holder, PortError, PortHold};
use crate::{
    api::types::ApiError,
    model::{Protocol, PublishedPort},
    netfilter::Rules,
};

/// Holds ports of the host, and finds the processes that have a port.
#[async_trait]
pub(crate) trait Ports: Send + Sync + 'static {
    /// Holds a port of the host. No process can bind it while the returned value lives.
    fn hold_port(&self, ip: Ipv4Addr, port: u16, protocol: Protocol)
    -> Result<PortHold, PortError>;

    /// Finds the holder of a port of the host. [`Holder::Unseen`]: the agent cannot see a holder.
    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder;

    /// The single ports of `ports` at which a socket of the host serves clients: it listens, or it
    /// is a UDP socket without a remote port.
    fn served(&self, ports: &[PublishedPort]) -> BTreeSet<PublishedPort>;

    /// How many files the agent may open for ports.
    fn files(&self) -> Files;

    /// The first and the last port of the range from which the kernel chooses ports for the host's
    /// own connections. `None`: the range cannot be read.
    fn own_ports(&self) -> Option<(u16, u16)>;

    /// Whether the host's netfilter tracks connections. It then may masquerade, too, with ports
    /// that the agent cannot read.
    fn netfilter_is_active(&self) -> bool;

    /// The rules of the host's netfilter, as far as they can be read. They may translate a port
    /// that no socket has.
    async fn rules(&self) -> Rules;

    /// Finds the holder of a port in a sandbox, whose network namespace is at `netns`.
    ///
    /// # Errors
    ///
    /// The network namespace cannot be opened or entered.
    async fn port_holder_in(
        &self,
        netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError>;
}
