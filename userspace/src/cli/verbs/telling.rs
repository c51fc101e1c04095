//! Reports of the state of a container's command to the agent.
//!
//! The newest state is sent again until the agent has accepted it. So an agent that starts after
//! the command learns of it, too. The command does not wait for that.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::container::remove_log;
use crate::{
    api::{
        Backend,
        types::{ApiError, ContainerState, ErrorKind},
    },
    cli::failure::{Failure, tell},
    model::{Name, SETTLED},
};

/// Longest time for which the end of a command is not looked at, because its start is being
/// reported for the first time.
const FIRST: Duration = Duration::from_secs(10);
/// Pauses between two attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A state with its number.
type Numbered = Option<(u64, ContainerState)>;

/// Takes the states of a command, for its [`Teller`].
pub(super) struct Sayer {
    states: watch::Sender<Numbered>,
    tried: watch::Receiver<u64>,
    gone: watch::Receiver<bool>,
}

impl Sayer {
    /// Has a state reported from now on, in place of an earlier one that was not reported yet.
    pub(super) fn say(&self, state: ContainerState) {
        self.states.send_modify(|newest| {
            let number = newest.as_ref().map_or(1, |(number, _)| number + 1);
            *newest = Some((number, state));
        });
    }

    /// Waits until the last state was sent once, whether the agent has taken it or not. The wait is
    /// limited.
    pub(super) async fn sent(&self) {
        let last = self.states.borrow().as_ref().map_or(0, |(number, _)| *number);
        let mut tried = self.tried.clone();
        let _ = timeout(FIRST, tried.wait_for(|tried| *tried >= last)).await;
    }

    /// Whether the agent has said that the container does not exist any more.
    pub(super) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
}

/// Sends the agent the states that its [`Sayer`] was given.
pub(super) struct Teller<'a> {
    backend: &'a dyn Backend,
    name: &'a Name,
    /// Remove the container once the agent has accepted its end.
    remove: bool,
    /// Time for which the teller tries to report the end to an agent that does not answer. `None`:
    /// as long as the directory of `log` exists, which 'purge' removes.
    patience: Option<Duration>,
    /// Log of the container.
    log: Option<PathBuf>,
    states: watch::Receiver<Numbered>,
    tried: watch::Sender<u64>,
    gone: watch::Sender<bool>,
}

impl<'a> Teller<'a> {
    /// A teller, with the sayer for it. `remove`: the container is removed once the agent has
    /// accepted its end. `patience`: time for which the teller tries to report the end to an agent
    /// that does not answer; `None` for no limit.
    pub(super) fn new(
        backend: &'a dyn Backend,
        name: &'a Name,
        log: Option<PathBuf>,
        remove: bool,
        patience: Option<Duration>,
    ) -> (Sayer, Self) {
        let (states, heard) = watch::channel(None);
        let (tries, tried) = watch::channel(0);
        let (leaves, gone) = watch::channel(false);
        let sayer = Sayer { states, tried, gone };
        let teller = Self {
            backend,
            name,
            remove,
            patience,
            log,
            states: heard,
            tried: tries,
            gone: leaves,
        };
        (sayer, teller)
    }

    /// Reports the states until the agent has accepted the end of the command, or the sayer is
    /// dropped, or the patience is over.
    pub(super) async fn run(mut self) {
        let name = self.name;
        let mut deadline = None;
        let mut pause = PAUSES.0;
        // Number of the last state that the agent has accepted.
        let mut told = 0;
        loop {
            let newest = self.states.borrow_and_update().clone();
            if let Some((number, state)) = newest.filter(|(number, _)| *number > told) {
                let answer = self.backend.container_state(name, state.clone()).await;
                self.tried.send_replace(number);
                match answer {
                    Ok(()) => {}
                    Err(error) if error.kind == ErrorKind::NotFound => {
                        // It was removed while it ran, by 'rm -f' or 'purge'.
                        self.gone.send_replace(true);
                        if let ContainerState::Exited { .. } = state {
                            // There is another container of this name now, and the log is its.
                            // The end of a container that is unknown would be no error.
                            return;
                        }
                        if let ContainerState::Running { .. } = state {
                            tell(&self.untold(&state, &error));
                        }
                    }
                    // An agent of an earlier version does not know the state.
                    Err(error) if error.kind == ErrorKind::Invalid => {
                        tell(&format!("container {name}: the agent was not told: {error}"));
                    }
                    Err(error) if self.is_over(&mut deadline) => {
                        tell(&self.untold(&state, &error));
                        return self.remove_log();
                    }
                    Err(_) => {
                        self.wait(pause).await;
                        pause = (pause * 2).min(PAUSES.1);
                        continue;
                    }
                }
                told = number;
                pause = PAUSES.0;
                if let ContainerState::Exited { .. } = state {
                    if self.remove && !*self.gone.borrow() {
                        self.remove(deadline).await;
                    }
                    return self.remove_log();
                }
                if !self.remains(&state).await {
                    continue;
                }
            }
            if self.states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits while a command that keeps failing runs, and reports once that it fails no more.
    /// `false`: there is a newer state.
    async fn remains(&mut self, state: &ContainerState) -> bool {
        let ContainerState::Running { pid, log, supervisor: Some(supervisor), id } = state else {
            return true;
        };
        if supervisor.failing.is_none() {
            return true;
        }
        if let Ok(changed) = timeout(SETTLED, self.states.changed()).await {
            // The sayer was dropped, or there is a newer state.
            return changed.is_err();
        }
        let mut supervisor = supervisor.clone();
        supervisor.failing = None;
        let (log, id) = (log.clone(), id.clone());
        let state = ContainerState::Running { pid: *pid, log, supervisor: Some(supervisor), id };
        // If this report is lost, the next one says the same.
        let _ = self.backend.container_state(self.name, state).await;
        true
    }

    /// Whether the agent is not told any more. The patience begins with the end of the command.
    fn is_over(&self, deadline: &mut Option<Instant>) -> bool {
        if self.states.has_changed().is_ok() {
            return false;
        }
        match self.patience {
            Some(patience) => {
                Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + patience)
            }
            None => {
                let directory = self.log.as_deref().and_then(Path::parent);
                !directory.is_some_and(Path::is_dir)
            }
        }
    }

    /// Waits for `pause`, or until there is a newer state.
    async fn wait(&mut self, pause: Duration) {
        if let Ok(Err(_)) = timeout(pause, self.states.changed()).await {
            // The sayer was dropped: there will be no newer state.
            sleep(pause).await;
        }
    }

    /// The line about a state that could not be reported.
    fn untold(&self, state: &ContainerState, error: &ApiError) -> String {
        let what = match state {
            ContainerState::Running { .. } => "runs",
            ContainerState::Restarting { .. } | ContainerState::Exited { .. } => "ended",
        };
        format!("container {} {what}, but: {error}", self.name)
    }

    /// Removes the log of a container that is removed.
    fn remove_log(&self) {
        if self.remove
            && let Some(Err(Failure { line: Some(line), .. })) = self.log.as_deref().map(remove_log)
        {
            tell(&line);
        }
    }

    /// Removes the container.
    async fn remove(&self, mut deadline: Option<Instant>) {
        let mut pause = PAUSES.0;
        loop {
            match self.backend.container_remove(self.name, true).await {
                Ok(()) => return,
                Err(error) if error.kind == ErrorKind::NotFound => return,
                Err(error)
                    if error.kind != ErrorKind::Unavailable || self.is_over(&mut deadline) =>
                {
                    tell(&format!("container {} ended, but: {error}", self.name));
                    return;
                }
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}
