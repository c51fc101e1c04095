//! Programs of Culvert that are attached to interfaces of this network namespace and that are not
//! the agent's: an earlier agent with another `--bpffs` has attached them.
//!
//! The kernel runs the programs of a hook in the order in which they were attached. So the programs
//! of the earlier agent decide about each packet, with maps that no agent updates. This module
//! finds the programs where they are attached, because their pins may be anywhere. A program is
//! Culvert's if it has the name and the maps of a Culvert program; this is true for all versions.
//! Only interfaces of the calling thread's network namespace are examined, so that the programs of
//! agents in other namespaces stay attached.

mod listed;
mod processes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::loaded_programs};
use culvert_common::abi::{names, programs};

use self::{
    listed::{attached, is_named, maps_of, open_link, our_programs},
    processes::{running, sees_all_processes},
};
use super::{Carried, Datapath, DatapathError, LINKS, bpffs, carry, link, pins};
use crate::netlink::Link;

/// Depth in a BPF file system up to which pins are searched, in directories.
const DEPTH: usize = 5;
/// The BPF file system that the system mounts. It stays mounted also without pins.
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

/// State of the agent that attached a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The agent runs, with this process identifier.
    Runs(i32),
    /// The agent has ended.
    Ended,
    /// The state is unknown: this process does not see the processes of other PID namespaces.
    Unseen,
}

/// A program of Culvert that is attached to an interface, and is not the agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Name of the program.
    pub program: &'static str,
    /// Name of the interface.
    pub interface: String,
    /// Path where its link is pinned. `None`: no BPF file system of this mount namespace has the
    /// pin.
    pub pin: Option<PathBuf>,
    /// State of the agent that attached the program.
    pub owner: Owner,
    program_id: u32,
    link: u32,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, interface, pin, .. } = self;
        match pin {
            Some(pin) => write!(f, "{program} on {interface}, pinned at {}", pin.display()),
            None => {
                write!(f, "{program} on {interface}, pinned at no path of this mount namespace")
            }
        }
    }
}

impl Leftover {
    /// Why the program must not be detached, on one line. `remedy` says what to do about an agent
    /// that runs. `None`: the agent of the program has ended.
    pub fn kept(&self, remedy: &str) -> Option<String> {
        match self.owner {
            Owner::Ended => None,
            Owner::Runs(pid) => Some(format!(
                "another agent, pid {pid}, serves this network namespace: it has attached {self}: {remedy}"
            )),
            Owner::Unseen => Some(format!(
                "{self}: it is of another agent, and whether that runs cannot be told in this PID namespace: run culvert in the PID namespace of the host, as with 'docker run --pid=host'"
            )),
        }
    }

    /// The BPF file system of the program's agent.
    fn bpffs(&self) -> Option<&Path> {
        self.pin.as_deref()?.ancestors().nth(3)
    }
}

/// Result of an attempt to retire an earlier agent that had another BPF file system.
#[derive(Debug, Default)]
pub struct Retired {
    /// The programs that were detached.
    pub programs: Vec<Leftover>,
    /// Result of copying the flows. `None`: the flows are in a table of another layout.
    pub flows: Option<Carried>,
    /// Why flows were not copied.
    pub not_copied: Option<DatapathError>,
    /// Programs that stay attached, because their agent runs or may run.
    pub kept: Vec<Leftover>,
    /// Why a program was not detached, or a pin not removed.
    pub not_removed: Option<DatapathError>,
}

impl Datapath {
    /// Detaches the programs of an earlier agent that are attached to these interfaces, and removes
    /// their pins. Also removes the pins of `unpinned`, programs that an earlier attempt has
    /// detached. Must be called when the programs of this version are attached. The programs of the
    /// earlier agent have handled the packets until now, so their flows are copied directly before.
    /// Programs of an agent that runs, or may run, stay attached. An error in one step does not
    /// prevent the other steps.
    ///
    /// # Errors
    ///
    /// If the programs cannot be found.
    pub fn retire_leftovers(
        &self,
        links: &[Link],
        unpinned: &[Leftover],
    ) -> Result<Retired, DatapathError> {
        let Some(bpffs) = self.pins.parent() else { return Ok(Retired::default()) };
        let found = {
            // The lock is held, so that no link of this agent is attached but not yet pinned.
            let _attaching = self.ebpf();
            find_others(links, bpffs, self.link_ids())?
        };
        let (programs, kept): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|leftover| leftover.owner == Owner::Ended);
        let mut retired = Retired { kept, ..Retired::default() };
        // The lock is not held: the table can be large, and containers are attached meanwhile.
        for (table, vtep_ids) in flow_tables(&programs) {
            match carry::flows_of_another(table, vtep_ids, &self.tables) {
                Ok(None) => {}
                Ok(Some(Carried { entries, lost })) => {
                    let sum: &mut Carried = retired.flows.get_or_insert_default();
                    sum.entries += entries;
                    sum.lost += lost;
                }
                // The earlier programs decide about each packet with maps that no agent updates: it
                // is worse to keep them than to lose flows.
                Err(error) => retired.not_copied = Some(error),
            }
        }
        let _attaching = self.ebpf();
        for leftover in programs {
            match detach(&leftover) {
                Ok(()) => retired.programs.push(leftover),
                Err(error) => retired.not_removed = Some(error),
            }
        }
        if let Err(error) = remove_pins(unpinned.iter().chain(&retired.programs)) {
            retired.not_removed = Some(error);
        }
        Ok(retired)
    }
}

