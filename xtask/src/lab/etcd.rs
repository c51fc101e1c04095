//! The store: a real etcd on the underlay.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::underlay::STORE_IP;
use crate::process::{self, Background};

/// etcd's port for clients.
pub(super) const PORT: u16 = 2379;

/// How long etcd may take to answer.
const READY: Duration = Duration::from_secs(20);

/// etcd. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Background,
}

impl Etcd {
    /// etcd's arguments.
    pub(crate) fn args() -> Vec<String> {
        let clients = format!("http://{STORE_IP}:{PORT}");
        vec![
            "--data-dir".to_owned(),
            super::path("etcd").display().to_string(),
            "--listen-client-urls".to_owned(),
            clients.clone(),
            "--advertise-client-urls".to_owned(),
            clients,
            "--log-level".to_owned(),
            "warn".to_owned(),
        ]
    }

    /// Starts etcd and waits until it is healthy.
    pub(crate) fn start() -> Result<Self> {
        let mut command = Command::new("etcd");
        command.args(Self::args());
        // etcd 3.4 starts on other machines than amd64 only when it is told that this is meant.
        if std::env::consts::ARCH == "aarch64" {
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        let log = super::path("etcd.log");
        let mut etcd = Self { process: Background::start("etcd", &mut command, &log)? };
        process::wait_for("etcd: a healthy answer", READY, || {
            etcd.process.check()?;
            Ok(healthy().unwrap_or(false).then_some(()))
        })?;
        Ok(etcd)
    }

    /// Fails if etcd has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Ends etcd.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.stop()
    }
}

/// Asks etcd how it is.
fn healthy() -> Result<bool> {
    let timeout = Duration::from_secs(1);
    let address: SocketAddr = format!("{STORE_IP}:{PORT}").parse().context("not an address")?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer.contains("\"health\":\"true\"") || answer.contains("\"health\":true"))
}
