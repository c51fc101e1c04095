//! Programs of Culvert that are attached to interfaces of this network namespace and that are not
//! the agent's: an earlier agent with another `--bpffs` has attached them.
//!
//! The kernel runs the programs of a hook in the order in which they were attached. So the programs
//! of the earlier agent decide about each packet, with maps that no agent updates. This module
//! finds the programs where they are attached, because their pins may be anywhere. A program is
//! Culvert's if it has the name and the maps of a Culvert program; this is true for all versions.
//! Only interfaces of the calling thread's network namespace are examined, so that the programs of
//! agents in other namespaces stay attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_type};
use culvert_common::abi::{names, programs};

use super::{
    Carried, Datapath, DatapathError, LINKS, PINNED_MAPS, bpffs, carry, link, pins,
    syscall::{attributes, bpf},
};
use crate::netlink::Link;

/// Names of the programs of all versions.
const PROGRAMS: [&str; 8] = [
    programs::FROM_CONTAINER,
    programs::FROM_UNDERLAY,
    programs::FROM_HOST,
    programs::FROM_LOOPBACK,
    programs::FROM_CLIENT,
    programs::FROM_CLIENT_L3,
    programs::TO_UNDERLAY,
    programs::FROM_UNDERLAY_XDP,
];
/// The greatest number of programs at a hook (`bpf_mprog_max`).
const MOST: usize = 64;
/// Bytes of a program's name that the kernel keeps.
const NAME_LEN: usize = 15;
/// Depth in a BPF file system up to which pins are searched, in directories.
const DEPTH: usize = 5;
/// The BPF file system that the system mounts. It stays mounted also without pins.
const SYSTEM_BPFFS: &str = "/sys/fs/bpf";

/// `PROC_PID_INIT_INO`: inode of the initial PID namespace, which has all processes.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

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

/// The names of all loaded programs of Culvert, of all versions and in all network namespaces, by
/// identifier.
fn our_programs() -> BTreeMap<u32, &'static str> {
    // The iterator has an error for a program that was unloaded meanwhile.
    let programs = loaded_programs().filter_map(Result::ok);
    programs.filter_map(|info| Some((info.id(), our_name(&info)?))).collect()
}

/// The name of a program of Culvert. `None`: the program is not Culvert's.
fn our_name(info: &ProgramInfo) -> Option<&'static str> {
    let name = PROGRAMS.iter().find(|name| {
        let kept = name.as_bytes().get(..NAME_LEN).unwrap_or(name.as_bytes());
        kept == info.name()
    })?;
    // A program is Culvert's if it has the map of the counters and two more maps of Culvert.
    // Programs of others may have one map with such a name.
    let maps = maps_of(info);
    let counted = maps.iter().any(|map| is_named(map, names::STATS));
    let ours = PINNED_MAPS.iter().filter(|name| maps.iter().any(|map| is_named(map, name)));
    (counted && ours.count() >= 3).then_some(*name)
}

fn is_named(map: &MapInfo, name: &str) -> bool {
    map.name() == name.as_bytes()
}

/// The maps of a program that can be read.
fn maps_of(program: &ProgramInfo) -> Vec<MapInfo> {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok()).collect()
}

