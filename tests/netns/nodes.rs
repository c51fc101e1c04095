//! The identity of a host: host names that change, copies of hosts, removed hosts, and pids that
//! another process gets.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Netns, Process, wait_until},
};
use nix::sys::signal::Signal;

/// Deadline of a wait that is longer than an agent waits for the lease of an earlier run.
const LEASE: Duration = Duration::from_secs(40);

/// Makes an overlay network that all hosts know.
fn network(cluster: &Cluster) {
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
}

/// Starts a host's agent with this host name and without `--node`.
fn start_unnamed(host: &mut Host, hostname: &str) {
    let whole = host.agent_command(&[]);
    // The first two arguments are `nsenter`'s.
    let mut args: Vec<_> = whole.get_args().skip(2).map(ToOwned::to_owned).collect();
    let node = args.iter().position(|arg| arg == "--node").unwrap();
    args.drain(node..node + 2);
    let mut command = host.netns.command("unshare");
    let script = format!("hostname {hostname}; exec \"$@\"");
    command.args(["--uts", "sh", "-c", &script, "sh"]).args(args);
    host.agent = Some(Process::spawn(command));
}

/// The last line of an agent that refuses to start.
fn refusal(host: &mut Host) -> String {
    let mut agent = host.agent.take().unwrap();
    let status = agent.wait(LEASE);
    assert_eq!(status.code(), Some(1), "{}", agent.stderr());
    let errors = agent.stderr();
    let mut lines = errors.lines().filter(|line| line.starts_with("culvert: "));
    let line = lines.next().unwrap_or_else(|| unreachable!("no line: {errors}")).to_owned();
    assert_eq!(lines.next(), None, "{errors}");
    line
}

/// The words after the first one of the command that a line advises in quotes. The command begins
/// with `words`.
fn advised(line: &str, words: &str) -> Vec<String> {
    let quoted = line.split('\'').find(|part| part.starts_with(words));
    let quoted = quoted.unwrap_or_else(|| unreachable!("no '{words}' in: {line}"));
    quoted.split(' ').skip(1).map(str::to_owned).collect()
}

