//! The agent: one process per host that brings the host to the state in the store.
//!
//! * [`run`] starts the tasks in their order and waits for their end.
//! * `start`: the steps of the start.
//! * `engine`: the task that follows the store and writes the kernel.
//! * `platform`: traits for the operations on the host; `host`: their implementation.
//! * `state`: types of shared state; `shared`: one value of each.
//! * `identity`: the name of the node, the machine, the process.
//! * `node`: the agent's own entry in the store.
//! * `alarms`: the alarms of the store; `certificates`: the certificates of the connection to it.
//! * `conntrack`: ages and removes the flows that the programs make.
//! * `path_mtu`: verifies hints of smaller path MTUs.
//! * `egress`: packets of containers that leave by no uplink.
//! * `backend`: carries out the requests of the API.
//! * `agreed`: the namespaces in which this host makes interfaces.
//! * `ports`: the published ports of the host; `denied`: the clients that may not use them.
//! * `purge`: `culvert purge` without a running agent, and its completion by the next agent.
//! * `open_files`: the limit of open files; `memory`: returns free memory to the kernel.
//! * `capabilities`: the capabilities that the agent keeps; `seccomp`: the system calls that it
//!   gives up.
//! * `attempts`, `containers`, `etc`, `files`, `reruns`, `unfinished`: the files in the state
//!   directory.
//!
//! The data plane works without an agent: programs, links and maps are pinned. An agent
//! changes nothing of a former run before it has read the first list of the store.

mod agreed;
mod alarms;
mod attempts;
mod backend;
mod capabilities;
mod certificates;
mod conntrack;
mod containers;
mod denied;
mod egress;
mod engine;
mod etc;
mod files;
mod host;
mod identity;
mod memory;
mod node;
mod open_files;
mod path_mtu;
mod platform;
mod ports;
mod purge;
mod reruns;
mod seccomp;
mod shared;
mod start;
mod state;
mod store_address;
#[cfg(test)]
mod tests;
mod unfinished;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use self::{
    backend::Agent,
    containers::Containers,
    denied::Denied,
    engine::{Engine, Periods},
    files::Tightened,
    shared::Shared,
    start::Started,
};
pub use self::{certificates::last_certificates, purge::purge_offline, seccomp::confine};
use crate::{
    api,
    config::{AgentOptions, PurgeOptions},
    doctor,
    store::{StoreUrl, new_id},
};

/// Runs the agent until SIGTERM or SIGINT, or until it is purged.
///
/// # Errors
///
/// One line with the reason why the agent cannot start: a missing privilege or kernel feature,
/// another agent on the socket, in the state directory, under the node name or with the same
/// identifier, or in the network namespace, a mount namespace whose mounts end with the agent, another
/// node name than before, an uplink or VTEP address that does not exist, credentials that cannot be
/// read, a store that does not answer within `--store-timeout`.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    start::log(&options.log, options.trace)?;
    capabilities::tell();
    doctor::preflight().map_err(|line| anyhow!(line))?;
    // One for the process: an agent that starts anew at another address is the same agent, whose
    // former lease may still live.
    let run = new_id();
    let mut reason = None;
    while let End::Anew(next) = run_once(&options, &run, reason).await? {
        reason = next;
    }
    Ok(())
}

/// What an agent that ends removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CleanUp {
    Nothing,
    /// The node, from this host and from the store.
    Node,
    /// What is on this host: nothing is written to a store that was replaced.
    Host,
}

impl CleanUp {
    /// What an agent that was asked to end removes. `wanted`: it was started with
    /// `--cleanup-on-exit`.
    fn of(wanted: bool, shared: &Shared) -> Self {
        match shared.store.refusal() {
            _ if !wanted || shared.ending.purged.is_cancelled() => Self::Nothing,
            None => Self::Node,
            Some(error) => {
                tracing::warn!(
                    "{error}: only this host is cleaned up, the next agent takes the node out of its store"
                );
                Self::Host
            }
        }
    }
}

