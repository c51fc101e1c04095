//! A host: a network namespace with an uplink and an agent.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use culvert_testbed::agent::{self, AgentPlan};

use super::places::{self, make_dir, store};
use crate::paths;
use crate::process::{self, Background, Said};

/// How long an agent may take to answer.
const READY: Duration = Duration::from_secs(30);

/// Each host's device on the underlay.
pub(super) const UPLINK: &str = "uplink0";

/// Base of the last address byte: host N has 192.168.1.(20 + N). The store has 192.168.1.18.
const FIRST_IP: u8 = 20;

/// Name, devices and address of a host, of the external host or of the router.
#[derive(Clone, Debug)]
pub(crate) struct HostPlan {
    /// The node's name, such as `host1`.
    pub(crate) node: String,
    /// Name of the host's network namespace, equal to `node`.
    pub(crate) netns: String,
    /// The host's device on the underlay.
    pub(crate) uplink: &'static str,
    /// The switch's device that leads to the host.
    pub(crate) port: String,
    /// The host's address on the underlay.
    pub(crate) ip: String,
}

impl HostPlan {
    /// Host `number`, from 1.
    pub(crate) fn new(number: u8) -> Self {
        let node = format!("host{number}");
        Self {
            netns: node.clone(),
            node,
            uplink: UPLINK,
            port: format!("port{number}"),
            ip: format!("192.168.1.{}", FIRST_IP.saturating_add(number)),
        }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        places::path(&format!("{}{suffix}", self.node))
    }

    /// The agent's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path(".sock")
    }

    /// The agent's bpffs.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.path("/bpf")
    }

    /// The agent's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.path(".log")
    }

    /// The agent's arguments.
    pub(crate) fn agent_args(&self) -> Vec<String> {
        let plan = AgentPlan {
            node: &self.node,
            store: &store(),
            uplink: self.uplink,
            socket: &self.socket(),
            state_dir: &self.path(""),
            bpffs: &self.bpffs(),
        };
        let args = plan.args().into_iter().map(|argument| argument.to_string_lossy().into_owned());
        args.chain(["--cleanup-on-exit".to_owned()]).collect()
    }

    /// A command that runs `program` on the host, with its agent's socket in the environment
    /// and our build of `culvert` first on `PATH`.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program);
        for (name, value) in self.environment() {
            command.env(name, value);
        }
        command
    }

    /// The environment of programs on the host.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = OsString::from(paths::culvert().parent().unwrap_or(&paths::target()));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        // ip and tc are not on every user's PATH.
        path.push(":/usr/sbin:/sbin");
        vec![("CULVERT_SOCKET", self.socket().into_os_string()), ("PATH", path)]
    }

    /// Runs `line` in the host's shell to its end.
    pub(crate) fn shell(&self, line: &str) -> Result<Said> {
        let mut command = self.command("sh".as_ref());
        process::capture(command.args(["-c", line]))
    }
}

/// A host whose agent runs. The agent ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    /// Name, devices and address of the host.
    pub(crate) plan: HostPlan,
    agent: Background,
}

impl Host {
    /// Starts the agent.
    pub(crate) fn start(plan: HostPlan) -> Result<Self> {
        make_dir(&plan.node)?;
        let mut command = plan.command("culvert".as_ref());
        command.args(plan.agent_args());
        let name = format!("{}'s agent", plan.node);
        let agent = Background::start(&name, &mut command, &plan.log())?;
        Ok(Self { plan, agent })
    }

    /// Waits until the agent answers and says that the store is healthy.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let what = format!("{}'s agent: ready", self.plan.node);
        let Self { plan, agent } = self;
        process::wait_for(&what, READY, || {
            agent.check()?;
            Ok(status_is_healthy(plan).then_some(()))
        })
    }

    /// Fails if the agent has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.agent.check()
    }

    /// Stops the agent, which removes what it made.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.agent.stop()
    }
}

/// Whether the agent answers and reports a healthy store.
fn status_is_healthy(plan: &HostPlan) -> bool {
    plan.socket().exists() && agent::is_ready(&mut plan.command("culvert".as_ref()))
}
