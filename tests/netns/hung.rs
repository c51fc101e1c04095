//! Agents and stores that hang, disks that are full, logs that grow, files that run out.

#![expect(clippy::unwrap_used, reason = "a step that cannot be taken fails the test with why")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{on_this_machine, wait_until},
    sock::container,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

/// Runs a verb that is refused within its time, which is `timeout`; returns its line.
fn hung(host: &Host, timeout: Duration, args: &[&str]) -> String {
    let limit = format!("{}ms", timeout.as_millis());
    let began = Instant::now();
    let line = host.refused(1, &[&["--timeout", &limit], args].concat());
    // The rest is for the start of the process, on a busy machine.
    assert!(
        began.elapsed() < timeout + on_this_machine(Duration::from_secs(5)),
        "{args:?}: {line}"
    );
    line
}

/// A stopped agent is named by its pid; what was asked of it meanwhile is not carried out later.
#[test]
#[ignore = "needs root"]
fn a_stopped_agent_is_named_and_does_nothing_late() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("late");
    let agent = host.agent.as_mut().unwrap();
    let pid = agent.pid().to_string();
    agent.signal(Signal::SIGSTOP);
    let second = Duration::from_secs(1);
    for args in [
        &["ps"][..],
        &["status"],
        &["network", "create", "-d", "overlay", "late"],
        &["run", "--name", &name, "--network", "net", "--", "true"],
        &["run", "-d", "--name", &name, "--network", "net", "--", "true"],
        &["rm", "-f", "a", "b", "c", "d"],
        &["attach", "--netns", "/run/netns/none", "--name", &name, "--network", "net"],
    ] {
        let line = hung(host, second, args);
        assert!(line.contains(&format!("pid {pid}, has not answered within 1.0 s")), "{line}");
        assert!(line.contains(&format!("'kill -CONT {pid}'")), "{line}");
    }
    host.agent.as_mut().unwrap().signal(Signal::SIGCONT);
    // Later than all that was asked before.
    assert_eq!(host.json(&["ps"]), serde_json::json!([]));
    assert!(!host.ok(&["network", "ls"]).contains("late"));
    host.run_idle(&name, "net", &[]);
}

/// A store that hangs is named within the caller's time; `ps` does not need it, also after a
/// restart of the agent.
#[test]
#[ignore = "needs root"]
fn a_hung_store_is_named_and_ps_tells_modes_without_it() {
    let mut cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let web = unique_name("web");
    host.run_idle(&web, "net", &["--ip", "10.0.0.7"]);
    let names = ["lan", "alone", "bare", "side"].map(unique_name);
    let shared = format!("container:{web}");
    for (name, network) in names.iter().zip(["bridge", "none", "host", shared.as_str()]) {
        host.run_idle(name, network, &[]);
    }
    let before = host.json(&["ps"]);

    cluster.etcd.freeze().unwrap();
    let args = ["network", "create", "-d", "overlay", "other"];
    let line = hung(host, Duration::from_secs(2), &args);
    assert!(line.contains("store: it has not answered for 1."), "{line}");
    // By default the store's own timeout comes first.
    let line = hung(host, Duration::from_secs(10), &args);
    assert!(line.contains("store: etcd 192.0.2.254:2379"), "{line}");
    assert_eq!(host.json(&["ps"]), before);

    let host = &mut cluster.hosts[0];
    host.stop_agent(Signal::SIGKILL);
    host.start_agent(&[]);
    wait_until(SOON, "the agent to answer", || host.culvert(&["ps"]).status.success());
    assert_eq!(host.json(&["ps"]), before);
    let table = host.ok(&["ps"]);
    for mode in ["overlay", "bridge", "none", "host", &shared] {
        assert!(table.contains(&format!(" {mode} ")), "{mode}: {table}");
    }
    let run = ["run", "--name", "x", "--network", "net", "--", "true"];
    let line = hung(host, Duration::from_secs(2), &run);
    assert!(line.contains("store: "), "{line}");
    cluster.etcd.thaw().unwrap();
    cluster.hosts[0].wait_ready();
    assert_eq!(cluster.hosts[0].json(&["ps"]), before);
}