/// Finds the programs of Culvert at these interfaces whose links are not pinned in `bpffs`, in the
/// order of execution. The interfaces are those of the calling thread's network namespace.
///
/// # Errors
///
/// If the kernel does not list the programs of an interface.
pub fn find(links: &[Link], bpffs: &Path) -> Result<Vec<Leftover>, DatapathError> {
    find_others(links, bpffs, BTreeSet::new())
}

/// As [`find`], without the links in `own`: another program may have removed their pins.
fn find_others(
    links: &[Link],
    bpffs: &Path,
    mut own: BTreeSet<u32>,
) -> Result<Vec<Leftover>, DatapathError> {
    let ours = our_programs();
    let mut found = Vec::new();
    // No program of Culvert is loaded, or this process may not list programs.
    if ours.is_empty() {
        return Ok(found);
    }
    for interface in links {
        let refused = |source: io::Error| DatapathError::Attach {
            interface: interface.name.clone(),
            what: "list programs",
            source: Box::new(source),
        };
        for (program_id, link) in attached(interface, &ours).map_err(refused)? {
            let Some(&program) = ours.get(&program_id) else { continue };
            let interface = interface.name.clone();
            let owner = Owner::Unseen;
            found.push(Leftover { program, interface, pin: None, owner, program_id, link });
        }
    }
    // The pins are read after the programs: each program of an agent is pinned once it is attached.
    for dir in bpffs::list(bpffs)?.iter().filter(|dir| bpffs::version_of(dir).is_some()) {
        own.extend(pinned_in(dir).into_iter().map(|(link, _)| link));
    }
    found.retain(|leftover| !own.contains(&leftover.link));
    if !found.is_empty() {
        let pins: BTreeMap<u32, PathBuf> =
            version_dirs().iter().flat_map(|dir| pinned_in(dir)).collect();
        for leftover in &mut found {
            leftover.pin = pins.get(&leftover.link).cloned();
        }
        let running = running(&found.iter().map(|leftover| leftover.program_id).collect());
        tell_owners(&mut found, &running, sees_all_processes());
    }
    Ok(found)
}

/// Detaches the programs, and removes the pins of the agent that had attached them, with its BPF
/// file system if that has no other pins.
///
/// # Errors
///
/// If the kernel refuses to detach a program, or a pin cannot be removed.
pub fn remove(leftovers: &[Leftover]) -> Result<(), DatapathError> {
    for leftover in leftovers {
        detach(leftover)?;
    }
    remove_pins(leftovers)
}

/// Removes the pins of the agents that had attached these programs, with their BPF file systems.
///
/// # Errors
///
/// If a pin cannot be removed.
fn remove_pins<'a>(detached: impl IntoIterator<Item = &'a Leftover>) -> Result<(), DatapathError> {
    let pins = detached.into_iter().filter_map(|leftover| leftover.pin.as_deref());
    let dirs: BTreeSet<&Path> = pins.filter_map(|pin| pin.parent()?.parent()).collect();
    for dir in dirs {
        let links = bpffs::list(&dir.join(LINKS))?;
        // A pin that cannot be examined may be of a program that runs.
        if links.iter().any(|pin| pins::is_attached(pin).unwrap_or(true)) {
            tracing::info!(
                "{}: kept, as programs that are pinned there may be attached to interfaces of another network namespace",
                dir.display()
            );
            continue;
        }
        bpffs::remove_tree(dir)?;
        if let Some(bpffs) = dir.parent().filter(|bpffs| *bpffs != Path::new(SYSTEM_BPFFS)) {
            bpffs::unmount_if_empty(bpffs)?;
        }
    }
    Ok(())
}

/// Detaches the XDP programs among `leftovers`. Returns the detached ones.
///
/// # Errors
///
/// If the kernel refuses.
pub fn detach_xdp(leftovers: &[Leftover]) -> Result<Vec<&Leftover>, DatapathError> {
    let of_xdp =
        leftovers.iter().filter(|leftover| leftover.program == programs::FROM_UNDERLAY_XDP);
    of_xdp.map(|leftover| detach(leftover).map(|()| leftover)).collect()
}

/// Detaches a program. It is no error if it is not attached any more. The pin stays.
///
/// # Errors
///
/// If the kernel refuses.
fn detach(leftover: &Leftover) -> Result<(), DatapathError> {
    let detached = open_link(leftover.link).and_then(|held| link::detach(held.as_fd()));
    match detached {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DatapathError::Attach {
            interface: leftover.interface.clone(),
            what: "detach the program of an earlier agent",
            source: Box::new(error),
        }),
        _ => Ok(()),
    }
}

