//! Runs the binary.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::fake::Agent;

/// Timeout of a wait.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn culvert(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command
        .args(args)
        .env("CULVERT_SOCKET", socket)
        .env_remove("RUST_LOG")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn run(socket: &Path, args: &[&str]) -> Output {
    culvert(socket, args).output().unwrap()
}

pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Runs `culvert` with the words of `line`. Returns command line, output and exit code as text.
pub(crate) fn show(agent: &Agent, line: &str) -> String {
    let output = run(&agent.socket(), &words(line));
    transcript(agent, line, &output)
}

pub(crate) fn transcript(agent: &Agent, line: &str, output: &Output) -> String {
    let mut text = format!("$ culvert {line}\n");
    text.push_str(str::from_utf8(&output.stdout).unwrap());
    for error in str::from_utf8(&output.stderr).unwrap().lines() {
        assert!(error.starts_with("culvert: "), "{error}");
        text.push_str(&format!("stderr| {error}\n"));
    }
    let code = output.status.code().unwrap();
    if code != 0 {
        text.push_str(&format!("exit {code}\n"));
    }
    text.replace(agent.dir.path().to_str().unwrap(), "DIR")
}

pub(crate) fn success(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    str::from_utf8(&output.stdout).unwrap()
}

/// Waits until `ready` gives something.
pub(crate) fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}
