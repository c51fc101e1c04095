//! What the command line does with programs, without the rest of it:
//! `run SPEC`, `detach SPEC` and `__supervise SPEC`, each with a
//! `SuperviseSpec` in JSON. Callbacks are noted in the file `CULVERT_TEST_NOTES`.
//! `record FILE` is a program to supervise: it writes down each signal and
//! whether the kernel or a process sent it, and ends with 7 on TERM.
#![warn(clippy::indexing_slicing)]

use std::{fs::OpenOptions, io::Write, process::exit};

use anyhow::Context;
use culvert::sandbox::{
    ExecError, Life, SuperviseSpec, Surroundings, spawn_detached, supervise, supervise_detached,
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::SignalFd,
};

fn note(line: &str) {
    let Ok(path) = std::env::var("CULVERT_TEST_NOTES") else { return };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| writeln!(file, "{line}"));
    if let Err(error) = written {
        eprintln!("{error}");
    }
}

fn fail(error: &ExecError) -> i32 {
    eprintln!("{error}");
    error.code
}

/// `si_code` of a signal that the kernel sent.
const SI_KERNEL: i32 = 0x80;

fn record(path: &str) -> anyhow::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    let queue = SignalFd::new(&signals)?;
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "ready")?;
    loop {
        let info = queue.read_signal()?.context("signalfd blocks")?;
        let signal = Signal::try_from(i32::try_from(info.ssi_signo)?)?;
        let sender = if info.ssi_code == SI_KERNEL { "kernel" } else { "process" };
        writeln!(file, "{signal} {sender}")?;
        if signal == Signal::SIGTERM {
            exit(7);
        }
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(verb), Some(argument)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: run|detach|__supervise SPEC, or record FILE");
    };
    if verb == "record" {
        return record(&argument);
    }
    let spec: SuperviseSpec = serde_json::from_str(&argument)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    exit(runtime.block_on(execute(&verb, &spec)))
}

async fn execute(verb: &str, spec: &SuperviseSpec) -> i32 {
    let on_start = async |pid| note(&format!("start {pid}"));
    let on_exit = async |code| note(&format!("exit {code}"));
    let tell = async |life| {
        note(&match life {
            Life::Runs { pid, restarts: 0, .. } => format!("start {pid}"),
            Life::Runs { pid, restarts, .. } => format!("start {pid} again {restarts}"),
            Life::Waits { code, restarts, .. } => format!("exit {code} before {restarts}"),
            Life::Ended { code } => format!("exit {code}"),
        });
        true
    };
    match verb {
        "run" => supervise(spec, on_start, on_exit).await.unwrap_or_else(|error| fail(&error)),
        "detach" => match spawn_detached(spec, &[], &Surroundings::default()).await {
            Ok(pid) => {
                println!("{pid}");
                0
            }
            Err(error) => fail(&error),
        },
        _ => supervise_detached(spec, tell).await,
    }
}