/// The store does not apply the commit of a `run` that has failed while the store hung: address,
/// name and port are free, also if the agent is killed before the store is back.
#[test]
#[ignore = "needs root"]
fn a_run_that_failed_in_doubt_does_not_come_true_later() {
    let mut cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let name = unique_name("doubt");
    let options = ["--name", &name, "--network", "net", "--ip", "10.0.0.7", "-p", "8080:80"];
    let run = [&["run", "-d"][..], &options, &["--", "sleep", "infinity"]].concat();
    for kill in [false, true] {
        let host = &mut cluster.hosts[0];
        cluster.etcd.freeze().unwrap();
        let line = hung(host, Duration::from_secs(30), &run);
        assert!(line.contains("store: etcd 192.0.2.254:2379"), "{line}");
        let told = |host: &Host| {
            let status = host.json(&["status"]);
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            problems.iter().any(|line| {
                let line = line.as_str().unwrap_or_default();
                line.contains(&name) && line.contains("an attempt has failed")
            })
        };
        assert!(told(host));
        if kill {
            host.stop_agent(Signal::SIGKILL);
            host.start_agent(&[]);
            wait_until(SOON, "the agent to answer", || host.culvert(&["ps"]).status.success());
            assert!(told(host));
        }
        cluster.etcd.thaw().unwrap();
        let host = &mut cluster.hosts[0];
        host.wait_ready();
        wait_until(SOON, "the attempt to be taken back", || !told(host));
        assert_eq!(host.json(&["ps"]), serde_json::json!([]));
        assert_eq!(
            host.json(&["network", "inspect", "net"])[0]["Containers"],
            serde_json::json!({})
        );
        assert!(!Path::new(&format!("/run/netns/{name}")).exists());
        host.ok(&run);
        assert_eq!(host.ip(&name, "net"), "10.0.0.7");
        host.ok(&["rm", "-f", &name]);
    }
}

const NONE: Option<&str> = None;

/// A small file system, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = Some("size=128k,mode=755");
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self(path)
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// Mounts it once more, read-only: files that are open for writing do not prevent that.
    fn read_only(&self, on: bool) {
        if !on {
            return umount2(&self.0, MntFlags::empty()).unwrap();
        }
        mount(Some(&self.0), &self.0, NONE, MsFlags::MS_BIND, NONE).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, &self.0, NONE, flags, NONE).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A state directory that cannot be written is a problem by its name until it can be; requests
/// that write are refused and change nothing.
#[test]
#[ignore = "needs root"]
fn a_full_or_read_only_state_directory_is_a_problem_until_it_can_be_written() {
    let mut cluster = Cluster::without_agents(1, 1500);
    let disk = Disk::at(cluster.hosts[0].dir().join("state"));
    cluster.hosts[0].start_agent(&[]);
    cluster.hosts[0].wait_ready();
    let host = &cluster.hosts[0];
    host.overlay("net", "10.0.0.0/24", &[]);
    let (first, second) = (unique_name("full"), unique_name("full"));
    host.run_idle(&first, "net", &[]);
    let problem = |part: &str| {
        let status = host.json(&["status"]);
        let line = format!("state directory {} cannot be written: {part}", disk.0.display());
        status["problems"]
            .as_array()
            .unwrap()
            .iter()
            .any(|has| has.as_str().is_some_and(|has| has.starts_with(&line)))
    };
    let containers = || {
        let rows = host.json(&["ps"]);
        let network = host.json(&["network", "inspect", "net"]);
        let endpoints = network[0]["Containers"].as_object().unwrap().len();
        (rows.as_array().unwrap().len(), endpoints)
    };
    let full = "No space left on device";
    disk.fill();
    wait_until(SOON, "the problem to be told", || problem(full));
    for options in [&[][..], &["-d"]] {
        let head = ["run", "--name", &second, "--network", "net"];
        let line = host.refused(1, &[&head, options, &["--", "true"]].concat());
        assert!(line.contains(&disk.0.display().to_string()) && line.contains(full), "{line}");
    }
    assert_eq!(containers(), (1, 1));
    assert!(!Path::new(&format!("/run/netns/{second}")).exists());
    disk.empty();
    wait_until(SOON, "the problem to be over", || !problem(full));
    host.run_idle(&second, "net", &[]);
    assert_eq!(containers(), (2, 2));

    disk.read_only(true);
    wait_until(SOON, "the problem to be told", || problem("Read-only file system"));
    let line = host.refused(1, &["rm", "-f", &second]);
    assert!(line.contains("Read-only file system"), "{line}");
    assert_eq!(containers(), (2, 2));
    disk.read_only(false);
    wait_until(SOON, "the problem to be over", || !problem("Read-only"));
    host.ok(&["rm", "-f", &second]);
    assert_eq!(containers(), (1, 1));
    wait_until(SOON, "no problem", || host.json(&["status"])["problems"] == serde_json::json!([]));
}

