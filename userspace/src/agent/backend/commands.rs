//! Commands whose supervisor is gone: they are started again as their policy says, and containers
//! of `run --rm` are removed. Commands that the agent was not told of are found.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::OwnedMutexGuard, task::JoinHandle};

use super::{Agent, rows};
use crate::{
    agent::{
        containers::{Origin, Record, boot},
        platform::{FoundSupervisor, Launch, Wanted},
        reruns,
        state::PlugState,
    },
    api::types::{ApiError, Rerun},
    model::{Name, Pauses, SETTLED},
    sandbox::{LogLimits, SuperviseSpec, Surroundings, remove_log, starter_has_ended},
};

/// An attempt to start a supervisor. A supervisor that runs has pauses of its own for its command.
struct StartAttempt {
    /// Ends when the command runs or could not be started.
    task: JoinHandle<Result<(), String>>,
    /// When it began.
    began: Instant,
    /// The pauses after it and earlier ones.
    pauses: Pauses,
    /// When the next attempt may be made, once this one has failed.
    next: Option<Instant>,
}

impl Agent {
    /// Directory of the logs of detached commands.
    fn logs(&self) -> PathBuf {
        self.shared.options.state_dir.join("logs")
    }

    /// Log of the command of a container, if that is detached. The agent writes to it and removes
    /// it, so a reported path is not used.
    pub(super) fn log_of(&self, name: &Name) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Looks for the commands of all containers of which the agent knows neither command nor end:
    /// they were started, or have ended, while no agent ran. `false`: it is to be called again.
    /// Then the processes of this host cannot be looked at, which is a problem in `status`, or a
    /// request is about one of the containers.
    pub(crate) async fn find_commands(&self) -> bool {
        let records = self.records_with(|_| true);
        let untold = records.iter().filter(|record| record.untold());
        let found = self.look_for(untold.filter_map(Wanted::of).collect()).await;
        let line = found.as_ref().err().map(|error| format!("{error}; trying again"));
        self.shared.shown.problems.set("commands", line);
        let Ok(found) = found else { return false };
        let mut complete = true;
        for (name, found) in found {
            let Some(_turn) = self.shared.requests.turns.take(&name) else {
                complete = false;
                continue;
            };
            // Checked again: the supervisor may have reported itself since, or the last end.
            if let Some(record) = self.record_of(&name).filter(Record::untold) {
                self.adopt_command(record, Some(found));
            }
        }
        // The supervisors of the other containers report by themselves.
        for record in self.records_with(|_| true) {
            self.tell_failing(&record);
        }
        complete
    }

    /// Looks for the command of a container, if it may run unknown. Returns the record with what was
    /// found. The caller has the container's turn.
    ///
    /// # Errors
    ///
    /// The processes of this host cannot be looked at: the command may run.
    pub(super) async fn look_again(&self, record: Record) -> Result<Record, ApiError> {
        let found = self.look_for(unknown(&record).into_iter().collect()).await;
        let mut found =
            found.map_err(|error| ApiError::new(error.kind, unfound(&record.name, &error)))?;
        let found = found.remove(&record.name);
        Ok(self.adopt_command(record, found))
    }

    /// As [`Self::look_again`], for many containers: the processes of this host are looked through
    /// once.
    ///
    /// # Errors
    ///
    /// As [`Self::look_again`].
    pub(super) async fn look_again_at(
        &self,
        records: Vec<Record>,
    ) -> Result<Vec<Record>, ApiError> {
        let mut found = self.look_for(records.iter().filter_map(unknown).collect()).await?;
        let adopted = records.into_iter().map(|record| {
            let found = found.remove(&record.name);
            self.adopt_command(record, found)
        });
        Ok(adopted.collect())
    }

    async fn look_for(
        &self,
        wanted: Vec<Wanted>,
    ) -> Result<BTreeMap<Name, FoundSupervisor>, ApiError> {
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.shared.platform.supervised(wanted, &self.logs()).await
    }

    /// Notes what was found of the command of a container. Returns the record with it.
    fn adopt_command(&self, mut record: Record, found: Option<FoundSupervisor>) -> Record {
        let Some(FoundSupervisor { supervisor, process, detached }) = found else {
            return record;
        };
        if !supervisor.lives() {
            return record;
        }
        record.supervisor = Some(supervisor);
        record.process = process;
        // Without a command it is going to start one, unless it is about to report the last end.
        record.waiting = record.process.is_none() && !record.restart.is_no();
        record.begun = true;
        if record.process.is_some() {
            record.exit_code = None;
        }
        record.log = record.log.or_else(|| detached.then(|| self.log_of(&record.name)));
        record.boot = boot();
        tracing::info!(
            "container '{}': its supervisor (pid {}) was found, with {}",
            record.name,
            supervisor.pid,
            process.map_or("no command".to_owned(), |process| {
                format!("its command (pid {})", process.pid)
            })
        );
        if let Err(error) = self.shared.containers().put(record.clone()) {
            // What was found is used nevertheless. The supervisor will report it, too.
            self.shared.disk.refuse(&format!("container '{}'", record.name), error);
        }
        self.shared.regrouped.note(Some(record.name.clone()));
        record
    }

