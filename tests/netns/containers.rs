//! `run`, `exec`, `logs`, `attach`, `detach`, `ps`, `rm`: containers as people
//! and scripts use them.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use culvert_tests::{
    cluster::{Cluster, SOON, unique_name},
    netns::{Netns, Process, exit_code, wait_until},
};
use nix::sys::signal::Signal;

fn one_host() -> Cluster {
    let cluster = Cluster::new(1);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster
}

/// `run` has the exit code and the output of the program. `--rm` leaves nothing, and the address is
/// free again.
#[test]
#[ignore = "needs root"]
fn run_is_the_programs_own_exit() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        let name = unique_name("job");
        let output = host.culvert(&[
            "run",
            "--rm",
            "--name",
            &name,
            "--network",
            "net",
            "--",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
    }
    let name = unique_name("job");
    let run = |command: &str| {
        host.culvert(&["run", "--rm", "--name", &name, "--network", "net", "--", command])
    };
    assert_eq!(run("no-such-program").status.code(), Some(127));
    assert_eq!(run("/etc/passwd").status.code(), Some(126));
    let output = host.culvert(&[
        "run",
        "--rm",
        "--name",
        &name,
        "--network",
        "net",
        "--",
        "sh",
        "-c",
        "ip -o -4 addr show eth0; cat",
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("10.0.0.2/24"), "{text}");
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
}

/// Signals and standard input reach the program.
#[test]
#[ignore = "needs root"]
fn run_passes_signals_and_input() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let name = unique_name("job");
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let command = host.culvert_command(&[
        "run",
        "--rm",
        "--name",
        &name,
        "--network",
        "net",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut run = Process::spawn(command);
    wait_until(SOON, "the program to be ready", || run.stdout().contains("ready"));
    let status = run.stop(Signal::SIGTERM, SOON);
    assert_eq!(exit_code(status), 3, "{}", run.stderr());
    assert!(run.stdout().contains("got it"));

    let mut child = host
        .culvert_command(&["run", "--rm", "--name", &name, "--network", "none", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| unreachable!("{error}"));
    if let Some(mut input) = child.stdin.take() {
        assert!(input.write_all(b"through\n").is_ok());
    }
    let output = child.wait_with_output().unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(output.stdout, b"through\n");
}

/// `-d` keeps a log. `exec` runs a second program. `ps` shows the container. `rm` needs `-f` while
/// the container runs.
#[test]
#[ignore = "needs root"]
fn detached_containers() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let name = unique_name("svc");
    let script = "echo one; echo two >&2; exec sleep 1000";
    host.ok(&["run", "-d", "--name", &name, "--network", "net", "--", "sh", "-c", script]);
    wait_until(SOON, "both lines in the log", || {
        let log = host.ok(&["logs", &name]);
        log.contains("one") && log.contains("two")
    });
    let output =
        host.culvert(&["exec", &name, "--", "sh", "-c", "ip -o -4 addr show eth0; exit 5"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("10.0.0.2/24"));

    let rows = host.json(&["ps"]);
    let row = &rows[0];
    assert_eq!(row["name"], name.as_str());
    assert_eq!(row["mode"], "overlay");
    assert_eq!(row["netns"], format!("/run/netns/{name}"));
    assert_eq!(row["networks"][0]["name"], "net");
    assert_eq!(row["networks"][0]["ip"], "10.0.0.2");
    assert_eq!(row["networks"][0]["mac"], "02:42:0a:00:00:02");
    let pid = row["pid"].as_i64().unwrap_or(0);
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());

    let line = host.refused(1, &["rm", &name]);
    assert!(line.contains(&name) && line.contains("-f"), "{line}");
    host.ok(&["rm", "-f", &name]);
    wait_until(SOON, "the program to be gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    assert!(!std::path::Path::new(&format!("/run/netns/{name}")).exists());
    assert_eq!(host.json(&["fdb", "show"]), serde_json::json!([]));
}

/// Namespaces of other programs are attached by path and by pid.
#[test]
#[ignore = "needs root"]
fn attach_and_detach() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let other = Netns::new("adopted");
    let path = other.path().display().to_string();
    let (first, second) = (unique_name("att"), unique_name("att"));
    host.ok(&[
        "attach",
        "--netns",
        &path,
        "--name",
        &first,
        "--network",
        "net",
        "--ip",
        "10.0.0.5",
    ]);
    assert!(other.run("ip -o -4 addr show eth0").contains("10.0.0.5/24"));

    let by_pid = Netns::new("bypid");
    let sleeper = by_pid.spawn("sleep", &["1000"]);
    let pid = sleeper.pid().to_string();
    host.ok(&["attach", "--pid", &pid, "--name", &second, "--network", "net", "--ifname", "net7"]);
    let ip = host.ip(&second, "net");
    assert!(by_pid.run("ip -o -4 addr show net7").contains(&ip));
    other.run(&format!("ping -c1 -W2 {ip}"));

    host.ok(&["detach", &first]);
    assert!(!other.succeeds("ip link show eth0"));
    assert!(other.path().exists(), "a namespace that is not ours was removed");
    host.ok(&["detach", &second, "--network", "net"]);
    assert!(!by_pid.succeeds("ip link show net7"));
    assert_eq!(host.json(&["fdb", "show"]), serde_json::json!([]));
}

/// A running sandbox joins a second network and leaves it again.
#[test]
#[ignore = "needs root"]
fn connect_and_disconnect() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    host.overlay("second", "10.5.0.0/24", &[]);
    let name = unique_name("two");
    host.run_idle(&name, "net", &[]);
    host.ok(&["network", "connect", "second", &name]);
    assert!(host.in_container(&name, "ip -o -4 addr show eth1").contains("10.5.0.2/24"));
    host.ok(&["network", "disconnect", "net", &name]);
    assert!(!host.try_in_container(&name, "ip link show eth0").status.success());
    host.in_container(&name, "ip link show eth1");
    host.ok(&["network", "rm", "net"]);
}

/// Addresses: a fixed one, the lowest free one, and reuse only after a release.
#[test]
#[ignore = "needs root"]
fn addresses_are_given_once() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let names: Vec<String> = (0..4).map(|_| unique_name("ip")).collect();
    host.run_idle(&names[0], "net", &[]);
    host.run_idle(&names[1], "net", &["--ip", "10.0.0.3", "--mac", "02:aa:bb:cc:dd:ee"]);
    host.run_idle(&names[2], "net", &[]);
    assert_eq!(host.ip(&names[0], "net"), "10.0.0.2");
    assert_eq!(host.ip(&names[2], "net"), "10.0.0.4");
    assert!(
        host.in_container(&names[1], "cat /sys/class/net/eth0/address || ip link")
            .contains("02:aa:bb:cc:dd:ee")
            || host.in_container(&names[1], "ip link show eth0").contains("02:aa:bb:cc:dd:ee")
    );
    host.ok(&["rm", "-f", &names[0]]);
    host.run_idle(&names[3], "net", &[]);
    assert_eq!(host.ip(&names[3], "net"), "10.0.0.2");
}