/// `--cleanup-on-exit` without the store: this host alone, as `culvert purge` does. The next agent
/// takes the node out of the store.
async fn clean_up_host(options: &AgentOptions) -> anyhow::Result<()> {
    let purged = purge_offline(PurgeOptions {
        state_dir: options.state_dir.clone(),
        bpffs: options.bpffs.clone(),
        socket: options.socket.clone(),
    });
    purged.await.map_err(|error| unclean(&error))
}

fn unclean(error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!("clean-up: {error}; 'culvert purge' removes the rest")
}

/// Tells of the permissions that were taken from other users at the start.
fn tell_tightened(shared: &Shared, Tightened { number, failed }: Tightened) {
    shared.shown.problems.set("state-dir-mode", failed);
    if number > 0 {
        let directory = shared.options.state_dir.display();
        let found = format!(
            "state directory {directory}: other users had permissions on {number} of its files and directories"
        );
        shared.shown.repairs.note_several("permission", number, found);
    }
}

/// Period at which commands without a supervisor are looked for.
const COMMANDS: Duration = Duration::from_secs(1);
/// Period at which the host's name servers are read.
const RESOLVERS: Duration = Duration::from_secs(1);

/// Why an agent has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// It was asked to.
    Asked,
    /// The host has changed so that the agent must choose its uplinks or its VTEP address again. The
    /// change on one line.
    Anew(Option<String>),
}

