//! What the agent and the commands of containers may do, and who can read what the agent writes.

use std::{fs, path::Path, process::Command};

use culvert_tests::{
    cluster::{Cluster, Host, SOON, unique_name},
    netns::{Process, wait_until},
};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A value in a file like `/proc/PID/status`.
fn value(status: &Path, name: &str) -> String {
    value_in(&fs::read_to_string(status).unwrap_or_default(), name)
}

/// The contents of the file `status` of each thread of a process. Each is read once: a thread may
/// end meanwhile.
fn threads(pid: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let texts: Vec<_> = texts.filter(|text| !text.is_empty()).collect();
    assert!(texts.len() > 1);
    texts
}

/// A value in a text like `/proc/PID/status`.
fn value_in(text: &str, name: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(found, _)| *found == name);
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

/// The row of a container in `ps`.
fn row(host: &Host, name: &str) -> serde_json::Value {
    let rows = host.json(&["ps"]);
    let found = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name));
    found.cloned().unwrap_or_default()
}

/// Starts a detached container that is started again, and kills its supervisor once it has printed
/// `lines` lines. Returns what it has printed before and afterwards.
fn printed_twice(
    host: &Host,
    name: &str,
    options: &[&str],
    script: &str,
    lines: usize,
) -> [Vec<String>; 2] {
    let head = ["run", "-d", "--name", name, "--restart", "always"];
    host.ok(&[&head, options, &["--", "sh", "-c", script]].concat());
    let log = || -> Vec<String> { host.ok(&["logs", name]).lines().map(str::to_owned).collect() };
    wait_until(SOON, "the first start", || log().len() == lines);
    let pid = row(host, name)["pid"].to_string();
    let supervisor = value(Path::new(&format!("/proc/{pid}/status")), "PPid");
    let supervisor: i32 = supervisor.parse().unwrap_or_else(|error| unreachable!("{pid}: {error}"));
    assert!(kill(Pid::from_raw(supervisor), Signal::SIGKILL).is_ok());
    wait_until(SOON, "the second start", || log().len() == 2 * lines);
    let mut before = log();
    let after = before.split_off(lines);
    [before, after]
}

/// The agent has the capabilities that it needs, in each of its threads. A command that it starts
/// again has all that it had when `run` has started it.
#[test]
#[ignore = "needs root"]
fn the_agent_gives_up_capabilities_and_commands_have_them() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let agent = host.json(&["status"])["agent"]["pid"].to_string();
    // Numbers of linux/capability.h.
    let (needed, given_up) = ([12, 21, 39], [0, 16, 22, 25, 27]);
    for thread in threads(&agent) {
        for set in ["CapEff", "CapPrm"] {
            let has = u64::from_str_radix(&value_in(&thread, set), 16);
            let has = has.unwrap_or_else(|error| unreachable!("{thread}: {error}"));
            assert!(needed.iter().all(|number| has >> number & 1 == 1), "{set}: {has:x}");
            assert!(given_up.iter().all(|number| has >> number & 1 == 0), "{set}: {has:x}");
        }
        let own = value(Path::new("/proc/self/status"), "CapBnd");
        assert_eq!(value_in(&thread, "CapBnd"), own);
    }

    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; exec sleep 1000";
    let name = unique_name("caps");
    let [before, after] = printed_twice(host, &name, &["--network", "none"], script, 7);
    assert_eq!(before, after);
    assert_eq!(before[2].split_once('\t').map(|(name, _)| name), Some("CapEff:"), "{before:?}");
    let own = value(Path::new("/proc/self/status"), "CapEff");
    assert!(before[2].ends_with(&own), "{before:?}: {own}");
    host.ok(&["rm", "-f", &name]);
}

/// The process that starts the supervisors of an agent.
fn starter_of(agent: &str) -> i32 {
    let found = Command::new("pgrep").args(["-P", agent, "-f", "__starter"]).output();
    let found = found.unwrap_or_else(|error| unreachable!("pgrep: {error}"));
    let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    pid.parse().unwrap_or_else(|error| unreachable!("{pid:?}: {error}"))
}

