//! Agents that stop, crash, come back; hosts that lose their namespaces;
//! containers that come and go.

#![expect(clippy::unwrap_used, reason = "a step that fails ends the test with the error")]

use std::{fs, process::Command};

use aya::programs::TcAttachType;
use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Process, programs, wait_until},
    sock::container,
};
use nix::{
    fcntl::{AT_FDCWD, Flock, FlockArg},
    sys::{
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
        signal::Signal,
    },
};

fn overlay_pair() -> (Cluster, String, String) {
    let cluster = Cluster::new(2);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let (first, second) = (unique_name("life1"), unique_name("life2"));
    cluster.hosts[0].run_idle(&first, "net", &["--ip", "10.0.0.2"]);
    cluster.hosts[1].run_idle(&second, "net", &["--ip", "10.0.0.3"]);
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
    (cluster, first, second)
}

/// A ping every 10 ms, until it is stopped.
pub(crate) fn start_pings(name: &str, ip: &str) -> Process {
    let mut command = Command::new("nsenter");
    command.args([&format!("--net=/run/netns/{name}"), "ping", "-i", "0.01", "-W", "1", ip]);
    Process::spawn(command)
}

/// How many of the pings went unanswered.
pub(crate) fn lost(mut pings: Process) -> u64 {
    pings.stop(Signal::SIGINT, SOON);
    let text = pings.stdout();
    let summary = text.lines().find(|line| line.contains("packets transmitted")).unwrap_or("");
    let mut numbers = summary
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse::<u64>().ok());
    match (numbers.next(), numbers.next()) {
        // The last request may be under way when the pings are stopped.
        (Some(sent), Some(received)) => (sent - received).saturating_sub(1),
        _ => unreachable!("ping: {text}{}", pings.stderr()),
    }
}

/// Stop, crash and restart of an agent lose no packet.
#[test]
#[ignore = "needs root"]
fn traffic_flows_while_the_agent_is_replaced() {
    let (mut cluster, first, _) = overlay_pair();
    let pings = start_pings(&first, "10.0.0.3");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for host in &mut cluster.hosts {
            host.stop_agent(signal);
        }
        cluster.hosts[0].in_container(&first, "ping -c5 -i0.05 -W1 10.0.0.3");
        for host in &mut cluster.hosts {
            host.start_agent(&[]);
        }
        for host in &mut cluster.hosts {
            host.wait_ready();
        }
        cluster.hosts[0].in_container(&first, "ping -c5 -i0.05 -W1 10.0.0.3");
    }
    assert_eq!(lost(pings), 0);
}

/// A restarted agent keeps its state, prunes objects that were removed meanwhile, and applies the
/// changes of the other host.
#[test]
#[ignore = "needs root"]
fn a_restarted_agent_catches_up() {
    let (mut cluster, first, second) = overlay_pair();
    let third = unique_name("life3");
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    cluster.hosts[1].ok(&["rm", "-f", &second]);
    cluster.hosts[1].run_idle(&third, "net", &["--ip", "10.0.0.7"]);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    cluster.hosts[0].wait_ping(&first, "10.0.0.7");
    wait_until(SOON, "the stale FDB entry to go", || {
        !cluster.hosts[0].json(&["fdb", "show"]).to_string().contains("02:42:0a:00:00:03")
    });
}

/// The namespace is lost, as in a reboot: the agent brings it back from the store.
#[test]
#[ignore = "needs root"]
fn a_lost_namespace_comes_back() {
    let (mut cluster, first, _) = overlay_pair();
    cluster.hosts[0].stop_agent(Signal::SIGKILL);
    // What a reboot does: namespaces and pins are gone, the state directory is not.
    let bpffs = cluster.hosts[0].bpffs();
    let script = format!("umount -l {}; ip netns del {first}", bpffs.display());
    culvert_tests::netns::Netns::here().run(&script);
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    wait_until(SOON, "the sandbox to be there again", || {
        cluster.hosts[0].try_in_container(&first, "ip addr show eth0").status.success()
    });
    cluster.hosts[0].wait_ping(&first, "10.0.0.3");
}

/// The row of a container in `ps`.
fn row(host: &Host, name: &str) -> serde_json::Value {
    let rows = host.json(&["ps"]);
    let found = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name));
    found.cloned().unwrap_or_default()
}

