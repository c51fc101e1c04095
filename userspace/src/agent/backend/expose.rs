//! `--expose`: ports that a command will listen on in a network namespace that it
//! shares with others.

use std::net::Ipv4Addr;

use super::{Agent, conflict, invalid, network::NetworkOf};
use crate::{
    agent::platform::Holder,
    api::types::{ApiError, ContainerCreate},
    model::{Exposed, Invalid, Name, Protocol, PublishedPort, overlapping},
};

impl Agent {
    /// Refuses a command if a port that it will listen on is in use in a shared namespace: another
    /// container's sandbox, or the host. In a sandbox of its own every port is free.
    pub(super) async fn check_exposed(
        &self,
        request: &ContainerCreate,
        network: &NetworkOf,
    ) -> Result<(), ApiError> {
        for text in &request.expose {
            let Exposed { ports, protocol } = text
                .parse()
                .map_err(|Invalid(why)| invalid(format!("container '{}': {why}", request.name)))?;
            for port in ports {
                self.check_port(&request.name, network, port, protocol).await?;
            }
        }
        Ok(())
    }

    async fn check_port(
        &self,
        name: &Name,
        network: &NetworkOf,
        port: u16,
        protocol: Protocol,
    ) -> Result<(), ApiError> {
        let taken = |by: String| {
            Err(conflict(format!(
                "container '{name}': port {port}/{protocol} is {by}: choose another port, or stop that first"
            )))
        };
        let platform = &self.shared.platform;
        let holder = match network {
            NetworkOf::Stored(_) | NetworkOf::None => return Ok(()),
            NetworkOf::Host => {
                let wanted = PublishedPort {
                    host_ip: Ipv4Addr::UNSPECIFIED,
                    host_port: port,
                    container_port: port,
                    protocol,
                    count: 1,
                };
                let publisher = {
                    let view = self.shared.view();
                    let mut endpoints = view.endpoints_on(&self.shared.node.name);
                    let publisher = endpoints.find(|endpoint| {
                        endpoint.ports.iter().any(|has| overlapping(has, &wanted))
                    });
                    publisher.map(|endpoint| endpoint.container.clone())
                };
                if let Some(other) = publisher {
                    return taken(format!("published by container '{other}'"));
                }
                platform.port_holder(Ipv4Addr::UNSPECIFIED, port, protocol)
            }
            NetworkOf::Container(other) => {
                let Some(record) = self.record_of(other) else { return Ok(()) };
                platform.port_holder_in(&record.netns, port, protocol).await?
            }
        };
        match holder {
            Holder::Process { name: process, pid } => {
                taken(format!("in use by '{process}' (pid {pid})"))
            }
            Holder::Ending | Holder::Unseen => Ok(()),
        }
    }
}
