//! Additional addresses of attached containers.

use super::{Agent, conflict, in_doubt};
use crate::{
    agent::{containers::Origin, state::PlugState},
    api::types::{AddressChange, ApiError},
    model::{Endpoint, Name, View, ops},
    store::Revision,
};

impl Agent {
    /// Adds an address to a container in a network. Returns when the container's interface and the
    /// maps of this host have the address. If the container has the address already, nothing is
    /// written: a request whose outcome is unknown can be repeated.
    ///
    /// # Errors
    ///
    /// The address is refused, or the interface does not get the address: the state is unchanged
    /// then. If the store does not answer, the container may or may not have the address.
    pub(super) async fn add_address(
        &self,
        network: &Name,
        AddressChange { container, ip }: AddressChange,
    ) -> Result<(), ApiError> {
        let network = &self.addressed(network, &container).await?;
        let own = &self.shared.node.name;
        let plan = |view: &View| {
            let (endpoint, plan) = ops::add_address(view, network, own, &container, ip)?;
            let had = match plan.writes.is_empty() {
                true => view.endpoint(network, &endpoint.id).map(|found| found.revision),
                false => None,
            };
            Ok(((endpoint, had), plan))
        };
        let executed = self.shared.execute(plan).await;
        let what = format!("address {ip} of container '{container}'");
        let ((endpoint, had), revision) =
            executed.map_err(|error| in_doubt(error, &what, "culvert ps"))?;
        if let Some(written) = had {
            // The container had the address before this request, and keeps it.
            return self.applied(&endpoint, written).await;
        }
        if let Err(error) = self.applied(&endpoint, revision).await {
            let plan = |view: &View| ops::remove_address(view, network, own, &container, ip);
            if let Err(error) = self.shared.execute(plan).await {
                tracing::warn!(
                    "address {ip} of container '{container}' in network '{network}' is kept: {error}"
                );
            }
            return Err(error);
        }
        Ok(())
    }

    /// Removes an additional address. Returns when the interface no longer has the address.
    ///
    /// # Errors
    ///
    /// The container does not have the address, or the interface keeps the address. A repeated
    /// request fails if the first request removed the address and only its answer was lost. If the
    /// store does not answer, the container may or may not have the address.
    pub(super) async fn remove_address(
        &self,
        network: &Name,
        AddressChange { container, ip }: AddressChange,
    ) -> Result<(), ApiError> {
        let network = &self.addressed(network, &container).await?;
        let own = &self.shared.node.name;
        let plan = |view: &View| ops::remove_address(view, network, own, &container, ip);
        let executed = self.shared.execute(plan).await;
        let what = format!("address {ip} of container '{container}'");
        let (endpoint, revision) =
            executed.map_err(|error| in_doubt(error, &what, "culvert ps"))?;
        self.applied(&endpoint, revision).await?;
        let what = format!("container '{container}' in network '{network}'");
        self.forget_rules(&what, &endpoint.sandbox).await;
        Ok(())
    }

    /// The network whose addresses are to be changed.
    async fn addressed(&self, network: &Name, container: &Name) -> Result<Name, ApiError> {
        self.shared.usable_store().await?;
        let record = self.record_of(container).ok_or_else(|| self.unknown_container(container))?;
        if let Origin::Shares(other) = record.origin {
            return Err(super::invalid(format!(
                "container '{container}' shares the network of '{other}': name '{other}' instead"
            )));
        }
        let network = self.resolve(network);
        let found = {
            let view = self.shared.view();
            if !view.networks.contains_key(&network) {
                return Err(super::network::unknown(&view, &network));
            }
            view.endpoint_of(&network, &self.shared.node.name, container)
        };
        if let Some(endpoint) = found
            && let Some(PlugState::Failed(error)) = self.shared.plugs.get(&endpoint.id)
        {
            return Err(conflict(format!(
                "container '{container}' in network '{network}': its interface is not as it should be: {}",
                error.message()
            )));
        }
        Ok(network)
    }

    /// Waits until the interface of an endpoint matches the record of `revision` or a later one.
    async fn applied(&self, endpoint: &Endpoint, revision: Revision) -> Result<(), ApiError> {
        let Endpoint { id, container, network, .. } = endpoint;
        let what = format!("container '{container}' in network '{network}'");
        let plugged = || match self.shared.plugs.get(id) {
            Some(PlugState::Ready { revision: plugged, .. }) if plugged >= revision => Some(Ok(())),
            Some(PlugState::Failed(error) | PlugState::Stuck(error)) => Some(Err(error)),
            Some(PlugState::Pending | PlugState::Ready { .. }) => None,
            None => Some(Ok(())),
        };
        Ok(self.shared.settled(revision, &what, plugged).await??)
    }
}