/// Kills the supervisors of a host, and with them their commands.
fn kill_supervisors(host: &Host) {
    let supervisors = format!("--socket {} .*__supervise", host.socket().display());
    let _ = Command::new("pkill").args(["-KILL", "-f", "--", &supervisors]).status();
}

/// After a reboot, commands run again as their policy says, with their network; containers of
/// `--rm` are gone and their addresses free.
#[test]
#[ignore = "needs root"]
fn commands_come_back_after_a_reboot_and_rm_is_carried_out() {
    let mut cluster = Cluster::new(2);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.wait_network("net");
    let [web, once, plain, peer] = ["web", "once", "plain", "peer"].map(unique_name);
    let host = &cluster.hosts[0];
    let script = "echo $CULVERT_TEST_WORD in $PWD; exec sleep 1000";
    let mut command = host.culvert_command(&[
        "run",
        "-d",
        "--name",
        &web,
        "--network",
        "net",
        "--ip",
        "10.0.0.2",
        "--restart",
        "always",
        "--",
        "sh",
        "-c",
        script,
    ]);
    command.env("CULVERT_TEST_WORD", "secret").current_dir("/usr");
    assert!(command.status().is_ok_and(|status| status.success()));
    host.run_idle(&once, "net", &["--ip", "10.0.0.3", "--rm"]);
    host.run_idle(&plain, "net", &["--ip", "10.0.0.4"]);
    cluster.hosts[1].run_idle(&peer, "net", &["--ip", "10.0.0.9"]);
    cluster.hosts[1].wait_ping(&peer, "10.0.0.2");

    let host = &mut cluster.hosts[0];
    host.stop_agent(Signal::SIGKILL);
    kill_supervisors(host);
    let names = [&web, &once, &plain].map(|name| format!("ip netns del {name}")).join("; ");
    let script = format!("umount -l {}; {names}", host.bpffs().display());
    culvert_tests::netns::Netns::here().run(&script);
    host.start_agent(&[]);
    host.wait_ready();

    let host = &cluster.hosts[0];
    wait_until(SOON, "the command to run again", || row(host, &web)["state"] == "running");
    assert_eq!(row(host, &web)["restarts"], 1);
    assert_eq!(row(host, &web)["restart"], "always");
    assert_eq!(host.ok(&["logs", &web]).trim_end(), "secret in /usr\nsecret in /usr");
    let pid = row(host, &web)["pid"].to_string();
    let inside = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let named = host.in_container(&web, "readlink /proc/self/ns/net");
    assert_eq!(inside.map(|path| path.display().to_string()), Some(named.trim().to_owned()));
    cluster.hosts[1].wait_ping(&peer, "10.0.0.2");
    wait_until(SOON, "the container of --rm to be gone", || row(host, &once).is_null());
    let again = unique_name("again");
    cluster.hosts[1].run_idle(&again, "net", &["--ip", "10.0.0.3"]);
    assert_eq!(row(host, &plain)["state"], "exited");
    cluster.hosts[1].wait_ping(&peer, "10.0.0.4");
    let line = host.refused(1, &["rm", &web]);
    assert!(line.contains("is running"), "{line}");
    host.ok(&["rm", "-f", &web]);
    // Without a parent that waits for it, a process that has ended stays as a zombie.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

/// Changes the record of a container on disk as if the report of its command had never come.
/// Returns the pid of the command.
fn forget_command(host: &Host, name: &str) -> Option<i64> {
    let path = host.dir().join(format!("state/containers/{name}.json"));
    let text = fs::read(&path).unwrap_or_default();
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let pid = record["process"]["pid"].as_i64();
    for field in ["process", "supervisor", "log"] {
        record[field] = serde_json::Value::Null;
    }
    record["begun"] = false.into();
    assert!(fs::write(&path, record.to_string()).is_ok());
    pid
}

/// A purge without an agent ends commands that were not reported to an agent, with their
/// supervisors.
#[test]
#[ignore = "needs root"]
fn a_purge_without_an_agent_ends_commands_that_were_not_told() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let name = unique_name("untold");
    let options: [&str; 8] =
        ["run", "-d", "--name", &name, "--network", "none", "--restart", "always"];
    host.ok(&[&options[..], &["--", "sleep", "1000"]].concat());
    host.stop_agent(Signal::SIGKILL);
    let pid = forget_command(host, &name);
    let running = || pid.is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(running());
    let state = host.dir().join("state").display().to_string();
    host.ok(&["purge", "--state-dir", &state, "--bpffs", &host.bpffs().display().to_string()]);
    wait_until(SOON, "the command to be gone", || !running());
    assert!(!std::path::Path::new(&format!("/run/netns/{name}")).exists());
}

