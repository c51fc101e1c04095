//! Namespaces in which this host has agreed to make interfaces.
//!
//! Whoever can write to the store can name any namespace of any host in a record. So a record alone
//! makes no interface and holds no port of the host: this host must know the namespace from a
//! request of its own.

use super::{platform::PlugError, shared::Shared};
use crate::{
    api::types::ErrorKind,
    model::{Key, Name, SandboxRef},
    reconcile::LocalEndpoint,
};

/// Whether a request on this host has asked for an endpoint in this namespace: its container has a
/// file with the namespace, or a request that makes the endpoint there is under way.
pub(crate) fn is_asked(shared: &Shared, id: &str, container: &Name, sandbox: &SandboxRef) -> bool {
    let recorded = shared.containers().get(container).is_some_and(|record| record.is_in(sandbox));
    recorded || shared.requests.attempts.has_agreed(id, sandbox)
}

/// Whether this host has agreed to the namespace of an endpoint: a request has asked for it, or the
/// endpoint has its device pair there. The latter is so if files of the state directory are lost
/// while a container runs.
async fn is_agreed(shared: &Shared, id: &str, container: &Name, sandbox: &SandboxRef) -> bool {
    if is_asked(shared, id, container, sandbox) {
        return true;
    }
    let platform = &shared.platform;
    // A sandbox of Culvert has one path. What is at any other is not made by its name.
    let is_usual = !sandbox.owned || sandbox.netns == platform.sandbox_path(container);
    is_usual && platform.leads_into(id, &sandbox.netns).await
}

/// Checks that this host has agreed to the namespace of an endpoint.
///
/// # Errors
///
/// Only the store has it. The namespace is not looked at.
pub(crate) async fn check(shared: &Shared, endpoint: &LocalEndpoint) -> Result<(), PlugError> {
    let LocalEndpoint { id, network, container, sandbox, .. } = endpoint;
    if is_agreed(shared, id, container, sandbox).await {
        return Ok(());
    }
    let remedy = if shared.containers().get(container).is_some() {
        format!("delete the key {}", Key::endpoint(network, id))
    } else {
        format!("'culvert rm {container}' takes it out of the store")
    };
    Err(PlugError::Refused(
        ErrorKind::Conflict,
        format!(
            "network namespace {}: only the store says that the container is in it, no request on this host: {remedy}",
            sandbox.netns.display()
        ),
    ))
}