/// The identifiers of the maps `FLOWS` and `VTEP_IDS` of the agents that had attached these
/// programs.
fn flow_tables(leftovers: &[Leftover]) -> BTreeSet<(u32, u32)> {
    let wanted: BTreeSet<u32> = leftovers.iter().map(|leftover| leftover.program_id).collect();
    let programs = loaded_programs().filter_map(Result::ok);
    programs
        .filter(|program| wanted.contains(&program.id()))
        .filter_map(|program| {
            let maps = maps_of(&program);
            let id = |name: &str| maps.iter().find(|map| is_named(map, name)).map(MapInfo::id);
            Some((id(names::FLOWS)?, id(names::VTEP_IDS)?))
        })
        .collect()
}

/// The links that are pinned in a directory of an ABI version: identifier and pin. A pin that
/// cannot be opened is left out.
fn pinned_in(version_dir: &Path) -> Vec<(u32, PathBuf)> {
    let pins = bpffs::list(&version_dir.join(LINKS)).unwrap_or_default();
    let id = |pin: &Path| pins::open(pin).and_then(|link| pins::link_info(link.as_fd())).ok();
    pins.into_iter().filter_map(|pin| Some((id(&pin)?.id, pin))).collect()
}

/// The directories of ABI versions in all BPF file systems that are mounted here.
fn version_dirs() -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        for path in bpffs::list(dir).unwrap_or_default().into_iter().filter(|path| path.is_dir()) {
            if bpffs::version_of(&path).is_some() && path.join(LINKS).is_dir() {
                found.push(path);
            } else if depth > 0 {
                walk(&path, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    for mount in bpffs::mount_points() {
        walk(&mount, DEPTH, &mut found);
    }
    found
}

/// Sets the owner of each program. `running` has the pids of the agents that have a program or its
/// maps open, by identifier of the program. All programs of a BPF file system belong to one agent:
/// the agent opens them one after another while it starts, and replaces the programs of the agent
/// before it. `all_seen`: every agent that is not in `running` has ended.
fn tell_owners(found: &mut [Leftover], running: &BTreeMap<u32, i32>, all_seen: bool) {
    let of_bpffs: BTreeMap<PathBuf, i32> = found
        .iter()
        .filter_map(|left| Some((left.bpffs()?.to_owned(), *running.get(&left.program_id)?)))
        .collect();
    for leftover in found {
        let by_place = leftover.bpffs().and_then(|bpffs| of_bpffs.get(bpffs));
        leftover.owner = match running.get(&leftover.program_id).or(by_place) {
            Some(pid) => Owner::Runs(*pid),
            None if all_seen => Owner::Ended,
            None => Owner::Unseen,
        };
    }
}

#[cfg(test)]
impl Leftover {
    /// A program on an uplink, for a test.
    pub(crate) fn of_a_test(owner: Owner) -> Self {
        Self {
            program: programs::FROM_UNDERLAY,
            interface: "up0".to_owned(),
            pin: Some("/old/v4/links/uplink-3".into()),
            owner,
            program_id: 1,
            link: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_owns_all_that_is_pinned_in_its_file_system() {
        let left = |pin: Option<&str>, program_id| Leftover {
            pin: pin.map(PathBuf::from),
            program_id,
            ..Leftover::of_a_test(Owner::Unseen)
        };
        let found = [
            left(Some("/old/v4/links/uplink-3"), 1),
            // The program of the agent before, which the running agent has not replaced yet.
            left(Some("/old/v4/links/container-7"), 2),
            left(Some("/old/v3/links/uplink-3"), 3),
            left(Some("/other/v4/links/uplink-3"), 4),
            left(None, 5),
            left(None, 6),
        ];
        let owners = |all_seen| {
            let mut found = found.clone();
            tell_owners(&mut found, &[(1, 77), (5, 78)].into(), all_seen);
            found.map(|leftover| leftover.owner)
        };
        let (held, pinless) = (Owner::Runs(77), Owner::Runs(78));
        assert_eq!(owners(true), [held, held, held, Owner::Ended, pinless, Owner::Ended]);
        assert_eq!(owners(false), [held, held, held, Owner::Unseen, pinless, Owner::Unseen]);
    }

    #[test]
    fn only_what_an_ended_agent_left_is_detached() {
        let kept = |owner| Leftover::of_a_test(owner).kept("stop it");
        assert_eq!(kept(Owner::Ended), None);
        let line = kept(Owner::Runs(77)).unwrap();
        assert!(
            line.starts_with("another agent, pid 77, serves this network namespace: "),
            "{line}"
        );
        assert!(line.ends_with(": stop it"), "{line}");
        let line = kept(Owner::Unseen).unwrap();
        assert!(line.contains("cannot be told in this PID namespace: "), "{line}");
        assert!(line.starts_with("from_underlay on up0, pinned at /old/"), "{line}");
    }

    #[test]
    fn a_leftover_is_named_with_its_pin() {
        let pinned = Leftover::of_a_test(Owner::Ended);
        assert_eq!(pinned.to_string(), "from_underlay on up0, pinned at /old/v4/links/uplink-3");
        let lost = Leftover { pin: None, ..pinned };
        assert!(lost.to_string().starts_with("from_underlay on up0, pinned at no path"));
    }
}
