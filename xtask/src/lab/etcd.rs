//! The store: a real etcd on the underlay.

use std::net::SocketAddr;

use anyhow::Result;
use culvert_testbed::etcd::{Config, EtcdServer};

use super::places::{STORE_IP, STORE_PORT, path};
use crate::signals;

/// A running etcd. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    server: EtcdServer,
}

fn config() -> Config {
    Config {
        address: Some(STORE_IP.into()),
        port: Some(STORE_PORT),
        dir: Some(path("etcd")),
        // In its own process group, etcd gets no interrupt from the terminal. The lab stops etcd
        // after the agents.
        own_group: true,
        ..Config::default()
    }
}

impl Etcd {
    /// etcd's arguments.
    pub(crate) fn args() -> Vec<String> {
        let client = SocketAddr::new(STORE_IP.into(), STORE_PORT);
        config()
            .arguments(&path("etcd"), client, None)
            .into_iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect()
    }

    /// Starts etcd and waits until it serves.
    pub(crate) fn start() -> Result<Self> {
        let server = EtcdServer::start_with(config())?;
        signals::check()?;
        Ok(Self { server })
    }

    /// Fails if etcd has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        Ok(self.server.check()?)
    }

    /// Ends etcd.
    pub(crate) fn stop(self) -> Result<()> {
        Ok(self.server.end()?)
    }
}
