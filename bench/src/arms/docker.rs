//! Docker itself: a swarm of two daemons and its overlay.
//!
//! Each daemon has namespaces of its own for the network, for mounts and for processes. Its
//! processes (containerd, containers) and its mounts end with these namespaces, also after a
//! failure. The daemon writes to tmpfs mounts instead of the machine's directories.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use culvert_testbed::{cluster::unique_name, netns::Netns, process::Process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{
    arm::{Arm, Scope},
    hosts::{self, Pair},
    program::{output, program},
};
use crate::load::Peers;

/// Id of the arm.
pub(super) const ID: &str = "docker-overlay";
/// Directories that a daemon writes besides its own; a private tmpfs hides them.
const HIDDEN: [&str; 4] = ["/etc/docker", "/opt", "/run", "/var/lib"];
/// Name of the network, the image and the container.
const NAME: &str = "bench";
/// Control groups: one hierarchy in version 2, a directory for each hierarchy in version 1.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long a daemon may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A swarm.
pub(super) struct Docker {
    _daemons: [Daemon; 2],
}

impl Docker {
    /// Starts the swarm, and a container on each host.
    pub(super) fn new(pair: &Pair) -> Result<(Self, Arm)> {
        let mut daemons = [Daemon::start(&pair.one)?, Daemon::start(&pair.two)?];
        daemons.iter_mut().try_for_each(Daemon::wait)?;
        let [one, two] = &daemons;
        let listen = |ip: Ipv4Addr| {
            [
                "--advertise-addr".to_owned(),
                ip.to_string(),
                "--listen-addr".to_owned(),
                format!("{ip}:2377"),
            ]
        };
        one.docker(["swarm", "init"].map(str::to_owned).into_iter().chain(listen(Pair::ONE)))?;
        let token = one.docker(["swarm", "join-token", "-q", "worker"])?;
        let join = ["swarm".to_owned(), "join".to_owned(), "--token".to_owned(), token];
        let manager = format!("{}:2377", Pair::ONE);
        two.docker(join.into_iter().chain(listen(Pair::TWO)).chain([manager]))?;
        let network = ["network", "create", "-d", "overlay", "--attachable", "--subnet"];
        one.docker(network.into_iter().chain(["10.30.0.0/24", NAME]))?;
        let containers = [one.container(address(0))?, two.container(address(1))?];
        let [client, server] = &containers;
        let arm = Arm::new(
            ID,
            "container to container, Docker's overlay",
            Some('A'),
            Peers::direct(client, server, address(1)),
            Scope::Whole,
        );
        Ok((Self { _daemons: daemons }, arm))
    }
}

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 30, 0, 10 + index)
}

/// A daemon.
struct Daemon {
    /// `unshare`. Its only child is the first process of the daemon's namespaces.
    process: Process,
    client: PathBuf,
    cgroup: String,
    /// The directory of the daemon's configuration, if this program made it.
    config: Option<&'static Path>,
    directory: TempDir,
}