/// The values of `no_new_privs` and seccomp of a process.
fn limits_of(pid: &str) -> [String; 2] {
    ["NoNewPrivs", "Seccomp"].map(|name| value(Path::new(&format!("/proc/{pid}/status")), name))
}

/// Each thread of the agent has `no_new_privs` and the seccomp filter. A command has neither, also
/// when the agent starts it again, and no file but its three. `--seccomp off` turns both off.
/// Without its starter, the agent starts no command again and says so; the next agent does.
#[test]
#[ignore = "needs root"]
fn the_agent_limits_itself_and_no_command() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let own = limits_of("self");
    let pid = host.json(&["status"])["agent"]["pid"].to_string();
    for thread in threads(&pid) {
        assert_eq!(["NoNewPrivs", "Seccomp"].map(|name| value_in(&thread, name)), ["1", "2"]);
    }
    let starter = starter_of(&pid);
    assert_eq!(limits_of(&starter.to_string()), own);
    // Orders that wait take files.
    let raised = || {
        let limits = fs::read_to_string(format!("/proc/{starter}/limits")).unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let mut numbers = line.unwrap_or_default().split_whitespace();
        let soft = numbers.next();
        soft.is_some() && soft == numbers.next()
    };
    wait_until(SOON, "its limit of open files", raised);

    let script = "ls -m /proc/$$/fd; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; \
                  exec sleep 1000";
    let name = unique_name("free");
    let [before, after] = printed_twice(host, &name, &["--network", "none"], script, 3);
    assert_eq!(before, after);
    let shell = Command::new("sh").args(["-c", "ls -m /proc/$$/fd"]).output();
    let shell = shell.unwrap_or_else(|error| unreachable!("sh: {error}"));
    assert_eq!(after[0], String::from_utf8_lossy(&shell.stdout).trim_end(), "open files");
    let values: Vec<_> = after.iter().filter_map(|line| line.split_once('\t')).collect();
    assert_eq!(values.iter().map(|(_, value)| *value).collect::<Vec<_>>(), own);

    assert!(kill(Pid::from_raw(starter), Signal::SIGKILL).is_ok());
    let told = |words: &str| host.json(&["status"])["problems"].to_string().contains(words);
    wait_until(SOON, "the problem", || told("starter: the process that starts commands again"));
    let supervisors = format!("--socket {} .*__supervise", host.socket().display());
    let killed = Command::new("pkill").args(["-KILL", "-f", "--", &supervisors]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    wait_until(SOON, "the refusal", || told("starter process has ended: restart the agent"));

    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&["--seccomp", "off"]);
    host.wait_ready();
    let lines = || host.ok(&["logs", &name]).lines().count();
    wait_until(SOON, "the third start", || lines() == 9);
    assert_eq!(limits_of(&host.json(&["status"])["agent"]["pid"].to_string()), own);
    assert!(!host.json(&["status"])["problems"].to_string().contains("starter"));
    host.ok(&["rm", "-f", &name]);
}

/// The kernel ends the starter with its agent. It would carry out orders that the next agent does
/// not know of.
#[test]
#[ignore = "needs root"]
fn a_starter_ends_with_its_agent_even_when_it_is_stopped() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let starter = starter_of(&host.json(&["status"])["agent"]["pid"].to_string());
    assert!(kill(Pid::from_raw(starter), Signal::SIGSTOP).is_ok());
    let status = format!("/proc/{starter}/status");
    let state = || value(Path::new(&status), "State");
    wait_until(SOON, "its stop", || state().starts_with('T'));
    host.stop_agent(Signal::SIGKILL);
    // Whoever has become its parent may not have waited for it.
    wait_until(SOON, "its end", || state().is_empty() || state().starts_with('Z'));
}

