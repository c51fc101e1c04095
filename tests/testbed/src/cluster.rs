//! Whole hosts: namespaces on one underlay, a real etcd, an agent on each.

#![expect(
    clippy::panic,
    reason = "a fixture that cannot be made fails the test with what went wrong"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    agent::{self, AgentPlan},
    etcd::{Config, EtcdServer},
    netns::Netns,
    process::Process,
    underlay::Underlay,
    wait::{unique, wait_for, wait_until},
};

/// Default deadline of a wait in a test.
pub const SOON: Duration = Duration::from_secs(20);

/// The `culvert` binary of this build.
///
/// # Panics
/// When it has not been built.
pub fn culvert_binary() -> PathBuf {
    // A test is in `deps/` below the binary's directory, the benchmark harness in that directory.
    let exe = std::env::current_exe().unwrap_or_default();
    let mut candidates = exe.ancestors().skip(1).take(2).map(|dir| dir.join("culvert"));
    match candidates.find(|path| path.is_file()) {
        Some(path) => path,
        None => panic!("culvert: not built: run 'cargo xtask build'"),
    }
}

/// Hosts on one underlay that share an etcd.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts, each with its agent.
    pub hosts: Vec<Host>,
    /// The store, or the first member of it. It runs in the switch's namespace.
    pub etcd: EtcdServer,
    /// The other members of the store, if it has several.
    pub members: Vec<EtcdServer>,
    /// The switch between the hosts; its port `pN` leads to host N.
    pub switch: Netns,
}

impl Cluster {
    /// Address at which the hosts reach etcd.
    pub const ETCD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    /// Addresses of a store of three members.
    const MEMBERS: [Ipv4Addr; 3] =
        [Self::ETCD, Ipv4Addr::new(192, 0, 2, 253), Ipv4Addr::new(192, 0, 2, 252)];

    /// `count` hosts with an underlay MTU of 1500 and their agents running.
    ///
    /// # Panics
    /// When anything cannot be started.
    pub fn new(count: u8) -> Self {
        Self::with_mtu(count, 1500)
    }

    /// `count` hosts with their agents running.
    ///
    /// # Panics
    /// When anything cannot be started.
    pub fn with_mtu(count: u8, mtu: u32) -> Self {
        let mut cluster = Self::without_agents(count, mtu);
        for host in &mut cluster.hosts {
            host.start_agent(&[]);
        }
        for host in &mut cluster.hosts {
            host.wait_ready();
        }
        cluster
    }

    /// `count` hosts without agents.
    ///
    /// # Panics
    /// When anything cannot be started.
    pub fn without_agents(count: u8, mtu: u32) -> Self {
        Self::with_store(count, mtu, &[])
    }

    /// `count` hosts without agents, and an etcd with further arguments.
    ///
    /// # Panics
    /// When anything cannot be started.
    pub fn with_store(count: u8, mtu: u32, args: &[&str]) -> Self {
        Self::with_servers(count, mtu, &[Self::ETCD], |switch, _| {
            let config = Config {
                netns: Some(switch.path().to_owned()),
                address: Some(Self::ETCD.into()),
                port: Some(2379),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                ..Config::default()
            };
            Ok(vec![EtcdServer::start_with(config)?])
        })
    }

    /// `count` hosts without agents, and an etcd of three members, each with further arguments.
    ///
    /// # Panics
    /// When anything cannot be started.
    pub fn with_members(count: u8, mtu: u32, args: &[&str]) -> Self {
        Self::with_servers(count, mtu, &Self::MEMBERS, |switch, addresses| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            EtcdServer::start_members(switch.path(), addresses, &args)
        })
    }

    /// Makes hosts without agents, and a store with servers at `addresses` of the switch, which
    /// `start` starts.
    fn with_servers(
        count: u8,
        mtu: u32,
        addresses: &[Ipv4Addr],
        start: impl FnOnce(&Netns, &[IpAddr]) -> io::Result<Vec<EtcdServer>>,
    ) -> Self {
        let underlay = Underlay::bridged(count, mtu);
        let Some(switch) = underlay.switch else { panic!("underlay: no switch") };
        for address in addresses {
            switch.run(&format!("ip addr add {address}/24 dev br0"));
        }
        let addresses: Vec<IpAddr> = addresses.iter().copied().map(IpAddr::V4).collect();
        let mut members = match start(&switch, &addresses) {
            Ok(servers) => servers,
            Err(error) => panic!("{error}"),
        };
        let endpoints: Vec<String> = members.iter().map(EtcdServer::endpoint).collect();
        let store = format!("etcd://{}", endpoints.join(","));
        let etcd = members.remove(0);
        let hosts = (0..)
            .zip(underlay.hosts)
            .map(|(index, netns)| Host::new(index, netns, store.clone()))
            .collect();
        Self { hosts, etcd, members, switch }
    }

    /// The members of the store.
    pub fn servers(&mut self) -> Vec<&mut EtcdServer> {
        std::iter::once(&mut self.etcd).chain(&mut self.members).collect()
    }

    /// A host without Culvert on the same underlay, with the next free address.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn plain_host(&self, index: u8) -> Netns {
        Underlay::join(&self.switch, index)
    }

    /// Waits until every host's agent sees `network`.
    ///
    /// # Panics
    /// When one does not in time.
    pub fn wait_network(&self, network: &str) {
        for host in &self.hosts {
            wait_until(SOON, &format!("network {network} on {}", host.node), || {
                host.culvert(&["network", "inspect", network]).status.success()
            });
        }
    }
}

