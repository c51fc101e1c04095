//! The files of [`etc`]: host name, hosts file and name servers of containers.

use std::net::IpAddr;

use super::{Agent, invalid, network::NetworkOf};
use crate::{
    agent::{
        containers::{Origin, Record},
        etc::{self, EtcFiles},
    },
    api::types::{ApiError, ContainerCreate},
    model::{HostAddress, HostEntry, Name},
    sandbox::{RESOLVER_ADVICE, names_of},
};

impl Agent {
    /// Refuses options about names if the container has the names of the host, of another
    /// container or of another program.
    pub(super) fn check_names(
        request: &ContainerCreate,
        network: &NetworkOf,
        adopting: bool,
    ) -> Result<(), ApiError> {
        let Some(option) = request.names.given() else { return Ok(()) };
        let name = &request.name;
        let keeps = match network {
            _ if adopting => {
                return Err(invalid(format!(
                    "container '{name}': {option} does not go with a namespace of another program, which has names of its own: leave it out"
                )));
            }
            NetworkOf::Host => "keeps the names of the host",
            NetworkOf::Container(_) => "keeps the names of the other container",
            NetworkOf::None | NetworkOf::Stored(_) => return Ok(()),
        };
        Err(invalid(format!(
            "container '{name}': {option} does not go with '--network {}', which {keeps}: leave it out",
            request.network
        )))
    }

    /// Writes the files of a new container, if it has files of its own, and notes in its record
    /// what it has written. Returns warnings, one line each.
    ///
    /// # Errors
    ///
    /// No network of the container has an address for `host-gateway`, or the files cannot be
    /// written.
    pub(super) fn write_etc(&self, record: &mut Record) -> Result<Vec<String>, ApiError> {
        let name = &record.name;
        // The container whose addresses the new container has.
        let holder = match &record.origin {
            Origin::Owned => name,
            Origin::Attached | Origin::Host => return Ok(Vec::new()),
            Origin::Shares(other) => match self.record_of(other) {
                // The namespace belongs to another program, whose files are not known.
                Some(Record { origin: Origin::Attached, .. }) => other,
                // The new container uses the files of the other container.
                _ => return Ok(Vec::new()),
            },
        };
        let names = &record.names;
        let resolver = self.shared.platform.resolver();
        let entry = |entry: &HostEntry| -> Result<(String, IpAddr), ApiError> {
            let address = match entry.address {
                HostAddress::Ip(ip) => ip,
                HostAddress::Gateway => self.gateway_for(holder).ok_or_else(|| {
                    invalid(format!(
                        "container '{name}': '--add-host {entry}' needs an IPv4 network that is not internal: an address in place of host-gateway is valid"
                    ))
                })?,
            };
            Ok((entry.name.as_str().to_owned(), address))
        };
        let files = EtcFiles {
            names: names_of(record.hostname(), name.as_str()),
            addresses: self.addresses_of(holder),
            entries: names.hosts.iter().map(entry).collect::<Result<_, ApiError>>()?,
            resolver: resolver.conf.clone().with(names),
        };
        let directory = etc::directory(&self.shared.options.state_dir, name);
        let what = format!("container '{name}': its files in {}", directory.display());
        files.write(&directory).map_err(|error| self.shared.disk.refuse(&what, error))?;
        let fault =
            resolver.fault().filter(|_| names.servers.is_empty() && self.has_way_out(holder));
        let warning = fault
            .map(|why| format!("container '{name}' gets no name server: {why}: {RESOLVER_ADVICE}"));
        record.resolv_conf = Some(files.resolver.to_string());
        Ok(warning.into_iter().collect())
    }

    /// Writes the current addresses of a container into its hosts file. An error is only logged:
    /// the change of the addresses is already done.
    pub(super) fn readdress(&self, name: &Name) {
        let Some(record) = self.record_of(name).filter(|record| record.origin == Origin::Owned)
        else {
            return;
        };
        let directory = etc::directory(&self.shared.options.state_dir, name);
        let names = names_of(record.hostname(), name.as_str());
        if let Err(error) = etc::readdress(&directory, &names, &self.addresses_of(name)) {
            tracing::warn!("container '{name}': its files in {}: {error}", directory.display());
        }
    }

    /// Removes the files of a container.
    pub(super) fn remove_etc(&self, name: &Name) {
        let directory = etc::directory(&self.shared.options.state_dir, name);
        if let Err(error) = etc::remove(&directory) {
            tracing::warn!("container '{name}': its files in {}: {error}", directory.display());
        }
    }

    /// The addresses of a container of this host, in the order of its interfaces.
    fn addresses_of(&self, name: &Name) -> Vec<IpAddr> {
        let view = self.shared.view();
        let endpoints = view.endpoints_of(&self.shared.node.name, name);
        let mut own: Vec<_> = endpoints.map(|ep| (ep.ifname.clone(), ep.ipv4, ep.ipv6)).collect();
        own.sort();
        own.into_iter()
            .flat_map(|(_, v4, v6)| [v4.map(IpAddr::V4), v6.map(IpAddr::V6)])
            .flatten()
            .collect()
    }

    /// The gateway of a container's first network that has one on this host.
    fn gateway_for(&self, name: &Name) -> Option<IpAddr> {
        let view = self.shared.view();
        let endpoints = view.endpoints_of(&self.shared.node.name, name);
        let mut own: Vec<_> = endpoints.map(|ep| (ep.ifname.clone(), ep.network.clone())).collect();
        own.sort();
        own.iter().find_map(|(_, network)| {
            let network = view.networks.get(network).filter(|network| !network.internal)?;
            network.gateway_v4().map(IpAddr::V4)
        })
    }

    /// Whether a container is in a network with a gateway to external hosts.
    fn has_way_out(&self, name: &Name) -> bool {
        self.gateway_for(name).is_some()
    }
}