/// A command that starts while the agent is away is known when the agent is back, and `rm` without
/// `-f` does not forget it alive.
#[test]
#[ignore = "needs root"]
fn a_command_that_starts_while_the_agent_is_away_is_known_later() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let name = unique_name("late");
    let script = "echo started; exec sleep 1000";
    host.ok(&["run", "-d", "--name", &name, "--network", "none", "--", "sh", "-c", script]);
    host.stop_agent(Signal::SIGKILL);
    let pid = forget_command(host, &name);
    host.start_agent(&[]);
    host.wait_ready();
    assert_eq!(row(host, &name)["pid"].as_i64(), pid);
    assert_eq!(row(host, &name)["state"], "running");
    let line = host.refused(1, &["rm", &name]);
    assert!(line.contains("is running"), "{line}");
    assert!(host.ok(&["logs", &name]).contains("started"));
    host.ok(&["rm", "-f", &name]);
}

/// Records of containers that cannot be written: a process that opens a file in their directory
/// waits, until it is killed or this is dropped.
struct Unwritable {
    _asked: Fanotify,
}

impl Unwritable {
    /// Has the kernel ask this process about each file that is opened in the directory of the
    /// records. This process does not answer.
    fn records(host: &Host) -> Self {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let asked = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
        let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
        let directory = host.dir().join("state/containers");
        let directory = Some(directory.as_path());
        asked.mark(MarkFlags::FAN_MARK_ADD, mask, AT_FDCWD, directory).unwrap();
        Self { _asked: asked }
    }
}

/// Starts the agent after one that was killed. It shows a namespace without a container, refuses
/// its name, and removes it by that name, which is free then.
fn is_removed_by_name(host: &mut Host, name: &str) {
    let path = container(name);
    assert!(path.exists());
    host.start_agent(&[]);
    host.wait_ready();
    assert_eq!(row(host, name)["state"], "unfinished");
    let problems = || host.json(&["status"])["problems"].clone();
    let advice = format!("'culvert rm {name}' removes it");
    wait_until(SOON, "the namespace to be told", || problems().to_string().contains(&advice));
    let run = ["run", "--name", name, "--network", "net", "--", "true"];
    let line = host.refused(1, &run);
    assert!(line.contains(&format!("'culvert rm {name}'")), "{line}");
    assert!(path.exists());
    host.ok(&["rm", name]);
    assert!(!path.exists());
    assert!(row(host, name).is_null());
    wait_until(SOON, "no problem to be left", || problems() == serde_json::json!([]));
    host.run_idle(name, "net", &["--ip", "10.0.0.2"]);
}

/// An agent is killed when it has made the namespace of a container, and not yet written its
/// record.
#[test]
#[ignore = "needs root"]
fn a_namespace_that_a_killed_agent_has_left_is_removed_by_name() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("half");
    let unwritable = Unwritable::records(host);
    let run = host.culvert_command(&["run", "--name", &name, "--network", "none", "--", "true"]);
    let mut run = Process::spawn(run);
    // These are the last files before the record.
    let hosts = host.dir().join(format!("state/etc/{name}/hosts"));
    wait_until(SOON, "the files of the container", || hosts.exists());
    host.stop_agent(Signal::SIGKILL);
    assert!(!run.wait(SOON).success());
    drop(unwritable);
    is_removed_by_name(host, &name);
}

