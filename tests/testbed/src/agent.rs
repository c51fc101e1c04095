//! An agent's command line, and whether it is ready.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, Stdio},
};

/// Options of an agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentPlan<'a> {
    /// The node's name.
    pub node: &'a str,
    /// URL of the store. The connection is not encrypted.
    pub store: &'a str,
    /// Device on the underlay.
    pub uplink: &'a str,
    /// Path of the agent's socket.
    pub socket: &'a Path,
    /// Path of the agent's state directory.
    pub state_dir: &'a Path,
    /// Path of the agent's BPF file system.
    pub bpffs: &'a Path,
}

impl AgentPlan<'_> {
    /// The arguments of `culvert`, the verb included.
    pub fn args(&self) -> Vec<OsString> {
        let Self { node, store, uplink, socket, state_dir, bpffs } = *self;
        let mut args: Vec<OsString> =
            ["agent", "--node", node, "--store", store, "--insecure-store", "--uplink", uplink]
                .map(OsString::from)
                .into();
        for (option, path) in [("--socket", socket), ("--state-dir", state_dir), ("--bpffs", bpffs)]
        {
            args.extend([OsStr::new(option), path.as_os_str()].map(OsStr::to_owned));
        }
        args
    }
}

/// Whether the agent answers and says that its store is healthy. `culvert` is the command without
/// verb and options.
pub fn is_ready(culvert: &mut Command) -> bool {
    let output = culvert.args(["--format", "json", "status"]).stdin(Stdio::null()).output();
    let Ok(output) = output else { return false };
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    output.status.success()
        && status.pointer("/store/healthy").and_then(serde_json::Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_those_of_the_verb_agent() {
        let plan = AgentPlan {
            node: "n1",
            store: "etcd://192.0.2.1:2379",
            uplink: "up0",
            socket: Path::new("/s"),
            state_dir: Path::new("/d"),
            bpffs: Path::new("/b"),
        };
        assert_eq!(
            plan.args().join(OsStr::new(" ")),
            "agent --node n1 --store etcd://192.0.2.1:2379 --insecure-store --uplink up0 \
             --socket /s --state-dir /d --bpffs /b"
        );
    }
}