/// The identifiers of programs and links at an interface: at tcx, at the far side of a netkit pair,
/// and the XDP program if it is one of `ours`.
fn attached(interface: &Link, ours: &BTreeMap<u32, &'static str>) -> io::Result<Vec<(u32, u32)>> {
    let ifindex = interface.index;
    let mut found = Vec::new();
    for hook in [bpf_attach_type::BPF_TCX_INGRESS, bpf_attach_type::BPF_TCX_EGRESS] {
        match query(ifindex, hook) {
            Ok(programs) => found.extend(programs),
            // The interface is gone.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    // For an interface that is not a netkit device the kernel returns an error.
    found.extend(query(ifindex, bpf_attach_type::BPF_NETKIT_PEER).unwrap_or_default());
    if let Some(program) = interface.xdp_program.filter(|id| ours.contains_key(id)) {
        found.extend(xdp_link(program, ifindex)?.map(|link| (program, link)));
    }
    // A program without a link was attached by another tool.
    found.retain(|(_, link)| *link != 0);
    Ok(found)
}

/// The identifiers of the programs at a hook of an interface, and of their links, in the order of
/// execution (`BPF_PROG_QUERY`).
fn query(ifindex: u32, hook: bpf_attach_type) -> io::Result<Vec<(u32, u32)>> {
    let (mut programs, mut links) = ([0_u32; MOST], [0_u32; MOST]);
    let mut attr = attributes();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = hook as u32;
    attr.query.prog_ids = (&raw mut programs) as u64;
    attr.query.link_ids = (&raw mut links) as u64;
    attr.query.__bindgen_anon_2.count = MOST as u32;
    // SAFETY: the command writes at most `count` numbers to each of the arrays, which have as many
    // and outlive the call.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    // SAFETY: both members of the union are integers of the same size.
    let count = unsafe { attr.query.__bindgen_anon_2.count };
    Ok(programs.into_iter().zip(links).take(count as usize).collect())
}

/// The link of an XDP program to an interface. Links of other network namespaces can have the same
/// interface index, but not the same program: each agent loads its own.
fn xdp_link(program: u32, ifindex: u32) -> io::Result<Option<u32>> {
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    let mut id = 0;
    loop {
        let mut attr = attributes();
        attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
        // SAFETY: `attr` leads to no memory.
        match unsafe { bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            answer => answer?,
        };
        // SAFETY: the member is an integer, for which all bytes are a value.
        id = unsafe { attr.__bindgen_anon_6.next_id };
        // For a link that was removed meanwhile the kernel returns an error.
        let Ok(info) = open_link(id).and_then(|link| pins::link_info(link.as_fd())) else {
            continue;
        };
        if info.type_ == XDP && info.prog_id == program && pins::ifindex_of(&info) == Some(ifindex)
        {
            return Ok(Some(id));
        }
    }
}

/// Opens a link by its identifier.
fn open_link(id: u32) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    // SAFETY: `attr` leads to no memory.
    pins::owned(unsafe { bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr) }?)
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

/// Whether `/proc` has all processes: this process is in the initial PID namespace, and `/proc`
/// belongs to that namespace too. In a `/proc` of another namespace there is no `/proc/self`.
fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.ino() == INITIAL_PID_NAMESPACE)
}

/// The pids of other agents that have these programs, or maps of these programs, open, by
/// identifier of the program.
fn running(wanted: &BTreeSet<u32>) -> BTreeMap<u32, i32> {
    let mut by_map: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for program in loaded_programs().filter_map(Result::ok) {
        let id = program.id();
        if wanted.contains(&id) {
            for map in program.map_ids().ok().flatten().unwrap_or_default() {
                by_map.entry(map).or_default().insert(id);
            }
        }
    }
    let mut running = BTreeMap::new();
    // The pid of this process in `/proc`. It may differ from that of getpid(2), because `/proc` may
    // be of another PID namespace.
    let own = fs::read_link("/proc/self").ok().and_then(|own| number_in(own.as_os_str()));
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = number_in(&process.file_name()).filter(|pid| Some(*pid) != own) else {
            continue;
        };
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if !words.split(|byte| *byte == 0).any(|word| word == b"agent") {
            continue;
        }
        for file in fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten() {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let program = program_of(&info).filter(|id| wanted.contains(id));
            let users = map_of(&info).and_then(|map| by_map.get(&map)).into_iter().flatten();
            running.extend(program.iter().chain(users).map(|id| (*id, pid)));
        }
    }
    running
}

/// The name of a process in `/proc` as a number.
fn number_in(name: &OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

/// The identifier of the program that a file descriptor leads to (proc_pid_fdinfo(5)).
fn program_of(fdinfo: &str) -> Option<u32> {
    // The file descriptor of a link has the line `prog_id:` as well.
    if fdinfo.lines().any(|line| line.starts_with("link_id:")) {
        return None;
    }
    field(fdinfo, "prog_id:")
}

/// The identifier of the map that a file descriptor leads to.
fn map_of(fdinfo: &str) -> Option<u32> {
    field(fdinfo, "map_id:")
}

fn field(fdinfo: &str, name: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
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
    fn descriptors_of_programs_are_told_from_others() {
        let program = "pos:\t0\nflags:\t02000002\nprog_type:\t3\nprog_tag:\t00\nprog_id:\t42\n";
        assert_eq!(program_of(program), Some(42));
        assert_eq!(program_of("link_type:\ttcx\nlink_id:\t7\nprog_tag:\t00\nprog_id:\t42\n"), None);
        assert_eq!(program_of("pos:\t0\nmap_id:\t42\n"), None);
        assert_eq!(program_of("prog_id:\tx\n"), None);
        assert_eq!(map_of("pos:\t0\nmap_type:\t1\nmap_id:\t42\n"), Some(42));
        assert_eq!(map_of(program), None);
    }

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
