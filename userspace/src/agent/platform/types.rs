//! Values and errors of the platform.

use std::{any::Any, collections::BTreeMap, net::Ipv4Addr};

use crate::datapath::entry::UnderlayPath;

use crate::api::types::{ApiError, ErrorKind};

/// Why a device is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugError {
    /// The sandbox is not Culvert's, and it does not exist now. The engine tries again until
    /// it does.
    Absent(String),
    /// Something prevents it.
    Refused(ErrorKind, String),
}

impl PlugError {
    /// The error on one line.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Absent(message) | Self::Refused(_, message) => message,
        }
    }
}

impl From<PlugError> for ApiError {
    fn from(error: PlugError) -> Self {
        match error {
            PlugError::Absent(message) => Self::new(ErrorKind::NotFound, message),
            PlugError::Refused(kind, message) => Self::new(kind, message),
        }
    }
}

impl From<ApiError> for PlugError {
    fn from(error: ApiError) -> Self {
        Self::Refused(error.kind, error.message)
    }
}

/// A port of the host, taken until this value is dropped.
pub(crate) type PortHold = Box<dyn Any + Send>;

/// Why a port of the host cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortError {
    /// A socket has it.
    InUse,
    /// The agent has no privilege for the port.
    Denied {
        /// The first port that needs no privilege: `net.ipv4.ip_unprivileged_port_start`.
        from: u16,
    },
    /// The host does not have the address.
    NoSuchAddress,
    /// Another error, as text.
    Other(String),
}

/// Who has a port of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process.
    Process {
        /// Its name, at most 15 bytes (`comm` of proc(5)).
        name: String,
        /// Its number.
        pid: i32,
    },
    /// A connection without a process, as in TIME_WAIT.
    Ending,
    /// Nobody that the agent can see.
    Unseen,
}

/// How VTEPs are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Path by VTEP address.
    pub(crate) paths: BTreeMap<[u8; 4], UnderlayPath>,
    /// What is wrong with the path to a VTEP, by address; the VTEP may have a path.
    pub(crate) problems: BTreeMap<Ipv4Addr, String>,
}

/// What a change on the host concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostEvent {
    /// Routes or neighbours changed: the paths to VTEPs may be others.
    Underlay,
    /// An uplink was added, changed or removed.
    Uplink,
    /// An interface was removed. It may have been a container's.
    LinkGone(u32),
    /// Events were lost: everything may have changed.
    Lost,
}
