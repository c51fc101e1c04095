//! The verbs that do not need a running agent: `agent`, `purge`, `completion`, `__starter`.

use std::{io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    agent,
    api::{Backend, Client, Unreachable},
    cli::failure::Failure,
    config::{AgentOptions, PurgeOptions},
    sandbox,
};

/// Time that the agent may take to end after it has purged its host.
const FAREWELL: Duration = Duration::from_secs(10);

pub(crate) fn agent(options: AgentOptions) -> Result<u8, Failure> {
    // Before there are threads.
    agent::confine(options.seccomp);
    // Several threads: a slow system call must not delay the renewal of the store's lease.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::refusal(format!("runtime cannot be started: {error}")))?;
    let result = runtime.block_on(agent::run(options));
    runtime.shutdown_background();
    result.map_err(|error| Failure::refusal(format!("{error:#}")))?;
    Ok(0)
}

pub(crate) async fn purge(client: &Client, options: PurgeOptions) -> Result<(), Failure> {
    match client.reach().await {
        Ok(()) => {}
        Err(Unreachable::NobodyListens(_)) => {
            return agent::purge_offline(options)
                .await
                .map_err(|error| Failure::refusal(format!("{error:#}")));
        }
        Err(error) => return Err(error.into()),
    }
    client.purge().await?;
    // Waits for the end, so that a new agent can be started directly after this command.
    let deadline = Instant::now() + FAREWELL;
    while client.reach().await.is_ok() {
        if Instant::now() >= deadline {
            return Err(Failure::refusal(format!(
                "agent: it has purged this host but still listens on {}: stop it",
                client.path().display()
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) async fn starter() -> Result<(), Failure> {
    sandbox::serve_starter()
        .await
        .map_err(|error| Failure::usage(format!("__starter is an internal command: {error}")))
}

pub(crate) fn completion(
    shell: clap_complete::Shell,
    command: &mut clap::Command,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    // Into memory first: clap_complete panics if a write fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "culvert", &mut script);
    out.write_all(&script)?;
    Ok(0)
}
