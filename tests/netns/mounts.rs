//! Agents in mount namespaces of their own.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use culvert_common::abi::ABI_VERSION;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, Process, wait_until},
};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::Signal,
};

use crate::{host_changes::repairs, lifecycle::lost};

/// Within this time the BPF file system is mounted again, and what was pinned there is pinned
/// again.
const REMOUNT: Duration = Duration::from_secs(5);

/// Starts an agent in its own mount namespace, as a service manager does. Process 1 of a new pid
/// namespace stands for the host's process 1. `propagation` is the mount propagation from the mount
/// namespace of process 1 to the agent's.
fn start(host: &Host, propagation: &str, extra: &[&str]) -> Process {
    start_after("true", host, propagation, extra)
}

/// As [`start`], after the shell command `before` in the mount namespace of process 1.
fn start_after(before: &str, host: &Host, propagation: &str, extra: &[&str]) -> Process {
    let plain = host.agent_command(extra);
    let script = format!(
        "mount --make-rshared / && {before} && \
         unshare --mount --propagation {propagation} \"$@\"; exit $?"
    );
    let mut command = Command::new(plain.get_program());
    // The first two arguments are `nsenter`'s: the host's namespace is opened first.
    command.args(plain.get_args().take(2)).arg("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--propagation", "private"]);
    command.args(["--mount-proc", "sh", "-c", &script, "sh"]).args(plain.get_args().skip(2));
    Process::spawn(command)
}

/// The problems in `status` about mount namespaces.
fn problems(host: &Host) -> Vec<String> {
    let status = host.json(&["status"]);
    let lines = status["problems"].as_array().into_iter().flatten();
    let lines = lines.filter_map(|line| line.as_str().map(str::to_owned));
    lines.filter(|line| line.contains("mount namespace")).collect()
}

/// With private mounts, as by `PrivateTmp=`, the agent is refused before it makes anything. The
/// line says what to change.
#[test]
#[ignore = "needs root"]
fn an_agent_whose_mounts_end_with_it_is_refused() {
    let cluster = Cluster::without_agents(1, 1500);
    let host = &cluster.hosts[0];
    for propagation in ["slave", "private"] {
        let mut agent = start(host, propagation, &[]);
        let status = agent.wait(SOON);
        let errors = agent.stderr();
        assert_eq!(status.code(), Some(1), "{propagation}: {errors}");
        let lines: Vec<_> = errors.lines().filter(|line| line.starts_with("culvert: ")).collect();
        let [line] = lines.as_slice() else { unreachable!("one line, not: {errors}") };
        for words in ["mount namespace", "/run/netns and ", "PrivateTmp=", "--allow-private-mounts"]
        {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert!(line.contains(&host.bpffs().display().to_string()), "{line}");
        assert_eq!(host.netns.run("ip -o link show | grep cvg || true"), "");
    }
}

/// The option permits private mounts, and `status` shows the consequence.
#[test]
#[ignore = "needs root"]
fn an_agent_whose_mounts_end_with_it_runs_if_asked_to() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.agent = Some(start(host, "slave", &["--allow-private-mounts"]));
    host.wait_ready();
    let found = problems(host);
    let [line] = found.as_slice() else { unreachable!("one problem, not: {found:?}") };
    assert!(line.contains("ends with the agent; traffic then stops"), "{line}");
    host.stop_agent(Signal::SIGKILL);
}

/// A mount namespace whose mounts propagate to process 1 is accepted.
#[test]
#[ignore = "needs root"]
fn an_agent_whose_mounts_propagate_runs() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.agent = Some(start(host, "unchanged", &[]));
    host.wait_ready();
    assert_eq!(problems(host), [""; 0]);
    host.stop_agent(Signal::SIGKILL);
}

