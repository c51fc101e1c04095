//! Ports of the host, and the processes that have them.

use std::{net::Ipv4Addr, path::Path};

use async_trait::async_trait;

use super::types::{Holder, PortError, PortHold};
use crate::{api::types::ApiError, model::Protocol};

/// Takes ports of the host, and says who has one.
#[async_trait]
pub(crate) trait Ports: Send + Sync + 'static {
    /// Takes a port of the host. No process can bind it while the returned value lives.
    fn hold_port(&self, ip: Ipv4Addr, port: u16, protocol: Protocol)
    -> Result<PortHold, PortError>;

    /// Who has a port of the host, as far as the agent can see.
    fn port_holder(&self, ip: Ipv4Addr, port: u16, protocol: Protocol) -> Holder;

    /// Who has a port in a sandbox.
    async fn port_holder_in(
        &self,
        netns: &Path,
        port: u16,
        protocol: Protocol,
    ) -> Result<Holder, ApiError>;
}
