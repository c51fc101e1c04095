//! `lab`: hosts with etcd and an agent each, left running for experiments.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{build, setup};
use crate::lab::{Etcd, Host, HostPlan, Underlay, enclosure, external};
use crate::tools::Need;
use crate::{paths, privilege, process, signals, ui};

/// How long the lab may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// How long the lab may take to end.
const DOWN: Duration = Duration::from_secs(30);

/// Options of `lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the hosts
    Up {
        /// Number of hosts
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
        hosts: u8,
    },
    /// Open a shell on a host, or run a command there
    Sh {
        /// The host, such as host1, or external or router
        #[arg(default_value = "host1")]
        host: String,
        /// The command
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Stop the hosts and remove everything
    Down,
}

/// Runs the subcommand of `lab`.
pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Up { hosts } => up(*hosts),
        Verb::Sh { host, command } => shell(host, command),
        Verb::Down => {
            if is_up() {
                privilege::become_root("lab down")?;
                down()?;
                ui::line("The lab is down; nothing of it is left.");
            } else {
                down()?;
                ui::line("No lab is up.");
            }
            Ok(())
        }
    }
}

/// A lab that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Up {
    /// First process of the enclosure.
    pid: u32,
    /// Start time of the process, in clock ticks since boot. It distinguishes the process from a
    /// later process with the same id.
    started: u64,
    hosts: u8,
}

fn state_file() -> PathBuf {
    paths::lab().join("state.json")
}

fn ready_file() -> PathBuf {
    paths::lab().join("ready")
}

impl Up {
    /// The running lab, if there is one.
    fn find() -> Option<Self> {
        let text = fs::read(state_file()).ok()?;
        let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let number = |name: &str| state.get(name)?.as_u64();
        let up = Self {
            pid: u32::try_from(number("pid")?).ok()?,
            started: number("started")?,
            hosts: u8::try_from(number("hosts")?).ok()?,
        };
        (start_time(up.pid) == Some(up.started)).then_some(up)
    }

    fn write(self) -> Result<()> {
        let Self { pid, started, hosts } = self;
        let text = serde_json::json!({ "pid": pid, "started": started, "hosts": hosts });
        fs::write(state_file(), text.to_string())
            .with_context(|| format!("{}: cannot be written", state_file().display()))
    }

    fn plan(self, name: &str) -> Result<HostPlan> {
        let mut plans = plans(self.hosts);
        plans.extend([external::host(), external::router()]);
        let names: Vec<_> = plans.iter().map(|plan| plan.node.clone()).collect();
        plans
            .into_iter()
            .find(|plan| plan.node == name)
            .with_context(|| format!("host '{name}': not in this lab: it has {}", names.join(", ")))
    }
}

/// The fields of process `pid` in proc_pid_stat(5) from field 3, its state. Read by hand: xtask
/// cannot use the reader of `culvert`, because it installs what `culvert` needs to be built.
fn fields_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2, the program's name, is in parentheses and may hold spaces.
    Some(stat.rsplit_once(')')?.1.trim_start().to_owned())
}

/// Start time of process `pid`, field 22 of proc_pid_stat(5).
fn start_time(pid: u32) -> Option<u64> {
    fields_of(pid)?.split_whitespace().nth(19)?.parse().ok()
}

fn plans(hosts: u8) -> Vec<HostPlan> {
    (1..=hosts).map(HostPlan::new).collect()
}

/// Whether a lab runs.
pub(crate) fn is_up() -> bool {
    Up::find().is_some()
}

fn up(hosts: u8) -> Result<()> {
    if let Some(up) = Up::find() {
        ui::line(&format!("The lab is up already, with {} hosts.", up.hosts));
        cheat_sheet(up.hosts);
        return Ok(());
    }
    setup::require(&[Need::Build, Need::Demo])?;
    build::build()?;
    privilege::become_root("lab up")?;
    privilege::require_kernel()?;
    let dir = paths::lab();
    fs::create_dir_all(&dir).with_context(|| format!("{}: cannot be created", dir.display()))?;
    let _ = fs::remove_file(ready_file());
    let log = dir.join("log");
    let mut child = enclosure::start_detached(&["inside", "lab", &hosts.to_string()], &log)?;
    let pid = child.id();
    let started = start_time(pid).context("the lab ended at once")?;
    let up = Up { pid, started, hosts };
    up.write()?;
    let ready = process::wait_for("the lab: ready", READY, || {
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("the lab ended ({status}): {}", process::last_lines(&said, 3));
        }
        Ok(ready_file().exists().then_some(()))
    });
    if let Err(error) = ready {
        down()?;
        return Err(error);
    }
    cheat_sheet(hosts);
    Ok(())
}