/// An agent is killed when it has removed a container from the store, and not yet its namespace.
/// The record of the container was lost before.
#[test]
#[ignore = "needs root"]
fn a_namespace_that_was_being_removed_is_removed_by_name() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("half");
    let head = ["run", "--name", &name, "--network", "net", "--ip", "10.0.0.2"];
    host.ok(&[&head[..], &["--", "true"]].concat());
    host.stop_agent(Signal::SIGKILL);
    fs::remove_file(host.dir().join(format!("state/containers/{name}.json"))).unwrap();
    host.start_agent(&[]);
    host.wait_ready();
    // Who has this lock, which is that of `ip netns` as well, keeps the namespaces from being
    // removed.
    let directory = fs::File::open("/run/netns").unwrap();
    let lock = Flock::lock(directory, FlockArg::LockExclusive).unwrap();
    let mut rm = Process::spawn(host.culvert_command(&["rm", &name]));
    wait_until(SOON, "the endpoint to be gone", || {
        host.json(&["network", "inspect", "net"])[0]["Containers"] == serde_json::json!({})
    });
    host.stop_agent(Signal::SIGKILL);
    drop(lock);
    assert!(!rm.wait(SOON).success());
    is_removed_by_name(host, &name);
}

/// An agent is killed while the store hangs and it attaches a new container: the next agent takes
/// that back by itself.
#[test]
#[ignore = "needs root"]
fn what_a_killed_agent_was_attaching_is_taken_back() {
    let mut cluster = Cluster::new(1);
    let name = unique_name("half");
    let path = container(&name);
    cluster.hosts[0].overlay("net", "10.0.0.0/24", &[]);
    cluster.etcd.freeze().unwrap();
    let host = &mut cluster.hosts[0];
    let run = host.culvert_command(&["run", "--name", &name, "--network", "net", "--", "true"]);
    let mut run = Process::spawn(run);
    let attempts = host.dir().join("state/attempts");
    wait_until(SOON, "the attempt", || {
        let mut files = fs::read_dir(&attempts).into_iter().flatten().flatten();
        files.any(|file| file.path().extension().is_some_and(|extension| extension == "json"))
    });
    assert!(path.exists());
    host.stop_agent(Signal::SIGKILL);
    assert!(!run.wait(SOON).success());
    cluster.etcd.thaw().unwrap();
    let host = &mut cluster.hosts[0];
    host.start_agent(&[]);
    host.wait_ready();
    wait_until(SOON, "the namespace to be gone", || !path.exists());
    wait_until(SOON, "no problem to be left", || {
        host.json(&["status"])["problems"] == serde_json::json!([])
    });
    host.run_idle(&name, "net", &["--ip", "10.0.0.2"]);
}

/// A veth, a route or the cause of a map entry is deleted: the agent repairs it.
#[test]
#[ignore = "needs root"]
fn what_is_deleted_by_hand_is_repaired() {
    let (cluster, first, _) = overlay_pair();
    let host = &cluster.hosts[0];
    let veth = host
        .netns
        .run("ip -o link show | grep -o 'cv[0-9a-f]\\{12\\}' | head -n1")
        .trim()
        .to_owned();
    host.netns.run(&format!("ip link del {veth}"));
    host.wait_ping(&first, "10.0.0.3");
}

/// Foreign devices, routes and names are left alone by start, work and purge,
/// and purge leaves nothing of ours.
#[test]
#[ignore = "needs root"]
fn purge_removes_ours_and_nothing_else() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let host = &mut cluster.hosts[0];
    host.netns.run(
        "ip link add cvforeign0 type veth peer name cvforeign1; ip link set cvforeign0 up; \
         ip addr add 198.51.100.1/24 dev cvforeign0; ip route add 203.0.113.0/24 dev cvforeign0",
    );
    let state = |host: &Host| {
        let links = host.netns.run("ip -o link show | sed 's/@.*//; s/.*: //' | sort");
        let routes = host.netns.run("ip route; ip -6 route | grep -v ' cv' | sort");
        (links, routes)
    };
    let before = state(host);
    host.start_agent(&[]);
    host.wait_ready();
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("life1");
    host.run_idle(&name, "net", &[]);
    assert_ne!(state(host).0, before.0);
    assert_eq!(programs(&host.netns, "up0", TcAttachType::Ingress), ["from_underlay"]);
    host.ok(&["purge"]);
    wait_until(SOON, "the agent to exit", || {
        host.agent.as_mut().is_none_or(|agent| !agent.is_running())
    });
    assert_eq!(state(host), before);
    assert!(!std::path::Path::new(&format!("/run/netns/{name}")).exists());
    assert_eq!(programs(&host.netns, "up0", TcAttachType::Ingress), [""; 0]);
}
