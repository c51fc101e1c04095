//! Where programs run that packets come by.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use culvert_testbed::netns::Netns;

use crate::load::Way;

/// A device's hook at which programs run.
pub(super) struct Place<'a> {
    /// The host.
    pub(super) host: &'a Netns,
    /// Name of the device.
    pub(super) device: String,
    /// The hook.
    pub(super) hook: TcAttachType,
}

/// Two places that packets of a way come by.
pub(super) struct Path<'a> {
    /// What is measured, as `SNAT`.
    pub(super) what: &'static str,
    /// From where to where.
    pub(super) way: &'a Way,
    /// Where what the client sends comes first, and what comes next.
    pub(super) places: [Place<'a>; 2],
    /// What comes to the second place is the answer; otherwise it is what the first sends on.
    pub(super) answered: bool,
}

/// What is sent.
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
    /// The programs there.
    pub(super) fn programs(&self) -> Result<Vec<ProgramInfo>> {
        let query = || SchedClassifier::query_tcx(self.device.as_str(), self.hook);
        let (_, programs) = culvert::netns::run_in(self.host.fd().as_fd(), query)?
            .with_context(|| format!("{}: programs", self.device))?;
        Ok(programs)
    }
}