impl Daemon {
    fn start(host: &Netns) -> Result<Self> {
        let daemon = program("dockerd")?;
        let directory = tempfile::Builder::new().prefix("culvert-bench-").tempdir()?;
        let within = |name: &str| directory.path().join(name).display().to_string();
        // The settings of the machine's own daemon do not apply to this one.
        fs::write(within("daemon.json"), "{}")?;
        let cgroup = unique_name("culvert-bench");
        let config = Path::new(HIDDEN[0]);
        let config = match fs::create_dir(config) {
            Ok(()) => Some(config),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error).context(HIDDEN[0]),
        };
        let hide = HIDDEN.map(|path| format!("mount -t tmpfs none {path}")).join(" && ");
        let mut command = host.command("unshare");
        // Propagation `slave`: an unmount on the machine is repeated here. Otherwise a mount here
        // would keep a network namespace that the machine has removed.
        command.args(["--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "sh", "-c", &format!("{hide} && exec \"$@\""), "dockerd"]);
        command.arg(&daemon);
        command.args(["--config-file", &within("daemon.json"), "--pidfile", &within("pid")]);
        command.args(["--host", &format!("unix://{}", within("socket"))]);
        command.args(["--data-root", &within("data"), "--exec-root", &within("exec")]);
        command.args(["--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &format!("/{cgroup}")]);
        Ok(Self {
            process: Process::spawn(command),
            client: client(&daemon)?,
            cgroup,
            config,
            directory,
        })
    }

    /// Waits until the daemon answers.
    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let Err(error) = self.docker(["version"]) else { return Ok(()) };
            if !self.process.is_running() || Instant::now() > end {
                let said = self.process.stderr();
                let last = said.trim().lines().last().map(str::to_owned);
                bail!("dockerd: {}", last.unwrap_or_else(|| error.to_string()));
            }
            thread::sleep(POLL);
        }
    }

    /// Runs the docker client.
    fn docker<T: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = T>,
    ) -> Result<String> {
        let directory = self.directory.path();
        let mut command = Command::new(&self.client);
        command.arg("--config").arg(directory.join("client"));
        command.arg("--host").arg(format!("unix://{}", directory.join("socket").display()));
        output(command.env_remove("DOCKER_CONTEXT").env_remove("DOCKER_TLS_VERIFY").args(args))
    }

    /// Starts a container that sleeps. Returns its network namespace.
    fn container(&self, ip: Ipv4Addr) -> Result<PathBuf> {
        let archive = self.image()?.display().to_string();
        self.docker(["import", &archive, NAME])?;
        let ip = ip.to_string();
        let run = ["run", "--detach", "--name", NAME, "--network", NAME, "--ip", &ip, NAME];
        self.docker(run.into_iter().chain(["/busybox", "sleep", "1000000"]))?;
        let path = self.docker(["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", NAME])?;
        // The namespace is mounted only in the daemon's mount namespace.
        let netns = PathBuf::from(format!("/proc/{}/root{path}", self.process.pid()));
        let mut tune = Command::new("nsenter");
        tune.arg(format!("--net={}", netns.display())).args(["--", "sh", "-c", hosts::TUNING]);
        output(&mut tune)?;
        Ok(netns)
    }

    /// The archive of an image with one program.
    fn image(&self) -> Result<PathBuf> {
        let root = self.directory.path().join("root");
        fs::create_dir(&root)?;
        fs::copy(program("busybox")?, root.join("busybox")).context("busybox")?;
        let archive = self.directory.path().join("image.tar");
        output(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&root).arg("."))?;
        Ok(archive)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // When the first process of the namespace ends, the kernel kills all others. `unshare` ends
        // after them.
        for child in children(self.process.pid()) {
            let _ = kill(child, Signal::SIGKILL);
        }
        let end = Instant::now() + PATIENCE;
        while self.process.is_running() && Instant::now() < end {
            thread::sleep(POLL);
        }
        for group in cgroups(&self.cgroup) {
            remove_cgroup(&group);
        }
        if let Some(config) = self.config {
            let _ = fs::remove_dir(config);
        }
    }
}

/// The client that is installed with a daemon. Another client may be newer and refuse the daemon.
fn client(daemon: &Path) -> Result<PathBuf> {
    let prefix = daemon.parent().and_then(Path::parent);
    let own = prefix.map(|prefix| prefix.join("bin/docker")).filter(|path| path.is_file());
    own.map_or_else(|| program("docker"), Ok)
}

/// The children of a process that has one thread.
fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let pids = list.unwrap_or_default();
    pids.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// The control groups with this name, in each hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|it| it.path());
    hierarchies.chain([root.to_owned()]).map(|it| it.join(name)).filter(|it| it.is_dir()).collect()
}

/// Removes a control group and the groups in it. Tries for 2 s, since the last process may still
/// be ending.
fn remove_cgroup(group: &Path) {
    for within in fs::read_dir(group).into_iter().flatten().flatten() {
        if within.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&within.path());
        }
    }
    let end = Instant::now() + Duration::from_secs(2);
    while fs::remove_dir(group).is_err() && group.is_dir() && Instant::now() < end {
        thread::sleep(POLL);
    }
}
