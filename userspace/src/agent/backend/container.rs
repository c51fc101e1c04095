//! Containers: a sandbox, its attachments, and the command in it.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use super::{
    Agent,
    attach::{Attachment, fixed_ips},
    conflict, internal, invalid,
    network::NetworkOf,
    not_found, rows,
};
use crate::{
    agent::{
        capabilities,
        containers::{Origin, Process, Record, Running, boot},
        ports, reruns,
    },
    api::{
        deadline,
        types::{
            ApiError, ContainerCreate, ContainerRow, ContainerState, ErrorKind, Rerun, Supervised,
        },
    },
    limits::name_limit,
    model::{Endpoint, Key, Name, ops},
};

/// Time that a killed process may take to end.
const KILLED: Duration = Duration::from_secs(5);
/// Time until the agent looks for processes that keep a killed one from its end.
const HELD: Duration = Duration::from_millis(500);
/// Time that the threads of a process need to stop after the signal.
const STOPPED: Duration = Duration::from_millis(20);

impl Agent {
    /// The record of a container of this host. If its file is lost, the record is made from its
    /// endpoints.
    pub(super) fn record_of(&self, name: &Name) -> Option<Record> {
        if let Some(record) = self.shared.containers().get(name) {
            return Some(record.clone());
        }
        let lost = {
            let view = self.shared.view();
            let endpoint = view.endpoints_of(&self.shared.node.name, name).last();
            endpoint.map(|endpoint| lost_record(&endpoint))
        };
        lost.or_else(|| self.unfinished_record(name))
    }

    /// Records of containers that have endpoints but no file, made from the endpoints.
    fn lost_records(&self) -> BTreeMap<Name, Record> {
        let view = self.shared.view();
        let containers = self.shared.containers();
        let endpoints = view.endpoints_on(&self.shared.node.name);
        let lost = endpoints.filter(|ep| containers.get(&ep.container).is_none());
        lost.map(|ep| (ep.container.clone(), lost_record(&ep))).collect()
    }

    /// The records of all containers of this host, in order of name.
    pub(super) fn all_records(&self) -> Vec<Record> {
        let left = self.shared.requests.unfinished.left();
        let left = left.iter().filter_map(|name| self.unfinished_record(name));
        let mut records: BTreeMap<Name, Record> =
            left.map(|record| (record.name.clone(), record)).collect();
        records.extend(self.lost_records());
        records.extend(self.shared.containers().iter().map(|r| (r.name.clone(), r.clone())));
        records.into_values().collect()
    }

    /// The rows of `ps` for all containers of this host.
    pub(super) fn list_containers(&self) -> Vec<ContainerRow> {
        rows::containers(&self.shared, &self.all_records())
    }