/// Runs `culvert` with the words of [`advised`].
fn follow(host: &Host, line: &str, words: &str) {
    let args = advised(line, words);
    host.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

fn problems(host: &Host) -> Vec<String> {
    let status = host.json(&["status"]);
    let lines = status["problems"].as_array().cloned().unwrap_or_default();
    lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

fn node_names(host: &Host) -> Vec<String> {
    let rows = host.json(&["node", "ls"]);
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect()
}

/// Waits until a host knows these nodes and no others.
fn wait_nodes(host: &Host, names: &[&str]) {
    wait_until(SOON, &format!("the nodes {names:?}"), || node_names(host) == names);
}

/// A host that gets another name keeps its node and its containers. The refusal of another `--node`
/// names two solutions, and both work.
#[test]
#[ignore = "needs root"]
fn a_new_host_name_does_not_cost_the_containers_their_network() {
    let mut cluster = Cluster::without_agents(2, 1500);
    start_unnamed(&mut cluster.hosts[0], "alpha");
    cluster.hosts[1].start_agent(&[]);
    for host in &mut cluster.hosts {
        host.wait_ready();
    }
    network(&cluster);
    let (first, second) = (unique_name("name1"), unique_name("name2"));
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    assert_eq!(problems(&cluster.hosts[0]), [""; 0]);

    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    start_unnamed(&mut cluster.hosts[0], "beta");
    cluster.hosts[0].wait_ready();
    cluster.hosts[0].in_container(&first, "ping -c3 -i0.1 -W9 10.0.0.3");
    let host = &cluster.hosts[0];
    assert_eq!(host.json(&["status"])["node"], "alpha");
    let told = problems(host);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("host name is now beta; this node stays alpha: "), "{told:?}");
    assert_eq!(host.agent_log().matches("host name is now beta").count(), 1);
    assert_eq!(node_names(&cluster.hosts[1]), ["alpha", "node1"]);

    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    cluster.hosts[0].node = "beta".to_owned();
    cluster.hosts[0].start_agent(&[]);
    let line = refusal(&mut cluster.hosts[0]);
    assert!(line.contains("--node beta: this host is node 'alpha' already"), "{line}");
    assert!(line.contains("start with --node alpha, or run 'culvert purge "), "{line}");
    cluster.hosts[0].node = "alpha".to_owned();
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    cluster.hosts[0].in_container(&first, "ping -c1 -W9 10.0.0.3");
    assert_eq!(problems(&cluster.hosts[0]), [""; 0]);

    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    follow(&cluster.hosts[0], &line, "culvert purge");
    cluster.hosts[0].node = "beta".to_owned();
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    wait_nodes(&cluster.hosts[1], &["beta", "node1"]);
    let left = cluster.hosts[1].json(&["network", "inspect", "net"]);
    assert_eq!(left[0]["Containers"].as_object().map(serde_json::Map::len), Some(1));
}

/// Copies the files of a host's identity into another host's state directory.
fn copy_identity(from: &Host, to: &Host) {
    let (from, to) = (from.dir().join("state"), to.dir().join("state"));
    fs::create_dir_all(&to).unwrap();
    for file in ["node-id", "node-name", "store-mark"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

/// A copy of a host is refused while the original is alive. Both solutions that the refusal names
/// work. The original keeps its containers.
#[test]
#[ignore = "needs root"]
fn a_copy_of_a_host_is_refused_and_costs_the_original_nothing() {
    let mut cluster = Cluster::without_agents(3, 1500);
    for host in &mut cluster.hosts[..2] {
        host.start_agent(&[]);
        host.wait_ready();
    }
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    wait_until(SOON, "the network on the second host", || {
        cluster.hosts[1].culvert(&["network", "inspect", "net"]).status.success()
    });
    let (first, second) = (unique_name("orig1"), unique_name("orig2"));
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    let same = |cluster: &Cluster| {
        cluster.hosts[0].in_container(&first, "ping -c3 -i0.1 -W9 10.0.0.3");
        let rows = cluster.hosts[1].json(&["node", "ls"]);
        assert_eq!(rows[0]["name"], "node0", "{rows}");
        assert_eq!(rows[0]["ip"], "192.0.2.1", "{rows}");
        assert_eq!(rows[0]["alive"], true, "{rows}");
        assert_eq!(rows[0]["endpoints"], 1, "{rows}");
    };

    copy_identity(&cluster.hosts[0], &cluster.hosts[2]);
    cluster.hosts[2].node = "node0".to_owned();
    cluster.hosts[2].start_agent(&[]);
    let line = refusal(&mut cluster.hosts[2]);
    assert!(line.contains("node 'node0' is alive at VTEP 192.0.2.1"), "{line}");
    same(&cluster);
    let rm = advised(&line, "rm -r");
    assert!(Command::new("rm").args(&rm).status().unwrap().success());
    cluster.hosts[2].node = "node2".to_owned();
    cluster.hosts[2].start_agent(&[]);
    cluster.hosts[2].wait_ready();
    wait_nodes(&cluster.hosts[1], &["node0", "node1", "node2"]);
    same(&cluster);

    // The second solution: the copy is purged.
    cluster.hosts[2].ok(&["purge"]);
    cluster.hosts[2].agent = None;
    copy_identity(&cluster.hosts[0], &cluster.hosts[2]);
    let (state, bpffs) = (cluster.hosts[2].dir().join("state"), cluster.hosts[2].bpffs());
    let (state, bpffs) = (state.to_string_lossy(), bpffs.to_string_lossy());
    cluster.hosts[2].ok(&["purge", "--state-dir", &state, "--bpffs", &bpffs]);
    cluster.hosts[2].start_agent(&[]);
    wait_until(LEASE, "the agent of the copy to be a new node", || cluster.hosts[2].healthy());
    wait_nodes(&cluster.hosts[1], &["node0", "node1", "node2"]);
    same(&cluster);
}

/// Number of frames that a host has received on its uplink.
fn received(host: &Host) -> u64 {
    let link: serde_json::Value =
        serde_json::from_str(&host.netns.run("ip -j -s link show up0")).unwrap();
    link[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// A lost host is removed: its addresses are free, and nothing is flooded to it. If it returns, it
/// does not keep addresses that others have got.
#[test]
#[ignore = "needs root"]
fn a_host_that_is_gone_is_removed_and_may_come_back() {
    let mut cluster = Cluster::new(3);
    network(&cluster);
    let names: Vec<String> = (0..3).map(|_| unique_name("gone")).collect();
    for (host, name) in cluster.hosts.iter().zip(&names) {
        host.run_idle(name, "net", &[]);
    }
    cluster.hosts[0].wait_ping(&names[0], "10.0.0.4");
    let flood = |cluster: &Cluster| {
        let before = received(&cluster.hosts[2]);
        let arping = "ip neigh flush all; ping -c3 -i0.2 -W1 10.0.0.99";
        let _ = cluster.hosts[0].try_in_container(&names[0], arping);
        let after = received(&cluster.hosts[2]);
        (before, after)
    };

    cluster.hosts[2].stop_agent(Signal::SIGKILL);
    let line = cluster.hosts[0].refused(1, &["node", "rm", "node2"]);
    assert!(line.contains("node 'node2' is alive"), "{line}");
    assert!(cluster.hosts[0].refused(1, &["node", "rm", "node0"]).contains("'culvert purge'"));
    assert!(cluster.hosts[0].refused(1, &["node", "rm", "-f", "node9"]).contains("is unknown"));
    let (before, after) = flood(&cluster);
    assert_ne!(before, after, "a host that is not removed gets what is flooded");
    wait_until(LEASE, "its lease to run out", || {
        let rows = cluster.hosts[0].json(&["node", "ls"]);
        rows[2]["alive"] == false && rows[2]["gone_s"].is_u64()
    });
    assert_eq!(cluster.hosts[0].ok(&["node", "rm", "node2"]), "node2");
    wait_until(SOON, "the other host to have it no more", || {
        node_names(&cluster.hosts[1]) == ["node0", "node1"]
    });
    for host in &cluster.hosts[..2] {
        let vteps = host.json(&["vtep", "ls"]).to_string();
        assert!(!vteps.contains("192.0.2.3"), "{vteps}");
        wait_until(SOON, "its MAC to be forgotten", || {
            !host.json(&["fdb", "show"]).to_string().contains("02:42:0a:00:00:04")
        });
    }
    wait_until(SOON, "nothing to be flooded to it", || {
        let (before, after) = flood(&cluster);
        before == after
    });
    let next = unique_name("gone");
    cluster.hosts[1].run_idle(&next, "net", &[]);
    assert_eq!(cluster.hosts[1].ip(&next, "net"), "10.0.0.4");

    cluster.hosts[2].start_agent(&[]);
    cluster.hosts[2].wait_ready();
    let host = &cluster.hosts[2];
    let lost = || {
        let told = problems(host);
        told.iter().any(|line| line.contains("had been removed from the store"))
            && !host.try_in_container(&names[2], "ip link show eth0").status.success()
    };
    wait_until(SOON, "the host to give up its addresses and to tell", lost);
    cluster.hosts[0].wait_ping(&names[0], "10.0.0.4");
    host.ok(&["network", "connect", "net", &names[2]]);
    assert_eq!(host.ip(&names[2], "net"), "10.0.0.5");
    host.wait_ping(&names[2], "10.0.0.4");
}

/// A namespace that was attached by the path of a process stays this namespace. A later namespace
/// at the same path is refused.
#[test]
#[ignore = "needs root"]
fn a_stranger_at_the_path_of_a_process_is_not_plugged() {
    let mut cluster = Cluster::new(1);
    network(&cluster);
    let (guest, stranger) = (Netns::new("guest"), Netns::new("stranger"));
    let (process, other) = (guest.spawn("sleep", &["1000"]), stranger.spawn("sleep", &["1000"]));
    let of = |process: &Process| format!("/proc/{}/ns/net", process.pid());
    // The link stands for the pid, which the test cannot give to another process at will.
    let link = cluster.hosts[0].dir().join("link");
    symlink(of(&process), &link).unwrap();
    let path = link.display().to_string();
    let name = unique_name("guest");
    let attach = ["attach", "--name", &name, "--network", "net", "--netns"];
    cluster.hosts[0].ok(&[&attach[..], &[&path]].concat());
    assert!(guest.succeeds("ip link show eth0"));

    fs::remove_file(&link).unwrap();
    symlink(of(&other), &link).unwrap();
    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    let told =
        || problems(host).into_iter().find(|line| line.contains("another one than was attached"));
    wait_until(SOON, "the problem in status", || told().is_some());
    assert!(!stranger.succeeds("ip link show eth0"));
    // The other namespace does not join a second network either.
    host.overlay("more", "10.5.0.0/24", &[]);
    assert!(host.refused(1, &["network", "connect", "more", &name]).contains("another one"));
    let again = ["attach", "--name", &name, "--network", "more", "--netns", &path];
    assert!(host.refused(1, &again).contains(&format!("'culvert detach {name}' first")));
    assert!(!stranger.succeeds("ip link show eth0"));
    // The advice: detach the container, then attach the new namespace under the same name.
    follow(host, &told().unwrap(), "culvert detach");
    wait_until(SOON, "the problem to be over", || told().is_none());
    host.ok(&[&attach[..], &[&path]].concat());
    assert!(stranger.succeeds("ip link show eth0"));

    // The process ends, and the agent notices at once that its namespace is gone.
    drop(other);
    cluster.hosts[0].stop_agent(Signal::SIGTERM);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    let told = || problems(host).into_iter().find(|line| line.contains("is gone, and its network"));
    wait_until(SOON, "the end of the process in status", || told().is_some());
    follow(host, &told().unwrap(), "culvert detach");
    wait_until(SOON, "the problem to be over", || told().is_none());
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
}

/// Both solutions in the advice for an absent namespace work: the namespace is made again, or the
/// container is detached.
#[test]
#[ignore = "needs root"]
fn the_advice_for_an_absent_namespace_works() {
    let cluster = Cluster::new(1);
    network(&cluster);
    let host = &cluster.hosts[0];
    let name = unique_name("absent");
    let guest = Netns::make(&name).unwrap();
    host.ok(&[
        "attach",
        "--name",
        &name,
        "--network",
        "net",
        "--netns",
        &guest.path().display().to_string(),
    ]);
    assert!(guest.succeeds("ip link show eth0"));
    let told = || problems(host).into_iter().find(|line| line.contains("is not there: start what"));
    drop(guest);
    wait_until(SOON, "the absence in status", || told().is_some());
    let guest = Netns::make(&name).unwrap();
    wait_until(SOON, "the reconnection", || guest.succeeds("ip link show eth0"));
    wait_until(SOON, "the problem to be over", || told().is_none());
    drop(guest);
    wait_until(SOON, "the second report of absence", || told().is_some());
    follow(host, &told().unwrap(), "culvert detach");
    wait_until(SOON, "the problem to be over", || told().is_none());
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
}
