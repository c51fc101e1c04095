//! `run`: an agent on this host with the embedded store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use culvert_testbed::agent;

use super::build;
use crate::{paths, privilege, process, signals, tools, ui};

/// How long the agent may take until it answers.
const READY: Duration = Duration::from_secs(30);

/// How long the agent may take to remove what it made.
const STOP: Duration = Duration::from_secs(20);

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// More options for `culvert agent`, such as --uplink eth1
    #[arg(last = true)]
    agent: Vec<String>,
}

/// Builds, starts the agent, prints what to type next, and waits for Ctrl-C.
pub(crate) fn main(args: &Args) -> Result<()> {
    build::build()?;
    privilege::become_root("run")?;
    privilege::require_kernel()?;
    let run = Run::new();
    if run.answers() {
        bail!(
            "{}: an agent of 'cargo xtask run' is running: stop it first (Ctrl-C where it runs)",
            run.socket().display()
        );
    }
    remove_leftovers()?;
    fs::create_dir_all(&run.dir)
        .with_context(|| format!("{}: cannot be created", run.dir.display()))?;
    let result = run.serve(&args.agent);
    // An agent that ended well has removed everything except its directory. After a failure, its
    // pins must be removed, too.
    let removed = if result.is_ok() { run.remove() } else { remove_leftovers() };
    result.and(removed)
}

/// Whether a `run` that was killed has left something.
pub(crate) fn has_leftovers() -> bool {
    paths::run_dir().exists()
}

/// Removes what a `run` that was killed has left.
pub(crate) fn remove_leftovers() -> Result<()> {
    if !has_leftovers() {
        return Ok(());
    }
    let run = Run::new();
    if run.answers() {
        bail!(
            "{}: an agent of 'cargo xtask run' is running: stop it first",
            run.socket().display()
        );
    }
    if paths::culvert().is_file() {
        // Pinned programs and links outlive a killed agent. An interrupt must not stop the purge:
        // the interrupt may be the reason for the purge.
        let purge = run
            .culvert(&["purge", "--state-dir"])
            .arg(run.state())
            .arg("--bpffs")
            .arg(run.bpffs())
            .stdin(Stdio::null())
            .output()
            .context("culvert purge: cannot be started")?;
        if !purge.status.success() {
            let said = String::from_utf8_lossy(&purge.stderr).into_owned();
            bail!("culvert purge failed: {}", process::last_lines(&said, 2));
        }
    }
    run.remove()
}

/// Paths of this run.
#[derive(Debug)]
struct Run {
    dir: PathBuf,
}

