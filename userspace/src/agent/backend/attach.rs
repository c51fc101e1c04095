//! Attachments of containers to networks.

use std::{net::IpAddr, path::Path};

use ipnetwork::Ipv4Network;

use super::{Agent, conflict, in_doubt, internal, invalid, network::NetworkOf, not_found, rows};
use crate::{
    agent::{
        agreed,
        attempts::Attempt,
        containers::{Origin, Record},
        ports::Translated,
        state::PlugState,
    },
    api::{
        deadline,
        types::{ApiError, Connect, ContainerRow, ErrorKind},
    },
    model::{
        Endpoint, MacAddr, Name, NetnsId, PortRequest, SandboxRef, View,
        ops::{self, EndpointSpec, ExecuteError, Refusal},
    },
    store::Revision,
};

/// A requested attachment.
#[derive(Clone, Debug)]
pub(super) struct Attachment<'a> {
    pub(super) container: &'a Name,
    pub(super) network: &'a Name,
    pub(super) netns: &'a Path,
    pub(super) owned: bool,
    /// The namespace, if its path is one of a process.
    pub(super) namespace: Option<NetnsId>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) mac: Option<MacAddr>,
    pub(super) ifname: Option<&'a str>,
    pub(super) ports: &'a [PortRequest],
    /// Clients that may use the ports. Empty: all clients.
    pub(super) from: &'a [Ipv4Network],
}

/// The fixed addresses of a request.
pub(super) fn fixed_ips(first: Option<IpAddr>, more: &[IpAddr]) -> Vec<IpAddr> {
    first.into_iter().chain(more.iter().copied()).collect()
}

impl Agent {
    /// Attaches a sandbox to a network. Returns when the maps have the endpoint, so that its frames
    /// are forwarded. The caller writes the record of the complete request, and then ends the
    /// attempt. Until then the next agent would take the attempt back.
    ///
    /// # Errors
    ///
    /// The attachment is refused or fails. The state is then as before the call.
    pub(super) async fn attach(&self, wanted: &Attachment<'_>) -> Result<Attempt, ApiError> {
        if !wanted.ports.is_empty()
            && let Some(network) = self.shared.view().networks.get(wanted.network)
        {
            // Checked before the ports are assigned: the error about the network is clearer.
            ops::may_publish(network, wanted.container)?;
        }
        let translated = match wanted.ports {
            [] => Translated::default(),
            _ => self.translated().await,
        };
        // Held until the endpoint exists, or the request has failed.
        let shared = &self.shared;
        let counts = |Endpoint { id, container, sandbox, .. }: &Endpoint| {
            agreed::is_asked(shared, id, container, sandbox)
                || matches!(shared.plugs.get(id), Some(PlugState::Ready { .. }))
        };
        let ports = shared.assign_ports(wanted.container, wanted.ports, &translated, counts)?;
        let reserved = self.ifnames_in(wanted.netns);
        let platform = &self.shared.platform;
        let ifname = platform.choose_ifname(wanted.netns, wanted.ifname, &reserved).await?;
        let spec = EndpointSpec {
            network: wanted.network.clone(),
            container: wanted.container.clone(),
            node: self.shared.node.name.clone(),
            ips: wanted.ips.clone(),
            mac: wanted.mac,
            ifname,
            sandbox: SandboxRef {
                netns: wanted.netns.to_owned(),
                owned: wanted.owned,
                id: wanted.namespace,
            },
            ports: ports.ports().to_vec(),
            from: wanted.from.to_vec(),
        };
        let what = format!("container '{}' in network '{}'", wanted.container, wanted.network);
        let (network, container) = (wanted.network.clone(), wanted.container.clone());
        let joins = self.shared.containers().get(&container).is_some();
        let attempt =
            Attempt { joins, ..Attempt::new(ops::new_id(), network, container, wanted.owned) };
        let begun = self.shared.requests.attempts.begin(&attempt);
        begun.map_err(|error| self.shared.disk.refuse(&what, error))?;
        self.shared.requests.attempts.agree(&attempt.endpoint, spec.sandbox.clone());
        let plan = |view: &View| ops::create_endpoint_as(view, &spec, &attempt.endpoint);
        let (endpoint, revision) = match self.shared.execute(plan).await {
            Ok(made) => made,
            // The store may carry it out later.
            Err(ExecuteError::InDoubt(error)) => {
                self.take_back_later(attempt);
                let line = format!("{error}: {what} is taken back when the store answers");
                return Err(ApiError::new(ErrorKind::Unavailable, line));
            }
            Err(error) => {
                self.attempt_over(wanted.network, &attempt.endpoint);
                return Err(error.into());
            }
        };
        let plugged =
            self.shared.settled(revision, &what, || match self.shared.plugs.get(&endpoint.id) {
                Some(PlugState::Ready { .. }) => Some(Ok(())),
                Some(PlugState::Failed(error) | PlugState::Stuck(error)) => Some(Err(error)),
                Some(PlugState::Pending) | None => None,
            });
        let failure = tokio::select! {
            plugged = plugged => match plugged {
                Ok(Ok(())) => return Ok(attempt),
                Ok(Err(error)) => ApiError::from(error),
                Err(error) => error,
            },
            // At the deadline the server answers the caller, and names what the request waits for.
            () = deadline::over() => ApiError::new(
                ErrorKind::Unavailable,
                format!("{what}: the caller's time was over, it is taken back"),
            ),
        };
        match self.detach(wanted.network, &endpoint.id).await {
            Ok(()) => self.attempt_over(wanted.network, &endpoint.id),
            Err(error) => {
                tracing::warn!("{what}: cannot be taken back now: {error}");
                self.take_back_later(attempt);
            }
        }
        Err(failure)
    }