/// `--user` and `--cap-drop` hold for the command, for the command that the agent starts again, and
/// for those of `exec`. Such a command reads its files in `/etc`, and opens its standard output.
#[test]
#[ignore = "needs root"]
fn user_and_capabilities_hold_for_every_command_of_a_container() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let show = "id -u; id -G; grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status";
    let script = format!("({show}) >/dev/stdout; grep -c localhost /etc/hosts; exec sleep 1000");
    let name = unique_name("user");
    let options =
        ["--network", "bridge", "--user", "4711:4712", "--cap-drop", "all", "--cap-add", "NET_RAW"];
    let [before, after] = printed_twice(host, &name, &options, &script, 6);
    assert_eq!(before, after);
    let limited = [
        "4711",
        "4712",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000002000",
    ];
    assert_eq!(before[..5], limited);
    let in_a_second_command = host.ok(&["exec", &name, "--", "sh", "-c", show]);
    assert_eq!(in_a_second_command.lines().collect::<Vec<_>>(), limited);

    // The agent looks at processes of other users, and ends them.
    wait_until(SOON, "its pid", || row(host, &name)["pid"].is_number());
    let pid = row(host, &name)["pid"].to_string();
    host.ok(&["rm", "-f", &name]);
    // Its supervisor reaps it.
    let process = format!("/proc/{pid}");
    wait_until(SOON, "its end", || !Path::new(&process).exists());

    // Without --user the command is root, and has no more capabilities either.
    let name = unique_name("user");
    let run = ["run", "--rm", "--name", &name, "--network", "none"];
    let printed = host.ok(&[&run[..], &["--cap-drop", "ALL", "--", "sh", "-c", show]].concat());
    assert_eq!(printed.lines().next(), Some("0"));
    let sets: Vec<_> = printed.lines().filter_map(|line| line.split_once('\t')).collect();
    assert!(sets.iter().all(|(_, set)| *set == "0000000000000000"), "{printed}");
    let line = host.refused(1, &[&run[..], &["--user", "culvert-nobody", "--", "true"]].concat());
    assert!(line.contains("has no user \"culvert-nobody\""), "{line}");
}

/// System V shared memory of the host, removed on drop.
struct Segment(i32);

impl Segment {
    fn new() -> Self {
        // SAFETY: the arguments are numbers.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600) };
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        Self(id)
    }

