//! The life of a container's command.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::RestartPolicy;

/// `POST /v1/containers/NAME/state`: the supervisor reports the state of its command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    /// The command runs.
    Running {
        /// Pid of the command, a child of the supervisor.
        pid: i32,
        /// Log file.
        log: Option<PathBuf>,
        /// The supervisor. `None` in the report of an earlier version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        supervisor: Option<Supervised>,
        /// Identifier of the container ([`ContainerRow::id`](super::ContainerRow::id)). `None` in the
        /// report of an earlier version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// The command has ended or could not be started. Its supervisor starts it again after a pause.
    Restarting {
        /// Exit code, or 128 + N if signal N ended the command.
        code: i32,
        /// Log file.
        log: Option<PathBuf>,
        /// The supervisor.
        supervisor: Supervised,
        /// Identifier of the container ([`ContainerRow::id`](super::ContainerRow::id)). `None` in the
        /// report of an earlier version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// The command has ended, and is not started again.
    Exited {
        /// Exit code, or 128 + N if signal N ended the command.
        code: i32,
        /// Identifier of the container ([`ContainerRow::id`](super::ContainerRow::id)). `None` in the
        /// report of an earlier version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
}

impl ContainerState {
    /// Identifier of the container, if the report has one.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Running { id, .. } | Self::Restarting { id, .. } | Self::Exited { id, .. } => {
                id.as_deref()
            }
        }
    }
}

/// A supervisor, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervised {
    /// Pid of the supervisor. The agent takes that of the process which has sent the report.
    pub pid: i32,
    /// How often the command was started again.
    pub restarts: u32,
    /// How the last run ended, if the command keeps failing: `exit code 3`, or why it could not be
    /// started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// What the agent needs to start the command of `run -d --restart` again. The command line and the
/// sandbox, its user and its capabilities are those of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rerun {
    /// `--restart`.
    pub restart: RestartPolicy,
    /// Environment: names and values.
    pub environment: Vec<(String, String)>,
    /// Working directory.
    pub directory: PathBuf,
    /// File mode creation mask (umask(2)).
    pub umask: u32,
    /// Size of a file of the log, in bytes.
    pub log_max_size: u64,
    /// Number of files of the log.
    pub log_max_files: u32,
}