/// Ends the lab, if one is up.
pub(crate) fn down() -> Result<()> {
    if let Some(up) = Up::find() {
        let pid = Pid::from_raw(i32::try_from(up.pid)?);
        let gone = || Ok((start_time(up.pid) != Some(up.started) || ended(up.pid)).then_some(()));
        kill(pid, Signal::SIGTERM).context("the lab: cannot be told to stop")?;
        // 'down' also serves an interrupted 'up', so the wait must not be cut short.
        if wait_regardless(DOWN, gone).is_err() {
            let _ = kill(pid, Signal::SIGKILL);
            wait_regardless(DOWN, gone)?;
        }
    }
    for file in [state_file(), ready_file()] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("{}: cannot be removed", file.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether process `pid` is a zombie, or gone.
fn ended(pid: u32) -> bool {
    fields_of(pid).is_none_or(|fields| fields.starts_with('Z'))
}

fn wait_regardless(deadline: Duration, done: impl Fn() -> Result<Option<()>>) -> Result<()> {
    let start = std::time::Instant::now();
    while done()?.is_none() {
        if start.elapsed() > deadline {
            bail!("the lab: did not end within {} s", deadline.as_secs());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn shell(host: &str, words: &[OsString]) -> Result<()> {
    let up = Up::find().context("no lab is up: run 'cargo xtask lab up'")?;
    let plan = up.plan(host)?;
    privilege::become_root("lab sh")?;
    let default = [std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    let words = if words.is_empty() { &default[..] } else { words };
    let mut command = enclosure::enter(up.pid, "nsenter".as_ref());
    command.arg(format!("--net=/run/netns/{}", plan.netns)).arg("--").args(words);
    for (name, value) in plan.environment() {
        command.env(name, value);
    }
    Err(command.exec()).context("nsenter: cannot be started")
}

fn cheat_sheet(hosts: u8) {
    ui::heading("The lab is up");
    for plan in plans(hosts) {
        ui::line(&format!("  {:<8} {}", plan.node, plan.ip));
    }
    ui::line(&format!("  {:<8} {}", "etcd", crate::lab::store()));
    let (router, far) = (external::router(), external::host());
    ui::line(&format!("  {:<8} {}, the hosts' default gateway", router.node, router.ip));
    ui::line(&format!("  {:<8} {}, behind the router, without Culvert", far.node, far.ip));
    ui::heading("A shell on a host, where 'culvert' talks to that host's agent");
    ui::line("  cargo xtask lab sh host1");
    ui::heading("An overlay between two hosts");
    let last = hosts.min(2);
    for text in [
        "cargo xtask lab sh host1 -- culvert network create -d overlay --subnet 10.0.0.0/24 net1"
            .to_owned(),
        "cargo xtask lab sh host1 -- culvert run -d --name c1 --network net1 -- sleep infinity"
            .to_owned(),
        format!(
            "cargo xtask lab sh host{last} -- culvert run --rm --name c2 --network net1 -- ping -c 3 \
             10.0.0.2"
        ),
        "cargo xtask lab sh host1 -- culvert fdb show".to_owned(),
        format!("cargo xtask lab sh host{last} -- tcpdump -ni uplink0 udp port 4789"),
    ] {
        ui::line(&format!("  {text}"));
    }
    ui::heading("External access of a container, and a published port");
    for text in [
        "cargo xtask lab sh host1 -- culvert run -d --name web -p 8080:80 -- python3 -m http.server 80"
            .to_owned(),
        "cargo xtask lab sh external -- curl -sI http://192.168.1.21:8080/".to_owned(),
        format!("cargo xtask lab sh host1 -- culvert exec web -- ping -c 3 {}", far.ip),
        "cargo xtask lab sh host1 -- culvert nat ls".to_owned(),
        "cargo xtask lab sh external -- tcpdump -ni eth0".to_owned(),
    ] {
        ui::line(&format!("  {text}"));
    }
    ui::heading("The agents' logs, and the end");
    ui::line("  cargo xtask lab sh host1 -- cat /run/culvert-lab/host1.log");
    ui::line("  cargo xtask lab down");
}

/// Makes the hosts and keeps them until a signal ends the lab; runs inside the enclosure.
pub(crate) fn inside(hosts: u8) -> Result<()> {
    let plans = plans(hosts);
    let _underlay = Underlay::make(&plans)?;
    let etcd = Etcd::start()?;
    let mut running = plans.into_iter().map(Host::start).collect::<Result<Vec<_>>>()?;
    for host in &mut running {
        host.wait_ready()?;
    }
    let file = ready_file();
    fs::write(&file, "").with_context(|| format!("{}: cannot be written", file.display()))?;
    while !signals::interrupted() {
        reap();
        sleep(Duration::from_millis(100));
    }
    drop(running);
    drop(etcd);
    Ok(())
}

/// Reaps every process that has ended: process 1 inherits the processes whose parent has ended. An
/// agent that was killed in an experiment is among them, and the lab goes on.
fn reap() {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