    /// Removes an endpoint from the store. Returns when its device pair is removed.
    ///
    /// # Errors
    ///
    /// The store does not answer, or the device pair cannot be removed.
    pub(super) async fn detach(&self, network: &Name, id: &str) -> Result<(), ApiError> {
        let plan = |view: &View| Ok(((), ops::remove_endpoint(view, network, id)?));
        // Afterwards the view may not have it any more.
        let found = self.shared.view().endpoint(network, id);
        let sandbox = found.as_ref().map(|ep| ep.sandbox.clone());
        let container = found.map(|ep| ep.container.clone());
        let revision = match self.shared.execute(plan).await {
            Ok(((), revision)) => revision,
            // Another request has removed it already.
            Err(ExecuteError::Refused(Refusal::NotFound(_))) => self.shared.view().revision,
            Err(error) => {
                let what = container.map_or_else(
                    || format!("endpoint {id}"),
                    |name| format!("container '{name}' in network '{network}'"),
                );
                return Err(in_doubt(error, &what, "culvert ps"));
            }
        };
        self.unplugged(revision, id, sandbox).await
    }

    /// Waits until the device pair of an endpoint is removed, which the store does not have since
    /// `revision`.
    pub(super) async fn unplugged(
        &self,
        revision: Revision,
        id: &str,
        sandbox: Option<SandboxRef>,
    ) -> Result<(), ApiError> {
        let unplugged = || match self.shared.plugs.get(id) {
            None => Some(Ok(())),
            Some(PlugState::Stuck(error)) => Some(Err(error)),
            Some(PlugState::Pending | PlugState::Ready { .. } | PlugState::Failed(_)) => None,
        };
        let what = format!("endpoint {id}");
        match self.shared.settled(revision, &what, unplugged).await? {
            Ok(()) => {
                if let Some(sandbox) = sandbox {
                    self.forget_rules(&what, &sandbox).await;
                }
                Ok(())
            }
            Err(error) => {
                let ApiError { kind, message } = error.into();
                Err(ApiError::new(
                    kind,
                    format!(
                        "{what}: removed from the store, but not from this host: {message}; the agent keeps trying"
                    ),
                ))
            }
        }
    }

    /// Removes the routing rules that removed endpoints had in a sandbox. Best effort: a rule of an
    /// address that nobody has does no harm.
    pub(super) async fn forget_rules(&self, what: &str, sandbox: &SandboxRef) {
        if let Err(error) = self.shared.platform.forget_rules(sandbox).await {
            tracing::warn!("{what}: its routing rules stay: {}", error.message());
        }
    }

    /// The ports of the host that another system translates.
    async fn translated(&self) -> Translated {
        let platform = &self.shared.platform;
        // Without the addresses, rules for single addresses take no port.
        let addresses = platform.facts().await.map(|facts| facts.ips).unwrap_or_default();
        Translated { rules: platform.rules().await, addresses }
    }

    /// Interface names of all endpoints of a sandbox, plugged in or not.
    fn ifnames_in(&self, netns: &Path) -> Vec<String> {
        let view = self.shared.view();
        let endpoints = view.endpoints_within(&self.shared.node.name, netns);
        endpoints.map(|ep| ep.record.ifname).collect()
    }