    /// Sets or clears the problem of a container whose command keeps failing.
    pub(super) fn tell_failing(&self, record: &Record) {
        let name = &record.name;
        let failing = record.failing.as_ref().filter(|_| record.supervised());
        let line = failing.map(|how| {
            format!(
                "container '{name}': its command keeps failing ({how}) and is started again after pauses of up to 1 min: 'culvert logs {name}' shows its output"
            )
        });
        self.shared.shown.problems.set(&format!("command/{name}"), line);
    }

    /// Looks after commands without a supervisor every `period`, until the agent stops. `found`:
    /// [`Self::find_commands`] has succeeded.
    pub(crate) async fn keep_commands(&self, period: Duration, mut found: bool) {
        if !self.shared.wait_ready().await {
            return;
        }
        let mut attempts = BTreeMap::new();
        loop {
            if !found {
                found = self.find_commands().await;
            }
            self.remove_abandoned();
            self.start_orphaned(&mut attempts).await;
            tokio::select! {
                () = self.shared.ending.shutdown.cancelled() => return,
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    /// Copies of records, which the caller can look at without the lock: the state of a command
    /// is read from `/proc`. `may` is called with the lock held.
    fn records_with(&self, may: impl Fn(&Record) -> bool) -> Vec<Record> {
        let containers = self.shared.containers();
        containers.iter().filter(|record| may(record)).cloned().collect()
    }

    /// Removes containers of `run --rm` whose command has ended and whose supervisor is gone
    /// without a report, as in a reboot. Each in a task of its own: the removal of one may wait for
    /// the store or the kernel.
    fn remove_abandoned(&self) {
        let candidates = self.records_with(|record| record.auto_remove).into_iter();
        for Record { name, .. } in candidates.filter(Record::abandoned) {
            // A request that is about this container comes first, or its removal is under way.
            let Some(turn) = self.shared.requests.turns.take(&name) else { continue };
            let agent = Self::new(Arc::clone(&self.shared));
            self.shared.ending.tasks.spawn(async move {
                let _turn = turn;
                agent.remove_if_abandoned(&name).await;
            });
        }
    }

    /// As [`Self::remove_abandoned`], for one container. The caller has its turn.
    async fn remove_if_abandoned(&self, name: &Name) {
        // Checked again: another request may have removed or changed the container since.
        let Some(record) = self.record_of(name).filter(Record::abandoned) else { return };
        match self.take_away(&record).await {
            Ok(()) => {
                tracing::info!("container '{name}': its command is gone, it is removed (--rm)");
                let log = self.log_of(name);
                if record.log.is_some()
                    && let Err(error) = remove_log(&log)
                {
                    tracing::warn!("log {}: {error}", log.display());
                }
            }
            Err(error) => {
                let line = format!(
                    "container '{name}': its command is gone, and it cannot be removed (--rm): {error}; trying again"
                );
                self.shared.shown.problems.set(&format!("abandoned/{name}"), Some(line));
            }
        }
    }

    /// Starts supervisors for commands that are to run and have none.
    async fn start_orphaned(&self, attempts: &mut BTreeMap<Name, StartAttempt>) {
        // 'purge' has it while it removes the containers.
        let Ok(_starting) = self.shared.requests.starting.try_lock() else { return };
        let ready = self.orphans_to_start(attempts).await;
        // Supervisors may run without having been able to report. One look finds all of them.
        let wanted = ready.iter().filter_map(|(_, record)| unknown(record)).collect();
        let mut looked = self.look_for(wanted).await;
        for (_turn, record) in ready {
            let name = record.name.clone();
            let line = looked.as_ref().err().map(|error| unfound(&name, error));
            self.shared.shown.problems.set(&format!("search/{name}"), line);
            let Ok(found) = &mut looked else { continue };
            let record = self.adopt_command(record, found.remove(&name));
            if !record.orphaned() {
                continue;
            }
            let pauses = attempts.get(&name).map(|attempt| attempt.pauses).unwrap_or_default();
            let launch = self.launch(&record);
            let platform = Arc::clone(&self.shared.platform);
            tracing::info!("container '{name}': its command is started again ({})", record.restart);
            // The supervisor reports to the agent before this ends, and needs the turn for it. A
            // removal waits for the end.
            let launching = self.shared.requests.launches.begin(&name);
            let task = tokio::spawn(async move {
                let _launching = launching;
                platform.supervise(&launch?).await
            });
            attempts.insert(name, StartAttempt { task, began: Instant::now(), pauses, next: None });
        }
    }

    /// The containers whose supervisor is to be started now, each with its turn.
    async fn orphans_to_start(
        &self,
        attempts: &mut BTreeMap<Name, StartAttempt>,
    ) -> Vec<(OwnedMutexGuard<()>, Record)> {
        let candidates = self.records_with(|record| !record.restart.is_no()).into_iter();
        let orphaned: BTreeSet<Name> =
            candidates.filter(Record::orphaned).map(|record| record.name).collect();
        for name in attempts.keys().filter(|name| !orphaned.contains(*name)) {
            self.shared.shown.problems.set(&format!("start/{name}"), None);
        }
        // An attempt that has succeeded counts for a while: the supervisor itself may keep dying.
        attempts.retain(|name, attempt| {
            let recent = !attempt.task.is_finished() || attempt.began.elapsed() < SETTLED;
            orphaned.contains(name) || recent
        });
        let mut ready = Vec::new();
        for name in orphaned {
            if let Some(attempt) = attempts.get_mut(&name)
                && !self.may_try_again(&name, attempt).await
            {
                continue;
            }
            if self.shared.requests.launches.is_under_way(&name) {
                continue;
            }
            // A request that is about this container comes first.
            let Some(turn) = self.shared.requests.turns.take(&name) else { continue };
            let Some(record) = self.record_of(&name).filter(Record::orphaned) else { continue };
            if self.has_network(&record) {
                ready.push((turn, record));
            }
        }
        ready
    }

    /// Whether an attempt has ended long enough ago.
    async fn may_try_again(&self, name: &Name, attempt: &mut StartAttempt) -> bool {
        if let Some(next) = attempt.next {
            return Instant::now() >= next;
        }
        if !attempt.task.is_finished() {
            return false;
        }
        let ended = (&mut attempt.task).await;
        let why = match ended {
            Ok(Ok(())) => "its supervisor has ended".to_owned(),
            Ok(Err(why)) => why,
            Err(_) => "the task that starts it has ended".to_owned(),
        };
        // Without the starter no attempt succeeds, until the next agent has one.
        let again = if starter_has_ended() { "" } else { "; trying again" };
        let line = format!("container '{name}': its command is not started again: {why}{again}");
        self.shared.shown.problems.set(&format!("start/{name}"), Some(line));
        let pause = attempt.pauses.after(attempt.began.elapsed());
        attempt.next = Some(Instant::now() + pause);
        false
    }

    /// Whether the sandbox that a container uses has its interfaces.
    fn has_network(&self, record: &Record) -> bool {
        let (holder, owned) = match &record.origin {
            Origin::Host => return true,
            Origin::Shares(other) => {
                let other = self.record_of(other);
                match other {
                    Some(other) => (other.name.clone(), other.origin == Origin::Owned),
                    None => return true,
                }
            }
            Origin::Owned => (record.name.clone(), true),
            Origin::Attached => (record.name.clone(), false),
        };
        let ready = |id: &str| matches!(self.shared.plugs.get(id), Some(PlugState::Ready { .. }));
        self.endpoints_of(&holder).iter().all(|(_, id)| ready(id))
            && (!owned || self.shared.platform.sandbox_exists(&holder))
    }

    /// The supervisor that starts the command of a container again.
    fn launch(&self, record: &Record) -> Result<Launch, String> {
        let rerun = reruns::read(&self.shared.options.state_dir, &record.name);
        let Rerun { restart, environment, directory, umask, log_max_size, log_max_files } =
            rerun.map_err(|error| error.to_string())?;
        let row = rows::container(&self.shared, record);
        let spec = SuperviseSpec {
            name: row.name,
            id: row.id,
            netns: (record.origin != Origin::Host).then(|| record.netns.clone()),
            hostname: row.hostname,
            etc: row.etc.map(PathBuf::from),
            command: record.command.clone(),
            log: Some(self.log_of(&record.name)),
            log_limits: LogLimits { max_size: log_max_size, max_files: log_max_files },
            restart,
            restarts: Some(record.next_restarts()),
            privileges: record.privileges.clone(),
            isolation: record.isolation.clone(),
            joins: None,
        };
        let surroundings = Surroundings {
            environment: Some(environment),
            directory: Some(directory),
            umask: Some(umask),
            files: None,
        };
        Ok(Launch { spec, surroundings, socket: self.shared.options.socket.clone() })
    }
}

/// A container whose command may run unknown.
fn unknown(record: &Record) -> Option<Wanted> {
    Wanted::of(record).filter(|_| record.untold() && !record.supervised())
}

/// The problem that the command of a container cannot be looked for, on one line.
fn unfound(name: &Name, error: &ApiError) -> String {
    format!("container '{name}': {}", error.message)
}