    /// Whether the text of `/proc/sysvipc/shm` has it.
    fn is_in(&self, list: &str) -> bool {
        let id = self.0.to_string();
        list.lines().any(|line| line.split_whitespace().nth(1) == Some(id.as_str()))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: this command does not use the address.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// `--pid private` and `--ipc private` hold for the command, for the command that the agent starts
/// again, and for those of `exec`, which see what the first one has.
#[test]
#[ignore = "needs root"]
fn a_command_in_private_namespaces_sees_only_its_own() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let segment = Segment::new();
    let list = ["--", "cat", "/proc/sysvipc/shm"];
    let once = |options: &[&str], command: &[&str]| {
        let name = unique_name("once");
        let run = ["run", "--rm", "--name", &name, "--network", "none"];
        host.ok(&[&run[..], options, command].concat())
    };
    assert!(segment.is_in(&once(&[], &list)));
    assert!(segment.is_in(&once(&["--pid", "private"], &list)));
    assert_eq!(once(&["--ipc", "private"], &list).lines().count(), 1, "the heading");

    let script = "echo $$ /proc/[0-9]*; wc -l </proc/sysvipc/shm; ls /dev/shm | wc -l; \
                  touch /dev/shm/own; sleep 1001 & exec sleep 1000";
    let name = unique_name("apart");
    let options = ["--network", "bridge", "--pid", "private", "--ipc", "private"];
    let [before, after] = printed_twice(host, &name, &options, script, 3);
    assert_eq!(before, after);
    assert_eq!(before, ["1 /proc/1", "1", "0"]);
    let isolation = row(host, &name)["isolation"].clone();
    assert_eq!(isolation, serde_json::json!({"pid": "private", "ipc": "private"}));

    let process = || format!("/proc/{}", row(host, &name)["pid"]);
    let program = || fs::read_to_string(format!("{}/comm", process())).unwrap_or_default();
    wait_until(SOON, "its last program", || program() == "sleep\n");
    let show = "cat /proc/1/comm; wc -l </proc/sysvipc/shm; ls /dev/shm";
    let in_a_second_command = host.ok(&["exec", &name, "--", "sh", "-c", show]);
    assert_eq!(in_a_second_command.lines().collect::<Vec<_>>(), ["sleep", "1", "own"]);

    // All its processes end with it.
    let pid = row(host, &name)["pid"].to_string();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children: Vec<_> = children.iter().flat_map(|all| all.split_whitespace()).collect();
    assert_eq!(children.len(), 1);
    host.ok(&["rm", "-f", &name]);
    for pid in [pid.as_str(), children[0]] {
        let process = format!("/proc/{pid}");
        wait_until(SOON, "its end", || !Path::new(&process).exists());
    }

    // Exit codes and errors are as without the options, in every mode.
    for network in ["host", "none", "bridge"] {
        let options = ["--network", network, "--pid", "private", "--"];
        let (first, second) = (unique_name("exit"), unique_name("exit"));
        let run = ["run", "--rm", "--name", &first];
        let shell = ["sh", "-c", "exit $((41 + $$))"];
        let shell = host.culvert(&[&run[..], &options, &shell].concat());
        assert_eq!(shell.status.code(), Some(42), "{network}: {shell:?}");
        let run = ["run", "--rm", "--name", &second];
        let line = host.refused(127, &[&run[..], &options, &["culvert-no-such"]].concat());
        assert!(line.ends_with("command not found"), "{line}");
    }
}

/// In a user namespace of its own a command mounts what it wants. A program of `exec` that saw
/// these mounts, but is outside of that user namespace, would believe them.
#[test]
#[ignore = "needs root"]
fn no_second_command_enters_mounts_that_the_first_one_has_made_in_a_user_namespace() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let options = ["--network", "none", "--user", "4711:4711", "--cap-drop", "ALL"];
    for isolation in [&["--pid", "private"][..], &["--ipc", "private"], &["--read-only"]] {
        let start = |command: &[&str]| {
            let name = unique_name("userns");
            let head = ["run", "-d", "--name", &name];
            host.ok(&[&head[..], &options, isolation, &["--"], command].concat());
            let program = || format!("/proc/{}/comm", row(host, &name)["pid"]);
            wait_until(SOON, "its last program", || {
                fs::read_to_string(program()).is_ok_and(|comm| comm == "sleep\n")
            });
            name
        };
        let name = start(&["sleep", "1000"]);
        assert_eq!(host.ok(&["exec", &name, "--", "id", "-u"]), "4711", "{isolation:?}");
        host.ok(&["rm", "-f", &name]);
        let name = start(&["unshare", "--user", "--map-root-user", "--mount", "sleep", "1000"]);
        let line = host.refused(1, &["exec", &name, "--", "true"]);
        assert!(line.contains("namespaces of another user namespace"), "{isolation:?}: {line}");
        host.ok(&["rm", "-f", &name]);
    }
}

/// The kernel ends a private PID namespace only when the supervisor of `exec` has waited for its
/// program.
#[test]
#[ignore = "needs root"]
fn a_stopped_second_command_does_not_keep_the_first_one() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let name = unique_name("stopped");
    let run = ["run", "-d", "--name", &name, "--network", "none", "--restart", "always"];
    host.ok(&[&run[..], &["--pid", "private", "--", "sleep", "1000"]].concat());
    let exec = ["exec", &name, "--", "sh", "-c", "echo ready; exec sleep 900"];
    let mut second = Process::spawn(host.culvert_command(&exec));
    wait_until(SOON, "the second command", || second.stdout() == "ready\n");
    second.signal(Signal::SIGSTOP);
    let status = format!("/proc/{}/status", second.pid());
    wait_until(SOON, "its stop", || value(Path::new(&status), "State").starts_with('T'));
    host.ok(&["rm", "-f", &name]);
    assert_eq!(second.wait(SOON).code(), Some(137));
    let line = format!("container '{name}': pid {} was stopped", second.pid());
    assert!(host.agent_log().contains(&line), "{}", host.agent_log());
}

