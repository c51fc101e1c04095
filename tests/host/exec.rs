//! Programs in a sandbox: their mounts, signals, exit codes, detached.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use culvert::{
    model::{Isolation, NamespaceMode, Privileges, RestartPolicy},
    sandbox::{LogLimits, SuperviseSpec},
};
use culvert_tests::netns::{Netns, Process, exit_code, wait_for, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};

use crate::DEADLINE;

/// The supervisor, see `supervisor.rs`.
const SUPERVISOR: &str = env!("CARGO_BIN_EXE_culvert-test-supervisor");

/// A program that counts signals in `$1` and ends on TERM.
const TRAPS: &str = "trap 'echo USR1 >>$1' USR1; trap 'echo INT >>$1' INT; \
                     trap 'echo HUP >>$1' HUP; trap 'exit 7' TERM; \
                     echo ready >>$1; while :; do sleep 0.02; done";

struct Setup {
    netns: Netns,
    files: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { netns: Netns::new("exec"), files: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn spec(&self, command: &[&str]) -> SuperviseSpec {
        SuperviseSpec {
            name: self.netns.name().to_owned(),
            id: None,
            netns: Some(self.netns.path().to_owned()),
            hostname: None,
            etc: None,
            command: command.iter().map(|&part| part.to_owned()).collect(),
            log: None,
            log_limits: LogLimits::default(),
            restart: RestartPolicy::No,
            restarts: None,
            privileges: Privileges::default(),
            isolation: Isolation::default(),
            joins: None,
        }
    }

    fn traps(&self) -> SuperviseSpec {
        self.spec(&["sh", "-c", TRAPS, "sh", self.file("counts").to_str().unwrap()])
    }

    fn supervisor(&self, verb: &str, spec: &SuperviseSpec) -> Command {
        let mut command = Command::new(SUPERVISOR);
        command.arg(verb).arg(serde_json::to_string(spec).unwrap());
        command.env("CULVERT_TEST_NOTES", self.file("notes"));
        command
    }

    fn start(&self, verb: &str, spec: &SuperviseSpec) -> Process {
        Process::spawn(self.supervisor(verb, spec))
    }

    fn run(&self, command: &[&str]) -> (i32, String, String) {
        let mut process = self.start("run", &self.spec(command));
        let code = exit_code(process.wait(DEADLINE));
        (code, process.stdout(), process.stderr())
    }

    fn wait_for_count(&self, line: &str, count: usize) {
        wait_until(DEADLINE, &format!("{count} times {line}"), || {
            self.read("counts").lines().filter(|found| *found == line).count() >= count
        });
    }

    fn count(&self, line: &str) -> usize {
        self.read("counts").lines().filter(|found| *found == line).count()
    }

    /// The pid that `on_start` was called with.
    fn pid(&self) -> Pid {
        wait_for(DEADLINE, "on_start", || {
            let notes = self.read("notes");
            notes.strip_prefix("start ")?.lines().next()?.parse().ok().map(Pid::from_raw)
        })
    }
}

fn is_alive(pid: Pid) -> bool {
    // A zombie that is not reaped yet has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
#[ignore = "needs root"]
fn a_program_sees_its_sandbox() {
    let setup = Setup::new();
    setup.netns.run("ip link add only-here type bridge");
    let (code, stdout, stderr) = setup.run(&["ip", "-o", "link"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("only-here") && stdout.lines().count() == 2, "{stdout}");
    let (code, stdout, stderr) = setup.run(&["ls", "/sys/class/net"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout.split_whitespace().collect::<Vec<_>>(), ["lo", "only-here"]);
    assert!(!Path::new("/sys/class/net/only-here").exists(), "the host's /sys is as before");

    // What is mounted below the host's /sys is still there, unlike with ip netns exec.
    let below = |mounts: &str| -> Vec<String> {
        let mut found: Vec<String> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|point| point.starts_with("/sys/"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let (_, inside, _) = setup.run(&["cat", "/proc/self/mounts"]);
    assert_eq!(below(&inside), below(&fs::read_to_string("/proc/self/mounts").unwrap()));
}

#[test]
#[ignore = "needs root"]
fn files_of_etc_netns_lie_over_etc() {
    struct Etc(PathBuf);
    impl Drop for Etc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
            // Only if no other process uses it.
            let _ = fs::remove_dir("/etc/netns");
        }
    }
    let setup = Setup::new();
    let etc = Etc(Path::new("/etc/netns").join(setup.netns.name()));
    fs::create_dir_all(&etc.0).unwrap();
    fs::write(etc.0.join("hosts"), "10.0.0.2 over1\n").unwrap();
    let (code, stdout, stderr) = setup.run(&["cat", "/etc/hosts"]);
    assert_eq!((code, stdout.as_str()), (0, "10.0.0.2 over1\n"), "{stderr}");
    assert_ne!(fs::read_to_string("/etc/hosts").unwrap(), stdout, "the host's is as before");
}

#[test]
#[ignore = "needs root"]
fn a_container_has_a_name_and_files_of_its_own() {
    let setup = Setup::new();
    let etc = setup.file("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("hosts"), "10.0.0.2 over1\n").unwrap();
    // The host has no such file to mount it on.
    fs::write(etc.join(setup.netns.name()), "").unwrap();
    let mut spec = setup.spec(&["sh", "-c", "uname -n; cat /etc/hosts; ls /etc"]);
    (spec.hostname, spec.etc) = (Some("over1".to_owned()), Some(etc));
    let mut process = setup.start("run", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 0, "{}", process.stderr());
    let stdout = process.stdout();
    assert!(stdout.starts_with("over1\n10.0.0.2 over1\n"), "{stdout}");
    assert!(!stdout.contains(setup.netns.name()), "{stdout}");
    let here = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(here, "over1\n", "the host's name is as before");
}

#[test]
#[ignore = "needs root"]
fn signals_reach_the_program_and_its_end_is_ours() {
    let setup = Setup::new();
    let mut process = setup.start("run", &setup.traps());
    setup.wait_for_count("ready", 1);
    process.signal(Signal::SIGUSR1);
    setup.wait_for_count("USR1", 1);
    process.signal(Signal::SIGHUP);
    setup.wait_for_count("HUP", 1);
    process.signal(Signal::SIGINT);
    setup.wait_for_count("INT", 1);
    let pid = setup.pid();
    assert_eq!(exit_code(process.stop(Signal::SIGTERM, DEADLINE)), 7);
    assert_eq!(setup.read("notes"), format!("start {pid}\nexit 7\n"));
    assert_eq!((setup.count("INT"), setup.count("USR1"), setup.count("HUP")), (1, 1, 1));

    // One that does not catch it is killed by it.
    let mut process = setup.start("run", &setup.spec(&["sleep", "1000"]));
    wait_until(DEADLINE, "sleep has started", || setup.read("notes").matches("start").count() == 2);
    assert_eq!(exit_code(process.stop(Signal::SIGQUIT, DEADLINE)), 128 + 3);
}

#[test]
#[ignore = "needs root"]
fn a_program_does_not_survive_its_supervisor() {
    let setup = Setup::new();
    let mut process = setup.start("run", &setup.traps());
    setup.wait_for_count("ready", 1);
    let pid = setup.pid();
    assert!(is_alive(pid));
    process.stop(Signal::SIGKILL, DEADLINE);
    wait_until(DEADLINE, "the program ends", || !is_alive(pid));
}

/// The same in a private PID namespace, in which the kernel gives process 1 only the signals that
/// it handles.
#[test]
#[ignore = "needs root"]
fn the_first_process_of_a_namespace_gets_signals_and_does_not_survive_its_supervisor() {
    let setup = Setup::new();
    let mut spec = setup.traps();
    spec.isolation.pid = NamespaceMode::Private;
    let mut process = setup.start("run", &spec);
    setup.wait_for_count("ready", 1);
    process.signal(Signal::SIGUSR1);
    setup.wait_for_count("USR1", 1);
    let pid = setup.pid();
    assert_eq!(exit_code(process.stop(Signal::SIGTERM, DEADLINE)), 7);
    assert_eq!(setup.read("notes"), format!("start {pid}\nexit 7\n"));

    let setup = Setup::new();
    let mut spec = setup.spec(&["sleep", "1000"]);
    spec.isolation.pid = NamespaceMode::Private;
    let mut process = setup.start("run", &spec);
    let pid = setup.pid();
    assert!(is_alive(pid));
    process.stop(Signal::SIGKILL, DEADLINE);
    wait_until(DEADLINE, "the program ends", || !is_alive(pid));
}

/// A process behind a terminal, made by script(1).
struct Terminal(Child);

impl Terminal {
    fn new(command: &Command) -> Self {
        let quote =
            |part: &std::ffi::OsStr| format!("'{}'", part.to_str().unwrap().replace('\'', r"'\''"));
        let line = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(quote)
            .collect::<Vec<_>>()
            .join(" ");
        let mut script = Command::new("script");
        script.args(["-qefc", &format!("exec {line}"), "/dev/null"]);
        for (key, value) in command.get_envs() {
            script.env(key, value.unwrap());
        }
        Self(script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn keys(&mut self, keys: &[u8]) {
        let stdin = self.0.stdin.as_mut().unwrap();
        stdin.write_all(keys).unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn ctrl_c_reaches_the_program_once() {
    let setup = Setup::new();
    let counts = setup.file("counts");
    let spec = setup.spec(&[SUPERVISOR, "record", counts.to_str().unwrap()]);
    let mut terminal = Terminal::new(&setup.supervisor("run", &spec));
    setup.wait_for_count("ready", 1);
    for presses in 1..=5 {
        terminal.keys(b"\x03");
        setup.wait_for_count("SIGINT kernel", presses);
    }
    // Through the supervisor, so that it comes after whatever was forwarded before.
    let status = fs::read_to_string(format!("/proc/{}/status", setup.pid())).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    let supervisor = Pid::from_raw(parent.trim().parse().unwrap());
    kill(supervisor, Signal::SIGUSR1).unwrap();
    setup.wait_for_count("SIGUSR1 process", 1);
    assert_eq!((setup.count("SIGINT kernel"), setup.count("SIGINT process")), (5, 0));
    kill(supervisor, Signal::SIGTERM).unwrap();
    let status = terminal.0.wait().unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
#[ignore = "needs root"]
fn a_detached_program_outlives_us_and_logs() {
    let setup = Setup::new();
    // A child of the shell would outlive it and hold the log open.
    let mut spec = setup.spec(&["sh", "-c", "echo hello; ip -o link; exec sleep 1000"]);
    spec.log = Some(setup.file("log"));
    let mut process = setup.start("detach", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 0, "{}", process.stderr());
    let pid = Pid::from_raw(process.stdout().trim().parse().unwrap());
    assert!(is_alive(pid));
    assert_eq!(setup.pid(), pid, "on_start is done when the pid is known");
    assert_ne!(getsid(Some(pid)).unwrap(), getsid(None).unwrap());
    wait_until(DEADLINE, "the log is written", || setup.read("log").contains("lo: <LOOPBACK"));
    assert!(setup.read("log").starts_with("hello\n"));
    kill(pid, Signal::SIGTERM).unwrap();
    let notes = format!("start {pid}\nexit 143\n");
    wait_until(DEADLINE, "on_exit", || setup.read("notes") == notes);

    // One that cannot start says why.
    spec.command = vec!["culvert-no-such-command".to_owned()];
    let mut process = setup.start("detach", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 127);
    assert_eq!(process.stderr(), "culvert-no-such-command: command not found\n");
    assert_eq!(setup.read("notes"), notes);
}

/// Each run is in the sandbox, and all print to one log; a child that outlives its run keeps the log.
#[test]
#[ignore = "needs root"]
fn a_detached_program_is_started_again() {
    let setup = Setup::new();
    let script = "(sleep 1; echo late) & readlink /proc/self/ns/net; exit 3";
    let mut spec = setup.spec(&["sh", "-c", script]);
    spec.log = Some(setup.file("log"));
    spec.restart = RestartPolicy::OnFailure { max: 2 };
    let mut process = setup.start("detach", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 0, "{}", process.stderr());
    wait_until(DEADLINE, "the last end", || setup.read("notes").contains("\nexit 3\n"));
    let notes = setup.read("notes");
    let words: Vec<&str> =
        notes.lines().map(|line| if line.starts_with("start") { "start" } else { line }).collect();
    assert_eq!(words, ["start", "exit 3 before 1", "start", "exit 3 before 2", "start", "exit 3"]);
    wait_until(DEADLINE, "the children's output", || {
        setup.read("log").matches("late").count() == 3
    });
    let log = setup.read("log");
    let inside: std::collections::BTreeSet<&str> =
        log.lines().filter(|line| line.starts_with("net:")).collect();
    assert_eq!(inside.len(), 1, "{log}");
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!inside.contains(here.to_str().unwrap()), "{log}");

    // Its supervisor has gone: a program that does not start yet is tried again.
    fs::remove_file(setup.file("notes")).unwrap();
    let program = setup.file("program");
    spec.command = vec![program.to_str().unwrap().to_owned()];
    (spec.restart, spec.restarts) = (RestartPolicy::Always, Some(5));
    let mut process = setup.start("detach", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 127);
    wait_until(DEADLINE, "a note", || setup.read("notes").starts_with("exit 127 before 6\n"));
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    // Without an argument it ends with 1.
    wait_until(DEADLINE, "it runs", || setup.read("notes").contains("exit 1 before"));
    assert!(setup.read("log").contains("command not found"));
    let pattern = format!("__supervise .*{}", program.display());
    let ended = Command::new("pkill").args(["-TERM", "-f", "--", &pattern]).status().unwrap();
    assert!(ended.success());
    // The signal may come while the program runs, which it ends with 143.
    wait_until(DEADLINE, "its end", || {
        let notes = setup.read("notes");
        notes.lines().last().is_some_and(|line| line == "exit 1" || line == "exit 143")
    });
}

#[test]
#[ignore = "needs root"]
fn mode_host_stays_where_it_is() {
    let setup = Setup::new();
    let mut spec = setup.spec(&["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"]);
    spec.netns = None;
    let mut process = setup.start("run", &spec);
    assert_eq!(exit_code(process.wait(DEADLINE)), 0);
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let expected = format!("{}\n{}\n", own("net").display(), own("mnt").display());
    assert_eq!(process.stdout(), expected);
}
