//! Hosts in network namespaces, on one underlay, with etcd and an agent each, and a host outside
//! behind a router: what the demo shows and the lab leaves running.
//!
//! All of it lives inside an [`enclosure`]: a process namespace, a mount namespace and a
//! network namespace of its own. When the enclosure's first process ends, the kernel ends
//! every other process and drops every namespace, device, program and mount in it. So nothing
//! can be left behind, however it ends, and nothing of the machine itself is reached.

pub(crate) mod enclosure;
mod etcd;
mod host;
pub(crate) mod outside;
mod underlay;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub(crate) use etcd::Etcd;
pub(crate) use host::{Host, HostPlan, agent_is_ready};
pub(crate) use underlay::Underlay;

/// Directory of sockets, state and logs: a tmpfs inside the enclosure.
const DIR: &str = "/run/culvert-lab";

/// The store's address as agents are told.
pub(crate) fn store() -> String {
    format!("etcd://{}:{}", underlay::STORE_IP, etcd::PORT)
}

/// `DIR/name`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes `DIR/name`.
pub(crate) fn make_dir(name: &str) -> Result<PathBuf> {
    let dir = path(name);
    fs::create_dir_all(&dir).with_context(|| format!("{}: cannot be created", dir.display()))?;
    Ok(dir)
}
