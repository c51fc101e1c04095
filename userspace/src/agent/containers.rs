//! Records of the containers of this host: a file `containers/NAME.json` in the state directory
//! for each.
//!
//! The store has only the endpoints. Sandbox, process and log of a container concern this host
//! alone.

mod process;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub(crate) use self::process::{Process, Running, boot, if_alive, is_past};
use super::files::{remove_if_there, write_atomically};
use crate::{
    api::types::ContainerNetwork,
    model::{Isolation, Name, NameOptions, NetnsId, Privileges, RestartPolicy, SCHEMA, SandboxRef},
    private,
};

/// Origin of a container's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Origin {
    /// Culvert made the sandbox.
    Owned,
    /// `attach`: another program made the namespace.
    Attached,
    /// `--network host`: the namespace of the agent.
    Host,
    /// `--network container:NAME`: the namespace of another container.
    Shares(Name),
}

/// `containers/NAME.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Name.
    pub(crate) name: Name,
    /// Identifier, by which reports about an earlier container of this name are refused. `None` in
    /// a record of an earlier version, and in one that is made from the store.
    #[serde(default)]
    pub(crate) id: Option<String>,
    /// Origin of the namespace.
    pub(crate) origin: Origin,
    /// Path of the namespace; empty for [`Origin::Host`].
    pub(crate) netns: PathBuf,
    /// `attach` by a path of a process: the process whose namespace was adopted. Once it has ended,
    /// the path may lead to the namespace of another process.
    #[serde(default)]
    pub(crate) adopted: Option<Process>,
    /// The namespace of [`Self::adopted`].
    #[serde(default)]
    pub(crate) namespace: Option<NetnsId>,
    /// The command, once it has started.
    pub(crate) process: Option<Process>,
    /// Exit code of the command, once it has ended.
    pub(crate) exit_code: Option<i32>,
    /// Log file of a detached container.
    pub(crate) log: Option<PathBuf>,
    /// Command line.
    pub(crate) command: Vec<String>,
    /// Remove the container when its command ends.
    pub(crate) auto_remove: bool,
    /// Names of and for the container.
    #[serde(default)]
    pub(crate) names: NameOptions,
    /// User and capabilities of the commands.
    #[serde(default, skip_serializing_if = "Privileges::is_default")]
    pub(crate) privileges: Privileges,
    /// Private namespaces and mounts of the commands.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub(crate) isolation: Isolation,
    /// What the agent has last written to its resolv.conf. `None`: it has no such file, or the
    /// record is of an earlier version.
    #[serde(default)]
    pub(crate) resolv_conf: Option<String>,
    /// When the command is started again. If ever, the agent has a file in [`super::reruns`].
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    /// How often the command was started again.
    #[serde(default)]
    pub(crate) restarts: u32,
    /// The process that runs the command. `None`: not known, as in a record of an earlier version,
    /// or it has reported the last end of the command.
    #[serde(default)]
    pub(crate) supervisor: Option<Process>,
    /// The command has ended, and the supervisor starts it again after a pause.
    #[serde(default)]
    pub(crate) waiting: bool,
    /// The command, or a supervisor for it, was started, and the last end was not reported. Their
    /// processes may not be known: a command may have ended before its start was reported.
    #[serde(default)]
    pub(crate) begun: bool,
    /// How the last run ended, if the command keeps failing.
    #[serde(default)]
    pub(crate) failing: Option<String>,
    /// The boot in which the container was made, or the state of its command was last reported.
    #[serde(default)]
    pub(crate) boot: Option<u64>,
    /// Its networks as the store last had them, for the time until an agent has read the store.
    /// `None`: not known, as in a record of an earlier version.
    #[serde(default)]
    pub(crate) known: Option<KnownNetworks>,
}

/// Mode and networks of a container, as in `ps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownNetworks {
    /// Mode.
    pub(crate) mode: String,
    /// Networks.
    pub(crate) networks: Vec<ContainerNetwork>,
}

impl Record {
    /// The namespace, as endpoints in it refer to it.
    pub(crate) fn sandbox(&self) -> SandboxRef {
        let owned = self.origin == Origin::Owned;
        SandboxRef { netns: self.netns.clone(), owned, id: self.namespace }
    }

    /// Whether endpoints of the container are in this namespace.
    pub(crate) fn is_in(&self, sandbox: &SandboxRef) -> bool {
        matches!(self.origin, Origin::Owned | Origin::Attached) && self.sandbox() == *sandbox
    }

    /// A container without a process.
    pub(crate) fn new(name: Name, origin: Origin, netns: PathBuf) -> Self {
        Self {
            schema: SCHEMA,
            name,
            id: None,
            origin,
            netns,
            adopted: None,
            namespace: None,
            process: None,
            exit_code: None,
            log: None,
            command: Vec::new(),
            auto_remove: false,
            names: NameOptions::default(),
            privileges: Privileges::default(),
            isolation: Isolation::default(),
            resolv_conf: None,
            restart: RestartPolicy::No,
            restarts: 0,
            supervisor: None,
            waiting: false,
            begun: false,
            failing: None,
            boot: boot(),
            known: None,
        }
    }