/// The process that a process has started.
fn child_of(pid: i32) -> i32 {
    let found = Command::new("pgrep").args(["-P", &pid.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let pids: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let [child] = pids[..] else { unreachable!("one child of {pid}, not {pids:?}") };
    child
}

/// A path as the mount namespace of a process has it.
fn seen_by(pid: i32, path: &Path) -> PathBuf {
    Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap())
}

/// Unmounts what is at a path in the mount namespace of a process.
fn unmount_in(pid: i32, path: &Path) {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // A thread that shares root and working directory with others cannot enter it.
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
            umount2(path, MntFlags::MNT_DETACH).unwrap();
        });
    });
}

/// Whose BPF file system is unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unmounted {
    /// The host's, which takes the agent's with it.
    Both,
    /// The host's, which the agent does not see. Then the agent's.
    OneByOne,
}

/// The BPF file system of the host is unmounted. In each mode of propagation the agent has it again
/// soon, and the host as well if the agent's mounts reach it. No packet is lost.
#[test]
#[ignore = "needs root"]
fn an_unmounted_bpf_file_system_comes_back_in_each_mode_of_propagation() {
    let private = ["--allow-private-mounts"];
    for (propagation, extra, unmounted) in [
        ("unchanged", &[][..], Unmounted::Both),
        ("slave", &private[..], Unmounted::Both),
        ("private", &private[..], Unmounted::OneByOne),
    ] {
        // The agent sees the namespaces that are there when it starts.
        let guest = Netns::new("guest");
        let mut cluster = Cluster::without_agents(1, 1500);
        let gateway = Cluster::ETCD.to_string();
        let host = &mut cluster.hosts[0];
        let bpffs = host.bpffs();
        fs::create_dir_all(&bpffs).unwrap();
        let mount = format!("mount -t bpf -o mode=0700 bpf {}", bpffs.display());
        host.agent = Some(start_after(&mount, host, propagation, extra));
        host.wait_ready();
        // The first process is in the mount namespace of process 1, its child.
        let machine = host.agent.as_ref().unwrap().pid().as_raw();
        let agent = child_of(child_of(machine));

        host.ok(&["network", "create", "--subnet", "10.5.0.0/24", "lan"]);
        let (name, netns) = (unique_name("guest"), guest.path().display().to_string());
        let attach = ["attach", "--name", &name, "--netns", &netns, "--network", "lan"];
        host.ok(&[&attach[..], &["--ip", "10.5.0.2"]].concat());
        wait_until(SOON, "the way out", || guest.succeeds(&format!("ping -c1 -W1 {gateway}")));
        host.netns.run("ping -c1 -W2 10.5.0.2");
        let outward = guest.spawn("ping", &["-i", "0.01", "-W", "1", &gateway]);
        let inward = host.netns.spawn("ping", &["-i", "0.01", "-W", "1", "10.5.0.2"]);

        let pins = |pid: i32| seen_by(pid, &bpffs.join(format!("v{ABI_VERSION}")));
        let links = |pid: i32| fs::read_dir(pins(pid).join("links")).map_or(0, |all| all.count());
        let number = links(agent);
        assert!(number > 0 && links(machine) == number, "{propagation}: {number} links");
        let has_all = |pid: i32| pins(pid).join("maps/FLOWS").exists() && links(pid) >= number;
        let (before, _) = repairs(host, "program");
        unmount_in(machine, &bpffs);
        if unmounted == Unmounted::OneByOne {
            assert!(has_all(agent), "{propagation}: the agent has lost its own mount");
            unmount_in(agent, &bpffs);
        }
        wait_until(REMOUNT, &format!("{propagation}: the pins"), || has_all(agent));
        wait_until(REMOUNT, &format!("{propagation}: the repairs"), || {
            repairs(host, "program").0 >= before + number as u64
        });
        assert_eq!(
            has_all(machine),
            propagation == "unchanged",
            "{propagation}: the host's mounts"
        );
        assert_eq!((lost(outward), lost(inward)), (0, 0), "{propagation}");
        host.stop_agent(Signal::SIGKILL);
    }
}