/// Runs the agent once. The data plane goes on when it ends with [`End::Anew`]. `reason`: why it
/// starts anew, if it does.
async fn run_once(
    options: &AgentOptions,
    run: &str,
    reason: Option<String>,
) -> anyhow::Result<End> {
    // Before anything else: the socket and the state directory belong to one agent.
    let listener = api::bind(&options.socket)?;
    let _state_dir = files::take_state_dir(&options.state_dir).map_err(|line| anyhow!(line))?;
    let tightened = files::tighten(&options.state_dir);
    let mounts = start::mounts(options)?;
    let url = options.store.parse::<StoreUrl>()?;
    let store_options = start::store_options(&options.store_access);
    let containers = Containers::load(&options.state_dir)
        .with_context(|| format!("state directory {}", options.state_dir.display()))?;
    let denied = Denied::load(&options.state_dir)
        .with_context(|| format!("state directory {}", options.state_dir.display()))?;
    let named = identity::name(options).map_err(|line| anyhow!(line))?;
    let id = files::instance_id(&options.state_dir)?;
    let alive = identity::alive(id.clone(), run);

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stopped);

    open_files::raise();
    let Started { host, node, uplinks, detached } = tokio::select! {
        started = start::host(options, named.name, id, denied.sources()) => started?,
        signal = &mut stopped => {
            tracing::info!("{signal} before the host had its uplinks");
            return Ok(End::Asked);
        }
    };
    let host = Arc::new(host);
    let problems = containers.problems().to_vec();
    let skipped = denied.problems();
    let shared = Arc::new(Shared::new(
        options.clone(),
        (node, alive),
        uplinks,
        Arc::clone(&host) as Arc<dyn platform::Platform>,
        (containers, denied),
    ));
    if let Some(line) = reason {
        shared.shown.repairs.note_logged("underlay", line);
    }
    shared.shown.problems.set("node-name", named.problem);
    shared.shown.problems.set("mounts", mounts);
    tell_tightened(&shared, tightened);
    shared.shown.problems.set_list("denied/", skipped);
    shared.shown.problems.set_list("containers/", problems);
    let tasks = &shared.ending.tasks;
    // Not tracked: no task depends on these two, and they do not react to `shutdown`.
    let priced = Arc::clone(&host);
    let pricing = tokio::spawn(async move { priced.price_uplinks().await });
    let trace = if options.trace { Some(host.forward_trace()?) } else { None };
    tasks.spawn(conntrack::keep(shared.conntrack_context()));
    tasks.spawn(shared.disk.clone().keep(shared.ending.shutdown.clone()));
    // Before the store is reached: a certificate may be why it is not.
    tasks.spawn(certificates::keep(Arc::clone(&shared)));
    tasks.spawn(seccomp::keep(Arc::clone(&shared)));
    tasks.spawn(egress::keep(Arc::clone(&shared)));
    tasks.spawn(path_mtu::keep(Arc::clone(&shared)));
    // Before containers are plugged, and without the store.
    tasks.spawn(store_address::keep(Arc::clone(&shared), Arc::clone(&host)));
    tasks.spawn(store_address::learn(Arc::clone(&shared)));

    let agent = Arc::new(Agent::new(Arc::clone(&shared)));
    agent.resume();
    // Before a request may remove the container of a command that runs, and before the engine makes
    // sandboxes anew that a command still has.
    let found = agent.find_commands().await;
    let server = api::serve(
        listener,
        Arc::clone(&agent) as Arc<dyn api::Backend>,
        shared.ending.shutdown.clone().cancelled_owned(),
    );
    tasks.spawn(server);
    // Before the store is reached: names are to resolve without it, too.
    let keeper = Arc::clone(&agent);
    tasks.spawn(async move { keeper.keep_resolvers(RESOLVERS).await });

    let follow = async {
        let store = start::open_store(&shared, &url, &store_options).await?;
        // Before anything is written: the store may not be the one that was followed.
        let (mut follower, store) = start::follow(&shared, store);
        follower.identified().await;
        purge::finish(&shared, store.as_ref()).await?;
        let (entered, entry) = oneshot::channel();
        tasks.spawn(alarms::keep(Arc::clone(&shared), Arc::clone(&store)));
        tasks.spawn(node::keep(Arc::clone(&shared), Arc::clone(&store), entered));
        match entry.await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => bail!(refusal),
            Err(_) => bail!("the agent is stopping"),
        }
        shared.store.set(store);
        anyhow::Ok(follower)
    };
    let outcome = tokio::select! {
        reached = start::within(options.store_timeout, follow, &shared) => reached.map(Some),
        signal = &mut stopped => {
            tracing::info!("{signal} before the store was reached");
            Ok(None)
        }
    };
    let follower = match outcome {
        Ok(Some(reached)) => reached,
        failed => {
            shared.ending.end_tasks().await;
            failed?;
            if options.cleanup_on_exit {
                clean_up_host(options).await?;
            }
            return Ok(End::Asked);
        }
    };

    let mut engine =
        tasks.spawn(Engine::new(Arc::clone(&shared), follower, Periods::default()).run());
    tasks.spawn(start::tell_when_ready(Arc::clone(&shared), Arc::clone(&host), detached));
    let keeper = Arc::clone(&agent);
    tasks.spawn(async move { keeper.keep_known().await });
    let keeper = Arc::clone(&agent);
    tasks.spawn(async move { keeper.claim_macs().await });
    let keeper = Arc::clone(&agent);
    tasks.spawn(async move { keeper.keep_commands(COMMANDS, found).await });

    let (mut failure, mut end) = (None, End::Asked);
    tokio::select! {
        // The engine ends at `shutdown`, too: both may have ended before this task runs.
        biased;
        signal = &mut stopped => {
            let then = if options.cleanup_on_exit { "cleaning up" } else { "the data plane goes on" };
            tracing::info!("{signal}: stopping, {then}");
        }
        () = shared.ending.shutdown.cancelled() => {}
        () = shared.ending.again.cancelled() => end = End::Anew(shared.ending.reason()),
        ended = &mut engine => {
            // Only a defect of the engine ends it.
            failure = Some(anyhow!("the engine stopped: {ended:?}; the data plane goes on"));
        }
    }
    let is_asked = end == End::Asked && failure.is_none();
    let clean_up = CleanUp::of(options.cleanup_on_exit && is_asked, &shared);
    if clean_up == CleanUp::Node
        && let Err(error) = agent.purge_node().await
    {
        failure = Some(unclean(&error));
    }
    pricing.abort();
    if let Some(trace) = trace {
        trace.abort();
    }
    shared.ending.end_tasks().await;
    if shared.ending.purged.is_cancelled() {
        files::remove_state(&options.state_dir);
    }
    if clean_up == CleanUp::Host {
        failure = clean_up_host(options).await.err();
    }
    failure.map_or(Ok(end), Err)
}
