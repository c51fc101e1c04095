//! Failed attempts to make an endpoint whose commit the store may still apply: the store did not
//! answer the commit, and may apply it when it is back (docs/adr/0018).

use std::{sync::Arc, time::Duration};

use super::Agent;
use crate::{
    agent::attempts::{Attempt, Earlier},
    api::types::ApiError,
    model::{Name, View, ops},
    store::retry::Backoff,
};

impl Agent {
    /// Takes up the attempts of an earlier agent. An attempt that was under way has failed for its
    /// caller if the container has no record. For an older container, the store's records decide.
    pub(super) fn resume_attempts(&self) {
        let Earlier { attempts, torn, problems } = self.shared.requests.attempts.earlier();
        self.shared.shown.problems.set_list("attempts/", problems);
        for (network, endpoint) in torn {
            self.fence_later(network, endpoint);
        }
        for attempt in attempts {
            let complete = self.shared.containers().get(&attempt.container).is_some();
            if attempt.failed || !complete {
                self.take_back_later(attempt);
            } else if attempt.joins {
                self.fence_later(attempt.network, attempt.endpoint);
            } else {
                self.attempt_over(&attempt.network, &attempt.endpoint);
            }
        }
    }

    /// Notes that it is known how an attempt has ended.
    pub(super) fn attempt_over(&self, network: &Name, endpoint: &str) {
        if let Err(error) = self.shared.requests.attempts.end(network, endpoint) {
            tracing::warn!("endpoint {endpoint}: the note of its attempt stays: {error}");
        }
        self.shared.shown.problems.set(&format!("attempt/{endpoint}"), None);
    }

    /// Takes an attempt back as soon as the store answers.
    pub(super) fn take_back_later(&self, attempt: Attempt) {
        let Attempt { endpoint, network, container, .. } = &attempt;
        let what = format!("container '{container}' in network '{network}'");
        if let Err(error) = self.shared.requests.attempts.fail(&attempt) {
            // The next agent then knows the attempt as one that was under way.
            self.shared.disk.refuse(&what, error);
        }
        let line = format!(
            "{what}: an attempt has failed while the store did not answer: it is taken back when the store answers"
        );
        self.shared.shown.problems.set(&format!("attempt/{endpoint}"), Some(line));
        let agent = Self::new(Arc::clone(&self.shared));
        self.shared.ending.tasks.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
            loop {
                tokio::select! {
                    () = agent.shared.ending.shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                }
                let _turn = agent.shared.requests.turns.wait(&attempt.container).await;
                if !agent.shared.requests.attempts.is_failed(&attempt.endpoint) {
                    return;
                }
                match agent.take_back(&attempt).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(
                            "endpoint {}: not taken back yet: {error}",
                            attempt.endpoint
                        );
                    }
                }
            }
        });
    }

    /// Fences an attempt off of which it is not known whether it was complete, as soon as the store
    /// answers. An endpoint that a container of this host has is complete: a crash of the host may
    /// bring a file back that was removed.
    fn fence_later(&self, network: Name, endpoint: String) {
        let line = format!(
            "endpoint {endpoint} in network '{network}': an attempt to make it was cut short: it is taken back when the store answers"
        );
        self.shared.shown.problems.set(&format!("attempt/{endpoint}"), Some(line));
        let agent = Self::new(Arc::clone(&self.shared));
        self.shared.ending.tasks.spawn(async move {
            if !agent.shared.wait_ready().await {
                return;
            }
            let container =
                agent.shared.view().endpoint(&network, &endpoint).map(|ep| ep.container.clone());
            if container.is_some_and(|name| agent.shared.containers().get(&name).is_some()) {
                return agent.attempt_over(&network, &endpoint);
            }
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
            loop {
                tokio::select! {
                    () = agent.shared.ending.shutdown.cancelled() => return,
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                }
                match agent.fence(&network, &endpoint).await {
                    Ok(()) => return agent.attempt_over(&network, &endpoint),
                    Err(error) => {
                        tracing::debug!("endpoint {endpoint}: not taken back yet: {error}");
                    }
                }
            }
        });
    }

    /// Takes the failed attempts of a container back, so that a new one does not meet them. The
    /// caller has the container's turn.
    ///
    /// # Errors
    ///
    /// The store does not answer, or a device pair cannot be removed.
    pub(super) async fn take_back_first(&self, container: &Name) -> Result<(), ApiError> {
        for attempt in self.shared.requests.attempts.failed_of(container) {
            self.take_back(&attempt).await.map_err(|error| {
                let what =
                    format!("container '{container}': an earlier attempt cannot be taken back yet");
                ApiError::new(error.kind, format!("{what}: {}", error.message))
            })?;
        }
        Ok(())
    }

    /// Removes the endpoint of a failed attempt if it exists, makes sure that the store does not
    /// apply the commit later, and removes the sandbox that was made for the attempt, if it is
    /// noted as unfinished.
    async fn take_back(&self, attempt: &Attempt) -> Result<(), ApiError> {
        let Attempt { endpoint, network, container, owned, .. } = attempt;
        self.fence(network, endpoint).await?;
        // By its name alone the namespace may be another program's, or the container was lost and
        // has other endpoints.
        let recorded = self.shared.containers().get(container).is_some();
        if *owned && !recorded && self.is_unfinished(container) {
            self.drop_sandbox(container).await;
        }
        tracing::info!(
            "container '{container}' in network '{network}': a failed attempt is taken back"
        );
        self.attempt_over(network, endpoint);
        Ok(())
    }

    /// Makes sure that an endpoint does not exist, now and later. Returns when its device pair is
    /// removed.
    async fn fence(&self, network: &Name, id: &str) -> Result<(), ApiError> {
        let own = &self.shared.node.name;
        let plan = |view: &View| {
            let plan = ops::fence_endpoint(view, network, id, own)?;
            Ok((!plan.writes.is_empty(), plan))
        };
        let sandbox = self.shared.view().endpoint(network, id).map(|ep| ep.sandbox.clone());
        let (wrote, revision) = self.shared.execute(plan).await?;
        if wrote { self.unplugged(revision, id, sandbox).await } else { Ok(()) }
    }
}
