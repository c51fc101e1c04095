//! Processes of agents that have programs open.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
};

use aya::programs::loaded_programs;

/// `PROC_PID_INIT_INO`: inode of the initial PID namespace, which has all processes.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether `/proc` has all processes: this process is in the initial PID namespace, and `/proc`
/// belongs to that namespace too. In a `/proc` of another namespace there is no `/proc/self`.
pub(super) fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid")
        .is_ok_and(|namespace| namespace.ino() == INITIAL_PID_NAMESPACE)
}

/// The pids of other agents that have these programs, or maps of these programs, open, by
/// identifier of the program.
pub(super) fn running(wanted: &BTreeSet<u32>) -> BTreeMap<u32, i32> {
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
}
