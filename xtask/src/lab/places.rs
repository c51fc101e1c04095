//! Paths of files and addresses of servers in the enclosure.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Directory of sockets, state and logs: a tmpfs inside the enclosure.
pub(super) const DIR: &str = "/run/culvert-lab";

/// The store's address, which is the article's.
pub(super) const STORE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 18);

/// etcd's port for clients.
pub(super) const STORE_PORT: u16 = 2379;

/// The store's address as agents get it.
pub(crate) fn store() -> String {
    format!("etcd://{STORE_IP}:{STORE_PORT}")
}

/// `DIR/name`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes `DIR/name`.
pub(super) fn make_dir(name: &str) -> Result<PathBuf> {
    let dir = path(name);
    fs::create_dir_all(&dir).with_context(|| format!("{}: cannot be created", dir.display()))?;
    Ok(dir)
}