    pub(super) async fn create_container(
        &self,
        request: ContainerCreate,
    ) -> Result<ContainerRow, ApiError> {
        self.shared.usable_store().await?;
        let name = &request.name;
        self.take_back_first(name).await?;
        if self.record_of(name).is_some() {
            return self.again(request).await;
        }
        let what = format!("container '{name}'");
        self.shared.disk.writable(&what)?;
        if let Some(rerun) = &request.rerun {
            reruns::check(rerun).map_err(|why| invalid(format!("{what}: {why}")))?;
            if request.auto_remove {
                return Err(invalid(format!(
                    "{what}: --restart does not go with --rm: leave out one of both"
                )));
            }
        }
        request.privileges.check().map_err(|why| invalid(format!("{what}: {why}")))?;
        request.isolation.check().map_err(|why| invalid(format!("{what}: {why}")))?;
        let ports = ports::parse(name, &request.ports)?;
        let from = ports::clients(name, &ports, &request.from)?;
        let network = self.network_of(&request.network)?;
        let adopting = request.netns.is_some() || request.pid.is_some();
        Self::check_names(&request, &network, adopting)?;
        if let NetworkOf::Stored(network) = &network {
            self.check_network(network).await?;
        } else {
            check_plain(&request, &network, adopting)?;
        }
        self.check_exposed(&request, &network).await?;

        let mut record = self.sandbox_for(&request, &network).await?;
        record.id = Some(ops::new_id());
        record.command = request.command.clone();
        record.auto_remove = request.auto_remove;
        record.restart = request.rerun.as_ref().map(|rerun| rerun.restart).unwrap_or_default();
        record.names = request.names.clone();
        record.privileges = request.privileges.clone();
        record.isolation = request.isolation.clone();
        let mut attempt = None;
        if let NetworkOf::Stored(network) = &network {
            let attached = self
                .attach(&Attachment {
                    container: name,
                    network,
                    netns: &record.netns,
                    owned: record.origin == Origin::Owned,
                    namespace: record.namespace,
                    ips: fixed_ips(request.ip, &request.more_ips),
                    mac: request.mac,
                    ifname: request.ifname.as_deref(),
                    ports: &ports,
                    from: &from,
                })
                .await;
            match attached {
                Ok(attached) => attempt = Some(attached),
                Err(error) => {
                    if record.origin == Origin::Owned {
                        self.drop_sandbox(name).await;
                    }
                    return Err(error);
                }
            }
        }
        record.known = Some(rows::in_store(&self.shared.view(), &self.shared.node.name, &record));
        let kept = deadline::check().and_then(|()| self.keep(&mut record, request.rerun.as_ref()));
        let mut warnings = match kept {
            Ok(warnings) => warnings,
            Err(error) => {
                let mut failed = None;
                for (network, id) in self.endpoints_of(name) {
                    if let Err(error) = self.detach(&network, &id).await {
                        tracing::warn!("container '{name}': {error}");
                        failed = Some(error);
                    }
                }
                match attempt {
                    Some(attempt) if failed.is_some() => self.take_back_later(attempt),
                    Some(attempt) => self.attempt_over(&attempt.network, &attempt.endpoint),
                    None => {}
                }
                self.remove_etc(name);
                self.remove_rerun(name);
                if record.origin == Origin::Owned {
                    self.drop_sandbox(name).await;
                }
                return Err(error);
            }
        };
        if let Some(attempt) = attempt {
            self.attempt_over(&attempt.network, &attempt.endpoint);
        }
        self.finished(name);
        let row = rows::container(&self.shared, &record);
        warnings.extend(rows::unserved(&row).filter(|_| !ports.is_empty()));
        if request.rerun.is_some() && capabilities::are_limited() {
            warnings.push(format!(
                "{what}: if the agent starts its command again, that cannot gain privileges, as the agent's unit has NoNewPrivileges="
            ));
        }
        Ok(ContainerRow { warnings, ..row })
    }

    /// Writes the files and the record of a new container. Returns warnings.
    fn keep(&self, record: &mut Record, rerun: Option<&Rerun>) -> Result<Vec<String>, ApiError> {
        let warnings = self.write_etc(record)?;
        let refused =
            |error| self.shared.disk.refuse(&format!("container '{}'", record.name), error);
        if let Some(rerun) = rerun {
            let state_dir = &self.shared.options.state_dir;
            reruns::write(state_dir, &record.name, rerun).map_err(refused)?;
        }
        let put = self.shared.containers().put(record.clone());
        put.map_err(refused)?;
        self.shared.regrouped.note(Some(record.name.clone()));
        Ok(warnings)
    }

    /// Removes what the command of a container is started again with.
    fn remove_rerun(&self, name: &Name) {
        if let Err(error) = reruns::remove(&self.shared.options.state_dir, name) {
            tracing::warn!("container '{name}': what it is started again with: {error}");
        }
    }

    /// Handles a `create` request whose container exists. Valid only for `attach` of the same
    /// namespace to one more network.
    async fn again(&self, request: ContainerCreate) -> Result<ContainerRow, ApiError> {
        let name = &request.name;
        let taken = || {
            conflict(format!(
                "container '{name}' exists already: choose another name, or remove it with 'culvert rm {name}'"
            ))
        };
        let record = self.record_of(name).ok_or_else(taken)?;
        let adopting = request.netns.is_some() || request.pid.is_some();
        if !adopting || record.origin != Origin::Attached {
            return Err(taken());
        }
        let ports = ports::parse(name, &request.ports)?;
        let from = ports::clients(name, &ports, &request.from)?;
        Self::check_names(&request, &NetworkOf::None, adopting)?;
        let found = self.shared.platform.adopt(request.netns.as_deref(), request.pid).await?;
        if found.path != record.netns {
            return Err(conflict(format!(
                "container '{name}' exists already, with {}: choose another name for {}",
                record.netns.display(),
                found.path.display()
            )));
        }
        // A record of an earlier version has no namespace.
        let now = found.through.map(|(_, id)| id);
        if record.namespace.is_some() && now != record.namespace {
            return Err(conflict(format!(
                "container '{name}' exists already, with the former namespace of {}: 'culvert detach {name}' first",
                record.netns.display()
            )));
        }
        let NetworkOf::Stored(network) = self.network_of(&request.network)? else {
            return Err(taken());
        };
        self.ensure_bridge(&network).await?;
        let wanted = Attachment {
            container: name,
            network: &network,
            netns: &record.netns,
            owned: false,
            namespace: record.namespace,
            ips: fixed_ips(request.ip, &request.more_ips),
            mac: request.mac,
            ifname: request.ifname.as_deref(),
            ports: &ports,
            from: &from,
        };
        let attempt = self.attach(&wanted).await?;
        self.attempt_over(&attempt.network, &attempt.endpoint);
        let row = rows::container(&self.shared, &record);
        let warnings = rows::unserved(&row).filter(|_| !ports.is_empty()).into_iter().collect();
        Ok(ContainerRow { warnings, ..row })
    }