    /// Whether a report or a supervisor with this identifier is about this container. One without
    /// is of an earlier version.
    pub(crate) fn is_meant(&self, id: Option<&str>) -> bool {
        self.id.as_deref().zip(id).is_none_or(|(own, id)| own == id)
    }

    /// The host name of the container.
    pub(crate) fn hostname(&self) -> &str {
        self.names.hostname.as_ref().unwrap_or(&self.name).as_str()
    }

    /// The process number, while it runs.
    pub(crate) fn running(&self) -> Option<i32> {
        self.process.filter(Process::lives).map(|process| process.pid)
    }

    /// Whether the supervisor of the command is known and lives. The command itself may be about to
    /// be started.
    pub(crate) fn supervised(&self) -> bool {
        self.supervisor.is_some_and(|supervisor| supervisor.lives())
    }

    /// Whether the container is to be removed: its command has ended, or was lost in a reboot, and
    /// no supervisor is there to report the end.
    pub(crate) fn abandoned(&self) -> bool {
        let lost = || match self.process {
            Some(process) => !process.lives(),
            None => self.begun || is_past(self.boot),
        };
        self.auto_remove && lost() && !self.supervised()
    }

    /// Whether the last end of the command was not reported: it may run without the agent's
    /// knowledge.
    ///
    /// After a report of the last end it runs only if an agent has started it again in another
    /// boot. The supervisor that has reported may live on, as long as a process writes to the log.
    pub(crate) fn unreported(&self) -> bool {
        let again = !self.restart.is_no() && is_past(self.boot);
        self.exit_code.is_none() || self.waiting || again
    }

    /// Whether the agent knows neither the command nor its end. Reads `/proc`.
    pub(crate) fn untold(&self) -> bool {
        self.unreported() && self.running().is_none()
    }

    /// Whether the agent is to start the command again: nobody else does, and its policy says so.
    ///
    /// After a report of the last end this is only so in another boot, as Docker's daemon starts
    /// containers when it is started. A command that was never started is not.
    pub(crate) fn orphaned(&self) -> bool {
        if self.restart.is_no() || self.running().is_some() || self.supervised() {
            return false;
        }
        // Of an earlier version, the process alone says that it has begun.
        let unreported = self.begun || self.process.is_some() || self.waiting;
        let ended = self.exit_code.is_some() && is_past(self.boot);
        (unreported || ended) && self.restart.again(self.exit_code, self.next_restarts() - 1)
    }

    /// How often the command will have been started again, the next time included; at least 1. A
    /// supervisor that pauses has counted the next time already.
    pub(crate) fn next_restarts(&self) -> u32 {
        let counted = self.waiting && self.restarts > 0;
        if counted { self.restarts } else { self.restarts.saturating_add(1) }
    }
}

/// All records of this host.
#[derive(Debug)]
pub(crate) struct Containers {
    directory: PathBuf,
    records: BTreeMap<Name, Record>,
    problems: Vec<String>,
}

