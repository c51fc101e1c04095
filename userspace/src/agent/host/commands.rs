//! Supervisors of commands.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use nix::unistd::geteuid;

use super::{Host, error::blocking};
use crate::{
    agent::{
        containers::{Process, if_alive},
        open_files,
        platform::{Commands, FoundSupervisor, Launch, Wanted},
    },
    api::types::{ApiError, ErrorKind},
    limits::name_limit,
    model::{Name, NetnsId},
    netns::{Netns, NetnsError},
    sandbox::{SuperviseSpec, Surroundings, spawn_by_starter},
};

#[async_trait]
impl Commands for Host {
    async fn supervise(&self, launch: &Launch) -> Result<(), String> {
        let Launch { spec, surroundings, socket } = launch;
        // The agent has raised its own limit, which programs that use select(2) cannot stand.
        let surroundings = Surroundings { files: open_files::before(), ..surroundings.clone() };
        let arguments: [OsString; 2] = ["--socket".into(), socket.into()];
        let started = spawn_by_starter(spec, &arguments, &surroundings).await;
        started.map(drop).map_err(|error| error.message)
    }

    fn command_of(&self, supervisor: i32, pid: i32) -> io::Result<Option<Process>> {
        child_of(supervisor, pid)
    }

    async fn supervised(
        &self,
        wanted: Vec<Wanted>,
        logs: &Path,
    ) -> Result<BTreeMap<Name, FoundSupervisor>, ApiError> {
        let logs = logs.to_owned();
        blocking(move || find(&wanted, &logs)).await?.map_err(|error| {
            let line = format!("looking for commands in /proc: {}", name_limit(error));
            ApiError::new(ErrorKind::Internal, line)
        })
    }
}

/// The process `pid`, if it runs and is a child of the process `parent`.
///
/// # Errors
/// It is not known whether it runs.
fn child_of(parent: i32, pid: i32) -> io::Result<Option<Process>> {
    let found = Process::with_parent(pid)?;
    Ok(found.filter(|(_, found)| *found == parent).map(|(process, _)| process))
}

/// Looks through all processes for the supervisors of these containers. `logs`: directory of their
/// logs.
///
/// # Errors
/// A process that runs cannot be looked at: it may be the supervisor.
pub(crate) fn find(wanted: &[Wanted], logs: &Path) -> io::Result<BTreeMap<Name, FoundSupervisor>> {
    let ours = Ours::get()?;
    let mut supervisors: Vec<(Process, SupervisorArgs)> = Vec::new();
    let mut parents: Vec<(i32, i32)> = Vec::new();
    for found in Process::all()? {
        // This was read before anything else of it: what follows is then about this process, if it
        // still runs afterwards.
        let (process, parent) = found?;
        let pid = process.pid;
        let Some(line) = if_alive(fs::read(format!("/proc/{pid}/cmdline")))? else { continue };
        parents.push((pid, parent));
        let Some(supervised) = SupervisorArgs::parse(&line) else { continue };
        // Any program may have such a command line.
        if ours.has(pid) && process.lives() {
            supervisors.push((process, supervised));
        }
    }
    let mut chosen = BTreeMap::new();
    for wanted in wanted {
        let mut found = Vec::new();
        for (supervisor, supervised) in &supervisors {
            if !supervised.is_for(wanted, logs) {
                continue;
            }
            let detached = supervised.log.is_some();
            let process = command(*supervisor, detached, wanted, &parents)?;
            // The command of `run` in the foreground, which may not have begun or have ended, is
            // known by its namespace alone.
            if detached || process.is_some() {
                found.push(FoundSupervisor { supervisor: *supervisor, process, detached });
            }
        }
        if let Some(found) = choose(found) {
            chosen.insert(wanted.name.clone(), found);
        }
    }
    Ok(chosen)
}

/// The supervisor of a container, if several processes may be it: one that is detached rather than
/// one in the foreground, one with a command rather than one that has none, the latest.
fn choose(found: Vec<FoundSupervisor>) -> Option<FoundSupervisor> {
    found.into_iter().max_by_key(|FoundSupervisor { supervisor, process, detached }| {
        (*detached, process.is_some(), supervisor.start_time)
    })
}