    pub(super) async fn connect_container(
        &self,
        network: &Name,
        request: &Connect,
    ) -> Result<ContainerRow, ApiError> {
        self.shared.usable_store().await?;
        let name = &request.container;
        self.take_back_first(name).await?;
        let record = self.record_of(name).ok_or_else(|| self.unknown_container(name))?;
        self.check_known(&record).await?;
        let owned = match &record.origin {
            Origin::Owned => true,
            Origin::Attached => false,
            Origin::Host => {
                return Err(invalid(format!(
                    "container '{name}' is on the host's own network: one with a sandbox can be connected"
                )));
            }
            Origin::Shares(other) => {
                return Err(invalid(format!(
                    "container '{name}' shares the network of '{other}': connect '{other}' instead"
                )));
            }
        };
        let network = match self.network_of(network.as_str())? {
            NetworkOf::Stored(name) => name,
            NetworkOf::None | NetworkOf::Host | NetworkOf::Container(_) => {
                return Err(invalid(format!(
                    "network '{network}' is a mode, not a network to connect to: 'culvert network ls' lists overlay and bridge networks"
                )));
            }
        };
        self.ensure_bridge(&network).await?;
        let wanted = Attachment {
            container: name,
            network: &network,
            netns: &record.netns,
            owned,
            namespace: record.namespace,
            ips: fixed_ips(request.ip, &request.more_ips),
            mac: request.mac,
            ifname: None,
            ports: &[],
            from: &[],
        };
        let attempt = self.attach(&wanted).await?;
        self.attempt_over(&attempt.network, &attempt.endpoint);
        self.readdress(name);
        Ok(rows::container(&self.shared, &record))
    }

    pub(super) async fn disconnect_container(
        &self,
        network: &Name,
        name: &Name,
    ) -> Result<(), ApiError> {
        self.shared.usable_store().await?;
        if matches!(network.as_str(), "host" | "none") {
            return Err(invalid(format!(
                "network '{network}' is a mode, not a network to disconnect from: 'culvert ps' shows the networks of '{name}'"
            )));
        }
        if let Some(Record { origin: Origin::Shares(other), .. }) = self.record_of(name) {
            return Err(invalid(format!(
                "container '{name}' shares the network of '{other}': disconnect '{other}' instead"
            )));
        }
        let network = &self.resolve(network);
        let found = {
            let view = self.shared.view();
            if !view.networks.contains_key(network) && view.endpoints.count_in(network) == 0 {
                return Err(super::network::unknown(&view, network));
            }
            let endpoint = view.endpoint_of(network, &self.shared.node.name, name);
            endpoint.map(|endpoint| endpoint.id.clone())
        };
        let Some(id) = found else {
            if self.record_of(name).is_none() {
                return Err(self.unknown_container(name));
            }
            return Err(conflict(format!(
                "container '{name}' is not in network '{network}': 'culvert ps' shows where it is"
            )));
        };
        self.detach(network, &id).await?;
        self.readdress(name);
        // The record of an attached namespace is removed with its last network.
        let attached = matches!(
            self.shared.containers().get(name),
            Some(Record { origin: Origin::Attached, .. })
        );
        if attached && self.endpoints_of(name).is_empty() {
            self.shared.containers().remove(name).map_err(|error| internal(&error))?;
        }
        Ok(())
    }

    /// Endpoints of a container here: network and identifier.
    pub(super) fn endpoints_of(&self, name: &Name) -> Vec<(Name, String)> {
        let view = self.shared.view();
        let endpoints = view.endpoints_of(&self.shared.node.name, name);
        endpoints.map(|ep| (ep.record.network, ep.record.id)).collect()
    }

    pub(super) fn unknown_container(&self, name: &Name) -> ApiError {
        let elsewhere = {
            let view = self.shared.view();
            let mut endpoints = view.endpoints.all();
            endpoints.find(|(_, ep)| ep.container() == name.as_str()).map(|(_, ep)| ep.node.clone())
        };
        match elsewhere {
            Some(node) if node != self.shared.node.name => {
                not_found(format!("container '{name}' is not on this host: it is on node '{node}'"))
            }
            _ => not_found(format!(
                "container '{name}' is unknown: 'culvert ps' lists those of this host"
            )),
        }
    }
}