    /// Refuses an unknown network before a sandbox is made for it.
    async fn check_network(&self, network: &Name) -> Result<(), ApiError> {
        self.ensure_bridge(network).await?;
        if self.shared.view().networks.contains_key(network) {
            return Ok(());
        }
        // The network may have been made on another host, and its update not yet be here.
        let store = self.shared.usable_store().await?;
        let found = store.snapshot(&Key::network(network)).await;
        let found =
            found.map_err(|error| ApiError::new(ErrorKind::Unavailable, error.to_string()))?;
        let key = Key::network(network);
        if found.entries.iter().any(|entry| entry.key == key) {
            return Ok(());
        }
        Err(super::network::unknown(&self.shared.view(), network))
    }

    /// The record of a new container with its namespace. Makes the sandbox if the container needs
    /// one.
    async fn sandbox_for(
        &self,
        request: &ContainerCreate,
        network: &NetworkOf,
    ) -> Result<Record, ApiError> {
        let platform = &self.shared.platform;
        let name = request.name.clone();
        match network {
            NetworkOf::Host => Ok(Record::new(name, Origin::Host, PathBuf::new())),
            NetworkOf::Container(other) => {
                if *other == name {
                    return Err(invalid(format!(
                        "container '{name}' cannot share its own network: the name of another container is valid"
                    )));
                }
                let shared = self.record_of(other).ok_or_else(|| self.unknown_container(other))?;
                self.check_known(&shared).await?;
                match shared.origin {
                    Origin::Owned | Origin::Attached => {
                        Ok(Record::new(name, Origin::Shares(other.clone()), shared.netns))
                    }
                    Origin::Host => Ok(Record::new(name, Origin::Host, PathBuf::new())),
                    Origin::Shares(root) => Err(invalid(format!(
                        "container '{name}': '{other}' shares the network of '{root}' itself: '--network container:{root}' is valid"
                    ))),
                }
            }
            NetworkOf::Stored(_) | NetworkOf::None => {
                if request.netns.is_none() && request.pid.is_none() {
                    let netns = self.make_sandbox(&name).await?;
                    return Ok(Record::new(name, Origin::Owned, netns));
                }
                let found = platform.adopt(request.netns.as_deref(), request.pid).await?;
                let mut record = Record::new(name, Origin::Attached, found.path);
                if let Some((pid, namespace)) = found.through {
                    // The kernel may give the number to another process later.
                    record.adopted = process(&record.name, pid)?;
                    record.namespace = Some(namespace);
                }
                Ok(record)
            }
        }
    }

    pub(super) async fn set_container_state(
        &self,
        name: &Name,
        state: ContainerState,
    ) -> Result<(), ApiError> {
        let Some(mut record) = self.record_of(name) else {
            // The container was removed while its command was ending.
            return match state {
                ContainerState::Exited { .. } => Ok(()),
                ContainerState::Running { .. } | ContainerState::Restarting { .. } => {
                    Err(self.unknown_container(name))
                }
            };
        };
        let supervised = |record: &mut Record, by: Supervised| {
            record.supervisor = process(name, by.pid)?;
            record.restarts = by.restarts;
            record.failing = by.failing;
            Ok::<_, ApiError>(())
        };
        if !record.is_meant(state.id()) {
            return Err(not_found(format!(
                "container '{name}' is another one than the report is about, which was removed: 'culvert ps' shows it"
            )));
        }
        let own_log = |reported: Option<PathBuf>| {
            let own = self.log_of(name);
            if let Some(other) = reported.as_ref().filter(|reported| **reported != own) {
                let (own, other) = (own.display(), other.display());
                tracing::warn!("container '{name}': {other} was reported as its log, it is {own}");
            }
            reported.map(|_| own)
        };
        record.boot = boot();
        record.waiting = false;
        record.begun = !matches!(state, ContainerState::Exited { .. });
        match state {
            ContainerState::Running { pid, log, supervisor, .. } => {
                record.process = match &supervisor {
                    Some(by) => self.command_of(name, by.pid, pid)?,
                    None => process(name, pid)?,
                };
                record.exit_code = None;
                record.log = own_log(log);
                if let Some(by) = supervisor {
                    supervised(&mut record, by)?;
                }
            }
            ContainerState::Restarting { code, log, supervisor, .. } => {
                record.process = None;
                record.exit_code = Some(code);
                record.log = own_log(log);
                record.waiting = true;
                supervised(&mut record, supervisor)?;
            }
            ContainerState::Exited { code, .. } => {
                record.process = None;
                record.exit_code = Some(code);
                record.supervisor = None;
                record.failing = None;
                if record.auto_remove {
                    return self.take_away(&record).await;
                }
            }
        }
        self.tell_failing(&record);
        let put = self.shared.containers().put(record);
        // A note of its networks, made since the record was read, is lost.
        self.shared.regrouped.note(Some(name.clone()));
        put.map_err(|error| self.shared.disk.refuse(&format!("container '{name}'"), error))
    }