/// A log keeps its size while the agent restarts under the container: no line is lost, and the
/// container is not killed for writing.
#[test]
#[ignore = "needs root"]
fn logs_are_replaced_and_lose_no_line_while_the_agent_restarts() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let name = unique_name("log");
    let release = host.dir().join("release");
    let script = "seq 5000; while [ ! -e $0 ]; do echo waiting; sleep 0.05; done; seq 5000; \
                  exec sleep infinity";
    let head = ["run", "-d", "--name", &name, "--network", "none"];
    let options = ["--log-opt", "max-size=10k", "--log-opt", "max-file=20"];
    let command = ["--", "sh", "-c", script, release.to_str().unwrap()];
    host.ok(&[&head[..], &options, &command].concat());
    host.stop_agent(Signal::SIGKILL);
    // Written while there is no agent.
    let lines = || {
        let logs = fs::read_dir(host.dir().join("state/logs")).unwrap();
        logs.map(|log| fs::read_to_string(log.unwrap().path()).unwrap_or_default())
            .map(|text| text.lines().filter(|line| *line == "waiting").count())
            .sum::<usize>()
    };
    let before = lines();
    wait_until(SOON, "lines without an agent", || lines() > before + 3);
    host.start_agent(&[]);
    host.wait_ready();
    fs::write(&release, "").unwrap();
    let numbers: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    let host = &*host;
    wait_until(SOON, "all lines", || {
        let text = host.ok(&["logs", &name]).replace("waiting\n", "");
        format!("{text}\n") == format!("{numbers}{numbers}")
    });
    for log in fs::read_dir(host.dir().join("state/logs")).unwrap() {
        assert!(log.unwrap().metadata().unwrap().len() <= 10_000);
    }
    host.ok(&["rm", "-f", &name]);
    assert_eq!(fs::read_dir(host.dir().join("state/logs")).unwrap().count(), 0);
}

/// An agent at its limit of open files names the limit, goes on to answer, and works again when the
/// limit is raised.
#[test]
#[ignore = "needs root"]
fn a_limit_of_open_files_is_named() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let first = unique_name("few");
    host.run_idle(&first, "bridge", &[]);
    let pid = host.agent.as_ref().unwrap().pid().to_string();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |limit: usize| {
        // The soft limit alone: the hard one could not be raised again.
        let set = format!("--nofile={limit}:");
        assert!(Command::new("prlimit").args(["--pid", &pid, &set]).status().unwrap().success());
    };
    limit(files + 30);
    let named =
        format!("too many open files (LimitNOFILE of the agent, now {}): raise it", files + 30);
    let second = unique_name("many");
    let publish = ["run", "-d", "--name", &second, "-p", "20000-20099:20000-20099", "--"];
    let line = host.refused(1, &[&publish[..], &["sleep", "infinity"]].concat());
    assert!(line.contains("port 200") && line.contains(&named), "{line}");
    // None of the ports is held any more, and nothing is left.
    assert_eq!(host.json(&["ps"]).as_array().unwrap().len(), 1);
    host.ok(&["run", "-d", "--name", &second, "-p", "20000:80", "--", "sleep", "infinity"]);
    host.ok(&["rm", "-f", &second]);

    // The limit is just above the descriptors that the agent reserves for connections, which are of
    // /dev/null: accept(2) cannot take a number beyond the limit.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let reserved = open.filter_map(|file| {
        let file = file.unwrap().path();
        let is_null = fs::read_link(&file).is_ok_and(|path| path == Path::new("/dev/null"));
        is_null.then(|| file.file_name().unwrap().to_str().unwrap().parse::<usize>().unwrap())
    });
    let reserved = reserved.max().unwrap() + 1;
    // Each number of files ends the run at another step: none leaves anything.
    for spare in 0..12 {
        limit(reserved + spare);
        let line = host.refused(1, &[&publish[..], &["sleep", "infinity"]].concat());
        assert!(line.contains("too many open files (LimitNOFILE of the agent"), "{spare}: {line}");
        assert!(!container(&second).exists(), "{spare}: {line}");
        assert_eq!(host.json(&["ps"]).as_array().unwrap().len(), 1, "{spare}: {line}");
    }
    limit(4096);
    host.ok(&[&publish[..], &["sleep", "infinity"]].concat());
}
