//! Errors of netlink operations. Each names the interface.

use std::{io, net::IpAddr};

use nix::errno::Errno;

use crate::limits::name_limit;

/// Why a netlink operation failed: one line.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No interface has this name.
    #[error(
        "interface {0} does not exist in this network namespace: 'ip link' lists those that do"
    )]
    NoSuchInterface(String),
    /// Another interface has this name.
    #[error(
        "interface name {0} is taken: choose another name, or remove the interface that has it"
    )]
    NameTaken(String),
    /// The name is not a valid interface name.
    #[error(
        "interface name {0:?} is malformed: 1 to 15 bytes without '/', ':', '%' and white space are valid"
    )]
    MalformedName(String),
    /// The kernel refuses this MTU.
    #[error("MTU {mtu} of interface {interface} is out of range: {min} to {max} is valid")]
    Mtu {
        /// Interface.
        interface: String,
        /// The MTU that was asked for.
        mtu: u32,
        /// Least valid MTU.
        min: u32,
        /// Greatest valid MTU.
        max: u32,
    },
    /// The kernel has no route to the address.
    #[error("no route to {0}: add one, or bring up the uplink that leads there")]
    NoRoute(IpAddr),
    /// Missing privilege.
    #[error("{0}: permission denied: run as root, CAP_NET_ADMIN is needed")]
    Permission(String),
    /// The kernel refused for another reason.
    #[error("{what}: {source}{}", hint(.detail))]
    Kernel {
        /// The operation and what it was applied to.
        what: String,
        /// The kernel's error.
        source: io::Error,
        /// The text of the kernel's extended acknowledgement; may be empty.
        detail: String,
    },
    /// The kernel gave no answer, or an invalid one.
    #[error("{what}: {detail}")]
    Protocol {
        /// The operation and what it was applied to.
        what: String,
        /// Description of the invalid answer, or of its absence.
        detail: String,
    },
}

/// The kernel's text in parentheses, if there is one.
fn hint(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

impl NetlinkError {
    /// An error number of the kernel from the operation `what`.
    pub(crate) fn kernel(what: impl Into<String>, source: io::Error) -> Self {
        Self::with_detail(what, source, String::new())
    }

    /// An error number of the kernel from the operation `what`, with the text of the extended
    /// acknowledgement.
    pub(crate) fn with_detail(what: impl Into<String>, source: io::Error, detail: String) -> Self {
        let what = what.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Permission(what),
            _ => Self::Kernel { what, source: name_limit(source), detail },
        }
    }

    /// The kernel's error number, if the error has one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Permission(_) => Some(Errno::EPERM),
            _ => None,
        }
    }
}