    /// The command that a supervisor reports; `None` if it has ended.
    ///
    /// # Errors
    ///
    /// It is not known whether it runs.
    fn command_of(
        &self,
        name: &Name,
        supervisor: i32,
        pid: i32,
    ) -> Result<Option<Process>, ApiError> {
        let found = self.shared.platform.command_of(supervisor, pid);
        let found = found.map_err(|error| unseen(name, pid, error))?;
        if found.is_none() && process(name, pid)?.is_some() {
            // 'rm -f' would kill it.
            tracing::warn!(
                "container '{name}': pid {pid} was reported as its command, but is no child of its supervisor, pid {supervisor}"
            );
        }
        Ok(found)
    }

    pub(super) async fn remove_container(&self, name: &Name, force: bool) -> Result<(), ApiError> {
        self.shared.usable_store().await?;
        let record = self.record_of(name).ok_or_else(|| self.unknown_container(name))?;
        let record = self.look_again(record).await?;
        self.shared.disk.removable(&format!("container '{name}'"))?;
        let sharers: Vec<String> = self
            .shared
            .containers()
            .iter()
            .filter(|other| other.origin == Origin::Shares(name.clone()))
            .map(|other| format!("'{}'", other.name))
            .collect();
        // With `force` the namespace exists as long as a command of another container runs in it.
        if !sharers.is_empty() && !force {
            return Err(conflict(format!(
                "container '{name}' has a network that {} shares: remove that first, or use 'culvert rm -f {name}'",
                sharers.join(", ")
            )));
        }
        if let Some(pid) = record.running() {
            if !force {
                return Err(conflict(format!(
                    "container '{name}' is running (pid {pid}): stop it first, or use 'culvert rm -f {name}'"
                )));
            }
        } else if !force && !record.restart.is_no() && record.supervised() {
            return Err(conflict(format!(
                "container '{name}' is restarting (--restart {}): use 'culvert rm -f {name}'",
                record.restart
            )));
        }
        Self::kill_process(&record).await?;
        self.take_away(&record).await
    }

    /// Kills the command of a container, and waits until it is gone. Its supervisor is killed first
    /// if it would start the command again.
    pub(crate) async fn kill_process(record: &Record) -> Result<(), ApiError> {
        if let Some(supervisor) = record.supervisor.filter(|_| !record.restart.is_no()) {
            Self::kill_supervisor(record, supervisor).await?;
        }
        match record.process {
            // Its supervisor reaps it.
            Some(process) => Self::kill(record, process).await,
            None => Ok(()),
        }
    }

    /// Kills a supervisor and its command, and waits until they are gone. The command may be another
    /// one than was reported last.
    pub(crate) async fn kill_supervisor(
        record: &Record,
        supervisor: Process,
    ) -> Result<(), ApiError> {
        let refused = |error| unseen(&record.name, supervisor.pid, error);
        let Some(running) = supervisor.open().map_err(refused)? else { return Ok(()) };
        // It starts no command while its commands are looked for.
        running.stop();
        tokio::time::sleep(STOPPED).await;
        let children = supervisor.children();
        // The kernel kills the commands with it, if they have begun.
        Self::end(record, supervisor, &running).await?;
        for command in children.map_err(refused)? {
            Self::kill(record, command).await?;
        }
        Ok(())
    }

