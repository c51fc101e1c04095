//! Hooks on the path of a packet.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use culvert_testbed::netns::Netns;

use crate::load::Peers;

/// A device's hook at which programs run.
pub(super) struct Place<'a> {
    /// The host.
    pub(super) host: &'a Netns,
    /// Name of the device.
    pub(super) device: String,
    /// The hook.
    pub(super) hook: TcAttachType,
}

/// Two hooks on the path of a packet.
pub(super) struct Path<'a> {
    /// Name of the path, as `SNAT`.
    pub(super) what: &'static str,
    /// Client and server.
    pub(super) peers: &'a Peers,
    /// The first and the second hook of the client's packets.
    pub(super) places: [Place<'a>; 2],
    /// Whether the second hook sees the answer. Otherwise it sees the packet that the first hook
    /// forwards.
    pub(super) answered: bool,
}

/// Kind of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Traffic {
    /// Datagrams of 64 bytes.
    Udp,
    /// One stream in frames of up to 64 KB.
    Tcp,
}

impl Traffic {
    /// Name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP 64 B",
            Self::Tcp => "TCP 64 KB",
        }
    }
}

impl Place<'_> {
    /// The programs at the hook.
    pub(super) fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let query = || SchedClassifier::query_tcx(self.device.as_str(), self.hook);
        let (_, programs) = culvert::netns::run_in(self.host.fd().as_fd(), query)?
            .with_context(|| format!("{}: programs", self.device))?;
        Ok(programs)
    }
}