impl Run {
    fn new() -> Self {
        Self { dir: paths::run_dir() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("culvert.sock")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    fn culvert(&self, args: &[&str]) -> Command {
        let mut command = Command::new(paths::culvert());
        command.args(args).env("CULVERT_SOCKET", self.socket());
        command
    }

    /// Whether an agent answers on the socket.
    fn answers(&self) -> bool {
        self.socket().exists()
            && paths::culvert().is_file()
            && self
                .culvert(&["status"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    }

    /// Starts the agent and waits until it answers. Then waits until it ends or the user stops it.
    fn serve(&self, more: &[String]) -> Result<()> {
        let mut command = agent_command()?;
        command
            .arg(format!("--store=file:{}", self.dir.join("store").display()))
            .arg("--socket")
            .arg(self.socket())
            .arg("--state-dir")
            .arg(self.state())
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--cleanup-on-exit")
            .args(more);
        if !more.iter().any(|word| word.starts_with("--uplink")) && !has_default_route() {
            command.args(["--uplink", stand_in::make()?]);
        }
        ui::heading("agent");
        let mut agent = process::Foreground::start("culvert agent", &mut command)?;
        let ready = process::wait_for("culvert agent: an answer", READY, || {
            agent.check()?;
            Ok((self.socket().exists() && agent::is_ready(&mut self.culvert(&[]))).then_some(()))
        });
        if let Err(error) = ready {
            let stopped = agent.stop(STOP);
            // The agent has printed its error already; the user's own Ctrl-C is no error.
            return if signals::interrupted() { stopped } else { Err(error) };
        }
        self.greet();
        while !signals::interrupted() {
            agent.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        ui::line("\nStopping; removing everything the agent made ...");
        agent.stop(STOP)?;
        ui::line("Nothing is left.");
        Ok(())
    }

    /// The commands to type next.
    fn greet(&self) {
        let bin = paths::culvert();
        let bin = bin.parent().unwrap_or(Path::new("."));
        ui::heading("The agent is ready. In another terminal, as root:");
        for text in [
            format!(
                "export CULVERT_SOCKET={} PATH=\"{}:$PATH\"",
                self.socket().display(),
                bin.display()
            ),
            "culvert network create --subnet 10.99.0.0/24 -d overlay net1".to_owned(),
            "culvert run -d --name web --network net1 -- python3 -m http.server 80".to_owned(),
            "culvert run --rm --name me --network net1 -- curl -s http://10.99.0.2/".to_owned(),
            "ip netns exec web ip address".to_owned(),
            "culvert fdb show".to_owned(),
            "culvert rm -f web".to_owned(),
        ] {
            ui::line(&format!("  {text}"));
        }
        ui::line("\nCtrl-C here stops the agent and removes all of it.");
    }

    /// Removes the directory. An agent unmounts its bpffs when it ends. The bpffs of a killed agent
    /// is unmounted here, since a directory with a mount cannot be removed.
    fn remove(&self) -> Result<()> {
        let bpffs = self.bpffs();
        if is_mount_point(&bpffs) {
            nix::mount::umount(&bpffs)
                .with_context(|| format!("{}: cannot be unmounted", bpffs.display()))?;
        }
        stand_in::remove()?;
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}: cannot be removed", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// `culvert agent`, which gets a signal to stop when this program is killed.
fn agent_command() -> Result<Command> {
    if !paths::culvert().is_file() {
        bail!("{}: not there: run 'cargo xtask build'", paths::culvert().display());
    }
    let mut command = match tools::which("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "TERM", "--"]).arg(paths::culvert());
            command
        }
        None => Command::new(paths::culvert()),
    };
    command.arg("agent");
    Ok(command)
}

/// Whether this host has an IPv4 default route, whose device the agent takes as its uplink. Read
/// from text: xtask has no netlink crate, and two columns of this file are enough.
fn has_default_route() -> bool {
    // Columns: device, destination, gateway, flags, ..., mask; addresses in hexadecimal.
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().skip(1).any(|line| {
        let mut columns = line.split_whitespace();
        columns.nth(1) == Some("00000000") && columns.nth(5) == Some("00000000")
    })
}

/// An uplink for a host without one. An agent needs an uplink, also on an offline host whose
/// containers only talk to each other.
mod stand_in {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use anyhow::{Context as _, Result, bail};

    use crate::{process, tools, ui};

    const DEVICE: &str = "cvxtask0";
    const PEER: &str = "cvxtask1";

    /// An address of a block for documentation (RFC 5737), which is not in use.
    const ADDRESS: &str = "192.0.2.1/32";

    /// Makes the device and returns its name.
    pub(super) fn make() -> Result<&'static str> {
        let Some(ip) = tools::which("ip") else {
            bail!("no default route, and no 'ip' to make an uplink with: install iproute2");
        };
        remove()?;
        ui::line(&format!(
            "No default route: the agent gets {DEVICE} ({ADDRESS}) for an uplink, until it stops."
        ));
        for words in [
            &["link", "add", DEVICE, "type", "veth", "peer", "name", PEER][..],
            &["address", "add", ADDRESS, "dev", DEVICE],
            &["link", "set", PEER, "up"],
            &["link", "set", DEVICE, "up"],
        ] {
            process::quiet(Command::new(&ip).args(words))?;
        }
        Ok(DEVICE)
    }

    /// Removes the device, if it is there.
    pub(super) fn remove() -> Result<()> {
        if !Path::new("/proc/sys/net/ipv4/conf").join(DEVICE).exists() {
            return Ok(());
        }
        let ip = tools::which("ip").unwrap_or_else(|| "ip".into());
        let status =
            Command::new(ip).args(["link", "delete", DEVICE]).stdin(Stdio::null()).status();
        if !status.context("ip: cannot be started")?.success() {
            bail!("{DEVICE}: cannot be removed: its message is above");
        }
        Ok(())
    }
}

/// Whether something is mounted on `dir`.
fn is_mount_point(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == dir))
}