    /// Kills a process of a container, and waits until it is gone.
    async fn kill(record: &Record, process: Process) -> Result<(), ApiError> {
        let opened = process.open().map_err(|error| unseen(&record.name, process.pid, error))?;
        let Some(running) = opened else { return Ok(()) };
        Self::end(record, process, &running).await
    }

    /// As [`Self::kill`], for a process that is open.
    async fn end(record: &Record, process: Process, running: &Running) -> Result<(), ApiError> {
        running.kill();
        let Record { name, isolation, .. } = record;
        let pid = process.pid;
        if isolation.pid.is_private() {
            if let Ok(ended) = tokio::time::timeout(HELD, running.ended()).await {
                return ended.map_err(|error| internal(&error));
            }
            match process.continue_waiters() {
                Ok(continued) => {
                    for waiter in continued {
                        tracing::info!(
                            "container '{name}': pid {waiter} was stopped, and kept the command (pid {pid}) from its end: it is continued"
                        );
                    }
                }
                Err(error) => tracing::warn!("container '{name}': {}", name_limit(error)),
            }
        }
        let ended = tokio::time::timeout(KILLED, running.ended()).await.map_err(|_| {
            conflict(format!(
                "container '{name}': pid {pid} does not end: see what it waits for in /proc/{pid}/stack"
            ))
        })?;
        ended.map_err(|error| internal(&error))
    }

    /// Removes attachments, sandbox and record of a container.
    pub(super) async fn take_away(&self, record: &Record) -> Result<(), ApiError> {
        self.begin_lost_removal(record).await?;
        let recorded = self.shared.containers().get(&record.name).is_some();
        for (network, id) in self.endpoints_of(&record.name) {
            self.detach(&network, &id).await?;
        }
        match record.origin {
            Origin::Owned if recorded || self.is_unfinished(&record.name) => {
                self.shared.platform.remove_sandbox(&record.name).await?;
            }
            // A namespace of another program.
            Origin::Owned => {}
            // A purge has removed the endpoints all at once.
            Origin::Attached => {
                let what = format!("container '{}'", record.name);
                self.forget_rules(&what, &record.sandbox()).await;
            }
            Origin::Shares(_) | Origin::Host => {}
        }
        self.remove_etc(&record.name);
        self.remove_rerun(&record.name);
        let removed = self.shared.containers().remove(&record.name);
        for problem in ["command", "abandoned", "search", "sandbox"] {
            self.shared.shown.problems.set(&format!("{problem}/{}", record.name), None);
        }
        let what = format!("container '{}'", record.name);
        removed.map_err(|error| self.shared.disk.refuse(&what, error))?;
        self.finished(&record.name);
        Ok(())
    }
}

/// The record of a container whose file is lost, made from one of its endpoints.
fn lost_record(endpoint: &Endpoint) -> Record {
    let Endpoint { container, sandbox, .. } = endpoint;
    let origin = if sandbox.owned { Origin::Owned } else { Origin::Attached };
    let mut record = Record::new(container.clone(), origin, sandbox.netns.clone());
    record.namespace = sandbox.id;
    record
}

/// The process `pid`, of the container `name`; `None` if it has ended.
///
/// # Errors
///
/// It is not known whether it runs.
fn process(name: &Name, pid: i32) -> Result<Option<Process>, ApiError> {
    Process::find(pid).map_err(|error| unseen(name, pid, error))
}

/// The error of a process that cannot be looked at.
fn unseen(name: &Name, pid: i32, error: io::Error) -> ApiError {
    internal(&format!("container '{name}': pid {pid}: {}", name_limit(error)))
}

/// Refuses options that have no effect without a network of Culvert.
fn check_plain(
    request: &ContainerCreate,
    network: &NetworkOf,
    adopting: bool,
) -> Result<(), ApiError> {
    let name = &request.name;
    if adopting {
        return Err(invalid(format!(
            "container '{name}': '--network {}' attaches to nothing: a network from 'culvert network ls' is valid",
            request.network
        )));
    }
    let given = [
        ("--ip", request.ip.is_some() || !request.more_ips.is_empty()),
        ("--mac", request.mac.is_some()),
        ("--ifname", request.ifname.is_some()),
        ("-p", !request.ports.is_empty()),
        ("--from", !request.from.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            let why = match network {
                NetworkOf::Host => "uses the host's own interfaces",
                NetworkOf::Container(_) => "uses the other container's interfaces",
                NetworkOf::None | NetworkOf::Stored(_) => "has no interface besides lo",
            };
            Err(invalid(format!(
                "container '{name}': {option} does not go with '--network {}', which {why}: leave it out",
                request.network
            )))
        }
    }
}
