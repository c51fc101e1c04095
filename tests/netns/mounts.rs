//! Agents in mount namespaces of their own.

use std::process::Command;

use culvert_tests::{
    cluster::{Cluster, Host, SOON},
    netns::Process,
};
use nix::sys::signal::Signal;

/// Starts an agent in its own mount namespace, as a service manager does. Process 1 of a new pid
/// namespace stands for the host's process 1. `propagation` is the mount propagation from the mount
/// namespace of process 1 to the agent's.
fn start(host: &Host, propagation: &str, extra: &[&str]) -> Process {
    let plain = host.agent_command(extra);
    let script = format!(
        "mount --make-rshared / && unshare --mount --propagation {propagation} \"$@\"; exit $?"
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