/// A unique name: all tests of the machine share `/run/netns`.
pub fn unique_name(hint: &str) -> String {
    format!("{hint}-{}-{}", std::process::id(), unique())
}

/// A host with an agent.
#[derive(Debug)]
pub struct Host {
    /// Namespace of the host.
    pub netns: Netns,
    /// Index of the host on the underlay, from 0.
    pub index: u8,
    /// Node name of the host.
    pub node: String,
    /// URL of the store.
    pub store: String,
    /// The agent, once started.
    pub agent: Option<Process>,
    dir: TempDir,
}

impl Host {
    /// A host without a running agent.
    ///
    /// # Panics
    /// When no directory can be made for it.
    pub fn new(index: u8, netns: Netns, store: String) -> Self {
        let dir = match tempfile::tempdir() {
            Ok(dir) => dir,
            Err(error) => panic!("temporary directory: {error}"),
        };
        Self { node: format!("node{index}"), netns, index, store, agent: None, dir }
    }

    /// VTEP address of the host.
    pub fn vtep(&self) -> Ipv4Addr {
        Underlay::address(self.index)
    }

    /// Directory of the agent's socket, state and BPF file system.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("culvert.sock")
    }

    /// The agent's BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// The agent's command line, with `extra` arguments.
    pub fn agent_command(&self, extra: &[&str]) -> Command {
        let plan = AgentPlan {
            node: &self.node,
            store: &self.store,
            uplink: Underlay::UPLINK,
            socket: &self.socket(),
            state_dir: &self.dir().join("state"),
            bpffs: &self.bpffs(),
        };
        let mut command = self.netns.command(culvert_binary());
        command.args(plan.args()).args(extra);
        command
    }

    /// Starts the agent with `extra` arguments, without waiting for it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start_agent(&mut self, extra: &[&str]) {
        self.agent = Some(Process::spawn(self.agent_command(extra)));
    }

    /// Waits until the agent has read the store.
    ///
    /// # Panics
    /// When the agent ends, or is not ready in time.
    pub fn wait_ready(&mut self) {
        wait_for(SOON, "the agent to be ready", || {
            let Some(agent) = &mut self.agent else { panic!("{}: no agent", self.node) };
            if !agent.is_running() {
                panic!("{}: the agent ended: {}{}", self.node, agent.stdout(), agent.stderr());
            }
            self.healthy().then_some(())
        });
    }

    /// Whether the agent answers and has read the store.
    pub fn healthy(&self) -> bool {
        agent::is_ready(&mut self.culvert_command(&[]))
    }

    /// Stops the agent with `signal` and waits for its end.
    ///
    /// # Panics
    /// When it does not end, or fails on SIGTERM.
    pub fn stop_agent(&mut self, signal: Signal) {
        let Some(mut agent) = self.agent.take() else { return };
        let status = agent.stop(signal, SOON);
        if signal == Signal::SIGTERM && !status.success() {
            panic!("{}: the agent: {status}: {}{}", self.node, agent.stdout(), agent.stderr());
        }
    }

    /// The agent's log.
    pub fn agent_log(&self) -> String {
        self.agent
            .as_ref()
            .map(|agent| format!("{}{}", agent.stdout(), agent.stderr()))
            .unwrap_or_default()
    }

    /// Runs a CLI verb.
    ///
    /// # Panics
    /// When the binary cannot be started.
    pub fn culvert(&self, args: &[&str]) -> Output {
        match self.culvert_command(args).output() {
            Ok(output) => output,
            Err(error) => panic!("culvert {args:?}: {error}"),
        }
    }

    /// The command of a CLI verb.
    pub fn culvert_command(&self, args: &[&str]) -> Command {
        let mut command = self.netns.command(culvert_binary());
        command.env("CULVERT_SOCKET", self.socket());
        // A slow machine, such as an emulated one, may exceed the CLI's own timeout.
        command.env("CULVERT_TIMEOUT", "120s").args(args);
        command
    }

    /// Runs a CLI verb that succeeds; returns its standard output.
    ///
    /// # Panics
    /// When it fails, with what it and the agent wrote.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.culvert(args);
        if !output.status.success() {
            panic!(
                "{}: culvert {args:?}: {}{}\nagent: {}",
                self.node,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                self.agent_log()
            );
        }
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a CLI verb that succeeds with `--format json`.
    ///
    /// # Panics
    /// When it fails or does not print JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--format", "json"], args].concat());
        match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => panic!("culvert {args:?}: {error}: {text}"),
        }
    }

    /// The findings of `culvert doctor` as JSON. Its exit code is 1 if one of them is an error, which
    /// an etcd without authentication is.
    ///
    /// # Panics
    /// When the output is not JSON.
    pub fn findings(&self) -> Value {
        let output = self.culvert(&["--format", "json", "doctor"]);
        match serde_json::from_slice(&output.stdout) {
            Ok(value) => value,
            Err(error) => panic!("culvert doctor: {error}: {output:?}"),
        }
    }

    /// Runs a CLI verb that must exit with `code` and write one line to standard error. Returns
    /// the line.
    ///
    /// # Panics
    /// When the exit code is another, or standard error is not one line.
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.culvert(args);
        let errors = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(code), "culvert {args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "culvert {args:?}: one line, not: {errors}");
        errors
    }

    /// Creates an overlay network with a subnet. `options` are further options of `network create`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn overlay(&self, name: &str, subnet: &str, options: &[&str]) {
        let head = ["network", "create", "-d", "overlay", "--subnet", subnet];
        self.ok(&[&head, options, &[name]].concat());
    }

    /// Starts a container that only waits.
    ///
    /// # Panics
    /// When it is refused.
    pub fn run_idle(&self, name: &str, network: &str, options: &[&str]) {
        let head = ["run", "-d", "--name", name, "--network", network];
        self.ok(&[&head, options, &["--", "sleep", "infinity"]].concat());
    }

    /// Runs a shell command in a container.
    ///
    /// # Panics
    /// When the shell cannot be started.
    pub fn try_in_container(&self, name: &str, script: &str) -> Output {
        let netns = format!("--net=/run/netns/{name}");
        match Command::new("nsenter").args([&netns, "sh", "-c", script]).output() {
            Ok(output) => output,
            Err(error) => panic!("nsenter: {error}"),
        }
    }

    /// Starts a shell command in a container; it ends when the guard is dropped.
    ///
    /// # Panics
    /// When the shell cannot be started.
    pub fn spawn_in_container(&self, name: &str, script: &str) -> Process {
        let mut command = Command::new("nsenter");
        // The guard kills the shell's pid only, so the shell executes the program without a fork.
        let script = format!("exec {script}");
        command.args([&format!("--net=/run/netns/{name}"), "sh", "-c", &script]);
        Process::spawn(command)
    }

    /// Runs a shell command that succeeds in a container; returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn in_container(&self, name: &str, script: &str) -> String {
        let output = self.try_in_container(name, script);
        if !output.status.success() {
            panic!(
                "{name}: {script}: {}{}\nstats: {}\nagent: {}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                self.ok(&["stats"]),
                self.agent_log()
            );
        }
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until `ip` answers a ping from a container.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_ping(&self, name: &str, ip: &str) {
        wait_until(SOON, &format!("{name} to reach {ip}"), || {
            self.try_in_container(name, &format!("ping -c1 -W1 {ip}")).status.success()
        });
    }

    /// The IPv4 address of a container in a network.
    ///
    /// # Panics
    /// When it has none.
    pub fn ip(&self, name: &str, network: &str) -> String {
        let rows = self.json(&["ps"]);
        let networks = rows
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["name"] == name)
            .and_then(|row| row["networks"].as_array().cloned())
            .unwrap_or_default();
        match networks.iter().find(|row| row["name"] == network) {
            Some(row) => row["ip"].as_str().unwrap_or_default().to_owned(),
            None => panic!("{name}: not in {network}: {rows}"),
        }
    }

    /// A counter of `stats`, 0 if it has not counted.
    pub fn counter(&self, direction: &str, reason: &str) -> u64 {
        self.json(&["stats"])
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["direction"] == direction && row["reason"] == reason)
            .and_then(|row| row["packets"].as_u64())
            .unwrap_or(0)
    }
}

impl Drop for Host {
    /// Removes the agent's BPF pins and the other objects that it made.
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = self.culvert(&["purge"]);
            agent.signal(Signal::SIGKILL);
        }
        let _ = self
            .culvert_command(&["purge", "--state-dir"])
            .arg(self.dir().join("state"))
            .arg("--bpffs")
            .arg(self.bpffs())
            .output();
        // Supervisors keep trying to report the end of their program to the agent.
        let supervised = format!("--socket {} .*__supervise", self.socket().display());
        let _ = Command::new("pkill").args(["-KILL", "-f", "--", &supervised]).output();
        let _ = Command::new("umount").args(["-l"]).arg(self.bpffs()).output();
    }
}