/// The working directory is not a way past the file systems of `--ipc private` and `--pid private`.
#[test]
#[ignore = "needs root"]
fn the_working_directory_is_the_commands_own() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let printed = |directory: &str, options: &[&str], command: &[&str]| {
        let name = unique_name("directory");
        let run = ["run", "--rm", "--name", &name, "--network", "none"];
        let mut run = host.culvert_command(&[&run[..], options, &["--"], command].concat());
        let output = run.current_dir(directory).output();
        let output = output.unwrap_or_else(|error| unreachable!("{run:?}: {error}"));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mark = Path::new("/dev/shm").join(unique_name("mark"));
    assert!(fs::write(&mark, "").is_ok());
    let all = printed("/dev/shm", &[], &["ls"]);
    let own = printed("/dev/shm", &["--ipc", "private"], &["ls"]);
    assert!(fs::remove_file(&mark).is_ok());
    let name = mark.file_name().unwrap_or_default().display().to_string();
    let has = |list: &str| list.lines().any(|line| line == name);
    assert!(has(&all) && !has(&own), "{name}: {all}{own}");
    let shown = ["readlink", "/proc/self/cwd"];
    assert_eq!(printed("/proc/1", &["--ipc", "private"], &shown), "/proc/1\n");
    assert_eq!(printed("/proc/1", &["--pid", "private"], &shown), "/\n");
}

/// `--tmpfs` on a directory above the state directory does not hide the container's names.
#[test]
#[ignore = "needs root"]
fn a_command_that_does_not_see_the_state_directory_has_its_names() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let directory = host.dir().display().to_string();
    let name = unique_name("names");
    let run = ["run", "--rm", "--name", &name, "--network", "bridge", "--read-only"];
    let options = ["--add-host", "far:192.0.2.9", "--tmpfs", &directory];
    let script = format!(
        "ls {directory} | wc -l; grep -c 192.0.2.9 /etc/hosts; \
         (echo >>/etc/hosts) 2>/dev/null || echo kept"
    );
    let printed = host.ok(&[&run[..], &options, &["--", "sh", "-c", &script]].concat());
    assert_eq!(printed.lines().collect::<Vec<_>>(), ["0", "1", "kept"]);
}

/// `--read-only` and `--tmpfs` hold for the command, for the command that the agent starts again,
/// and for those of `exec`.
#[test]
#[ignore = "needs root"]
fn a_read_only_command_writes_to_its_own_file_systems_only() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let (own, mark) = (host.dir().join("own"), host.dir().join("mark"));
    assert!(fs::create_dir(&own).is_ok());
    let (inside, mark) = (format!("{}/x", own.display()), mark.display().to_string());
    let theirs = [mark.as_str(), "/etc/hosts", "/proc/sys/kernel/hostname"];
    let writable = [inside.as_str(), "/dev/null", "/proc/self/comm"];
    let files = [theirs, writable].concat().join(" ");
    let try_all = "do (echo x >$file) 2>/dev/null && echo $file; done";
    let script = format!("for file in {files}; {try_all}; exec sleep 1000");
    let tmpfs = format!("{}:size=1m,mode=700", own.display());
    let read_only = ["--network", "bridge", "--read-only", "--tmpfs", &tmpfs];
    let private = ["--pid", "private", "--ipc", "private"];
    for more in [&private[..0], &private[..]] {
        let name = unique_name("readonly");
        let options = [&read_only[..], more].concat();
        let [before, after] = printed_twice(host, &name, &options, &script, writable.len());
        assert_eq!(before, after);
        assert_eq!(before, writable, "{more:?}");
        wait_until(SOON, "its pid", || row(host, &name)["pid"].is_number());
        assert_eq!(host.ok(&["exec", &name, "--", "cat", &inside]), "x");
        let write = format!("echo x >{mark}");
        let refused = host.culvert(&["exec", &name, "--", "sh", "-c", &write]);
        assert!(!refused.status.success(), "{more:?}: {refused:?}");
        host.ok(&["rm", "-f", &name]);
        assert!(!Path::new(&mark).exists() && !Path::new(&inside).exists());
    }
}