/// The command of a supervisor, if that runs. `parents`: processes with their parents.
///
/// # Errors
/// A namespace cannot be looked at.
fn command(
    supervisor: Process,
    detached: bool,
    wanted: &Wanted,
    parents: &[(i32, i32)],
) -> io::Result<Option<Process>> {
    let sandbox = match wanted.netns.as_deref() {
        None => None,
        Some(path) => Some(if_present(Netns::open(path))?),
    };
    let own = Netns::current().map_err(io::Error::other)?.id();
    for (pid, _) in parents.iter().filter(|(_, parent)| *parent == supervisor.pid) {
        // The number may be another process's by now.
        let Some(process) = child_of(supervisor.pid, *pid)? else { continue };
        let found = namespace(*pid)?;
        let is_inside = match sandbox {
            None => true,
            Some(Some(sandbox)) => found == Some(sandbox),
            // If the name of the namespace is lost, a detached supervisor has named it. It is not
            // the host's in any case.
            Some(None) => detached && found.is_some_and(|found| found != own),
        };
        if is_inside && process.lives() {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// What tells the processes of this program and user from others.
#[derive(Debug)]
struct Ours {
    user: u32,
    program: OsString,
}

impl Ours {
    /// Those of this process.
    ///
    /// # Errors
    /// `/proc` does not tell.
    fn get() -> io::Result<Self> {
        let program = program("self").ok_or_else(|| io::Error::other("/proc/self/exe is lost"))?;
        Ok(Self { user: geteuid().as_raw(), program })
    }

    fn has(&self, pid: i32) -> bool {
        let user = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid());
        user.is_ok_and(|user| user == self.user)
            && program(&pid.to_string()).as_ref() == Some(&self.program)
    }
}

/// Name of the program that a process executes.
fn program(pid: &str) -> Option<OsString> {
    program_name(&fs::read_link(format!("/proc/{pid}/exe")).ok()?)
}

/// The name in a link `/proc/PID/exe`. An upgrade replaces the file, and the kernel says so behind
/// the name (proc(5)).
fn program_name(link: &Path) -> Option<OsString> {
    let name = link.file_name()?.as_bytes();
    Some(OsStr::from_bytes(name.strip_suffix(b" (deleted)").unwrap_or(name)).to_owned())
}

/// What the command line of a supervisor says.
#[derive(Debug, PartialEq, Eq)]
struct SupervisorArgs {
    name: String,
    /// Identifier of the container. `None` in the foreground, and in an earlier version.
    id: Option<String>,
    /// `None` in the foreground.
    log: Option<PathBuf>,
}

impl SupervisorArgs {
    /// Reads a command line as in proc(5). `None`: it is no supervisor's.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\0").unwrap_or(line);
        let mut args = line.split(|byte| *byte == 0);
        let ends = |arg: &&[u8]| *arg == b"__supervise" || *arg == b"--";
        let run: Vec<&[u8]> = args.by_ref().take_while(|arg| !ends(arg)).collect();
        if let Some(Ok(spec)) = args.next().map(serde_json::from_slice::<SuperviseSpec>) {
            return Some(Self { name: spec.name, id: spec.id, log: Some(spec.log?) });
        }
        if !run.contains(&b"run".as_slice()) {
            return None;
        }
        let mut rest = run.iter();
        let name = rest.find_map(|arg| match arg.strip_prefix(b"--name") {
            Some(b"") => Some(None),
            Some(value) => value.strip_prefix(b"=").map(Some),
            None => None,
        })?;
        let name = name.or_else(|| rest.next().copied())?;
        Some(Self { name: OsStr::from_bytes(name).to_str()?.to_owned(), id: None, log: None })
    }

    fn is_for(&self, wanted: &Wanted, logs: &Path) -> bool {
        // An earlier container of this name may still have its supervisor.
        let other = self.id.as_ref().zip(wanted.id.as_ref()).is_some_and(|(a, b)| a != b);
        self.name == wanted.name.as_str()
            && !other
            && match &self.log {
                Some(log) => *log == logs.join(format!("{}.log", self.name)),
                // Only the namespace tells the container of this agent from that of another one.
                None => wanted.netns.is_some(),
            }
    }
}

/// The namespace of a process; `None` if that has ended.
fn namespace(pid: i32) -> io::Result<Option<NetnsId>> {
    if_present(Netns::from_pid(pid))
}

/// The identity of a namespace; `None` if it is not there.
fn if_present(opened: Result<Netns, NetnsError>) -> io::Result<Option<NetnsId>> {
    match opened {
        Ok(netns) => Ok(Some(netns.id())),
        Err(NetnsError::Missing(_) | NetnsError::NotNetns(_) | NetnsError::DeadProcess(_)) => {
            Ok(None)
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Option<SupervisorArgs> {
        let mut line = args.join("\0").into_bytes();
        line.push(0);
        SupervisorArgs::parse(&line)
    }

    #[test]
    fn supervisors_are_known_by_their_command_line() {
        let spec =
            r#"{"name":"web","netns":"/run/netns/web","command":["run"],"log":"/s/logs/web.log"}"#;
        let detached = parsed(&["culvert", "--socket", "/x", "__supervise", spec]).unwrap();
        let parsed_again = parsed(&["culvert", "__supervise", spec]).unwrap();
        assert_eq!(detached.name, "web");
        let wanted = |name: &str, netns: Option<&str>| Wanted {
            name: name.parse().unwrap(),
            id: Some("0a".to_owned()),
            netns: netns.map(PathBuf::from),
        };
        assert!(detached.is_for(&wanted("web", None), Path::new("/s/logs")));
        assert!(!detached.is_for(&wanted("db", None), Path::new("/s/logs")));
        for (id, meant) in [("0a", true), ("0b", false)] {
            let spec = spec.replace("{\"name\"", &format!("{{\"id\":\"{id}\",\"name\""));
            let detached = parsed(&["culvert", "__supervise", &spec]).unwrap();
            let found = detached.is_for(&wanted("web", None), Path::new("/s/logs"));
            assert_eq!(found, meant, "{id}");
        }
        let elsewhere = SupervisorArgs { log: Some("/s/logs/db.log".into()), ..parsed_again };
        assert!(!elsewhere.is_for(&wanted("web", None), Path::new("/s/logs")));
        // Another agent of this machine has a container of this name, too.
        assert!(!detached.is_for(&wanted("web", None), Path::new("/t/logs")));

        for args in [
            &["culvert", "run", "--name", "web", "--", "sh"][..],
            &["culvert", "--timeout", "1s", "run", "--network", "none", "--name=web", "sh"],
        ] {
            let run = parsed(args).unwrap();
            assert_eq!((run.name.as_str(), run.log.as_ref()), ("web", None), "{args:?}");
            assert!(run.is_for(&wanted("web", Some("/run/netns/web")), Path::new("/s/logs")));
            assert!(!run.is_for(&wanted("web", None), Path::new("/s/logs")));
        }
        for args in [
            &["sh", "-c", "true"][..],
            &["culvert", "exec", "web", "--", "culvert", "run", "--name", "web"],
            &["culvert", "run"],
            &["culvert", "run", "--name"],
            &["culvert", "__supervise"],
            &["culvert", "__supervise", "{"],
            &[""],
        ] {
            assert_eq!(parsed(args), None, "{args:?}");
        }
    }

    #[test]
    fn of_several_supervisors_the_detached_one_with_a_command_counts() {
        let process = |pid, start_time| Process { pid, start_time, boot: None };
        let found = |pid: i32, detached: bool, command: Option<i32>| FoundSupervisor {
            supervisor: process(pid, u64::from(pid.cast_unsigned())),
            process: command.map(|pid| process(pid, 1)),
            detached,
        };
        let all = [
            found(9, false, Some(10)),
            found(4, true, None),
            found(2, true, Some(3)),
            found(5, true, Some(6)),
            found(8, true, None),
        ];
        assert_eq!(choose(all.into()).unwrap().supervisor.pid, 5);
        let none = [found(4, true, None), found(9, false, Some(10)), found(8, true, None)];
        assert_eq!(choose(none.into()).unwrap().supervisor.pid, 8);
        assert_eq!(choose(Vec::new()), None);
    }

    #[test]
    fn a_command_is_a_child_of_its_supervisor() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (own, pid) = (std::process::id().cast_signed(), child.id().cast_signed());
        let found = child_of(own, pid).unwrap().map(|process| process.pid);
        let stranger = child_of(1, pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found, stranger), (Some(pid), None));
        assert_eq!(child_of(own, pid).unwrap(), None);
    }

    #[test]
    fn a_process_is_ours_by_program_and_user() {
        let ours = Ours::get().unwrap();
        let own = std::process::id().cast_signed();
        assert!(ours.has(own));
        assert!(!Ours { user: ours.user ^ 1, program: ours.program.clone() }.has(own));
        let args = ["-c", "sleep 1000", "run", "--name", "web"];
        let mut other = std::process::Command::new("sh").args(args).spawn().unwrap();
        let is_ours = ours.has(other.id().cast_signed());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!is_ours, "another program with the command line of a supervisor");
        assert!(!ours.has(-1));

        for link in ["/usr/bin/culvert", "/opt/culvert (deleted)"] {
            assert_eq!(program_name(Path::new(link)), Some("culvert".into()));
        }
    }
}
