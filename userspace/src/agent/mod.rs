//! The agent: one process per host that brings the host to what the store says.
//!
//! * [`run`] starts the parts in their order and waits for the end.
//! * `engine`: the task that follows the store and writes the kernel.
//! * `host`: the real host behind `platform`, the seam for tests.
//! * `node`: the agent's own entry in the store.
//! * `conntrack`: ages the flows that the programs make.
//! * `backend`: what the API asks for.
//! * `ports`: the published ports of the host.
//! * `containers`, `files`: what is kept in the state directory.
//!
//! The data plane goes on by itself: programs, links and maps are pinned, and
//! nothing of a former run is touched before the first list of the store has
//! been read.

mod backend;
mod conntrack;
mod containers;
mod engine;
mod files;
mod host;
mod memory;
mod node;
mod platform;
mod ports;
mod purge;
mod shared;
mod start;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

pub use self::purge::purge_offline;
use self::{
    backend::Agent,
    containers::Containers,
    engine::{Engine, Periods},
    shared::Shared,
};
use crate::{
    api,
    config::AgentOptions,
    doctor,
    model::follow_options,
    store::{FollowOptions, Follower},
};

/// Runs the agent until SIGTERM or SIGINT, or until it is purged.
///
/// # Errors
///
/// One line for whatever keeps it from starting: a missing privilege or kernel
/// feature, another agent on the socket, in the state directory or under the
/// node name, an uplink or VTEP address that is not there, credentials that
/// cannot be read, a store that does not answer within `--store-timeout`.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    start::log(&options.log, options.trace)?;
    doctor::preflight().map_err(|line| anyhow!(line))?;
    // First of all what tells whether there is another agent.
    let listener = api::bind(&options.socket)?;
    let _state_dir = files::take_state_dir(&options.state_dir).map_err(|line| anyhow!(line))?;
    let url = options.store.parse::<crate::store::StoreUrl>()?;
    let credentials = start::credentials(&options.store_access)?;
    let containers = Containers::load(&options.state_dir)
        .with_context(|| format!("state directory {}", options.state_dir.display()))?;
    let id = files::instance_id(&options.state_dir)?;

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stopped);

    start::raise_file_limit();
    let (host, node, uplinks) = start::host(&options, id).await?;
    let host = Arc::new(host);
    let problems = containers.problems().to_vec();
    let shared = Arc::new(Shared::new(
        options.clone(),
        node,
        uplinks,
        Arc::clone(&host) as Arc<dyn platform::Platform>,
        containers,
    ));
    for (index, line) in problems.into_iter().enumerate() {
        shared.problem(&format!("containers/{index}"), Some(line));
    }
    let priced = Arc::clone(&host);
    let pricing = tokio::spawn(async move { priced.price_uplinks().await });
    let flows = tokio::spawn(conntrack::keep(Arc::clone(&shared)));
    let trace = if options.trace { Some(host.forward_trace()?) } else { None };

    let agent = Arc::new(Agent::new(Arc::clone(&shared)));
    let server = api::serve(
        listener,
        Arc::clone(&agent) as Arc<dyn api::Backend>,
        shared.shutdown.clone().cancelled_owned(),
    );
    let server = tokio::spawn(server);

    let follow = async {
        let store = start::open_store(&shared, &url, &credentials).await?;
        purge::finish(&shared, store.as_ref()).await?;
        let (entered, entry) = oneshot::channel();
        let keeper = tokio::spawn(node::keep(Arc::clone(&shared), Arc::clone(&store), entered));
        match entry.await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => bail!(refusal),
            Err(_) => bail!("the agent is stopping"),
        }
        shared.set_store(Arc::clone(&store));
        anyhow::Ok((store, keeper))
    };
    let outcome = tokio::select! {
        reached = start::within(options.store_timeout, follow, &shared) => reached.map(Some),
        signal = &mut stopped => {
            tracing::info!("{signal} before the store was reached");
            Ok(None)
        }
    };
    let (store, keeper) = match outcome {
        Ok(Some(reached)) => reached,
        failed => {
            shared.shutdown.cancel();
            let _ = flows.await;
            let _ = server.await;
            return failed.map(|_| ());
        }
    };

    let known = files::known_store(&options.state_dir, &options.store);
    let follower =
        Follower::spawn(Arc::clone(&store), FollowOptions { known, ..follow_options() });
    shared.watch_health(follower.health());
    let remember = tokio::spawn(start::remember_store(Arc::clone(&shared), follower.health()));
    let mut engine =
        tokio::spawn(Engine::new(Arc::clone(&shared), follower, Periods::default()).run());
    let ready = tokio::spawn(start::tell_when_ready(Arc::clone(&shared), Arc::clone(&host)));

    let mut failure = None;
    tokio::select! {
        signal = &mut stopped => {
            let then = if options.cleanup_on_exit { "cleaning up" } else { "the data plane goes on" };
            tracing::info!("{signal}: stopping, {then}");
        }
        () = shared.shutdown.cancelled() => {}
        ended = &mut engine => {
            // It ends by itself only by a defect.
            failure = Some(anyhow!("the engine stopped: {ended:?}; the data plane goes on"));
        }
    }
    if options.cleanup_on_exit
        && !shared.purged.is_cancelled()
        && failure.is_none()
        && let Err(error) = agent.purge_node().await
    {
        failure = Some(anyhow!("clean-up: {error}; 'culvert purge' removes the rest"));
    }
    shared.shutdown.cancel();
    pricing.abort();
    ready.abort();
    remember.abort();
    if let Some(trace) = trace {
        trace.abort();
    }
    if failure.is_none() {
        let _ = engine.await;
    }
    let _ = keeper.await;
    let _ = flows.await;
    let _ = server.await;
    if shared.purged.is_cancelled() {
        files::remove_state(&options.state_dir);
    }
    failure.map_or(Ok(()), Err)
}