impl Containers {
    /// Reads `STATE_DIR/containers`, and makes the directory if it is missing. A file that is not
    /// a valid record is skipped and named in [`Self::problems`].
    pub(crate) fn load(state_dir: &Path) -> io::Result<Self> {
        let directory = state_dir.join("containers");
        private::make_dir(&directory)?;
        let mut records = BTreeMap::new();
        let mut problems = Vec::new();
        for file in fs::read_dir(&directory)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => {
                    records.insert(record.name.clone(), record);
                }
                Err(error) => problems.push(format!("{}: skipped: {error}", path.display())),
            }
        }
        Ok(Self { directory, records, problems })
    }

    /// Files that were skipped, a line each.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// All records in order of name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The record of a container.
    pub(crate) fn get(&self, name: &Name) -> Option<&Record> {
        self.records.get(name)
    }

    /// Writes a record, to disk and then to memory.
    pub(crate) fn put(&mut self, record: Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&record)?;
        write_atomically(&self.path(&record.name), &text)?;
        self.records.insert(record.name.clone(), record);
        Ok(())
    }

    /// Notes the networks of a container, if they are others than those in its record.
    pub(crate) fn note(&mut self, name: &Name, known: KnownNetworks) -> io::Result<()> {
        match self.records.get(name) {
            Some(record) if record.known.as_ref() != Some(&known) => {
                let record = Record { known: Some(known), ..record.clone() };
                self.put(record)
            }
            _ => Ok(()),
        }
    }

    /// Notes what was written to the resolv.conf of a container. It is no error if there is no
    /// record.
    pub(crate) fn note_resolv_conf(&mut self, name: &Name, text: String) -> io::Result<()> {
        match self.records.get(name) {
            Some(record) => self.put(Record { resolv_conf: Some(text), ..record.clone() }),
            None => Ok(()),
        }
    }

    /// Removes a record; it is no error if there is none.
    pub(crate) fn remove(&mut self, name: &Name) -> io::Result<()> {
        remove_if_there(&self.path(name))?;
        self.records.remove(name);
        Ok(())
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if record.schema > SCHEMA {
        let why = format!("schema {} is newer than {SCHEMA}, upgrade the agent", record.schema);
        return Err(io::Error::other(why));
    }
    if path.file_stem().is_none_or(|stem| stem != record.name.as_str()) {
        return Err(io::Error::other(format!("it is about container {}", record.name)));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn records_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut containers = Containers::load(dir.path()).unwrap();
        let record = Record::new(name("web"), Origin::Owned, "/run/netns/web".into());
        let other = Record::new(name("side"), Origin::Shares(name("web")), record.netns.clone());
        containers.put(record.clone()).unwrap();
        containers.put(other.clone()).unwrap();
        containers.put(Record::new(name("gone"), Origin::Host, PathBuf::new())).unwrap();
        containers.remove(&name("gone")).unwrap();
        containers.remove(&name("gone")).unwrap();

        let again = Containers::load(dir.path()).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), [&other, &record]);
        assert!(again.problems().is_empty());
    }

    #[test]
    fn records_of_an_earlier_version_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("containers");
        fs::create_dir(&files).unwrap();
        let record = Record::new(name("web"), Origin::Owned, "/run/netns/web".into());
        let mut old = serde_json::to_value(&record).unwrap();
        assert!(old.as_object_mut().unwrap().remove("names").is_some());
        fs::write(files.join("web.json"), old.to_string()).unwrap();
        let containers = Containers::load(dir.path()).unwrap();
        assert_eq!(containers.get(&name("web")), Some(&record));
        assert_eq!(record.hostname(), "web");
    }

    #[test]
    fn files_that_are_no_records_are_skipped_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = dir.path().join("containers");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("a.json"), "{").unwrap();
        let mut newer = Record::new(name("b"), Origin::Owned, PathBuf::new());
        newer.schema = SCHEMA + 1;
        fs::write(files.join("b.json"), serde_json::to_vec(&newer).unwrap()).unwrap();
        let misplaced = Record::new(name("x"), Origin::Owned, PathBuf::new());
        fs::write(files.join("c.json"), serde_json::to_vec(&misplaced).unwrap()).unwrap();
        fs::write(files.join("notes.txt"), "mine").unwrap();

        let containers = Containers::load(dir.path()).unwrap();
        assert_eq!(containers.iter().count(), 0);
        let mut problems = containers.problems().to_vec();
        problems.sort();
        assert_eq!(problems.len(), 3);
        assert!(problems[0].contains("a.json: skipped"), "{problems:?}");
        assert!(problems[1].contains("newer"), "{problems:?}");
        assert!(problems[2].contains("about container x"), "{problems:?}");
        assert!(files.join("a.json").exists() && files.join("notes.txt").exists());
    }

    #[test]
    fn a_restart_is_counted_once() {
        let mut record = Record::new(name("web"), Origin::Owned, PathBuf::new());
        record.restart = RestartPolicy::OnFailure { max: 3 };
        (record.begun, record.restarts) = (true, 2);
        assert!(record.orphaned() && record.next_restarts() == 3);
        // The supervisor was about to start it for the third time, and has counted that.
        (record.waiting, record.exit_code, record.restarts) = (true, Some(1), 3);
        assert!(record.orphaned() && record.next_restarts() == 3);
        record.waiting = false;
        assert!(!record.orphaned());
        (record.waiting, record.restarts) = (true, 0);
        assert_eq!(record.next_restarts(), 1, "a supervisor that was found, and has not told");
    }

    #[test]
    fn a_command_that_has_begun_is_looked_after_without_its_process() {
        let mut record = Record::new(name("web"), Origin::Owned, PathBuf::new());
        record.restart = RestartPolicy::Always;
        record.auto_remove = true;
        assert!(!record.orphaned() && !record.abandoned(), "it was never started");
        record.begun = true;
        assert!(record.orphaned() && record.abandoned());
        record.supervisor = Process::find(std::process::id().cast_signed()).unwrap();
        assert!(!record.orphaned() && !record.abandoned(), "its supervisor looks after it");
        record.supervisor = None;
        (record.begun, record.exit_code) = (false, Some(0));
        assert!(!record.orphaned(), "it has ended for good");
        assert!(!record.unreported(), "nor is it looked for");
        record.boot = boot().map(|boot| boot ^ 1);
        assert!(record.unreported() && record.orphaned(), "until the next boot");
        let text = serde_json::to_string(&record).unwrap();
        let old: Record = serde_json::from_str(&text.replace("\"begun\":false,", "")).unwrap();
        assert_eq!(old, record);
    }
}