/// Many containers at once on two hosts: every address is unique.
#[test]
#[ignore = "needs root"]
fn concurrent_creates_never_share_an_address() {
    let cluster = Cluster::new(2);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let mut running = Vec::new();
    for index in 0..16 {
        let host = &cluster.hosts[index % 2];
        let name = unique_name("race");
        let command = host.culvert_command(&[
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "net",
            "--",
            "sleep",
            "1000",
        ]);
        running.push((index % 2, name, Process::spawn(command)));
    }
    let mut addresses = std::collections::BTreeSet::new();
    for (host, name, process) in &mut running {
        let status = process.wait(SOON);
        assert!(status.success(), "{}", process.stderr());
        assert!(
            addresses.insert(cluster.hosts[*host].ip(name, "net")),
            "{name} shares its address"
        );
    }
    assert_eq!(addresses.len(), 16);
}

/// With `--trace`, the agent's log has the programs' trace lines.
#[test]
#[ignore = "needs root"]
fn trace_lines_when_asked_for() {
    let mut cluster = Cluster::without_agents(1, 1500);
    cluster.hosts[0].start_agent(&["--trace"]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let (first, second) = (unique_name("tr"), unique_name("tr"));
    host.run_idle(&first, "net", &[]);
    host.run_idle(&second, "net", &[]);
    host.wait_ping(&first, "10.0.0.3");
    wait_until(SOON, "a trace line", || host.agent_log().contains("action"));
}

/// `doctor` reports good and bad findings, with and without an agent.
#[test]
#[ignore = "needs root"]
fn doctor_looks_around() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let findings = host.findings();
    assert!(findings.as_array().is_some_and(|rows| rows.len() >= 5), "{findings}");
    let nobody = Netns::new("nobody");
    let output = nobody
        .command(culvert_tests::cluster::culvert_binary())
        .args(["--socket", "/nonexistent/culvert.sock", "doctor"])
        .output();
    assert!(output.is_ok_and(|output| !output.stdout.is_empty()));
}

/// `ip netns exec NAME ip a` works as in the article.
#[test]
#[ignore = "needs root"]
fn ip_netns_sees_the_sandbox() {
    let cluster = one_host();
    let host = &cluster.hosts[0];
    let name = unique_name("art");
    host.run_idle(&name, "net", &[]);
    let output = Command::new("ip").args(["netns", "exec", &name, "ip", "a"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    assert!(text.is_ok_and(|text| text.contains("10.0.0.2/24")));
}
