//! `run`, `exec` and `logs`: commands, their signals, logs and ends.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command},
};

use culvert::api::{Backend as _, Client};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};

use crate::{
    binary::{culvert, run, success, until, words},
    fake::Agent,
};

#[test]
fn run_passes_output_and_exit_code_through_and_reports() {
    let agent = Agent::start();
    let script = "echo out; echo err >&2; exit 42";
    let args = ["run", "--name", "c", "--network", "host", "--", "sh", "-c", script];
    let output = run(&agent.socket(), &args);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "out\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "err\n");
    let calls = agent.fake.calls();
    assert!(calls[0].contains(r#""network":"host""#), "{calls:?}");
    assert_eq!(&calls[1..], ["c runs", "c ended with 42"]);
    // It stays until it is removed, and its name with it.
    assert!(success(&run(&agent.socket(), &["ps"])).contains("exited (42)"));
    assert_eq!(run(&agent.socket(), &args).status.code(), Some(1));
    assert_eq!(success(&run(&agent.socket(), &["rm", "c"])), "c\n");
}

#[test]
fn a_port_for_some_is_not_left_open_to_all() {
    let agent = Agent::start();
    agent.fake.forget_from();
    for line in [
        "run --name c --network overlaynet1 -p 80 --from 192.0.2.0/24 -- true",
        "attach --pid 1 --name c --network overlaynet1 -p 80 --from 192.0.2.0/24",
    ] {
        let output = run(&agent.socket(), &words(line));
        assert_eq!(output.status.code(), Some(1), "{line}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.starts_with("culvert: --from: the agent is of an earlier version"),
            "{error}"
        );
        let calls = agent.fake.calls();
        let undone = ["remove container c force=true", "disconnect overlaynet1 c"];
        assert!(undone.contains(&calls[1].as_str()), "{calls:?}");
    }
}

#[test]
fn run_rm_leaves_nothing() {
    let agent = Agent::start();
    // Options of the command are the command's, with and without '--'.
    let output = run(&agent.socket(), &words("run --name c --network host --rm sh -c true --rm"));
    success(&output);
    let calls = agent.fake.calls();
    assert_eq!(&calls[1..], ["c runs", "c ended with 0", "remove container c force=true"]);
    assert_eq!(success(&run(&agent.socket(), &["ps", "--format", "json"])), "[]\n");
}

#[test]
fn a_command_that_cannot_run_leaves_no_container() {
    let agent = Agent::start();
    for detached in [false, true] {
        for (command, code, why) in [
            ("culvert-no-such-command", 127, "command not found"),
            ("/etc/passwd", 126, "permission denied"),
        ] {
            let mut args = words("run --name c --network host");
            if detached {
                args.push("-d");
            }
            args.push(command);
            let output = run(&agent.socket(), &args);
            assert_eq!(output.status.code(), Some(code), "{args:?}");
            assert!(output.stdout.is_empty(), "{args:?}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(stderr.starts_with(&format!("culvert: {command}: {why}")), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            let calls = agent.fake.calls();
            assert_eq!(&calls[1..], ["remove container c force=true"], "{args:?}");
        }
    }
    let logs = agent.dir.path().join("logs");
    assert_eq!(std::fs::read_dir(logs).unwrap().count(), 0);
}

#[test]
fn run_refused_by_the_agent_runs_nothing() {
    let agent = Agent::start();
    let mark = agent.dir.path().join("mark");
    let mut args = words("run --name c --network nowhere -- touch");
    args.push(mark.to_str().unwrap());
    let output = run(&agent.socket(), &args);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "culvert: network nowhere does not exist: see 'culvert network ls'\n");
    assert!(!mark.exists());
}

#[test]
fn run_passes_names_on_and_tells_what_the_agent_warns_of() {
    let agent = Agent::start();
    agent.fake.warn("container 'c' gets no name server: name one");
    let output = run(&agent.socket(), &words("run --name c --network host -- true"));
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "culvert: container 'c' gets no name server: name one\n");
    for format in ["table", "json"] {
        let line = format!("network create --format {format} {format}");
        let output = run(&agent.socket(), &words(&line));
        assert!(!String::from_utf8(output.stdout).unwrap().contains("name server"), "{format}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), stderr, "{format}");
    }
    assert!(!agent.fake.calls()[0].contains("names"), "an earlier agent is asked as before");
    // This agent answers as one that does not know the options.
    let mark = agent.dir.path().join("mark");
    let mut args = words("run --name d --network overlaynet1 --hostname www --dns 10.0.0.53");
    args.extend(words("--dns-search lan --dns-option ndots:2 --add-host db:10.0.0.9 -- touch"));
    args.push(mark.to_str().unwrap());
    let output = run(&agent.socket(), &args);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("culvert: --dns: the agent is of an earlier version"), "{stderr}");
    assert!(!mark.exists());
    let calls = agent.fake.calls();
    let names = r#""names":{"hostname":"www","servers":["10.0.0.53"],"search":["lan"],"options":["ndots:2"],"hosts":["db:10.0.0.9"]}"#;
    assert!(calls[0].contains(names), "{calls:?}");
    assert_eq!(calls[1..], ["remove container d force=true"]);
}

/// Kills and reaps when dropped, for tests that fail halfway.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

#[test]
fn run_passes_signals_on() {
    let agent = Agent::start();
    let script = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done";
    let args = ["run", "--name", "c", "--network", "host", "--", "sh", "-c", script];
    let mut child = Running(culvert(&agent.socket(), &args).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    child.signal(Signal::SIGUSR1);
    assert_eq!(child.0.wait().unwrap().code(), Some(7));

    success(&run(&agent.socket(), &["rm", "c"]));
    agent.fake.calls();
    let args = words("run --name c --network host -- sleep 1000");
    let mut child = Running(culvert(&agent.socket(), &args).spawn().unwrap());
    until("the report", || agent.fake.calls().contains(&"c runs".to_owned()).then_some(()));
    child.signal(Signal::SIGTERM);
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(agent.fake.calls(), ["c ended with 143"]);
}

#[test]
fn run_tells_an_agent_that_was_away() {
    let agent = Agent::start();
    agent.fake.away_for(4);
    let output = run(&agent.socket(), &words("run --name c --network host --rm -- true"));
    assert_eq!(output.status.code(), Some(0));
    // The end was insisted on, and the start if there was time.
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let calls = agent.fake.calls();
    assert!(calls.ends_with(&words_of(&["c ended with 0", "remove container c force=true"])));

    // A command that runs on is known as soon as the agent is back.
    agent.fake.away_for(4);
    success(&run(&agent.socket(), &words("run --name c --network host -d -- sleep 1000")));
    let rows = until("the report", || {
        let rows = run(&agent.socket(), &["ps", "--format", "json"]);
        let rows: serde_json::Value = serde_json::from_str(success(&rows)).unwrap();
        (rows[0]["state"] == "running").then_some(rows)
    });
    let pid = rows[0]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    until("the end", || agent.fake.calls().contains(&"c ended with 137".to_owned()).then_some(()));
}

fn words_of(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

#[test]
fn a_command_is_started_again_as_its_policy_says() {
    let agent = Agent::start();
    let socket = agent.socket();
    let script = "echo run; exit 3";
    let args = ["run", "--name", "c", "--network", "host", "-d", "--restart", "on-failure:2"];
    success(&run(&socket, &[&args[..], &["--", "sh", "-c", script]].concat()));
    let calls = until("the last end", || {
        let calls = agent.fake.calls();
        // The calls are taken away at each look.
        calls.contains(&"c ended with 3".to_owned()).then_some(calls)
    });
    assert!(!calls.contains(&"c ended with 0".to_owned()), "{calls:?}");
    assert_eq!(success(&run(&socket, &["logs", "c"])), "run\nrun\nrun\n");
    assert!(success(&run(&socket, &["ps"])).contains(" exited (3), 2 restarts "));
    success(&run(&socket, &["rm", "c"]));
    assert!(calls.iter().all(|call| !call.contains("environment")), "asked once");

    // It ends well at the second attempt.
    let mark = agent.dir.path().join("mark");
    let script = "[ -e $0 ] && exit 0; touch $0; exit 1";
    let args = ["run", "--name", "d", "--network", "host", "-d", "--restart", "on-failure"];
    let command = ["--", "sh", "-c", script, mark.to_str().unwrap()];
    success(&run(&socket, &[&args[..], &command].concat()));
    until("its end", || {
        success(&run(&socket, &["ps"])).contains("exited (0), 1 restart").then_some(())
    });
}

#[test]
fn a_signal_to_the_supervisor_ends_a_command_for_good() {
    let agent = Agent::start();
    let socket = agent.socket();
    let supervisor = |name: &str| {
        let name = format!("\"name\":\"{name}\"");
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut found = pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let own = line.contains(socket.to_str().unwrap()) && line.contains("__supervise");
            own && line.contains(&name)
        });
        Pid::from_raw(found.next().unwrap())
    };
    success(&run(&socket, &words("run --name c --network host -d --restart always -- sleep 1000")));
    kill(supervisor("c"), Signal::SIGTERM).unwrap();
    until("its end", || success(&run(&socket, &["ps"])).contains("exited (143)").then_some(()));

    // While no command runs.
    let args = ["run", "--name", "d", "--network", "host", "-d", "--restart", "always"];
    success(&run(&socket, &[&args[..], &["--", "sh", "-c", "exit 9"]].concat()));
    let supervisor = supervisor("d");
    until("a pause", || success(&run(&socket, &["ps"])).contains("restarting (9)").then_some(()));
    kill(supervisor, Signal::SIGTERM).unwrap();
    // The pause may have been over: the signal has then ended the next run.
    until("its end", || {
        let rows = run(&socket, &["ps", "--format", "json"]);
        let rows: serde_json::Value = serde_json::from_str(success(&rows)).unwrap();
        (rows[1]["state"] == "exited").then_some(())
    });
}

#[test]
fn restart_goes_with_d_and_without_rm_and_with_an_agent_that_knows_it() {
    let agent = Agent::start();
    for (line, why) in [
        ("--rm -d --restart always", "--restart always: it does not go with --rm"),
        ("--restart on-failure:3", "--restart on-failure:3: only a command in the background"),
    ] {
        let output = run(&agent.socket(), &words(&format!("run --name c {line} -- true")));
        assert_eq!(output.status.code(), Some(2), "{line}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(&format!("culvert: {why}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(agent.fake.calls().is_empty());
    success(&run(&agent.socket(), &words("run --name c --network host --restart no --rm -- true")));
    agent.fake.calls();

    agent.fake.forget_policies();
    let line = "run --name c --network host -d --restart always -- true";
    let mut command = culvert(&agent.socket(), &words(line));
    let output = command.env("SECRET", "x").current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("culvert: --restart: the agent is of an earlier version"), "{stderr}");
    let calls = agent.fake.calls();
    assert!(calls[0].contains(r#""rerun":{"restart":"always","environment":["#), "{calls:?}");
    assert!(calls[0].contains(r#"["SECRET","x"]"#), "{calls:?}");
    assert!(calls[0].contains(r#""directory":"/","umask":"#), "{calls:?}");
    assert_eq!(calls[1..], ["remove container c force=true"]);
}

#[test]
fn privileges_are_passed_on_and_an_agent_that_does_not_know_them_is_refused() {
    let agent = Agent::start();
    agent.fake.forget_policies();
    let mark = agent.dir.path().join("mark");
    for (options, told, named) in [
        (
            "--user 4711:4712 --cap-drop ALL --cap-add CHOWN",
            r#""privileges":{"user":{"uid":4711,"gid":4712,"groups":[]},"capabilities":"0000000000000001"}"#,
            "--user",
        ),
        ("--cap-drop net_raw", r#""privileges":{"capabilities":"ffffffffffffdfff"}"#, "--cap-drop"),
        ("--pid private", r#""isolation":{"pid":"private"}"#, "--pid"),
        ("--ipc private --pid host", r#""isolation":{"ipc":"private"}"#, "--ipc"),
        (
            "--read-only --tmpfs /tmp:size=1m --tmpfs /run",
            r#""isolation":{"read_only":true,"tmpfs":["/tmp:size=1m","/run"]}"#,
            "--read-only",
        ),
    ] {
        let line = format!("run --name c --network host {options} -- touch");
        let mut args = words(&line);
        args.push(mark.to_str().unwrap());
        let output = run(&agent.socket(), &args);
        assert_eq!(output.status.code(), Some(1), "{options}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let expected = format!("culvert: {named}: the agent is of an earlier version");
        assert!(stderr.starts_with(&expected), "{stderr}");
        let calls = agent.fake.calls();
        assert!(calls[0].contains(told), "{calls:?}");
        assert_eq!(calls[1..], ["remove container c force=true"]);
        assert!(!mark.exists());
    }
    for (options, why) in [
        ("--user culvert-nobody", "--user: this host has no user \"culvert-nobody\""),
        ("--user 4294000001", "--user 4294000001: this host has no user of that number"),
    ] {
        let line = format!("run --name c --network host {options} -- true");
        let output = run(&agent.socket(), &words(&line));
        assert_eq!(output.status.code(), Some(1), "{options}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(&format!("culvert: {why}")), "{stderr}");
    }
    for (options, code, why) in [
        ("--tmpfs /nonexistent", 1, "--tmpfs /nonexistent: this host has no such directory"),
        ("--tmpfs /tmp --tmpfs /tmp/a:ro", 2, "--tmpfs /tmp/a:ro: it is inside --tmpfs /tmp, "),
    ] {
        let line = format!("run --name c --network host {options} -- true");
        let output = run(&agent.socket(), &words(&line));
        assert_eq!(output.status.code(), Some(code), "{options}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.starts_with(&format!("culvert: {why}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert!(agent.fake.calls().is_empty(), "the agent was not asked");
}

#[test]
#[ignore = "needs root"]
fn commands_have_the_user_and_the_capabilities_that_are_given() {
    let agent = Agent::start();
    let script = "id -u; id -G; grep -E '^Cap(Eff|Bnd)' /proc/self/status";
    let options = ["run", "--name", "c", "--network", "host", "--user", "4711:4712"];
    let rest = ["--cap-drop", "ALL", "--cap-add", "NET_RAW", "--", "sh", "-c", script];
    let limited = "4711\n4712\nCapEff:\t0000000000000000\nCapBnd:\t0000000000002000\n";
    assert_eq!(success(&run(&agent.socket(), &[&options[..], &rest[..]].concat())), limited);
    assert_eq!(success(&run(&agent.socket(), &["exec", "c", "--", "sh", "-c", script])), limited);
    // A file that only root can execute.
    let secret = agent.dir.path().join("secret");
    std::fs::write(&secret, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let output = run(&agent.socket(), &["exec", "c", "--", secret.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(126));
}

/// Gives a command a new terminal, as its controlling one. Returns the other end.
fn on_terminal(command: &mut Command) -> File {
    let master = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let unlocked: libc::c_int = 0;
    // SAFETY: the number is there as long as the call takes.
    let answer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    assert_eq!(answer, 0, "{}", io::Error::last_os_error());
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is a number.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: nobody else has the descriptor, which the kernel has just made.
    let slave = unsafe { OwnedFd::from_raw_fd(fd) };
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    // SAFETY: between fork and exec this makes system calls alone.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    master
}

/// A command with less privileges could type into the terminal what the user's shell carries out.
#[test]
#[ignore = "needs root"]
fn a_command_of_another_user_does_not_have_the_terminal() {
    let agent = Agent::start();
    // Linux from 6.2 on may have forbidden it to all programs.
    let setting = std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti");
    let is_forbidden = setting.is_ok_and(|setting| setting.trim() == "0");
    for (number, options) in ["--user 4711:4711", "--cap-drop ALL", ""].into_iter().enumerate() {
        let name = format!("c{number}");
        let mut line = vec!["run", "--name", &name, "--network", "host"];
        line.extend(options.split_whitespace());
        // Number, session and terminal of the process.
        let script = "cut -d' ' -f1,6,7 /proc/$$/stat; sleep 100; echo late";
        line.extend(["--", "sh", "-c", script]);
        let mut command = culvert(&agent.socket(), &line);
        let mut master = on_terminal(&mut command);
        let mut child = command.spawn().unwrap();
        // Its copies of the terminal: reading ends with the last one.
        drop(command);
        let mut lines = BufReader::new(master.try_clone().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let [pid, session, terminal] = *words(first.trim()) else { panic!("{first}") };
        let is_apart = !options.is_empty() && !is_forbidden;
        assert_eq!((pid == session, terminal == "0"), (is_apart, is_apart), "{options}: {first}");
        // Ctrl-C ends all of the command.
        master.write_all(b"\x03").unwrap();
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        assert!(!rest.iter().any(|line| line.contains("late")), "{options}: {rest:?}");
        assert_eq!(child.wait().unwrap().code(), Some(130), "{options}");
    }
}

#[test]
fn a_value_that_cannot_be_kept_is_not_printed() {
    let agent = Agent::start();
    let line = "run --name c --network host -d --restart always -- true";
    let mut command = culvert(&agent.socket(), &words(line));
    let value = std::ffi::OsStr::from_bytes(b"secret\xff");
    let output = command.env("TOKEN", value).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the value of environment variable TOKEN is not UTF-8"), "{stderr}");
    assert!(!stderr.contains("secret"), "{stderr}");
    assert!(agent.fake.calls().is_empty());
}

#[test]
fn exec_runs_in_the_container_and_reports_nothing() {
    let agent = Agent::start();
    success(&run(&agent.socket(), &words("run --name c --network host -- true")));
    agent.fake.calls();
    let output = run(&agent.socket(), &["exec", "c", "--", "sh", "-c", "echo $0; exit 3", "-x"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"-x\n");
    let output = run(&agent.socket(), &["exec", "c", "culvert-no-such-command"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(agent.fake.calls().is_empty());
}

#[test]
fn run_detached_keeps_a_log_that_logs_shows() {
    let agent = Agent::start();
    let socket = agent.socket();
    let release = agent.dir.path().join("release");
    let script =
        "echo one; echo two >&2; while [ ! -e $0 ]; do sleep 0.01; done; echo three; exit 5";
    let release_path = release.to_str().unwrap();
    let args =
        ["run", "--name", "c", "--network", "host", "-d", "--", "sh", "-c", script, release_path];
    // Returns while the command runs, with its pipes closed.
    assert_eq!(success(&run(&socket, &args)), "c\n");
    until("its output", || (success(&run(&socket, &["logs", "c"])) == "one\ntwo\n").then_some(()));
    let refused = run(&socket, &["rm", "c"]);
    assert_eq!(refused.status.code(), Some(1));

    let mut follow = Running(culvert(&socket, &["logs", "-f", "c"]).spawn().unwrap());
    let mut followed = BufReader::new(follow.0.stdout.take().unwrap());
    let mut text = String::new();
    followed.read_line(&mut text).unwrap();
    followed.read_line(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n");
    std::fs::write(&release, "").unwrap();
    followed.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree\n");
    assert_eq!(follow.0.wait().unwrap().code(), Some(0));

    let row = until("its end", || {
        let rows = run(&socket, &["ps", "--format", "json"]);
        let rows: serde_json::Value = serde_json::from_str(success(&rows)).unwrap();
        (rows[0]["exit_code"] == 5).then(|| rows[0].clone())
    });
    let log = Path::new(row["log"].as_str().unwrap()).to_owned();
    assert_eq!(log, agent.dir.path().join("logs/c.log"));
    assert_eq!(success(&run(&socket, &["rm", "c"])), "c\n");
    assert!(!log.exists());

    // A new container of the name does not show the old one's output.
    std::fs::write(&log, "stale\n").unwrap();
    let output = run(&socket, &words("run --name c --network host -d --format json -- echo fresh"));
    let rows: serde_json::Value = serde_json::from_str(success(&output)).unwrap();
    assert_eq!(rows[0]["name"], "c");
    assert!(rows[0]["pid"].as_i64().unwrap() > 0);
    until("its output", || (success(&run(&socket, &["logs", "c"])) == "fresh\n").then_some(()));
}

#[test]
fn run_detached_rm_leaves_nothing() {
    let agent = Agent::start();
    success(&run(&agent.socket(), &words("run --name c --network host -d --rm -- true")));
    until("the removal", || {
        let output = run(&agent.socket(), &["ps", "--format", "json"]);
        (success(&output) == "[]\n").then_some(())
    });
    until("the log's end", || (!agent.dir.path().join("logs/c.log").exists()).then_some(()));
}

#[test]
fn a_log_has_a_size_and_its_files_are_read_in_order() {
    let agent = Agent::start();
    let socket = agent.socket();
    // Half a megabyte in files of 100 kB, of which three are kept.
    let mut args = words(
        "run --name c --network host -d --log-opt max-size=100k --log-opt max-file=3 -- seq 80000",
    );
    assert_eq!(success(&run(&socket, &args)), "c\n");
    let text = until("the last line", || {
        let text = success(&run(&socket, &["logs", "c"])).to_owned();
        text.ends_with("\n80000\n").then_some(text)
    });
    let first: u32 = text.lines().next().unwrap().parse().unwrap();
    let expected: String = (first..=80_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text, expected);
    assert!(text.len() > 200_000 && text.len() <= 300_000, "{}", text.len());
    let logs = agent.dir.path().join("logs");
    let files = || {
        let files = std::fs::read_dir(&logs).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(files(), ["c.log", "c.log.1", "c.log.2"]);
    assert_eq!(success(&run(&socket, &["rm", "c"])), "c\n");
    assert_eq!(files(), [""; 0]);

    // Without a limit nothing of this is lost.
    args.retain(|arg| !arg.starts_with("max-") && *arg != "--log-opt");
    success(&run(&socket, &args));
    let expected: String = (1..=80_000).map(|n| format!("{n}\n")).collect();
    until("all lines", || (success(&run(&socket, &["logs", "-f", "c"])) == expected).then_some(()));

    for wrong in [
        "run --name d --log-opt max-size=1m -- true",
        "run --name d -d --log-opt max-size=1 -- true",
    ] {
        let output = run(&socket, &words(wrong));
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{wrong}");
    }
}

#[test]
fn a_verb_ends_within_its_timeout_and_names_who_is_hung() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    // Accepts into its backlog and says nothing.
    let _hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let hung = |line: &str| {
        let began = std::time::Instant::now();
        let output = run(&socket, &words(&format!("--timeout 300ms {line}")));
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{line}");
        assert_eq!(output.status.code(), Some(1), "{line}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{line}: {stderr}");
        let pid = format!("x.sock, pid {}, has not answered within 0.3 s", std::process::id());
        assert!(stderr.contains(&pid), "{line}: {stderr}");
    };
    for line in [
        "ps",
        "status",
        "stats",
        "fdb show",
        "neigh show",
        "nat ls",
        "vtep ls",
        "network ls",
        "network inspect a b",
        "network rm a b c",
        "network create a",
        "rm a b c",
        "logs a",
        "logs -f a",
        "exec a -- true",
        "run --name a -- true",
        "run --name a -d -- true",
        "detach a",
        "attach --pid 1 --name a --network b",
        "purge",
    ] {
        hung(line);
    }
    let mut command = culvert(&socket, &["ps"]);
    let output = command.env("CULVERT_TIMEOUT", "100ms").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("within 0.1 s"));
}

#[test]
fn ps_names_the_container_whose_network_is_shared() {
    let agent = Agent::start();
    let client = Client::new(agent.socket());
    let created = client.container_create(crate::api::container("c", "container:web"));
    tokio::runtime::Runtime::new().unwrap().block_on(created).unwrap();
    assert!(success(&run(&agent.socket(), &["ps"])).contains(" container:web "));
    let rows = run(&agent.socket(), &["ps", "--format", "json"]);
    let rows: serde_json::Value = serde_json::from_str(success(&rows)).unwrap();
    assert_eq!((&rows[0]["mode"], &rows[0]["shares"]), (&"container".into(), &"web".into()));
}
