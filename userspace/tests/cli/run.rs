//! `run`, `exec` and `logs`: commands, their signals, logs and ends.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::Child,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
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
    // The start could not be told, the end was insisted on.
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr, "culvert: container c runs, but the agent was not told: store: no answer\n");
    let calls = agent.fake.calls();
    assert_eq!(&calls[1..], ["c ended with 0", "remove container c force=true"]);
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