/// A command without capabilities does not undo the options. They need none of its privileges. A
/// command with all capabilities does, so the script tries what would work.
#[test]
#[ignore = "needs root"]
fn a_command_without_capabilities_stays_apart() {
    let cluster = Cluster::new(1);
    let host = &cluster.hosts[0];
    let script = "id -u; echo $$; mount -o remount,bind,rw / 2>/dev/null || echo kept; \
                  umount -l /proc 2>/dev/null || echo kept; touch /tmp/x && echo wrote";
    for (user, expected) in [
        (&["--user", "4711:4712", "--cap-drop", "ALL"][..], &["4711", "1", "kept", "kept"][..]),
        (&["--cap-drop", "ALL"][..], &["0", "1", "kept", "kept"][..]),
        (&[][..], &["0", "1"][..]),
    ] {
        let name = unique_name("apart");
        let run = ["run", "--rm", "--name", &name, "--network", "bridge"];
        let options = ["--pid", "private", "--ipc", "private", "--read-only", "--tmpfs", "/tmp"];
        let printed = host.ok(&[&run[..], user, &options, &["--", "sh", "-c", script]].concat());
        assert_eq!(printed.lines().collect::<Vec<_>>(), [expected, &["wrote"]].concat());
    }
}

/// The files and directories below `directory` on which other users have a permission. The files of
/// containers in `/etc` are mounted for all users.
fn open_to_others(directory: &Path) -> String {
    let mut find = Command::new("find");
    find.arg(directory).args(["!", "-type", "l", "-perm", "/077"]);
    find.args(["!", "(", "-type", "f", "-path", "*/state/etc/*/*", ")"]);
    let output = find.output().unwrap_or_else(|error| unreachable!("find: {error}"));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// No other user can read the state directory, also not that of an earlier version.
#[test]
#[ignore = "needs root"]
fn the_state_directory_is_for_the_agents_user() {
    let mut cluster = Cluster::new(1);
    let host = &mut cluster.hosts[0];
    let state = host.dir().join("state");
    let name = unique_name("secret");
    let run = ["run", "-d", "--name", &name, "--network", "bridge", "--restart", "always"];
    host.ok(&[&run[..], &["--", "sh", "-c", "echo secret; exec sleep 1000"]].concat());
    wait_until(SOON, "its log", || host.ok(&["logs", &name]).contains("secret"));
    host.ok(&["ports", "deny", "192.0.2.7"]);
    for file in ["containers", "logs", "reruns", "etc", "denied", "node-id"] {
        assert!(state.join(file).exists(), "{file}");
    }
    assert_eq!(open_to_others(&state), "");

    host.stop_agent(Signal::SIGTERM);
    let mut chmod = Command::new("chmod");
    assert!(chmod.args(["-R", "go+rX"]).arg(&state).status().is_ok_and(|it| it.success()));
    host.start_agent(&[]);
    host.wait_ready();
    assert_eq!(open_to_others(&state), "");
    let repairs = host.json(&["status"])["repairs"].to_string();
    assert!(repairs.contains("\"permission\""), "{repairs}");
    assert!(host.agent_log().contains("other users had permissions on"));
    // What was tightened is still used, and nothing is left to do for the next agent.
    assert!(host.ok(&["logs", &name]).contains("secret"));
    host.stop_agent(Signal::SIGTERM);
    host.start_agent(&[]);
    host.wait_ready();
    let repairs = host.json(&["status"])["repairs"].to_string();
    assert!(!repairs.contains("\"permission\""), "{repairs}");
    host.ok(&["rm", "-f", &name]);
}
